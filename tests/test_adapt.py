"""The defect head learns, repeats itself, goes on where it was broken off, and stops when it no longer gets better."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cmgcli.adapt import CHECKS, Scene, _checked, _through_a_lens, draw_crops, train_head
from cmgcli.head import DefectHead, head_map
from cmgcli.snapshot import Course

GRID = (4, 4)


def plain(i: int, side: tuple[int, int] = (64, 80)) -> Scene:
    rng = np.random.default_rng(i)
    image = np.clip(rng.normal(120, 6, (*side, 1)), 0, 255).astype(np.uint8).repeat(3, axis=2)
    return Scene(image, np.ones(GRID, bool))


def sample(rng: np.random.Generator, _: int = 0, **scene):
    return draw_crops(plain(int(rng.integers(4)), **scene), plain(7, **scene).image, rng, size=32)


def train(**options) -> DefectHead:
    return train_head(sample, **{"steps": 2, "batch": 4} | options)


def test_a_few_steps_find_a_gross_defect():
    seen = []
    head = train(steps=60, progress=lambda step, steps, loss, auroc: seen.append((step, steps)))
    assert seen == [(step, 60) for step in range(1, 61)]
    normal = plain(99).image
    broken = normal.copy()
    broken[20:40, 30:50] = 20
    keep = np.ones(GRID, bool)
    assert head_map(head, broken, keep)[0] > head_map(head, normal, keep)[0] + 1
    heights = head_map(head, broken, keep)[1]
    assert heights.shape == (16, 20)
    y, x = np.unravel_index(heights.argmax(), heights.shape)
    assert 4 <= y <= 10 and 6 <= x <= 13


def test_the_same_seed_gives_the_same_head():
    first, second, other = train(seed=1), train(seed=1), train(seed=2)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(first.stem[0][0].weight, other.stem[0][0].weight)


def test_the_map_counts_inside_the_keep_mask_only():
    head = train(steps=60)
    image = plain(5).image.copy()
    image[:16, :20] = 10  # under the first patch
    keep = np.ones(GRID, bool)
    seen, _ = head_map(head, image, keep)
    keep[0, 0] = keep[0, 1] = keep[1, 0] = keep[1, 1] = False
    hidden, heights = head_map(head, image, keep)
    assert hidden < seen
    assert (heights[:4, :5] <= heights.min() + 1e-4).all()


@pytest.mark.parametrize("side", [(1, 1), (7, 300), (33, 20)])
def test_odd_sizes_train_and_score(side):
    head = train_head(lambda rng, step: sample(rng, side=side), steps=1, batch=4)
    score, heights = head_map(head, plain(0, side).image, np.ones(GRID, bool))
    assert np.isfinite(score) and np.isfinite(heights).all()


def test_what_cannot_be_seen_is_neither_defect_nor_normal():
    """Defects lie where CMER keeps the image; pixels that changed too little to be seen do not count, nor does the rest of the image."""
    scene = Scene(np.full((64, 80, 3), 100, np.uint8), np.zeros(GRID, bool))
    scene.image[16:48, 20:] = 160
    scene.keep[1:3, 1:] = True  # the bright part
    defects = ignored = 0
    for crop in draw_crops(scene, None, np.random.default_rng(0), count=80, size=32, rate=1):
        bright = crop.image[2::4, 2::4, 0] >= 130
        kept = crop.counts | crop.target
        assert (kept & ~bright & ~crop.target).sum() <= 8  # the rim of the part falls into cells of both sides
        defects += int(crop.target.sum())
        ignored += int((bright & ~kept).sum())
    assert defects > 100 and ignored > 20


def test_crops_without_defects_are_pieces_of_the_image():
    image = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    crops = draw_crops(Scene(image, np.ones(GRID, bool)), None, np.random.default_rng(1), rate=0)
    assert len(crops) == 4
    for crop in crops:
        assert crop.image.shape == (96, 96, 3) and crop.target.shape == (24, 24)
        assert not crop.target.any() and crop.counts.any()
        assert crop.mean == pytest.approx(image.mean())


def test_drawing_costs_the_same_in_a_large_image():
    """A crop is cut first and drawn on then: what is drawn on never exceeds the crop, whatever the image."""
    crops = draw_crops(Scene(np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8), np.ones(GRID, bool)), None, np.random.default_rng(0), rate=1)
    assert {crop.image.shape for crop in crops} == {(96, 96, 3)}
    assert any(crop.target.any() for crop in crops)


def test_a_head_goes_on_from_another():
    start = train(steps=1, seed=5)
    before = start.out.weight.clone()
    assert not torch.equal(train(steps=2, start=start).out.weight, before)


def test_a_broken_off_training_ends_as_an_undisturbed_one(tmp_path):
    class Crash(Exception):
        pass

    def crash(step, *_):
        if step == CHECKS + 3:
            raise Crash

    steps, state = CHECKS + 10, tmp_path / "state"
    whole = train(steps=steps, validate=lambda head: 0.5)
    with pytest.raises(Crash):
        train(steps=steps, snapshot=state, snapshot_key="a", validate=lambda head: 0.5, progress=crash)
    seen = []
    again = train(steps=steps, snapshot=state, snapshot_key="a", validate=lambda head: 0.5, progress=lambda step, *_: seen.append(step))
    assert seen == list(range(CHECKS + 1, steps + 1))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_snapshot_of_other_settings_or_a_damaged_one_is_left_out(tmp_path, caplog):
    state, seen = tmp_path / "state", []
    train(steps=CHECKS + 1, snapshot=state, snapshot_key="a")
    train(steps=1, snapshot=state, snapshot_key="b", progress=lambda step, *_: seen.append(step))
    state.write_bytes(b"damaged")
    train(steps=1, snapshot=state, snapshot_key="a", progress=lambda step, *_: seen.append(step))
    assert seen == [1, 1]
    assert "other images or settings" in caplog.text and "damaged" in caplog.text


def test_a_flat_curve_ends_the_training_early():
    """A curve that rises lasts the whole budget; one that is flat from the start descends at the fifth check."""
    rising, flat, steps = iter(np.linspace(0.1, 0.9, 100)), [], 20 * CHECKS
    course = Course(decay_from=steps // 2)
    for check in range(1, 11):
        course = replace(course, step=check * CHECKS)
        course = _checked(course, next(rising))
    assert course.decay_from == steps // 2
    course = Course(decay_from=steps // 2)
    for check in range(1, 11):
        course = _checked(replace(course, step=check * CHECKS), 0.7)
        flat.append(course.decay_from)
    assert flat == [steps // 2] * 4 + [5 * CHECKS] * 6


def test_most_drawn_defects_are_softened_as_a_camera_would():
    """Only where a defect may lie; a two-valued image stays two-valued."""
    rng = np.random.default_rng(4)
    image = np.full((48, 48, 3), 120, np.uint8)
    image[::2] = 118
    image[1::5] = 122
    drawn, allowed = image.copy(), np.zeros((48, 48), bool)
    drawn[10:40, 24], allowed[:, :26] = 60, True
    seen = [_through_a_lens(image, drawn, allowed, rng) for _ in range(200)]
    soft = [each for each in seen if not np.array_equal(each, drawn)]
    assert 0.55 < len(soft) / len(seen) < 0.85
    for each in soft:
        assert np.array_equal(each[:, 26:], image[:, 26:])
        assert (each[20:30, 24] > drawn[20:30, 24]).all() and (each[20:30, 23] <= image[20:30, 23]).all()
    assert np.ptp([int(each[25, 24, 0]) for each in soft]) > 15
    binary = np.where(np.indices((48, 48)).sum(0)[..., None] // 9 % 2, 230, 20).astype(np.uint8).repeat(3, axis=2)
    opened = binary.copy()
    opened[5:20, 5:20] = 20
    assert all(np.array_equal(_through_a_lens(binary, opened, np.ones((48, 48), bool), rng), opened) for _ in range(20))
