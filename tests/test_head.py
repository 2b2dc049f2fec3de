"""The head's net on any image: odd sizes, no contrast, tiles."""

import cv2
import numpy as np
import pytest
import torch

from cmgcli import head as module
from cmgcli.head import DefectHead, exposure, head_map, kept_places, patch_mask_to, standard_pixels
from cmgcli.pretrained_head import load_head

GRID = (4, 4)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


@pytest.fixture
def net() -> DefectHead:
    torch.manual_seed(0)
    return DefectHead().eval()


def test_exposure_is_the_mean_and_spread_of_all_values():
    image = noise(31, 17)
    assert exposure(image) == pytest.approx((image.mean(), image.std()))


def test_a_constant_image_has_finite_pixels():
    image = np.full((5, 5, 3), 77, np.uint8)
    assert (standard_pixels(image, *exposure(image)) == 0).all()


@pytest.mark.parametrize("side", [(1, 1), (7, 300), (33, 20)])
def test_logits_cover_the_image_at_a_quarter(net, side):
    assert net(torch.zeros(2, 3, *side)).shape == (2, 1, -(-side[0] // 4), -(-side[1] // 4))


def test_a_logit_sees_as_far_as_the_docstring_says():
    pixels = torch.randn(1, 3, 401, 401, dtype=torch.float64, requires_grad=True)
    DefectHead().double().eval()(pixels)[0, 0, 50, 50].backward()
    seen = pixels.grad.abs().sum((0, 1)).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [191, 191]
    assert min(module.OVERLAP // 2, module.STRIDE * DefectHead().reach) > 191 // 2


def test_small_images_are_shown_enlarged_and_large_ones_are_not():
    assert module.look_scales(256, 256) == (2, 1, 0.5, 0.25)
    assert module.look_scales(3000, 4000) == (1, 0.5, 0.25, 0.125)


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


@pytest.mark.parametrize("side", [(256, 640), (250, 333)])
def test_tiles_give_the_map_of_the_whole_image(net, monkeypatch, side):
    image, keep = noise(*side), np.ones(GRID, bool)
    score, whole = head_map(net, image, keep)
    for name, value in {"MAX_PIXELS": 1, "TILE": 320, "OVERLAP": 256}.items():
        monkeypatch.setattr(module, name, value)
    tiled_score, tiled = head_map(net, image, keep)
    np.testing.assert_allclose(tiled, whole, atol=1e-4)
    assert tiled_score == pytest.approx(score, abs=1e-4)


def test_a_peak_counts_by_how_unusual_it_is_for_good_images():
    head, usual = DefectHead(), torch.randn(400, 4, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1, 10])
    head.accustom(usual)
    calm = usual.median(0).values
    assert float(head.unusual(calm)) == pytest.approx(np.log(2), abs=1e-3)
    raised = calm + 3 * torch.eye(3)[:, None] * torch.tensor([0.1, 1, 10])  # one share each, in all looks, by three standard deviations
    found = head.unusual(raised)
    assert float(found.min()) > 1.5 and float(found.max() / found.min()) < 1.1


def test_each_higher_peak_gives_a_higher_score():
    head = DefectHead()
    head.accustom(torch.randn(50, 4, 3))
    for look in range(4):
        for share in range(3):
            peaks = torch.zeros(60, 4, 3)
            peaks[:, look, share] = torch.linspace(-5, 300, 60)
            assert (head.unusual(peaks).diff() > 0).all()


@pytest.mark.parametrize("count", [1, 5])
def test_good_images_that_are_all_alike_do_not_divide_by_zero(count):
    head = DefectHead()
    head.accustom(torch.full((count, 4, 3), -2.0))
    assert torch.isfinite(head.unusual(torch.zeros(4, 3)))


def test_bfloat16_ranks_as_float32_does():
    head, rng = load_head().eval(), np.random.default_rng(0)
    images = [cv2.resize(rng.integers(0, 256, (n, n, 3), np.uint8), (96, 64), interpolation=cv2.INTER_CUBIC) for n in range(3, 43)]
    exact, rough = ([head_map(head, image, np.ones(GRID, bool), precision=p)[0] for image in images] for p in ("float32", "bfloat16"))
    assert exact != rough
    assert np.corrcoef(np.argsort(np.argsort(exact)), np.argsort(np.argsort(rough)))[0, 1] > 0.99


def test_no_kept_patch_is_lost_where_logits_are_fewer_than_patches():
    rng = np.random.default_rng(0)
    for size in ((14, 14), (28, 56), (16, 20)):
        keep = rng.random((14, 14)) < 0.3
        assert np.array_equal(kept_places(keep, *size), patch_mask_to(keep, *size))
    for number in range(196):
        keep = np.zeros(196, bool)
        keep[number] = True
        kept = kept_places(keep.reshape(14, 14), 8, 12)
        assert 1 <= kept.sum() <= 4 and kept[number // 14 * 8 // 14, number % 14 * 12 // 14]


@pytest.mark.parametrize("kept", [(slice(5, 8), slice(3, 9)), (slice(0, 2), slice(12, 16)), (slice(9, 10), slice(0, 16))])
@pytest.mark.parametrize("side", [(512, 640), (333, 1000)])
def test_what_no_kept_place_sees_is_not_computed_and_changes_nothing(side, kept, monkeypatch):
    head, image, keep, computed = load_head(), noise(*side), np.zeros((16, 16), bool), []
    keep[kept] = True
    plain = module._logits
    monkeypatch.setattr(module, "_logits", lambda logits_of, piece: computed.append(piece[..., 0].size) or plain(logits_of, piece))
    score, shown = head_map(head, image, keep)
    monkeypatch.setattr(module, "_reached", lambda line, reach: slice(0, len(line)))
    whole_score, whole = head_map(head, image, keep)
    assert sum(computed[:4]) < 0.85 * sum(computed[4:])
    np.testing.assert_allclose(shown, whole, atol=1e-4)
    assert score == pytest.approx(whole_score, abs=1e-4)


def test_what_is_computed_has_few_sizes_whatever_is_kept():
    """Each size that a run meets is one more kernel that torch holds."""
    rng, lengths = np.random.default_rng(0), set()
    for _ in range(500):
        kept = np.zeros(130, bool)
        first, end = np.sort(rng.choice(131, 2, replace=False))
        kept[first:end] = True
        found = module._reached(kept, 24)
        assert 0 <= found.start <= max(0, first - 24) and min(130, end + 24) <= found.stop <= 130
        lengths.add(found.stop - found.start)
    assert all(length % module.ROOM == 0 or length == 130 for length in lengths)


def test_a_head_judges_by_the_net_that_was_trained():
    head, pixels = load_head(), standard_pixels(noise(90, 130), 128, 70)
    np.testing.assert_allclose(module.ScoringHead(head)(pixels), head(pixels[None])[0, 0], atol=1e-4)
