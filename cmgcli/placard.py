"""The picture of an explanation: one page for people, as PNG."""

from __future__ import annotations

import textwrap
from pathlib import Path

import cv2
import numpy as np

from cmgcli.album import patch_picture
from cmgcli.contact import fit_square
from cmgcli.explain import NEIGHBOURS, Explanation, PatchBox, Place
from cmgcli.images import write_png
from cmgcli.lettering import SOFT, TEXT_SIZE, Lettering
from cmgcli.model import MAP_CALM, MAP_STRANGE
from cmgcli.pictures import keep_overlay, map_overlay
from cmgcli.reasons import PART_NAMES
from cmgcli.view import View

_WIDTH, _MARGIN, _GAP, _LINE = 1100, 24, 16, 20  # pixels
_SIDE = (_WIDTH - 2 * _MARGIN - 2 * _GAP) // 3
_CROP = 96
_PLACE = _CROP + 44  # height of a place
_PAPER, _MOUNT = 255, 240
_MARK, _BAR, _USUAL = (255, 0, 200), (28, 106, 140), (190, 205, 214)  # RGB
_ALARM, _CALM = "#a51d2d", "#1d6b41"


def write_placard(found: Explanation, directory: Path, stem: str) -> None:
    """Write `STEM_why.png`, whole or not at all. Raises OutputError where that fails."""
    write_png(directory / f"{stem}_why.png", draw_placard(found))


def draw_placard(found: Explanation) -> np.ndarray:
    """The page (H, W, 3) uint8 RGB: what decided, the pictures, the parts of the score, the caption, and each place beside normal ones.

    Of an image seen in tiles the one with the strangest place is shown too.
    """
    said = [line for sentence in found.caption_words for line in _wrapped(sentence)]
    tops = _tops(found, len(said))
    page = np.full((tops["end"], _WIDTH, 3), _PAPER, np.uint8)
    text = Lettering(page)
    _head(text, found)
    _pictures(text, page, found, found.view, tops["pictures"])
    if found.view.tiles:
        text.put(_where(found.nearest), _MARGIN, tops["nearer"] - 12, _WIDTH - 2 * _MARGIN)
        _pictures(text, page, found, found.nearest, tops["nearer"])
    _bars(text, page, found, tops["bars"])
    _heading(text, "The caption's part", tops["caption"])
    for number, line in enumerate(said):
        text.put(line, _MARGIN, tops["caption"] + (number + 1) * _LINE + 4, _WIDTH - 2 * _MARGIN)
    _heading(text, "The strangest places, and the most similar ones in good parts", tops["places"])
    for number, place in enumerate(found.places):
        _place(text, page, found, place, number, tops["places"] + 16 + number * _PLACE)
    return text.drawn()


def _tops(found: Explanation, lines: int) -> dict[str, int]:
    """Where each section begins, with so many lines about the caption."""
    pictures = 108
    nearer = pictures + _SIDE + 56
    bars = (nearer if found.view.tiles else pictures) + _SIDE + 64
    caption = bars + (len(found.parts) + 1) * _LINE + 36
    at = caption + lines * _LINE + 44
    return {"pictures": pictures, "nearer": nearer, "bars": bars, "caption": caption, "places": at, "end": at + 16 + len(found.places) * _PLACE + _MARGIN}


def _where(tile: View) -> str:
    """Which tile it is."""
    rows, columns = tile.box
    return f"Nearer: the tile with the strangest place, pixel rows {rows.start} to {rows.stop - 1} and columns {columns.start} to {columns.stop - 1} of the image."


def _wrapped(sentence: str) -> list[str]:
    most = int((_WIDTH - 2 * _MARGIN) / Lettering.width("x"))
    return textwrap.wrap(sentence, most) or [""]


def _heading(text: Lettering, words: str, y: float) -> None:
    text.put(words, _MARGIN, y, _WIDTH - 2 * _MARGIN, size=15)


def _head(text: Lettering, found: Explanation) -> None:
    room = _WIDTH - 2 * _MARGIN
    text.put(found.row.file, _MARGIN, 36, room, size=18, keep_end=True)
    text.put(found.verdict, _MARGIN, 64, room, size=14, colour=_ALARM if found.row.anomalous else _CALM)
    text.put(found.reason, _MARGIN, 86, room, size=14)


def _pictures(text: Lettering, page: np.ndarray, found: Explanation, piece: View, top: int) -> None:
    """Three pictures of a piece of the view: as it is with the strangest places in it, its anomaly map, and what CMER kept."""
    image = fit_square(piece.image, _SIDE)
    height, width = image.shape[:2]
    small = cv2.resize(found.anomaly_map[piece.box], (width, height), interpolation=cv2.INTER_AREA)
    shown = (
        (image.copy(), "what was judged, with its strangest places"),
        (map_overlay(image, small, low=MAP_CALM, high=MAP_STRANGE), "yellow: strange; red outline: very"),
        (keep_overlay(image, piece.keep), f"what CMER kept; {1 - float(piece.keep.mean()):.0%} is hidden"),
    )
    for number, (picture, words) in enumerate(shown):
        left = _MARGIN + number * (_SIDE + _GAP)
        y, x = top + (_SIDE - height) // 2, left + (_SIDE - width) // 2
        page[top : top + _SIDE, left : left + _SIDE] = _MOUNT
        page[y : y + height, x : x + width] = picture
        text.put(words, left, top + _SIDE + 18, _SIDE, colour=SOFT)
        if number == 0:
            for letter, place in zip("ABCD", found.places, strict=False):
                box = _shown_at(place.box, piece, (y, x, height, width))
                if box is not None:
                    _mark(text, page, letter, box)


def _shown_at(box: PatchBox, piece: View, frame: tuple[int, int, int, int]) -> PatchBox | None:
    """Where a box of the image lies in a picture of a piece of it, at (top, left, height, width) of the page; None where it is not all in it."""
    corners = np.reshape(box, (2, 2)) - [span.start or 0 for span in piece.box]
    if corners.min() < 0 or (corners[1] > piece.image.shape[:2]).any():
        return None
    top, left, bottom, right = (corners * frame[2:] // piece.image.shape[:2] + frame[:2]).ravel().tolist()
    return top, left, max(bottom, top + 1), max(right, left + 1)


def _mark(text: Lettering, page: np.ndarray, letter: str, box: PatchBox) -> None:
    top, left, bottom, right = box
    cv2.rectangle(page, (left - 2, top - 2), (right + 1, bottom + 1), (255, 255, 255), 1)
    cv2.rectangle(page, (left - 1, top - 1), (right, bottom), _MARK, 2)
    tag = left - 18 if left - 18 >= _MARGIN else right + 3
    page[top : top + 17, tag : tag + 15] = 255
    text.put(letter, tag + 3, top + 13, 15, size=14)


def _bars(text: Lettering, page: np.ndarray, found: Explanation, top: int) -> None:
    """One bar for each part: what it adds to the score, light: what it adds to that of a typical good part; a line at the threshold."""
    _heading(text, "What makes the score", top)
    left, room = _MARGIN + 120, 330
    most = max(found.row.score, found.usual_score, found.threshold if np.isfinite(found.threshold) else 0) * 1.05
    start = 0.0
    for number, part in enumerate(found.parts):
        y = top + 12 + number * _LINE
        begin, end, usual = (left + round(room * points / most) for points in (start, start + part.points, start + part.usual_points))
        page[y : y + 14, begin : max(end, begin + 1)] = _BAR
        page[y : y + 14, begin : min(usual, end)] = _USUAL
        text.put(PART_NAMES[part.name], _MARGIN, y + 12, 110)
        text.put(
            f"adds {part.points:.2f} (typical good part {part.usual_points:.2f}): value {part.value:.3g}, good parts {part.usual:.3g} ± {part.spread:.2g}",
            left + room + 20, y + 12, _WIDTH - _MARGIN - left - room - 20,
        )  # fmt: skip
        start += part.points
    y = top + 12 + len(found.parts) * _LINE
    if np.isfinite(found.threshold):
        at = left + round(room * found.threshold / most)
        page[top + 8 : y, at : at + 2] = (165, 29, 45)
        text.put(f"threshold {found.threshold:.3g}", at, y + 12, 200, colour=_ALARM, to_the_left=at > left + room / 2)
    text.put("light: a typical good part", left + room + 20, y + 12, 190, colour=SOFT, size=TEXT_SIZE - 1)


def _place(text: Lettering, page: np.ndarray, found: Explanation, place: Place, number: int, top: int) -> None:
    _crop(page, patch_picture(found.view.image, place.box), top, _MARGIN + 24, _MARK)
    text.put("ABCD"[number], _MARGIN, top + 16, 20, size=16)
    left = _MARGIN + 24 + _CROP + 20
    for line, (indent, sentence) in enumerate(_place_words(place)):
        text.put(sentence, left + indent, top + 14 + line * _LINE, 420)
    left = _WIDTH - _MARGIN - NEIGHBOURS * (_CROP + _GAP) + _GAP
    for near in place.neighbours:
        _crop(page, near.picture, top, left, (255, 255, 255))
        text.put(near.image, left, top + _CROP + 13, _CROP, size=TEXT_SIZE - 2, colour=SOFT, keep_end=True)
        text.put(f"distance {near.distance:.2f}", left, top + _CROP + 26, _CROP + _GAP, size=TEXT_SIZE - 2, colour=SOFT)
        left += _CROP + _GAP


def _place_words(place: Place) -> list[tuple[int, str]]:
    """Lines, each with how far it is indented."""
    top, left, bottom, right = place.box
    words = [(0, f"pixel rows {top} to {bottom - 1}, columns {left} to {right - 1}"), (0, f"nearest normal patch at {place.neighbours[0].distance:.2f}:")]
    words.append((12, _compared(place.patch_spreads)))
    if place.head_spreads is not None:
        words += [(0, "what the defect head sees:"), (12, _compared(place.head_spreads))]
    if place.state_spreads is not None:
        words += [(0, "match with the defect words:"), (12, _compared(place.state_spreads))]
    return words


def _compared(spreads: float) -> str:
    """How far a place lies above the strangest places of a typical good part, in spreads of good ones."""
    if spreads <= 0:
        return "no stranger than the strangest of a typical good part"
    return f"{spreads:.1f} spreads above the strangest of a typical good part"


def _crop(page: np.ndarray, picture: np.ndarray, top: int, left: int, colour: tuple[int, int, int]) -> None:
    """A picture of a patch with its surroundings, the patch itself framed."""
    page[top : top + _CROP, left : left + _CROP] = cv2.resize(picture, (_CROP, _CROP), interpolation=cv2.INTER_CUBIC)
    inner = _CROP // 4
    cv2.rectangle(page, (left + inner, top + inner), (left + 3 * inner, top + 3 * inner), colour, 1)

