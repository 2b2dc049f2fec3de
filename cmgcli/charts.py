"""The figures of the report page: inline SVG whose colours are CSS variables, so that they follow the page's theme.

Drawn by matplotlib's SVG backend, without pyplot. It knows no CSS, so each role is drawn in a colour of its own that is
replaced by a variable afterwards. The same cases give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cmgcli.figures import truth_and_scores
from cmgcli.metrics import curves
from cmgcli.report import Case, Evaluation, Rate, percent
from cmgcli.stress import Rates, Stress, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, LINE, GOOD, BAD, ALARM, CARD = "#01f0a1", "#02f0a2", "#03f0a3", "#04f0a4", "#05f0a5", "#06f0a6", "#07f0a7"
_VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", GOOD: "good", BAD: "bad", ALARM: "alarm", CARD: "card"}
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that it measures alike everywhere
    "font.size": 11.5,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
}
_POINT_LABEL = "\N{BLACK CIRCLE} at the threshold"
_INCH = 72  # points; an SVG unit
_BINS = 32
_MOST_POINTS = 400  # of a curve


@dataclass(frozen=True)
class Chart:
    """A figure and what it shows, in words, for those who cannot see it."""

    svg: str
    title: str
    description: str


def charts(result: Evaluation) -> tuple[Chart, Chart, Chart]:
    """The scores, the ROC curve and the precision-recall curve of an evaluation that carries its cases."""
    import matplotlib

    readable = [case for case in result.cases if not case.row.error]
    line = None if result.thresholds else alarm_line(readable, result.threshold)
    with matplotlib.rc_context(_STYLE):
        return _score_chart(readable, line, calibrated=result.threshold is not None, several=bool(result.thresholds)), _roc_chart(readable, result), _precision_chart(readable, result)


def alarm_line(cases: Sequence[Case], threshold: float | None) -> float | None:
    """Where a score becomes anomalous: the threshold, else the highest score that passed, if all above it were flagged."""
    if threshold is not None:
        return threshold if np.isfinite(threshold) else None
    passed = [case.row.score for case in cases if not case.row.anomalous]
    flagged = [case.row.score for case in cases if case.row.anomalous]
    return max(passed) if passed and flagged and max(passed) < min(flagged) else None


def _score_chart(cases: Sequence[Case], line: float | None, *, calibrated: bool, several: bool) -> Chart:
    """Histogram of the scores: good parts upwards, bad parts downwards, with the threshold."""
    truth, scores = truth_and_scores(cases)
    low, high = _span(scores, line)
    figure, axes = _axes(420, 300)
    edges = np.linspace(low, high, _BINS + 1)
    for of, colour, sign in ((~truth, GOOD, 1), (truth, BAD, -1)):
        counts, _ = np.histogram(np.clip(scores[of], low, high), edges)  # what lies beyond counts in the outermost bar
        axes.bar(edges[:-1], sign * counts, np.diff(edges), align="edge", color=colour, edgecolor=CARD, linewidth=0.8)
    side = "left" if line is not None and line > (low + high) / 2 else "right"  # away from the threshold
    for at, colour, label in ((0.98, GOOD, f"{(~truth).sum()} good parts"), (0.02, BAD, f"{truth.sum()} bad parts")):
        up = "top" if at > 0.5 else "bottom"
        axes.text(0.01 if side == "left" else 0.99, at, label, color=colour, weight="bold", transform=axes.transAxes, ha=side, va=up)
    axes.set_xlim(low, high)
    axes.margins(y=0.2)  # room for the labels
    axes.axhline(0, color=SOFT, linewidth=0.8)
    if line is not None:
        axes.axvline(line, color=ALARM, linewidth=1.4, linestyle=(0, (4, 2)))
        label = f"threshold {line:.3g}" if calibrated else f"rejected above {line:.3g}"  # a scores file shows no more
        axes.text(line, 1.02, label, color=ALARM, transform=axes.get_xaxis_transform(), ha=_side(line, low, high), va="bottom")
    axes.yaxis.get_major_locator().set_params(integer=True, nbins=7)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    beyond = int((scores > high).sum())
    axes.set_xlabel("score" + (f" ({beyond} higher in the last bar)" if beyond else ""))
    axes.set_ylabel("images")
    at = "captions have thresholds of their own" if several else "no threshold" if line is None else f"the threshold is {line:.3g}"
    description = f"Histogram of the scores: {_range(scores[~truth])} of the good parts, {_range(scores[truth])} of the bad; {at}."
    return Chart(_svg(figure, "scores"), "Scores", description)


def _range(scores: np.ndarray) -> str:
    return f"{scores.min():.3g} to {scores.max():.3g} (median {np.median(scores):.3g})"


def _roc_chart(cases: Sequence[Case], result: Evaluation) -> Chart:
    """The ROC curve, with the point of the threshold and its 95 % intervals."""
    curve = curves(*truth_and_scores(cases))
    alarm, miss = result.false_alarm_rate, result.miss_rate
    low, high = result.image_auroc_interval
    figure, axes = _square("good parts rejected (false alarms)", "bad parts found")
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.plot(*_thin(curve.false_alarm, curve.found), color=INK, linewidth=1.8)
    axes.plot([alarm.low, alarm.high], [1 - miss.value] * 2, color=ALARM, linewidth=1.2)
    axes.plot([alarm.value] * 2, [1 - miss.high, 1 - miss.low], color=ALARM, linewidth=1.2)
    axes.plot([alarm.value], [1 - miss.value], "o", color=ALARM, markersize=7, clip_on=False)
    area = f"AUROC {result.image_auroc:.3f}, 95 %: {low:.3f} to {high:.3f}"
    point = f"at the threshold {percent(alarm.value)} of the good parts are rejected and {percent(1 - miss.value)} of the bad ones found"
    axes.text(0.98, 0.13, f"AUROC {result.image_auroc:.3f}", weight="bold", ha="right")
    axes.text(0.98, 0.04, _POINT_LABEL, color=ALARM, ha="right")
    return Chart(_svg(figure, "roc"), "ROC curve", f"ROC curve. {area}; {point}.")


def _precision_chart(cases: Sequence[Case], result: Evaluation) -> Chart:
    """The precision-recall curve, with the point of the threshold."""
    curve = curves(*truth_and_scores(cases))
    hits = result.miss_rate.total - result.miss_rate.count
    flagged = hits + result.false_alarm_rate.count
    base = result.anomalous / result.images
    figure, axes = _square("bad parts found (recall)", "rejected parts that are bad (precision)")
    axes.axhline(base, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.plot(*_thin(curve.recall, curve.precision), color=INK, linewidth=1.8)
    point = "at the threshold nothing is rejected"
    if flagged:
        axes.plot([1 - result.miss_rate.value], [hits / flagged], "o", color=ALARM, markersize=7, clip_on=False)
        axes.text(0.02, 0.04, _POINT_LABEL, color=ALARM)
        point = f"at the threshold {percent(hits / flagged)} of the rejected parts are bad"
    axes.text(0.02, 0.13 if flagged else 0.04, f"average precision {result.average_precision:.3f}", weight="bold")
    area = f"Average precision {result.average_precision:.3f}, chance {base:.3f}"
    return Chart(_svg(figure, "precision"), "Precision and recall", f"Precision-recall curve. {area}; {point}.")


def stress_chart(stress: Stress) -> Chart:
    """A small panel for each change: both error rates as they are and at every strength, with their 95 % intervals."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        columns, rows = 4, -(-len(stress.trials) // 4)
        figure = Figure(figsize=(210 * columns / _INCH, 175 * rows / _INCH), layout="constrained")
        figure.patch.set_visible(False)
        for number, trial in enumerate(stress.trials):
            axes = figure.add_subplot(rows, columns, number + 1)
            axes.patch.set_visible(False)
            _trial_panel(axes, stress, trial)
            if number % columns:
                axes.set_yticklabels([])
        return Chart(_svg(figure, "stress"), "Error rates under each change", " ".join(_trial_words(stress, trial) for trial in stress.trials))


def _trial_panel(axes: Axes, stress: Stress, trial: Trial) -> None:
    rates = (stress.untouched, *trial.rates)
    if stress.promised is not None:
        axes.axhline(stress.promised, color=ALARM, linewidth=0.9, linestyle=(0, (4, 2)))
    for colour, found in ((BAD, [each.miss for each in rates]), (GOOD, [each.false_alarm for each in rates])):
        there = [(at, rate) for at, rate in enumerate(found) if rate is not None]
        if not there:
            continue
        at = [x for x, _ in there]
        axes.fill_between(at, [rate.low for _, rate in there], [rate.high for _, rate in there], color=colour, alpha=0.16, linewidth=0)
        axes.plot(at, [rate.value for _, rate in there], color=colour, linewidth=1.8, marker="o", markersize=3.5, clip_on=False)
    broken = [(at, each.false_alarm.value) for at, each in enumerate(rates) if stress.breaks(each.false_alarm)]
    if broken:
        axes.plot(*zip(*broken, strict=True), "o", color=ALARM, markersize=6.5, clip_on=False)
    axes.set(xlim=(-0.25, len(trial.amounts) + 0.25), ylim=(-0.02, 1.02))
    axes.set_xticks(range(len(rates)), ["as is", *(f"{amount:g}" for amount in trial.amounts)], fontsize=9.5)
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.set_title(trial.name, fontsize=11.5, color=INK, loc="left")
    axes.set_xlabel(trial.wording.replace("{}", "").strip(), fontsize=10.5)


def _trial_words(stress: Stress, trial: Trial) -> str:
    rows = [f"{name}: {_shares(stress.untouched, trial, kind)}" for name, kind in (("good parts rejected", "false_alarm"), ("bad parts missed", "miss"))]
    amounts = trial.wording.format(", ".join(f"{amount:g}" for amount in trial.amounts))
    return f"{trial.name}, as is, then {amounts}. {'; '.join(rows)}."


def _shares(untouched: Rates, trial: Trial, kind: str) -> str:
    found: list[Rate | None] = [getattr(each, kind) for each in (untouched, *trial.rates)]
    return ", ".join("none there" if rate is None else percent(rate.value) for rate in found)


def _span(scores: np.ndarray, line: float | None) -> tuple[float, float]:
    """The range of scores to draw; far outliers lie beyond it."""
    first, middle, third = np.percentile(scores, [25, 50, 75])
    reach = 8 * max(third - first, 1e-9)
    low, high = max(scores.min(), middle - reach), min(scores.max(), middle + reach)
    if line is not None:
        low, high = min(low, line), max(high, line)
    margin = 0.04 * (high - low) or max(abs(high), 1.0) * 0.1
    return float(low - margin), float(high + margin)


def _side(at: float, low: float, high: float) -> str:
    """How to align a label at a place, so that it stays inside."""
    share = (at - low) / (high - low)
    return "left" if share < 0.2 else "right" if share > 0.8 else "center"


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MOST_POINTS` points of a curve, with both ends."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).round().astype(int))
    return x[kept], y[kept]


def _axes(width: int, height: int) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _INCH, height / _INCH), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    return figure, axes


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    figure, axes = _axes(300, 300)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """The figure as an inline element: no document head, no metadata, no ids but those it refers to itself."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    text = text.replace("'DejaVu Sans'", "var(--sans)").replace("DejaVu Sans", "var(--sans)")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text
