"""Write results for people and for programs: score rows, pictures, tables. Receives results, computes none."""

import csv
import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from cmgcli.errors import DatasetError, OutputError

if TYPE_CHECKING:
    from rich.table import Table

_OUTLINE = (0, 230, 160)  # RGB
_ALARM = (200, 0, 0)
_WARM = np.array([(255, 240, 90), (255, 200, 0), (255, 110, 0), (220, 0, 0)], np.float32)  # calm, threshold, ..., gross
_WARM_AT = (0.0, 1.0, 1.5, 2.0)  # in units of high - low


@dataclass(frozen=True)
class Row:
    """The result of one input; None where a part did not run or the image could not be read."""

    file: str  # as it was given
    score: float | None = None  # unclamped
    anomalous: int | None = None  # 0 or 1
    p_value: float | None = None  # in (0, 1]
    image_score: float | None = None
    patch_score: float | None = None
    head_score: float | None = None
    match: float | None = None  # cosine, in [-1, 1]
    kept: float | None = None  # share of the patches, in [0, 1]
    caption: str = ""
    error: str = ""  # why there is no score


@dataclass(frozen=True)
class MaskRow:
    """What CMER made of one image; None where it could not be read."""

    file: str  # as the caption file spells it
    match_before: float | None = None  # cosine of the whole image and the caption
    match_after: float | None = None  # cosine of the kept patches and the caption
    kept: float | None = None  # share of the patches, in [0, 1]
    entropy_before: float | None = None  # bits, of the relevance over all patches
    entropy_after: float | None = None  # bits, over the kept ones
    estimator: str = ""
    caption: str = ""
    error: str = ""


@dataclass(frozen=True)
class Rate:
    """A share ``k / n`` with its 95 % Wilson interval; all NaN where ``n`` is 0."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one labelled set; a metric that its data do not allow is None."""

    images: int
    anomalous: int
    unreadable: tuple[str, ...]
    image_auroc: float
    average_precision: float
    f1_max: float
    f1_max_threshold: float
    threshold: float
    false_alarm_rate: Rate
    miss_rate: Rate
    pixel_auroc: float | None
    aupro: float | None
    auroc_by_defect: Mapping[str, float]
    auroc_by_part: Mapping[str, float]

    def as_dict(self) -> dict:
        """Plain numbers, strings and lists, for JSON."""
        return asdict(self)


COLUMNS = tuple(field.name for field in fields(Row))
_TEXTS = frozenset({"file", "caption", "error"})


def row_writer(stream: TextIO, kind: type = Row, *, header: bool = True) -> Callable[[Row | MaskRow], None]:
    r"""Write the header for rows of a `kind` at once (unless the file goes on after one), and return `write(row)`.

    Rows follow RFC 4180 but for the line end, which is '\n' as programs in a shell pipeline expect. Floats have six
    significant digits, None is empty; each row is flushed. Names that are not Unicode keep their bytes where the
    stream was opened with `errors="surrogateescape"`; another stream gets what it cannot encode as `\udcff`.

    Raises OutputError where the stream cannot be written; BrokenPipeError passes.
    """

    def write(cells: tuple) -> None:
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerow(cells)  # its '\r\n' makes it quote both characters
        line = buffer.getvalue().removesuffix("\r\n") + "\n"
        try:
            try:
                stream.write(line)
            except UnicodeEncodeError as error:
                stream.write(line.encode(error.encoding, "backslashreplace").decode(error.encoding))
            stream.flush()
        except BrokenPipeError:
            raise  # the reader has enough; that is no failure
        except OSError as error:
            raise OutputError(f"the rows cannot be written: {error.strerror}: is the disk full?") from error

    if header:
        write(tuple(field.name for field in fields(kind)))
    return lambda row: write(tuple(map(_cell, astuple(row))))


def _cell(value: str | int | float | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return str(int(value)) if isinstance(value, int) else f"{value:.6g}"


def read_scores(path: str | Path) -> tuple[Row, ...]:
    """Read a scores file back.

    Raises DatasetError naming file, line and remedy where it cannot be read or is no scores file.
    """
    rows: list[Row] = []
    line = 1
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = tuple(next(reader, ()))
            if header != COLUMNS:
                raise ValueError(f"the columns are {', '.join(header) or 'missing'}, expected {', '.join(COLUMNS)}")
            line = reader.line_num + 1
            for cells in reader:
                rows.append(_parse_row(cells))
                line = reader.line_num + 1
    except OSError as error:
        remedy = "give a file that cmg score wrote"
        raise DatasetError(f"{str(path)!r} cannot be read: {error.strerror}: {remedy}") from error
    except (ValueError, csv.Error) as error:
        remedy = "remove the line" if line > 1 else "give a file that cmg score wrote"
        raise DatasetError(f"{str(path)!r}, line {line}: {error}: {remedy}") from error
    return tuple(rows)


def resume_scores(path: Path) -> tuple[Row, ...]:
    """The rows of a scores file that a run left unfinished; a torn last line is cut off it. Empty where there is no file.

    Raises DatasetError where the file is something else, OutputError where it cannot be changed.
    """
    if not path.exists():
        return ()
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))
    except OSError as error:
        raise OutputError(f"cannot resume {path} ({error.strerror}); choose another --out") from error
    return read_scores(path) if whole else ()


def _parse_row(cells: list[str]) -> Row:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"expected {len(COLUMNS)} cells, got {len(cells)}")
    values: dict[str, str | int | float | None] = {}
    for name, cell in zip(COLUMNS, cells):
        if name in _TEXTS:
            values[name] = cell
        elif name == "anomalous":
            if cell not in ("", "0", "1"):
                raise ValueError(f"expected anomalous to be 0 or 1, got {cell!r}")
            values[name] = int(cell) if cell else None
        else:
            values[name] = _parse_number(name, cell)
    return Row(**values)


def _parse_number(name: str, cell: str) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError as error:
        raise ValueError(f"expected {name} to be a number, got {cell!r}") from error


def heat(values: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Colour (H, W) values from black (`low` and below) over red to pale yellow (`high` and above): uint8 RGB.

    One scale for all pictures: the caller gives it. Clipping is for the picture only; NaN is black.
    """
    import cv2

    level = np.rint(np.clip(_share(values, low, high), 0, 1) * 255).astype(np.uint8)
    return cv2.applyColorMap(np.ascontiguousarray(level), cv2.COLORMAP_INFERNO)[..., ::-1].copy()


def keep_overlay(image: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Show what a keep mask keeps: in full colour with a thin outline, the rest dark and nearly grey.

    `image`: (H, W, 3) uint8 RGB. `keep`: (H, W) bool, or a grid (h, w) that covers the image. Returns (H, W, 3) uint8.
    """
    import cv2

    height, width = image.shape[:2]
    keep = cv2.resize(keep.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    hidden = 0.35 * (0.75 * grey[..., None] + 0.25 * image)
    picture = np.where(keep[..., None] != 0, image, np.rint(hidden).astype(np.uint8))
    return _outline(picture, keep, _OUTLINE)


def map_overlay(image: np.ndarray, anomaly_map: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Lay an anomaly map over its image: clear up to `low`, yellow at the threshold `high`, red far above it.

    What lies above `high` is outlined. `image`: (H, W, 3) uint8 RGB. `anomaly_map`: (H, W), or a smaller grid (h, w)
    that covers the image and is enlarged linearly; NaN is clear. Returns (H, W, 3) uint8.
    """
    import cv2

    height, width = image.shape[:2]
    share = _share(anomaly_map, low, high)  # 0 at low, 1 at high
    if share.shape != (height, width):
        share = cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR)
    share = np.clip(share, 0, 2)
    colour = np.stack([np.interp(share, _WARM_AT, channel) for channel in _WARM.T], axis=2)
    opacity = np.interp(share, (0, 1, 2), (0, 0.45, 0.7))[..., None]
    picture = np.rint(image * (1 - opacity) + colour * opacity).astype(np.uint8)
    return _outline(picture, (share > 1).astype(np.uint8), _ALARM)


def metrics_table(metrics: Mapping[str, str | int | float], *, title: str = "") -> "Table":
    """A table of names and values for a terminal; floats with four decimals, NaN as a dash."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(Text(name), Text("-" if isinstance(value, float) and math.isnan(value) else shown))
    return table


def evaluation_table(result: Evaluation) -> "Table":
    """The figures of one evaluation, rates with their 95 % intervals."""

    def rate(value: Rate) -> str:
        return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"

    figures: dict[str, str | int | float] = {
        "images": result.images,
        "anomalous": result.anomalous,
        "image AUROC": result.image_auroc,
        "average precision": result.average_precision,
        "F1-max": result.f1_max,
        "F1-max threshold": result.f1_max_threshold,
        "threshold": result.threshold,
        "false-alarm rate [95 %]": rate(result.false_alarm_rate),
        "miss rate [95 %]": rate(result.miss_rate),
    }
    if result.pixel_auroc is not None:
        figures |= {"pixel AUROC": result.pixel_auroc, "AUPRO": result.aupro}
    figures |= {f"AUROC by {name}": value for name, value in result.auroc_by_part.items()}
    figures |= {f"AUROC of {name}": value for name, value in result.auroc_by_defect.items()}
    return metrics_table(figures, title="evaluation")


def ablation_table(results: Mapping[str, Evaluation], paper_gain: float) -> "Table":
    """Image AUROC of each variant with its gain over the one called baseline, beside the paper's gain."""
    base = results["baseline"].image_auroc
    gains = {name: f"{row.image_auroc:.4f} ({row.image_auroc / base - 1:+.2%})" for name, row in results.items()}
    return metrics_table(gains | {"gain in the paper": f"({paper_gain:+.2%})"}, title="ablation: image AUROC (gain over the baseline)")


def _share(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as float32 with 0 at `low` and 1 at `high`, within [-1, 3]; NaN becomes 0."""
    span = max(high - low, np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):
        share = (np.asarray(values, np.float64) - low) / span
    return np.nan_to_num(np.clip(share, -1, 3), nan=0.0).astype(np.float32)


def _outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Draw the edge of an (H, W) uint8 mask, about 1/250 of the picture wide."""
    import cv2

    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(min(picture.shape[:2]) / 250))
    return cv2.drawContours(np.ascontiguousarray(picture), contours, -1, colour, width)


def write_mask_pictures(directory: Path, stem: str, image: np.ndarray, keep: np.ndarray, relevance: np.ndarray) -> None:
    """Write `STEM_keep.png` (0/255), `STEM_relevance.png` and `STEM_overlay.png`, all in the image's own size.

    `image`: (H, W, 3) uint8 RGB. `keep`: (h, w) bool. `relevance`: (h, w) float, one patch's term of a cosine; coloured
    from 0 to four times an even share, on the same scale for every image.
    """
    import cv2

    from cmgcli.images import write_png

    height, width = image.shape[:2]
    full = cv2.resize(keep.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_NEAREST)
    smooth = cv2.resize(relevance.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    write_png(directory / f"{stem}_keep.png", full)
    write_png(directory / f"{stem}_relevance.png", heat(smooth, low=0, high=4 / relevance.size))
    write_png(directory / f"{stem}_overlay.png", keep_overlay(image, keep))
