"""What an evaluation leaves: tables on standard output, figures as JSON, the report page, the exit code."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from cmgcli import page, report
from cmgcli.console import GATE_FAILED, SOME_UNREADABLE, fail, say, silence_stdout
from cmgcli.errors import OutputError
from cmgcli.files import write_whole
from cmgcli.page import Page
from cmgcli.streams import output
from cmgcli.stress import plain, stress_table


def publish(content: Page, json_file: Path | None, report_file: Path | None) -> None:
    """Tables to standard output, and the files that were asked for; typer.Exit where a gate failed, or an image could not be read."""
    with output(None):
        _print_tables(content)
    if json_file is not None:
        figures = content.result.as_dict() | {"ablation": {name: row.as_dict() for name, row in content.ablation.items()}}
        figures["gates"] = [asdict(gate) | {"passed": gate.passed} for gate in content.gates]
        figures["stress"] = None if content.stress is None else content.stress.as_dict()
        try:
            write_whole(json_file, (json.dumps(figures, indent=2, allow_nan=False, default=str) + "\n").encode())
        except OSError as error:
            raise OutputError(f"{json_file} cannot be written ({error.strerror}); is the disk full?") from error
    if report_file is not None:
        page.write_page(content, report_file)
        say(f"wrote {report_file}")
    _conclude(content)


def _print_tables(content: Page) -> None:
    """The tables as text that is as wide as the terminal, and coloured on one; a reader that has enough loses nothing but the rest of it."""
    from rich.console import Console

    class Lasting(Console):
        def on_broken_pipe(self) -> None:
            """Write no more; rich would end the program, with the exit code of a failed gate."""
            self.quiet = True
            silence_stdout()

    console = Lasting()
    try:
        console.print(report.evaluation_table(content.result))
        if content.result.by_promised_rate:
            console.print(report.rate_table(content.result))
        for table in report.group_tables(content.result):
            console.print(table)
        if content.result.naming is not None:
            console.print(report.confusion_table(content.result.naming))
            console.print(content.result.naming.sentence, markup=False, highlight=False)
        if content.ablation:
            console.print(report.ablation_table(content.ablation, content.paper_gain))
        if content.stress is not None:
            console.print(stress_table(content.stress))
            for sentence in (content.stress.sentence, content.stress.blindness):
                console.print(plain(sentence), markup=False, highlight=False)
    except OSError as error:
        raise OutputError(f"the tables cannot be written ({error.strerror}); is the disk full?") from error


def _conclude(content: Page) -> None:
    """The exit code, and why: a failed gate beats an unreadable image."""
    failures = [gate.failure for gate in content.gates if not gate.passed]
    for failure in failures:
        fail(f"gate failed: {failure}")
    for name in content.result.unreadable:
        fail(f"could not be read: {name}")
    if failures:
        raise typer.Exit(GATE_FAILED)
    if content.result.unreadable:
        raise typer.Exit(SOME_UNREADABLE)
