"""The head's net on any image: odd sizes, no contrast, tiles."""

import cv2
import numpy as np
import pytest
import torch

from cmgcli import head as module
from cmgcli.head import DefectHead, exposure, head_map, standard_pixels
from cmgcli.pretrained_head import load_head

GRID, WIDTH = (4, 4), 8


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


@pytest.fixture
def net() -> DefectHead:
    torch.manual_seed(0)
    head = DefectHead(WIDTH).eval()
    torch.nn.init.normal_(head.token_in.weight, std=0.1)
    return head


def test_exposure_is_the_mean_and_spread_of_all_values():
    image = noise(31, 17)
    assert exposure(image) == pytest.approx((image.mean(), image.std()))


def test_a_constant_image_has_finite_pixels():
    image = np.full((5, 5, 3), 77, np.uint8)
    assert (standard_pixels(image, *exposure(image)) == 0).all()


@pytest.mark.parametrize("side", [(1, 1), (7, 300), (33, 20)])
def test_logits_cover_the_image_at_a_quarter(net, side):
    logits = net(torch.zeros(2, 3, *side), torch.zeros(2, WIDTH, *GRID))
    assert logits.shape == (2, 1, -(-side[0] // 4), -(-side[1] // 4))


def test_fresh_tokens_change_nothing_and_learnt_ones_do(net):
    pixels, tokens = torch.randn(1, 3, 64, 64), torch.randn(1, WIDTH, *GRID)
    assert not torch.equal(net(pixels, tokens), net(pixels))
    assert torch.equal(DefectHead(WIDTH).eval()(pixels, tokens).isfinite(), torch.ones(1, 1, 16, 16, dtype=torch.bool))
    fresh = DefectHead(WIDTH).eval()
    assert torch.equal(fresh(pixels, tokens), fresh(pixels))


def test_tiles_cover_every_place_once(monkeypatch):
    for side in (module.TILE + 1, 2 * module.TILE - module.OVERLAP, 5000, 4567):
        tiles = module._tiles(side)
        assert tiles[0][1] == 0 and tiles[-1][2] == side
        for (_, _, end), (start, first, _) in zip(tiles, tiles[1:]):
            assert end == first and start <= first and start % module.STRIDE == 0 and first % module.STRIDE == 0
        for start, first, last in tiles:
            assert start <= first < last <= min(start + module.TILE, side)
            assert first == 0 or first - start >= module.OVERLAP // 2 - module.STRIDE
            assert last == side or start + module.TILE - last >= module.OVERLAP // 2 - module.STRIDE


@pytest.mark.parametrize(("side", "close"), [((256, 640), 0.02), ((272, 336), 0.02), ((250, 333), 1)])
def test_tiles_give_the_map_of_the_whole_image(net, monkeypatch, side, close):
    """Without the context, which each tile has of its own, a place far from a seam cannot tell a tile from the image.

    Where a side is no multiple of the stride, the turned tile has another grid than the turned image, which noise shows.
    """
    torch.nn.init.zeros_(net.context.weight)
    torch.nn.init.zeros_(net.token_in.weight)
    image, keep, tokens = noise(*side), np.ones(GRID, bool), torch.zeros(WIDTH, *GRID)
    score, whole = head_map(net, image, tokens, keep)
    for name, value in {"MAX_PIXELS": 1, "TILE": 192, "OVERLAP": 128}.items():
        monkeypatch.setattr(module, name, value)
    tiled_score, tiled = head_map(net, image, tokens, keep)
    assert tiled.shape == whole.shape == (-(-side[0] // 4), -(-side[1] // 4))
    assert np.abs(tiled - whole).mean() < close * whole.std()
    assert tiled_score == pytest.approx(score, abs=0.1 * float(whole.std()))


def test_bfloat16_ranks_as_float32_does():
    head, rng = load_head(WIDTH).eval(), np.random.default_rng(0)
    images = [cv2.resize(rng.integers(0, 256, (n, n, 3), np.uint8), (96, 64), interpolation=cv2.INTER_CUBIC) for n in range(3, 43)]
    tokens, keep = torch.randn(WIDTH, *GRID), np.ones(GRID, bool)
    exact, rough = ([head_map(head, image, tokens, keep, precision=p)[0] for image in images] for p in ("float32", "bfloat16"))
    assert exact != rough
    assert np.corrcoef(np.argsort(np.argsort(exact)), np.argsort(np.argsort(rough)))[0, 1] > 0.99  # of noise; on the demo line it is 0.9998


def test_the_map_of_a_turned_look_lies_as_the_image_does(net, monkeypatch):
    image, tokens, keep = noise(96, 128), torch.randn(WIDTH, *GRID), np.ones(GRID, bool)
    image[:32, :32] = 255
    maps = []
    for looks in (((1.0, False),), ((1.0, True),)):
        monkeypatch.setattr(module, "LOOKS", looks)
        maps.append(head_map(net, image, tokens, keep)[1])
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.2 > np.corrcoef(maps[0].ravel(), maps[1][::-1, ::-1].ravel())[0, 1]
