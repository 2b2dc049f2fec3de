"""Text over a picture, in the letters of all scripts that matplotlib's own font has."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

INK, SOFT = "#16181d", "#6a6f7a"
TEXT_SIZE = 12  # pixels
_FONT, _ADVANCE = "DejaVu Sans Mono", 0.602  # comes with matplotlib; width of any character in sizes
_DOTS = 64  # per inch: a power of two, so that inches give whole pixels back


class Lettering:
    """Puts lines of text on a picture (H, W, 3) uint8 RGB, all at once at the end."""

    def __init__(self, picture: np.ndarray) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        height, width = picture.shape[:2]
        self._picture = picture
        self._figure = Figure(figsize=(width / _DOTS, height / _DOTS), dpi=_DOTS)
        self._canvas = FigureCanvasAgg(self._figure)

    @staticmethod
    def width(text: str, size: int = TEXT_SIZE) -> float:
        """The width of a line in pixels."""
        return len(text) * size * _ADVANCE

    def put(
        self, text: str, x: float, y: float, room: float, *, size: int = TEXT_SIZE, colour: str = INK, to_the_left: bool = False, keep_end: bool = False
    ) -> None:
        """One line on the base line `y`, from or up to `x`; what is longer than `room` pixels loses its end, or its start."""
        plain = " ".join(text.encode("utf-8", "replace").decode().split())
        most = max(2, int(room / self.width("x", size)))
        if len(plain) > most:
            plain = "\N{HORIZONTAL ELLIPSIS}" + plain[1 - most :] if keep_end else plain[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
        height, width = self._picture.shape[:2]
        style: dict[str, Any] = {"family": _FONT, "size": size * 72 / _DOTS, "color": colour, "parse_math": False}
        self._figure.text(x / width, 1 - y / height, plain, ha="right" if to_the_left else "left", va="baseline", **style)

    def drawn(self) -> np.ndarray:
        """The picture with its text."""
        self._figure.figimage(self._picture)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # such a letter is a box; the rows have the name
            self._canvas.draw()
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()
