"""The commands: parse, call, print, exit code. Imports nothing heavy until a command runs."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cmgcli import needs, ranks
from cmgcli import options as o
from cmgcli.config import as_yaml, one_of
from cmgcli.console import (
    SOME_UNREADABLE,
    detail,
    fail,
    given,
    parse_keep,
    parse_size,
    progress_bar,
    reported,
    say,
    start_messages,
    telling_if_interrupted,
    timed,
)
from cmgcli.errors import SettingsError
from cmgcli.needs import check_needs
from cmgcli.options import AllowMissing, BatchSize, DeviceOption
from cmgcli.streams import among, apart, inputs, make_directory, must_be_writable, output, training_state, write_out
from cmgcli.usage import Command, Group
from cmgcli.words import counted

if TYPE_CHECKING:
    from cmgcli.naming import Phrase

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def main(
    context: typer.Context,
    version: o.Version = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Visual inspection that learns what normal looks like from good images and their captions.

    Example: cmg demo line, then what it says next; cmg COMMAND --help has an example of each command.
    """
    if ranks.started():
        context.with_resource(ranks.joined())
    start_messages(quiet=quiet, verbose=verbose)
    with reported():
        if ranks.size() > 1 and context.invoked_subcommand != "fit":
            raise SettingsError(f"torchrun shares cmg fit among processes, not cmg {context.invoked_subcommand}; run it without; cmg score has --engine ray")


@app.command(cls=Command)
def demo(
    directory: o.DemoDirectory,
    train: o.TrainImages = None,
    test: o.TestImages = None,
    size: o.Size = None,
    seed: o.LineSeed = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Write a captioned inspection line with defects, to try everything on.

    Example: cmg demo line
    """
    with reported():
        from cmgcli.line import write_line

        with timed("drawing the line"):
            metadata = write_line(directory, **given(train=train, test=test, size=size, seed=seed))
        say(f"wrote {metadata}")
        say(f"next: {shlex.join(['cmg', 'fit', '--images', str(directory), '--captions', str(metadata)])}")


@app.command(cls=Command)
def fit(
    context: typer.Context,
    images: o.FitImages = None,
    captions: o.Captions = None,
    caption: o.Caption = None,
    allow_missing: AllowMissing = False,
    config: o.Config = None,
    out: o.ModelOut = Path("model.cmg"),
    resume: o.FitResume = False,
    print_config: o.PrintConfig = False,
    encoder: o.EncoderOption = None,
    false_alarm: o.FalseAlarm = None,
    calibration: o.CalibrationOption = None,
    cmer: o.Cmer = None,
    cmle: o.Cmle = None,
    adapt: o.Adapt = None,
    known_defects: o.KnownDefects = None,
    adapt_steps: o.AdaptSteps = None,
    relevance: o.RelevanceOption = None,
    keep: o.KeepOption = None,
    latent_dim: o.LatentDim = None,
    tile: o.Tile = None,
    overlap: o.Overlap = None,
    projection: o.ProjectionOption = None,
    epochs: o.Epochs = None,
    neighbours: o.Neighbours = None,
    ridge: o.Ridge = None,
    bank_size: o.BankSize = None,
    device: DeviceOption = None,
    batch_size: BatchSize = None,
    precision: o.PrecisionOption = None,
    seed: o.Seed = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Learn what normal looks like; writes a model file.

    Example: cmg fit --images line --captions line/metadata.csv --out model.cmg
    """
    with reported():
        check_needs(context, needs.FIT)
        captions, caption = one_of(context, "captions", "caption")
        known_defects = known_defects if adapt is not False else None
        options = given(
            captions=captions, caption=caption, encoder=encoder, false_alarm=false_alarm, calibration=calibration, cmer=cmer, cmle=cmle, adapt=adapt,
            known_defects=known_defects, adapt_steps=adapt_steps, relevance=relevance, keep=parse_keep(keep), latent_dim=latent_dim, projection=projection, epochs=epochs, neighbours=neighbours, ridge=ridge,
            bank_size=bank_size, tile=tile, overlap=overlap, device=device, batch_size=batch_size, precision=precision, seed=seed, allow_missing=allow_missing or None,
        )  # fmt: skip
        if images is None and not print_config:
            raise SettingsError("cmg fit learns from a directory of good images; give it with --images DIR")
        must_be_writable({"--out": out}, read=(captions, config, images))
        with timed("importing torch"):
            from cmgcli import pipeline

        if print_config:
            if ranks.leads():
                write_out(as_yaml(_defaults(pipeline.fit) | options | {"images": images, "out": out}))
            return
        with timed("fitting in all"), training_state(out, resume) as snapshot, progress_bar() as progress:
            model = pipeline.fit(images, snapshot=snapshot, progress=progress, **options)
            if ranks.leads():
                model.save(out)
        detector = model.detector
        detail(f"encoder {detector.settings.encoder} on {model.encoder.device}")
        if detector.settings.encoder == "builtin":
            say("fitted with the small built-in encoder; --encoder ViT-B-16/laion2b_s34b_b88k understands more captions and finer texture")
        if detector.settings.known_defects:
            say(f"the defect head learnt from {counted(detector.settings.known_defects, 'known bad image')} too; the threshold is of good ones alone")
        say(detector.calibration.sentence)
        say(f"wrote {out}: {counted(detector.fit_images, 'image')} fitted, threshold {detector.calibration.said_threshold}")


def _defaults(engine: Any) -> dict[str, Any]:
    parameters = inspect.signature(engine).parameters
    unset = {name: None if parameter.default is parameter.empty else parameter.default for name, parameter in parameters.items()}
    return {name: value for name, value in unset.items() if name not in ("snapshot", "progress")}


@app.command(cls=Command)
def score(
    context: typer.Context,
    paths: o.Paths,
    model: o.ModelFile = None,
    zero_shot: o.ZeroShotOption = False,
    captions: o.ScoreCaptions = None,
    caption: o.ZeroShotCaption = None,
    encoder: o.ZeroShotEncoder = None,
    images: o.CaptionRoot = None,
    defects: o.Defects = None,
    null: o.Null = False,
    out: o.ScoresOut = None,
    style: o.FormatOption = o.Format.csv,
    resume: o.Resume = False,
    maps: o.Maps = None,
    explain: o.Explain = None,
    explain_all: o.ExplainAll = False,
    junit: o.Junit = None,
    summary: o.Summary = None,
    fail_on_anomaly: o.FailOnAnomaly = False,
    max_anomalies: o.MaxAnomalies = None,
    false_alarm: o.JudgedFalseAlarm = None,
    watch_drift: o.WatchDrift = False,
    fail_on_drift: o.FailOnDrift = False,
    engine: o.EngineOption = o.Engine.local,
    address: o.Address = None,
    device: DeviceOption = None,
    batch_size: BatchSize = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Score images: one row each, in input order, as CSV or JSON Lines.

    Example: find incoming -name '*.png' | cmg score --model model.cmg -
    """
    with reported():
        from cmgcli.fitted import Leaves, score_fitted
        from cmgcli.unfitted import check_options, score_unfitted
        from cmgcli.verdict import limits_of

        gates = {"--fail-on-anomaly": fail_on_anomaly, "--max-anomalies": max_anomalies, "--watch-drift": watch_drift, "--fail-on-drift": fail_on_drift}
        served = gates | {"--junit": junit, "--summary": summary, "--explain": explain, "--explain-all": explain_all, "--defects": defects}
        served |= {"--false-alarm": false_alarm, "--engine ray": engine is o.Engine.ray, "--address": address}
        check_options(zero_shot, model, fitted=served, unfitted={"--caption": caption, "--encoder": encoder})
        check_needs(context, needs.SCORE)
        limits = limits_of(fail_on_anomaly=fail_on_anomaly, max_anomalies=max_anomalies)
        if engine is o.Engine.ray and (maps or explain):
            raise SettingsError(f"--engine ray writes rows, no pictures; leave out {'--maps' if maps else '--explain'}, or score with --engine local")
        files = inputs(paths, nul=null)
        written = {"--out": out, "--junit": junit, "--summary": summary}
        must_be_writable(written, read=(model, captions, defects, *among(written.values(), files)))
        lookup = _lookup(captions, images)
        phrases = _phrases(defects)
        files = apart(files, {"--maps": maps, "--explain": explain}, read=paths)
        jsonl = style is o.Format.jsonl
        if zero_shot:
            score_unfitted(
                files, lookup, out=out, jsonl=jsonl, resume=resume, maps=maps, caption=caption, encoder=encoder, device=device, batch_size=batch_size
            )  # fmt: skip
            return
        leaves = Leaves(rows=out, maps=maps, explain=explain, junit=junit, summary=summary, jsonl=jsonl, explain_all=explain_all)
        score_fitted(
            files, lookup, model=model, leaves=leaves, resume=resume, live=paths == ["-"], phrases=phrases,
            limits=limits, watch_drift=watch_drift, fail_on_drift=fail_on_drift,
            ray=engine is o.Engine.ray, false_alarm=false_alarm, address=address, device=device, batch_size=batch_size,
        )  # fmt: skip


def _lookup(captions: Path | None, images: Path | None) -> Mapping[Path, str] | None:
    if captions is None:
        return None
    from cmgcli.dataset import read_lookup

    return read_lookup(captions, images or captions.parent)


def _phrases(defects: Path | None) -> tuple[Phrase, ...] | None:
    if defects is None:
        return None
    with timed("importing torch"):
        from cmgcli.naming import read_phrases
    return read_phrases(defects)


@app.command(cls=Command)
def mask(
    images: o.Images,
    out: o.MaskOut,
    contact_sheet: o.ContactSheetOption = None,
    captions: o.Captions = None,
    caption: o.Caption = None,
    allow_missing: AllowMissing = False,
    encoder: o.EncoderOption = None,
    relevance: o.RelevanceOption = None,
    keep: o.KeepOption = None,
    device: DeviceOption = None,
    batch_size: BatchSize = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Show which part of each image matters for its caption (CMER): a keep mask, a relevance map and an overlay each, and summary.csv.

    Example: cmg mask --images line --captions line/metadata.csv --out masks
    """
    with reported():
        options = given(
            captions=captions, caption=caption, encoder=encoder, relevance=relevance, keep=parse_keep(keep), device=device,
            batch_size=batch_size, allow_missing=allow_missing or None,
        )  # fmt: skip
        make_directory(out, "--out", read=(images,))
        must_be_writable({"--out": out / "summary.csv", "--contact-sheet": contact_sheet}, read=(captions, images))
        if contact_sheet is not None and contact_sheet.suffix.lower() != ".png":
            raise SettingsError(f"--contact-sheet writes a PNG file, and {contact_sheet} is not named as one; end its name with .png")
        with timed("importing torch"):
            from cmgcli import masking, pipeline

        results = pipeline.mask(images, **options)
        with output(out / "summary.csv") as stream, timed("masking"), telling_if_interrupted(f"{out / 'summary.csv'} has a row of each image that was done"):
            masked = masking.write_masks(results, out, stream, contact_sheet=contact_sheet)
        for sentence in (f"wrote {out / 'summary.csv'}", *masked.sentences):
            say(sentence)
        if masked.unreadable:
            fail(f"{counted(masked.unreadable, 'image')} could not be read; see the column error")
            raise typer.Exit(SOME_UNREADABLE)


@app.command(cls=Command)
def export(
    model: o.ModelFile,
    size: o.ImageSize,
    out: o.GraphOut = Path("model.onnx"),
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Write a model as one ONNX graph, image in, score and anomaly map out, that runs without torch.

    Example: cmg export --model model.cmg --size 256x256 --out model.onnx
    """
    with reported():
        shape = parse_size(size)
        must_be_writable({"--out": out}, read=(model,))
        from cmgcli.fitted import load_model

        fitted = load_model(model, "cpu")
        from cmgcli.export import export_onnx

        with timed("exporting"):
            export_onnx(fitted, out, size=shape)
        say(f"wrote {out}: images of {shape[0]} x {shape[1]}, {counted(len(fitted.detector.language.captions), 'caption')}")


@app.command("eval", cls=Command)
def evaluate(
    context: typer.Context,
    model: o.EvaluatedModel = None,
    scores: o.EvaluatedScores = None,
    images: o.EvaluatedImages = None,
    labels: o.Labels = None,
    defects: o.EvaluatedDefects = None,
    false_alarm: o.JudgedFalseAlarm = None,
    min_auroc: o.MinAuroc = None,
    max_false_alarm: o.MaxFalseAlarm = None,
    max_miss: o.MaxMiss = None,
    ablate: o.Ablate = False,
    adapt_steps: o.AblationSteps = None,
    stress: o.StressOption = False,
    stress_images: o.StressImages = None,
    json_file: o.JsonFile = None,
    report_file: o.ReportFile = None,
    device: DeviceOption = None,
    batch_size: BatchSize = None,
    allow_missing: AllowMissing = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Measure a model, or a scores file, on labelled images; with gates, the exit code says whether it is good enough.

    Example: cmg eval --model model.cmg --images line --labels line/metadata.csv --report report.html --min-auroc 0.8
    """
    with reported():
        from cmgcli import audit, page, report
        from cmgcli.publish import publish

        if (model is None) == (scores is None):
            raise SettingsError("give one of --model FILE, to score the images now, and --scores FILE, which cmg score wrote")
        check_needs(context, needs.EVAL)
        must_be_writable({"--json": json_file, "--report": report_file}, read=(model, scores, labels, defects, images))
        options = given(allow_missing=allow_missing or None, exhibits=None if report_file is None else page.EXHIBITS)
        if model is None:
            content = audit.audit_scores(scores, images, labels, options, command=sys.argv[1:])
        else:
            if images is None:
                raise SettingsError("--model scores the images now; give their directory with --images")
            options |= given(batch_size=batch_size, phrases=_phrases(defects))
            steps = (adapt_steps or 0) if ablate else None
            judged = "--max-false-alarm" if max_false_alarm is not None else "--max-miss" if max_miss is not None else None
            extras = given(stress=stress, stress_images=stress_images, device=device, false_alarm=false_alarm, judged=judged)
            with progress_bar() as progress, telling_if_interrupted("to evaluate in steps: cmg score --out FILE --resume, then cmg eval --scores FILE"):
                content = audit.audit_model(model, images, labels, options, command=sys.argv[1:], ablate=steps, progress=progress, **extras)
        content = replace(content, gates=report.gates(content.result, min_auroc=min_auroc, max_false_alarm=max_false_alarm, max_miss=max_miss))
        publish(content, json_file, report_file)
