"""Has the line changed? A conformal test martingale over the scores of a stream.

While the stream comes from where the calibration images came, the rank of each score among those and all earlier ones is
uniform and independent of the past, whatever the distribution (Vovk et al., "Algorithmic Learning in a Random World",
2005). The Simple Jumper (Vovk et al., "Retrain or not retrain", COPA 2021) bets against that; by Ville's inequality its
capital reaches 1 / a with probability at most a, however long the stream.

Each score is ranked among those of its own caption (a label-conditional martingale): products differ in their scores, and a stream
often has one after the other. A caption with few calibration images tells little until the stream has shown more of it. A part of the capital enters the bets at each step, so that a change after a long calm, which costs
those who bet, is seen about as soon as one at the start.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Sequence

import numpy as np

from cmgcli.errors import SettingsError
from cmgcli.words import counted

FALSE_ALARM = 0.01  # of a whole run
_BETS = np.array([-1.0, 0.0, 1.0])  # on low ranks, on none, on high ranks
_JUMP = 0.01  # share of the capital that changes its bet at each step
_FEWEST = 20
_FEW = 10  # calibration images of a caption
_OTHERS = -1


class DriftWatch:
    """Takes in scores one by one; `alarm` is the number of the score at which the line was seen to have changed, or None.

    After the alarm nothing is taken in: the question is answered.
    """

    def __init__(
        self, calibration: Sequence[float], groups: Sequence[int] = (), *, exact: bool = True, false_alarm: float = FALSE_ALARM, seed: int = 0
    ) -> None:
        """
        Args:
            calibration: scores of normal images that the model was not fitted on.
            groups: the caption number of each; empty where captions are not told apart.
            exact: they are scored by the very model that scores the stream. Those of a cross-fitted threshold are not, so that nothing is
                promised of the alarm.
            false_alarm: probability of an alarm, ever, while nothing changes.
            seed: of the ranks among ties.
        Raises:
            SettingsError: fewer than 20 calibration scores, which would see a change too late to be of use.
        """
        if len(calibration) < _FEWEST:
            raise SettingsError(f"watching for drift needs at least {_FEWEST} calibration images, the model has {len(calibration)}; fit on more images")
        scores, numbers = np.asarray(calibration, np.float64), np.asarray(groups if len(groups) else [_OTHERS] * len(calibration))
        self._known = {group: array("d", np.sort(scores[numbers == group])) for group in np.unique(numbers).tolist()}
        self._few = len(self._known) > 1 and bool(np.median([len(known) for known in self._known.values()]) < _FEW)
        self._known.setdefault(_OTHERS, array("d", np.sort(scores)))
        self._exact, self._false_alarm = exact, false_alarm
        self._rng = np.random.default_rng(seed)
        self._reserve, self._stakes = 1.0, np.zeros(len(_BETS))
        self.scores = 0
        self.alarm: int | None = None

    @property
    def capital(self) -> float:
        """What a bet of 1 against "nothing has changed" has become."""
        return self._reserve + float(self._stakes.sum())

    def add(self, score: float, group: int = _OTHERS) -> None:
        """Take in the next score, and the number of its caption; -1 where that is not one of the model's."""
        if self.alarm is not None:
            return
        self.scores += 1
        known = self._known.get(group, self._known[_OTHERS])
        low, high = bisect.bisect_left(known, score), bisect.bisect_right(known, score)
        rank = (low + self._rng.random() * (high - low + 1)) / (len(known) + 1)  # uniform on [0, 1] while all is well
        known.insert(high, score)
        entering = 1 / (self.scores * (self.scores + 1))  # all of them sum to 1
        self._reserve -= entering
        stakes = self._stakes + entering / len(_BETS)
        self._stakes = ((1 - _JUMP) * stakes + _JUMP * stakes.mean()) * (1 + _BETS * (rank - 0.5))
        if self.capital >= 1 / self._false_alarm:
            self.alarm = self.scores

    @property
    def sentence(self) -> str:
        """What was found, in plain words."""
        if self.alarm is None and self.scores < _FEWEST:
            return f"too few to say whether the line has drifted: {counted(self.scores, 'score')}, it takes {_FEWEST}"
        if self.alarm is None:
            few = f"; where most captions have fewer than {_FEW} calibration images, a change that is there from the start hardly shows"
            return f"no drift seen in {counted(self.scores, 'score')}" + (few if self._few else "")
        promise = f"such an alarm is false in at most {self._false_alarm:.0%} of runs"
        if not self._exact:
            promise = "how often such an alarm is false is not known of a cross-fitted model; --calibration split promises it"
        return f"the line has drifted: seen at score {self.alarm} of this run; camera, light or product are not those of the fit ({promise})"
