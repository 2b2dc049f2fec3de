"""The parts of the score and how they are joined."""

import numpy as np
import pytest
import torch

from cmgcli.detector import Blend, _by_chance, fit_blend, patch_features, top_mean
from cmgcli.metrics import auroc

NONE = np.empty((0, 3))


def points(count: int, dim: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_patch_features_have_unit_norm():
    joined = patch_features([points(6).view(2, 3, 16), 5 * points(6, seed=1).view(2, 3, 16)])
    assert joined.shape == (2, 3, 32)
    torch.testing.assert_close(joined.norm(dim=-1), torch.ones(2, 3))


def test_top_mean_is_the_mean_of_one_per_cent():
    distances = torch.arange(300.0)
    assert top_mean(distances, 300) == pytest.approx((299 + 298 + 297) / 3)
    assert top_mean(distances[:1], 300) == 0


def test_a_part_without_signal_gets_no_weight():
    rng = np.random.default_rng(0)
    normal, anomalous = rng.normal(size=(300, 3)), rng.normal(size=(300, 3))
    anomalous[:, 0] += 3
    anomalous[:, 1] -= 1
    blend = fit_blend(normal, anomalous, NONE)
    assert blend.weight[0] > 0.85
    assert blend.weight[1] < 0.01
    assert blend.weight.sum() == pytest.approx(1)


def test_a_part_is_not_blamed_for_the_kinds_it_cannot_see():
    rng = np.random.default_rng(0)
    normal, scratched, wrong = (rng.normal(size=(300, 3)) for _ in range(3))
    scratched[:, 2] += 3
    wrong[:, 0] += 3
    wrong[:, 2] -= 3
    blend = fit_blend(normal, scratched, wrong)
    assert blend.weight[2] > 0.95 and blend.far[2] == 0
    assert blend.weight[0] < 0.03 and blend.far[0] > 0.8
    assert blend.weight[1] < 0.03 and blend.far[1] < 0.03


def test_a_wrong_part_is_found_by_the_part_that_alone_sees_it():
    rng = np.random.default_rng(0)
    normal, scratched, wrong = (rng.normal(size=(300, 3)) for _ in range(3))
    scratched[:, 2] += 2
    wrong[:, 0] += 6
    blend = fit_blend(normal, scratched, wrong)
    assert (blend(wrong) > np.quantile(blend(normal), 0.95)).mean() > 0.9
    alone = fit_blend(normal, scratched, NONE)
    assert auroc(np.repeat([0, 1], 300), blend(np.r_[normal, scratched])) > auroc(np.repeat([0, 1], 300), alone(np.r_[normal, scratched])) - 0.01


def test_a_part_that_sees_wrong_captions_alone_says_nothing_of_images_as_good_ones_are():
    rng = np.random.default_rng(0)
    normal, scratched, wrong = (rng.normal(size=(300, 3)) for _ in range(3))
    scratched[:, 2] += 2
    wrong[:, 0] += 6
    blend = fit_blend(normal, scratched, wrong)
    assert blend.reach[0] == pytest.approx(1.64, abs=0.3)
    calm, far = np.zeros((1, 3)), np.array([[6.0, 0, 0]])
    without = Blend(blend.location, blend.scale, blend.weight)
    assert blend(calm) == pytest.approx(without(calm), rel=0.1)
    assert blend(far) > 3 * blend(calm) and blend(far) > 3 * without(far)


def test_where_nothing_is_seen_all_parts_weigh_about_alike():
    rng = np.random.default_rng(0)
    weights = [fit_blend(rng.normal(size=(30, 3)), rng.normal(size=(60, 3)), NONE).weight for _ in range(200)]
    assert np.mean(weights, axis=0) == pytest.approx(1 / 3, abs=0.03)
    assert np.median(np.max(weights, axis=1)) < 0.7


def test_what_chance_shows_is_what_it_shows_on_average():
    rng = np.random.default_rng(0)
    found = [max(0.0, 2 * auroc(np.repeat([0, 1], [30, 60]), rng.normal(size=90)) - 1) ** 2 for _ in range(2000)]
    assert np.mean(found) == pytest.approx(_by_chance(30, 60), rel=0.1)


def test_an_absent_part_counts_for_nothing():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(50, 3))
    normal[:, 2] = np.nan
    anomalous = normal + [3, 3, np.nan]
    blend = fit_blend(normal, anomalous, NONE)
    assert blend.weight[2] == blend.far[2] == 0 and blend.counts.tolist() == [True, True, False]
    assert np.isfinite(blend(normal)).all()


def test_a_worse_part_always_gives_a_higher_score():
    blend = Blend(np.array([1.0, 2, 3]), np.array([0.1, 1, 2]), np.array([0.2, 0.3, 0.5]), np.array([1, 0.5, 0]), np.array([2.0, 1, 0]))
    base = np.array([1.0, 2, 3])
    for k in range(3):
        worse = base + np.linspace(-5, 500, 50)[:, None] * np.eye(3)[k]
        assert (np.diff(blend(worse)) > 0).all()


def test_constant_normals_do_not_divide_by_zero():
    blend = fit_blend(np.zeros((5, 3)), np.ones((5, 3)), NONE)
    assert np.isfinite(blend(np.array([[0.0, 0, 0], [1, 1, 1]]))).all()


def test_a_part_that_is_no_number_makes_the_score_none():
    blend = Blend(np.zeros(3), np.ones(3), np.array([0.5, 0.5, 0.0]))
    with np.errstate(all="raise"):
        scores = blend(np.array([[0.0, 0.0, np.nan], [np.nan, 0.0, 0.0], [0.0, np.inf, 0.0]]))
    assert np.isfinite(scores).tolist() == [True, False, False]


def test_good_images_that_are_all_alike_leave_each_part_a_scale_of_its_own():
    """That of the state is no multiple of its location, a difference about 0."""
    alike = np.tile([2.0, 0.5, 0.0, 0.0019], (3, 1))
    np.testing.assert_allclose(fit_blend(alike, alike, np.empty((0, 4))).scale, [2.0, 0.5, 1e-3, 0.02])
