"""What a GPU does for cmg: the encoder near the limit of the card, whole runs of `score` and `fit`, agreement with the processor.

    python -m tests.benchmarks.gpu [--encoders builtin ViT-B-16] [--images 512] [--tiles DIR] [--device cuda] [limits scoring fitting]

A unit is one bare forward pass of the same encoder over one image, in the same precision and batch. Times are on the wall, the least of some
rounds, the device waited for. The card's limit is the rate of its own matrix product of that precision, 8192 a side, taken in the same run.
ViT-B-16 gets random weights. Two whole runs of `cmg score`, over an eighth of the images and over all, tell its start from its steady pace.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.utils.flop_counter import FlopCounterMode

import cmgcli
from cmgcli.dataset import caption_lookup, read_dataset
from cmgcli.encoder import Encoder, load_encoder
from cmgcli.line import write_line
from cmgcli.model import Model
from cmgcli.view import Meter, choose_relevance, look, relevance_of
from tests.benchmarks.__main__ import machine, show
from tests.benchmarks.speed import random_vit

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(job: Callable[[], object], device: str, rounds: int = 5) -> float:
    """The least time of a job on the wall, after one to warm up."""
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    job()
    found = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        job()
        wait()
        found.append(time.perf_counter() - start)
    return min(found)


def matrix_rates(device: str, side: int) -> dict[str, float]:
    """FLOP/s of a square product in each precision."""
    found = {}
    for name, dtype in PRECISIONS.items():
        one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        found[name] = 2 * side**3 / seconds(lambda one=one, other=other: one @ other, device)
    return found


def limits(name: str, device: str, rates: dict[str, float], batches: tuple[int, ...]) -> dict[str, object]:
    """Bare passes by batch and precision, and what the estimators of relevance and the whole view of an image cost in them."""
    found: dict[str, object] = {}
    for precision in PRECISIONS:
        encoder = load_encoder(name, device=device, precision=precision)
        with FlopCounterMode(display=False) as counter:
            encoder.encode_image(_pixels(encoder, 1))
        for batch in batches:
            pixels = _pixels(encoder, batch)
            unit = seconds(lambda: encoder.encode_image(pixels), device)
            found[f"{precision}, {batch} at once"] = {
                "images/s": batch / unit,
                "share of the card's matrix rate": batch * counter.get_total_flops() / unit / rates[precision],
            }
    encoder, batch = load_encoder(name, device=device), batches[len(batches) // 2]
    pixels, text = _pixels(encoder, batch), torch.nn.functional.normalize(torch.randn(batch, encoder.dim, device=device), dim=1)
    pictures = list(np.random.default_rng(0).integers(0, 255, (batch, encoder.image_size, encoder.image_size, 3), dtype=np.uint8))
    unit = seconds(lambda: encoder.encode_image(pixels), device)
    found[f"float32, {batch} at once, units"] = {
        "relevance and features": seconds(lambda: look(encoder, pictures, list(text), layers=encoder.feature_layers, relevance=choose_relevance(encoder, None), keep=0.5), device) / unit,
        "sampled": seconds(lambda: _relevance(encoder, pixels, text, "sampled"), device, 2) / unit,
        "occlusion": seconds(lambda: _relevance(encoder, pixels, text, "occlusion"), device, 1) / unit,
        "decoded to normalised pixels": seconds(lambda: encoder.preprocess(pictures), device) / unit,
    }
    return found


def _pixels(encoder: Encoder, batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, encoder.image_size, encoder.image_size, generator=torch.Generator().manual_seed(0)).to(encoder.device)


def _relevance(encoder: Encoder, pixels: torch.Tensor, text: torch.Tensor, estimator: str) -> torch.Tensor:
    meter = Meter(encoder, pixels)
    return relevance_of(meter, estimator, meter.encode(), text)


def scoring(line: Path, folder: Path, name: str, device: str, images: int) -> dict[str, float]:
    """Whole runs of `cmg score` with and without the head, and how the scores agree with a processor's."""
    captions = caption_lookup(read_dataset(line, line / "metadata.csv").records)
    files = sorted((line / "images").glob("test*"))[:images]
    found: dict[str, float] = {}
    for called, options in {"without the head": {"adapt": False}, "with the head": {"adapt_steps": 200}}.items():
        if name != "builtin" and "adapt_steps" in options:
            continue
        path = folder / "gpu.cmg"
        cmgcli.fit(line, line / "metadata.csv", encoder=name, device=device, precision="float32", **options).save(path)
        model = Model.load(path, device=device)
        for size in (16, 64):
            pace = len(files) / seconds(lambda model=model, size=size: list(model.score(files, captions, batch_size=size)), device, 2)
            found[f"{called}, {size} at once, images/s"] = pace
        some, every = (_run(path, line, files[:count], device) for count in (len(files) // 8, len(files)))
        found[f"{called}, cmg score, s to start"] = some - (every - some) / 7
        found[f"{called}, cmg score, images/s after it"] = 7 / 8 * len(files) / (every - some)
        here, there = ([row.score for row in Model.load(path, device=where).score(files[:64], captions)] for where in (device, "cpu"))
        found[f"{called}, Spearman with a processor's scores"] = float(spearmanr(here, there)[0])
        found[f"{called}, greatest difference / their spread"] = float(np.abs(np.subtract(here, there)).max() / np.std(there))
        alone = [row.score for row in model.score(files[:64], captions, batch_size=1)]
        found[f"{called}, greatest difference one by one / their spread"] = float(np.abs(np.subtract(here, alone)).max() / np.std(there))
    return found


def _run(model: Path, line: Path, files: list[Path], device: str) -> float:
    """Seconds of a whole process that scores some files."""
    command = [sys.executable, "-m", "cmgcli", "score", "--model", str(model), "--captions", str(line / "metadata.csv"), "--device", device, *map(str, files)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def fitting(dataset: Path, device: str, steps: int) -> dict[str, float]:
    """Seconds of a fit by default settings in this process, and of its stages."""
    stages: dict[str, float] = {}
    last = start = time.perf_counter()

    def told(stage: str, _: int, __: int) -> None:
        nonlocal last
        now, called = time.perf_counter(), stage.split(" (")[0]
        stages[called] = stages.get(called, 0.0) + now - last
        last = now

    cmgcli.fit(dataset, dataset / "metadata.csv", device=device, adapt_steps=steps, progress=told)
    return {"all": time.perf_counter() - start} | stages


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["limits", "scoring", "fitting", []], help="all by default")
    parser.add_argument("--encoders", nargs="*", default=["builtin", "ViT-B-16"], help="builtin, or open_clip architectures, which get random weights")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--tiles", type=Path, help="dataset whose default fit is timed; without it a line of 120 images")
    parser.add_argument("--steps", type=int, default=1500, help="of the head's training")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--side", type=int, default=8192, help="of the matrix product")
    args = parser.parse_args()
    parts = args.parts or ["limits", "scoring", "fitting"]
    print("machine")
    show(machine())
    rates = matrix_rates(args.device, args.side)
    show({f"matrix product, {name}, TFLOP/s": rate / 1e12 for name, rate in rates.items()})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line = write_line(folder / "line", train=120, test=args.images).parent
        for encoder in args.encoders:
            full = encoder if encoder == "builtin" else random_vit(folder, encoder)
            print(encoder, flush=True)
            if "limits" in parts:
                show(limits(full, args.device, rates, tuple(args.batches)))
            if "scoring" in parts:
                show(scoring(line, folder, full, args.device, args.images))
        if "fitting" in parts:
            print("fit, s", flush=True)
            show(fitting(args.tiles or line, args.device, args.steps))


if __name__ == "__main__":
    main()
