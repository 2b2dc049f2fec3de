import numpy as np
import pytest

from cmgcli import pictures


def test_heat_has_one_scale():
    values = np.array([[-5.0, 0.0, 5.0, 10.0, 99.0, np.nan, np.inf]])
    colours = pictures.heat(values, low=0, high=10)
    assert colours.shape == (1, 7, 3) and colours.dtype == np.uint8
    brightness = colours[0].sum(axis=1).tolist()
    assert brightness[0] == brightness[1] == brightness[5] < brightness[2] < brightness[3] == brightness[4]
    assert brightness[6] == brightness[4]
    assert colours[0, 2, 0] > colours[0, 2, 2]  # RGB: the middle is reddish
    np.testing.assert_array_equal(pictures.heat(values[:, 1:3], low=0, high=10), colours[:, 1:3])
    assert pictures.heat(np.ones((2, 2)), low=1, high=1).max() < 10  # a flat scale does not divide by zero


def test_keep_overlay_shows_the_kept_part_as_it_is():
    image = np.full((40, 60, 3), (200, 40, 40), np.uint8)
    before = image.copy()
    keep = np.zeros((4, 6), bool)
    keep[1:3, 1:4] = True
    picture = pictures.keep_overlay(image, keep)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert (picture[15:25, 15:35] == (200, 40, 40)).all()
    hidden = picture[35, 50].astype(int)
    assert hidden.max() < 60 and np.ptp(hidden) < 20
    assert (picture[10, 20] == pictures._OUTLINE).all()
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(pictures.keep_overlay(image, np.kron(keep, np.ones((10, 10), bool))), picture)


def test_map_overlay_is_clear_where_calm_and_warm_above_the_threshold():
    image = np.full((50, 50, 3), 120, np.uint8)
    levels = np.repeat([[0.0, 1.0, 1.9, 2.5, 9.0]], 50, axis=0).repeat(10, axis=1)
    picture = pictures.map_overlay(image, levels, low=1, high=2).astype(int)
    assert (picture[:, :20] == 120).all()
    yellow, red = picture[25, 25], picture[25, 45]
    assert yellow[0] > 140 and yellow[1] > 140 and yellow[2] < 120
    assert red[0] > 170 and red[1] < 60 and red[2] < 60
    assert (picture[25, 30] == pictures._ALARM).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (7, 3)])
def test_pictures_of_any_size(shape):
    image = np.zeros((*shape, 3), np.uint8)
    assert pictures.keep_overlay(image, np.ones((2, 2), bool)).shape == image.shape
    assert pictures.map_overlay(image, np.full((3, 3), np.nan), low=0, high=1).tolist() == image.tolist()
