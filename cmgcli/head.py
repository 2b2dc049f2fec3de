"""The defect head: a small fully convolutional net that gives every place of an image a defect logit.

It reads pixels alone, and is shown an image at four sizes an octave apart: enlarged, a hairline is wide enough to be seen;
reduced, a large uneven area fits into what the net sees at once. One narrow net at one stride learns more in the same
minutes than a wider one, or than one of several resolutions; the figures are in ``weights/README.md``.
Lineage: DRAEM (Zavrtanik et al. 2021), dilated residual networks (Yu et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

LOOKS = 4
ENLARGED_PIXELS = 1_500_000  # an image is shown enlarged only where that makes no more than so many
TOP_SHARES = (0.001, 0.005, 0.02)  # of the kept logits of a look: a speck, a scratch, an area
MAX_PIXELS = 4_000_000
TILE, OVERLAP = 1536, 256  # pixels; multiples of the stride
STRIDE = 4
MIN_SIDE = 32
ROOM = 16  # logits; the sides of what is computed are multiples of it


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
        inner = self.first_norm(self.first(x)).relu_()
        return self.second_norm(self.second(inner)).add_(x).relu_()


def _halve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class DefectHead(nn.Module):
    """Pixels (B, 3, H, W) to defect logits (B, 1, ceil(H / 4), ceil(W / 4)); each logit sees 191 pixels a side.

    It also knows how high the peaks of a good image usually are: ``usual`` (4, 3, 2) is their location and spread for each
    look and share of its places.
    """

    def __init__(self, *, width: int = 32, dilations: Sequence[int] = (1, 2, 1, 4, 1, 8)) -> None:
        super().__init__()
        self.width, self.dilations = width, tuple(dilations)
        self.stem = nn.Sequential(_halve(3, width // 2), _halve(width // 2, width))
        self.blocks = nn.Sequential(*(ResidualBlock(width, dilation) for dilation in self.dilations))
        self.out = nn.Conv2d(width, 1, 1)
        nn.init.constant_(self.out.bias, -4.0)
        self.register_buffer("usual", torch.tensor([0.0, 1.0]).repeat(LOOKS, len(TOP_SHARES), 1))
        self.to(memory_format=torch.channels_last)  # faster, and the same bits after a reload

    @property
    def reach(self) -> int:
        """How many logits to each side lie where one of them sees."""
        return 1 + sum(dilation + 1 for dilation in self.dilations)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        return self.out(self.blocks(self.stem(pixels)))

    def accustom(self, peaks: Tensor) -> None:
        """Learn what is usual from the peaks (N, 4, 3) of good images."""
        spread = peaks.std(0, correction=0)
        self.usual.copy_(torch.stack([peaks.median(0).values, torch.where(spread > 1e-3, spread, 1.0)], -1))

    def unusual(self, peaks: Tensor) -> Tensor:
        """How far peaks (..., 4, 3) rise above the usual ones, (...): the root mean square of softplus over standard deviations.

        A defect shows in one look and at one size; the square lets it stand out, and ``softplus`` keeps calm looks from hiding it.
        """
        location, spread = self.usual.to(peaks).unbind(-1)
        return F.softplus((peaks - location) / spread).square().mean((-2, -1)).sqrt()


class ScoringHead:
    """The net of a head as it judges: each norm is part of the convolution before it, and all is done in one precision.

    That saves a pass over memory for each norm, which takes time in so narrow a net.
    """

    def __init__(self, head: DefectHead, precision: str = "float32") -> None:
        self.device, self.dtype = head.out.weight.device, {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
        self.stem = [self._folded(convolution, norm) for convolution, norm, _ in head.stem]
        self.blocks = [(self._folded(block.first, block.first_norm), self._folded(block.second, block.second_norm)) for block in head.blocks]
        self.out = self._same(head.out, head.out.weight, head.out.bias)

    def _folded(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
        moments = norm.running_mean, norm.running_var, norm.eps
        return self._same(convolution, *fuse_conv_bn_weights(convolution.weight, convolution.bias, *moments, norm.weight, norm.bias))

    def _same(self, convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
        """A convolution of this kind by other weights."""
        form = {name: getattr(convolution, name) for name in ("stride", "padding", "dilation")}
        return partial(F.conv2d, weight=weight.to(self.dtype, memory_format=torch.channels_last), bias=bias.to(self.dtype), **form)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits (ceil(H / 4), ceil(W / 4)) float32 on the CPU of pixels (3, H, W) float32."""
        x = pixels[None].to(self.device, self.dtype, memory_format=torch.channels_last)
        for half in self.stem:
            x = half(x).relu_()
        for first, second in self.blocks:
            x = second(first(x).relu_()).add_(x).relu_()
        return self.out(x)[0, 0].float().cpu()


def highest(peaks: Sequence[Tensor]) -> Tensor:
    """The peaks (4, 3) of an image from those of each of its pieces: the highest, one by one."""
    return torch.stack(list(peaks)).amax(0)


def exposure(image: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all values of an (H, W, 3) uint8 image."""
    means, spreads = cv2.meanStdDev(image)
    mean = float(means.mean())
    return mean, float(np.sqrt(max(0.0, (spreads**2 + means**2).mean() - mean**2)))


def standard_pixels(image: np.ndarray, mean: float, spread: float) -> Tensor:
    """(3, H, W) float32 of an (H, W, 3) uint8 image by the `exposure` of the whole image, so that exposure matters little."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    return pixels.sub_(mean).div_(max(spread, 4.0))


def look_scales(height: int, width: int) -> tuple[float, ...]:
    """The four scales at which the head is shown an image, each half of the one before: from 2, or from 1 where the image is large."""
    first = 2.0 if 4 * height * width <= ENLARGED_PIXELS else 1.0
    return tuple(first / 2**look for look in range(LOOKS))


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """The size at which the head sees an image at one scale: at least 32 pixels a side."""
    return max(MIN_SIDE, round(height * scale)), max(MIN_SIDE, round(width * scale))


def patch_mask_to(keep: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) bool patch mask to (height, width) bool in the image's frame."""
    return cv2.resize(keep.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def places_over(patches: int, places: int) -> np.ndarray:
    """(places, patches) float32 along one side: 1 for the patch at a place, and, where places are fewer, for all patches that touch it."""
    first = np.arange(places) * patches // places
    last = first if places >= patches else -(-(np.arange(places) + 1) * patches // places) - 1
    return ((np.arange(patches) >= first[:, None]) & (np.arange(patches) <= last[:, None])).astype(np.float32)


def kept_places(keep: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) bool: the logits that a patch mask (h, w) bool keeps; none that it keeps is lost where logits are fewer than patches."""
    return places_over(keep.shape[0], height) @ keep @ places_over(keep.shape[1], width).T > 0


def head_map(head: DefectHead, image: np.ndarray, keep: np.ndarray, *, precision: str = "float32") -> tuple[float, np.ndarray]:
    """Score and map of one image: how unusual its `peaks_and_map` are to this head, see `DefectHead.unusual`, and the map."""
    peaks, shown = peaks_and_map(head, image, keep, precision=precision)
    return float(head.unusual(peaks)), shown


@torch.inference_mode()
def peaks_and_map(head: DefectHead, image: np.ndarray, keep: np.ndarray, *, precision: str = "float32") -> tuple[Tensor, np.ndarray]:
    """What a head sees in one image.

    Args:
        image: (H, W, 3) uint8 RGB; keep: (h, w) bool, where the map counts.
        precision: of the convolutions, float32 or bfloat16.
    Returns:
        For each of `look_scales` the means of the top 0.1, 0.5 and 2 % of the kept logits, (4, 3) float32, and the map (H', W')
        float32 of the highest logit of any look, at a quarter of the resolution; hidden places hold the least kept value.
    """
    height, width = image.shape[:2]
    base = tuple(-(-side // STRIDE) for side in scaled_size(height, width, 1.0))
    mean, spread = exposure(image)
    net = ScoringHead(head, precision)
    peaks, maps = [], []
    for scale in look_scales(height, width):
        tall, wide = scaled_size(height, width, scale)
        seen = cv2.resize(image, (wide, tall), interpolation=cv2.INTER_AREA)
        places = kept_places(keep, -(-tall // STRIDE), -(-wide // STRIDE))
        logits = _logits_around(places, head.reach, lambda piece: net(standard_pixels(piece, mean, spread)), seen)
        kept = torch.from_numpy(places)
        values = logits[kept]
        highest = values.topk(max(1, round(max(TOP_SHARES) * len(values)))).values
        peaks.append([highest[: max(1, round(share * len(values)))].mean() for share in TOP_SHARES])
        shown = torch.where(kept, logits, values.min())
        maps.append(F.interpolate(shown[None, None], base, mode="bilinear", align_corners=False)[0, 0])
    return torch.tensor(peaks), torch.stack(maps).amax(0).numpy()


def _logits_around(kept: np.ndarray, reach: int, logits_of: Callable[[np.ndarray], Tensor], image: np.ndarray) -> Tensor:
    """Logits (h, w) of an image (H, W, 3), right where kept (h, w) bool: little is computed that none of these sees, ``reach`` to each side, and all else is 0."""
    rows, columns = (_reached(kept.any(axis), reach) for axis in (1, 0))
    logits = torch.zeros(kept.shape)
    logits[rows, columns] = _logits(logits_of, image[rows.start * STRIDE : rows.stop * STRIDE, columns.start * STRIDE : columns.stop * STRIDE])
    return logits


def _reached(kept: np.ndarray, reach: int) -> slice:
    """Along one side, the places (n,) from the first kept one to the last, and as many before and after as these see.

    A multiple of `ROOM`, or all: few sizes in place of one for each mask, because torch holds kernels for each size.
    """
    places = np.flatnonzero(kept)
    first, end = max(0, places[0] - reach), min(len(kept), places[-1] + 1 + reach)
    length = min(len(kept), -(-(end - first) // ROOM) * ROOM)
    first = min(first, len(kept) - length)
    return slice(first, first + length)


def _logits(logits_of: Callable[[np.ndarray], Tensor], image: np.ndarray) -> Tensor:
    """Logits (ceil(H / 4), ceil(W / 4)) of an image (H, W, 3); above 4 megapixels in overlapping tiles, so that memory is bounded.

    Each place is taken from the tile in which it lies furthest from an inner edge, which is further than it sees.
    """
    height, width = image.shape[:2]
    if height * width <= MAX_PIXELS:
        return logits_of(image)
    logits = torch.empty(-(-height // STRIDE), -(-width // STRIDE))
    for top, keep_top, keep_bottom in _tiles(height):
        for left, keep_left, keep_right in _tiles(width):
            tile = logits_of(image[top : top + TILE, left : left + TILE])
            inner = tile[(keep_top - top) // 4 : -(-(keep_bottom - top) // 4), (keep_left - left) // 4 : -(-(keep_right - left) // 4)]
            logits[keep_top // 4 : keep_top // 4 + inner.shape[0], keep_left // 4 : keep_left // 4 + inner.shape[1]] = inner
    return logits


def _tiles(side: int) -> list[tuple[int, int, int]]:
    """Tiles along one side: where each starts, and the first and last pixel that it answers for; all multiples of 4 but the last."""
    if side <= TILE:
        return [(0, 0, side)]
    step = TILE - OVERLAP
    starts = [*range(0, side - TILE, step)]
    starts.append(-(-(side - TILE) // STRIDE) * STRIDE)
    seams = [0, *((after + before + TILE) // 2 // STRIDE * STRIDE for before, after in zip(starts, starts[1:])), side]
    return list(zip(starts, seams, seams[1:]))
