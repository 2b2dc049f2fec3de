"""The options of the commands: types, help, panels. Imports nothing heavy.

An option that is not given stays None, and the engine's own default holds; `show_default` only repeats it for the help
(a test compares the two).
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from cmgcli.config import adopt
from cmgcli.console import hush, reported, tell_more
from cmgcli.errors import SettingsError, check_batch_size
from cmgcli.streams import write_out
from cmgcli.words import installed_version

PACKAGES = ("cmgcli", "torch", "open_clip_torch", "numpy", "opencv-python")
ENCODERS = "builtin; NAME/TAG or hf-hub:ORG/REPO, downloaded once; NAME@FILE or local-dir:DIR, on disk."
INPUT, OUTPUT, METHOD, GATES, COMPUTE, TALK = "Input", "Output", "Method", "Gates", "Compute", "Messages"


class Device(str, Enum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Relevance(str, Enum):
    """The estimators of CMER."""

    fast = "fast"
    sampled = "sampled"
    occlusion = "occlusion"


class Calibration(str, Enum):
    """How the threshold is calibrated."""

    split = "split"
    cross = "cross"


class Projection(str, Enum):
    """How the guided space is made."""

    closed = "closed"
    linear = "linear"
    mlp = "mlp"


class Engine(str, Enum):
    """What runs a scoring."""

    local = "local"
    ray = "ray"


class Precision(str, Enum):
    """What matrices are multiplied in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Format(str, Enum):
    """How rows are written."""

    csv = "csv"
    jsonl = "jsonl"


# ---- all commands


def print_versions(asked: bool) -> None:
    """What --version does: print the versions that a result depends on, without importing what they are of."""
    if asked:
        import platform

        versions = [*((package, installed_version(package)) for package in PACKAGES), ("python", platform.python_version())]
        with reported():
            write_out(" ".join(f"{package} {number}" for package, number in versions) + "\n")
        raise typer.Exit


def batch_size_of(text: str | int) -> int | str:
    """The value of --batch-size."""
    try:
        return check_batch_size(int(text) if str(text).removeprefix("-").isdecimal() else text)
    except SettingsError as error:
        raise typer.BadParameter(str(error).removeprefix("batch size: ")) from error


Version = Annotated[bool, typer.Option("--version", callback=print_versions, is_eager=True, help="Print versions and exit.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=hush, help="Only errors on standard error.", rich_help_panel=TALK)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=tell_more, help="Say what is done, and how long it took.", rich_help_panel=TALK)]
DeviceOption = Annotated[
    Optional[Device], typer.Option(help="Where to compute; auto takes the GPU where there is one.", show_default="auto", rich_help_panel=COMPUTE)
]
BatchSize = Annotated[
    Optional[str],
    typer.Option(parser=batch_size_of, metavar="N|auto", help="Images per forward pass, or as many as the GPU has memory for; changes no score, but for rounding there.", show_default="16", rich_help_panel=COMPUTE),
]
ModelFile = Annotated[Optional[Path], typer.Option(help="Model file made by cmg fit.", show_default=False, rich_help_panel=INPUT)]

# ---- demo

DemoDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="Directory to write; made if it does not exist.", show_default=False)]
TrainImages = Annotated[Optional[int], typer.Option(min=1, help="Flawless images to fit on.", show_default="240")]
TestImages = Annotated[Optional[int], typer.Option(min=2, help="Test images, half of them defective.", show_default="120")]
Size = Annotated[Optional[int], typer.Option(min=32, help="Side of the images in pixels.", show_default="256")]
LineSeed = Annotated[Optional[int], typer.Option(min=0, help="Another seed, another line.", show_default="0")]

# ---- fit and mask

FitImages = Annotated[Optional[Path], typer.Option(help="Directory of the images; required.", show_default=False, rich_help_panel=INPUT)]
Images = Annotated[Path, typer.Option(help="Directory of the images.", show_default=False, rich_help_panel=INPUT)]
Captions = Annotated[
    Optional[Path],
    typer.Option(help="CSV, TSV or JSONL with file_name and text; without it, NAME.txt beside each NAME.png or an MVTec AD layout serves.", rich_help_panel=INPUT),
]
Caption = Annotated[Optional[str], typer.Option(help="One caption for all images, instead of a file.", rich_help_panel=INPUT)]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Go on where an image has no caption or a caption no image, and list them.", rich_help_panel=INPUT)
]
Config = Annotated[
    Optional[Path],
    typer.Option(callback=adopt, is_eager=True, help="YAML file of these options; the command line wins.", rich_help_panel=INPUT),
]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="Print all options as they would take effect, as YAML that --config reads, and exit.", rich_help_panel=OUTPUT),
]
FitResume = Annotated[
    bool, typer.Option("--resume", help="Go on with the training where a fit of the same images and settings broke off.", rich_help_panel=OUTPUT)
]
ModelOut = Annotated[Path, typer.Option(help="Model file to write.", rich_help_panel=OUTPUT)]
MaskOut = Annotated[Path, typer.Option(help="Directory to write the pictures and summary.csv to; made if it does not exist.", show_default=False, rich_help_panel=OUTPUT)]
ContactSheetOption = Annotated[
    Optional[Path], typer.Option("--contact-sheet", help="PNG to write: many images at a glance, each beside its relevance and what is kept.", rich_help_panel=OUTPUT)
]
EncoderOption = Annotated[
    Optional[str], typer.Option(help=ENCODERS, show_default="builtin", rich_help_panel=METHOD)
]
FalseAlarm = Annotated[
    Optional[float], typer.Option(help="Largest share of good images that may be called anomalous; it sets the threshold.", show_default="0.01", rich_help_panel=METHOD)
]
JudgedFalseAlarm = Annotated[
    Optional[float],
    typer.Option("--false-alarm", help="Judge by the threshold of this promised share of false alarms, without a new fit.", show_default="that of the fit", rich_help_panel=GATES),
]
CalibrationOption = Annotated[
    Optional[Calibration],
    typer.Option(
        "--calibration",
        help="split: hold images out for the threshold, which then keeps the rate; cross: learn from all and calibrate on all, near the rate.",
        show_default="split where the head is trained, else cross",
        rich_help_panel=METHOD,
    ),
]
Cmer = Annotated[
    Optional[bool],
    typer.Option("--cmer/--no-cmer", help="Look only at the patches that matter for the caption (CMER).", show_default="cmer", rich_help_panel=METHOD),
]
Cmle = Annotated[
    Optional[bool], typer.Option("--cmle/--no-cmle", help="Judge an image by where its caption puts it (CMLE); without it, by where all images lie.", show_default="cmle", rich_help_panel=METHOD)
]
Adapt = Annotated[Optional[bool], typer.Option("--adapt/--no-adapt", help="Train the defect head, a small net that learns to see defects drawn on the good images.", show_default="adapt", rich_help_panel=METHOD)]
KnownDefects = Annotated[
    Optional[bool],
    typer.Option("--known-defects/--no-known-defects", help="The defect head also learns from images of split train that are labelled bad and have a mask.", show_default="no-known-defects", rich_help_panel=METHOD),
]
AdaptSteps = Annotated[Optional[int], typer.Option(min=1, help="Most training steps of the defect head; fewer where it learns no more.", show_default="1500", rich_help_panel=METHOD)]
RelevanceOption = Annotated[
    Optional[Relevance],
    typer.Option(help="How CMER measures what each patch adds to the match with the caption: fast takes no pass of its own, or one there and back; sampled seven there and back, or up to 40 where no patch can be weighed; occlusion one for every second window.", show_default="fast where the encoder allows, else occlusion", rich_help_panel=METHOD),
]
KeepOption = Annotated[Optional[str], typer.Option(help="Share of the patches that CMER keeps at least, such as 0.4; auto: all that do not lower the match with the caption.", show_default="auto", rich_help_panel=METHOD)]
LatentDim = Annotated[Optional[int], typer.Option(min=1, help="Keep only so many directions of the latent space, those that the captions explain best.", show_default="all", rich_help_panel=METHOD)]
Tile = Annotated[
    Optional[int],
    typer.Option(min=1, help="Look at images that are larger than this, in pixels a side, also in tiles of this size, where CMER keeps something; score then does so too.", show_default="none", rich_help_panel=METHOD),
]
Overlap = Annotated[Optional[float], typer.Option(help="With --tile: share of a tile that its neighbours see too.", show_default="0.25", rich_help_panel=METHOD)]
ProjectionOption = Annotated[
    Optional[Projection],
    typer.Option(
        "--projection", help="How the latent space is made: in closed form, or by a linear or mlp projection that is trained.", show_default="closed", rich_help_panel=METHOD
    ),
]
Epochs = Annotated[Optional[int], typer.Option(min=1, help="With --projection linear or mlp: passes over the images that train it.", show_default="300", rich_help_panel=METHOD)]
Neighbours = Annotated[Optional[int], typer.Option(min=0, help="With CMLE: how many of the nearest captions help to say where a caption puts its images.", show_default="4", rich_help_panel=METHOD)]
Ridge = Annotated[Optional[float], typer.Option(min=0, help="With CMLE: the larger, the more evenly those captions share the weight.", show_default="0.05", rich_help_panel=METHOD)]
BankSize = Annotated[Optional[int], typer.Option(min=1, help="Most patches of good images that are stored to compare with.", show_default="4096", rich_help_panel=METHOD)]
PrecisionOption = Annotated[
    Optional[Precision],
    typer.Option("--precision", help="Precision of the large matrix products; stored in the model.", show_default="bfloat16 where the machine is fast at it", rich_help_panel=COMPUTE),
]
Seed = Annotated[Optional[int], typer.Option(min=0, max=2**63 - 1, help="Same seed, same model.", show_default="0", rich_help_panel=COMPUTE)]

# ---- score

Paths = Annotated[list[str], typer.Argument(metavar="PATH", help="Images, directories or globs; - reads paths from standard input.", show_default=False)]
ScoreCaptions = Annotated[
    Optional[Path],
    typer.Option(help="Caption file; an image without a caption is judged by the stored one that fits best.", rich_help_panel=INPUT),
]
ZeroShotOption = Annotated[
    bool,
    typer.Option("--zero-shot", help="Score without a model: by what the caption says of defects, and by how alike the images are. No threshold.", rich_help_panel=INPUT),
]
ZeroShotCaption = Annotated[Optional[str], typer.Option("--caption", help="With --zero-shot: what the images show.", rich_help_panel=INPUT)]
ZeroShotEncoder = Annotated[
    Optional[str], typer.Option("--encoder", help=f"With --zero-shot: {ENCODERS}", show_default="builtin", rich_help_panel=INPUT)
]
CaptionRoot = Annotated[
    Optional[Path],
    typer.Option(help="Directory that the caption file's paths are relative to.", show_default="the caption file's own", rich_help_panel=INPUT),
]
Null = Annotated[bool, typer.Option("-0", "--null", help="Paths on standard input are NUL-separated.", rich_help_panel=INPUT)]
ScoresOut = Annotated[Optional[Path], typer.Option(help="File to write the rows to.", show_default="standard output", rich_help_panel=OUTPUT)]
FormatOption = Annotated[
    Format,
    typer.Option("--format", help="jsonl: one object a row, null where the CSV is empty; a name that is not UTF-8 keeps its bytes as \\udc80 to \\udcff.", rich_help_panel=OUTPUT),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the last whole row of --out ends.", rich_help_panel=OUTPUT)]
Maps = Annotated[
    Optional[Path],
    typer.Option(
        help="Directory for two pictures of each image: the overlay STEM_map.png and the anomaly map STEM_anomaly.png (16 bits; "
        "value = (pixel - 32768) / 1024; 0: peak of a typical good image, 1: one spread above it).",
        rich_help_panel=OUTPUT,
    ),
]
Explain = Annotated[
    Optional[Path],
    typer.Option(
        help="Directory for a page STEM_why.png on each anomalous image: what decided, the most similar good patches, what the caption and CMER did.",
        rich_help_panel=OUTPUT,
    ),
]
ExplainAll = Annotated[bool, typer.Option("--explain-all", help="With --explain: a page on every image.", rich_help_panel=OUTPUT)]
Defects = Annotated[
    Optional[Path],
    typer.Option(
        help="Text file with one defect a line, NAME or NAME: PHRASE. Anomalous images get the columns defect and defect_score.",
        rich_help_panel=INPUT,
    ),
]
Junit = Annotated[
    Optional[Path], typer.Option(help="Write a JUnit XML file: each image a test case, an anomalous one a failure.", rich_help_panel=OUTPUT)
]
Summary = Annotated[
    Optional[Path],
    typer.Option(help='Append a Markdown summary to this file, as for "$GITHUB_STEP_SUMMARY": verdict, counts, the worst images.', rich_help_panel=OUTPUT),
]
FailOnAnomaly = Annotated[bool, typer.Option("--fail-on-anomaly", help="Exit with 1 if any image is anomalous.", rich_help_panel=GATES)]
MaxAnomalies = Annotated[
    Optional[str],
    typer.Option(metavar="N|P%", help="Exit with 1 if more images than this are anomalous: a count such as 3, or a share of the readable ones such as 2%.", rich_help_panel=GATES),
]
WatchDrift = Annotated[
    bool, typer.Option("--watch-drift", help="Say as soon as the scores show that camera, light or product have changed; wrong in at most 1 of 100 runs.", rich_help_panel=GATES)
]
FailOnDrift = Annotated[bool, typer.Option("--fail-on-drift", help="Watch for drift, and exit with 1 if there is any.", rich_help_panel=GATES)]

EngineOption = Annotated[
    Engine, typer.Option("--engine", help="local: this process; ray: actors on this machine or a cluster (needs cmgcli with its extra ray).", rich_help_panel=COMPUTE)
]
Address = Annotated[
    Optional[str], typer.Option(help="With --engine ray: the address of a running cluster, or auto to find it; without it one is started on this machine.", rich_help_panel=COMPUTE)
]

# ---- export

GraphOut = Annotated[Path, typer.Option("--out", help="ONNX file to write.", rich_help_panel=OUTPUT)]
ImageSize = Annotated[str, typer.Option("--size", metavar="HxW", help="Height and width of the images, such as 480x640; the graph takes no others.", show_default=False, rich_help_panel=INPUT)]

# ---- eval

EvaluatedModel = Annotated[Optional[Path], typer.Option("--model", help="Model file made by cmg fit.", show_default=False, rich_help_panel=INPUT)]
EvaluatedScores = Annotated[
    Optional[Path], typer.Option("--scores", help="Scores file made by cmg score, instead of a model.", show_default=False, rich_help_panel=INPUT)
]
EvaluatedImages = Annotated[
    Optional[Path],
    typer.Option("--images", help="Directory of the images, which the paths of --labels are relative to; with --scores they need not be there.", show_default=False, rich_help_panel=INPUT),
]
Labels = Annotated[
    Optional[Path],
    typer.Option(help="Dataset file with a column label, and mask where pixels are judged.", show_default="the folders of an MVTec AD layout", rich_help_panel=INPUT),
]
MinAuroc = Annotated[Optional[float], typer.Option(min=0, max=1, help="Exit with 1 if the image AUROC is lower.", rich_help_panel=GATES)]
MaxFalseAlarm = Annotated[Optional[float], typer.Option(min=0, max=1, help="Exit with 1 if a larger share of the good images is flagged, such as 0.05.", rich_help_panel=GATES)]
MaxMiss = Annotated[Optional[float], typer.Option(min=0, max=1, help="Exit with 1 if a larger share of the bad images is missed, such as 0.1.", rich_help_panel=GATES)]
Ablate = Annotated[bool, typer.Option("--ablate", help="Also fit and evaluate the method with neither CMER nor CMLE (baseline), with one of them, and with both (CMG).", rich_help_panel=METHOD)]
AblationSteps = Annotated[
    Optional[int],
    typer.Option(min=0, help="With --ablate: each of these also with the defect head, trained for so many steps.", show_default="0", rich_help_panel=METHOD),
]
StressOption = Annotated[
    bool,
    typer.Option(
        "--stress", help="Also score the images under changes of light, lens, sensor, place and dust: 41 times the work; which breaks the promise first?", rich_help_panel=METHOD
    ),
]
StressImages = Annotated[
    Optional[int], typer.Option(min=2, help="With --stress: take only so many of the images, drawn at random.", show_default="all", rich_help_panel=METHOD)
]
EvaluatedDefects = Annotated[
    Optional[Path],
    typer.Option("--defects", help="Defects file as of cmg score: also compare the names it gives to bad images with the labels' column defect.", rich_help_panel=INPUT),
]
JsonFile = Annotated[Optional[Path], typer.Option("--json", help="Write all metrics as JSON.", rich_help_panel=OUTPUT)]
ReportFile = Annotated[
    Optional[Path], typer.Option("--report", help="Write one HTML page: the verdict, curves, tables, the worst images.", rich_help_panel=OUTPUT)
]
