import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmgcli import metrics
from cmgcli.errors import InputError


def slow_aupro(masks, maps, limit):
    """The definition: one point per threshold, one loop per region."""
    regions = []
    for row, mask in enumerate(masks):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions += [(row, labels == k) for k in range(1, count)]
    curve = [(0.0, 0.0)]
    for threshold in sorted(np.unique(np.concatenate([m.ravel() for m in maps])), reverse=True):
        found = [m >= threshold for m in maps]
        normal = np.concatenate([f[~mask] for f, mask in zip(found, masks)])
        curve.append((normal.mean(), np.mean([found[row][region].mean() for row, region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(curve, curve[1:]):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / limit


def tallied(masks, maps):
    tally = metrics.PixelTally()
    for mask, anomaly_map in zip(masks, maps, strict=True):
        tally.add(mask, anomaly_map)
    return tally


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([1, 3, 20, 10**6]), limit=st.sampled_from([0.05, 0.3, 1.0]))
def test_pixel_measures_equal_their_slow_definitions(seed, levels, limit):
    rng = np.random.default_rng(seed)
    shapes = [(6, 9), (5, 5), (8, 3)]
    masks = [rng.random(shape) < 0.25 for shape in shapes]
    masks[0][0, :2] = True, False
    maps = [rng.integers(-levels, levels, shape) / levels for shape in shapes]
    tally = tallied(masks, maps)
    close = 1e-9 if levels < 100 else 0.02  # values nearer than 1 in 2000 tie
    assert tally.aupro(limit=limit) == pytest.approx(slow_aupro(masks, maps, limit), abs=close)
    flat = [np.concatenate([array.ravel() for array in arrays]) for arrays in (masks, maps)]
    assert tally.auroc() == pytest.approx(metrics.auroc(*flat), abs=close)
    assert tally.defect_pixels == flat[0].sum()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2))
def test_bins_keep_the_order_of_the_values(values):
    values = np.sort(np.array(values, np.float32))
    bins = metrics._bin(values)
    assert (np.diff(bins) >= 0).all() and bins.min() >= 0 and bins.max() < metrics._BINS
    apart = np.diff(values.astype(float)) > np.maximum(1e-3 * np.abs(values[1:].astype(float)), 1e-30)
    assert (np.diff(bins)[apart] > 0).all()
    assert metrics._bin(np.array([-0.0]))[0] == metrics._bin(np.array([0.0]))[0]


def test_aupro_counts_a_small_region_like_a_large_one():
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = mask[15, 15] = True
    only_large = np.where(np.arange(20)[:, None] < 12, mask, 0).astype(np.float32)
    assert tallied([mask], [mask.astype(float)]).aupro() == pytest.approx(1)
    assert tallied([mask], [only_large]).aupro() == pytest.approx(0.5 + 0.5 * 0.15)  # on the chord to (1, 1)


def test_image_measures_by_hand():
    labels, scores = [0, 0, 1, 1], np.array([-3.0, 2.0, 1.0, 50.0])
    assert metrics.auroc(labels, scores) == 0.75
    assert metrics.average_precision(labels, scores) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.f1_max(labels, scores) == metrics.F1(pytest.approx(0.8), 1.0)
    assert metrics.auroc([0, 1], [1.0, 1.0]) == 0.5


def test_pixel_auroc_takes_images_of_several_sizes():
    masks = [np.array([[0, 255]]), np.zeros((3, 3))]
    assert tallied(masks, [np.array([[0.1, 0.9]]), np.zeros((3, 3))]).auroc() == 1.0


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 0], [1.0, 2.0], "2 normal and 0 anomalous"),
        ([1], [1.0], "0 normal and 1 anomalous"),
        ([], [], "0 normal and 0 anomalous"),
        ([0, 1, 1], [1.0, 2.0, np.nan], "nan in row 2"),
        ([0, 1], [np.inf, 2.0], "inf in row 0"),
        ([0, 1], [1.0], "one label for each score"),
    ],
)
@pytest.mark.parametrize("measure", [metrics.auroc, metrics.auroc_interval, metrics.average_precision, metrics.f1_max, metrics.curves])
def test_measures_say_why_they_cannot(measure, labels, scores, message):
    with pytest.raises(InputError, match=message):
        measure(labels, scores)


def test_pixel_measures_say_why_they_cannot():
    mask = np.eye(3, dtype=bool)
    for masks, maps, message in [
        ([mask, mask], [np.zeros((3, 3)), np.zeros((2, 3))], "in row 1"),
        ([mask], [np.full((3, 3), np.nan)], "NaN or infinity in row 0"),
    ]:
        with pytest.raises(InputError, match=message):
            tallied(masks, maps)
    for measure in (metrics.PixelTally.auroc, metrics.PixelTally.aupro):
        with pytest.raises(InputError, match="9 normal and 0 anomalous"):
            measure(tallied([mask & False], [np.zeros((3, 3))]))
    with pytest.raises(InputError, match="limit"):
        tallied([mask], [np.zeros((3, 3))]).aupro(limit=0)


def slow_delong(labels, scores):
    """The definition: one comparison for each pair, the variance of its row means and of its column means."""
    good, bad = [s for s, y in zip(scores, labels) if not y], [s for s, y in zip(scores, labels) if y]
    wins = np.array([[1.0 if b > g else 0.5 if b == g else 0.0 for g in good] for b in bad])
    return wins.mean(), wins.mean(axis=1).var(ddof=1) / len(bad) + wins.mean(axis=0).var(ddof=1) / len(good)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), bad=st.integers(2, 12), good=st.integers(2, 12), levels=st.sampled_from([4, 1000]))
def test_the_interval_of_an_auroc_is_delongs(seed, bad, good, levels):
    rng = np.random.default_rng(seed)
    labels = np.r_[np.ones(bad), np.zeros(good)]
    scores = rng.integers(0, levels, bad + good) + labels * rng.integers(0, levels)
    low, high = metrics.auroc_interval(labels, scores)
    area, variance = slow_delong(labels, scores)
    assert 0 <= low <= area <= high <= 1 and low < high
    if variance > 0 and 0 < area < 1:
        half = 1.959964 * variance**0.5 / (area * (1 - area))
        assert np.log([low / (1 - low), high / (1 - high)]) == pytest.approx(np.log(area / (1 - area)) + np.array([-half, half]), abs=1e-4)


@pytest.mark.parametrize(("bad", "good"), [(1, 1), (5, 5), (3, 40), (200, 200)])
def test_perfect_separation_is_not_certainty(bad, good):
    labels = np.r_[np.ones(bad), np.zeros(good)]
    low, high = metrics.auroc_interval(labels, labels)
    assert high == pytest.approx(1) and 0 < low < 1
    assert metrics.auroc_interval(labels, -labels) == (pytest.approx(0, abs=1e-9), pytest.approx(1 - low))
    mean, variance = (bad + good) / 2, (1 - low) ** 2 / 1.959964**2
    hanley = low * (1 - low) * (1 + (mean - 1) * ((1 - low) / (2 - low) + low / (1 + low))) / (bad * good)
    assert hanley == pytest.approx(variance, rel=1e-4)  # Newcombe's equation holds at the limit


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    labels, hits = np.r_[np.ones(25), np.zeros(40)], 0
    for _ in range(400):
        low, high = metrics.auroc_interval(labels, rng.normal(size=65) + 1.0 * labels)
        hits += low <= 0.7602 <= high
    assert 0.92 <= hits / 400 <= 0.99
    with pytest.raises(InputError, match="level"):
        metrics.auroc_interval([0, 1], [0.0, 1.0], level=1)


def test_curves_end_where_they_must_and_enclose_the_areas():
    rng = np.random.default_rng(0)
    labels = rng.random(300) < 0.3
    scores = np.round(rng.normal(size=300) + labels, 1)
    curve = metrics.curves(labels, scores)
    assert (curve.false_alarm[0], curve.found[0], curve.false_alarm[-1], curve.found[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(curve.found, curve.false_alarm) == pytest.approx(metrics.auroc(labels, scores))
    assert curve.recall[0] == 0 and curve.recall[-1] == 1 and curve.precision[-1] == pytest.approx(labels.mean())


def test_wilson_interval():
    assert metrics.wilson_interval(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert metrics.wilson_interval(0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
    assert metrics.wilson_interval(20, 20)[1] == 1.0
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)
    for k, n, level in [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)]:
        with pytest.raises(InputError):
            metrics.wilson_interval(k, n, level=level)


def test_agreement_with_severity_counts_pairs():
    rng = np.random.default_rng(0)
    levels, scores = rng.integers(0, 4, 60), rng.normal(size=60).round(1)
    pairs = [(i, j) for i in range(60) for j in range(60) if levels[i] < levels[j]]
    order = [np.sign(scores[j] - scores[i]) for i, j in pairs]
    found = metrics.severity_agreement(levels, scores)
    assert found.c_index == pytest.approx(np.mean([(1 + sign) / 2 for sign in order]))
    assert metrics.severity_agreement(levels, levels * 2.0).kendall_tau == pytest.approx(1)
    assert metrics.severity_agreement(levels, -levels * 1.0).c_index == 0
    assert metrics.severity_agreement([0, 0, 1, 1], [1.0, 3.0, 2.0, 4.0]).c_index == metrics.auroc([0, 0, 1, 1], [1.0, 3.0, 2.0, 4.0])
    for wrong in (([1, 1], [0.0, 1.0]), ([0, 1], [0.0, np.nan]), ([0, 1], [0.0])):
        with pytest.raises(InputError):
            metrics.severity_agreement(*wrong)
