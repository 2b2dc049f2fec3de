"""From labelled cases to the figures of an evaluation. Knows nothing of models: scores from a file serve as well."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cmgcli import metrics
from cmgcli.calibrate import smallest_rate
from cmgcli.dataset import Record
from cmgcli.errors import DatasetError
from cmgcli.exhibits import Worst
from cmgcli.report import Case, Choice, Confusion, Evaluation, Group, Rate
from cmgcli.rows import COLUMNS
from cmgcli.words import counted

_PARTS = tuple(name for name in COLUMNS if name.endswith("_score"))
UNNAMED = "(not named)"
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)  # promised shares of false alarms to choose from
SIZES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # shares of the image between which defects are of one size


def labelled(records: Sequence[Record], source: Path | str) -> tuple[Record, ...]:
    """The records, all of which have a label and both classes among them, or a DatasetError that says what is missing."""
    bare = [record.file_name for record in records if record.label is None]
    if bare:
        raise DatasetError(f"{source}: {counted(len(bare), 'test image')} without a label, the first is {bare[0]}; fill the column label with 0 or 1")
    classes = {int(record.label > 0) for record in records}
    if classes != {0, 1}:
        first = f" ({counted(len(records), 'image')}, the first is {records[0].file_name})" if records else ""
        found = f"only label {classes.pop()}" if classes else "no test image"
        alone = ", or count the false alarms of good images alone: cmg score --max-anomalies RATE" if found == "only label 0" else ""
        raise DatasetError(f"{source}: expected normal (0) and anomalous (1) test images, found {found}{first}; add images of the other label{alone}")
    return tuple(records)


def evaluation_of(
    cases: Sequence[Case],
    worst: Worst,
    *,
    threshold: float | None,
    promised: float | None,
    calibrated: int | None = None,
    method: str | None = None,
    thresholds: Mapping[str, float] | None = None,
    anomalous_at: Callable[[Case, float], bool] | None = None,
    pixels: metrics.PixelTally | None = None,
) -> Evaluation:
    """All figures of the cases; those with an error are counted as unreadable only.

    Args:
        threshold: a score above it is anomalous; only shown, the rates are those of the column `anomalous`.
        promised: the false-alarm rate that the threshold promises, by so many ``calibrated`` images and this method of `calibrate.METHODS`.
        thresholds: of the captions that have their own.
        anomalous_at: whether a case is anomalous where another rate is promised; None: whether its p-value is at most the rate, which is the same
            but where the captions that have a threshold of their own are others for that rate.
        pixels: has seen the maps of the cases with a mask and of the good ones.
    Raises:
        DatasetError: of the readable cases a class is missing.
    """
    readable = [case for case in cases if not case.row.error]
    labelled([case.record for case in readable], "the images that could be read")
    truth, scores = truth_and_scores(readable)
    best = metrics.f1_max(truth, scores)
    seen = pixels is not None and pixels.defect_pixels > 0
    return Evaluation(
        images=len(readable),
        anomalous=int(truth.sum()),
        unreadable=tuple(case.record.file_name for case in cases if case.row.error),
        image_auroc=metrics.auroc(truth, scores),
        image_auroc_interval=metrics.auroc_interval(truth, scores),
        average_precision=metrics.average_precision(truth, scores),
        f1_max=best.value,
        f1_max_threshold=best.threshold,
        threshold=threshold,
        promised_false_alarm_rate=promised,
        calibration_images=calibrated,
        calibration=method,
        false_alarm_rate=_false_alarm_rate(readable),
        miss_rate=_miss_rate(readable),
        pixel_auroc=pixels.auroc() if seen else None,
        aupro=pixels.aupro() if seen else None,
        severity=_severity(readable),
        auroc_by_part=_auroc_by_part(readable),
        by_defect=_by_defect(readable),
        by_caption=_by_caption(readable),
        by_size=_by_size(readable),
        thresholds=thresholds or {},
        by_promised_rate=_by_promised_rate(readable, calibrated, anomalous_at or (lambda case, rate: case.row.p_value <= rate + 1e-9)),
        cases=tuple(cases),
        worst_misses=worst.misses,
        worst_false_alarms=worst.false_alarms,
    )


def confusion_of(names: Sequence[str], given: Iterable[tuple[str, str]]) -> Confusion:
    """The confusion of pairs of a label and the name that its image got first; upper and lower case are the same."""
    pairs = list(given)
    known = {name.casefold() for name in names}
    judged = [label.casefold() == name.casefold() for label, name in pairs if label.casefold() in known]
    counts = {label: dict(Counter(name for other, name in pairs if other == label)) for label in sorted({label for label, _ in pairs})}
    return Confusion(tuple(names), counts, _rate(judged))


def truth_and_scores(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool, True where labelled anomalous, and the (N,) float64 scores."""
    return np.array([case.anomalous for case in cases], bool), np.array([case.row.score for case in cases], np.float64)


def _severity(cases: Sequence[Case]) -> metrics.Agreement | None:
    """Agreement with the labels where they are levels, that is where one is above 1."""
    levels = np.array([case.record.label for case in cases], np.float64)
    return metrics.severity_agreement(levels, truth_and_scores(cases)[1]) if levels.max() > 1 else None


def _auroc_by_part(cases: Sequence[Case]) -> dict[str, float]:
    truth, _ = truth_and_scores(cases)
    parts = {name: np.array([getattr(case.row, name) for case in cases], np.float64) for name in _PARTS}  # None becomes NaN
    return {name: metrics.auroc(truth, values) for name, values in parts.items() if np.isfinite(values).all()}


def _by_defect(cases: Sequence[Case]) -> dict[str, Group]:
    """Each kind of defect against all good images; without any name there are no kinds."""
    good = [case for case in cases if not case.anomalous]
    kinds: dict[str, list[Case]] = {}
    for case in cases:
        if case.anomalous:
            kinds.setdefault(case.record.defect or UNNAMED, []).append(case)
    if set(kinds) == {UNNAMED}:
        return {}
    return {name: _group(kinds[name], good) for name in sorted(kinds)}


def _by_promised_rate(cases: Sequence[Case], calibrated: int | None, anomalous_at: Callable[[Case, float], bool]) -> dict[str, Choice]:
    """What each of `RATES` would give.

    Left out is a rate that so many calibration images cannot promise; where their number is not known, one below every p-value.
    """
    if any(case.row.p_value is None for case in cases):
        return {}
    found = {}
    for rate in RATES:
        flagged = [anomalous_at(case, rate) for case in cases]
        if rate >= smallest_rate(calibrated) if calibrated else any(flagged):
            good, bad = ([flag for flag, case in zip(flagged, cases, strict=True) if case.anomalous is wanted] for wanted in (False, True))
            found[f"{rate:g}"] = Choice(_rate(good), _rate([not flag for flag in bad]))
    return found


def _by_size(cases: Sequence[Case]) -> dict[str, Group]:
    """The defects with a mask, each decade of their share of the image against all good images."""
    good = [case for case in cases if not case.anomalous]
    sized = [(int(np.searchsorted(SIZES, case.area, side="right")), case) for case in cases if case.anomalous and case.area]
    bins = sorted({number for number, _ in sized})
    return {_size_name(number): _group([case for of, case in sized if of == number], good) for number in bins}


def _size_name(number: int) -> str:
    """`0.01 to 0.1 %`; the ends are open."""
    low, high = (f"{100 * size:g}" for size in (SIZES[max(number - 1, 0)], SIZES[min(number, len(SIZES) - 1)]))
    return f"below {high} %" if number == 0 else f"{low} % and more" if number == len(SIZES) else f"{low} to {high} %"


def _by_caption(cases: Sequence[Case]) -> dict[str, Group]:
    captions: dict[str, list[Case]] = {}
    for case in cases:
        captions.setdefault(case.record.text, []).append(case)
    return {name: _group(captions[name]) for name in sorted(captions)}


def _group(cases: Sequence[Case], against: Iterable[Case] = ()) -> Group:
    """The figures of some cases; the area also ranks them against others."""
    truth, scores = truth_and_scores([*cases, *against])
    both = truth.any() and not truth.all()
    return Group(
        images=len(cases),
        anomalous=sum(case.anomalous for case in cases),
        auroc=metrics.auroc(truth, scores) if both else None,
        auroc_interval=metrics.auroc_interval(truth, scores) if both else None,
        false_alarm_rate=_false_alarm_rate(cases),
        miss_rate=_miss_rate(cases),
    )


def _false_alarm_rate(cases: Iterable[Case]) -> Rate | None:
    return _rate([bool(case.row.anomalous) for case in cases if not case.anomalous])


def _miss_rate(cases: Iterable[Case]) -> Rate | None:
    return _rate([not case.row.anomalous for case in cases if case.anomalous])


def _rate(hits: Sequence[bool]) -> Rate | None:
    return rate_of(sum(hits), len(hits))


def rate_of(count: int, total: int) -> Rate | None:
    """The share with its interval; None where there is no case."""
    if not total:
        return None
    low, high = metrics.wilson_interval(count, total)
    return Rate(count / total, low, high, count, total)
