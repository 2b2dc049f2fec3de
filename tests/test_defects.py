"""Drawn defects: masks tell the truth, and the image keeps its own range of values."""

import cv2
import numpy as np
import pytest

from cmgcli.defects import KINDS, draw


def textured(height: int = 72, width: int = 90) -> np.ndarray:
    """A gradient with grain, (height, width, 3) uint8."""
    rng = np.random.default_rng(5)
    slope = np.linspace(80, 170, width)[None, :, None]
    return np.clip(slope + rng.normal(0, 12, (height, width, 3)) * (1, 0.6, 0.8), 0, 255).astype(np.uint8)


def gray(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., :1], 3, axis=2)


def stripes() -> np.ndarray:
    return np.repeat(np.where(np.indices((64, 80)).sum(axis=0) // 9 % 2, 230, 20).astype(np.uint8)[..., None], 3, axis=2)


def test_there_are_many_kinds() -> None:
    assert len(KINDS) >= 12 and len(set(KINDS)) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.0, 1.0, None])
def test_only_the_mask_changes_and_it_lies_where_allowed(kind: str, strength: float | None) -> None:
    image = textured()
    before = image.copy()
    allowed = np.zeros(image.shape[:2], dtype=bool)
    allowed[20:60, 30:70] = True
    for seed in range(6):
        drawn = draw(image, np.random.default_rng(seed), allowed=allowed, kind=kind, strength=strength)
        changed = (drawn.image != image).any(axis=2)
        assert drawn.kind == kind and drawn.image.dtype == np.uint8 and drawn.mask.dtype == bool
        assert drawn.mask.sum() >= 4
        assert not (drawn.mask & ~allowed).any()
        assert not (changed & ~drawn.mask).any()
        assert changed[drawn.mask].mean() > 0.5
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same(kind: str) -> None:
    first, second = (draw(textured(), np.random.default_rng(3), kind=kind, donor=textured()[::-1]) for _ in range(2))
    assert np.array_equal(first.image, second.image) and np.array_equal(first.mask, second.mask)


@pytest.mark.parametrize("kind", KINDS)
def test_gray_stays_gray(kind: str) -> None:
    for seed in range(8):
        drawn = draw(gray(textured()), np.random.default_rng(seed), kind=kind, donor=textured(50, 40)).image
        assert np.array_equal(drawn, gray(drawn))


@pytest.mark.parametrize("kind", KINDS)
def test_two_values_stay_two_values(kind: str) -> None:
    for seed in range(8):
        drawn = draw(stripes(), np.random.default_rng(seed), kind=kind, donor=textured(64, 80))
        assert set(np.unique(drawn.image)) <= {20, 230}
        assert drawn.mask.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0, 90, 255])
def test_a_constant_image_shows_every_kind(kind: str, value: int) -> None:
    image = np.full((33, 47, 3), value, dtype=np.uint8)
    drawn = draw(image, np.random.default_rng(1), kind=kind)
    assert drawn.mask.sum() >= 4
    assert (drawn.image != image).any(axis=2)[drawn.mask].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (5, 200)])
def test_odd_sizes(kind: str, size: tuple[int, int]) -> None:
    image = textured(*size)
    for seed in range(4):
        drawn = draw(image, np.random.default_rng(seed), kind=kind)
        assert drawn.image.shape == image.shape and drawn.mask.shape == size
        assert drawn.mask.sum() >= min(4, size[0] * size[1])


def test_one_allowed_pixel_and_none() -> None:
    allowed = np.zeros((30, 30), dtype=bool)
    assert draw(textured(30, 30), np.random.default_rng(0), allowed=allowed).mask.any()
    allowed[7, 9] = True
    for kind in KINDS:
        assert np.array_equal(draw(textured(30, 30), np.random.default_rng(0), allowed=allowed, kind=kind).mask, allowed)


def test_strength_is_strength() -> None:
    def change(strength: float) -> float:
        drawn = [draw(textured(), np.random.default_rng(seed), kind="stain", strength=strength) for seed in range(30)]
        return float(np.mean([np.abs(d.image.astype(int) - textured())[d.mask].mean() for d in drawn]))

    assert change(0.05) < change(0.5) < change(1.0)


def test_sizes_vary_widely() -> None:
    rng = np.random.default_rng(0)
    shares = [draw(textured(128, 128), rng).mask.mean() for _ in range(300)]
    assert min(shares) < 0.001 and max(shares) > 0.05


@pytest.mark.parametrize(("kind", "share"), [("scratch", 0.1), ("crack", 0.1), ("uneven", 0.3)])
def test_some_go_right_across_and_some_stay_small(kind: str, share: float) -> None:
    """A fracture, a scratch or a band of another finish does not end where the crop that the head learns from does."""
    rng = np.random.default_rng(1)
    image = np.clip(rng.normal(128, 20, (96, 96, 3)), 0, 255).astype(np.uint8)
    reach = []
    for _ in range(300):
        ys, xs = np.nonzero(draw(image, rng, kind=kind, strength=1.0).mask)
        reach.append(max(np.ptp(ys), np.ptp(xs)) / 95)
    assert np.mean(np.array(reach) > 0.6) > share
    assert kind == "uneven" or np.median(reach) < 0.6


def test_an_uneven_area_keeps_the_grain_under_it_or_has_that_of_another_place() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(60, 200, (96, 96, 1), np.uint8).repeat(3, axis=2)
    drawn = [draw(image, rng, kind="uneven", strength=0.0) for _ in range(60)]
    alike = np.array([np.corrcoef(image[found.mask][:, 0], found.image[found.mask][:, 0])[0, 1] for found in drawn])
    assert 0.25 < np.mean(alike > 0.95) < 0.75 and 0.25 < np.mean(alike < 0.7) < 0.75


def test_the_rim_of_an_uneven_area_is_soft_or_sharp() -> None:
    """As a share of the area, what is neither wholly in nor wholly out."""
    from cmgcli.defect_kinds import Scene, _uneven

    rng, image = np.random.default_rng(4), np.full((96, 96, 3), 120, np.uint8)
    scene = Scene(image, np.ones((96, 96), bool), None, gray=True, contrast=20.0, values=None)
    alphas = [_uneven(scene, rng, 1.0).alpha for _ in range(60)]
    rims = np.array([((alpha > 0) & (alpha < 1)).sum() / (alpha > 0).sum() for alpha in alphas])
    assert np.quantile(rims, 0.3) < 0.2 and np.quantile(rims, 0.8) > 0.4


def test_pits_are_a_sprinkling_or_a_blowhole() -> None:
    """A single pit may be wide."""
    rng, widest = np.random.default_rng(3), []
    for _ in range(200):
        mask = draw(np.full((96, 96, 3), 120, np.uint8), rng, kind="pits", strength=1.0).mask
        widest.append(2 * cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5).max())
    assert np.quantile(widest, 0.3) < 6 and np.quantile(widest, 0.97) > 12


def test_wrong_arguments_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown kind of defect 'rust': choose one of scratch"):
        draw(textured(), rng, kind="rust")
    with pytest.raises(ValueError, match=r"expected a \(H, W, 3\) uint8 image, got \(4, 4\) float64"):
        draw(np.zeros((4, 4)), rng)
    with pytest.raises(ValueError, match=r"allowed is \(3, 3\), the image \(72, 90\)"):
        draw(textured(), rng, allowed=np.ones((3, 3), dtype=bool))
