"""The threshold and its promise: conformal p-values from normal images only, no defect needed.

Split: if a new normal image is exchangeable with the ``n`` calibration images, which no other part of the fit has seen,
it is called anomalous with probability at most ``a`` (Vovk et al. 2005; Lei et al. 2018). Cross: each of the ``n`` images
is scored by a model fitted without its fold. The rate then comes out near ``a``, without a proof: were a new image judged
by the models of the folds, CV+ would bound it by about ``2 a`` (Barber et al. 2021, theorem 4), but it is judged by the
one model fitted on all images. Captions get their own threshold where they have images enough to come near the rate
themselves, and the others have enough together (Mondrian conformal prediction): every image is judged by those of its own class
alone. To judge the others by all images would break the promise, as far as they score higher than the rest. Which captions
those are is told from the images of the fit: told from the calibration images, a class would be judged by its own when it
happens to have many there, and by all when it has few, and both err on the same side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cmgcli.errors import SettingsError
from cmgcli.words import counted

METHODS = {"split": "at most", "cross": "about"}  # how near the rate comes to what is promised
FOLDS = 5
FEWEST_TO_TUNE = 8  # images; with the four that 32 magnetic tiles would leave, `examples/few_shot.py` gave an AUROC of 0.69 in place of 0.76
NO_GROUP = -1  # of an image whose caption has no number
# A class has a threshold of its own if it may expect so many times the fewest images that promise the rate. Of few scores the threshold is the
# highest or the next: it keeps the promise by half and misses what a threshold of all captions finds (``python -m tests.benchmarks.calibration``).
AMPLE = 6


@dataclass(frozen=True)
class Split:
    """Row numbers of the images that fit the model, tune the combination of its parts, and calibrate the threshold."""

    fit: tuple[int, ...]
    tune: tuple[int, ...]
    calibration: tuple[int, ...]


@dataclass(frozen=True)
class Calibration:
    """Scores of normal images that the model has not seen, and which caption each has."""

    false_alarm: float
    scores: np.ndarray  # (n,) float64, ascending
    groups: np.ndarray  # (n,) int64 caption number of each, or NO_GROUP
    fitted: np.ndarray  # (U,) int64 how many images of each caption the model was fitted on; (0,) where captions are not told apart
    method: str  # one of METHODS

    @cached_property
    def own(self) -> dict[int, np.ndarray]:
        """The ascending scores of each caption that is judged by its own: those with enough for the rate, but the smallest of them where
        the other captions would be too few together."""
        enough = AMPLE * (1 / self.false_alarm - 1)
        expected = len(self.scores) * self.fitted / max(1, self.fitted.sum())  # (U,)
        able = [g for g in (-expected).argsort(kind="stable").tolist() if expected[g] >= enough]
        while able and 0 < self.fitted.sum() - self.fitted[able].sum() and expected.sum() - expected[able].sum() < enough:
            able.pop()
        own = {g: self.scores[self.groups == g] for g in sorted(able)}
        return {g: scores for g, scores in own.items() if len(scores)}

    @cached_property
    def _others(self) -> np.ndarray:
        """The ascending scores that judge all other captions; all where there is no other."""
        others = ~np.isin(self.groups, list(self.own))
        return self.scores[others] if others.any() else self.scores

    def scores_for(self, group: int) -> np.ndarray:
        """The calibration scores that judge an image of this caption: its own, or those of all captions that have none of their own."""
        return self.own.get(group, self._others)

    def p_value(self, score: float, group: int = NO_GROUP) -> float:
        """``(1 + #{calibration >= score}) / (n + 1)``; 1 where there is no calibration image."""
        scores = self.scores_for(group)
        return float(1 + len(scores) - np.searchsorted(scores, score, side="left")) / (len(scores) + 1)

    def threshold(self, group: int = NO_GROUP) -> float:
        """A score above it is anomalous; see `conformal_threshold`."""
        return conformal_threshold(self.scores_for(group), self.false_alarm)

    @property
    def said_threshold(self) -> str:
        """The threshold for people, or from the lowest to the highest where captions have their own."""
        return span_of_thresholds([self.threshold(), *map(self.threshold, self.own)])

    def demand(self, option: str) -> None:
        """Raise SettingsError where there is no threshold for a gate, which the option sets."""
        if not len(self.scores):
            raise SettingsError(f"{option}: the model has no threshold, it was fitted on too few images; fit on more, or leave the gate out")

    def at(self, false_alarm: float) -> Calibration:
        """The same scores for another rate, for which other captions may have enough. Raises SettingsError for a rate outside (0, 1)."""
        return replace(self, false_alarm=check_rate(false_alarm))

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


def span_of_thresholds(thresholds: Sequence[float]) -> str:
    """A threshold for people, or from the lowest to the highest of several."""
    low, high = min(thresholds), max(thresholds)
    return f"{low:.4g}" if len(thresholds) == 1 else f"{low:.4g} to {high:.4g}, by caption"


def smallest_rate(count: int) -> float:
    """The smallest false-alarm rate that ``count`` calibration images can promise, ``1 / (n + 1)``."""
    return 1 / (count + 1)


def chance_of_excess(count: int, total: int, *, promised: float, calibrated: int) -> float:
    """How likely a kept promise gives ``count`` or more false alarms among ``total`` good images.

    The promise is kept on average over calibrations: the rate of a single threshold, the ``l``-th largest of ``n`` scores, is a draw
    from Beta(l, n + 1 - l) (Vovk, "Conditional validity of inductive conformal predictors", 2012), so that with 99 images for 0.01
    it lies above 0.01 once in three fits. So the count is beta-binomial.
    """
    from scipy.stats import betabinom

    above = max(1, math.floor((calibrated + 1) * promised + 1e-9))
    return float(betabinom.sf(count - 1, total, above, calibrated + 1 - above))


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


def calibrate(
    scores: Sequence[float], groups: Sequence[int] = (), fitted: Sequence[int] = (), *, false_alarm: float = 0.01, method: str = "split"
) -> Calibration:
    """Build the calibration from the scores of held-out normal images.

    Args:
        groups: the caption number of each, or NO_GROUP; empty where captions are not told apart.
        fitted: the same of the images that the model was fitted on.
    Raises:
        SettingsError: a rate outside (0, 1), or a score that is not a number.
    """
    values = np.asarray(scores, np.float64)
    if not np.isfinite(values).all():
        raise SettingsError(f"calibration: {int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite; look at the training images for blank or broken ones")
    order = values.argsort(kind="stable")
    number = np.asarray(groups, np.int64) if len(groups) else np.full(len(values), NO_GROUP)
    counts = np.bincount([g for g in fitted if g != NO_GROUP]).astype(np.int64)
    return Calibration(check_rate(false_alarm), values[order], number[order], counts, method)


def split(count: int, *, false_alarm: float = 0.01, seed: int = 0) -> Split:
    """Part ``count`` normal images at random: up to a quarter calibrates, or as many as the rate needs, but never more than half.

    Of the numbers up to a quarter the largest is taken with which the threshold is worth just the rate, such as 99 or 199 for
    0.01: with 142 it is the largest score, as with 99, and so higher than it need be. One eighth, at most 48 images, tunes, but none
    where it were fewer than `FEWEST_TO_TUNE`: weights that so few tell are worse than those of folds of the fitted images. A single image
    fits alone; with two or three one is held out to calibrate.
    """
    if count < 1:
        raise SettingsError("split: expected at least one normal image, got none")
    needed = math.ceil(1 / false_alarm) - 1
    most = min(count // 2, max(count // 4, needed))
    above = math.floor((most + 1) * false_alarm + 1e-9)  # so many of them may lie above the threshold, which is one of them
    calibration = math.ceil(above / false_alarm - 1e-9) - 1 if above else most
    tune = min(48, count // 8)
    tune = tune if tune >= FEWEST_TO_TUNE else 0
    order = np.random.default_rng(seed).permutation(count).tolist()
    parts = order[:calibration], order[calibration : calibration + tune], order[calibration + tune :]
    return Split(*(tuple(sorted(part)) for part in (parts[2], parts[1], parts[0])))


def folds(count: int, *, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Part ``count`` images, at least two, at random into five folds of even size; into ``count`` where there are fewer."""
    if count < 2:
        raise SettingsError(f"folds: expected at least two images, got {count}")
    order = np.random.default_rng(seed).permutation(count)
    return tuple(tuple(sorted(fold.tolist())) for fold in np.array_split(order, min(FOLDS, count)))
