"""Tiles: where they lie, that no seam is left, and that a tiny scratch in a large image is found."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from shell import cmg_here, wrong

import cmgcli
from cmgcli.encoder import load_encoder
from cmgcli.errors import SettingsError
from cmgcli.explain import evidence, explain
from cmgcli.export import Inspector
from cmgcli.head import patch_mask_to
from cmgcli.images import write_png
from cmgcli.model import Model
from cmgcli.naming import Namer, Phrase
from cmgcli.placard import draw_placard
from cmgcli.scoring import TileWork
from cmgcli.tiles import STEP, WHOLE, check_tiling, patch_boxes, stitch, tile_boxes, under
from cmgcli.view import look, look_nearer

CAPTION = "a photo of a steel washer"


@pytest.mark.parametrize(("height", "width"), [(512, 512), (513, 700), (3000, 4000), (100, 2000), (1537, 1025)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
def test_tiles_cover_the_image_and_overlap_as_asked(height, width, overlap):
    boxes = tile_boxes(height, width, tile=512, overlap=overlap)
    covered = np.zeros((height, width), bool)
    for rows, columns in boxes:
        covered[rows, columns] = True
        assert rows.start % STEP == 0 and columns.start % STEP == 0
        assert min(height, 512) - STEP < rows.stop - rows.start <= 512 and min(width, 512) - STEP < columns.stop - columns.start <= 512
    assert covered.all()
    starts = sorted({rows.start for rows, _ in boxes})
    assert all(after - before <= 512 * (1 - overlap) for before, after in zip(starts, starts[1:]))
    assert (len(boxes) == 1) == (height <= 512 and width <= 512)


def test_stitched_tiles_of_a_smooth_map_are_that_map():
    height, width = 1000, 1403
    y, x = np.mgrid[: height // STEP, : -(-width // STEP)].astype(np.float32)
    truth = 3 + 0.01 * x - 0.02 * y
    boxes = tile_boxes(height, width, tile=400, overlap=0.25)
    maps = [truth[tuple(slice(span.start // STEP, -(-span.stop // STEP)) for span in box)] for box in boxes]
    keeps = [np.ones((4, 4), bool)] * len(boxes)
    assert np.allclose(stitch(maps, keeps, boxes, (height, width)), truth, atol=1e-4)


def test_a_step_between_tiles_becomes_a_slope():
    boxes = tile_boxes(400, 700, tile=400, overlap=0.25)
    assert len(boxes) == 2
    joined = stitch([np.full((5, 5), value, np.float32) for value in (0.0, 1.0)], [np.ones((2, 2), bool)] * 2, boxes, (400, 700))
    steps = np.diff(joined[50])
    assert joined[50, 0] == 0 and joined[50, -1] == 1 and (steps >= 0).all() and steps.max() < 0.1


def test_what_no_tile_keeps_holds_the_least_value():
    boxes = tile_boxes(400, 1000, tile=400, overlap=0)
    half = np.array([[True, False]])
    joined = stitch([np.full((4, 4), 5.0, np.float32), np.full((4, 4), 2.0, np.float32)], [half, half], [boxes[0], boxes[-1]], (400, 1000))
    assert joined.min() == 2 and joined.max() == 5
    assert (joined[:, 65:145] == 2).all()  # beyond the slope of the enlarged map


def test_a_tile_keeps_what_the_image_keeps_there():
    grid = np.arange(16).reshape(4, 4)
    assert (under(grid, (slice(0, 400), slice(0, 400)), (400, 400), (4, 4)) == grid).all()
    assert (under(grid, (slice(200, 400), slice(100, 300)), (400, 400), (2, 2)) == [[9, 10], [13, 14]]).all()
    assert (under(grid, (slice(300, 400), slice(300, 400)), (400, 400), (3, 3)) == 15).all()


@pytest.mark.parametrize(("tile", "overlap", "word"), [(7, 0.25, "at least 8 pixels"), (512, 0.8, "0 to 0.75"), (512, -0.1, "0 to 0.75"), (512, float("nan"), "0.75")])
def test_tiles_that_cannot_be_are_refused(tile, overlap, word):
    with pytest.raises(SettingsError, match=word):
        check_tiling(tile, overlap, 8)


@pytest.mark.parametrize(("options", "word"), [(["--tile", 4], "one patch of the encoder"), (["--tile", 64, "--overlap", 1.5], "overlap: expected a share")])
def test_the_command_refuses_them_in_one_line(options, word, small_line, tmp_path):
    wrong(cmg_here("fit", "--images", small_line, "--captions", small_line / "metadata.csv", "--out", tmp_path / "m.cmg", *options), word)


def washer(seed: int, size: int = 384) -> np.ndarray:
    """A bright disc, a little out of focus, with grain, in the left part of a plain image (size, 2 * size, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, : 2 * size]
    disc = (y - size / 2 - rng.integers(-20, 20)) ** 2 + (x - size / 2) ** 2 < (0.42 * size) ** 2
    image = cv2.GaussianBlur(np.where(disc, 150, 90).astype(np.float32), (0, 0), 3)[..., None] + rng.normal(0, 6, (size, 2 * size, 1))
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8), 3, axis=2)


def scratched(seed: int) -> np.ndarray:
    image = washer(seed)
    image[190:193, 200:220] = 40  # 20 pixels long
    return image


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("builtin", device="cpu")


def own(encoder, image: np.ndarray) -> list[torch.Tensor]:
    """The image's own embedding, for a caption that fits it."""
    return [encoder.encode_image(encoder.preprocess([image])).embedding[0]]


def test_tiles_where_nothing_is_kept_are_skipped(encoder):
    image = washer(0)
    (view,) = look(encoder, [image], own(encoder, image), layers=encoder.feature_layers, relevance="fast", keep=0.2)
    near = look_nearer(encoder, view, layers=encoder.feature_layers, tile=192, overlap=0.25)
    assert 0 < len(near.tiles) < near.tile_count == len(tile_boxes(384, 768, tile=192, overlap=0.25))
    looked = np.zeros(image.shape[:2], bool)
    for tile in near.tiles:
        assert tile.keep.any() and np.array_equal(tile.image, image[tile.box])
        looked[tile.box] = True
    assert looked[patch_mask_to(view.keep, *image.shape[:2])].all() and not looked.all()
    assert near.passes == pytest.approx(view.passes + sum(tile.passes for tile in near.tiles))
    assert near.pieces == near.tiles and view.pieces == (view,)
    work = TileWork()
    work.add(near)
    work.add(view)
    assert work.total == near.tile_count and f"kept nothing: {near.tile_count - len(near.tiles)} of {near.tile_count}, " in work.sentence


def test_a_tile_sees_what_an_image_of_its_own_would(encoder):
    image = washer(1)
    (view,) = look(encoder, [image], own(encoder, image), layers=encoder.feature_layers, relevance="fast", keep=None)
    near = look_nearer(encoder, view, layers=encoder.feature_layers, tile=192, overlap=0)
    assert len(near.tiles) == near.tile_count == 8
    tile = near.tiles[5]
    (alone,) = look(encoder, [np.ascontiguousarray(tile.image)], own(encoder, tile.image), layers=encoder.feature_layers, relevance="fast", keep=None)
    assert np.allclose(tile.patches, alone.patches, atol=1e-4)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory) -> Model:
    folder = tmp_path_factory.mktemp("washers")
    for i in range(8):
        write_png(folder / f"{i}.png", washer(10 + i))
    return cmgcli.fit(folder, caption=CAPTION, tile=192, adapt_steps=2, false_alarm=0.25, device="cpu")


def test_a_20_pixel_scratch_is_found_and_shown(tiled, tmp_path):
    write_png(tmp_path / "good.png", washer(99))
    write_png(tmp_path / "bad.png", scratched(99))
    good, bad = tiled.inspect([tmp_path / "good.png", tmp_path / "bad.png"], maps=True)
    assert bad.row.score > good.row.score and bad.row.anomalous == 1
    assert bad.anomaly_map.shape == (384, 768)
    y, x = np.unravel_index(int(bad.anomaly_map.argmax()), bad.anomaly_map.shape)
    assert 170 <= y < 214 and 180 <= x < 240
    assert 0 < len(bad.view.tiles) <= bad.view.tile_count


def test_a_tiled_model_scores_the_same_after_save_and_load(tiled, tmp_path):
    write_png(tmp_path / "bad.png", scratched(5))
    tiled.save(tmp_path / "model.cmg")
    again = Model.load(tmp_path / "model.cmg", device="cpu")
    assert (again.detector.settings.tile, again.detector.settings.overlap) == (192, 0.25)
    assert list(again.score([tmp_path / "bad.png"])) == list(tiled.score([tmp_path / "bad.png"]))


def test_an_image_no_larger_than_a_tile_is_seen_as_a_whole(tiled, tmp_path):
    write_png(tmp_path / "small.png", washer(3)[:192, :150])
    (inspection,) = tiled.inspect([tmp_path / "small.png"], maps=True)
    assert inspection.view.tiles == () and inspection.anomaly_map.shape == (192, 150)


def test_patches_lie_in_the_image_where_their_piece_does():
    assert patch_boxes(WHOLE, (9, 6), (3, 3), np.array([0, 5])).tolist() == [[0, 0, 3, 2], [3, 4, 6, 6]]
    assert patch_boxes((slice(100, 150), slice(8, 20)), (50, 12), (3, 3), np.array([4, 8])).tolist() == [[116, 12, 134, 16], [133, 16, 150, 20]]
    assert patch_boxes(WHOLE, (1, 1), (4, 4), np.arange(16)).tolist() == [[0, 0, 1, 1]] * 16


@pytest.fixture(scope="module")
def flagged(tiled, tmp_path_factory):
    path = tmp_path_factory.mktemp("flagged") / "bad.png"
    write_png(path, scratched(99))
    (inspection,) = tiled.inspect([path], maps=True)
    return inspection


def test_the_page_of_a_tiled_image_shows_the_tile_that_decided(tiled, flagged):
    found = explain(tiled, flagged)
    places = np.array([place.box for place in found.places])
    assert ((places[:, :2] <= (193, 220)) & (places[:, 2:] >= (190, 200))).all(axis=1).any()  # the scratch
    top, left, bottom, right = found.places[0].box
    rows, columns = found.nearest.box
    assert any(found.nearest is tile for tile in found.view.tiles) and rows.start <= top < bottom <= rows.stop and columns.start <= left < right <= columns.stop
    said = evidence(tiled.detector.map_reference, found.view, flagged.parts)
    assert len(said.strangeness) == sum(len(tile.patches) for tile in found.view.tiles) and found.places[0].strangeness == said.strangeness.max()
    location, scale, _ = tiled.detector.map_reference[0]
    assert said.spreads[:, 0].max() == pytest.approx((max(float(one.patch_map.max()) for one in flagged.parts.tiles) - location) / scale)
    taken = found.view.image[top:bottom, left:right]
    assert np.array_equal(taken, found.nearest.image[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start])
    whole = draw_placard(replace(found, view=replace(found.view, tiles=())))
    assert draw_placard(found).shape[0] > whole.shape[0]


def test_a_tile_remembers_where_in_the_image_its_patches_are(tiled):
    boxes = tiled.detector.bank.origins[:, 1:].numpy()
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 384).all() and (boxes[:, 3] <= 768).all() and boxes[:, 2].max() > 192
    assert ((boxes[:, 2:] - boxes[:, :2]) <= 15).all()


def test_defects_are_named_by_the_tiles_that_show_them(tiled, flagged):
    namer = Namer(tiled.encoder, [Phrase("scratch", "a scratch"), Phrase("stain", "a stain")])
    assert {defect.name for defect in namer.defects(flagged)} <= {"scratch", "stain"}
    calm = replace(flagged, anomaly_map=np.minimum(flagged.anomaly_map, -5))
    assert len(namer.regions(calm)) == 1


def test_a_tiled_model_is_exported_for_images_that_need_no_tiles(tiled):
    with pytest.raises(SettingsError, match="at most 192x192"):
        Inspector(tiled, (384, 768))
    Inspector(tiled, (192, 150))
