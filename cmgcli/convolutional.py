"""Convolutional vision sides of open_clip and timm (ResNet, ConvNeXt): patches that are left out are painted over.

Such a net has no tokens to leave out. Its patches are the cells of its last feature map; the pixels under a cell that is
left out take the mean colour, which is 0 after normalisation, and the pass costs as much as one over the whole image.

Letters: ``B`` images, ``P = h * w`` cells, ``K`` of them kept, ``C`` channels, ``D`` embedding size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmgcli.tower import TowerOutput


class MapTower(nn.Module, ABC):
    """Pixels (B, 3, S, S) float32, normalised, to embeddings and cells; the attributes are those of `clip.VisionSide`.

    Its layers are the stages of the net, each averaged over the cells of the last feature map; they differ in width.
    """

    paints, averages, weighs = True, False, False

    def __init__(self, net: nn.Module, image_size: int) -> None:
        super().__init__()
        self.net, self.image_size, self.bfloat16 = net, image_size, False
        self.eval().requires_grad_(False)
        stages, last = self._maps(torch.zeros(1, 3, image_size, image_size))
        self.depth, self.grid = len(stages), tuple(last.shape[2:])
        self.dim = self._pooled(last).shape[1]

    def forward(self, pixels: Tensor, index: Tensor | None = None, layers: Sequence[int] = ()) -> TowerOutput:
        """One pass over the cells that ``index`` (B, K) int64 names, row by row, the others painted over; None keeps all ``P``."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bfloat16):
            stages, last = self._maps(painted(pixels, index, self.grid))
        last = last.float()
        seen = {number: _cells(F.adaptive_avg_pool2d(stages[number].float(), self.grid)) for number in set(layers)}
        return TowerOutput(self._pooled(last), _at(self._alone(_cells(last)), index), tuple(_at(seen[layer], index) for layer in layers))

    @abstractmethod
    def _maps(self, pixels: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """What each stage gives, (B, C, H, W) of its own size, and what is pooled, (B, C, h, w)."""

    @abstractmethod
    def _pooled(self, last: Tensor) -> Tensor:
        """Embedding (B, D) of (B, C, h, w)."""

    @abstractmethod
    def _alone(self, cells: Tensor) -> Tensor:
        """What the pool gives for each of all cells (B, P, C) alone: (B, P, D)."""

    @abstractmethod
    def _convolved(self) -> Iterator[nn.Module]:
        """The parts of the net that give the maps; the pool is none of them."""

    def in_bfloat16(self) -> Self:
        """The same tower, its maps from now on computed in bfloat16, and pooled in float32."""
        self.bfloat16 = True
        for part in self._convolved():
            for module in part.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(torch.bfloat16)
        return self


class ClipResNet(MapTower):
    """An open_clip `ModifiedResNet`, whose pool is an attention."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__(visual, int(visual.image_size))

    def _maps(self, pixels: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        maps = [self.net.stem(pixels)]
        for stage in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            maps.append(stage(maps[-1]))
        return maps[1:], maps[-1]

    def _pooled(self, last: Tensor) -> Tensor:
        return self.net.attnpool(last)

    def _alone(self, cells: Tensor) -> Tensor:
        pool = self.net.attnpool
        return pool.c_proj(pool.v_proj(cells + pool.positional_embedding[1:]))

    def _convolved(self) -> Iterator[nn.Module]:
        return (child for child in self.net.children() if child is not self.net.attnpool)


class TimmMaps(MapTower):
    """An open_clip `TimmModel` around a net of timm that gives a feature map, such as a ConvNeXt."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__(visual, int(visual.image_size[0]))

    def _maps(self, pixels: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        last, stages = self.net.trunk.forward_intermediates(pixels, output_fmt="NCHW")
        return stages, last.permute(0, 3, 1, 2) if self._channels_last else last

    def _pooled(self, last: Tensor) -> Tensor:
        return self.net.head(self.net.trunk.forward_head(last.permute(0, 2, 3, 1) if self._channels_last else last))

    @property
    def _channels_last(self) -> bool:
        return getattr(self.net.trunk, "output_fmt", "NCHW") == "NHWC"

    def _alone(self, cells: Tensor) -> Tensor:
        return self._pooled(cells.flatten(0, 1)[:, :, None, None]).view(*cells.shape[:2], -1)

    def _convolved(self) -> Iterator[nn.Module]:
        pool = self.net.trunk.default_cfg["classifier"].split(".")[0]
        return (child for name, child in self.net.trunk.named_children() if name != pool)


def painted(pixels: Tensor, index: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """Pixels (B, 3, S, S) with 0 in the cells of the grid that ``index`` (B, K) does not name."""
    if index is None:
        return pixels
    seen = pixels.new_zeros(len(pixels), grid[0] * grid[1]).scatter(1, index, 1.0)
    return pixels * F.interpolate(seen.view(-1, 1, *grid), pixels.shape[2:], mode="nearest")


def _cells(feature_map: Tensor) -> Tensor:
    """(B, C, h, w) to (B, P, C)."""
    return feature_map.flatten(2).transpose(1, 2)


def _at(cells: Tensor, index: Tensor | None) -> Tensor:
    """The cells (B, K, C) of (B, P, C) that ``index`` names."""
    return cells if index is None else cells.gather(1, index.unsqueeze(-1).expand(-1, -1, cells.shape[-1]))
