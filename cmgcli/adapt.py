"""The defect head: a small fully convolutional net, trained at fit on the user's normal images with drawn defects.

It reads the pixels at the image's own resolution and the encoder's patch tokens, and gives a defect map at a quarter of
that resolution. Lineage: CutPaste (Li et al. 2021), DRAEM (Zavrtanik et al. 2021), SimpleNet (Liu et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmgcli.defects import draw

SCALES = (1.0, 0.6)
TOP_SHARE = 0.002
MAX_PIXELS = 4_000_000
MIN_SIDE = 32
CROPS = 4
VISIBLE_LEVELS = 8
VISIBLE_SHARE = 0.2  # of the image's own spread


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(inner)))


class DefectHead(nn.Module):
    """Pixels (B, 3, H, W) and tokens (B, W, h, w) to defect logits (B, 1, H / 4, W / 4).

    Dilated blocks see wide areas, such as an uneven finish, as well as hairlines.
    """

    def __init__(self, token_width: int, *, channels: int = 64, dilations: Sequence[int] = (1, 1, 2, 1, 4, 1, 8, 1)) -> None:
        super().__init__()
        self.token_width, self.channels, self.dilations = token_width, channels, tuple(dilations)
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.token_norm = nn.LayerNorm(token_width)
        self.token_in = nn.Conv2d(token_width, channels, 1)
        self.blocks = nn.Sequential(*[ResidualBlock(channels, dilation) for dilation in self.dilations])
        self.out = nn.Conv2d(channels, 1, 1)
        nn.init.constant_(self.out.bias, -4.0)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        x = self.stem(pixels)  # (B, C, H/4, W/4)
        tokens = self.token_norm(tokens.movedim(1, -1)).movedim(-1, 1)
        semantic = F.interpolate(self.token_in(tokens), x.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(self.blocks(F.relu(x + semantic)))


def standard_pixels(image: np.ndarray) -> Tensor:
    """(3, H, W) float32 of an (H, W, 3) uint8 image, by its own mean and spread, so that exposure matters little."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    return (pixels - pixels.mean()) / pixels.std(correction=0).clamp(min=4.0)


def fit_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """The size at which the head sees an image: scaled, at most 4 megapixels, at least 32 pixels a side."""
    limit = min(1.0, (MAX_PIXELS / (height * width)) ** 0.5) * scale
    return max(MIN_SIDE, round(height * limit)), max(MIN_SIDE, round(width * limit))


def patch_mask_to(keep: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) bool patch mask to (height, width) bool in the image's frame."""
    return cv2.resize(keep.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


@torch.inference_mode()
def head_map(head: DefectHead, image: np.ndarray, tokens: Tensor, keep: np.ndarray) -> tuple[float, np.ndarray]:
    """Score and map of one image.

    Args:
        image: (H, W, 3) uint8 RGB; tokens: (W, h, w) float32; keep: (h, w) bool, where the map counts.
    Returns:
        The sum over `SCALES` of the mean of the top 0.2 % of the kept logits, and the mean map (H', W') float32 of logits
        at a quarter of the resolution; hidden places hold the least kept value.
    """
    height, width = image.shape[:2]
    base = tuple(-(-side // 4) for side in fit_size(height, width, 1.0))
    total, maps = 0.0, []
    for scale in SCALES:
        tall, wide = fit_size(height, width, scale)
        pixels = standard_pixels(cv2.resize(image, (wide, tall), interpolation=cv2.INTER_AREA))
        device = next(head.parameters()).device
        logits = head(pixels.unsqueeze(0).to(device), tokens.unsqueeze(0).to(device))[0, 0].float().cpu()  # (H'', W'')
        kept = torch.from_numpy(patch_mask_to(keep, *logits.shape))
        values = logits[kept]
        total += float(values.topk(max(1, round(TOP_SHARE * len(values)))).values.mean())
        shown = torch.where(kept, logits, values.min())
        maps.append(F.interpolate(shown[None, None], base, mode="bilinear", align_corners=False)[0, 0])
    return total, torch.stack(maps).mean(0).numpy()


@dataclass(frozen=True)
class Scene:
    """A normal training image and where CMER lets a defect lie."""

    image: np.ndarray  # (H, W, 3) uint8
    keep: np.ndarray  # (h, w) bool


def train_head(
    scene: Callable[[int], Scene],
    count: int,
    encode: Callable[[Sequence[np.ndarray]], Tensor],
    token_width: int,
    *,
    steps: int,
    crop: int = 96,
    batch: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    start: DefectHead | None = None,
    device: str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> DefectHead:
    """Train a head on random crops of normal images with drawn defects; the same seed gives the same head.

    Args:
        scene: gives the ``i``-th of ``count`` normal images.
        encode: images to their tokens (B, W, h, w), of the images with their defects drawn in.
        steps: gradient steps; each takes ``batch`` crops of ``crop`` pixels from ``batch / 4`` images, because encoding an
            image with its defects costs more than training on a crop of it.
        start: a head to go on from, which is changed; None starts from random weights.
        progress: called with the step, the number of steps and the loss.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    head = (DefectHead(token_width) if start is None else start).to(device).requires_grad_(True).train()
    decay = [p for p in head.parameters() if p.ndim >= 2]
    plain = [p for p in head.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2), pct_start=0.1)
    for step in range(steps):
        pixels, tokens, target, counts = (t.to(device) for t in _draw_batch(scene, count, encode, rng, crop=crop, batch=batch))
        with torch.autocast(device, torch.bfloat16, enabled=fast_bfloat16(device)):
            logits = head(pixels, tokens)
        loss = _loss(logits.float(), target, counts)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps, float(loss.detach()))
    return head.eval().requires_grad_(False)


def fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 matrix products are native here: a GPU, or a processor with avx512_bf16."""
    return device == "cuda" or torch.backends.cpu.get_cpu_capability() in ("AVX512", "AMX") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass(frozen=True)
class _Drawn:
    image: np.ndarray  # (H, W, 3) uint8
    mask: np.ndarray  # (H, W) bool, where a drawn defect can be seen
    counts: np.ndarray  # (H, W) bool, kept by CMER, and not changed too little to be seen


def _draw_batch(scene, count: int, encode, rng: np.random.Generator, *, crop: int, batch: int) -> tuple[Tensor, ...]:
    """Crops (B, 3, crop, crop), the tokens under each (B, W, 12, 12), targets and counting weights (B, 1, crop/4, crop/4)."""
    drawn = [_draw_image(scene(int(rng.integers(count))), scene(int(rng.integers(count))).image, rng) for _ in range(max(1, batch // CROPS))]
    tokens = encode([one.image for one in drawn])  # (B / CROPS, W, h, w)
    crops = [_crop(one, tokens[i], rng, crop) for i, one in enumerate(drawn) for _ in range(CROPS)]
    return tuple(torch.stack(column) for column in zip(*crops, strict=True))


def _draw_image(base: Scene, donor: np.ndarray, rng: np.random.Generator) -> _Drawn:
    """A normal image with none to three defects in the kept area, flipped at random."""
    image, touched = base.image, np.zeros(base.image.shape[:2], bool)
    allowed = patch_mask_to(base.keep, *touched.shape)
    if rng.random() < 0.8:
        for _ in range(int(rng.integers(1, 4))):
            defect = draw(image, rng, allowed=allowed, strength=float(rng.random() ** 0.5), donor=donor)
            image, touched = defect.image, touched | defect.mask
    change = np.abs(image.astype(np.int16) - base.image).max(axis=2)
    mask = touched & (change >= max(VISIBLE_LEVELS, VISIBLE_SHARE * base.image.std()))
    counts = allowed & (mask | ~touched)
    for axis in (0, 1):
        if rng.random() < 0.5:
            image, mask, counts = (np.flip(array, axis) for array in (image, mask, counts))
    return _Drawn(*(np.ascontiguousarray(array) for array in (image, mask, counts)))


def _crop(drawn: _Drawn, tokens: Tensor, rng: np.random.Generator, crop: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One random square at a random scale around a kept pixel; half of the time around a defect pixel, where there is one."""
    height, width = fit_size(*drawn.mask.shape, float(rng.uniform(0.5, 1.0)))
    pixels = standard_pixels(cv2.resize(drawn.image, (width, height), interpolation=cv2.INTER_AREA))
    masks = np.stack([drawn.mask, drawn.counts], axis=2).astype(np.float32)
    truth = torch.from_numpy(cv2.resize(masks, (width, height), interpolation=cv2.INTER_AREA)).permute(2, 0, 1)  # (2, H, W)
    around = drawn.mask if drawn.mask.any() and rng.random() < 0.5 else drawn.counts
    around = around if around.any() else np.ones_like(around)
    pick = np.unravel_index(rng.choice(np.flatnonzero(around)), around.shape)
    corner = []
    for at, side, full in zip(pick, (height, width), around.shape, strict=True):
        corner.append(int(np.clip(at * side / full - rng.uniform(0.1, 0.9) * crop, 0, max(side - crop, 0))))
    top, left = corner
    bottom, right = min(top + crop, height), min(left + crop, width)
    pad = (0, crop - (right - left), 0, crop - (bottom - top))
    square = F.pad(pixels[None, :, top:bottom, left:right], pad, mode="replicate")[0]
    shares = F.avg_pool2d(F.pad(truth[None, :, top:bottom, left:right], pad), 4)[0]  # (2, crop/4, crop/4)
    under = _tokens_under(tokens, top / height, left / width, (top + crop) / height, (left + crop) / width)
    return square, under, (shares[:1] > 0.15).float(), (shares[1:] > 0.5).float()


def _tokens_under(tokens: Tensor, top: float, left: float, bottom: float, right: float, *, side: int = 12) -> Tensor:
    """Sample tokens (W, h, w) under a rectangle given in shares of the image, to (W, side, side)."""
    centres = (torch.arange(side, device=tokens.device) + 0.5) / side
    y = (top + (bottom - top) * centres) * 2 - 1
    x = (left + (right - left) * centres) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)  # (side, side, 2) as (x, y)
    return F.grid_sample(tokens[None].float(), grid[None].float(), mode="bilinear", padding_mode="border", align_corners=False)[0]


def _loss(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice, which keeps rare defect pixels from drowning, where the map counts."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, weight=counts, reduction="sum") / counts.sum().clamp(min=1)
    share = logits.sigmoid() * counts
    dice = 1 - (2 * (share * target).sum() + 1) / (share.sum() + (target * counts).sum() + 1)
    return entropy + 0.5 * dice
