"""What a command reads and writes: paths from arguments and standard input, streams, and where files may go. Imports nothing heavy."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cmgcli import ranks
from cmgcli.console import Lasting, say
from cmgcli.errors import InputError, OutputError, SettingsError
from cmgcli.files import identity, resolved


@contextmanager
def output(path: Path | None, *, append: bool = False, lasting: bool = False) -> Iterator[Any]:
    """The text stream to write to: a new file, the end of an old one, or stdout; a ``lasting`` one swallows what nobody reads any more."""
    if path is None:
        if sys.stdout is None:
            raise OutputError("standard output is closed; leave it open, or give a file with --out")
        sys.stdout.reconfigure(errors="surrogateescape", newline="\n")
        yield Lasting(sys.stdout, BrokenPipeError) if lasting else sys.stdout
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
    with output(None) as stream, writing_out():
        stream.write(text)
        stream.flush()


@contextmanager
def writing_out() -> Iterator[None]:
    """Raise OutputError where standard output cannot be written; BrokenPipeError passes."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader has enough; that is no failure
    except OSError as error:
        raise OutputError(f"standard output cannot be written ({error.strerror}); is the disk full?") from error


@contextmanager
def training_state(out: Path, resume: bool) -> Iterator[Path]:
    """The file beside the model, with others whose names begin alike, that keeps the state of the trainings until the model is written.

    Of several ranks the first clears it away.
    """
    state = out.with_name(f"{out.name}.training")
    if not ranks.leads():
        yield state
        return

    def states() -> list[Path]:
        spaces = re.compile(re.escape(state.name) + r"(\.space\d+)?")
        return [path for path in state.parent.iterdir() if spaces.fullmatch(path.name) and path.is_file()]

    def clear() -> None:
        for path in states():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"cannot remove {path}, the state of an earlier training ({error.strerror}); remove it or choose another --out") from error

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
        if os.path.isdir(source) and resolved(path).is_relative_to(resolved(source)):
            raise OutputError(f"cannot write to {path}: it lies in {source}, and the next run would take its pictures for images; choose another {option}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the directory {path} ({error.strerror}); choose another {option}") from error
    if not os.access(path, os.W_OK):
        raise OutputError(f"cannot write into {path}: you have no permission to; change it or choose another {option}")
    return path


def apart(files: Iterable[str], directories: Mapping[str, Path | None], *, read: Iterable[Path | str]) -> Iterable[str]:
    """Make directories for pictures, by the option that names each; give the files, none of which lies in one of them: a picture could
    take its name, and the next run would take pictures for images. A list is looked through at once, what comes from a pipe one by one.

    Raises:
        OutputError: see `make_directory`, or a file lies in one of them.
    """
    taken = {str(resolved(make_directory(path, option, read=read))): (path, option) for option, path in directories.items() if path is not None}
    seen: set[str] = set()

    def checked() -> Iterator[str]:
        for file in files:
            folder = os.path.dirname(file)
            if folder not in seen and taken:
                seen.add(folder)
                if found := taken.get(str(resolved(folder or "."))):
                    path, option = found
                    raise OutputError(f"cannot write pictures to {path}: {file} lies there, and would be overwritten or mixed up with them; choose another {option}")
            yield file

    return list(checked()) if isinstance(files, list) else checked()


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
        first = taken.setdefault(resolved(path), option)
        if first != option and (path.is_file() or not path.exists()):  # a device takes both
            raise OutputError(f"cannot write {path}: {first} writes it too; choose another {option}")


def among(written: Iterable[Path | None], files: Iterable[str]) -> list[str]:
    """Those of the listed images that are a file to write, or may become it; what comes from a pipe is not known yet."""
    there = {identity(path) for path in written if path is not None} - {None}
    return [file for file in files if identity(file) in there] if there and isinstance(files, list) else []


def _check_place(path: Path, option: str) -> None:
    if str(path) == "-":
        raise OutputError(f"cannot write '-': it stands for standard input; name a file for {option}, such as /dev/stdout")
    if not resolved(path).parent.is_dir():
        raise OutputError(f"cannot write {path}: the directory {path.parent} does not exist; make it or choose another {option}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a directory; name a file, as {option} {path / 'FILE'}")
    if not os.access(path if path.exists() else resolved(path).parent, os.W_OK):
        raise OutputError(f"cannot write {path}: you have no permission to; change it or choose another {option}")


def _check_apart(path: Path, option: str, source: Path) -> None:
    """A file that is read, or an image or a caption in a directory that is: neither an old one, nor one that the next run would find."""
    found = False
    if os.path.isdir(source) and resolved(path).is_relative_to(resolved(source)):
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
