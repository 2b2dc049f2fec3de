"""The commands: parse, call, print, exit code. Imports nothing heavy until a command runs."""

from __future__ import annotations

import inspect
import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from cmgcli.console import (
    GATE_FAILED,
    SOME_UNREADABLE,
    given,
    make_directory,
    output,
    parse_keep,
    progress_bar,
    read_config,
    reported,
    rest_of,
    say,
    stdin_paths,
    unused_stem,
)
from cmgcli.errors import OutputError, SettingsError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Visual inspection that learns what normal looks like from good images and their captions.",
)


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Relevance(str, Enum):
    fast = "fast"
    sampled = "sampled"
    occlusion = "occlusion"


Images = Annotated[Path, typer.Option(help="Directory of the images.", show_default=False)]
Captions = Annotated[Optional[Path], typer.Option(help="CSV, TSV or JSONL with file_name and text; none: NAME.txt files or an MVTec AD layout.")]
Caption = Annotated[Optional[str], typer.Option(help="One caption for all images, instead of a file.")]
ModelFile = Annotated[Path, typer.Option(help="Model file made by cmg fit.", show_default=False)]
DeviceOption = Annotated[Optional[Device], typer.Option(help="Where to compute; auto takes the GPU where there is one.", show_default="auto")]
EncoderOption = Annotated[Optional[str], typer.Option(help="builtin, NAME/TAG, NAME@FILE or local-dir:DIR.", show_default="builtin")]
RelevanceOption = Annotated[Optional[Relevance], typer.Option(help="Relevance estimator of CMER.", show_default="fast where the encoder allows, else sampled")]
KeepOption = Annotated[Optional[str], typer.Option(help="Share of the patches that CMER keeps, or auto.", show_default="auto")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Go on where an image has no caption or a caption no image, and list them.")]
BatchSize = Annotated[Optional[int], typer.Option(min=1, help="Images per forward pass; does not change a score.", show_default="16")]


def version(show: bool) -> None:
    if show:
        from importlib.metadata import version as installed

        print(" ".join(f"{package} {installed(package)}" for package in ("cmgcli", "torch", "open_clip_torch")))
        raise typer.Exit


@app.callback()
def main(show_version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print versions and exit.")] = False) -> None:
    """Visual inspection that learns what normal looks like from good images and their captions."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("cmg: %(message)s"))
    logger = logging.getLogger("cmgcli")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)


# ---- commands


@app.command()
def demo(
    directory: Annotated[Path, typer.Argument(help="Directory to write; made if it does not exist.", show_default=False)],
    train: Annotated[Optional[int], typer.Option(min=1, help="Flawless images to fit on.", show_default="240")] = None,
    test: Annotated[Optional[int], typer.Option(min=2, help="Test images, half of them defective.", show_default="120")] = None,
    size: Annotated[Optional[int], typer.Option(min=32, help="Side of the images in pixels.", show_default="256")] = None,
    seed: Annotated[Optional[int], typer.Option(help="Another seed, another line.", show_default="0")] = None,
) -> None:
    """Write a captioned inspection line with defects, to try everything on.

    Example: cmg demo line
    """
    with reported():
        from cmgcli.line import write_line

        metadata = write_line(directory, **given(train=train, test=test, size=size, seed=seed))
        say(f"wrote {metadata}")
        say(f"next: cmg fit --images {directory} --captions {metadata}")


@app.command()
def fit(
    images: Images,
    captions: Captions = None,
    caption: Caption = None,
    out: Annotated[Path, typer.Option(help="Model file to write.")] = Path("model.cmg"),
    encoder: EncoderOption = None,
    false_alarm: Annotated[Optional[float], typer.Option(help="Promised share of good images called anomalous.", show_default="0.01")] = None,
    cmer: Annotated[Optional[bool], typer.Option("--cmer/--no-cmer", help="Discard the pixels that do not matter for the caption.", show_default="cmer")] = None,
    cmle: Annotated[Optional[bool], typer.Option("--cmle/--no-cmle", help="Let the captions guide the latent space.", show_default="cmle")] = None,
    adapt: Annotated[Optional[bool], typer.Option("--adapt/--no-adapt", help="Train the defect head.", show_default="adapt")] = None,
    adapt_steps: Annotated[Optional[int], typer.Option(min=1, help="Training steps of the defect head.", show_default="150")] = None,
    relevance: RelevanceOption = None,
    keep: KeepOption = None,
    latent_dim: Annotated[Optional[int], typer.Option(min=1, help="Directions kept in the guided space.", show_default="all")] = None,
    device: DeviceOption = None,
    batch_size: BatchSize = None,
    seed: Annotated[Optional[int], typer.Option(help="Same seed, same model.", show_default="0")] = None,
    allow_missing: AllowMissing = False,
    config: Annotated[Optional[Path], typer.Option(help="YAML file of these options; the command line wins.")] = None,
) -> None:
    """Learn what normal looks like; writes a model file.

    Example: cmg fit --images line --captions line/metadata.csv --out model.cmg
    """
    with reported():
        options = given(
            captions=captions, caption=caption, encoder=encoder, false_alarm=false_alarm, cmer=cmer, cmle=cmle, adapt=adapt,
            adapt_steps=adapt_steps, relevance=relevance, keep=parse_keep(keep), latent_dim=latent_dim, device=device,
            batch_size=batch_size, seed=seed, allow_missing=allow_missing or None,
        )  # fmt: skip
        from cmgcli import pipeline

        allowed = set(inspect.signature(pipeline.fit).parameters) - {"images", "progress"}
        options = read_config(config, allowed) | options
        if not out.resolve().parent.is_dir():
            raise OutputError(f"cannot write {out}: the directory {out.parent} does not exist; make it or choose another --out")
        with progress_bar() as progress:
            model = pipeline.fit(images, progress=progress, **options)
        model.save(out)
        detector = model.detector
        if detector.settings.encoder == "builtin":
            say("fitted with the small built-in encoder; --encoder ViT-B-16/laion2b_s34b_b88k understands more captions and finer texture")
        say(detector.calibration.sentence)
        say(f"wrote {out}: {detector.fit_images} images fitted, threshold {detector.calibration.threshold():.4g}")


@app.command()
def score(
    paths: Annotated[list[str], typer.Argument(help="Images, directories or globs; - reads paths from standard input.", show_default=False)],
    model: ModelFile,
    captions: Annotated[Optional[Path], typer.Option(help="Caption file; an image without a caption is judged by the stored one that fits best.")] = None,
    images: Annotated[Optional[Path], typer.Option(help="Directory that the caption file's paths are relative to.", show_default="the caption file's own")] = None,
    out: Annotated[Optional[Path], typer.Option(help="CSV file to write.", show_default="standard output")] = None,
    maps: Annotated[Optional[Path], typer.Option(help="Directory for an anomaly map overlay of each image.")] = None,
    fail_on_anomaly: Annotated[bool, typer.Option("--fail-on-anomaly", help="Exit with 1 if any image is anomalous.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the last whole row of --out ends.")] = False,
    null: Annotated[bool, typer.Option("-0", "--null", help="Paths on standard input are NUL-separated.")] = False,
    device: DeviceOption = None,
    batch_size: BatchSize = None,
) -> None:
    """Score images: one CSV row each, in input order.

    Example: find incoming -name '*.png' | cmg score --model model.cmg -
    """
    with reported():
        from cmgcli import pictures, rows
        from cmgcli.dataset import caption_lookup, read_dataset
        from cmgcli.images import find_images, write_png

        lookup = None
        if captions is not None:
            lookup = caption_lookup(read_dataset(images or captions.parent, captions, allow_missing=True).records)
        if "-" in paths and len(paths) > 1:
            raise SettingsError("- reads all paths from standard input; give it alone")
        live = paths == ["-"]
        files = stdin_paths(null) if live else find_images(paths)
        if resume and out is None:
            raise SettingsError("--resume goes on in a file; give it with --out")
        done = rows.resume_scores(out) if resume else ()
        files = rest_of(files, done)
        if maps is not None:
            make_directory(maps)
        from cmgcli.model import MAP_CALM, MAP_STRANGE, Model

        fitted = Model.load(model, **given(device=device))
        if len(fitted.detector.calibration.scores) == 0:
            say(fitted.detector.calibration.sentence)
        anomalies = sum(row.anomalous or 0 for row in done)
        unreadable = sum(bool(row.error) for row in done)
        used: set[str] = set()
        for row in done:
            unused_stem(row.file, used)
        with output(out, append=bool(done)) as stream:
            write = rows.row_writer(stream, header=not done)
            for inspection in fitted.inspect(files, lookup, live=live, maps=maps is not None, **given(batch_size=batch_size)):
                if inspection.anomaly_map is not None:
                    picture = pictures.map_overlay(inspection.view.image, inspection.anomaly_map, low=MAP_CALM, high=MAP_STRANGE)
                    write_png(maps / f"{unused_stem(inspection.row.file, used)}_map.png", picture)
                write(inspection.row)
                anomalies += inspection.row.anomalous or 0
                unreadable += bool(inspection.row.error)
        if unreadable:
            say(f"{unreadable} inputs could not be read; see the column error")
        if fail_on_anomaly and anomalies:
            say(f"{anomalies} images are anomalous")
            raise typer.Exit(GATE_FAILED)
        if unreadable:
            raise typer.Exit(SOME_UNREADABLE)


@app.command()
def mask(
    images: Images,
    out: Annotated[Path, typer.Option(help="Directory to write.", show_default=False)],
    captions: Captions = None,
    caption: Caption = None,
    encoder: EncoderOption = None,
    relevance: RelevanceOption = None,
    keep: KeepOption = None,
    device: DeviceOption = None,
    batch_size: BatchSize = None,
    allow_missing: AllowMissing = False,
) -> None:
    """Show what CMER keeps: per image a keep mask, a relevance map and an overlay, and summary.csv.

    Example: cmg mask --images line --captions line/metadata.csv --out masks
    """
    with reported():
        from cmgcli import pictures, pipeline, rows

        options = given(
            captions=captions, caption=caption, encoder=encoder, relevance=relevance, keep=parse_keep(keep), device=device,
            batch_size=batch_size, allow_missing=allow_missing or None,
        )  # fmt: skip
        results = pipeline.mask(images, **options)
        make_directory(out)
        unreadable, used = 0, set()
        with output(out / "summary.csv") as stream:
            write = rows.row_writer(stream, rows.MaskRow)
            for result in results:
                unreadable += bool(result.row.error)
                if result.view is not None:
                    view = result.view
                    pictures.write_mask_pictures(out, unused_stem(result.row.file, used), view.image, view.keep, view.relevance)
                write(result.row)
        say(f"wrote {out / 'summary.csv'}")
        if unreadable:
            say(f"{unreadable} images could not be read; see the column error")
            raise typer.Exit(SOME_UNREADABLE)


@app.command("eval")
def evaluate(
    model: ModelFile,
    images: Images,
    labels: Annotated[Optional[Path], typer.Option(help="Dataset file with a label column, and mask where pixels are judged.", show_default="folder layout")] = None,
    min_auroc: Annotated[Optional[float], typer.Option(help="Exit with 1 if the image AUROC is lower.")] = None,
    max_false_alarm: Annotated[Optional[float], typer.Option(help="Exit with 1 if more of the good images are flagged.")] = None,
    max_miss: Annotated[Optional[float], typer.Option(help="Exit with 1 if more of the bad images are missed.")] = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="Also fit and evaluate baseline, +CMER, +CMLE and CMG.")] = False,
    adapt_steps: Annotated[int, typer.Option(min=0, help="With --ablate: also each with the defect head, trained for so many steps.")] = 0,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Write all metrics as JSON.")] = None,
    device: DeviceOption = None,
    batch_size: BatchSize = None,
    allow_missing: AllowMissing = False,
) -> None:
    """Evaluate a model on labelled images; gates for continuous integration.

    Example: cmg eval --model model.cmg --images line --labels line/metadata.csv --min-auroc 0.8
    """
    with reported():
        from rich.console import Console

        from cmgcli import evaluation, report
        from cmgcli.model import Model

        fitted = Model.load(model, **given(device=device))
        with progress_bar() as progress:
            options = given(allow_missing=allow_missing or None)
            result = evaluation.evaluate(fitted, images, labels, progress=progress, **options, **given(batch_size=batch_size))
            table = evaluation.ablate(fitted, images, labels, adapt_steps=adapt_steps, progress=progress, **options) if ablate else {}
        console = Console()
        console.print(report.evaluation_table(result))
        if table:
            console.print(report.ablation_table(table, evaluation.PAPER_GAIN))
        if json_file is not None:
            content = result.as_dict() | {"ablation": {name: row.as_dict() for name, row in table.items()}}
            with output(json_file) as stream:
                json.dump(content, stream, indent=2, default=str)
                stream.write("\n")
        failed = []
        if min_auroc is not None and result.image_auroc < min_auroc:
            failed.append(f"image AUROC {result.image_auroc:.4f} is below {min_auroc:g}")
        if max_false_alarm is not None and result.false_alarm_rate.value > max_false_alarm:
            failed.append(f"false-alarm rate {result.false_alarm_rate.value:.4f} is above {max_false_alarm:g}")
        if max_miss is not None and result.miss_rate.value > max_miss:
            failed.append(f"miss rate {result.miss_rate.value:.4f} is above {max_miss:g}")
        for line in failed:
            say(f"gate failed: {line}")
        for name in result.unreadable:
            say(f"could not be read: {name}")
        if failed:
            raise typer.Exit(GATE_FAILED)
        if result.unreadable:
            raise typer.Exit(SOME_UNREADABLE)
