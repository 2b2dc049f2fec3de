"""A scoring run: the rows of the inputs in their order, and the pictures of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

from cmgcli.loader import BATCH
from cmgcli.model import MAP_CALM, MAP_STRANGE, Model
from cmgcli.pictures import unused_stem, write_map_pictures
from cmgcli.rows import Row


def score_files(
    model: Model,
    files: Iterable[str],
    captions: Mapping[Path, str] | None = None,
    *,
    done: Sequence[Row] = (),
    maps: Path | None = None,
    live: bool = False,
    batch_size: int = BATCH,
) -> Iterator[Row]:
    """`Model.inspect`, with the pictures of an image on disk before its row comes.

    The last digit of a score may depend on the images that share its batch. So a run that goes on starts with the whole batch in
    which the earlier one ended, and gives the rows that an undisturbed run gives, to the last digit (not where `live`: there the
    clock makes the batches).

    Args:
        files: those without a row.
        done: rows of an earlier run, whose pictures have their names already.
        maps: directory for the pictures of `pictures.write_map_pictures`; None: none.
    """
    used: set[str] = set()
    for row in done:
        if not row.error:
            unused_stem(row.file, used)
    again = 0 if live else len(done) % batch_size
    files = chain([row.file for row in done[len(done) - again :]], files)
    inspections = model.inspect(files, captions, batch_size=batch_size, live=live, maps=maps is not None)
    for inspection in islice(inspections, again, None):
        if inspection.anomaly_map is not None:
            stem = unused_stem(inspection.row.file, used)
            write_map_pictures(maps, stem, inspection.view.image, inspection.anomaly_map, low=MAP_CALM, high=MAP_STRANGE)
        yield inspection.row


def threshold_of(model: Model, row: Row) -> float:
    """The score above which the row's image is anomalous: its caption's own threshold where there is one."""
    language = model.detector.language
    known = language.guided and row.caption in language.captions
    return model.detector.calibration.threshold(language.captions.index(row.caption) if known else None)
