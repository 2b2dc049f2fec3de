"""Train the defect head that `cmg fit` starts from: drawn defects on scenes of the line and on photographs of materials.

    python examples/builtin_encoder/train_head.py --materials DIR
    python examples/builtin_encoder/train_head.py --materials DIR --steps 9000 --seed 1 --go-on

DIR holds `images/`, photographs of flawless materials; they are trained on and never shipped. No real defect is seen.
A training that was broken off goes on when the same command is given again. Every tenth photograph is held out; the
AUROC of drawn defects on those is printed at the end, for each kind of defect.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from cmgcli import defects, line
from cmgcli.adapt import Crop, Scene, draw_crops, train_head
from cmgcli.head import DefectHead, head_map, peaks_and_map
from cmgcli.images import find_images, read_image
from cmgcli.metrics import auroc
from cmgcli.pretrained_head import HEAD, load_head, save_head

sys.path.insert(0, str(Path(__file__).parent))
from materials import part, surface  # noqa: E402

SIZES = (128, 192, 256)
GRID = np.ones((1, 1), bool)


def sampler(photos: list[np.ndarray], scenes: list[np.ndarray]):
    """Half of the images are surfaces that fill the frame, three tenths parts of one material on another, the rest the line."""

    def image(rng: np.random.Generator) -> np.ndarray:
        kind, size = rng.random(), SIZES[rng.integers(len(SIZES))]
        if kind < 0.5:
            return surface(photos[int(rng.integers(len(photos)))], rng, size)
        return part(*(photos[int(i)] for i in rng.integers(len(photos), size=2)), rng, size)[0] if kind < 0.8 else scenes[int(rng.integers(len(scenes)))]

    def sample(rng: np.random.Generator, _: int) -> list[Crop]:
        return draw_crops(Scene(image(rng), GRID), image(rng) if rng.random() < 0.3 else None, rng)

    return sample


def flawless(photos: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    return [surface(photo, rng, 192) for photo in photos]


def held_out_auroc(head: DefectHead, photos: list[np.ndarray]) -> dict[str, float]:
    """AUROC of each kind of drawn defect on surfaces of photographs that were not trained on."""
    rng = np.random.default_rng(5)
    normal = flawless(photos, rng)
    calm = [head_map(head, image, GRID)[0] for image in normal]
    found = {}
    for kind in defects.KINDS:
        broken = [defects.draw(image, rng, kind=kind, strength=float(rng.random() ** 0.5)).image for image in normal]
        found[kind] = auroc(np.repeat([0, 1], len(normal)), np.r_[calm, [head_map(head, image, GRID)[0] for image in broken]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--materials", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=500, help="scenes of the line")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0, help="another seed, other drawings")
    parser.add_argument("--go-on", action="store_true", help="start from the weights, not from random ones")
    parser.add_argument("--weights", type=Path, default=HEAD)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    paths = find_images([str(args.materials / "images")])
    order = np.random.default_rng(1).permutation(len(paths))
    photos = [read_image(paths[i]) for i in order]
    held, used = photos[: len(photos) // 10], photos[len(photos) // 10 :]
    started = time.time()

    def report(step: int, steps: int, loss: float, found: float | None) -> None:
        if step % 100 == 0:
            print(f"{(time.time() - started) / 60:.1f} min, step {step} of {steps}, loss {loss:.3f}", flush=True)

    head = train_head(
        sampler(used, [line.render(np.random.default_rng((7, i)), size=224).image for i in range(args.scenes)]),
        steps=args.steps,
        seed=args.seed,
        start=load_head(args.weights) if args.go_on else None,
        snapshot=args.weights.with_suffix(".training"),
        snapshot_key=f"{args.steps} steps of seed {args.seed} on {len(used)} photographs and {args.scenes} scenes",
        progress=report,
        device=args.device,
    )
    head.cpu().accustom(torch.stack([peaks_and_map(head, image, GRID)[0] for image in flawless(held, np.random.default_rng(6))]))
    save_head(head, args.weights)
    args.weights.with_suffix(".training").unlink(missing_ok=True)
    for kind, value in held_out_auroc(head, held).items():
        print(f"AUROC of drawn defects on held-out materials, {kind}: {value:.3f}")


if __name__ == "__main__":
    main()
