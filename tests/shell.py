"""Run cmg as a shell does, or, where only words and exit codes matter, in this process (torch is imported once)."""

import csv
import io
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

from typer.testing import CliRunner


@dataclass(frozen=True)
class Ran:
    """What a run left: its exit code and what it wrote."""

    returncode: int
    out: str
    err: str


def cmg(*arguments: object, stdin: str | bytes | None = None) -> Ran:
    """Run the program; a traceback is a failure of the test."""
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "200"}
    data = stdin.encode() if isinstance(stdin, str) else stdin
    command = [sys.executable, "-m", "cmgcli", *map(str, arguments)]
    run = subprocess.run(command, input=data, capture_output=True, env=environment, check=False)
    ran = Ran(run.returncode, run.stdout.decode(), run.stderr.decode())
    assert "Traceback" not in ran.err, ran.err
    return ran


def heed_interrupts() -> None:
    """For a child before it starts: a job in the background of a shell, and with it this one, may be deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def cmg_here(*arguments: object) -> Ran:
    """The same within this process; standard input is not read."""
    from cmgcli.cli import app

    logger = logging.getLogger("cmgcli")
    before = logger.handlers, logger.propagate, logger.level
    try:
        result = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"}).invoke(app, list(map(str, arguments)), prog_name="cmg")
    finally:
        logger.handlers, logger.propagate, logger.level = before
        logger.setLevel(before[2])  # which also forgets what the logger has cached about its level
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def table(text: str) -> list[dict[str, str]]:
    """The rows of a CSV text."""
    return list(csv.DictReader(io.StringIO(text)))


def wrong(run: Ran, *words: str) -> None:
    """Assert a usage error: nothing on stdout, one line on stderr that has these words."""
    assert run.returncode == 2, run.err
    assert run.out == ""
    assert run.err.startswith("cmg: ") and run.err.count("\n") == 1
    for word in words:
        assert word in run.err
