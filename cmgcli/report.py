"""What an evaluation found: its cases, its figures, its tables for a terminal. Receives results, computes none."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from cmgcli.calibrate import span_of_thresholds
from cmgcli.dataset import Record
from cmgcli.metrics import Agreement
from cmgcli.rows import Row

if TYPE_CHECKING:
    from rich.table import Table

_MOST_ROWS = 40


@dataclass(frozen=True)
class Case:
    """One labelled image and what scoring it gave; `row.error` says why there is no score."""

    record: Record
    row: Row
    area: float | None = None  # share of the image that the labelled defect covers, where there is a mask

    @property
    def anomalous(self) -> bool:
        """The truth, as it was labelled."""
        return bool(self.record.label)

    @property
    def wrong(self) -> bool:
        """Whether it is a false alarm or a miss."""
        return bool(self.row.anomalous) != self.anomalous


@dataclass(frozen=True)
class Exhibit:
    """A case worth looking at, with small JPEG pictures; None where there is none to draw."""

    case: Case
    image: bytes | None = None  # with the labelled defect outlined
    overlay: bytes | None = None  # the anomaly map over it


@dataclass(frozen=True)
class Rate:
    """A share ``count / total``, ``total > 0``, with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    count: int
    total: int

    @property
    def others(self) -> "Rate":
        """The share of the cases that this one leaves: of the missed those that are found."""
        return Rate(1 - self.value, 1 - self.high, 1 - self.low, self.total - self.count, self.total)


@dataclass(frozen=True)
class Group:
    """The figures of the images of one caption or of one kind of defect; None where they hold too little to tell."""

    images: int
    anomalous: int
    auroc: float | None  # of one kind of defect: against all good images
    auroc_interval: tuple[float, float] | None  # 95 %
    false_alarm_rate: Rate | None
    miss_rate: Rate | None


@dataclass(frozen=True)
class Choice:
    """What a promised false-alarm rate would give on these images."""

    false_alarm_rate: Rate
    miss_rate: Rate


@dataclass(frozen=True)
class Gate:
    """A limit that a figure must keep."""

    figure: str
    value: float
    limit: float
    least: bool  # the limit is the least allowed value; else the greatest

    @property
    def passed(self) -> bool:
        """Whether the figure keeps the limit."""
        return self.value >= self.limit if self.least else self.value <= self.limit

    @property
    def failure(self) -> str:
        """The sentence of a gate that failed."""
        digits = next(digits for digits in range(4, 18) if digits == 17 or f"{self.value:.{digits}f}" != f"{self.limit:.{digits}f}")
        return f"{self.figure} {self.value:.{digits}f} is {'below' if self.least else 'above'} {self.limit:.{digits}g}"


@dataclass(frozen=True)
class Confusion:
    """Which names bad images got, against their labels, whether they were rejected or not."""

    names: tuple[str, ...]  # that could be given
    counts: Mapping[str, Mapping[str, int]]  # label -> name given first -> images
    right: Rate | None  # of the images whose label is one of the names; None where there is none

    @property
    def sentence(self) -> str:
        """How often the first name is the label, beside guessing."""
        if self.right is None:
            return f"None of the labels is one of the names: {', '.join(self.names)}."
        low, high = self.right.low, self.right.high
        return (
            f"The first name is the label in {self.right.count} of {self.right.total} bad images: {self.right.value:.2f} [{low:.2f}, {high:.2f}]; "
            f"guessing among {len(self.names)} names: {1 / len(self.names):.2f}."
        )


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one labelled set; a metric that its data do not allow is None."""

    images: int
    anomalous: int
    unreadable: tuple[str, ...]
    image_auroc: float
    image_auroc_interval: tuple[float, float]  # 95 %
    average_precision: float
    f1_max: float
    f1_max_threshold: float
    threshold: float | None  # infinite where nothing was calibrated; None where only the scores are known
    promised_false_alarm_rate: float | None
    calibration_images: int | None  # that the promise rests on
    calibration: str | None  # how, of calibrate.METHODS
    false_alarm_rate: Rate
    miss_rate: Rate
    pixel_auroc: float | None
    aupro: float | None
    severity: Agreement | None  # where the labels are levels 0..k
    auroc_by_part: Mapping[str, float]
    by_defect: Mapping[str, Group]
    by_caption: Mapping[str, Group]
    by_size: Mapping[str, Group] = field(default_factory=dict)  # defects by their share of the image, small ones first; where there are masks
    thresholds: Mapping[str, float] = field(default_factory=dict)  # of the captions that have their own; `threshold` is that of the others
    by_promised_rate: Mapping[str, Choice] = field(default_factory=dict)  # where there are p-values, for the rates that they can tell
    cases: tuple[Case, ...] = ()  # all of them, in their order
    worst_misses: tuple[Exhibit, ...] = ()  # anomalous, the lowest score first
    worst_false_alarms: tuple[Exhibit, ...] = ()  # good, the highest score first
    naming: Confusion | None = None  # where defects were to be named

    @property
    def auroc_by_defect(self) -> dict[str, float]:
        """The image AUROC of each kind of defect against all good images."""
        return {name: group.auroc for name, group in self.by_defect.items() if group.auroc is not None}

    @property
    def miss_rate_by_defect(self) -> dict[str, Rate]:
        """The share of each kind of defect that was called normal."""
        return {name: group.miss_rate for name, group in self.by_defect.items() if group.miss_rate is not None}

    @property
    def recall_by_size(self) -> dict[str, Rate]:
        """The share of the defects of each size that was found."""
        return {name: group.miss_rate.others for name, group in self.by_size.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and None, for JSON; without cases and pictures. What is not finite is None."""
        figures = [figure.name for figure in fields(self) if figure.name not in ("cases", "worst_misses", "worst_false_alarms")]
        return {name: _plain(getattr(self, name)) for name in (*figures, "auroc_by_defect", "miss_rate_by_defect", "recall_by_size")}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {part.name: _plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def gates(
    result: Evaluation, *, min_auroc: float | None = None, max_false_alarm: float | None = None, max_miss: float | None = None
) -> tuple[Gate, ...]:
    """The gates that were set, each with the figure that it judges."""
    limits = (
        ("image AUROC", result.image_auroc, min_auroc, True),
        ("false-alarm rate", result.false_alarm_rate.value, max_false_alarm, False),
        ("miss rate", result.miss_rate.value, max_miss, False),
    )
    return tuple(Gate(figure, value, limit, least) for figure, value, limit, least in limits if limit is not None)


def percent(share: float) -> str:
    """A share in words for people: `5.0 %`, with a space that does not break."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def metrics_table(metrics: Mapping[str, str | int | float], *, title: str = "") -> "Table":
    """A table of names and values for a terminal; floats with four decimals, NaN as a dash."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(Text(name), Text("-" if isinstance(value, float) and math.isnan(value) else shown))
    return table


def evaluation_table(result: Evaluation) -> "Table":
    """The figures of one evaluation, with their 95 % intervals."""
    figures: dict[str, str | int | float] = {
        "images": result.images,
        "anomalous": result.anomalous,
        "image AUROC [95 %]": _with_interval(result.image_auroc, result.image_auroc_interval),
        "average precision": result.average_precision,
        "F1-max": result.f1_max,
        "F1-max threshold": result.f1_max_threshold,
        "threshold": _threshold(result),
        "false-alarm rate [95 %]": _rate(result.false_alarm_rate),
        "miss rate [95 %]": _rate(result.miss_rate),
    }
    if result.pixel_auroc is not None:
        figures |= {"pixel AUROC": result.pixel_auroc, "AUPRO": result.aupro}
    if result.severity is not None:
        figures |= {"C-index of severity": result.severity.c_index, "Kendall's tau of severity": result.severity.kendall_tau}
    figures |= {f"AUROC by {name}": value for name, value in result.auroc_by_part.items()}
    return metrics_table(figures, title="evaluation")


def _threshold(result: Evaluation) -> str | float:
    if result.thresholds:
        return span_of_thresholds([result.threshold, *result.thresholds.values()])
    return math.nan if result.threshold is None else result.threshold


def rate_table(result: Evaluation) -> "Table":
    """One row per promised false-alarm rate that could be chosen."""
    from rich.table import Table

    table = Table(title="by promised false-alarm rate")
    table.add_column("promised")
    for name in ("false alarms", "rate", "missed", "rate"):
        table.add_column(name, justify="right")
    for name, choice in result.by_promised_rate.items():
        table.add_row(name, *(cell for rate in (choice.false_alarm_rate, choice.miss_rate) for cell in (_count(rate), f"{rate.value:.4f}")))
    return table


def group_tables(result: Evaluation) -> "Iterable[Table]":
    """One table per kind of defect and one per caption, where there are several, but not more than a screen holds, and one per size."""
    from rich.table import Table
    from rich.text import Text

    for title, groups in (("defect", result.by_defect), ("caption", result.by_caption)):
        if not 2 <= len(groups) <= _MOST_ROWS:
            continue
        table = Table(title=f"by {title}")
        table.add_column(title)
        for name in ("AUROC", "missed", "false alarms"):
            table.add_column(name, justify="right")
        for name, group in groups.items():
            area = "-" if group.auroc is None else f"{group.auroc:.4f}"
            table.add_row(Text(name), area, _count(group.miss_rate), _count(group.false_alarm_rate))
        yield table
    if result.by_size:
        table = Table(title="by size of the defect")
        table.add_column("share of the image")
        for name in ("AUROC", "found", "recall [95 %]"):
            table.add_column(name, justify="right")
        for name, found in result.recall_by_size.items():
            table.add_row(name, f"{result.by_size[name].auroc:.4f}", _count(found), _rate(found))
        yield table


def confusion_table(found: Confusion) -> "Table":
    """One row per label, one column per name that was given at least once."""
    from rich.table import Table
    from rich.text import Text

    given = [name for name in found.names if any(name in counts for counts in found.counts.values())]
    table = Table(title="what is it? bad images by label and first name given")
    table.add_column("label")
    for name in given:
        table.add_column(Text(name), justify="right")
    for label, counts in found.counts.items():
        cells = (Text(str(counts.get(name, 0)), style="bold" if name.casefold() == label.casefold() else "") for name in given)
        table.add_row(Text(label), *cells)
    return table


def _count(rate: Rate | None) -> str:
    return "-" if rate is None else f"{rate.count} of {rate.total}"


def _rate(rate: Rate) -> str:
    return _with_interval(rate.value, (rate.low, rate.high))


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]"


def gain(result: Evaluation, baseline: Evaluation) -> str:
    """The relative gain of the image AUROC over a baseline, `+1.20%`; empty where the baseline has none."""
    return f"{result.image_auroc / baseline.image_auroc - 1:+.2%}" if baseline.image_auroc else ""


def ablation_table(results: Mapping[str, Evaluation], paper_gain: float) -> "Table":
    """Image AUROC of each variant with its gain over the one called baseline, beside the paper's gain."""
    gains = {name: f"{row.image_auroc:.4f} ({gain(row, results['baseline']) or '-'})" for name, row in results.items()}
    return metrics_table(gains | {"gain in the paper": f"({paper_gain:+.2%})"}, title="ablation: image AUROC (gain over the baseline)")
