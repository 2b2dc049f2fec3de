"""Training of the defect head at fit: the user's own normal images with drawn defects.

Lineage: CutPaste (Li et al. 2021), DRAEM (Zavrtanik et al. 2021), SimpleNet (Liu et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmgcli.defects import KINDS, draw
from cmgcli.head import DefectHead, exposure, fast_bfloat16, patch_mask_to, standard_pixels, tokens_under
from cmgcli.snapshot import Course, load_snapshot, save_snapshot

CROPS = 4
WINDOW = 1024  # pixels; defects are drawn within a window of this side, whatever the size of the image
ZOOM = (0.5, 1.0)
VISIBLE_LEVELS = 8
VISIBLE_SHARE = 0.2  # of the image's own spread
WARM_UP, DECAY = 0.1, 0.5  # of the steps
CHECKS = 50  # steps between two looks at the held-out images
PATIENCE, BETTER = 6, 0.003  # checks without so much gain of AUROC: the curve is flat


@dataclass(frozen=True)
class Scene:
    """A normal training image and where CMER lets a defect lie."""

    image: np.ndarray  # (H, W, 3) uint8
    keep: np.ndarray  # (h, w) bool


@dataclass(frozen=True)
class Drawn:
    """A normal image with none to three defects."""

    image: np.ndarray  # (H, W, 3) uint8
    mask: np.ndarray  # (H, W) bool, where a drawn defect can be seen
    counts: np.ndarray  # (H, W) bool, kept by CMER, and not changed too little to be seen


@dataclass(frozen=True)
class _Crop:
    pixels: Tensor  # (3, crop, crop) float32
    target: Tensor  # (1, crop / 4, crop / 4) float32, 1 where a defect is
    counts: Tensor  # the same shape, 1 where the loss counts
    image: int  # which of the step's images it was cut from
    place: tuple[float, float, float, float]  # top, left, bottom, right in shares of that image


def train_head(
    sample: Callable[[np.random.Generator], Drawn],
    token_width: int,
    *,
    steps: int,
    encode: Callable[[Sequence[np.ndarray]], Tensor] | None = None,
    crop: int = 128,
    batch: int = 32,
    learning_rate: float = 2e-3,
    seed: int = 0,
    start: DefectHead | None = None,
    device: str = "cpu",
    validate: Callable[[DefectHead], float] | None = None,
    snapshot: Path | None = None,
    snapshot_key: str = "",
    progress: Callable[[int, int, float, float | None], None] | None = None,
) -> DefectHead:
    """Train a head on random crops of normal images with drawn defects; the same seed gives the same head.

    Args:
        sample: gives a normal image with its drawn defects; see `draw_defects`.
        encode: images to their tokens (B, W, h, w), of the images with their defects drawn in; None trains on pixels alone.
        steps: the most gradient steps; each takes ``batch`` crops of ``crop`` pixels from ``batch / 4`` images, because
            drawing and encoding an image costs more than training on a crop of it.
        start: a head to go on from, which is changed; None starts from random weights.
        validate: AUROC of a head on held-out images, called every 50 steps. When it no longer rises, the learning rate
            begins its descent at once, so that ``steps`` is a ceiling.
        snapshot: a file that holds the state after each check, and from which a training broken off with the same
            ``snapshot_key`` goes on; the result is that of an undisturbed run.
        progress: called with the step, the number of steps, the loss and the last AUROC.
    """
    torch.manual_seed(seed)
    head = (DefectHead(token_width) if start is None else start).to(device).requires_grad_(True).train()
    optimizer = _optimizer(head, learning_rate)
    descent = round(steps * DECAY)
    course = Course(decay_from=steps - descent)
    if snapshot is not None:
        course = load_snapshot(snapshot, snapshot_key, head, optimizer) or course
    batches = _ahead(lambda step: _draw_step(sample, np.random.default_rng((seed % 2**32, step)), crop, batch), course.step)
    for crops, images in batches:
        end = course.decay_from + descent
        if course.step >= end:
            break
        pixels, target, counts = (torch.stack([getattr(c, name) for c in crops]).to(device) for name in ("pixels", "target", "counts"))
        tokens = None if encode is None else _tokens(encode(images), crops).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _rate(course, steps, end)
        with torch.autocast(device, torch.bfloat16, enabled=fast_bfloat16(device)):
            logits = head(pixels, tokens)
        loss = _loss(logits.float(), target, counts)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        course = course.after(float(loss.detach()))
        if course.step % CHECKS == 0 and course.step < end:
            if validate is not None:
                course = _checked(course, validate(head.eval()))
                head.train()
            if snapshot is not None:
                save_snapshot(snapshot, snapshot_key, head, optimizer, course)
        if progress is not None:
            progress(course.step, end, course.loss, course.curve[-1] if course.curve else None)
    return head.eval().requires_grad_(False)


def _optimizer(head: DefectHead, learning_rate: float) -> torch.optim.Optimizer:
    decay = [p for p in head.parameters() if p.ndim >= 2]
    plain = [p for p in head.parameters() if p.ndim < 2]
    return torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=learning_rate)


def _rate(course: Course, steps: int, end: int) -> float:
    """Share of the learning rate: a linear rise, level, and half a cosine from where the descent begins to the end."""
    rise = min(1.0, (course.step + 1) / max(1, steps * WARM_UP))
    fallen = max(0.0, (course.step - course.decay_from) / max(1, end - course.decay_from))
    return rise * 0.5 * (1 + np.cos(np.pi * fallen))


def _checked(course: Course, auroc: float) -> Course:
    """The course with one more point of the curve; where the last ones brought nothing, the descent begins now."""
    course = course.seen(auroc)
    before, recent = course.curve[:-PATIENCE], course.curve[-PATIENCE:]
    if before and max(recent) < max(before) + BETTER:
        return course.descend()
    return course


def _ahead(make: Callable[[int], tuple], start: int) -> Iterator[tuple]:
    """What `make` gives for start, start + 1, ..., drawn in a thread one step ahead."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make, start)
        step = start
        while True:
            ready, step = coming, step + 1
            coming = pool.submit(make, step)
            yield ready.result()


def _draw_step(sample: Callable[[np.random.Generator], Drawn], rng: np.random.Generator, crop: int, batch: int) -> tuple[list[_Crop], list[np.ndarray]]:
    drawn = [sample(rng) for _ in range(max(1, batch // CROPS))]
    return [one for i, scene in enumerate(drawn) for one in _crops(scene, i, rng, crop)], [scene.image for scene in drawn]


def draw_defects(base: Scene, donor: np.ndarray | None, rng: np.random.Generator, *, rate: float = 0.8, kinds: Sequence[str] = KINDS) -> Drawn:
    """A normal image, mirrored at random; a share `rate` of them with one to three defects in the kept area.

    donor: (H', W', 3) uint8, an image to cut pieces from; None: the image itself. In an image larger than a window of
    1 024 pixels they lie in one window around a kept pixel, so that the cost does not grow with the image.
    """
    image, touched = base.image.copy(), np.zeros(base.image.shape[:2], bool)
    allowed = patch_mask_to(base.keep, *touched.shape)
    if rng.random() < rate:
        box = _window(base.keep, touched.shape, rng)
        spread = max(VISIBLE_LEVELS, VISIBLE_SHARE * exposure(base.image)[1])
        for _ in range(int(rng.integers(1, 4))):
            kind, strength = kinds[rng.integers(len(kinds))], float(rng.random() ** 0.5)
            defect = draw(image[box], rng, allowed=allowed[box], kind=kind, strength=strength, donor=donor)
            image[box], touched[box] = defect.image, touched[box] | defect.mask
        change = cv2.absdiff(image[box], base.image[box]).max(axis=2)
        mask = np.zeros_like(touched)
        mask[box] = touched[box] & (change >= spread)
    else:
        mask = touched
    counts = allowed & (mask | ~touched)
    for axis in (0, 1):
        if rng.random() < 0.5:
            image, mask, counts = (np.flip(array, axis) for array in (image, mask, counts))
    return Drawn(*(np.ascontiguousarray(array) for array in (image, mask, counts)))


def _window(keep: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> tuple[slice, slice]:
    """A box of at most `WINDOW` pixels a side around a random kept patch of an image of this shape."""
    patch = np.argwhere(keep)[rng.integers(np.count_nonzero(keep))] if keep.any() else (0, 0)
    box = []
    for at, patches, side in zip(patch, keep.shape, shape, strict=True):
        middle = (at + rng.random()) * side / patches
        low = int(np.clip(middle - WINDOW / 2, 0, max(0, side - WINDOW)))
        box.append(slice(low, min(side, low + WINDOW)))
    return tuple(box)


def _crops(drawn: Drawn, image: int, rng: np.random.Generator, crop: int) -> list[_Crop]:
    """Random squares at random scales, each around a kept pixel; half of the time around a defect pixel, where there is one."""
    mean, spread = exposure(drawn.image)
    defect, counting = np.flatnonzero(drawn.mask), np.flatnonzero(drawn.counts)
    crops = []
    for _ in range(CROPS):
        around = defect if len(defect) and rng.random() < 0.5 else counting
        pick = np.unravel_index(rng.choice(around), drawn.mask.shape) if len(around) else (0, 0)
        crops.append(_cut(drawn, image, pick, rng, crop, mean, spread))
    return crops


def _cut(drawn: Drawn, image: int, pick: tuple[int, int], rng: np.random.Generator, crop: int, mean: float, spread: float) -> _Crop:
    height, width = drawn.mask.shape
    region = max(1, round(crop / rng.uniform(*ZOOM)))  # pixels of the image that the crop covers
    top, left = (int(np.clip(at - rng.uniform(0.1, 0.9) * region, 0, max(side - region, 0))) for at, side in zip(pick, (height, width), strict=True))
    bottom, right = min(top + region, height), min(left + region, width)
    size = max(1, round(crop * (right - left) / region)), max(1, round(crop * (bottom - top) / region))  # as OpenCV has it: width, height
    pad = (0, crop - size[0], 0, crop - size[1])
    box = np.s_[top:bottom, left:right]
    pixels = standard_pixels(cv2.resize(drawn.image[box], size, interpolation=cv2.INTER_AREA), mean, spread)
    masks = np.stack([drawn.mask[box], drawn.counts[box]], axis=2).astype(np.float32)
    truth = torch.from_numpy(cv2.resize(masks, size, interpolation=cv2.INTER_AREA)).permute(2, 0, 1)  # (2, H, W)
    shares = F.avg_pool2d(F.pad(truth[None], pad), 4)[0]  # (2, crop / 4, crop / 4)
    square = F.pad(pixels[None], pad, mode="replicate")[0]
    place = top / height, left / width, (top + region) / height, (left + region) / width
    return _Crop(square, (shares[:1] > 0.15).float(), (shares[1:] > 0.5).float(), image, place)


def _tokens(tokens: Tensor, crops: Sequence[_Crop]) -> Tensor:
    """The tokens (B, W, 12, 12) under each crop, of the images' tokens (I, W, h, w)."""
    return torch.stack([tokens_under(tokens[crop.image], *crop.place) for crop in crops])


def _loss(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice, which keeps rare defect pixels from drowning, where the map counts."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, weight=counts, reduction="sum") / counts.sum().clamp(min=1)
    share = logits.sigmoid() * counts
    dice = 1 - (2 * (share * target).sum() + 1) / (share.sum() + (target * counts).sum() + 1)
    return entropy + 0.5 * dice
