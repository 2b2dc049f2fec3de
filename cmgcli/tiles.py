"""Tiles of a large image: where they lie, and how their maps are joined without seams. Pixels and arrays only."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cmgcli.errors import SettingsError

Box = tuple[slice, slice]  # rows and columns of an image

WHOLE: Box = (slice(None), slice(None))
STEP = 4  # pixels of an image to one of a stitched map; every tile begins at a multiple of it
MOST_OVERLAP = 0.75


def check_tiling(tile: int | None, overlap: float, patch: int) -> None:
    """Raise SettingsError for tiles that are smaller than a patch of the encoder, `patch` pixels, or an overlap out of range."""
    if tile is not None and tile < patch:
        raise SettingsError(f"tile: expected at least {patch} pixels, one patch of the encoder, got {tile}; 512 is a good start")
    if not 0 <= overlap <= MOST_OVERLAP:
        raise SettingsError(f"overlap: expected a share of the tile from 0 to {MOST_OVERLAP:g}, such as 0.25, got {overlap:g}")


def tile_boxes(height: int, width: int, *, tile: int, overlap: float) -> list[Box]:
    """Tiles that cover an image, row by row; neighbours share at least the given part of a tile. One box where one is enough."""
    rows, columns = _spans(height, tile, overlap), _spans(width, tile, overlap)
    return [(row, column) for row in rows for column in columns]


def _spans(side: int, tile: int, overlap: float) -> list[slice]:
    """Evenly spaced; the last one may be up to `STEP` - 1 pixels shorter."""
    if side <= tile:
        return [slice(0, side)]
    last = -(-(side - tile) // STEP)  # in steps
    stride = max(1, int(tile * (1 - overlap)) // STEP)
    count = -(-last // stride) + 1
    starts = [STEP * (k * last // (count - 1)) for k in range(count)]
    return [slice(start, min(start + tile, side)) for start in starts]


def patch_boxes(box: Box, size: tuple[int, int], grid: tuple[int, int], numbers: np.ndarray) -> np.ndarray:
    """Top, left, bottom, right (K, 4) int64 of some patches, in pixels of the image, rounded outward.

    Args:
        box, size: where the piece of the image that they are of begins, and its height and width. grid: its patches (h, w).
        numbers: (K,) int64, row by row.
    """
    starts = [span.start or 0 for span in box]
    cells = np.stack(np.divmod(numbers, grid[1]), axis=1)  # (K, 2)
    return np.concatenate([cells * size // grid, -(-(cells + 1) * size // grid)], axis=1) + starts * 2


def under(grid: np.ndarray, box: Box, shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """What a grid (h, w) that covers an image of this shape has at the centres of a box's own (h', w') cells."""
    centres = [
        (span.start + (np.arange(count) + 0.5) * (span.stop - span.start) / count) * patches / side
        for span, side, patches, count in zip(box, shape, grid.shape, cells, strict=True)
    ]
    return grid[np.ix_(*(centre.astype(int) for centre in centres))]


def stitch(maps: Sequence[np.ndarray], keeps: Sequence[np.ndarray], boxes: Sequence[Box], shape: tuple[int, int]) -> np.ndarray:
    """One map (ceil(H / 4), ceil(W / 4)) float32 of an image of shape (H, W), from the maps of its tiles at any resolution.

    Where tiles overlap each counts by how far a place lies from the tile's edge, so that no seam is left. What is hidden in
    a tile, or lies in none, holds the least kept value of all.

    Args:
        keeps: the patch mask of each tile, any resolution, at least one patch kept.
    """
    seen = [cv2.resize(keep.astype(np.uint8), values.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0 for keep, values in zip(keeps, maps, strict=True)]
    least = min(float(values[there].min() if there.any() else values.min()) for values, there in zip(maps, seen, strict=True))
    total = np.zeros([-(-side // STEP) for side in shape], np.float32)
    weight = np.zeros_like(total)
    for values, there, box in zip(maps, seen, boxes, strict=True):
        place = tuple(slice(span.start // STEP, -(-span.stop // STEP)) for span in box)
        height, width = (span.stop - span.start for span in place)
        shown = np.where(there, values, least).astype(np.float32) - least
        share = np.minimum.outer(_tent(height), _tent(width))
        total[place] += share * cv2.resize(shown, (width, height), interpolation=cv2.INTER_LINEAR)
        weight[place] += share
    return np.divide(total, weight, out=total, where=weight > 0) + np.float32(least)


def _tent(count: int) -> np.ndarray:
    """(count,) float32: 1 at both ends, rising evenly to the middle."""
    steps = np.arange(count)
    return np.minimum(steps + 1, count - steps).astype(np.float32)
