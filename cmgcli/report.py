"""What an evaluation found, and its tables. Receives results, computes none."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Rate:
    """A share ``k / n`` with its 95 % Wilson interval; all NaN where ``n`` is 0."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one labelled set; a metric that its data do not allow is None."""

    images: int
    anomalous: int
    unreadable: tuple[str, ...]
    image_auroc: float
    average_precision: float
    f1_max: float
    f1_max_threshold: float
    threshold: float
    false_alarm_rate: Rate
    miss_rate: Rate
    pixel_auroc: float | None
    aupro: float | None
    auroc_by_defect: Mapping[str, float]
    auroc_by_part: Mapping[str, float]

    def as_dict(self) -> dict:
        """Plain numbers, strings and lists, for JSON."""
        return asdict(self)


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
    """The figures of one evaluation, rates with their 95 % intervals."""

    def rate(value: Rate) -> str:
        return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"

    figures: dict[str, str | int | float] = {
        "images": result.images,
        "anomalous": result.anomalous,
        "image AUROC": result.image_auroc,
        "average precision": result.average_precision,
        "F1-max": result.f1_max,
        "F1-max threshold": result.f1_max_threshold,
        "threshold": result.threshold,
        "false-alarm rate [95 %]": rate(result.false_alarm_rate),
        "miss rate [95 %]": rate(result.miss_rate),
    }
    if result.pixel_auroc is not None:
        figures |= {"pixel AUROC": result.pixel_auroc, "AUPRO": result.aupro}
    figures |= {f"AUROC by {name}": value for name, value in result.auroc_by_part.items()}
    figures |= {f"AUROC of {name}": value for name, value in result.auroc_by_defect.items()}
    return metrics_table(figures, title="evaluation")


def ablation_table(results: Mapping[str, Evaluation], paper_gain: float) -> "Table":
    """Image AUROC of each variant with its gain over the one called baseline, beside the paper's gain."""
    base = results["baseline"].image_auroc
    gains = {name: f"{row.image_auroc:.4f} ({row.image_auroc / base - 1:+.2%})" for name, row in results.items()}
    return metrics_table(gains | {"gain in the paper": f"({paper_gain:+.2%})"}, title="ablation: image AUROC (gain over the baseline)")
