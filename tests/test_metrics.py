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


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([1, 3, 20, 10**6]), limit=st.sampled_from([0.05, 0.3, 1.0]))
def test_aupro_equals_its_slow_definition(seed, levels, limit):
    rng = np.random.default_rng(seed)
    shapes = [(6, 9), (5, 5), (8, 3)]
    masks = [rng.random(shape) < 0.25 for shape in shapes]
    masks[0][0, :2] = True, False
    maps = [rng.integers(0, levels, shape) / levels for shape in shapes]
    assert metrics.aupro(masks, maps, limit=limit) == pytest.approx(slow_aupro(masks, maps, limit), abs=1e-9)


def test_aupro_counts_a_small_region_like_a_large_one():
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = mask[15, 15] = True
    only_large = np.where(np.arange(20)[:, None] < 12, mask, 0).astype(np.float32)
    assert metrics.aupro([mask], [mask.astype(float)]) == pytest.approx(1)
    assert metrics.aupro([mask], [only_large]) == pytest.approx(0.5 + 0.5 * 0.15)  # on the chord to (1, 1)


def test_image_measures_by_hand():
    labels, scores = [0, 0, 1, 1], np.array([-3.0, 2.0, 1.0, 50.0])
    assert metrics.auroc(labels, scores) == 0.75
    assert metrics.average_precision(labels, scores) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.f1_max(labels, scores) == metrics.F1(pytest.approx(0.8), 1.0)
    assert metrics.auroc([0, 1], [1.0, 1.0]) == 0.5


def test_pixel_auroc_takes_images_of_several_sizes():
    masks = [np.array([[0, 255]]), np.zeros((3, 3))]
    assert metrics.pixel_auroc(masks, [np.array([[0.1, 0.9]]), np.zeros((3, 3))]) == 1.0


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
@pytest.mark.parametrize("measure", [metrics.auroc, metrics.average_precision, metrics.f1_max])
def test_measures_say_why_they_cannot(measure, labels, scores, message):
    with pytest.raises(InputError, match=message):
        measure(labels, scores)


@pytest.mark.parametrize("measure", [metrics.pixel_auroc, metrics.aupro])
def test_pixel_measures_say_why_they_cannot(measure):
    mask = np.eye(3, dtype=bool)
    for masks, maps, message in [
        ([mask], [], "1 masks, 0 maps"),
        ([mask, mask], [np.zeros((3, 3)), np.zeros((2, 3))], "in row 1"),
        ([mask], [np.full((3, 3), np.nan)], "NaN or infinity in row 0"),
        ([mask & False], [np.zeros((3, 3))], "9 normal and 0 anomalous"),
    ]:
        with pytest.raises(InputError, match=message):
            measure(masks, maps)
    with pytest.raises(InputError, match="limit"):
        metrics.aupro([mask], [np.zeros((3, 3))], limit=0)


def test_wilson_interval():
    assert metrics.wilson_interval(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert metrics.wilson_interval(0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
    assert metrics.wilson_interval(20, 20)[1] == 1.0
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)
    for k, n, level in [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)]:
        with pytest.raises(InputError):
            metrics.wilson_interval(k, n, level=level)
