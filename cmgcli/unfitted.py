"""A scoring run without a model, from its options to its rows. Imports nothing heavy before the options are checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cmgcli.console import SOME_UNREADABLE, fail, given, say, telling_if_interrupted, timed
from cmgcli.errors import SettingsError
from cmgcli.rows import Row, begun, cut_torn_row, rest_of, resume_scores, row_writer
from cmgcli.streams import output
from cmgcli.words import counted

if TYPE_CHECKING:
    from cmgcli.zeroshot import ZeroShot


def check_options(zero_shot: bool, model: Path | None, *, fitted: Mapping[str, Any], unfitted: Mapping[str, Any]) -> None:
    """Raise SettingsError where options do not go together.

    Args:
        fitted, unfitted: the options that only a model can serve, and those that a model has no use for; None or False: not given.
    """
    if zero_shot and model is not None:
        raise SettingsError("--zero-shot scores without a model and --model with one; give one of the two")
    if not zero_shot and model is None:
        raise SettingsError("give --model FILE, which cmg fit writes, or --zero-shot --caption TEXT to score without a model")
    for option, value in (fitted if zero_shot else unfitted).items():
        if value is None or value is False:
            continue
        if zero_shot:
            raise SettingsError(f"{option} needs a fitted model, and --zero-shot has none: without good parts nothing can be promised; make one with cmg fit, or leave {option} out")
        raise SettingsError(f"{option} is for --zero-shot; a model has it from its fit, so leave it out")


def score_unfitted(
    files: Iterable[str],
    captions: Mapping[Path, str] | None,
    *,
    out: Path | None,
    jsonl: bool,
    resume: bool,
    maps: Path | None,
    caption: str | None,
    encoder: str | None,
    device: str | None,
    batch_size: int | str | None,
) -> None:
    """Score all files against each other and write their rows; all paths are read first, for each image is compared with the others.

    caption, encoder, device, batch_size: as in `zeroshot.zero_shot`; None is its default.
    """
    files = list(files)
    done = resume_scores(out, jsonl=jsonl) if resume else ()
    rest = list(rest_of(files, done))
    judged = next((row for row in done if row.anomalous is not None), None)
    if judged is not None:
        raise SettingsError(f"--resume: {judged.file} was judged by a model; go on with --model, or give another --out")
    with timed("importing torch"):
        from cmgcli.zeroshot import NO_PROMISE, zero_shot

    unreadable = sum(bool(row.error) for row in done)
    if not files:
        raise SettingsError("--zero-shot compares the images of a run with each other, and no image was given")
    with timed("looking at a sample of the images"):
        scorer = zero_shot(files, captions, **given(caption=caption, encoder=encoder, device=device, batch_size=batch_size))
    say(NO_PROMISE)
    if len(files) < 8:
        say(f"little of what is normal can be told from {counted(len(files), 'image')}; the more there are, and the fewer of them are bad, the better")
    found = _rows(scorer, rest, done, maps, batch_size)
    if done:
        found = begun(found)
        cut_torn_row(out, jsonl=jsonl)
    partial = nullcontext() if out is None else telling_if_interrupted(f"{out} has a row of each image that was done; --resume goes on after them")
    with output(out, append=bool(done)) as stream, timed("scoring"), partial:
        write = row_writer(stream, header=not done, jsonl=jsonl)
        for row in found:
            write(row)
            unreadable += bool(row.error)
    if unreadable:
        fail(f"{counted(unreadable, 'input')} could not be scored; see the column error")
        raise typer.Exit(SOME_UNREADABLE)


def _rows(scorer: ZeroShot, files: Sequence[str], done: Sequence[Row], maps: Path | None, batch_size: int | str | None) -> Iterator[Row]:
    """The rows, each with its pictures on disk before it comes."""
    from cmgcli.loader import BATCH
    from cmgcli.pictures import unused_stem
    from cmgcli.scoring import after, last_batch, used_stems, write_maps
    from cmgcli.view import images_at_once

    at_once = images_at_once(scorer.encoder, batch_size or BATCH)
    used, again = used_stems(done), last_batch(done, at_once)
    inspections = scorer.inspect([*(row.file for row in again), *files], batch_size=at_once, maps=maps is not None)
    for inspection in after(again, inspections):
        if inspection.anomaly_map is not None:
            write_maps(inspection, maps, unused_stem(inspection.row.file, used))
        yield inspection.row
