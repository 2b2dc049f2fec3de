"""The report page: one HTML file with everything in it, for a browser, a phone or a printer.

The texts in it come from users (captions, file names, command lines): the template escapes each of them, and a policy in
the page itself forbids scripts and the network.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmgcli.calibrate import METHODS, chance_of_excess
from cmgcli.charts import charts, stress_chart
from cmgcli.errors import OutputError
from cmgcli.files import write_whole
from cmgcli.report import Evaluation, Gate, Group, Rate, gain, percent
from cmgcli.stress import Stress
from cmgcli.verdict import printable

if TYPE_CHECKING:
    from jinja2 import Template

EXHIBITS = 6  # of each kind
MOST_GROUPS = 60  # rows of a table
_DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Page:
    """All that the report page shows."""

    title: str
    result: Evaluation  # with its cases, and exhibits where there are any
    date: datetime
    gates: tuple[Gate, ...] = ()
    ablation: Mapping[str, Evaluation] = field(default_factory=dict)  # one of them called baseline
    paper_gain: float = 0.0
    stress: Stress | None = None
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # heading -> what to repeat it with


def write_page(page: Page, path: Path) -> None:
    """Write the page to a temporary file beside `path`, then rename it. Raises OutputError where that cannot be done."""
    try:
        write_whole(path, render(page).encode())
    except OSError as error:
        raise OutputError(f"the report could not be written to {path} ({error.strerror}); choose another --report") from error


def render(page: Page) -> str:
    """The page as HTML; the same but for its date where the evaluation is the same."""
    result = page.result
    return _template().render(
        page=page,
        result=result,
        verdict=verdict(result),
        promise=promise(result),
        gate_sentence=gate_sentence(page.gates),
        charts=charts(result),
        stress_chart=None if page.stress is None else stress_chart(page.stress),
        by_defect=_worst_first(result.by_defect),
        by_caption=_largest(result.by_caption),
        left_out=max(0, len(result.by_caption) - MOST_GROUPS),
        outlined=any(shown.image and shown.case.record.mask for shown in result.worst_misses),
        unreadable=[case for case in result.cases if case.row.error],
        gains={name: gain(row, page.ablation["baseline"]) for name, row in page.ablation.items()},
    )


def verdict(result: Evaluation) -> str:
    """What happens to good and to bad parts, in one sentence."""
    if result.threshold is None:
        start = "By the scores file,"
    elif result.threshold == float("inf"):
        start = "No threshold could be calibrated, so nothing is rejected:"
    else:
        start = f"At the calibrated {'thresholds' if result.thresholds else 'threshold'},"
    promised = "" if result.promised_false_alarm_rate is None else f"; promised: {METHODS[result.calibration]} {percent(result.promised_false_alarm_rate)}"
    alarm, miss = result.false_alarm_rate, result.miss_rate
    return (
        f"{start} {_of(alarm, 'good')} rejected ({percent(alarm.value)}, 95\xa0% interval {interval(alarm)}{promised}) "
        f"and {_of(miss, 'bad')} missed ({percent(miss.value)}, 95\xa0% interval {interval(miss)})."
    )


def _of(rate: Rate, kind: str) -> str:
    return f"{rate.count} of {rate.total} {kind} parts {'is' if rate.count == 1 else 'are'}"


def promise(result: Evaluation) -> str:
    """Whether the rejected good parts agree with the promise; empty where nothing was promised."""
    promised, seen = result.promised_false_alarm_rate, result.false_alarm_rate
    if promised is None:
        return ""
    if chance_of_excess(seen.count, seen.total, promised=promised, calibrated=result.calibration_images) < 0.025:
        return "More good parts are rejected than was promised: they differ from the good parts that the threshold was calibrated on."
    return f"The rejected good parts agree with the promise, as far as {seen.total} good parts can tell."


def gate_sentence(gates: tuple[Gate, ...]) -> str:
    """Whether the gates passed; the page lists each."""
    failed = sum(not gate.passed for gate in gates)
    if not gates:
        return "No gate was set."
    if failed:
        return "The gate failed." if len(gates) == 1 else f"{failed} of {len(gates)} gates failed."
    return "The gate passed." if len(gates) == 1 else f"All {len(gates)} gates passed."


def interval(rate: Rate) -> str:
    """The 95 % interval in words for people: `1.2 to 3.4 %`."""
    return f"{100 * rate.low:.1f} to {percent(rate.high)}"


def _worst_first(groups: Mapping[str, Group]) -> list[tuple[str, Group]]:
    return sorted(groups.items(), key=lambda item: (-item[1].miss_rate.value, -item[1].images, item[0]))


def _largest(groups: Mapping[str, Group]) -> list[tuple[str, Group]]:
    """The groups with the most images, at most `MOST_GROUPS`, in their own order."""
    chosen = set(sorted(groups, key=lambda name: (-groups[name].images, name))[:MOST_GROUPS])
    return [(name, group) for name, group in groups.items() if name in chosen]


def _template() -> Template:
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=spelled_out)
    environment.filters |= {"percent": percent, "interval": interval, "figure": figure, "number": number, "picture": picture}
    return environment.from_string(files("cmgcli").joinpath("page.html").read_text(encoding="utf-8"))


def spelled_out(value: Any) -> Any:
    """What goes into the page: a text as `verdict.printable` has it; markup is text of our own."""
    return printable(value) if type(value) is str else value


def figure(value: float | None) -> str:
    """A measure in [0, 1] with three decimals."""
    return _DASH if value is None else f"{value:.3f}"


def number(value: float | None) -> str:
    """A score or a p-value with four significant digits."""
    return _DASH if value is None else f"{value:.4g}"


def picture(jpeg: bytes) -> str:
    """A data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
