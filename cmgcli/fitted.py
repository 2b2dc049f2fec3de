"""A scoring run by a model, from its options to its exit code. Imports nothing heavy before the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cmgcli.console import GATE_FAILED, SOME_UNREADABLE, detail, fail, given, say, timed
from cmgcli.drift import DriftWatch
from cmgcli.files import resolved
from cmgcli.rows import NamedRow, Row, begun, cut_torn_row, rest_of, resume_scores, row_writer
from cmgcli.streams import output
from cmgcli.verdict import Limit, Tally, Verdict
from cmgcli.words import counted

if TYPE_CHECKING:
    from cmgcli.model import Model
    from cmgcli.naming import Phrase


@dataclass(frozen=True)
class Leaves:
    """What a run is to leave, each at its path; None: not that, but for the rows, which then go to standard output."""

    rows: Path | None
    maps: Path | None
    explain: Path | None
    junit: Path | None
    summary: Path | None
    jsonl: bool  # the rows as JSON Lines
    explain_all: bool  # a page on each image, not only on the anomalous ones


def score_fitted(
    files: Iterable[str],
    captions: Mapping[Path, str] | None,
    *,
    model: Path,
    leaves: Leaves,
    resume: bool,
    live: bool,
    phrases: Sequence[Phrase] | None,
    limits: Sequence[Limit],
    watch_drift: bool,
    fail_on_drift: bool,
    ray: bool,
    false_alarm: float | None,
    address: str | None,
    device: str | None,
    batch_size: int | str | None,
) -> None:
    """Score the files, write each row when it is done, then what is about the whole run; a gate that failed ends the program.

    Args:
        resume: go on after the last whole row of ``leaves.rows``.
        live: the files come from a pipe.
        phrases: name the defects, see `naming`; None: do not.
        false_alarm: the promised rate whose threshold judges; None: that of the fit. address, device, batch_size: None is the engine's default.
    Raises:
        CmgError: something cannot be read or written. typer.Exit: a gate failed, or an input could not be read.
    """
    began = datetime.now().astimezone()
    kind = Row if phrases is None else NamedRow
    done = resume_scores(leaves.rows, jsonl=leaves.jsonl, kind=kind) if resume else ()
    files = rest_of(files, done)
    fitted = load_model(model, "cpu" if ray else device, false_alarm)  # the actors of a cluster have the devices
    from cmgcli.scoring import TileWork, check_judged_alike, score_files

    check_judged_alike(fitted, done, captions)
    if limits:
        fitted.detector.calibration.demand(limits[0].option)

    calibration = fitted.detector.calibration
    watch = DriftWatch(calibration.scores, calibration.groups, exact=calibration.method == "split") if watch_drift or fail_on_drift else None
    tally = Tally(keep=leaves.junit is not None or leaves.summary is not None, watch=watch, group_of=fitted.detector.language.group_of)
    for row in done:
        tally.add(row)
    if tally.drifted:
        fail(watch.sentence)
    work, told = TileWork(), Told(captions, fitted.detector.language.number if fitted.detector.language.guided else None)
    if ray:
        from cmgcli.engine_ray import score_on_ray

        found = score_on_ray(model, files, captions, **given(phrases=phrases, false_alarm=false_alarm, address=address, device=device, batch_size=batch_size))
    else:
        extras = given(phrases=phrases, maps=leaves.maps, explained=leaves.explain, batch_size=batch_size)
        found = score_files(fitted, files, captions, done=done, explain_all=leaves.explain_all, live=live, work=work, **extras)
    judged = bool(limits) or fail_on_drift or leaves.junit is not None or leaves.summary is not None  # the whole run, whoever reads its rows
    if done:
        found = begun(found)  # the last refusal comes with the first row
        cut_torn_row(leaves.rows, jsonl=leaves.jsonl)
    with output(leaves.rows, append=bool(done), lasting=judged) as stream, timed("scoring"):
        _write(found, row_writer(stream, kind, header=not done, jsonl=leaves.jsonl), tally, told, leaves.rows)
    for sentence in filter(None, (work.sentence, *told.sentences)):
        say(sentence)
    if watch is not None and watch.alarm is None:
        say(watch.sentence)
    if leaves.explain is not None and not leaves.explain_all and not tally.anomalies:
        say("no image is anomalous, so there is nothing to explain; --explain-all explains the others too")
    _conclude(tally.verdict(limits, fail_on_drift=fail_on_drift), fitted, began, leaves)


def load_model(file: Path, device: str | None, false_alarm: float | None = None) -> Model:
    """The model of a file; says what it promises at another rate than that of its fit, and where it cannot promise anything."""
    with timed("importing torch"):
        from cmgcli.model import Model
    with timed("importing open_clip and loading the model"):
        model = Model.load(file, **given(device=device, false_alarm=false_alarm))
    detail(f"encoder {model.encoder.name} on {model.encoder.device}")
    if false_alarm is not None or len(model.detector.calibration.scores) == 0:
        say(model.detector.calibration.sentence)
    return model


class Told:
    """What is worth a line about the captions of a run: a caption file that names other files would go unnoticed."""

    def __init__(self, captions: Mapping[Path, str] | None, known: Container[str] | None) -> None:
        """known: the captions of the model; None where it is not asked by them."""
        self.captions, self.known = captions, known
        self.images = self.without = 0
        self.strange: dict[str, int] = {}  # images by a caption that the model does not know

    def add(self, row: Row) -> None:
        """Look at one row."""
        if self.captions is None or row.error:
            return
        self.images += 1
        self.without += resolved(row.file) not in self.captions
        if self.known is not None and row.caption not in self.known:
            self.strange[row.caption] = self.strange.get(row.caption, 0) + 1

    @property
    def sentences(self) -> Iterator[str]:
        """A line for each thing to say."""
        if self.without:
            yield (
                f"the caption file names no caption for {self.without} of {counted(self.images, 'image')}: each was judged by the "
                "caption of the model that fits it best" + (", which cannot tell a wrong part" if self.known is not None else "")
            )
        if self.strange:
            first, others = next(iter(self.strange)), len(self.strange) - 1
            more = f" and {counted(others, 'other caption')}" if others else ""
            yield f"the model was not fitted on {first!r}{more} ({counted(sum(self.strange.values()), 'image')}): judged by the captions nearest in meaning"


def _write(found: Iterable[Row], write: Callable[[Row], None], tally: Tally, told: Told, out: Path | None) -> None:
    try:
        for row in found:
            write(row)
            told.add(row)
            before = tally.drifted
            tally.add(row)
            if tally.drifted and not before:
                fail(f"{tally.watch.sentence}: {row.file}")
    except KeyboardInterrupt:
        if out is not None:
            say(f"{out} has {counted(tally.images, 'row')}; --resume goes on from there")
        raise


def _conclude(verdict: Verdict, model: Model, began: datetime, leaves: Leaves) -> None:
    """The files about the whole run, and the exit code: a failed gate beats an unreadable input."""
    from cmgcli.reasons import excess_of, reason, short_reason

    blend = model.detector.blend
    if leaves.junit is not None:
        from cmgcli.junit import write_junit

        seconds = (datetime.now().astimezone() - began).total_seconds()
        write_junit(
            verdict,
            leaves.junit,
            threshold=lambda row: model.detector.threshold_of(row.caption),
            why=lambda row: reason(excess_of(blend, row)),
            began=began,
            seconds=seconds,
        )
    if leaves.summary is not None:
        from cmgcli.step_summary import append_summary

        append_summary(verdict, leaves.summary, why=lambda row: short_reason(excess_of(blend, row)))
    if verdict.unreadable:
        fail(f"{counted(verdict.unreadable, 'input')} could not be read; see the column error")
    for failure in verdict.failures:
        fail(f"gate failed: {failure}")
    if verdict.failures:
        raise typer.Exit(GATE_FAILED)
    if verdict.unreadable:
        raise typer.Exit(SOME_UNREADABLE)
