"""Defects among the normals, and every image twice: what they do to AUROC and to the realised false-alarm rate.

    python -m tests.benchmarks.contamination [SEEDS]

The demo line, built-in encoder, no head, cross-fitted at 0.05. A share of the training images is replaced by defective
ones of the same line, which are then not judged. "Trimmed" is a second fit without the training images that the first
finds the worst, as many as the defects that were put in: the best case of trimming, since nobody knows that number.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cmgcli.crossfit import cross_fit
from cmgcli.dataset import Record
from cmgcli.encoder import load_encoder
from cmgcli.heldout import gather
from cmgcli.looks import Looks
from cmgcli.metrics import auroc
from tests.benchmarks.setting import line_records, settings_of

TRAIN, RATE = 200, 0.05


def quiet(*_: object) -> None:
    return


def part(looks: Looks, numbers: Sequence[int]) -> Looks:
    """The looks at some of the records, with the views that are held already."""
    chosen = Looks([looks.records[i] for i in numbers], looks.encoder, looks.settings, budget=0)
    chosen.held.views = {k: looks.held.views[i] for k, i in enumerate(numbers) if i in looks.held.views}
    return chosen


def judged(looks: Looks, train: Sequence[int], test: Sequence[int]) -> tuple[float, float, np.ndarray]:
    """AUROC on the test records, the share of good ones flagged, and the model's own score of each training record."""
    model = cross_fit(part(looks, train), false_alarm=RATE, report=quiet)
    score = model.detector.blend(gather(model, looks, test, made_up=0, report=quiet).normal)
    labels = np.array([looks.records[i].label for i in test])
    own = model.detector.blend(gather(model, looks, train, made_up=0, report=quiet).normal)
    return auroc(labels, score), float((score[labels == 0] > model.detector.calibration.threshold()).mean()), own


def main(seeds: int = 3) -> None:
    encoder = load_encoder("builtin", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        records: tuple[Record, ...] = line_records(Path(folder), train=TRAIN + 150, test=200)
        looks = Looks([replace(record, label=record.label or 0) for record in records], encoder, settings_of(encoder), budget=2_000_000_000)
        good = np.array([i for i, record in enumerate(records) if not record.label])
        bad = np.array([i for i, record in enumerate(records) if record.label])
        rows: dict[str, list[tuple[float, float]]] = {}
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            normal, defective = rng.permutation(good), rng.permutation(bad)
            test = [*normal[TRAIN:], *defective[len(bad) // 4 :]]
            for share in (0.0, 0.01, 0.05, 0.10):
                count = round(share * TRAIN)
                train = [*normal[: TRAIN - count], *defective[:count]]
                found, rate, own = judged(looks, train, test)
                rows.setdefault(f"{share:.0%} defects", []).append((found, rate))
                if count:
                    kept = [train[i] for i in np.argsort(own)[: len(train) - count]]
                    rows.setdefault(f"{share:.0%} defects, trimmed", []).append(judged(looks, kept, test)[:2])
            half = [*normal[: TRAIN // 2]]
            rows.setdefault("half of the images", []).append(judged(looks, half, test)[:2])
            rows.setdefault("half of the images, each twice", []).append(judged(looks, half + half, test)[:2])
    for name, figures in rows.items():
        (found, rate), spread = np.mean(figures, axis=0), np.std(figures, axis=0)
        print(f"{name}: AUROC {found:.4f} +- {spread[0]:.4f}, false alarms {rate:.4f} +- {spread[1]:.4f} of {RATE} asked for, {len(figures)} seeds", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
