"""The scenes of the benchmark of CMER and CMLE, made of a few made-up tiles and materials."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from cmgcli.dataset import read_dataset, training_records
from cmgcli.images import read_image, read_mask, write_png
from tests.benchmarks.composite import shares
from tests.benchmarks.scenes import GROUNDS, read_stock, scene, write_scenes


def write_folder(folder, rows, pictures):
    """Images, and masks where a picture is two-dimensional, with their metadata.csv."""
    for name, picture in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(folder / name, picture)
    with (folder / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file_name", "text", "split", "label", "defect", "mask"), *rows])
    return folder


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    """A photograph of each material in a colour that tiles never have: red without green."""
    rng = np.random.default_rng(0)
    names = (*GROUNDS, "cork", "marble", "rubber")
    pictures = {f"{name}.png": rng.integers((90, 0, 0), (160, 1, 60), (40, 40, 3)).astype(np.uint8) for name in names}
    return write_folder(tmp_path_factory.mktemp("materials"), [(f"{name}.png", name, "", "", "", "") for name in names], pictures)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Tiles in shades that tell which is which: 80 to train on, 160 to test on; in the defective one a square of 240, in another a dot."""
    mask, dot = np.zeros((120, 90), np.uint8), np.zeros((120, 90), np.uint8)
    mask[20:60, 20:60], dot[5, 5] = 255, 255
    shades = {name: np.full((120, 90, 3), shade, np.uint8) for name, shade in (("train.png", 80), ("good.png", 160), ("bad.png", 160), ("faint.png", 160))}
    shades["bad.png"][mask > 0] = 240
    rows = [("train.png", "a tile", "train", 0, "", ""), ("good.png", "a tile", "test", 0, "", "")]
    rows += [("bad.png", "a tile", "test", 1, "crack", "masks/bad.png"), ("faint.png", "a tile", "test", 1, "pit", "masks/faint.png")]
    return write_folder(tmp_path_factory.mktemp("tiles"), rows, shades | {"masks/bad.png": mask, "masks/faint.png": dot})


@pytest.fixture(scope="module")
def stock(tiles, materials):
    return read_stock(tiles, materials)


def grey_of(sample, where):
    """Whether the tile's grey is there, not the red of the materials, whatever light falls on it."""
    return np.median(sample.image[where][:, 1])


def test_training_scenes_show_training_tiles_only(stock):
    trained, tested = (np.mean([grey_of(scene(stock, 0, split, i), scene(stock, 0, split, i).object_mask) for i in (0, 4, 8)]) for split in ("train", "test"))
    assert trained == pytest.approx(80, abs=30)
    assert tested == pytest.approx(160, abs=40)


def test_what_is_too_small_to_be_seen_is_left_out(stock):
    assert [record.defect for record in stock.bad] == ["crack"]


def test_the_mask_follows_the_defect(stock):
    sample = scene(stock, 0, "test", 1)
    assert sample.caption.startswith("a photo of a grey magnetic tile on ") and sample.defect == "crack"
    assert not (sample.defect_mask & ~sample.object_mask).any()
    assert sample.defect_mask.sum() / sample.object_mask.sum() == pytest.approx(40 * 40 / (120 * 90), rel=0.1)
    assert grey_of(sample, sample.defect_mask) > 1.3 * grey_of(sample, sample.object_mask & ~sample.defect_mask)


@pytest.mark.parametrize("index", range(0, 24))
def test_a_part_lies_whole_in_the_picture(stock, index):
    sample = scene(stock, 2, "test", index)
    assert 0.05 < sample.object_mask.mean() < 0.37
    edge = np.ones_like(sample.object_mask)
    edge[1:-1, 1:-1] = False
    assert not (sample.object_mask & edge).any()
    assert sample.defect_mask.any() == bool(sample.defect) == bool(index % 2)


def test_written_scenes_can_be_read(stock, tmp_path):
    file = write_scenes(tmp_path / "a", stock, train=6, test=4, seed=1)
    records = read_dataset(file.parent, file).records
    assert [record.label for record in records] == [0] * 6 + [0, 1, 0, 1]
    assert len(training_records(records)) == 6
    assert len({record.text for record in records}) > 4
    for record in records:
        assert (record.mask is not None) == bool(record.label)
        assert record.mask is None or read_mask(record.mask).shape == read_image(record.path).shape[:2] == (256, 256)
    again = write_scenes(tmp_path / "b", stock, train=6, test=4, seed=1)
    assert all((again.parent / record.file_name).read_bytes() == record.path.read_bytes() for record in records)


def test_a_missing_material_is_named(tiles, tmp_path):
    bare = write_folder(tmp_path, [("a.png", "wood", "", "", "", "")], {"a.png": np.zeros((8, 8, 3), np.uint8)})
    with pytest.raises(ValueError, match="no photograph of concrete, cork, fabric, marble, metal, rubber"):
        read_stock(tiles, bare)


def test_shares_tell_what_the_mask_keeps():
    keep = np.zeros((4, 4), bool)
    keep[:2] = True
    objects, flaw = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    objects[:, :32] = True  # of 8 patches 4 are kept, and of 8 of the ground 4
    flaw[:48, :16] = True  # of 3 patches 2
    kept = shares([SimpleNamespace(keep=keep, relevance=objects[::16, ::16].astype(float))], [flaw], [objects])
    assert kept == pytest.approx({"picture": 0.5, "defect": 2 / 3, "object": 0.5, "ground": 0.5, "relevance AUROC": 1.0})
