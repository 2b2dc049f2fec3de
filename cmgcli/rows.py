"""The rows that commands write: one per input, as CSV, read back and resumed after a crash."""

import csv
import io
import os
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TextIO

from cmgcli.errors import DatasetError, OutputError


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
