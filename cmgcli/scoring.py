"""A scoring run: the rows of the inputs in their order, and the pictures of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

from cmgcli.errors import SettingsError
from cmgcli.explain import explain
from cmgcli.files import resolved
from cmgcli.loader import BATCH
from cmgcli.model import MAP_CALM, MAP_STRANGE, Inspection, Model
from cmgcli.naming import SEPARATOR, Namer, Phrase
from cmgcli.pictures import unused_stem, write_map_pictures
from cmgcli.placard import write_placard
from cmgcli.rows import NamedRow, Row
from cmgcli.view import View

P_READ_BACK = 1e-6
READ_BACK = 1e-5  # what a score loses at most where it is written and read
ALIKE = 0.01  # by which a score may differ where another machine goes on


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
        return f"tiles skipped, where CMER kept nothing: {skipped} of {self.total}, which saved {skipped / self.total:.0%} of the work on tiles"


def score_files(
    model: Model,
    files: Iterable[str],
    captions: Mapping[Path, str] | None = None,
    *,
    done: Sequence[Row] = (),
    maps: Path | None = None,
    explained: Path | None = None,
    explain_all: bool = False,
    phrases: Sequence[Phrase] | None = None,
    live: bool = False,
    work: TileWork | None = None,
    batch_size: int | str = BATCH,
) -> Iterator[Row]:
    """`Model.inspect`, with the pictures of an image on disk before its row comes.

    A run that goes on gives the rows of an undisturbed run to the last digit, see `last_batch` (not where `live`: there the
    clock makes the batches).

    Args:
        files: those without a row.
        done: rows of an earlier run, whose pictures have their names already.
        maps: directory for the pictures of `pictures.write_map_pictures`; None: none.
        explained: directory for a page on each anomalous image, or on each image where ``explain_all`` says so; see `placard`.
        phrases: give rows the defects of the anomalous images, as `rows.NamedRow`; see `naming`.
        work: counts the tiles.
    Raises:
        SettingsError: the rows that are done are not by this model or these captions.
    """
    namer = None if phrases is None else Namer(model.encoder, phrases)
    used = used_stems(done if maps or explained else ())
    pictured = maps is not None or explained is not None or namer is not None
    at_once = model.images_at_once(batch_size)
    again = [] if live else last_batch(done, at_once)
    inspections = model.inspect(chain((row.file for row in again), files), captions, batch_size=at_once, live=live, maps=pictured)
    for inspection in after(again, inspections):
        if work is not None and inspection.view is not None:
            work.add(inspection.view)
        if inspection.anomaly_map is not None and (maps or explained):
            stem = unused_stem(inspection.row.file, used)
            if maps is not None:
                write_maps(inspection, maps, stem)
            if explained is not None and (explain_all or inspection.row.anomalous):
                write_placard(explain(model, inspection), explained, stem)
        yield inspection.row if namer is None else _named(namer, inspection)


def last_batch(done: Sequence[Row], at_once: int) -> Sequence[Row]:
    """The rows of the batch in which an earlier run ended.

    On some machines the last digit of a score depends on the images that share its batch, so a run that goes on starts with these;
    and they show whether it is the same run, see `after`.
    """
    return done[max(0, len(done) - 1) // at_once * at_once :]


def after(done: Sequence[Row], inspections: Iterator[Inspection]) -> Iterator[Inspection]:
    """The inspections but for the first, of images that have a row; SettingsError where their scores are not those of the rows."""
    for row, inspection in zip(done, inspections, strict=False):
        now = inspection.row
        if row.caption and now.caption and row.caption != now.caption:
            raise SettingsError(f"--resume: {row.file} has the caption {row.caption!r} in the file and {now.caption!r} now; give the --captions that the file was begun with, or another --out")
        if None not in (row.score, now.score) and not math.isclose(row.score, now.score, rel_tol=ALIKE, abs_tol=ALIKE):
            raise SettingsError(
                f"--resume: {row.file} has score {row.score:g} in the file and {now.score:.6g} now: another model, other captions or other images; "
                "give what the file was begun with, or another --out"
            )
    yield from inspections


def used_stems(done: Iterable[Row]) -> dict[str, int]:
    """The names that the pictures of an earlier run's rows have; see `pictures.unused_stem`."""
    used: dict[str, int] = {}
    for row in done:
        if not row.error:
            unused_stem(row.file, used)
    return used


def write_maps(inspection: Inspection, directory: Path, stem: str) -> None:
    """`pictures.write_map_pictures` of an image that was scored with its map, on the scale of all maps."""
    write_map_pictures(directory, stem, inspection.view.image, inspection.anomaly_map, low=MAP_CALM, high=MAP_STRANGE)


def _named(namer: Namer, inspection: Inspection) -> NamedRow:
    row = NamedRow(**asdict(inspection.row))
    if not row.anomalous:
        return row
    defects = namer.defects(inspection)
    return replace(row, defect=SEPARATOR.join(defect.name for defect in defects), defect_score=defects[0].score)


def check_judged_alike(model: Model, rows: Iterable[Row], captions: Mapping[Path, str] | None = None) -> None:
    """Raise SettingsError where a row of a run that is gone on with was judged by another threshold, rate or caption, or by none."""
    calibration, language = model.detector.calibration, model.detector.language
    for row in rows:
        if row.score is not None and row.anomalous is None:
            raise SettingsError(f"--resume: {row.file} was scored by --zero-shot, without a model; go on with --zero-shot, or give another --out")
        named = captions.get(resolved(row.file)) if captions else None
        if not row.error and row.caption != named and (named is not None or row.caption not in language.number):
            now = "none that the model knows" if named is None else repr(named)
            raise SettingsError(f"--resume: {row.file} was scored by the caption {row.caption!r}, now it has {now}; give the --captions that the file was begun with, or another --out")
        if row.score is not None and row.p_value is not None:
            least, most = (calibration.p_value(row.score * (1 + rounding), language.group_of(row.caption)) for rounding in (READ_BACK, -READ_BACK))
            if not least - P_READ_BACK <= row.p_value <= most + P_READ_BACK:
                raise SettingsError(
                    f"--resume: {row.file} has the p-value {row.p_value:g}, which is {least:.3g} now: another model or --false-alarm; "
                    "give those that the file was begun with, or another --out"
                )
        threshold = model.detector.threshold_of(row.caption)
        if row.score is None or math.isclose(row.score, threshold, rel_tol=READ_BACK):
            continue
        if row.anomalous != (row.score > threshold):
            verdict = "anomalous" if row.anomalous else "normal"
            raise SettingsError(
                f"--resume: {row.file} with score {row.score:g} is called {verdict}, which the threshold {threshold:.4g} of this run does not; "
                "give the --model and --false-alarm that the file was begun with, or another --out"
            )
