"""Lines drawn on an image: where they head, and how they wander."""

import numpy as np
import pytest

from cmgcli.strokes import ALONG, course, grain_of, headed_walk, strokes, walk


def striped(angle: float, *, size: int = 160, noise: float = 10.0) -> np.ndarray:
    """An image (H, W, 3) uint8 of stripes that run at an angle, radians from x to y, in noise."""
    rng = np.random.default_rng(0)
    y, x = np.indices((size, size))
    across = y * np.cos(angle) - x * np.sin(angle)
    gray = 120 + 40 * np.sin(across / 2) + rng.normal(0, noise, (size, size))
    return np.clip(gray, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def apart(angles: np.ndarray | float, other: float) -> np.ndarray:
    """The least angle between lines of these directions, radians: a line and its reverse are the same."""
    turn = np.abs(np.asarray(angles) - other) % np.pi
    return np.minimum(turn, np.pi - turn)


@pytest.mark.parametrize("degrees", [0, 30, 90, 135])
def test_the_grain_runs_along_the_stripes(degrees: int) -> None:
    assert apart(grain_of(striped(np.deg2rad(degrees))), np.deg2rad(degrees)) < 0.03


def test_an_image_without_grain_has_some_direction() -> None:
    assert np.isfinite(grain_of(np.full((40, 60, 3), 7, np.uint8)))


def test_so_many_lines_follow_the_grain_and_wander_less() -> None:
    rng, image = np.random.default_rng(1), striped(np.pi / 2)
    headings, wanders = np.array([course(image, rng) for _ in range(2000)]).T
    straight = wanders < 1
    assert straight.mean() == pytest.approx(ALONG, abs=0.04)
    assert np.quantile(apart(headings[straight], np.pi / 2), 0.95) < 0.15
    assert np.quantile(apart(headings[~straight], np.pi / 2), [0.25, 0.75]) == pytest.approx([np.pi / 8, 3 * np.pi / 8], abs=0.06)
    assert len(np.unique(np.round(headings[straight] / np.pi - 0.5))) > 1  # either way along it


def test_a_walk_has_its_length_and_its_heading() -> None:
    rng = np.random.default_rng(2)
    straight = walk(rng, np.array([5.0, 7.0]), 60.0, step=6, jitter=0.0, drift=0.0, heading=0.3)
    assert np.allclose(straight[0], [5, 7]) and np.allclose(straight[-1], [5 + 60 * np.cos(0.3), 7 + 60 * np.sin(0.3)])
    bent = headed_walk(rng, np.zeros(2), 90.0, 1.2, 0.2)
    assert np.linalg.norm(np.diff(bent, axis=0), axis=1).sum() == pytest.approx(90) and abs(np.arctan2(bent[-1, 1], bent[-1, 0]) - 1.2) < 0.2


def test_a_crack_keeps_its_heading() -> None:
    """Over the distance it goes, a crack is not much longer than the way between its ends."""
    rng = np.random.default_rng(2)
    walks = [headed_walk(rng, np.zeros(2), 90.0) for _ in range(100)]
    assert np.allclose([np.linalg.norm(np.diff(one, axis=0), axis=1).sum() for one in walks], 90)
    assert np.median([np.linalg.norm(one[-1]) for one in walks]) > 60


def test_strokes_that_leave_the_image_are_cut() -> None:
    top, left, alpha = strokes((20, 30), [np.array([[-10.0, 5.0], [50.0, 5.0]])], [2])
    assert (top, left) == (2, 0) and alpha.shape[1] == 30 and top + alpha.shape[0] <= 20 and alpha.max() == 1
