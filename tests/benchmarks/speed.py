"""What scoring costs in units: one unit is a bare forward pass of the same encoder, in the same precision and batch, per image.

Used by ``python -m tests.benchmarks``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

import cmgcli
from cmgcli.dataset import caption_lookup, read_dataset
from cmgcli.encoder import Encoder, load_encoder
from cmgcli.loader import BATCH
from cmgcli.model import Model


def random_vit(folder: Path, architecture: str) -> str:
    """The name of an encoder of this open_clip architecture with random weights, which are saved to a file of the folder."""
    import open_clip

    from cmgcli.clip import quiet_open_clip

    torch.manual_seed(0)
    path = folder / f"{architecture}.pt"
    with quiet_open_clip():
        torch.save(open_clip.create_model(architecture).state_dict(), path)
    return f"{architecture}@{path}"


def seconds(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least processor seconds of each job, all its threads together, over interleaved rounds.

    On a busy machine they say what a job costs, which time on the wall does not; that some of it overlaps is not seen.
    """
    best = dict.fromkeys(jobs, np.inf)
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            best[name] = min(best[name], time.process_time() - start)
    return best


@contextmanager
def counted(encoder: Encoder):
    """A list that grows by the processor seconds of this thread in every call of `Encoder.encode_image` within."""
    spent: list[float] = []
    real = encoder.encode_image

    def timed(*args, **options):
        start = time.thread_time()
        try:
            return real(*args, **options)
        finally:
            spent.append(time.thread_time() - start)

    encoder.encode_image = timed
    try:
        yield spent
    finally:
        del encoder.encode_image


def scoring_units(line: Path, name: str, *, images: int, rounds: int) -> dict[str, float | str]:
    """Units per image of scoring images of a line by an encoder, beside open_clip's own forward pass in float32."""
    captions = caption_lookup(read_dataset(line, line / "metadata.csv").records)
    files = sorted((line / "images").glob("test*"))[:images]
    model = cmgcli.fit(line, line / "metadata.csv", encoder=name, adapt=False, device="cpu")
    encoder = model.encoder
    pixels = torch.randn(BATCH, 3, encoder.image_size, encoder.image_size, generator=torch.Generator().manual_seed(0))
    theirs = _open_clip_forward(name)
    torch.set_num_threads(1)  # so that the thread's time is the encoder's
    encoding: list[float] = []
    kept: list[float] = []

    def score() -> None:
        with counted(encoder) as spent:
            kept.extend(row.kept for row in model.score(files, captions))
        encoding.append(sum(spent))

    jobs = {"unit": lambda: encoder.encode_image(pixels), "open_clip": lambda: theirs(pixels), "score": score}
    best = seconds(jobs, rounds)
    unit, scored, encoded = best["unit"] / BATCH, best["score"] / len(files), min(encoding) / len(files)
    return {
        "relevance": model.detector.settings.relevance,
        "precision": encoder.precision,
        "unit ms": 1000 * unit,
        "open_clip float32 / unit": best["open_clip"] / BATCH / unit,
        "relevance and features / unit": encoded / unit,
        "everything else / relevance and features": (scored - encoded) / encoded,
        "score / unit": scored / unit,
        "images a processor second": 1 / scored,
        "share of patches kept": float(np.mean(kept)),
    }


def _open_clip_forward(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    import open_clip

    from cmgcli.builtin import trained_builtin_model
    from cmgcli.clip import quiet_open_clip

    if name == "builtin":
        visual = trained_builtin_model().visual
    else:
        architecture, path = name.split("@", 1)
        with quiet_open_clip():
            visual = open_clip.create_model(architecture, pretrained=path).visual
    return torch.inference_mode()(visual.eval())


def precision_agreement(line: Path, name: str = "builtin", *, images: int | None = None) -> dict[str, float]:
    """What bfloat16 changes: a model fitted in float32 scores the images of a line in both precisions."""
    captions = caption_lookup(read_dataset(line, line / "metadata.csv").records)
    files = sorted((line / "images").glob("*.png"))[:images]
    fitted = cmgcli.fit(line, line / "metadata.csv", encoder=name, adapt=False, device="cpu")
    scores, decisions = [], []
    for precision in ("float32", "bfloat16"):
        model = Model(fitted.detector, load_encoder(name, device="cpu", precision=precision))
        rows = list(model.score(files, captions))
        scores.append([row.score for row in rows])
        decisions.append([row.anomalous for row in rows])
    return {
        "images": len(files),
        "Spearman, bfloat16 and float32": float(spearmanr(*scores)[0]),
        "decisions that flip": sum(a != b for a, b in zip(*decisions, strict=True)),
        "greatest difference / spread of the scores": float(np.abs(np.subtract(*scores)).max() / np.std(scores[0])),
    }

