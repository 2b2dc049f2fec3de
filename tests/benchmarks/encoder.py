"""What the built-in encoder knows of what it was never trained on: other pairs of part and material, other seeds, other photographs.

    python -m tests.benchmarks.encoder [--materials DIR]

Prints caption retrieval; how well 'a scratched ...' against 'a flawless ...' tells drawn defects on held-out pairs of the line, for
each kind, by the embedding of the image and by its highest patch; the same on photographs that were held out, with --materials; and
the time of a forward pass.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch.nn import functional as F

from cmgcli import defects, line
from cmgcli.builtin import trained_builtin_model
from cmgcli.clip import builtin_tokenizer
from cmgcli.encoder import Encoder, choose_precision, load_encoder
from cmgcli.metrics import auroc

AMONG = (256, 512)
EACH = 60  # images of each kind of defect


@functools.cache
def training() -> ModuleType:
    """The module that trains the built-in encoder."""
    path = Path(__file__).parents[2] / "examples" / "builtin_encoder" / "train.py"
    spec = importlib.util.spec_from_file_location("train_builtin", path)
    train = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = train  # where dataclasses look for what they are annotated with
    spec.loader.exec_module(train)
    return train


def retrieval() -> None:
    """Scenes with seeds that the training's own check does not use."""
    train, tokenizer = training(), builtin_tokenizer()
    found = train.as_data(train.samples.render(2500, 950_000_000, (), train.samples.stuff_of(()), held="flawless"), tokenizer)
    rows, pairs = slice(0, 2048), found.numbers[:, 4]
    model = trained_builtin_model().eval()
    for among in AMONG:
        top1 = train.retrieval(model, found.images[rows], found.good[rows], pairs[rows], among)
        print(f"caption retrieval among {among}, held-out pairs, wording and seeds: top-1 {top1:.3f} ({len(pairs[:among].unique())} pairs)", flush=True)


def told(encoder: Encoder, shown: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray, str]], where: str) -> None:
    """AUROC of each kind of defect drawn on images, each with where a defect may lie and its name, against the same ones without."""
    samples, areas = training().samples, {"embedding": [], "highest patch": []}
    print(f"drawn defects on {where}, told by the words for flawless and for defective; AUROC by the embedding, by the highest patch")
    for number, kind in enumerate(defects.KINDS):
        rng, odds = np.random.default_rng((5, number)), {0: [], 1: []}
        word = samples.KINDS[kind][1][0]
        for image, allowed, name in (shown(rng) for _ in range(EACH)):
            texts = encoder.encode_text([f"a photo of a flawless {name}", f"a photo of a {word} {name}"])
            broken = defects.draw(image, rng, allowed=allowed, kind=kind, strength=rng.uniform(0.4, 1)).image
            for label, each in enumerate((image, broken)):
                found = encoder.encode_image(encoder.preprocess([each]))
                patches = F.normalize(found.dense[0], dim=-1)
                odds[label].append([float((each @ (texts[1] - texts[0])).max()) for each in (found.embedding, patches)])
        truth = np.repeat([0, 1], EACH)
        for column, area in enumerate(areas.values()):
            area.append(auroc(truth, np.r_[np.array(odds[0])[:, column], np.array(odds[1])[:, column]]))
        print(f"  {kind}: {areas['embedding'][-1]:.3f}, {areas['highest patch'][-1]:.3f}", flush=True)
    print("  mean: " + ", ".join(f"{np.mean(area):.3f}" for area in areas.values()))


def on_the_line(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
    held = [(part, material) for part in line.PARTS for material in line.MATERIALS if training().samples.held_out(part, material)]
    part, material = held[int(rng.integers(len(held)))]
    scene = line.render(rng, size=192, part=part, material=material)
    return scene.image, scene.object_mask, f"{material} {part}"


def seconds_per_image(encoder: Encoder, batch: int = 16) -> Iterator[float]:
    """Wall time of whole forward passes at that batch size, per image."""
    pixels = torch.randn(batch, 3, encoder.image_size, encoder.image_size)
    encoder.encode_image(pixels)
    for _ in range(9):
        started = time.perf_counter()
        encoder.encode_image(pixels)
        yield (time.perf_counter() - started) / batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--materials", type=Path)
    args = parser.parse_args()
    encoder = load_encoder("builtin", device="cpu")
    for precision in dict.fromkeys((choose_precision("cpu"), "float32")):
        spent = statistics.median(seconds_per_image(load_encoder("builtin", device="cpu", precision=precision)))
        print(f"forward pass at batch 16, {precision}, {torch.get_num_threads()} threads: {spent * 1000:.1f} ms per image", flush=True)
    retrieval()
    told(encoder, on_the_line, "held-out pairs of the line")
    if args.materials:
        _, held = training().samples.read_photos(args.materials)

        def surface(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
            photo = held[int(rng.integers(len(held)))]
            return training().samples.surface(photo.image, rng, 192), np.ones((192, 192), bool), f"{photo.category} surface"

        told(encoder, surface, "held-out photographs of materials")


if __name__ == "__main__":
    main()
