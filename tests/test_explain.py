"""Explanations: the parts add up to the score, the neighbours are the bank's nearest, the pictures are those of the fit's images."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from shell import cmg_here, wrong

import cmgcli
from cmgcli import album, explain, placard
from cmgcli.bank import PatchBank
from cmgcli.errors import CheckpointError
from cmgcli.images import read_image, write_png
from cmgcli.model import Model
from cmgcli.reasons import excess_of, short_reason
from cmgcli.rows import read_scores, row_writer
from cmgcli.tiles import WHOLE, patch_boxes


def explained(model: Model, path, captions=None) -> explain.Explanation:
    (inspection,) = model.inspect([path], captions, maps=True)
    return explain.explain(model, inspection)


@pytest.fixture(scope="module")
def image(small_line):
    return small_line / "images" / "test_0001.png"


@pytest.fixture(scope="module")
def found(small_model, image):
    return explained(small_model, image, {image.resolve(): "a photo of a brass gear"})


def test_the_parts_add_up_to_the_score(found, small_model):
    assert sum(part.points for part in found.parts) == pytest.approx(found.row.score)
    blend = small_model.detector.blend
    assert found.usual_score == pytest.approx(float(blend(blend.location[None])[0]))
    assert sum(part.excess for part in found.parts) == pytest.approx(found.row.score - found.usual_score)
    assert [part.name for part in found.parts] == list(explain.PARTS)
    for part in found.parts:
        if part.name != "state_score":  # which has no column
            assert part.value == pytest.approx(getattr(found.row, part.name))
        assert (part.excess > 0) == (part.spreads > 0)


def test_neighbours_are_the_nearest_of_the_bank_in_a_slow_search(found, small_model):
    bank, language = small_model.detector.bank, small_model.detector.language
    rows = torch.isin(bank.groups, language.bank_groups(language.weights_of(language.text[language.captions.index("a photo of a brass gear")])))
    for place in found.places:
        (number,) = (i for i, box in enumerate(found.view.patch_boxes.tolist()) if tuple(box) == place.box)
        patch = found.view.patches[number].cpu()
        distances = sorted(float((patch - other).norm()) for other in bank.features[rows])
        assert [near.distance for near in place.neighbours] == pytest.approx(distances[: explain.NEIGHBOURS], abs=1e-4)


def test_a_picture_shows_its_patch_of_the_image_of_the_fit(found, small_line):
    for near in found.places[0].neighbours:
        expected = album.patch_picture(read_image(small_line / near.image), near.box)
        assert np.abs(near.picture.astype(int) - expected).mean() < 6  # JPEG


def test_places_lie_apart_and_come_in_order(found):
    strangeness = [place.strangeness for place in found.places]
    assert strangeness == sorted(strangeness, reverse=True)
    boxes = np.array([place.box for place in found.places])
    for i, box in enumerate(boxes):
        for other in boxes[:i]:
            assert (box[:2] > other[2:]).any() or (box[2:] < other[:2]).any()
    three = patch_boxes(WHOLE, (9, 9), (3, 3), np.array([8, 7, 0]))
    assert explain.chosen_places(np.array([1.0, 0.9, -5.0]), three, 4) == [0, 2] and explain.chosen_places(np.array([1.0, 0.9, -5.0]), three, 1) == [0]


def test_the_other_caption_gives_the_score_of_scoring_by_it(found, small_model, image):
    (row,) = small_model.score([image], {image.resolve(): found.other.text})
    assert found.other.text != found.row.caption
    assert found.other.score == pytest.approx(row.score, rel=1e-5)
    assert sum(found.other.changes) == pytest.approx(row.score - found.row.score, abs=1e-5)


def test_a_row_read_back_tells_what_decided(found, small_model, tmp_path):
    path = tmp_path / "s.csv"
    with path.open("w", newline="") as stream:
        row_writer(stream)(found.row)
    (row,) = read_scores(path)
    excess = excess_of(small_model.detector.blend, row)
    per_square = found.row.score + found.usual_score
    assert excess == pytest.approx({part.name: part.excess * per_square for part in found.parts}, abs=1e-3)


def made_parts(*excess: float) -> tuple[explain.PartOfScore, ...]:
    return tuple(explain.PartOfScore(name, 1.0, 1.0, 1.0, 0.2 + more, 0.2, more) for name, more in zip(explain.PARTS, excess, strict=True))


def test_the_words_say_what_decided(found):
    def said(score: float, *excess: float) -> str:
        return replace(found, row=replace(found.row, score=score), parts=made_parts(*excess)).reason

    assert said(0.5, -0.1, 0, 0, 0) == "Nothing here is stranger than in a typical good part."
    assert said(4.0, 0.1, 0.2, 3.0, 0.0) == "91% of what it has above a typical good part comes from the defect head: it sees more in the pixels than usual."
    assert said(4.0, 1.0, 1.1, 0.9, -0.1) == "No part alone decides: the patches and the whole image and the defect head add up."
    assert short_reason({"image_score": 0.2, "state_score": 0.1, "head_score": -0.4}) == ""
    assert short_reason({"image_score": 0.2, "state_score": 2.0}) == "defect words"
    assert short_reason({"image_score": 1.0, "patch_score": 0.8, "head_score": 0.9}) == "whole image + defect head + patches"
    anomalous = replace(found.row, score=5.0, anomalous=1)
    other = replace(found.other, score=1.0, passes=True)
    assert "is it another part" in replace(found, row=anomalous, other=other).caption_words[-1]
    assert "still be rejected" in replace(found, row=anomalous, other=replace(other, passes=False)).caption_words[-1]
    assert "raises no doubt" in replace(found, row=anomalous, other=replace(other, passes=False, score=9.0)).caption_words[-1]
    assert "makes no difference" in replace(found, row=anomalous, other=replace(other, score=5.01)).caption_words[-1]
    assert "no other caption" in replace(found, other=None).caption_words[-1]
    assert "no threshold" in replace(found, threshold=float("inf")).verdict


@pytest.mark.parametrize("size", [(96, 96), (20, 300), (300, 20), (1, 1)])
def test_any_image_can_be_drawn(small_model, tmp_path, size):
    path = tmp_path / ("a" * 100 + "%.png")
    write_png(path, np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8))
    page = placard.draw_placard(explained(small_model, path))
    assert page.dtype == np.uint8 and page.shape[1:] == (1100, 3) and (page != 255).any()


def test_a_model_without_head_cmle_and_a_second_caption_explains_too(small_line, tmp_path, image):
    model = cmgcli.fit(small_line, caption="a part", adapt=False, cmer=False, cmle=False, bank_size=70, device="cpu")
    model.save(tmp_path / "m.cmg")
    found = explained(Model.load(tmp_path / "m.cmg", device="cpu"), image)
    assert found.other is None and [part.name for part in found.parts if part.name == "head_score"] == []
    assert found.places[0].head_spreads is None and "hid nothing" in found.caption_words[1]
    assert placard.draw_placard(found).shape[1] == 1100


def test_a_saved_model_explains_the_same(found, model_file, image):
    again = explained(Model.load(model_file, device="cpu"), image, {image.resolve(): found.row.caption})
    np.testing.assert_array_equal(placard.draw_placard(again), placard.draw_placard(found))


def test_the_album_asks_for_each_image_once_and_counts_them_anew():
    rng = np.random.default_rng(0)
    images = {3: np.full((64, 64, 3), 30, np.uint8), 8: np.full((32, 90, 3), 200, np.uint8), 5: rng.integers(0, 255, (9, 9, 3), np.uint8)}
    asked = []
    bank = PatchBank(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), torch.tensor([[8, 0, 0, 8, 22], [3, 48, 48, 64, 64], [8, 8, 68, 16, 90]]))
    changed, pages = album.take_pictures(bank, lambda i: asked.append(i) or images[i], "image {}".format)
    assert asked == [3, 8] and pages.names == ("image 3", "image 8")
    assert changed.origins.tolist() == [[1, 0, 0, 8, 22], [0, 48, 48, 64, 64], [1, 8, 68, 16, 90]]
    bright = [float(picture.mean()) for picture in pages.pictures([0, 1, 2])]
    assert bright == pytest.approx([200, 30, 200], abs=2)
    for sheet in (pages.sheet[:0], pages.sheet[:200], torch.zeros(50, dtype=torch.uint8)):
        with pytest.raises(CheckpointError, match="fit it again"):
            replace(pages, sheet=sheet).pictures([0])


def test_a_patch_picture_shows_the_patch_in_its_middle():
    image = np.zeros((80, 120, 3), np.uint8)
    image[20:40, 60:90] = (250, 100, 0)  # the patch in row 1, column 2 of 4 x 4
    picture = album.patch_picture(image, (20, 60, 40, 90))
    quarter = album.SIDE // 4
    inside = np.zeros((album.SIDE, album.SIDE), bool)
    inside[quarter : 3 * quarter, quarter : 3 * quarter] = True
    assert np.abs(picture[inside].astype(int) - (250, 100, 0)).mean() < 12 and picture[~inside].mean() < 8


def test_the_command_explains_anomalous_images_or_all(small_line, model_file, tmp_path):
    noise = tmp_path / "noise.png"
    cv2.imwrite(str(noise), np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8))
    good = sorted((small_line / "images").glob("train*"))[0]
    why = tmp_path / "why"
    command = ("score", "--model", model_file)
    run = cmg_here(*command, "--explain", why, noise, good, noise)
    assert run.returncode == 0 and run.err == ""
    assert sorted(path.name for path in why.iterdir()) == ["noise-2_why.png", "noise_why.png"]
    run = cmg_here(*command, "--explain", tmp_path / "none", good)
    assert "nothing to explain; --explain-all" in run.err and list((tmp_path / "none").iterdir()) == []
    assert cmg_here(*command, "--explain", why, "--explain-all", "--maps", why, good).err == ""
    assert sorted(path.name for path in why.glob(f"{good.stem}*")) == [f"{good.stem}_{kind}.png" for kind in ("anomaly", "map", "why")]
    plain = cmg_here(*command, noise, good)
    assert cmg_here(*command, "--explain", why, noise, good).out == plain.out
    wrong(cmg_here(*command, "--explain-all", good), "give --explain DIR too")
    wrong(cmg_here(*command, "--explain", noise, good), "noise.png", "choose another")
