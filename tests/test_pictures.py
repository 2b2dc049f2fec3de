import cv2
import numpy as np
import pytest

from cmgcli import pictures
from cmgcli.errors import ImageError
from cmgcli.images import write_png


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


def test_a_written_map_reads_back_within_half_a_level(tmp_path):
    values = np.random.default_rng(0).uniform(-32, 31.999, (31, 57)).astype(np.float32)
    values[0, :3] = 0, 1, -1.5
    pictures.write_map_pictures(tmp_path, "part", np.zeros((31, 57, 3), np.uint8), values, low=-1.5, high=0.3)
    levels = cv2.imread(str(tmp_path / "part_anomaly.png"), cv2.IMREAD_UNCHANGED)
    assert levels.dtype == np.uint16 and levels.shape == (31, 57)
    assert levels[0, :3].tolist() == [32768, 33792, 31232]
    back = pictures.read_map(tmp_path / "part_anomaly.png")
    assert back.dtype == np.float32
    assert np.abs(back - values).max() <= 0.5 / 1024
    assert cv2.imread(str(tmp_path / "part_map.png")).shape == (31, 57, 3)


def test_a_map_beyond_the_scale_gets_its_ends():
    levels = pictures.map_levels(np.array([[-1e9, -32.0, 31.9990234375, 1e9, np.inf, -np.inf, np.nan]]))
    assert levels.tolist() == [[0, 0, 65535, 65535, 65535, 0, 0]]


def test_another_picture_is_no_map(tmp_path):
    write_png(tmp_path / "grey.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "empty.png").write_bytes(b"")
    for name, message in (("grey.png", "expected a grey PNG of 16 bits"), ("empty.png", "expected a grey"), ("none.png", "No such file")):
        with pytest.raises(ImageError, match=message):
            pictures.read_map(tmp_path / name)


def test_pictures_of_two_files_with_one_stem_have_two_names():
    used: dict[str, int] = {}
    assert [pictures.unused_stem(file, used) for file in ("a/x.png", "b/x.jpg", "x-2.png", "caf\udce9.png")] == ["x", "x-2", "x-2-2", "caf?"]


def test_a_file_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    used: dict[str, int] = {}
    names = [pictures.unused_stem(file, used) for file in ("a" * 251 + ".png", "a" * 250 + "b.png", "\u00e4" * 125 + ".png")]
    assert len(set(names)) == 3
    for name in names:
        pictures.write_map_pictures(tmp_path, name, np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32), low=0, high=1)
    assert len(list(tmp_path.iterdir())) == 6
