"""A masking run: pictures and a row of each image, and what there is to say of all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from cmgcli.contact import ContactSheet
from cmgcli.pictures import unused_stem, write_mask_pictures
from cmgcli.pipeline import MaskResult
from cmgcli.rows import MaskRow, row_writer
from cmgcli.words import counted, misfit

CLEAR_DOUBT = 0.95


@dataclass(frozen=True)
class Masked:
    """What a run did: how many images could not be read, and what else is worth a line."""

    unreadable: int
    sentences: tuple[str, ...]


def write_masks(results: Iterable[MaskResult], directory: Path, summary: TextIO, *, contact_sheet: Path | None = None) -> Masked:
    """Write the pictures of `pictures.write_mask_pictures` into `directory`, and each image's row once they are there.

    Args:
        summary: stream for the rows, `MaskRow` as CSV.
        contact_sheet: PNG to write at the end; see `contact.ContactSheet`.
    Raises:
        OutputError: something cannot be written.
    """
    unreadable, images, unnamed, used, sheet, misfits = 0, 0, [], {}, ContactSheet(), Misfits()
    write = row_writer(summary, MaskRow)
    for result in results:
        unreadable += bool(result.row.error)
        if result.view is not None:
            view, images = result.view, images + 1
            misfits.add(result.row)
            unnamed += [] if view.named else [result.row.file]
            write_mask_pictures(directory, unused_stem(result.row.file, used), view.image, view.keep, view.relevance, patches=result.patches)
            if contact_sheet is not None:
                sheet.add(result.row, view.image, view.relevance, view.keep)
        write(result.row)
    without_caption = (misfit(len(unnamed), images, unnamed[0]),) if unnamed else ()
    return Masked(unreadable, (*_write_sheet(sheet, contact_sheet), *without_caption, *misfits.sentences))


def _write_sheet(sheet: ContactSheet, path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    if not sheet.shown:
        return (f"there is no image to show, so {path} is not written",)
    sheet.write(path)
    left_out = sheet.images - sheet.shown
    return (f"wrote {path}" + (f": {counted(sheet.shown, 'image')} drawn at random, {left_out} left out" if left_out else ""),)


class Misfits:
    """Finds the images whose caption looks like a mistake, from their rows alone.

    An image counts where the encoder gives another caption of the run a probability above `CLEAR_DOUBT` against its own
    (19 to 1), and that one matches it as well as it does the images that carry it: no worse than their lower quartile. So a
    blank image, which matches one caption badly and another one worse, does not count.
    """

    def __init__(self) -> None:
        self._matches: dict[str, list[float]] = defaultdict(list)  # of the images that carry a caption
        self._doubtful: list[MaskRow] = []

    def add(self, row: MaskRow) -> None:
        """Take in the row of an image that was read."""
        self._matches[row.caption].append(row.match_before)
        if row.doubt is not None and row.doubt > CLEAR_DOUBT:
            self._doubtful.append(row)

    @property
    def rows(self) -> tuple[MaskRow, ...]:
        """Those that count, in the order of the run."""
        return tuple(row for row in self._doubtful if self._fits(row.match_other, row.other_caption))

    def _fits(self, match: float, caption: str) -> bool:
        usual = self._matches[caption]
        return bool(usual) and match >= np.quantile(usual, 0.25)

    @property
    def sentences(self) -> tuple[str, ...]:
        """One line about them, or none where there are none."""
        if not self.rows:
            return ()
        images = sum(map(len, self._matches.values()))
        return (
            f"another caption of the run is clearly a better match for {len(self.rows)} of {counted(images, 'image')}, first {self.rows[0].file}: "
            "are the captions right? see the columns other_caption and doubt",
        )
