"""Cross-fitting: every image fits the final model, and calibrates its threshold through a model that has not seen it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from cmgcli.calibrate import calibrate, folds
from cmgcli.heldout import gather_folds, joined
from cmgcli.learn import Progress, learn, state_of
from cmgcli.looks import Looks
from cmgcli.model import Model

MADE_UP = 48


def cross_fit(looks: Looks, *, false_alarm: float, snapshot: Path | None = None, report: Progress) -> Model:
    """Fit on all records, with a threshold from K-fold cross-fitted scores (after CV+, Barber et al. 2021).

    One pass fits the final model and the K models of the folds, a second judges each fold's images by the model fitted
    on the other folds. The parts are weighted by the evidence of the other folds where a fold is scored, and by all of it
    in the final model. At least two records are needed.
    """
    count = len(looks.records)
    held = folds(count, seed=looks.settings.seed)
    rest = [sorted(set(range(count)) - set(fold)) for fold in held]
    learners = learn(looks, [range(count), *rest], report)
    final, *drafts = (
        learner.draft(false_alarm=false_alarm, snapshot=state_of(snapshot, k), report=report) for k, learner in enumerate(learners)
    )
    evidence = gather_folds(drafts, looks, held, made_up=MADE_UP, report=partial(report, "calibrating the threshold"))
    scores = np.empty(count)
    for k, fold in enumerate(held):
        scores[list(fold)] = joined(evidence[:k] + evidence[k + 1 :]).blend()(evidence[k].normal)
    model = joined(evidence).settle(final)
    groups = [model.detector.language.group_of(record.text) for record in looks.records]
    calibration = calibrate(scores, groups, groups, false_alarm=false_alarm, method="cross")
    return replace(model, detector=replace(model.detector, calibration=calibration))
