"""How a command ends, and what it says meanwhile: exit codes, messages, progress, values of options. Imports nothing heavy.

Exit codes: 0 done; 1 a gate failed; 2 usage or a CmgError; 3 done, but some inputs could not be read; 70 a fault of the program, or no memory
left; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, TextIO

import typer

from cmgcli import ranks
from cmgcli.errors import CmgError, SettingsError, first_line, is_out_of_memory

GATE_FAILED, USAGE, SOME_UNREADABLE, CRASHED, INTERRUPTED = 1, 2, 3, 70, 130  # 70: EX_SOFTWARE of sysexits.h

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


@contextmanager
def crashing() -> Iterator[None]:
    """Turn what nobody expected into an exit code of its own: Python's is that of a failed gate, and a program that breaks judges no batch."""
    try:
        yield
    except Exception as error:
        _drop_unwritable()
        if is_out_of_memory(error):
            fail(f"out of memory ({first_line(error)}): a smaller --batch-size, or smaller images, take less")
        else:
            import traceback

            traceback.print_exc()
            fail("broke down, see above: a fault of cmg or of what is installed beside it, not of your parts; please report it with what cmg --version says")
        sys.exit(CRASHED)


class Lasting:
    """A stream that goes nowhere once it cannot be written, by one of the ``failures``, and so ends no command."""

    def __init__(self, stream: TextIO, failures: type[OSError] = OSError) -> None:
        self._stream, self._failures = stream, failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``, or drop it where the stream is broken; its length in either case."""
        with self._going_on():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what is held back, or drop it where the stream is broken."""
        with self._going_on():
            self._stream.flush()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except self._failures:
            _silence(self._stream)


def mend_stderr() -> None:
    """A closed standard error goes nowhere: Python would print its lines among the rows; one that breaks ends no command."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - to the end of the program
    else:
        sys.stderr = Lasting(sys.stderr)


def silence_stdout() -> None:
    """From here on standard output goes nowhere, also what it still holds."""
    _silence(sys.stdout)


def _silence(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
    """Let the package's log speak on stderr; what libraries say of their own retries is in the error that ends them.

    Of several ranks only the first speaks.
    """
    import logging

    logging.getLogger().addHandler(logging.NullHandler())
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    handler = logging.StreamHandler() if ranks.leads() else logging.NullHandler()
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


def fail(line: str) -> None:
    """One line on stderr, also with --quiet: why the exit code is not 0; of several ranks from the first that fails."""
    if ranks.first_to_fail():
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
    if not ranks.leads() or not sys.stderr.isatty() or not _logger().isEnabledFor(_NOTICE):
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


# ---- options


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
