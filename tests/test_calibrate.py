"""The false-alarm promise, on paper and by simulation."""

import math

import numpy as np
import pytest

from cmgcli.calibrate import calibrate, conformal_threshold, split
from cmgcli.errors import SettingsError


def test_threshold_is_the_conformal_order_statistic():
    scores = np.arange(1.0, 100.0)  # n = 99
    assert conformal_threshold(scores, 0.01) == 99
    assert conformal_threshold(scores, 0.05) == 95
    assert conformal_threshold(scores, 0.10) == 90


@pytest.mark.parametrize("rate", [0.1, 0.05, 0.01])
def test_realised_false_alarm_rate_keeps_the_promise(rate):
    """Mean over many draws of calibration and test scores: at most the rate, at least rate - 1 / (n + 1)."""
    rng = np.random.default_rng(0)
    n, rates = 150, []
    for _ in range(400):
        threshold = calibrate(rng.normal(size=n), [0] * n, false_alarm=rate).threshold()
        rates.append((rng.normal(size=500) > threshold).mean())
    error = 3 * np.std(rates) / math.sqrt(len(rates))
    assert rate - 1 / (n + 1) - error <= np.mean(rates) <= rate + error


def test_flagged_means_p_value_at_most_the_rate():
    rng = np.random.default_rng(1)
    calibration = calibrate(rng.normal(size=130), [0] * 130, false_alarm=0.05)
    for score in rng.normal(size=300) * 2:
        assert (score > calibration.threshold()) == (calibration.p_value(score) <= 0.05)


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


def test_a_large_group_gets_its_own_threshold_a_small_one_the_common():
    scores = np.r_[np.arange(20.0), 100 + np.arange(3.0)]
    calibration = calibrate(scores, [0] * 20 + [1] * 3, false_alarm=0.1)
    assert calibration.threshold(0) == 18
    assert calibration.threshold(1) == calibration.threshold(None) == 101


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
    assert len(parts.calibration) == min(count // 2, max(count // 4, 99))
