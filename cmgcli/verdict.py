"""What a scoring run amounts to: counts, gates, the sentence that says it, and names that any page can show."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from cmgcli.drift import DriftWatch
from cmgcli.errors import SettingsError
from cmgcli.rows import Row

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Limit:
    """The most anomalous images that a run may have: a count, or a percentage of the readable images."""

    option: str  # as it was given
    most: Decimal
    percent: bool

    def failure(self, anomalies: int, readable: int) -> str:
        """Why the gate failed; empty where the run keeps the limit."""
        if not readable:
            return f"no image could be judged, which {self.option} asks for"
        kept = anomalies * 100 <= self.most * readable if self.percent else anomalies <= self.most
        return "" if kept else f"{_counted(anomalies, readable)}, which {self.option} does not allow"


@dataclass(frozen=True)
class Gate:
    """A gate of a run; `failure` is empty where it held."""

    option: str
    failure: str


@dataclass(frozen=True)
class Verdict:
    """A run's counts and gates, and its rows where they were asked for."""

    images: int
    unreadable: int
    anomalies: int
    gates: tuple[Gate, ...] = ()
    rows: tuple[Row, ...] = ()
    drift: str = ""  # what the watch for drift found; empty where nobody watched

    @property
    def failures(self) -> tuple[str, ...]:
        """The sentences of the gates that failed."""
        return tuple(gate.failure for gate in self.gates if gate.failure)

    @property
    def sentence(self) -> str:
        """The counts in words."""
        if not self.images:
            return "no image was given"
        said = _counted(self.anomalies, self.images - self.unreadable)
        return f"{said}, {self.unreadable} could not be read" if self.unreadable else said

    def worst(self, most: int) -> list[Row]:
        """The rows with the highest scores, highest first."""
        return heapq.nlargest(most, (row for row in self.rows if row.score is not None), key=lambda row: row.score)


class Tally:
    """Counts the rows of a run as they come; keeps them only where `keep` says so, for a run may have no end."""

    def __init__(self, *, keep: bool, watch: DriftWatch | None = None, group_of: Callable[[str], int] | None = None) -> None:
        """group_of: the number of a caption, for the watch."""
        self.keep, self.watch, self.group_of = keep, watch, group_of
        self.rows: list[Row] = []
        self.images = self.unreadable = self.anomalies = 0

    def add(self, row: Row) -> None:
        """Count one row."""
        self.images += 1
        self.unreadable += bool(row.error)
        self.anomalies += row.anomalous or 0
        if self.keep:
            self.rows.append(row)
        if self.watch is not None and row.score is not None:
            self.watch.add(row.score, *(() if self.group_of is None else (self.group_of(row.caption),)))

    @property
    def drifted(self) -> bool:
        """Whether the scores so far say that the line has changed."""
        return self.watch is not None and self.watch.alarm is not None

    def verdict(self, limits: Sequence[Limit], *, fail_on_drift: bool = False) -> Verdict:
        """The counts so far, judged."""
        readable = self.images - self.unreadable
        gates = tuple(Gate(limit.option, limit.failure(self.anomalies, readable)) for limit in limits)
        drift = "" if self.watch is None else self.watch.sentence
        if fail_on_drift:
            gates += (Gate("--fail-on-drift", drift if self.drifted else ""),)
        return Verdict(self.images, self.unreadable, self.anomalies, gates, tuple(self.rows), drift)


Threshold = Callable[[Row], float]
Why = Callable[[Row], str]  # what decided the score of an image


def _counted(anomalies: int, readable: int) -> str:
    return f"{anomalies or 'none'} of {readable} readable images {'is' if anomalies < 2 else 'are'} anomalous"


def limits_of(*, fail_on_anomaly: bool = False, max_anomalies: str | None = None) -> tuple[Limit, ...]:
    """The limits that the options set.

    Raises SettingsError where `max_anomalies` is neither a count such as 3 nor a share such as 2% of at most 100%.
    """
    limits = [Limit("--fail-on-anomaly", Decimal(0), percent=False)] if fail_on_anomaly else []
    if max_anomalies is not None:
        text = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)\s*%", max_anomalies.strip(), flags=re.ASCII)
        if text is None or (text[2] and Decimal(text[2]) > 100):
            raise SettingsError(f"--max-anomalies: expected a count such as 3 or a share such as 2%, got {max_anomalies!r}")
        limits.append(Limit(f"--max-anomalies {text[0]}", Decimal(text[1] or text[2]), percent=text[1] is None))
    return tuple(limits)


def printable(text: str) -> str:
    r"""The text with what XML 1.0 or a page cannot carry spelled out: control characters and bytes of a name as `\x1b`."""
    return _UNPRINTABLE.sub(lambda match: _spelled(ord(match[0])), text)


def _spelled(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # the byte that os.fsdecode could not decode
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
