"""Training of the defect head at fit: crops of the user's own normal images with drawn defects, and of bad ones that are known.

A defect is drawn on the crop as the head will see it, so that drawing costs the same for every size of image and each
look, enlarged or reduced, has hairlines and wide areas of its own.
Lineage: CutPaste (Li et al. 2021), DRAEM (Zavrtanik et al. 2021), SimpleNet (Liu et al. 2023).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmgcli import ranks
from cmgcli.defects import KINDS, VISIBLE, draw, strongest, two_valued
from cmgcli.head import MIN_SIDE, STRIDE, DefectHead, exposure, look_scales
from cmgcli.precision import fast_bfloat16
from cmgcli.snapshot import Course, load_snapshot, save_snapshot

CROP = 96  # pixels
CROPS = 4  # of each image: reading an image costs more than cutting one more crop from it
DEFECTIVE = 0.8  # of the crops
SOFT, SOFTNESS = 0.7, (0.3, 1.3)  # of the drawn defects; standard deviation of their blur, pixels of the crop
VISIBLE_LEVELS = 8
VISIBLE_SHARE = 0.2  # of the image's own spread
TARGET_SHARE, COUNTED_SHARE = 0.15, 0.5  # of the pixels under a logit
TRACE_SHARE = 0.02  # of a defect that is known and not drawn: reduced, a small one fills little of a logit and is plain to see
WARM_UP, DECAY = 0.05, 0.7  # of the steps
CHECKS = 200  # steps between two looks at the held-out images
PATIENCE, BETTER = 4, 0.003  # checks without so much gain of AUROC: the curve is flat


@dataclass(frozen=True)
class Scene:
    """A normal training image and where CMER lets a defect be drawn."""

    image: np.ndarray  # (H, W, 3) uint8
    keep: np.ndarray  # (h, w) bool


@dataclass(frozen=True)
class Crop:
    """A piece of an image at the size of one look, with none to three drawn defects or a known one."""

    image: np.ndarray  # (C, C, 3) uint8; where the piece is smaller, its last row and column go on
    target: np.ndarray  # (C / 4, C / 4) bool, where a defect can be seen
    counts: np.ndarray  # (C / 4, C / 4) bool, kept by CMER, and not changed too little to be seen
    mean: float  # exposure of the whole image
    spread: float


def train_head(
    sample: Callable[[np.random.Generator, int], Sequence[Crop]],
    *,
    steps: int,
    batch: int = 32,
    learning_rate: float = 2e-3,
    seed: int = 0,
    start: DefectHead | None = None,
    device: str = "cpu",
    precision: str | None = None,
    validate: Callable[[DefectHead], float] | None = None,
    snapshot: Path | None = None,
    snapshot_key: str = "",
    progress: Callable[[int, int, float, float | None], None] | None = None,
) -> DefectHead:
    """Train a head on crops with defects and without; the same seed gives the same head.

    Several ranks draw the crops, those of one step each in turn, and share the held-out images. Rank 0 alone takes the steps: the net
    normalises by statistics of the whole batch, so that to split a batch would take an exchange in each of its layers.

    Args:
        sample: gives crops of one image for a step, by its number; see `draw_crops` and `crops_of_defect`.
        steps: the most gradient steps, each on at least ``batch`` crops.
        start: a head to go on from, which is changed; None starts from random weights.
        precision: of the convolutions, float32 or bfloat16; None: bfloat16 where it is fast.
        validate: AUROC of a head on held-out images, called every 200 steps. When it no longer rises, the learning rate
            begins its descent at once, so that ``steps`` is a ceiling.
        snapshot: a file that holds the state after each check, and from which a training broken off with the same
            ``snapshot_key`` goes on; the result is that of an undisturbed run.
        progress: called with the step, the number of steps, the loss and the last AUROC.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        head = (DefectHead() if start is None else start).to(device).requires_grad_(True).train()
    optimizer = _optimizer(head, learning_rate)
    bfloat16 = fast_bfloat16(device) if precision is None else precision == "bfloat16"
    descent = round(steps * DECAY)
    course = Course(decay_from=steps - descent)
    if snapshot is not None:
        course = load_snapshot(snapshot, snapshot_key, head, optimizer) or course
    for crops in _drawn(lambda step: _batch(partial(sample, np.random.default_rng((seed % 2**32, step)), step), batch), course.step):
        end = course.decay_from + descent
        if course.step >= end:
            break
        loss = float("nan")
        if ranks.leads():
            loss = _step(head, optimizer, *(tensor.to(device) for tensor in crops), learning_rate=learning_rate * _rate(course, steps, end), bfloat16=bfloat16)
        course = course.after(loss)
        if course.step % CHECKS == 0 and course.step < end:
            if validate is not None:
                ranks.copy_of_first(head)
                course = _checked(course, validate(head.eval()))
                head.train()
            if snapshot is not None:
                save_snapshot(snapshot, snapshot_key, head, optimizer, course)
        if progress is not None:
            progress(course.step, end, course.loss, course.curve[-1] if course.curve else None)
    ranks.copy_of_first(head)
    return head.eval().requires_grad_(False)


def _step(head: DefectHead, optimizer: torch.optim.Optimizer, pixels: Tensor, target: Tensor, counts: Tensor, *, learning_rate: float, bfloat16: bool) -> float:
    """One gradient step on what `_batch` gives; the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bfloat16):
        logits = head(pixels)
    loss = _loss(logits.float(), target, counts)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(head.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


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


def _drawn(make: Callable[[int], tuple], start: int) -> Iterator[tuple | None]:
    """What `make` gives for start, start + 1, ..., drawn by the ranks in turn; on rank 0 only, the others get None."""
    for own in _ahead(make, itertools.count(start + ranks.rank(), ranks.size())):
        yield from ranks.collected(own)


def _ahead(make: Callable[[int], tuple], steps: Iterable[int]) -> Iterator[tuple]:
    """What `make` gives for each of the steps, drawn in a thread one ahead."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for step in steps:
            ready, coming = coming, pool.submit(make, step)
            if ready is not None:
                yield ready.result()


def _batch(sample: Callable[[], Sequence[Crop]], batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised pixels (B, 3, C, C) float32, channels last, and target and counts (B, 1, C / 4, C / 4) float32."""
    crops: list[Crop] = []
    while len(crops) < batch:
        crops += sample()
    pixels = torch.from_numpy(np.stack([crop.image for crop in crops])).permute(0, 3, 1, 2).float()
    mean, spread = (torch.tensor(values)[:, None, None, None] for values in zip(*((crop.mean, max(crop.spread, 4.0)) for crop in crops)))
    target, counts = (torch.from_numpy(np.stack([getattr(crop, name) for crop in crops]))[:, None].float() for name in ("target", "counts"))
    return (pixels - mean) / spread, target, counts


def draw_crops(
    scene: Scene,
    donor: np.ndarray | None,
    rng: np.random.Generator,
    *,
    count: int = CROPS,
    size: int = CROP,
    rate: float = DEFECTIVE,
    kinds: Sequence[str] = KINDS,
) -> list[Crop]:
    """Random squares of a normal image around kept places, at the scales of its looks, mirrored at random; a share `rate` with defects.

    donor: (H', W', 3) uint8, an image to cut pieces from; None: the image itself.
    """
    mean, spread = exposure(scene.image)
    crops = []
    for _ in range(count):
        piece, allowed = _cut(scene, rng, size)
        other = _cut(Scene(scene.image if donor is None else donor, np.ones((1, 1), bool)), rng, size)[0] if rng.random() < 0.7 else None
        drawn = _with_defects(piece, allowed, other, rng, rate if allowed.any() else 0, kinds, max(VISIBLE_LEVELS, VISIBLE_SHARE * spread))
        image, mask, counts = _mirrored(drawn, rng)
        pad = ((0, size - len(image)), (0, size - image.shape[1]))
        crops.append(Crop(np.pad(image, (*pad, (0, 0)), mode="edge"), _under(mask, pad) > TARGET_SHARE, _under(counts, pad) > COUNTED_SHARE, mean, spread))
    return crops


def crops_of_defect(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, *, count: int = CROPS, size: int = CROP) -> list[Crop]:
    """Random squares of a bad image around places of its defect, at the scales of its looks, mirrored at random.

    image: (H, W, 3) uint8. mask: (H, W) bool, where the defect lies, not empty; all else counts as good, but for what holds a trace of the defect only.
    """
    mean, spread = exposure(image)
    places = np.flatnonzero(mask)
    crops = []
    for _ in range(count):
        box, seen = _square(mask.shape, mask.shape, lambda: divmod(int(places[rng.integers(len(places))]), mask.shape[1]), rng, size)
        pieces = (cv2.resize(array, seen, interpolation=cv2.INTER_AREA) for array in (image[box], mask[box].astype(np.float32)))
        piece, bad = _mirrored(pieces, rng)
        pad = ((0, size - len(piece)), (0, size - piece.shape[1]))
        share = _under(bad, pad)
        counts = (_under(np.ones(bad.shape, bool), pad) > COUNTED_SHARE) & ((share == 0) | (share > TRACE_SHARE))
        crops.append(Crop(np.pad(piece, (*pad, (0, 0)), mode="edge"), share > TRACE_SHARE, counts, mean, spread))
    return crops


def _mirrored(arrays: Iterable[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """The arrays (h, w, ...), all mirrored alike, at random along each side."""
    axes = [axis for axis in (0, 1) if rng.random() < 0.5]
    return [np.flip(array, axes) for array in arrays]


def _cut(scene: Scene, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What `_square` chooses: (h, w, 3) uint8, and what CMER keeps of it (h, w) bool."""
    box, (width, height) = _square(scene.image.shape[:2], scene.keep.shape, lambda: _kept_patch(scene.keep, rng), rng, size)
    rows = []
    for part, seen, patches, side in zip(box, (height, width), scene.keep.shape, scene.image.shape[:2], strict=True):
        rows.append(((part.start + (np.arange(seen) + 0.5) * (part.stop - part.start) / seen) * patches / side).astype(int))
    return cv2.resize(scene.image[box], (width, height), interpolation=cv2.INTER_AREA), scene.keep[np.ix_(*rows)]


def _kept_patch(keep: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    return tuple(np.argwhere(keep)[rng.integers(np.count_nonzero(keep))]) if keep.any() else (0, 0)


def _square(
    shape: tuple[int, int], grid: tuple[int, int], choose: Callable[[], tuple[int, int]], rng: np.random.Generator, size: int
) -> tuple[tuple[slice, slice], tuple[int, int]]:
    """A square of an image of this shape around a chosen place of a grid, in pixels, and the width and height at which it is seen: at a scale between
    the image's smallest and largest look."""
    height, width = shape
    scales = look_scales(height, width)
    scale = max(np.exp(rng.uniform(np.log(scales[-1]), np.log(scales[0]))), min(scales[0], MIN_SIDE / min(height, width)))
    reach = max(1, round(size / scale))  # pixels of the image that the crop covers
    box, seen = [], []
    for at, patches, side in zip(choose(), grid, shape, strict=True):
        middle = (at + rng.random()) * side / patches
        low = int(np.clip(middle - rng.random() * reach, 0, max(0, side - reach)))
        high = min(side, low + reach)
        box.append(slice(low, high))
        seen.append(min(size, max(MIN_SIDE // 4, round((high - low) * scale))))
    return (box[0], box[1]), (seen[1], seen[0])


def _with_defects(
    piece: np.ndarray, allowed: np.ndarray, donor: np.ndarray | None, rng: np.random.Generator, rate: float, kinds: Sequence[str], visible: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The piece with one to three defects at the given rate; where they can be seen, and where the loss counts, (h, w) bool each."""
    image, touched = piece, np.zeros(allowed.shape, bool)
    if rng.random() >= rate:
        return image, touched, allowed
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.5 else 1):
        kind, strength = kinds[rng.integers(len(kinds))], float(rng.random() ** 0.5)
        defect = draw(image, rng, allowed=allowed, kind=kind, strength=strength, donor=donor)
        before, image = image, _through_a_lens(image, defect.image, allowed, rng)
        touched = touched | defect.mask | (strongest(cv2.absdiff(image, before)) > VISIBLE)
    mask = touched & (strongest(cv2.absdiff(image, piece)) >= visible)
    return image, mask, allowed & (mask | ~touched)


def _through_a_lens(image: np.ndarray, drawn: np.ndarray, allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image with what was drawn on it, mostly softened: a drawn line is sharper than anything a camera sees, most of all in an enlarged look.

    A head that is shown sharp lines alone learns to find sharpness. A two-valued image keeps its two values. image, drawn: (h, w, 3) uint8.
    """
    if rng.random() >= SOFT or two_valued(image):
        return drawn
    change = cv2.GaussianBlur(drawn.astype(np.float32) - image, (0, 0), float(rng.uniform(*SOFTNESS)))
    return np.clip(image + change * allowed[..., None] + 0.5, 0, 255).astype(np.uint8)


def _under(mask: np.ndarray, pad: tuple[tuple[int, int], tuple[int, int]]) -> np.ndarray:
    """The share of a padded mask (h, w) under each logit, (C / 4, C / 4) float32."""
    whole = np.pad(mask.astype(np.float32), pad)
    return cv2.resize(whole, (whole.shape[1] // STRIDE, whole.shape[0] // STRIDE), interpolation=cv2.INTER_AREA)


def _loss(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice, which keeps rare defect pixels from drowning, where the map counts."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, weight=counts, reduction="sum") / counts.sum().clamp(min=1)
    share = logits.sigmoid() * counts
    dice = 1 - (2 * (share * target).sum() + 1) / (share.sum() + (target * counts).sum() + 1)
    return entropy + 0.5 * dice
