"""The threshold and its promise: conformal p-values from normal images only, no defect needed.

Split: if a new normal image is exchangeable with the ``n`` calibration images, which no other part of the fit has seen,
it is called anomalous with probability at most ``a`` (Vovk et al. 2005; Lei et al. 2018). Cross: each of the ``n`` images
is scored by a model fitted without its fold. The rate then comes out near ``a``, without a proof: were a new image judged
by the models of the folds, CV+ would bound it by about ``2 a`` (Barber et al. 2021, theorem 4), but it is judged by the
one model fitted on all images. Groups get their own threshold where they are large enough to promise the rate
themselves (Mondrian conformal prediction).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cmgcli.errors import SettingsError
from cmgcli.words import counted

METHODS = ("split", "cross")
FOLDS = 5


@dataclass(frozen=True)
class Split:
    """Row numbers of the images that fit the model, tune the combination of its parts, and calibrate the threshold."""

    fit: tuple[int, ...]
    tune: tuple[int, ...]
    calibration: tuple[int, ...]


@dataclass(frozen=True)
class Calibration:
    """Scores of normal images that the model has not seen, overall and for each group large enough for the rate."""

    false_alarm: float
    scores: np.ndarray  # (n,) float64, ascending
    groups: dict[int, np.ndarray]  # caption number -> ascending scores
    method: str  # one of METHODS

    def scores_for(self, group: int | None) -> np.ndarray:
        """The calibration scores that judge an image of this group: the group's own, else all."""
        return self.scores if group is None else self.groups.get(group, self.scores)

    def p_value(self, score: float, group: int | None = None) -> float:
        """``(1 + #{calibration >= score}) / (n + 1)``; 1 where there is no calibration image."""
        scores = self.scores_for(group)
        return float(1 + len(scores) - np.searchsorted(scores, score, side="left")) / (len(scores) + 1)

    def threshold(self, group: int | None = None) -> float:
        """A score above it is anomalous; see `conformal_threshold`."""
        return conformal_threshold(self.scores_for(group), self.false_alarm)

    def at(self, false_alarm: float) -> Calibration:
        """The same scores for another rate; groups too small for it are judged by all scores. Raises SettingsError for a rate outside (0, 1)."""
        enough = 1 / check_rate(false_alarm) - 1 - 1e-9
        return replace(self, false_alarm=false_alarm, groups={g: scores for g, scores in self.groups.items() if len(scores) >= enough})

    @property
    def promised_rate(self) -> float:
        """The false-alarm rate that the calibration images can promise: the one asked for, or the smallest possible."""
        return max(self.false_alarm, smallest_rate(len(self.scores)))

    @property
    def sentence(self) -> str:
        """What the threshold promises, in plain words."""
        n = len(self.scores)
        if n == 0:
            return "no false-alarm promise: no image was left to calibrate the threshold, so nothing is called anomalous; judge by the score, or fit on more images"
        if self.promised_rate > self.false_alarm:
            needed = math.ceil(1 / self.false_alarm) - 1
            return (
                f"{counted(n, 'calibration image')} cannot promise a false-alarm rate of {self.false_alarm:g} (that takes {needed}); "
                f"the threshold promises {'about ' if self.method == 'cross' else ''}{self.promised_rate:.3g}, the smallest rate that {counted(n, 'image')} can"
            )
        if self.method == "cross":
            return (
                f"about {self.false_alarm:g} of good images will be called anomalous (cross-fitted on {counted(n, 'image')}: near that rate in practice, "
                "without a strict bound; --calibration split gives one)"
            )
        return f"at most {self.false_alarm:g} of good images will be called anomalous (split conformal, {counted(n, 'calibration image')})"


def smallest_rate(count: int) -> float:
    """The smallest false-alarm rate that ``count`` calibration images can promise, ``1 / (n + 1)``."""
    return 1 / (count + 1)


def conformal_threshold(scores: np.ndarray, false_alarm: float) -> float:
    """The ``ceil((n + 1)(1 - a))``-th smallest of ``n`` ascending scores.

    Where ``n < 1/a - 1`` that does not exist and the largest score stands in, which promises `smallest_rate`; with no
    score at all the threshold is infinite.
    """
    n = len(scores)
    if n == 0:
        return math.inf
    rank = math.ceil((n + 1) * (1 - false_alarm) - 1e-9)
    return float(scores[min(rank, n) - 1])


def choose_calibration(method: str | None, *, head: bool) -> str:
    """The method asked for; by default split where a defect head is trained, which must not see the images, else cross.

    Raises:
        SettingsError: an unknown method, or cross with a head, which would have to be trained again for each fold.
    """
    if method is None:
        return "split" if head else "cross"
    if method not in METHODS:
        raise SettingsError(f"calibration: expected one of {', '.join(METHODS)}, got {method!r}")
    if method == "cross" and head:
        raise SettingsError(f"calibration cross would train the defect head {FOLDS} times more; use calibration split, or fit without the head (--no-adapt)")
    return method


def check_rate(false_alarm: float) -> float:
    """The rate; SettingsError where it is none that a threshold can keep."""
    if not 0 < false_alarm < 1:
        raise SettingsError(f"false alarm: expected a rate between 0 and 1, such as 0.01, got {false_alarm:g}")
    return false_alarm


def calibrate(scores: Sequence[float], groups: Sequence[int], *, false_alarm: float = 0.01, method: str = "split") -> Calibration:
    """Build the calibration from the scores of held-out normal images and the caption number of each.

    Raises:
        SettingsError: a rate outside (0, 1), or a score that is not a number.
    """
    values = np.asarray(scores, np.float64)
    if not np.isfinite(values).all():
        raise SettingsError(f"calibration: {int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite; look at the training images for blank or broken ones")
    number = np.asarray(groups, np.int64)
    every = {int(g): np.sort(values[number == g]) for g in np.unique(number)}
    return Calibration(false_alarm, np.sort(values), every, method).at(false_alarm)


def split(count: int, *, false_alarm: float = 0.01, seed: int = 0) -> Split:
    """Part ``count`` normal images at random: up to a quarter calibrates, or as many as the rate needs, but never more than half.

    Of the numbers up to a quarter the largest is taken with which the threshold is worth just the rate, such as 99 or 199 for
    0.01: with 142 it is the largest score, as with 99, and so higher than it need be. One eighth, at most 48 images, tunes. A single image fits alone; with two or three one is held out to calibrate.
    """
    if count < 1:
        raise SettingsError("split: expected at least one normal image, got none")
    needed = math.ceil(1 / false_alarm) - 1
    most = min(count // 2, max(count // 4, needed))
    above = math.floor((most + 1) * false_alarm + 1e-9)  # so many of them may lie above the threshold, which is one of them
    calibration = math.ceil(above / false_alarm - 1e-9) - 1 if above else most
    tune = min(48, count // 8)
    order = np.random.default_rng(seed).permutation(count).tolist()
    parts = order[:calibration], order[calibration : calibration + tune], order[calibration + tune :]
    return Split(*(tuple(sorted(part)) for part in (parts[2], parts[1], parts[0])))


def folds(count: int, *, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Part ``count`` images, at least two, at random into five folds of even size; into ``count`` where there are fewer."""
    if count < 2:
        raise SettingsError(f"folds: expected at least two images, got {count}")
    order = np.random.default_rng(seed).permutation(count)
    return tuple(tuple(sorted(fold.tolist())) for fold in np.array_split(order, min(FOLDS, count)))
