"""The defect head learns, repeats itself, and takes any image."""

import numpy as np
import pytest
import torch

from cmgcli.adapt import DefectHead, Scene, _draw_image, fit_size, head_map, patch_mask_to, standard_pixels, train_head

GRID = (4, 4)
WIDTH = 8


def encode(images) -> torch.Tensor:
    return torch.stack([torch.full((WIDTH, *GRID), float(image.mean()) / 255) for image in images])


def plain(i: int, side: tuple[int, int] = (64, 80)) -> Scene:
    rng = np.random.default_rng(i)
    image = np.clip(rng.normal(120, 6, (*side, 1)), 0, 255).astype(np.uint8).repeat(3, axis=2)
    return Scene(image, np.ones(GRID, bool))


def train(**options) -> DefectHead:
    return train_head(plain, 4, encode, WIDTH, **{"steps": 2, "crop": 32, "batch": 4} | options)


def test_a_few_steps_find_a_gross_defect():
    seen = []
    head = train(steps=60, progress=lambda step, steps, loss: seen.append((step, steps)))
    assert seen == [(step, 60) for step in range(1, 61)]
    normal = plain(99).image
    broken = normal.copy()
    broken[20:40, 30:50] = 20
    keep, tokens = np.ones(GRID, bool), encode([normal])[0]
    assert head_map(head, broken, tokens, keep)[0] > head_map(head, normal, tokens, keep)[0] + 1
    heights = head_map(head, broken, tokens, keep)[1]
    assert heights.shape == (16, 20)
    y, x = np.unravel_index(heights.argmax(), heights.shape)
    assert 4 <= y <= 10 and 6 <= x <= 13


def test_the_same_seed_gives_the_same_head():
    first, second, other = train(seed=1), train(seed=1), train(seed=2)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(first.stem[0].weight, other.stem[0].weight)


def test_the_map_counts_inside_the_keep_mask_only():
    head = train(steps=60)
    image = plain(5).image.copy()
    image[:16, :20] = 10  # under the first patch
    tokens, keep = encode([image])[0], np.ones(GRID, bool)
    seen, _ = head_map(head, image, tokens, keep)
    keep[0, 0] = keep[0, 1] = keep[1, 0] = keep[1, 1] = False
    hidden, heights = head_map(head, image, tokens, keep)
    assert hidden < seen
    assert (heights[:4, :5] <= heights.min() + 1e-4).all()


@pytest.mark.parametrize("side", [(1, 1), (7, 300), (33, 20)])
def test_odd_sizes_train_and_score(side):
    head = train_head(lambda i: plain(i, side), 1, encode, WIDTH, steps=1, crop=32, batch=2)
    score, heights = head_map(head, plain(0, side).image, encode([plain(0, side).image])[0], np.ones(GRID, bool))
    assert np.isfinite(score) and np.isfinite(heights).all()


def test_a_constant_image_has_finite_pixels():
    assert (standard_pixels(np.full((5, 5, 3), 77, np.uint8)) == 0).all()


def test_large_images_are_bounded():
    height, width = fit_size(12_000, 9_000, 1.0)
    assert height * width <= 4_010_000
    assert height / width == pytest.approx(12 / 9, rel=0.01)


def test_what_cannot_be_seen_is_neither_defect_nor_normal():
    """Every defect pixel counts; pixels that changed too little to be seen do not; nothing counts outside the keep mask."""
    keep = np.zeros(GRID, bool)
    keep[1:3, 1:] = True
    ignored = 0
    for seed in range(20):
        base = Scene(plain(seed).image, keep)
        drawn = _draw_image(base, plain(1).image, np.random.default_rng(seed))
        assert (drawn.mask <= drawn.counts).all()
        ignored += int(patch_mask_to(keep, 64, 80).sum() - drawn.counts.sum())
        assert drawn.counts.sum() <= patch_mask_to(keep, 64, 80).sum()
    assert ignored > 0


def test_a_head_goes_on_from_another():
    start = train(steps=1, seed=5)
    before = start.out.weight.clone()
    assert not torch.equal(train(steps=2, start=start).out.weight, before)
