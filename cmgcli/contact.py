"""A contact sheet of what CMER makes of many images: each as it is, its relevance, and what is kept.

Of a long run a sample is shown, so that neither memory nor the picture grows with the number of images.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cmgcli.images import write_png
from cmgcli.lettering import SOFT, TEXT_SIZE, Lettering
from cmgcli.pictures import heat, keep_overlay
from cmgcli.rows import MaskRow

MOST_CELLS = 60
SIDE = 168  # pixels, of the square that each of a cell's three pictures is fitted into

_COLUMNS = 4
_GAP, _MARGIN, _HEADER, _LINE = 4, 24, 76, 19  # pixels
_CELL = 3 * SIDE + 2 * _GAP, SIDE + 2 * _LINE + 24  # width, height
_PAPER, _MOUNT = 255, 236


@dataclass(frozen=True)
class _Cell:
    row: MaskRow
    image: np.ndarray  # (h', w', 3) uint8, at most SIDE a side
    relevance: np.ndarray  # (h, w) float
    keep: np.ndarray  # (h, w) bool


class ContactSheet:
    """Collects cells, at most `MOST_CELLS` of them: of more images an even random sample, the same in every run.

    Attributes:
        images: how many were offered.
    """

    def __init__(self) -> None:
        self.images = 0
        self._cells: dict[int, _Cell] = {}  # by the image's number in the run
        self._rng = random.Random(0)

    @property
    def shown(self) -> int:
        """How many images have a cell."""
        return len(self._cells)

    def add(self, row: MaskRow, image: np.ndarray, relevance: np.ndarray, keep: np.ndarray) -> None:
        """Offer one image (H, W, 3) uint8 RGB with its relevance (h, w) float and its keep mask (h, w) bool."""
        number = self.images
        self.images += 1
        if len(self._cells) == MOST_CELLS:  # reservoir sampling (Waterman; Knuth, TAOCP 2, algorithm 3.4.2R)
            place = self._rng.randrange(self.images)
            if place >= MOST_CELLS:
                return
            del self._cells[list(self._cells)[place]]
        self._cells[number] = _Cell(row, fit_square(image, SIDE), relevance, keep)

    def draw(self) -> np.ndarray:
        """The sheet (H, W, 3) uint8 RGB, in the order of the run; at least one image must have been added.

        The heat colours go from 0 to the 99th percentile of all relevances shown; the sheet's head says how much that is.
        """
        cells = [self._cells[number] for number in sorted(self._cells)]
        columns = min(len(cells), _COLUMNS)
        high = relevance_scale([cell.relevance for cell in cells])
        width = columns * (_CELL[0] + _MARGIN) + _MARGIN
        sheet = np.full((_HEADER + -(-len(cells) // columns) * _CELL[1] + _MARGIN, width, 3), _PAPER, np.uint8)
        text = Lettering(sheet)
        self._head(text, sheet, high)
        for place, cell in enumerate(cells):
            left, top = _MARGIN + place % columns * (_CELL[0] + _MARGIN), _HEADER + place // columns * _CELL[1]
            _draw_cell(text, sheet, cell, left, top, high)
        return text.drawn()

    def write(self, path: Path) -> None:
        """Write the sheet as PNG, whole or not at all. Raises OutputError where that fails."""
        write_png(path, self.draw())

    def _head(self, text: Lettering, sheet: np.ndarray, high: float) -> None:
        room = sheet.shape[1] - 2 * _MARGIN
        text.put(f"cmg mask: {self.shown} of {self.images} images", _MARGIN, 30, room, size=17)
        text.put("image | relevance | kept", _MARGIN, 54, room, colour=SOFT)
        right = sheet.shape[1] - _MARGIN
        bar = heat(np.linspace(0, high, SIDE)[None].repeat(14, axis=0), low=0, high=high)
        sheet[42:56, right - 60 - SIDE : right - 60] = bar
        text.put("relevance 0", right - 68 - SIDE, 54, 100, colour=SOFT, to_the_left=True)
        text.put(f"{high:.2g}", right - 54, 54, 60, colour=SOFT)


def relevance_scale(relevances: list[np.ndarray]) -> float:
    """The upper end of the heat colours for all the given relevances: their 99th percentile, or 1 where that is not positive."""
    high = float(np.quantile(np.concatenate([relevance.ravel() for relevance in relevances]), 0.99))
    return high if high > 0 else 1.0


def fit_square(image: np.ndarray, side: int) -> np.ndarray:
    """Scale an (H, W, 3) uint8 image, up or down, so that its longer side has `side` pixels."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def _draw_cell(text: Lettering, sheet: np.ndarray, cell: _Cell, left: int, top: int, high: float) -> None:
    height, width = cell.image.shape[:2]
    smooth = cv2.resize(cell.relevance.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    y, x = top + (SIDE - height) // 2, left + (SIDE - width) // 2
    for picture in (cell.image, heat(smooth, low=0, high=high), keep_overlay(cell.image, cell.keep)):
        sheet[top : top + SIDE, x - (SIDE - width) // 2 :][:, :SIDE] = _MOUNT
        sheet[y : y + height, x : x + width] = picture
        x += SIDE + _GAP
    row = cell.row
    numbers = f"match {row.match_before:z.2f} \N{RIGHTWARDS ARROW} {row.match_after:z.2f}, {row.kept:.0%} kept"
    room = _CELL[0] - text.width(numbers) - 2 * TEXT_SIZE
    text.put(row.file, left, top + SIDE + _LINE, room, keep_end=True)
    text.put(numbers, left + _CELL[0], top + SIDE + _LINE, _CELL[0], to_the_left=True)
    text.put(row.caption, left, top + SIDE + 2 * _LINE, _CELL[0], colour=SOFT)
