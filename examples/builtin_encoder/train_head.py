"""Train the defect head that `cmg fit` starts from: drawn defects on scenes of the line and on photographs of materials.

    python examples/builtin_encoder/train_head.py --materials DIR --steps 1500

DIR holds `images/`, photographs of flawless materials; they are trained on and never shipped. No real defect is seen.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np

from cmgcli import line
from cmgcli.adapt import Scene, train_head
from cmgcli.encoder import WEIGHTS, load_encoder
from cmgcli.images import find_images, read_image
from cmgcli.pretrained_head import HEAD, save_head

SIZE = 224


def line_scene(seed: int, grid: tuple[int, int]) -> Scene:
    sample = line.render(np.random.default_rng((7, seed)), size=SIZE)
    share = cv2.resize(sample.object_mask.astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
    return Scene(sample.image, cv2.dilate((share > 0.2).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool))


def material_scene(path: str, rng: np.random.Generator, grid: tuple[int, int]) -> Scene:
    """A photograph zoomed in by up to 2, turned, made grey half of the time, its contrast and brightness changed."""
    image = read_image(path)
    side = int(min(image.shape[:2]) / rng.uniform(1, 2))
    top, left = (int(rng.integers(full - side + 1)) for full in image.shape[:2])
    image = np.rot90(image[top : top + side, left : left + side], int(rng.integers(4)))
    image = cv2.resize(np.ascontiguousarray(image), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    if rng.random() < 0.5:
        image = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    image = (image - image.mean()) * rng.uniform(0.4, 1.3) + rng.uniform(50, 200)
    image += rng.uniform(0, 4) * rng.standard_normal(image.shape[:2])[..., None]
    return Scene(np.clip(image, 0, 255).astype(np.uint8), np.ones(grid, bool))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--materials", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=2500, help="of the line; as many of the materials")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--weights", type=Path, default=WEIGHTS / HEAD)
    args = parser.parse_args()
    encoder = load_encoder("builtin")
    rng = np.random.default_rng(0)
    paths = find_images([str(args.materials / "images")])
    scenes = [line_scene(i, encoder.grid) for i in range(args.scenes)]
    scenes += [material_scene(paths[int(rng.integers(len(paths)))], rng, encoder.grid) for _ in range(args.scenes)]
    started, losses = time.time(), []

    def report(step: int, steps: int, loss: float) -> None:
        losses.append(loss)
        if step % 50 == 0:
            print(f"{(time.time() - started) / 60:.1f} min, step {step} of {steps}, loss {np.mean(losses[-50:]):.3f}", flush=True)

    device = encoder.device.type
    head = train_head(lambda i: scenes[i], len(scenes), encoder.encode_tokens, encoder.width, steps=args.steps, learning_rate=2e-3, progress=report, device=device)
    save_head(head, args.weights)


if __name__ == "__main__":
    main()
