"""Realised false-alarm rate of split and cross calibration over random splits: of Gaussian features, and of the demo line;
and what a threshold for each caption misses beside one for all.

    python -m tests.benchmarks.calibration [ROUNDS]

On the line each round draws 160 training images anew from a pool of 400 good ones and judges the rest of the pool. Its
features are made once; the image score is calibrated in all rounds, whole models (patches too) in the first twentieth.
"""

import math
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch

from cmgcli.calibrate import AMPLE, calibrate, conformal_threshold, folds, split
from cmgcli.cmle import ResidualMoments, caption_weights, guided_space, residual_norm, structure_matrix
from cmgcli.encoder import load_encoder
from cmgcli.heldout import gather
from cmgcli.looks import Looks
from cmgcli.pipeline import fit_records
from tests.benchmarks.setting import line_records, settings_of

RATES = (0.10, 0.05, 0.01)
POOL, TRAIN = 400, 160

Score = Callable[[np.ndarray], np.ndarray]  # numbers of images to their scores


def flagged(fit: Callable[[np.ndarray], Score], known: np.ndarray, fresh: np.ndarray, method: str, rate: float, seed: int) -> float:
    """Share of the fresh images above the threshold of a model of the known ones, both given by their numbers.

    method: split, cross, or resubstitution, which calibrates on the scores of the images that the model was fitted on.
    """
    if method == "split":
        parts = split(len(known), false_alarm=rate, seed=seed)
        score = fit(known[list(parts.fit)])
        held = score(known[list(parts.calibration)])
    else:
        score = fit(known)
        held = score(known)
        for fold in map(list, folds(len(known), seed=seed) if method == "cross" else ()):
            held[fold] = fit(np.delete(known, fold))(known[fold])
    return float((score(fresh) > calibrate(held, [0] * len(held), false_alarm=rate).threshold()).mean())


def realised_rates(method: str, rate: float, *, images: int, rounds: int, dim: int = 6) -> np.ndarray:
    """The flagged share (rounds,) of fresh Gaussian features; the score is the Mahalanobis distance."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(rounds):
        x = rng.normal(size=(images + 1000, dim))

        def fit(numbers: np.ndarray, x: np.ndarray = x) -> Score:
            mean, precision = x[numbers].mean(0), np.linalg.inv(np.cov(x[numbers].T))
            return lambda asked: np.einsum("nd,de,ne->n", x[asked] - mean, precision, x[asked] - mean)

        found.append(flagged(fit, np.arange(images), np.arange(images, len(x)), method, rate, seed))
    return np.array(found)


def guided_fit(x: torch.Tensor, captions: torch.Tensor, text: torch.Tensor) -> Callable[[np.ndarray], Score]:
    """Fits the image score of embeddings (N, D) with caption numbers (N,), as `learn` and `Language` do."""

    def fit(numbers: np.ndarray) -> Score:
        present, groups = captions[numbers].unique(return_inverse=True)
        moments = ResidualMoments(structure_matrix(text[present], torch.bincount(groups)), x.shape[1])
        moments.add(x[numbers], groups)
        space, means = guided_space(moments), moments.group_means
        places = torch.stack([caption_weights(t, text[present]).of(means) for t in text])  # (U, D)
        return lambda asked: residual_norm(space, x[asked], places[captions[asked]]).numpy()

    return fit


def misses(count: int, rate: float, *, differ: float, each: bool, rounds: int, captions: int = 6) -> tuple[float, float]:
    """Mean realised false-alarm and miss rate of `conformal_threshold` over ``count`` scores of each caption, or over those of all together.

    Good scores are normal, bad ones lie two spreads higher, and the captions' means have a spread of ``differ``.
    """
    rng, normal, found = np.random.default_rng(0), NormalDist(), []
    for _ in range(rounds):
        means = rng.normal(0, differ, captions)
        scores = np.sort(rng.normal(means[:, None], 1, (captions, count)))
        thresholds = [conformal_threshold(own, rate) for own in scores] if each else [conformal_threshold(np.sort(scores, None), rate)] * captions
        above = [threshold - mean for threshold, mean in zip(thresholds, means, strict=True)]
        found.append((np.mean([1 - normal.cdf(t) for t in above]), np.mean([normal.cdf(t - 2) for t in above])))
    alarms, missed = np.mean(found, 0)
    return float(alarms), float(missed)


def report(name: str, rates: dict[tuple[str, float], list[float]]) -> None:
    for (method, rate), found in rates.items():
        error = np.std(found) / len(found) ** 0.5
        print(f"{name}, {method}, {rate:g}: realised {np.mean(found):.4f} +- {error:.4f} over {len(found)} rounds, spread {np.std(found):.4f}", flush=True)


def main(rounds: int = 200) -> None:
    for rate, differ, times in product(RATES, (0, 0.5, 1), (1.5, 3, AMPLE)):
        count = math.ceil(times * (1 / rate - 1))
        for name, each in (("of each", True), ("of all", False)):
            alarms, missed = misses(count, rate, differ=differ, each=each, rounds=rounds)
            print(f"six captions, means {differ:g} spreads apart, {count} scores each, promised {rate:g}, threshold {name}: false alarms {alarms:.3f}, missed {missed:.2f}", flush=True)
    for method in ("split", "cross", "resubstitution"):
        report("Gaussian, 120 images", {(method, rate): list(realised_rates(method, rate, images=120, rounds=rounds)) for rate in RATES})
    encoder = load_encoder("builtin", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        records = line_records(Path(folder), train=POOL)[:POOL]
        looks = Looks(records, encoder, settings_of(encoder))
        views = [view for _, some in looks.sound(range(POOL)) for view in some]
        texts = list(looks.text)
        captions = torch.tensor([texts.index(record.text) for record in records])
        fit = guided_fit(torch.stack([view.embedding for view in views]), captions, torch.stack(list(looks.text.values())))
        image: dict[tuple[str, float], list[float]] = {(method, rate): [] for method in ("split", "cross") for rate in RATES}
        whole: dict[tuple[str, float], list[float]] = {("split", 0.05): [], ("cross", 0.05): []}
        for seed in range(rounds):
            order = np.random.default_rng(seed).permutation(POOL)
            for method, rate in image:
                image[method, rate].append(flagged(fit, order[:TRAIN], order[TRAIN:], method, rate, seed))
        report(f"line, image score, {TRAIN} images", image)
        for seed in range(rounds // 20):
            order = np.random.default_rng(seed).permutation(POOL)
            for method, rate in whole:
                settings = settings_of(encoder, calibration=method, seed=seed)
                model = fit_records([records[i] for i in order[:TRAIN]], encoder, settings, false_alarm=rate)
                scores = model.detector.blend(gather(model, looks, order[TRAIN:].tolist(), made_up=0, report=lambda done: None).normal)
                whole[method, rate].append(float((scores > model.detector.calibration.threshold()).mean()))
        report(f"line, whole score, {TRAIN} images", whole)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
