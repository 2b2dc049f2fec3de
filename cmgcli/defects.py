"""Draws a defect on any image, with its mask.

The head of the detector (module `adapt`) learns from these drawings, so a defect lives in the image's own range of
values: its brightness is shifted by multiples of the local contrast, its colours and textures are the image's own.
Lineage: CutPaste (Li et al. 2021), DRAEM (Zavrtanik et al. 2021).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from cmgcli.defect_kinds import DRAWERS, Patch, Scene, pick

KINDS: tuple[str, ...] = tuple(DRAWERS)
VISIBLE = 2  # grey levels a pixel must change by to count as changed
_FEWEST = 4  # pixels of the smallest mask


@dataclass(frozen=True)
class DrawnDefect:
    """An image with one defect.

    image: (H, W, 3) uint8 RGB; equal to the input outside the mask.
    mask: (H, W) bool, the pixels that were visibly changed.
    kind: one of `KINDS`.
    """

    image: np.ndarray
    mask: np.ndarray
    kind: str


def draw(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    allowed: np.ndarray | None = None,
    kind: str | None = None,
    strength: float | None = None,
    donor: np.ndarray | None = None,
) -> DrawnDefect:
    """Draw one defect.

    image: (H, W, 3) uint8 RGB. A gray image stays gray; a two-valued image keeps its two values.
    allowed: (H, W) bool, where the defect may lie; None or empty: everywhere.
    kind: one of `KINDS`; None: drawn at random.
    strength: 0 (barely visible) to 1 (gross); None: drawn at random.
    donor: (H', W', 3) uint8 RGB, an image of the same kind to cut pieces from; None: the image itself.
    Raises ValueError for an unknown kind or arrays of another shape.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"expected a (H, W, 3) uint8 image, got {image.shape} {image.dtype}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of defect {kind!r}: choose one of {', '.join(KINDS)}")
    if allowed is not None and allowed.shape != image.shape[:2]:
        raise ValueError(f"allowed is {allowed.shape}, the image {image.shape[:2]}: pass a mask of the image's size")
    kind = KINDS[rng.integers(len(KINDS))] if kind is None else kind
    strength = float(rng.random()) if strength is None else float(np.clip(strength, 0, 1))
    scene = _look_at(image, allowed, donor)
    enough = min(_FEWEST, int(np.count_nonzero(scene.allowed)))
    for attempt in range(4):
        drawn = _compose(scene, DRAWERS[kind](scene, rng, min(1.0, strength + 0.25 * attempt)), kind)
        if np.count_nonzero(drawn.mask) >= enough:
            return drawn
    return _force(scene, rng, enough, kind)


def strongest(change: np.ndarray) -> np.ndarray:
    """The largest of the three channels (H, W) of an (H, W, 3) array; several times faster than a maximum over the last axis."""
    return np.maximum(np.maximum(change[..., 0], change[..., 1]), change[..., 2])


def _look_at(image: np.ndarray, allowed: np.ndarray | None, donor: np.ndarray | None) -> Scene:
    height, width = image.shape[:2]
    if allowed is None or not allowed.any():
        allowed = np.ones((height, width), dtype=bool)
    if donor is not None and donor.shape != image.shape:
        donor = cv2.resize(donor, (width, height), interpolation=cv2.INTER_AREA)
    sample = image[:: max(1, height // 48), :: max(1, width // 48)]
    gray = bool(np.ptp(sample, axis=2).max() == 0 and np.array_equal(image[..., 0], image[..., 1]))
    gray = gray and np.array_equal(image[..., 1], image[..., 2])
    return Scene(image, allowed.astype(bool), donor, gray, float(sample.mean(axis=2).std()), _two_values(image, sample))


def two_valued(image: np.ndarray) -> bool:
    """Whether an (H, W, 3) uint8 image has two colours, no more and no fewer, as a thresholded circuit board has."""
    return _two_values(image, image[:: max(1, image.shape[0] // 48), :: max(1, image.shape[1] // 48)]) is not None


def _two_values(image: np.ndarray, sample: np.ndarray) -> np.ndarray | None:
    """The two colours (2, 3) of a two-valued image, None for any other; looks at the sample first because that is cheap."""
    weights = np.array([1, 256, 65536], dtype=np.int32)
    if len(np.unique(sample.reshape(-1, 3) @ weights)) > 2:
        return None
    colours = np.unique(image.reshape(-1, 3) @ weights)
    if len(colours) != 2:
        return None
    return np.stack([colours & 255, colours >> 8 & 255, colours >> 16], axis=1).astype(np.float32)


def _compose(scene: Scene, patch: Patch, kind: str) -> DrawnDefect:
    height, width = patch.alpha.shape
    box = np.s_[patch.top : patch.top + height, patch.left : patch.left + width]
    old = scene.image[box]
    allowed = scene.allowed[box]
    if scene.values is None:
        alpha = patch.alpha[..., None]
        new = np.clip(old + alpha * (patch.pixels - old) + 0.5, 0, 255).astype(np.uint8)
    else:
        nearest = np.abs(patch.pixels[:, :, None] - scene.values).sum(axis=3).argmin(axis=2)  # (h, w)
        new = np.where(patch.alpha[..., None] > 0.4, scene.values[nearest].astype(np.uint8), old)
    changed = (strongest(cv2.absdiff(new, old)) > VISIBLE) & allowed
    # A pasted texture meets the old value here and there by chance: such pinholes belong to the defect.
    closed = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0
    inside = closed & allowed & (patch.alpha > 0.05)
    inside |= changed
    image = scene.image.copy()
    image[box][inside] = new[inside]
    mask = np.zeros(scene.allowed.shape, dtype=bool)
    mask[box] = inside
    return DrawnDefect(image, mask, kind)


def _force(scene: Scene, rng: np.random.Generator, count: int, kind: str) -> DrawnDefect:
    """Where a kind shows nothing (a blur of a flat surface), the `count` allowed pixels around a point change plainly."""
    y, x = pick(scene.allowed, rng)
    ys, xs = np.nonzero(scene.allowed)
    near = np.argsort((ys - y) ** 2 + (xs - x) ** 2, kind="stable")[: max(count, 1)]
    image, mask = scene.image.copy(), np.zeros(scene.allowed.shape, dtype=bool)
    old = image[ys[near], xs[near]].astype(int)  # (count, 3)
    if scene.values is None:
        new = old + np.where(old.mean(axis=1, keepdims=True) > 127, -40, 40)
    else:
        new = np.where((old == scene.values[0]).all(axis=1)[:, None], scene.values[1], scene.values[0])
    image[ys[near], xs[near]] = np.clip(new, 0, 255)
    mask[ys[near], xs[near]] = True
    return DrawnDefect(image, mask, kind)
