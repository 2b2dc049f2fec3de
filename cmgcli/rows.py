"""The rows that commands write: one per input, as CSV or JSON Lines, read back and resumed after a crash."""

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from cmgcli.errors import DatasetError, OutputError, SettingsError


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
class NamedRow(Row):
    """The result of one input of a run that names defects; both empty where the image is not anomalous."""

    defect: str = ""  # names, the surest first, separated by '; '
    defect_score: float | None = None  # of the first, in (0, 1)


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
    passes: float | None = None  # of the encoder; one over n of P patches counts n / P
    caption: str = ""
    other_caption: str = ""  # of the run's other captions the one that matches the whole image best
    match_other: float | None = None  # cosine of the whole image and that caption
    doubt: float | None = None  # in [0, 1], the encoder's probability that of the two that one is the right one
    error: str = ""


COLUMNS = tuple(field.name for field in fields(Row))
_KINDS = {tuple(field.name for field in fields(kind)): kind for kind in (Row, NamedRow)}  # by their columns
_TEXTS = frozenset({"file", "caption", "error", "defect"})
_EXPECTED = {name: "text or null" for name in _TEXTS} | {"file": "text", "anomalous": "0, 1 or null"}
_REMEDY = "give a file that cmg score wrote"

Cell = str | int | float | None


def row_writer(stream: TextIO, kind: type = Row, *, header: bool = True, jsonl: bool = False) -> Callable[[Row | MaskRow], None]:
    r"""Write the header for rows of a `kind` at once (unless the file goes on after one), and return `write(row)`.

    CSV follows RFC 4180 but for the line end, which is '\n' as programs in a shell pipeline expect; None is empty. Names
    that are not Unicode keep their bytes where the stream was opened with `errors="surrogateescape"`; another stream
    gets what it cannot encode as `\udcff`.

    JSON Lines (`jsonl`) has one object a line with the same names, no header, and null for what is empty in CSV. It is
    plain ASCII. A byte 0x80 to 0xff of a name that is not UTF-8 is the lone surrogate `\udc80` to `\udcff`, as Python's
    `os.fsdecode` has it: `os.fsencode(json.loads(line)["file"])` is the name's bytes.

    Floats have six significant digits in both; each row is flushed.

    Raises OutputError where the stream cannot be written; BrokenPipeError passes.
    """
    line_of = (lambda row: _json_line(asdict(row))) if jsonl else (lambda row: _csv_line(tuple(map(_cell, astuple(row)))))
    if header and not jsonl:
        _send(stream, _csv_line(tuple(field.name for field in fields(kind))))
    return lambda row: _send(stream, line_of(row))


def _send(stream: TextIO, line: str) -> None:
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


def _csv_line(cells: tuple[str, ...]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerow(cells)  # its '\r\n' makes it quote both characters
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: Cell) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return str(int(value)) if isinstance(value, int) else f"{value:.6g}"


def _json_line(values: dict[str, Cell]) -> str:
    plain = {name: value if name == "file" else _json_value(value) for name, value in values.items()}
    return json.dumps(plain, allow_nan=False) + "\n"


def _json_value(value: Cell) -> Cell:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return int(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None


def read_scores(path: str | Path) -> tuple[Row, ...]:
    """Read a scores file back, CSV or JSON Lines: the latter begins with a brace.

    Raises DatasetError naming file, line and remedy where it cannot be read or is no scores file.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return _rows_of(file.read(), path)  # a pipe can be read once only
    except OSError as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error.strerror}: {_REMEDY}") from error


def _rows_of(content: str, path: str | Path) -> tuple[Row, ...]:
    return tuple((_read_jsonl if content.startswith("{") else _read_csv)(io.StringIO(content, newline=""), path))


def _read_csv(file: TextIO, path: str | Path) -> Iterator[Row]:
    line = 1
    try:
        reader = csv.reader(file, strict=True)
        header = tuple(next(reader, ()))
        if header not in _KINDS:
            raise ValueError(f"the columns are {', '.join(header) or 'missing'}, expected {', '.join(COLUMNS)}")
        line = reader.line_num + 1
        for cells in reader:
            yield _parse_row(cells, _KINDS[header])
            line = reader.line_num + 1
    except (ValueError, csv.Error) as error:
        raise DatasetError(f"{str(path)!r}, line {line}: {error}: {'remove the line' if line > 1 else _REMEDY}") from error


def _read_jsonl(file: TextIO, path: str | Path) -> Iterator[Row]:
    for line, text in enumerate(file, 1):
        try:
            yield _parse_object(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{str(path)!r}, line {line}: {error}: remove the line, or {_REMEDY}") from error


def resume_scores(path: Path, *, jsonl: bool = False, kind: type[Row] = Row) -> tuple[Row, ...]:
    """The whole rows of a `kind` in a scores file that a run left unfinished; see `cut_torn_row`. Empty where there is no file.

    Raises DatasetError where the file is something else, of the other format or of the other kind, OutputError where it cannot be read.
    """
    if not path.exists():
        return ()
    try:
        content = path.read_bytes()
        whole = content[: _whole_lines(content, jsonl)]
        if whole and whole.startswith(b"{") != jsonl:
            raise DatasetError(f"{str(path)!r} is no {'JSON Lines' if jsonl else 'CSV'} file: resume with the --format it was begun with")
        named = b"defect_score" in whole.partition(b"\n")[0]
        if whole and named != (kind is NamedRow):
            raise DatasetError(f"{str(path)!r} was begun {'with' if named else 'without'} --defects: resume it so, or choose another --out")
    except OSError as error:
        raise OutputError(f"cannot resume {path} ({error.strerror}); choose another --out") from error
    if whole:
        return _rows_of(whole.decode("utf-8-sig", "surrogateescape"), path)
    begun = b'{"file": ' if jsonl else _csv_line(tuple(column.name for column in fields(kind))).encode()
    if not (content.startswith(begun) if len(content) > len(begun) else begun.startswith(content)):
        raise DatasetError(f"{str(path)!r} is no scores file: there is nothing to resume; choose another --out")
    return ()


def begun(rows: Iterator[Row]) -> Iterator[Row]:
    """The same rows, the first of which is there already."""
    first = tuple(itertools.islice(rows, 1))
    return itertools.chain(first, rows)


def cut_torn_row(path: Path, *, jsonl: bool = False) -> None:
    """Cut what a run that was killed left of its last row, so that others can follow. Raises OutputError where the file cannot be changed."""
    try:
        os.truncate(path, _whole_lines(path.read_bytes(), jsonl))
    except OSError as error:
        raise OutputError(f"cannot resume {path} ({error.strerror}); choose another --out") from error


def rest_of(files: Iterable[str], done: Sequence[Row]) -> Iterator[str]:
    """The files after those that have a row.

    Raises SettingsError where the rows are not those of the first files.
    """
    files = iter(files)
    for row in done:
        name = next(files, None)
        if name != row.file:
            raise SettingsError(f"--resume: expected the row of {name or 'no further input'}, the file has {row.file}; give the same inputs, or another --out")
    return files


def _whole_lines(content: bytes, jsonl: bool) -> int:
    """The length of the whole rows at the start. A line end inside a quoted CSV cell (a quote is open) ends no row."""
    end = content.rfind(b"\n") + 1
    while not jsonl and content.count(b'"', 0, end) % 2:
        end = content.rfind(b"\n", 0, end - 1) + 1
    return end


def _parse_object(values: Any) -> Row:
    kind = next((kind for columns, kind in _KINDS.items() if isinstance(values, dict) and set(values) == set(columns)), None)
    if kind is None:
        got = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"expected an object with {', '.join(COLUMNS)}, got {got}")
    for name, value in values.items():
        if not _fits(name, value):
            raise ValueError(f"expected {name} to be {_EXPECTED.get(name, 'a number or null')}, got {value!r}")
    return kind(**{name: "" if value is None and name in _TEXTS else value for name, value in values.items()})


def _fits(name: str, value: Any) -> bool:
    if value is None:
        return name != "file"
    if name in _TEXTS:
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value in (0, 1) if name == "anomalous" else math.isfinite(value)


def _parse_row(cells: list[str], kind: type[Row]) -> Row:
    columns = [field.name for field in fields(kind)]
    if len(cells) != len(columns):
        raise ValueError(f"expected {len(columns)} cells, got {len(cells)}")
    values: dict[str, str | int | float | None] = {}
    for name, cell in zip(columns, cells):
        if name in _TEXTS:
            values[name] = cell
        elif name == "anomalous":
            if cell not in ("", "0", "1"):
                raise ValueError(f"expected anomalous to be 0 or 1, got {cell!r}")
            values[name] = int(cell) if cell else None
        else:
            values[name] = _parse_number(name, cell)
    return kind(**values)


def _parse_number(name: str, cell: str) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError as error:
        raise ValueError(f"expected {name} to be a number, got {cell!r}") from error
