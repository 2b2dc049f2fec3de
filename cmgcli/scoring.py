"""A scoring run: the rows of the inputs in their order, and the pictures of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cmgcli.loader import BATCH
from cmgcli.model import MAP_CALM, MAP_STRANGE, Model
from cmgcli.pictures import unused_stem, write_map_pictures
from cmgcli.rows import Row
from cmgcli.view import View


class TileWork:
    """Counts the tiles of a run: those that were looked at, and those that CMER let skip."""

    def __init__(self) -> None:
        self.looked = self.total = 0

    def add(self, view: View) -> None:
        """Count the tiles of one image; none where it is seen as a whole."""
        self.looked += len(view.tiles)
        self.total += view.tile_count

    @property
    def sentence(self) -> str:
        """What was saved; empty where no image had tiles."""
        if not self.total:
            return ""
        skipped = self.total - self.looked
        return f"{skipped} of {self.total} tiles were skipped, where CMER kept nothing: {skipped / self.total:.0%} of the work on tiles saved"


def score_files(
    model: Model,
    files: Iterable[str],
    captions: Mapping[Path, str] | None = None,
    *,
    done: Sequence[Row] = (),
    maps: Path | None = None,
    live: bool = False,
    work: TileWork | None = None,
    batch_size: int = BATCH,
) -> Iterator[Row]:
    """`Model.inspect`, with the pictures of an image on disk before its row comes.

    Args:
        done: rows of an earlier run, whose pictures have their names already.
        maps: directory for the pictures of `pictures.write_map_pictures`; None: none.
        work: counts the tiles.
    """
    used: set[str] = set()
    for row in done:
        if not row.error:
            unused_stem(row.file, used)
    for inspection in model.inspect(files, captions, batch_size=batch_size, live=live, maps=maps is not None):
        if work is not None and inspection.view is not None:
            work.add(inspection.view)
        if inspection.anomaly_map is not None:
            stem = unused_stem(inspection.row.file, used)
            write_map_pictures(maps, stem, inspection.view.image, inspection.anomaly_map, low=MAP_CALM, high=MAP_STRANGE)
        yield inspection.row


def threshold_of(model: Model, row: Row) -> float:
    """The score above which the row's image is anomalous: its caption's own threshold where there is one."""
    language = model.detector.language
    known = language.guided and row.caption in language.captions
    return model.detector.calibration.threshold(language.captions.index(row.caption) if known else None)
