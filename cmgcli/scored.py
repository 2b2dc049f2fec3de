"""An evaluation without a model: scores that were written before, joined with labels."""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath

from cmgcli.dataset import Record, read_dataset, read_lines, test_records
from cmgcli.errors import DatasetError, ImageError, SettingsError
from cmgcli.exhibits import Worst, exhibit
from cmgcli.figures import evaluation_of, labelled
from cmgcli.files import resolved
from cmgcli.images import read_image, read_mask
from cmgcli.report import Case, Evaluation, Exhibit
from cmgcli.rows import Row, read_scores

_SKIP = "or go on without it by --allow-missing"


@dataclass(frozen=True)
class Label:
    """A record and where it stands, to name in a message."""

    record: Record
    where: str


def evaluate_scores(
    scores: Path | str,
    labels: Path | str | None = None,
    images: Path | str | None = None,
    *,
    exhibits: int = 0,
    allow_missing: bool = False,
) -> Evaluation:
    """The metrics of a scores file; the rates are those of its column `anomalous`. The images need not be there.

    A row and a label belong together where their paths resolve to the same file, else where the file name of one is the
    end of the other's (`images/a.png` and `/data/line/images/a.png`).

    Args:
        labels: dataset file with a `label` column; None for the folder layout of ``images``. Of a file with splits only
            ``test`` is used.
        images: folder that the labels' paths are relative to; None: the labels' own.
        exhibits: how many of the worst misses and of the worst false alarms are kept, with pictures where the images are.
        allow_missing: leave out, and log, rows without a label and labels without a row.
    Raises:
        DatasetError: the files cannot be read or do not line up; names file and row.
        SettingsError: neither labels nor images.
    """
    known = _read_labels(labels, images)
    rows = read_scores(scores)
    _check_rows(rows, scores)
    partners = _join(rows, known, scores, labels or images, allow_missing)
    test = {record.path for record in test_records(label.record for label in known)}
    cases = []
    for label in known:
        if label.record.path not in test:
            continue
        if label.record.path in partners:
            row, mask = partners[label.record.path], label.record.mask
            area = None if mask is None else float(read_mask(mask).mean())
            cases.append(Case(replace(label.record, text=label.record.text or row.caption), row, area))
        else:
            _leave_out(f"{label.where}: {label.record.file_name!r} has no row in {str(scores)!r}: score it too", allow_missing)
    labelled([case.record for case in cases], labels or images)
    worst = Worst(exhibits)
    for case in cases:
        if not case.row.error:
            worst.offer(case, partial(_exhibit, case))
    return evaluation_of(cases, worst, threshold=None, promised=None)


def _read_labels(labels: Path | str | None, images: Path | str | None) -> tuple[Label, ...]:
    if labels is None and images is None:
        raise SettingsError("--scores needs the truth: give --labels FILE, or --images DIR of a folder layout")
    if labels is None:
        return tuple(Label(record, str(images)) for record in read_dataset(Path(images)).records)
    labels = Path(labels)
    found: dict[Path, Label] = {}
    for _, where, record in read_lines(labels, labels.parent if images is None else Path(images), need_masks=False, need_text=False):
        if record.path in found:
            raise DatasetError(f"{where}: {record.file_name!r} is also in {found[record.path].where}: keep one of the two")
        found[record.path] = Label(record, where)
    return tuple(found.values())


def _check_rows(rows: Sequence[Row], scores: Path | str) -> None:
    for number, row in enumerate(rows, 1):
        where = f"{str(scores)!r}, row {number} ({row.file!r})"
        if row.error:
            continue
        if row.score is None:
            raise DatasetError(f"{where}: expected a score or an error, found neither: score the image again")
        if not math.isfinite(row.score):
            raise DatasetError(f"{where}: expected a finite score, got {row.score}: score the image again, or remove the row")
        if row.anomalous is None:
            raise DatasetError(f"{where}: expected 0 or 1 in the column anomalous, found nothing: a run of --zero-shot has no threshold; score the image by a model")


def _join(
    rows: Sequence[Row], known: Sequence[Label], scores: Path | str, source: Path | str, allow_missing: bool
) -> dict[Path, Row]:
    """The row of each label that has one, by the label's path."""
    by_path = {label.record.path: label for label in known}
    by_name: dict[str, list[Label]] = {}
    for label in known:
        by_name.setdefault(label.record.path.name, []).append(label)
    joined: dict[Path, Row] = {}
    first: dict[Path, int] = {}
    for number, row in enumerate(rows, 1):
        where = f"{str(scores)!r}, row {number}: {row.file!r}"
        label = by_path.get(resolved(row.file)) or _by_ending(row.file, by_name, where)
        if label is None:
            _leave_out(f"{where} is not in {str(source)!r}: add it there with its label", allow_missing)
            continue
        path = label.record.path
        if path in joined:
            raise DatasetError(f"{where} is scored in row {first[path]} too ({label.where}): keep one of the two")
        joined[path], first[path] = row, number
    return joined


def _by_ending(file: str, by_name: dict[str, list[Label]], where: str) -> Label | None:
    """The label whose file name ends as the row's does, as far as both go; None where there is none."""
    parts = _parts(file)
    alike = [label for label in by_name.get(parts[-1], ()) if _end_alike(parts, _parts(label.record.file_name))] if parts else []
    if len(alike) > 1:
        raise DatasetError(f"{where} may be {alike[0].where} or {alike[1].where}: score the images by a longer path")
    return alike[0] if alike else None


def _parts(file: str) -> tuple[str, ...]:
    return tuple(part for part in PurePath(os.path.normpath(file)).parts if part not in ("..", os.sep))


def _end_alike(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    shorter = min(len(one), len(other))
    return one[-shorter:] == other[-shorter:]


def _leave_out(problem: str, allow_missing: bool) -> None:
    if not allow_missing:
        raise DatasetError(f"{problem}, {_SKIP}")
    logging.getLogger(__name__).warning("left out: %s", problem)


def _exhibit(case: Case) -> Exhibit:
    """The case with its picture, where the image is there and sound."""
    try:
        return exhibit(case, read_image(case.record.path))
    except ImageError:
        return Exhibit(case)
