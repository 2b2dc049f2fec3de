"""Large images with tiny defects: what tiles find that one look at the whole image does not, what they skip, and what they cost.

    python -m tests.benchmarks.large [--images 24] [--tests 24] [--steps 100] [--tile 512] [--clutter]

Draws copper flanges of 4 000 x 3 000 pixels on a grey belt, or on the demo line's clutter, and, on half of the test images, scratches of 20, 60 and 180 pixels in turn. Prints
the image AUROC of each length and how often the map's highest place lies on the scratch, for a model that sees the whole
image and for one that sees tiles; the share of tiles skipped; seconds per image; the peak of memory.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from cmgcli.images import write_png
from cmgcli.line import render
from cmgcli.metrics import auroc
from cmgcli.pipeline import fit
from cmgcli.scoring import TileWork
from cmgcli.surfaces import lay_background

HEIGHT, WIDTH = 3000, 4000
LENGTHS = (20, 60, 180)  # pixels
CAPTION = "a photo of a copper flange"


def large_image(rng: np.random.Generator, *, clutter: bool, height: int = HEIGHT, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """A flange on the line, (H, W, 3) uint8, and where it is, (H, W) bool; drawn at a quarter of the size, then given its own grain."""
    sample = render(rng, size=max(height, width) // 4, part="flange", material="copper", caption=CAPTION, design=7)
    picture = sample.image
    if not clutter:
        share = cv2.GaussianBlur(sample.object_mask.astype(np.float32), (0, 0), 1)[..., None]
        picture = (lay_background("grey belt", rng, len(picture)) * (1 - share) + picture * share).astype(np.uint8)
    rows = np.flatnonzero(sample.object_mask.any(axis=1))
    spare = len(picture) - height // 4
    top = int(np.clip((rows[0] + rows[-1] - height // 4) // 2, 0, spare))
    box = np.s_[top : top + height // 4, : width // 4]
    image = cv2.resize(picture[box], (width, height), interpolation=cv2.INTER_CUBIC)
    grain = cv2.GaussianBlur(rng.standard_normal((height, width), dtype=np.float32), (0, 0), 0.8)
    image = np.clip(image + 6 * grain[..., None], 0, 255).astype(np.uint8)
    return image, cv2.resize(sample.object_mask[box].astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0


def scratch(image: np.ndarray, part: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a dark scratch of so many pixels, 3 wide, well inside the part, in place; gives its mask (H, W) bool."""
    inside = cv2.erode(part.astype(np.uint8), np.ones((2 * length + 1,) * 2, np.uint8)) > 0
    y, x = _place(inside if inside.any() else part, rng)
    angle = rng.uniform(0, np.pi)
    end = int(x + length * np.cos(angle)), int(y + length * np.sin(angle))
    mask = np.zeros(part.shape, np.uint8)
    cv2.line(mask, (x, y), end, 1, 3)
    image[mask > 0] = (image[mask > 0] * 0.55).astype(np.uint8)
    return mask > 0


def _place(where: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    flat = np.flatnonzero(where)
    y, x = np.unravel_index(int(flat[rng.integers(len(flat))]), where.shape)
    return int(y), int(x)


def draw_tests(folder: Path, count: int, *, clutter: bool) -> Iterator[tuple[Path, int, np.ndarray]]:
    """Writes test images one by one: path, length of the scratch (0: none), its mask."""
    for i in range(count):
        rng = np.random.default_rng((1, i))
        image, part = large_image(rng, clutter=clutter)
        length = LENGTHS[i // 2 % len(LENGTHS)] if i % 2 else 0
        mask = scratch(image, part, length, rng) if length else np.zeros(part.shape, bool)
        write_png(folder / f"test_{i:03d}.png", image)
        yield folder / f"test_{i:03d}.png", length, mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24, help="to fit on")
    parser.add_argument("--tests", type=int, default=24, help="to test on, half of them scratched")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--clutter", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good, test = Path(folder) / "good", Path(folder) / "test"
        good.mkdir()
        test.mkdir()
        for i in range(args.images):
            write_png(good / f"{i:03d}.png", large_image(np.random.default_rng((0, i)), clutter=args.clutter)[0])
        cases = list(draw_tests(test, args.tests, clutter=args.clutter))
        for tile in (args.tile, None):  # the peak of memory is that of the process so far
            started = time.time()
            model = fit(good, caption=CAPTION, adapt_steps=args.steps, tile=tile, false_alarm=0.1)
            fitted, work, rows, hits = time.time() - started, TileWork(), [], []
            started = time.time()
            found = model.inspect([path for path, _, _ in cases], {path.resolve(): CAPTION for path, _, _ in cases}, maps=True)
            for inspection, (_, length, mask) in zip(found, cases, strict=True):
                work.add(inspection.view)
                rows.append((length, inspection.row.score, inspection.row.patch_score, inspection.row.head_score))
                near = cv2.dilate(mask.astype(np.uint8), np.ones((33, 33), np.uint8)) > 0
                hits.append(bool(near.flat[int(inspection.anomaly_map.argmax())]))
            seconds = (time.time() - started) / len(cases)
            print(f"tile {tile}: fit {fitted:.0f} s, {seconds:.1f} s per image, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB; {work.sentence}")
            lengths, *parts = (np.array(column) for column in zip(*rows, strict=True))
            for length in LENGTHS:
                chosen = (lengths == 0) | (lengths == length)
                areas = ", ".join(f"{name} {auroc(lengths[chosen] > 0, part[chosen]):.2f}" for name, part in zip(("score", "patches", "head"), parts, strict=True))
                on = [hit for hit, (of, *_) in zip(hits, rows, strict=True) if of == length]
                print(f"  scratch of {length} pixels: AUROC {areas}; the map's peak lies on it in {sum(on)} of {len(on)}", flush=True)


if __name__ == "__main__":
    main()
