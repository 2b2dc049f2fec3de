"""The rows of a caption file: CSV, TSV or JSON Lines."""

import csv
import difflib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from cmgcli.errors import DatasetError
from cmgcli.words import counted

_NAMES = {"file_name": "image", "text": "caption"}  # required columns, and the other name each may have
_OPTIONAL = ("split", "label", "defect", "mask")


def sheet_rows(captions: Path, *, need_text: bool = True) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and values (all known columns, '' where there is none) of each row of a caption file in UTF-8.

    The ending of its name tells TSV (.tsv, .tab) and JSON Lines (.jsonl, .ndjson, .json) from CSV. `need_text` asks for a column `text`.

    Raises DatasetError, in one line with file, line number and remedy.
    """
    try:
        data = captions.read_bytes()
    except OSError as error:
        raise DatasetError(f"{str(captions)!r} cannot be read: {error.strerror}: give a CSV, TSV or JSONL file") from error
    if data.startswith(b"PK\x03\x04"):
        raise DatasetError(f"{str(captions)!r}, line 1: this is a spreadsheet or an archive: save its table as CSV in UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{str(captions)!r}, line {line}: the text is not UTF-8: save the file as UTF-8") from error
    needed = _NAMES if need_text else {"file_name": _NAMES["file_name"]}
    suffix = captions.suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return _json_rows(text, captions, needed)
    return _table_rows(text, "\t" if suffix in (".tsv", ".tab") else ",", captions, needed)


def _table_rows(text: str, delimiter: str, captions: Path, needed: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1  # where the next row begins; one in quotes may span several lines
    try:
        for cells in reader:
            where = f"{str(captions)!r}, line {line}"
            if not any(cells):
                pass
            elif not header:
                header = [cell.strip() for cell in cells]
                _require_columns(header, where, needed)
                for name in {*_NAMES, *_NAMES.values(), *_OPTIONAL}:
                    if header.count(name) > 1:
                        raise DatasetError(f"{where}: there are {header.count(name)} columns {name!r}: keep one of them")
            elif len(cells) > len(header):
                raise DatasetError(
                    f"{where}: {counted(len(cells), 'cell')} for {counted(len(header), 'column')}: "
                    'put a text that contains the separator in double quotes ("...")'
                )
            else:
                yield line, _known(dict(zip(header, cells)))
            line = reader.line_num + 1
    except csv.Error as error:
        where = f"{str(captions)!r}, line {line}"
        raise DatasetError(f"{where}: {error}: close the quotes, and double those inside") from error


def _json_rows(text: str, captions: Path, needed: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        where = f"{str(captions)!r}, line {line}"
        example = '{"file_name": "a.png", "text": "a metal nut"}'
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{where}: not valid JSON: write one object a line, as {example}") from error
        if not isinstance(values, dict):
            raise DatasetError(f"{where}: expected an object on each line, as {example}, got {type(values).__name__}")
        _require_columns(list(values), where, needed)
        row = _known(values)
        if isinstance(row["label"], bool) or isinstance(row["label"], float) and row["label"].is_integer():  # as pandas writes them
            row["label"] = int(row["label"])
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise DatasetError(f"{where}: {name} is {value!r}: expected a text or an integer")
        yield line, {name: str(value) for name, value in row.items()}


def _known(values: dict) -> dict:
    """The columns that count, by their first name; '' where there is no value."""
    row = {name: values.get(name, values.get(alias)) for name, alias in _NAMES.items()}
    row |= {name: values.get(name) for name in _OPTIONAL}
    return {name: "" if value is None else value for name, value in row.items()}


def _require_columns(found: list[str], where: str, needed: Mapping[str, str]) -> None:
    for name, alias in needed.items():
        if name in found or alias in found:
            continue
        taken = {*_NAMES, *_NAMES.values(), *_OPTIONAL}
        free = {column.lower(): column for column in found if column not in taken}
        near = difflib.get_close_matches(name, free, 1) or difflib.get_close_matches(alias, free, 1)
        remedy = f"rename {free[near[0]]!r} to {name!r}" if near else f"add a column {name!r}"
        if any(";" in column for column in found):
            remedy = "separate the columns by commas, not by semicolons"
        elif any("\t" in column for column in found):
            remedy = "separate the columns by commas, or name the file .tsv"
        raise DatasetError(f"{where}: no column {name!r} (or {alias!r}) among {', '.join(map(repr, found))}: {remedy}")
