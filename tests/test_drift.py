"""The alarm comes when the scores change and, on a line that stays the same, hardly ever."""

import numpy as np
import pytest

from cmgcli.drift import DriftWatch
from cmgcli.errors import SettingsError


def watched(calibration, stream, **options) -> DriftWatch:
    watch = DriftWatch(calibration, **options)
    for score in stream:
        watch.add(float(score))
    return watch


@pytest.mark.parametrize("rounded", [False, True])
def test_false_alarms_are_as_rare_as_promised(rounded):
    """300 lines that stay the same, also with scores that tie; the bound holds for the whole of each stream."""
    alarms = 0
    for seed in range(300):
        scores = np.random.default_rng(seed).lognormal(size=360)
        scores = scores.round() if rounded else scores
        alarms += watched(scores[:60], scores[60:], false_alarm=0.05, seed=seed).alarm is not None
    assert alarms <= 300 * 0.05 + 3 * np.sqrt(300 * 0.05 * 0.95)


@pytest.mark.parametrize("change", [lambda x: x + 1.5, lambda x: x - 1.5])
def test_a_change_is_seen_soon_after_it_happens(change):
    for seed in range(40):
        scores = np.random.default_rng(seed).normal(size=400)
        scores[200:] = change(scores[200:])
        alarm = watched(scores[:100], scores[100:]).alarm
        assert alarm is not None and alarm > 100
        assert alarm < 200, seed


def test_products_that_come_one_after_the_other_are_no_drift():
    """Three captions whose scores lie apart; the promise holds in any order of them, and a change of one of them is seen."""
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        group = np.repeat([0, 1, 2], 120)
        scores = rng.normal(size=360) + np.array([0.0, 1.0, -1.0])[group]
        calm = np.tile([True] * 20 + [False] * 100, 3)
        watch = DriftWatch(scores[calm], group[calm], false_alarm=0.05, seed=seed)
        for score, number in zip(scores[~calm], group[~calm], strict=True):
            watch.add(score, number)
        alarms += watch.alarm is not None
    assert alarms <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)
    for _ in range(150):
        watch.add(rng.normal() + 1.5, 2)  # as high as caption 1 may be
    assert watch.alarm is not None


def test_many_captions_with_few_calibration_images_each_are_no_drift_either():
    """Forty captions of three calibration images, one after the other."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(40), 13)
        scores = rng.normal(size=len(group)) + rng.normal(size=40)[group] * 2
        calm = np.tile([True] * 3 + [False] * 10, 40)
        watch = DriftWatch(scores[calm], group[calm], seed=seed)
        for score, number in zip(scores[~calm], group[~calm], strict=True):
            watch.add(score, number)
        assert watch.alarm is None and "hardly shows" in watch.sentence


def test_a_change_that_is_there_from_the_start_shows_where_captions_have_images_enough():
    """Six captions of 16 calibration images, as the demo line has them."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        watch = DriftWatch(rng.normal(size=96), np.repeat(np.arange(6), 16), seed=seed)
        for _ in range(120):
            watch.add(rng.normal() + 3, int(rng.integers(6)))
        assert watch.alarm is not None, watch.sentence


def test_captions_that_are_new_are_ranked_among_all():
    watch = DriftWatch(np.arange(40.0), [0] * 40)
    for _ in range(60):
        watch.add(100.0)
    assert watch.alarm is not None


def test_a_change_after_a_long_calm_is_seen_as_soon_as_one_early():
    rng = np.random.default_rng(0)
    late = watched(rng.normal(size=100), np.r_[rng.normal(size=20_000), np.full(200, 9.0)]).alarm
    assert late is not None and 20_000 < late < 20_100


def test_after_the_alarm_nothing_more_is_taken_in():
    watch = watched(np.arange(40.0), np.arange(100.0, 300.0))
    assert watch.alarm == watch.scores < 200
    assert watch.capital >= 100
    assert f"seen at score {watch.alarm} " in watch.sentence and "at most 1% of runs" in watch.sentence


def test_of_a_cross_fitted_model_the_alarm_promises_nothing():
    sentence = watched(np.arange(40.0), [100.0] * 200, exact=False).sentence
    assert "seen at score" in sentence and "at most" not in sentence and "--calibration split" in sentence


def test_a_stream_without_an_alarm_says_whether_it_was_long_enough():
    calm = np.random.default_rng(0).permutation(40.0 * np.arange(19) / 19)
    assert watched(np.arange(40.0), calm).sentence == "too few to say whether the line has drifted: 19 scores, it takes 20"
    assert watched(np.arange(40.0), [*calm, 7.0]).sentence == "no drift seen in 20 scores"


def test_too_few_calibration_scores_are_said():
    with pytest.raises(SettingsError, match="at least 20 calibration images, the model has 3"):
        DriftWatch([1.0, 2.0, 3.0])
