"""A scoring run as Markdown for the summary page of a CI job."""

from __future__ import annotations

import re
from pathlib import Path

from cmgcli.errors import OutputError
from cmgcli.rows import Row
from cmgcli.verdict import Verdict, Why, printable

WORST = 10
_MARKUP = re.compile(r"[\\`*_\[\]<>|~&$#@]")


def append_summary(verdict: Verdict, path: Path, *, why: Why) -> None:
    """Append the summary to the file, which is made where there is none; `why` says what decided in few words.

    Raises OutputError where it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(markdown(verdict, why))
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror}); choose another --summary") from error


def markdown(verdict: Verdict, why: Why) -> str:
    """The verdict, the counts, the worst images and the unreadable ones, at most ten of each; GitHub's Markdown."""
    lines = [f"### cmg: {verdict.sentence}", ""]
    for gate in verdict.gates:
        lines += [f"**Gate failed:** {escaped(gate.failure)}" if gate.failure else f"Gate passed: {escaped(gate.option)}", ""]
    if verdict.drift:
        lines += [escaped(verdict.drift[0].upper() + verdict.drift[1:]) + ".", ""]
    readable = verdict.images - verdict.unreadable
    lines += ["| images | readable | anomalous | unreadable |", "|---:|---:|---:|---:|"]
    lines += [f"| {verdict.images} | {readable} | {verdict.anomalies} | {verdict.unreadable} |", ""]
    worst = verdict.worst(WORST)
    if worst:
        lines += ["The highest scores:", "", "| image | score | p-value | anomalous | caption |", "|---|---:|---:|---|---|", *(_table_row(row, why) for row in worst), ""]
    broken = [row for row in verdict.rows if row.error]
    if broken:
        lines += ["Could not be read:", "", *(f"- {escaped(row.file)}: {escaped(row.error)}" for row in broken[:WORST])]
        lines += [f"- and {len(broken) - WORST} more"] * (len(broken) > WORST) + [""]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    r"""The text on one line, so that Markdown shows it as it is: markup gets a backslash, control characters are spelled out."""
    one_line = printable(re.sub(r"[\r\n\t]", lambda match: {"\r": r"\r", "\n": r"\n", "\t": r"\t"}[match[0]], text))
    return _MARKUP.sub(lambda match: "\\" + match[0], one_line)


def _table_row(row: Row, why: Why) -> str:
    p_value = "" if row.p_value is None else f"{row.p_value:.3g}"
    verdict = ("yes: " + why(row)).removesuffix(": ") if row.anomalous else "no"
    return f"| {escaped(row.file)} | {row.score:.4g} | {p_value} | {verdict} | {escaped(row.caption)} |"
