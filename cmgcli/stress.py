"""What a stress run found: error rates at the fixed threshold under each change and strength, in words, and as a table.

Receives results, computes none but the comparison with what was promised.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cmgcli.calibrate import METHODS, chance_of_excess
from cmgcli.changes import STRENGTHS
from cmgcli.report import Rate, percent

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


@dataclass(frozen=True)
class Rates:
    """What happened to good and to bad parts; None where none of them gave a score."""

    false_alarm: Rate | None
    miss: Rate | None


@dataclass(frozen=True)
class Trial:
    """One change at its strengths, weakest first."""

    name: str
    wording: str  # an amount in words, with {} for the number
    amounts: tuple[float, ...]
    rates: tuple[Rates, ...]

    def at(self, strength: int) -> str:
        """The amount of a strength from 1 in words."""
        return self.wording.format(f"{self.amounts[strength - 1]:g}")

    @property
    def reach(self) -> str:
        """The weakest and the strongest amount in words."""
        return self.wording.format(f"{self.amounts[0]:g} to {self.amounts[-1]:g}")


@dataclass(frozen=True)
class Break:
    """Where the promise was seen to be broken; without a trial: by the pictures as they are."""

    rate: Rate
    trial: Trial | None = None
    strength: int = 0


@dataclass(frozen=True)
class Stress:
    """The same images as they are and under every change."""

    images: int
    anomalous: int
    promised: float | None  # None where nothing was
    calibrated: int  # images that the promise rests on
    method: str  # how, of calibrate.METHODS
    untouched: Rates
    trials: tuple[Trial, ...]

    def breaks(self, rate: Rate | None) -> bool:
        """Whether a false-alarm rate is surely above the promise: at 95 % for all rates of the run together (Bonferroni), and allowing
        for the luck of the calibration, see `calibrate.chance_of_excess`."""
        if rate is None or self.promised is None:
            return False
        looks = 1 + sum(len(trial.rates) for trial in self.trials)
        return chance_of_excess(rate.count, rate.total, promised=self.promised, calibrated=self.calibrated) < 0.05 / looks

    @property
    def first_break(self) -> Break | None:
        """The weakest strength at which the promise breaks, and of the changes that break it there the one with most false alarms."""
        if self.breaks(self.untouched.false_alarm):
            return Break(self.untouched.false_alarm)
        for strength in range(1, STRENGTHS + 1):
            there = [Break(trial.rates[strength - 1].false_alarm, trial, strength) for trial in self.trials]
            broken = [found for found in there if self.breaks(found.rate)]
            if broken:
                return max(broken, key=lambda found: found.rate.value)
        return None

    @property
    def sentence(self) -> str:
        """Which change breaks the promise first."""
        untouched = self.untouched.false_alarm
        if self.promised is None or untouched is None:
            return "Nothing was promised, so no change can break it."
        found = self.first_break
        if found is None:
            return f"No change breaks the promise of {METHODS[self.method]} {percent(self.promised)} false alarms, as far as {untouched.total} good parts can tell."
        counted = f"{found.rate.count} of {found.rate.total} good parts are rejected, promised: {METHODS[self.method]} {percent(self.promised)}"
        if found.trial is None:
            return f"The promise is broken before anything changes: {counted}."
        name = found.trial.name[0].upper() + found.trial.name[1:]
        return f"{name} breaks the promise first: at {found.trial.at(found.strength)} {counted}; {untouched.count} of the same without it."

    @property
    def blindness(self) -> str:
        """Which change hides most bad parts; empty where none hides more than are missed anyway."""
        base = self.untouched.miss
        hidden = [(rates.miss.value, -strength, trial) for trial in self.trials for strength, rates in enumerate(trial.rates, 1) if rates.miss]
        if base is None or not hidden:
            return ""
        value, strength, trial = max(hidden, key=lambda entry: entry[:2])
        if value <= base.value:
            return f"No change hides more bad parts than the {base.count} of {base.total} that are missed anyway."
        miss = trial.rates[-strength - 1].miss
        return f"Most bad parts are hidden by {trial.name}: at {trial.at(-strength)} {miss.count} of {miss.total} are missed, {base.count} without it."

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and None, for JSON."""
        found = self.first_break
        first = None if found is None else {"change": found.trial and found.trial.name, "strength": found.strength, **asdict(found.rate)}
        return asdict(self) | {"first_break": first, "sentence": plain(self.sentence), "blindness": plain(self.blindness)}


def plain(sentence: str) -> str:
    """With ordinary spaces, for a file or a terminal."""
    return sentence.replace("\N{NO-BREAK SPACE}", " ")


def stress_table(stress: Stress) -> Table:
    """One row per change: share of good parts rejected and of bad parts missed, at every strength; a broken promise is marked."""
    from rich.table import Table
    from rich.text import Text

    title = f"stress: % of {stress.images - stress.anomalous} good parts rejected / % of {stress.anomalous} bad parts missed"
    table = Table(title=title, caption="!: surely more false alarms than promised" if stress.first_break else None)
    table.add_column("change")
    for strength in range(STRENGTHS + 1):
        table.add_column(str(strength) if strength else "as is", justify="right", no_wrap=True)
    for trial in stress.trials:
        name = Text(trial.name).append(f"\n{trial.reach}", style="dim")
        table.add_row(name, *(_cell(stress, rates) for rates in (stress.untouched, *trial.rates)))
    return table


def _cell(stress: Stress, rates: Rates) -> Text:
    from rich.text import Text

    broken = stress.breaks(rates.false_alarm)
    return Text(f"{'!' if broken else ''}{_share(rates.false_alarm)}/{_share(rates.miss)}", style="bold red" if broken else "")


def _share(rate: Rate | None) -> str:
    return "-" if rate is None else f"{100 * rate.value:.0f}"
