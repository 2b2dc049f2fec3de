"""The defect head: a small fully convolutional net that gives every place of an image a defect logit.

It reads the pixels at the image's own resolution and the encoder's patch tokens. Three resolutions, a quarter to a
sixteenth of the image's, see hairlines as well as large uneven areas for a fraction of the work that as many layers at a
quarter would take; the mean and spread of the coarsest tell each place what the rest of the image looks like.
Lineage: U-Net (Ronneberger et al. 2015), DRAEM (Zavrtanik et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOOKS = ((1.0, False), (0.6, True))  # scale, and whether turned half round: looks that differ more tell more
TOP_SHARE = 0.005
MAX_PIXELS = 4_000_000
TILE, OVERLAP = 1536, 128  # pixels; multiples of the coarsest stride
STRIDE = 16
MIN_SIDE = 32


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions of equal width beside a shortcut: (B, C, H, W) to the same shape."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(inner)))


def _halve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _like(x: Tensor, other: Tensor) -> Tensor:
    return F.interpolate(x, other.shape[-2:], mode="bilinear", align_corners=False)


class DefectHead(nn.Module):
    """Pixels (B, 3, H, W) and tokens (B, W, h, w), or none, to defect logits (B, 1, ceil(H / 4), ceil(W / 4))."""

    def __init__(self, token_width: int, *, widths: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        self.token_width, self.widths = token_width, tuple(widths)
        fine, middle, coarse = self.widths
        self.stem = nn.Sequential(_halve(3, fine // 2), _halve(fine // 2, fine))
        self.fine = nn.Sequential(ResidualBlock(fine), ResidualBlock(fine))
        self.middle = nn.Sequential(_halve(fine, middle), ResidualBlock(middle), ResidualBlock(middle))
        self.coarse = nn.Sequential(_halve(middle, coarse), ResidualBlock(coarse), ResidualBlock(coarse, 2), ResidualBlock(coarse))
        self.context = nn.Linear(2 * coarse, coarse)
        self.token_norm = nn.LayerNorm(token_width)
        self.token_in = nn.Conv2d(token_width, coarse, 1)
        self.to_middle = nn.Conv2d(coarse, middle, 1)
        self.to_fine = nn.Conv2d(middle, fine, 1)
        self.middle_out = ResidualBlock(middle)
        self.fine_out = ResidualBlock(fine)
        self.out = nn.Conv2d(fine, 1, 1)
        nn.init.zeros_(self.token_in.weight)  # a fit learns how far the tokens help, whatever the encoder
        nn.init.zeros_(self.token_in.bias)
        nn.init.constant_(self.out.bias, -4.0)

    def forward(self, pixels: Tensor, tokens: Tensor | None = None) -> Tensor:
        """See the class; without tokens the head reads pixels alone."""
        fine = self.fine(self.stem(pixels))  # (B, C, H/4, W/4)
        middle = self.middle(fine)  # (B, 2C, H/8, W/8)
        coarse = self.coarse(middle)  # (B, 4C, H/16, W/16)
        spread = coarse.float().var((2, 3), correction=0).add(1e-6).sqrt().to(coarse.dtype)
        coarse = coarse + self.context(torch.cat([coarse.mean((2, 3)), spread], 1))[:, :, None, None]
        if tokens is not None:
            normed = self.token_norm(tokens.movedim(1, -1)).movedim(-1, 1)
            coarse = coarse + _like(self.token_in(normed), coarse)
        middle = self.middle_out(F.relu(middle + _like(self.to_middle(coarse), middle)))
        fine = self.fine_out(F.relu(fine + _like(self.to_fine(middle), fine)))
        return self.out(fine)


def fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 matrix products are native here: a GPU, or a processor with avx512_bf16."""
    return device == "cuda" or torch.backends.cpu.get_cpu_capability() in ("AVX512", "AMX") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def exposure(image: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all values of an (H, W, 3) uint8 image."""
    means, spreads = cv2.meanStdDev(image)
    mean = float(means.mean())
    return mean, float(np.sqrt(max(0.0, (spreads**2 + means**2).mean() - mean**2)))


def standard_pixels(image: np.ndarray, mean: float, spread: float) -> Tensor:
    """(3, H, W) float32 of an (H, W, 3) uint8 image by the `exposure` of the whole image, so that exposure matters little."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    return pixels.sub_(mean).div_(max(spread, 4.0))


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """The size at which the head sees an image at one scale: at least 32 pixels a side."""
    return max(MIN_SIDE, round(height * scale)), max(MIN_SIDE, round(width * scale))


def patch_mask_to(keep: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) bool patch mask to (height, width) bool in the image's frame."""
    return cv2.resize(keep.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def tokens_under(tokens: Tensor, top: float, left: float, bottom: float, right: float, *, side: int = 12) -> Tensor:
    """Sample tokens (W, h, w) under a rectangle given in shares of the image, to (W, side, side)."""
    centres = (torch.arange(side, device=tokens.device) + 0.5) / side
    y = (top + (bottom - top) * centres) * 2 - 1
    x = (left + (right - left) * centres) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)  # (side, side, 2) as (x, y)
    return F.grid_sample(tokens[None].float(), grid[None].float(), mode="bilinear", padding_mode="border", align_corners=False)[0]


@torch.inference_mode()
def head_map(head: DefectHead, image: np.ndarray, tokens: Tensor, keep: np.ndarray, *, precision: str = "float32") -> tuple[float, np.ndarray]:
    """Score and map of one image.

    Args:
        image: (H, W, 3) uint8 RGB; tokens: (W, h, w) float32; keep: (h, w) bool, where the map counts.
        precision: of the convolutions, float32 or bfloat16.
    Returns:
        The sum over `LOOKS` of the mean of the top 0.5 % of the kept logits, and the mean map (H', W') float32 of logits
        at a quarter of the resolution; hidden places hold the least kept value.
    """
    height, width = image.shape[:2]
    base = tuple(-(-side // 4) for side in scaled_size(height, width, 1.0))
    mean, spread = exposure(image)
    device = next(head.parameters()).device
    total, maps = 0.0, []
    for scale, turned in LOOKS:
        tall, wide = scaled_size(height, width, scale)
        seen = cv2.resize(image, (wide, tall), interpolation=cv2.INTER_AREA)
        view = (np.rot90(seen, 2), tokens.flip(1, 2)) if turned else (seen, tokens)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = _logits(head, *view, mean, spread)  # (H'', W'')
        logits = logits.flip(0, 1) if turned else logits
        kept = torch.from_numpy(patch_mask_to(keep, *logits.shape))
        values = logits[kept]
        total += float(values.topk(max(1, round(TOP_SHARE * len(values)))).values.mean())
        shown = torch.where(kept, logits, values.min())
        maps.append(F.interpolate(shown[None, None], base, mode="bilinear", align_corners=False)[0, 0])
    return total, torch.stack(maps).mean(0).numpy()


def _logits(head: DefectHead, image: np.ndarray, tokens: Tensor, mean: float, spread: float) -> Tensor:
    """Logits (ceil(H / 4), ceil(W / 4)) of an image (H, W, 3); above 4 megapixels in overlapping tiles, so that memory is bounded.

    Each place is taken from the tile in which it lies furthest from an inner edge.
    """
    height, width = image.shape[:2]
    device = next(head.parameters()).device
    if height * width <= MAX_PIXELS:
        return head(standard_pixels(image, mean, spread)[None].to(device), tokens[None].to(device))[0, 0].float().cpu()
    logits = torch.empty(-(-height // 4), -(-width // 4))
    for top, keep_top, keep_bottom in _tiles(height):
        for left, keep_left, keep_right in _tiles(width):
            bottom, right = min(top + TILE, height), min(left + TILE, width)
            pixels = standard_pixels(image[top:bottom, left:right], mean, spread)
            under = tokens_under(tokens, top / height, left / width, bottom / height, right / width, side=TILE // STRIDE)
            tile = head(pixels[None].to(device), under[None].to(device))[0, 0].float().cpu()
            inner = tile[(keep_top - top) // 4 : -(-(keep_bottom - top) // 4), (keep_left - left) // 4 : -(-(keep_right - left) // 4)]
            logits[keep_top // 4 : keep_top // 4 + inner.shape[0], keep_left // 4 : keep_left // 4 + inner.shape[1]] = inner
    return logits


def _tiles(side: int) -> list[tuple[int, int, int]]:
    """Tiles along one side: where each starts, and the first and last pixel that it answers for; all multiples of 16 but the last."""
    if side <= TILE:
        return [(0, 0, side)]
    step = TILE - OVERLAP
    starts = [*range(0, side - TILE, step)]
    starts.append(-(-(side - TILE) // STRIDE) * STRIDE)
    seams = [0, *((after + before + TILE) // 2 // STRIDE * STRIDE for before, after in zip(starts, starts[1:])), side]
    return list(zip(starts, seams, seams[1:]))
