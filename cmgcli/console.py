"""What all commands share: exit codes, messages, progress, options from a file, streams. Imports nothing heavy.

Exit codes: 0 done; 1 a gate failed; 2 usage or a CmgError; 3 done, but some inputs could not be read; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from cmgcli.errors import CmgError, InputError, OutputError, SettingsError

PACKAGES = ("cmgcli", "torch", "open_clip_torch", "numpy", "opencv-python")
GATE_FAILED, USAGE, SOME_UNREADABLE, INTERRUPTED = 1, 2, 3, 130


Advance = Callable[[str, int, int], None]

_DETAIL, _NOTICE, _ERROR = 20, 25, 40  # levels of the logger cmgcli: what --verbose, no option and --quiet let pass


@contextmanager
def reported() -> Iterator[None]:
    """Turn expected errors into one line on stderr and an exit code; a closed pipe ends quietly."""
    try:
        yield
    except CmgError as error:
        _drop_unwritable()
        fail(str(error))
        raise typer.Exit(USAGE) from None
    except BrokenPipeError:
        silence_stdout()
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        fail("interrupted")
        raise typer.Exit(INTERRUPTED) from None


def silence_stdout() -> None:
    """From here on standard output goes nowhere, also what it still holds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _drop_unwritable() -> None:
    """What standard output holds and cannot write: Python would try again at its end, and exit with 120."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        silence_stdout()


@contextmanager
def telling_if_interrupted(line: str) -> Iterator[None]:
    """Say on Ctrl-C what there is of the result, or how to get it in steps."""
    try:
        yield
    except KeyboardInterrupt:
        say(line)
        raise


# ---- messages


def start_messages(*, quiet: bool = False, verbose: bool = False) -> None:
    """Let the package's log speak on stderr; what libraries say of their own retries is in the error that ends them."""
    import logging

    logging.getLogger().addHandler(logging.NullHandler())
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("cmg: %(message)s"))
    logger = logging.getLogger("cmgcli")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(_ERROR if quiet else _DETAIL if verbose else _NOTICE)


def hush(quiet: bool) -> bool:
    """What --quiet does: from here on only errors are said."""
    if quiet:
        _logger().setLevel(_ERROR)
    return quiet


def tell_more(verbose: bool) -> bool:
    """What --verbose does: from here on details are said."""
    if verbose:
        _logger().setLevel(_DETAIL)
    return verbose


def print_versions(asked: bool) -> None:
    """What --version does: print the versions that a result depends on, without importing what they are of."""
    if asked:
        import platform
        from importlib.metadata import version

        versions = [*((package, version(package)) for package in PACKAGES), ("python", platform.python_version())]
        with reported():
            write_out(" ".join(f"{package} {number}" for package, number in versions) + "\n")
        raise typer.Exit


def fail(line: str) -> None:
    """One line on stderr, also with --quiet: why the exit code is not 0."""
    print(f"cmg: {line}", file=sys.stderr)


def say(line: str) -> None:
    """One line on stderr; stdout is for data."""
    _logger().log(_NOTICE, "%s", line)


def detail(line: str) -> None:
    """One line on stderr with --verbose."""
    _logger().log(_DETAIL, "%s", line)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """With --verbose, say afterwards how long `what` took."""
    begun = time.perf_counter()
    yield
    detail(f"{what}: {time.perf_counter() - begun:.2f} s")


def _logger() -> Any:
    import logging

    return logging.getLogger("cmgcli")


@contextmanager
def progress_bar() -> Iterator[Advance | None]:
    """A progress callback with a bar on stderr, on a terminal only; with --verbose each stage's time is said."""
    with _bar() as advance:
        yield _timing(advance) if _logger().isEnabledFor(_DETAIL) else advance


@contextmanager
def _bar() -> Iterator[Advance | None]:
    if not sys.stderr.isatty() or not _logger().isEnabledFor(_NOTICE):
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


def _timing(advance: Advance | None) -> Advance:
    ended = time.perf_counter()

    def timing(stage: str, done: int, total: int) -> None:
        nonlocal ended
        if advance is not None:
            advance(stage, done, total)
        if done == total:
            now = time.perf_counter()
            detail(f"{stage}: {total} in {now - ended:.2f} s")
            ended = now

    return timing


# ---- options and streams


def given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others stay the engine's defaults."""
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in options.items()}
    return {name: value for name, value in plain.items() if value is not None}


def parse_keep(keep: str | None) -> float | str | None:
    """What --keep says: auto, a share, or None where it was not given; SettingsError for anything else."""
    if keep is None or keep == "auto":
        return keep
    try:
        return float(keep)
    except ValueError as error:
        raise SettingsError(f"--keep: expected auto or a share such as 0.4, got {keep!r}") from error


def parse_size(size: str) -> tuple[int, int]:
    """What --size says: height and width; SettingsError for anything else."""
    height, _, width = size.lower().partition("x")
    if not (height.isascii() and height.isdigit() and width.isascii() and width.isdigit() and int(height) and int(width)):
        raise SettingsError(f"--size: expected height and width such as 480x640, got {size!r}")
    return int(height), int(width)


@contextmanager
def output(path: Path | None, *, append: bool = False) -> Iterator[Any]:
    """The text stream to write to: a new file, the end of an old one, or stdout."""
    if path is None:
        if sys.stdout is None:
            raise OutputError("standard output is closed; leave it open, or give a file with --out")
        sys.stdout.reconfigure(errors="surrogateescape", newline="\n")
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        stream = path.open("a" if append else "w", encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror}); choose another --out") from error
    try:
        yield stream
    except BaseException:
        with suppress(OSError):  # what could not be written has been said
            stream.close()
        raise
    try:
        stream.close()
    except OSError as error:
        raise OutputError(f"{path} cannot be written to its end ({error.strerror}); choose another --out") from error


def write_out(text: str) -> None:
    """Text to standard output. Raises OutputError where that cannot be; BrokenPipeError passes."""
    with output(None) as stream:
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:
            raise  # the reader has enough; that is no failure
        except OSError as error:
            raise OutputError(f"standard output cannot be written ({error.strerror}); is the disk full?") from error


@contextmanager
def training_state(out: Path, resume: bool) -> Iterator[Path]:
    """The file beside the model, with others whose names begin alike, that keeps the state of the trainings until the model is written."""
    state = out.with_name(f"{out.name}.training")

    def states() -> list[Path]:
        return [path for path in state.parent.iterdir() if path.name == state.name or path.name.startswith(f"{state.name}.")]

    def clear() -> None:
        for path in states():
            path.unlink(missing_ok=True)

    if resume and not states():
        say(f"nothing to resume: there is no {state}")
    elif not resume:
        clear()
    try:
        yield state
    except KeyboardInterrupt:
        if states():
            say(f"{state} has the training so far; --resume goes on from there")
        raise
    clear()


def make_directory(path: Path, option: str, *, read: Iterable[Path | str] = ()) -> Path:
    """The directory, made with those above it where it is missing.

    Raises OutputError where that cannot be, or where it lies in a directory that is `read`: its pictures would be taken for images.
    """
    for source in read:
        if os.path.isdir(source) and path.resolve().is_relative_to(Path(source).resolve()):
            raise OutputError(f"cannot write to {path}: it lies in {source}, and the next run would take its pictures for images; choose another {option}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the directory {path} ({error.strerror}); choose another {option}") from error
    if not os.access(path, os.W_OK):
        raise OutputError(f"cannot write into {path}: you have no permission to; change it or choose another {option}")
    return path


def must_be_writable(files: Mapping[str, Path | None], *, read: Iterable[Path | str | None] = ()) -> None:
    """Raise OutputError, before any work, where a file cannot be written, is another option's too, or is one that the run reads.

    Args:
        files: what is to be written, by the option that names it; None: not given.
        read: files, and directories in which images and their captions are looked for.
    """
    sources = [Path(source) for source in read if source is not None]
    taken: dict[Path, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        _check_place(path, option)
        for source in sources:
            _check_apart(path, option, source)
        first = taken.setdefault(path.resolve(), option)
        if first != option and (path.is_file() or not path.exists()):  # a device takes both
            raise OutputError(f"cannot write {path}: {first} writes it too; choose another {option}")


def _check_place(path: Path, option: str) -> None:
    if not path.resolve().parent.is_dir():
        raise OutputError(f"cannot write {path}: the directory {path.parent} does not exist; make it or choose another {option}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a directory; name a file, as {option} {path / 'FILE'}")
    if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
        raise OutputError(f"cannot write {path}: you have no permission to; change it or choose another {option}")


def _check_apart(path: Path, option: str, source: Path) -> None:
    """A file that is read, or an image or a caption in a directory that is: neither an old one, nor one that the next run would find."""
    found = False
    if os.path.isdir(source) and path.resolve().is_relative_to(source.resolve()):
        from cmgcli.images import SUFFIXES

        found = path.suffix.lower() in {*SUFFIXES, ".txt"}
    if path.is_file() and (found or (os.path.isfile(source) and os.path.samefile(path, source))):
        raise OutputError(f"cannot write {path}: this command reads it, and it would be lost; choose another {option}")
    if found:
        raise OutputError(f"cannot write {path}: it lies in {source}, and the next run would read it; choose another {option}")


def inputs(paths: Sequence[str], *, nul: bool = False) -> Iterable[str]:
    """The image files that the arguments stand for; `-` alone stands for standard input (see `stdin_paths`)."""
    if list(paths) == ["-"]:
        return stdin_paths(nul)
    if "-" in paths:
        raise SettingsError("- reads all paths from standard input; give it alone")
    from cmgcli.images import SUFFIXES, find_images

    files = find_images(paths)
    if not files:
        say(f"no image in {' '.join(paths)}: looked for {', '.join(sorted(SUFFIXES))}")
    return files


def stdin_paths(nul: bool) -> Iterator[str]:
    """Paths from standard input as they come, one a line or NUL-separated; bytes that are not UTF-8 are kept."""
    none = True
    for path in filter(None, map(os.fsdecode, _stdin_records(nul))):
        none = False
        yield path
    if none:
        say(f"no path came from standard input; expected one a line{', or NUL-separated' if nul else ''}")


def _stdin_records(nul: bool) -> Iterator[bytes]:
    end, rest = b"\0" if nul else b"\n", b""
    while chunk := _read_stdin():
        *records, rest = (rest + chunk).split(end)
        yield from records if nul else map(_without_return, records)
    yield rest if nul else _without_return(rest)


def _read_stdin() -> bytes:
    """What there is, without sys.stdin: a thread that waits holds its lock, and Python aborts where it ends like that."""
    try:
        return os.read(0, 65536)
    except OSError as error:
        raise InputError(f"standard input cannot be read ({error.strerror}); give the paths as arguments") from error


def _without_return(line: bytes) -> bytes:
    return line.rstrip(b"\r")
