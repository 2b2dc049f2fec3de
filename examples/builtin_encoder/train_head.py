"""Train the defect head that `cmg fit` starts from: drawn defects on scenes of the line and on photographs of materials.

    python examples/builtin_encoder/train_head.py --materials DIR --steps 6000
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

import cv2
import numpy as np
import torch

from cmgcli import defects, line
from cmgcli.adapt import Drawn, Scene, draw_defects, train_head
from cmgcli.head import DefectHead, head_map
from cmgcli.images import find_images, read_image
from cmgcli.metrics import auroc
from cmgcli.pretrained_head import HEAD, load_head, save_head

sys.path.insert(0, str(Path(__file__).parent))
from materials import part, surface  # noqa: E402

SIZE = 192
TOKEN_WIDTH = 1  # no tokens are read here; the layers that read them are made anew for each encoder
GRID = np.ones((1, 1), bool)


def line_scene(seed: int) -> Scene:
    """A flawless part of the line, 224 pixels, and where its surface is."""
    sample = line.render(np.random.default_rng((7, seed)), size=224)
    return Scene(sample.image, cv2.dilate(sample.object_mask.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool))


def sampler(photos: list[np.ndarray], scenes: list[Scene]):
    """Half of the samples are surfaces that fill the frame, three tenths parts of one material on another, the rest the line."""

    def scene(rng: np.random.Generator) -> Scene:
        kind = rng.random()
        if kind < 0.5:
            return Scene(surface(photos[int(rng.integers(len(photos)))], rng, SIZE), GRID)
        if kind < 0.8:
            return Scene(*part(photos, rng, SIZE))
        return scenes[int(rng.integers(len(scenes)))]

    def sample(rng: np.random.Generator) -> Drawn:
        donor = photos[int(rng.integers(len(photos)))] if rng.random() < 0.5 else None
        return draw_defects(scene(rng), donor, rng, rate=0.75)

    return sample


def held_out_auroc(head: DefectHead, photos: list[np.ndarray]) -> dict[str, float]:
    """AUROC of each kind of drawn defect on surfaces of photographs that were not trained on."""
    rng, tokens = np.random.default_rng(5), torch.zeros(TOKEN_WIDTH, 1, 1)
    normal = [surface(photo, rng, SIZE) for photo in photos]
    calm = [head_map(head, image, tokens, GRID)[0] for image in normal]
    found = {}
    for kind in defects.KINDS:
        broken = [defects.draw(image, rng, kind=kind, strength=float(rng.random() ** 0.5)).image for image in normal]
        scores = [head_map(head, image, tokens, GRID)[0] for image in broken]
        found[kind] = auroc(np.repeat([0, 1], len(normal)), np.r_[calm, scores])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--materials", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=1200, help="scenes of the line")
    parser.add_argument("--steps", type=int, default=6000)
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
        sampler(used, [line_scene(i) for i in range(args.scenes)]),
        TOKEN_WIDTH,
        steps=args.steps,
        seed=args.seed,
        start=load_head(TOKEN_WIDTH, args.weights) if args.go_on else None,
        snapshot=args.weights.with_suffix(".training"),
        snapshot_key=f"{args.steps} steps of seed {args.seed} on {len(used)} photographs and {args.scenes} scenes",
        progress=report,
        device=args.device,
    )
    save_head(head, args.weights)
    args.weights.with_suffix(".training").unlink(missing_ok=True)
    for kind, value in held_out_auroc(head.cpu(), held).items():
        print(f"AUROC of drawn defects on held-out materials, {kind}: {value:.3f}")


if __name__ == "__main__":
    main()
