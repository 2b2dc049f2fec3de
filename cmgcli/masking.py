"""A masking run: pictures and a row of each image, and what there is to say of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cmgcli.contact import ContactSheet
from cmgcli.pictures import unused_stem, write_mask_pictures
from cmgcli.pipeline import MaskResult
from cmgcli.rows import MaskRow, row_writer


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
    unreadable, used, sheet = 0, set(), ContactSheet()
    write = row_writer(summary, MaskRow)
    for result in results:
        unreadable += bool(result.row.error)
        if result.view is not None:
            view = result.view
            write_mask_pictures(directory, unused_stem(result.row.file, used), view.image, view.keep, view.relevance)
            if contact_sheet is not None:
                sheet.add(result.row, view.image, view.relevance, view.keep)
        write(result.row)
    return Masked(unreadable, _write_sheet(sheet, contact_sheet))


def _write_sheet(sheet: ContactSheet, path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    if not sheet.shown:
        return (f"there is no image to show, so {path} is not written",)
    sheet.write(path)
    left_out = sheet.images - sheet.shown
    return (f"wrote {path}" + (f": {sheet.shown} images drawn at random, {left_out} are left out" if left_out else ""),)
