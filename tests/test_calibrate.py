"""The false-alarm promise, on paper and by simulation."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from cmgcli.calibrate import AMPLE, FEWEST_TO_TUNE, calibrate, chance_of_excess, choose_calibration, conformal_threshold, folds, split
from cmgcli.errors import SettingsError
from tests.benchmarks.calibration import misses, realised_rates


def test_threshold_is_the_conformal_order_statistic():
    scores = np.arange(1.0, 100.0)  # n = 99
    assert conformal_threshold(scores, 0.01) == 99
    assert conformal_threshold(scores, 0.05) == 95
    assert conformal_threshold(scores, 0.10) == 90


@pytest.mark.parametrize("rate", [0.1, 0.05, 0.01])
@pytest.mark.parametrize("method", ["split", "cross"])
def test_realised_false_alarm_rate_keeps_the_promise(method, rate):
    """Mean over 200 random splits, each with a model fitted anew: split at most the rate, cross near it and below twice it."""
    n = 120
    rates = realised_rates(method, rate, images=n, rounds=200)
    error = 3 * np.std(rates) / math.sqrt(len(rates))
    if method == "split":
        calibrating = len(split(n, false_alarm=rate).calibration)
        promised = max(rate, 1 / (calibrating + 1))
        assert promised - 1 / (calibrating + 1) - error <= np.mean(rates) <= promised + error
    else:
        assert rate / 2 - 1 / (n + 1) - error <= np.mean(rates) <= 1.25 * rate + error < 2 * rate + error


def test_scores_of_images_that_the_model_has_seen_break_the_promise():
    """What cross-fitting is for: the same simulation without it is far off."""
    assert np.mean(realised_rates("resubstitution", 0.05, images=120, rounds=50, dim=20)) > 0.1


def test_flagged_means_p_value_at_most_the_rate():
    rng = np.random.default_rng(1)
    calibration = calibrate(rng.normal(size=130), [0] * 130, false_alarm=0.05)
    for score in rng.normal(size=300) * 2:
        assert (score > calibration.threshold()) == (calibration.p_value(score) <= 0.05)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.2, 0.5])
def test_another_rate_judges_as_a_fit_at_that_rate_would(rate):
    rng = np.random.default_rng(2)
    scores, groups = rng.normal(size=130), [0] * 60 + [1] * 70  # of their own at 0.1
    changed, fitted = calibrate(scores, groups, groups, false_alarm=0.02).at(rate), calibrate(scores, groups, groups, false_alarm=rate)
    assert (changed.threshold(), changed.sentence, changed.promised_rate) == (fitted.threshold(), fitted.sentence, fitted.promised_rate)
    for score in rng.normal(size=300) * 2:
        assert (score > changed.threshold()) == (changed.p_value(score) <= rate)


def test_another_rate_may_take_a_caption_its_own_threshold_and_give_it_back():
    groups = [0] * 60 + [1] * 90
    calibration = calibrate(np.r_[np.arange(60.0), 100 + np.arange(90.0)], groups, groups, false_alarm=0.1)
    strict = calibration.at(0.05)
    assert set(calibration.own) == {0, 1} and not strict.own
    assert strict.threshold(0) == strict.threshold(1) == strict.threshold()
    assert strict.at(0.1).threshold(0) == calibration.threshold(0) == 54
    with pytest.raises(SettingsError, match="between 0 and 1"):
        calibration.at(1.0)


def test_too_few_images_say_what_they_can_promise():
    calibration = calibrate([1.0, 2.0, 3.0], [0, 0, 0], false_alarm=0.01)
    assert calibration.threshold() == 3.0
    assert calibration.promised_rate == 0.25
    assert "cannot promise a false-alarm rate of 0.01 (that takes 99)" in calibration.sentence
    assert "promises 0.25" in calibration.sentence


def test_no_image_to_calibrate_promises_nothing_and_flags_nothing():
    calibration = calibrate([], [], false_alarm=0.01)
    assert calibration.threshold() == math.inf
    assert calibration.p_value(1e9) == 1
    assert "no false-alarm promise" in calibration.sentence


def test_a_large_caption_gets_its_own_threshold_the_small_ones_that_of_their_own_together():
    scores, groups = np.r_[np.arange(60.0), 100 + np.arange(20.0), 200 + np.arange(40.0)], [0] * 60 + [1] * 20 + [2] * 40
    calibration = calibrate(scores, groups, groups, false_alarm=0.1)
    assert list(calibration.own) == [0] and calibration.threshold(0) == 54
    assert calibration.threshold(1) == calibration.threshold(2) == calibration.threshold() == 234  # the sixth from above of sixty
    assert calibration.p_value(150.0, 1) == 41 / 61 and calibration.p_value(150.0, 0) == 1 / 61


def test_where_the_small_captions_are_too_few_the_smallest_large_one_joins_them():
    scores, groups = np.r_[np.arange(80.0), 100 + np.arange(3.0), 200 + np.arange(60.0)], [0] * 80 + [1] * 3 + [2] * 60
    calibration = calibrate(scores, groups, groups, false_alarm=0.1)
    assert list(calibration.own) == [0]
    assert calibration.threshold(1) == calibration.threshold(2) == 254  # the sixth from above of sixty-three
    assert not calibrate(scores[:83], groups[:83], groups[:83], false_alarm=0.1).own


def test_a_caption_that_no_calibration_image_has_is_judged_with_the_others():
    calibration = calibrate(np.arange(120.0), [0] * 120, [0] * 120 + [1] * 120, false_alarm=0.1)
    assert list(calibration.own) == [0] and calibration.threshold(1) == calibration.threshold(0)


@pytest.mark.parametrize(("rate", "images"), [(0.1, 99), (0.1, 300), (0.1, 700), (0.05, 1300)])  # by all captions, and with thresholds of their own
def test_the_promise_holds_over_all_captions_where_rare_ones_score_higher(rate, images):
    """One caption has nine images of ten; twenty rare ones, whose scores lie higher, share the tenth."""
    rng = np.random.default_rng(4)
    alarms = []
    for _ in range(400):
        groups = np.where(rng.random(2 * images + 500) < 0.9, 0, rng.integers(1, 21, 2 * images + 500))
        scores = rng.normal(size=len(groups)) + 3 * (groups > 0)
        seen, fresh = np.s_[images : 2 * images], np.s_[2 * images :]
        calibration = calibrate(scores[seen], groups[seen], groups[:images], false_alarm=rate)
        alarms.append(np.mean([score > calibration.threshold(group) for score, group in zip(scores[fresh], groups[fresh])]))
    assert rate - 2 / (images + 1) < np.mean(alarms) <= rate + 3 * np.std(alarms) / math.sqrt(len(alarms))


@pytest.mark.parametrize("captions_differ", [0.0, 1.0])
def test_thresholds_of_their_own_miss_little_more_and_much_less_where_captions_differ(captions_differ):
    """Against one threshold of all: see `misses`. With a quarter of the images their own would be the highest of each caption's scores."""
    size = math.ceil(AMPLE * 9)
    (own, alone), (one, together) = (misses(size, 0.1, differ=captions_differ, each=each, rounds=100) for each in (True, False))
    assert own > 0.08 and one > 0.08
    assert alone < together + 0.05 if captions_differ == 0 else alone < together - 0.1
    wasted, few = misses(size // 4, 0.1, differ=captions_differ, each=True, rounds=100)
    assert wasted < 0.075 and few > alone + 0.05


def test_a_kept_promise_is_hardly_ever_called_broken():
    """By the rate alone every tenth sound model would be accused."""
    rng = np.random.default_rng(5)
    rate, total, accused, by_rate = 0.01, 1000, 0, 0
    for _ in range(1000):
        threshold = calibrate(rng.random(99), false_alarm=rate).threshold()
        count = int((rng.random(total) > threshold).sum())
        accused += chance_of_excess(count, total, promised=rate, calibrated=99) < 0.01
        by_rate += binom.sf(count - 1, total, rate) < 0.01
    assert accused <= 20 and by_rate >= 100
    assert chance_of_excess(60, total, promised=rate, calibrated=99) < 0.01  # and a broken one is


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(SettingsError, match="1 of 2 scores are not finite"):
        calibrate([1.0, math.nan], [0, 0])


@pytest.mark.parametrize("rate", [0, 1, -0.1])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(SettingsError, match="between 0 and 1"):
        calibrate([1.0], [0], false_alarm=rate)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 100, 198, 571])
def test_split_parts_all_rows_once_and_always_leaves_one_to_fit(count):
    parts = split(count, false_alarm=0.01)
    assert sorted(parts.fit + parts.tune + parts.calibration) == list(range(count))
    assert parts.fit
    assert len(parts.calibration) <= min(count // 2, max(count // 4, 99))


def test_images_that_are_too_few_to_tune_by_are_fitted_instead():
    few, enough = split(63, false_alarm=0.05), split(64, false_alarm=0.05)
    assert not few.tune and len(few.fit) == 63 - len(few.calibration)
    assert len(enough.tune) == FEWEST_TO_TUNE


@pytest.mark.parametrize(("count", "rate", "calibrating"), [(571, 0.01, 99), (900, 0.01, 199), (571, 0.05, 139), (120, 0.3, 29), (50, 0.01, 25)])
def test_no_more_images_calibrate_than_the_threshold_is_worth(count, rate, calibrating):
    """One image less and the threshold would stay where it is, or the promise would not hold."""
    assert len(split(count, false_alarm=rate).calibration) == calibrating
    scores = np.arange(calibrating + 1.0)
    if calibrating >= 1 / rate - 1:
        above = [n - conformal_threshold(scores[:n], rate) for n in (calibrating - 1, calibrating)]
        assert above[1] == above[0] + 1 or calibrating - 1 < 1 / rate - 1


@pytest.mark.parametrize("count", [2, 3, 5, 12, 101])
def test_folds_hold_every_image_out_once(count):
    parts = folds(count, seed=3)
    assert sorted(i for part in parts for i in part) == list(range(count))
    assert len(parts) == min(5, count) and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_sentence_of_cross_fitting_promises_no_more_than_it_can():
    sentence = calibrate(range(200), [0] * 200, false_alarm=0.05, method="cross").sentence
    assert "about 0.05" in sentence and "without a strict bound" in sentence and "at most" not in sentence
    assert "promises about 0.25" in calibrate([1.0, 2.0, 3.0], [0, 0, 0], false_alarm=0.01, method="cross").sentence


def test_cross_is_the_default_where_no_head_is_trained():
    assert choose_calibration(None, head=False) == "cross" and choose_calibration(None, head=True) == "split"
    assert choose_calibration("split", head=False) == "split"
    with pytest.raises(SettingsError, match="--no-adapt"):
        choose_calibration("cross", head=True)
    with pytest.raises(SettingsError, match="expected one of split, cross, got 'jackknife'"):
        choose_calibration("jackknife", head=False)
