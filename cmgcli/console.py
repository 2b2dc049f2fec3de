"""What all commands share: exit codes, messages, progress, options from a file, streams. Imports nothing heavy.

Exit codes: 0 done; 1 a gate failed; 2 usage or a CmgError; 3 done, but some inputs could not be read; 130 interrupted.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from cmgcli.errors import CmgError, OutputError, SettingsError

GATE_FAILED, USAGE, SOME_UNREADABLE, INTERRUPTED = 1, 2, 3, 130


@contextmanager
def reported() -> Iterator[None]:
    """Turn expected errors into one line on stderr and an exit code; a closed pipe ends quietly."""
    try:
        yield
    except CmgError as error:
        print(f"cmg: {error}", file=sys.stderr)
        raise typer.Exit(USAGE) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        print("cmg: interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress callback with a bar on stderr, on a terminal only."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def advance(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield advance


def say(line: str) -> None:
    """One line on stderr; stdout is for data."""
    print(f"cmg: {line}", file=sys.stderr)


def given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others stay the engine's defaults."""
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in options.items()}
    return {name: value for name, value in plain.items() if value is not None}


def parse_keep(keep: str | None) -> float | str | None:
    if keep is None or keep == "auto":
        return keep
    try:
        return float(keep)
    except ValueError as error:
        raise SettingsError(f"--keep: expected auto or a share such as 0.4, got {keep!r}") from error


def read_config(path: Path | None, allowed: set[str]) -> dict[str, Any]:
    """Options from a YAML mapping; an unknown key is an error with the nearest right name."""
    if path is None:
        return {}
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise SettingsError(f"config {path} cannot be read: {reason}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"config {path}: expected a mapping of option names to values, got {type(values).__name__}")
    options = {str(key).replace("-", "_"): value for key, value in values.items()}
    for key in options:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            raise SettingsError(f"config {path}: unknown key {key}{f'; did you mean {near[0]}?' if near else ''}")
    return options


@contextmanager
def output(path: Path | None, *, append: bool = False) -> Iterator[Any]:
    """The text stream to write to: a new file, the end of an old one, or stdout."""
    if path is None:
        sys.stdout.reconfigure(errors="surrogateescape", newline="\n")
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        stream = path.open("a" if append else "w", encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror}); choose another --out") from error
    with stream:
        yield stream


def make_directory(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the directory {path} ({error.strerror}); choose another") from error
    return path


def stdin_paths(nul: bool) -> Iterator[str]:
    """Paths from standard input as they come, one a line or NUL-separated; bytes that are not UTF-8 are kept."""
    stream = sys.stdin.buffer
    if not nul:
        for line in stream:
            path = line.rstrip(b"\r\n")
            if path:
                yield os.fsdecode(path)
        return
    rest = b""
    while chunk := stream.read1(65536):
        *paths, rest = (rest + chunk).split(b"\0")
        yield from (os.fsdecode(path) for path in paths if path)
    if rest:
        yield os.fsdecode(rest)


def rest_of(files: Iterable[str], done: Sequence[Any]) -> Iterator[str]:
    """The files after those that have a row; an error where the rows are not those of the first files."""
    files = iter(files)
    for row in done:
        name = next(files, None)
        if name != row.file:
            raise SettingsError(f"--resume: expected the row of {name or 'no further input'}, the file has {row.file}; give the same inputs, or another --out")
    return files


def unused_stem(file: str, used: set[str]) -> str:
    """The file's stem, with a number where an earlier file of the run had the same."""
    stem = name = Path(file).stem.encode("utf-8", "replace").decode()
    number = 2
    while name in used:
        name, number = f"{stem}-{number}", number + 1
    used.add(name)
    return name
