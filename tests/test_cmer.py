"""CMER on a match that can be computed by hand: the mean of what the kept patches are worth."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cmgcli import line
from cmgcli.cmer import KEEP_SIZES, corners, entropy, fast, grow, keep_mask, nested_by, nested_means, occlusion, over_windows, sampled, top_patches, withdrawn
from cmgcli.encoder import load_encoder
from cmgcli.errors import SettingsError
from cmgcli.view import Meter, relevance_of, token_match

GRID = (6, 7)
P = 42


def additive(worth: torch.Tensor):
    """A match that sums the worth (B, P) of the kept patches."""
    return lambda rows, keep: (worth[rows] * keep).sum(1)


@pytest.fixture
def worth() -> torch.Tensor:
    values = torch.zeros(2, *GRID)
    values[0, 1:4, 2:5] = 1.0
    values[1, 4:, :2] = 0.5
    return values.flatten(1)


def test_occlusion_of_one_patch_is_what_the_patch_is_worth(worth):
    torch.testing.assert_close(occlusion(additive(worth), torch.arange(2), GRID, window=1), worth)


@pytest.mark.parametrize(("grid", "stride", "passes"), [((7, 7), 2, 9), ((8, 9), 2, 16), ((14, 14), 1, 144), ((12, 12), 2, 36), ((13, 13), 2, 36), ((3, 2), 2, 1)])
def test_occlusion_costs_a_pass_for_each_window(grid, stride, passes):
    asked = []

    def match(rows, keep):
        asked.append(keep)
        return keep.sum(1).float()

    assert len(corners(grid, stride=stride)) == passes
    if passes > 1:
        occlusion(match, torch.arange(1), grid, stride=stride)
        assert len(asked) == 1 + passes


@pytest.mark.parametrize(("window", "stride"), [(3, 1), (3, 2), (2, 2)])
def test_occlusion_equals_its_definition(worth, window, stride):
    h, w = GRID
    tops = sorted({*range(0, h - window + 1, stride), h - window})
    lefts = sorted({*range(0, w - window + 1, stride), w - window})
    for b in range(2):
        drops = [[[] for _ in range(w)] for _ in range(h)]
        for top in tops:
            for left in lefts:
                hidden = worth[b].view(GRID)[top : top + window, left : left + window].sum()
                for y in range(top, top + window):
                    for x in range(left, left + window):
                        drops[y][x].append(hidden)
        expected = torch.tensor([[float(torch.stack(cell).mean()) for cell in row] for row in drops])
        relevance = occlusion(additive(worth), torch.arange(2), GRID, window=window, stride=stride)
        torch.testing.assert_close(relevance[b].view(GRID), expected)


def test_occlusion_refuses_to_leave_patches_uncovered(worth):
    with pytest.raises(SettingsError, match="1 <= stride <= window"):
        occlusion(additive(worth), torch.arange(2), GRID, window=2, stride=3)


def test_sampled_approaches_the_worth_and_its_error_shrinks(worth):
    few = sampled(additive(worth), torch.arange(2), GRID, pairs=8, unsettled=0, window=1)
    many = sampled(additive(worth), torch.arange(2), GRID, pairs=512, unsettled=0, window=1)
    assert many.standard_error.mean() < few.standard_error.mean() / 4
    assert np.corrcoef(many.relevance.flatten(), worth.flatten())[0, 1] > 0.8
    inside, outside = many.relevance[0][worth[0] > 0], many.relevance[0][worth[0] == 0]
    assert inside.mean() > outside.mean() + 3 * float(many.standard_error.mean())


@pytest.mark.parametrize("window", [2, 3])
def test_sampled_over_windows_is_nearer_to_occlusion_than_patch_by_patch(worth, window):
    exact = occlusion(additive(worth), torch.arange(2), GRID, window=window).flatten()
    near, alone = (sampled(additive(worth), torch.arange(2), GRID, unsettled=0, window=size).relevance.flatten() for size in (window, 1))
    assert np.corrcoef(near, exact)[0, 1] > np.corrcoef(alone, exact)[0, 1] + 0.03


def test_sampled_is_the_same_alone_and_in_a_batch(worth):
    both = sampled(additive(worth), torch.arange(2), GRID, pairs=4).relevance
    alone = sampled(additive(worth[1:]), torch.arange(1), GRID, pairs=4).relevance
    torch.testing.assert_close(both[1:], alone)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_the_first_order_of_a_sum_is_its_occlusion(worth, window):
    torch.testing.assert_close(over_windows(worth, GRID, window), occlusion(additive(worth), torch.arange(2), GRID, window=window))


@pytest.mark.parametrize(("grid", "window"), [((4, 6), 3), ((5, 7), 2), ((7, 7), 3), ((1, 3), 1)])
def test_withdrawing_windows_is_occlusion_where_the_match_bends_but_once_or_twice(grid, window):
    """A match of the third degree in how often each patch counts, which the first order does not tell."""
    parts = torch.randn(3, 2, grid[0] * grid[1], generator=torch.Generator().manual_seed(0))

    def match(rows, keep):
        return sum((part[rows] * keep).sum(1) for part in parts)

    def slope(counts):
        return sum(power * part * counts ** (power - 1) for power, part in enumerate(parts, 1))

    exact = occlusion(match, torch.arange(2), grid, window=window)
    torch.testing.assert_close(withdrawn(slope, grid, window=window), exact)
    assert (over_windows(slope(torch.ones(grid[0] * grid[1])), grid, window) - exact).abs().mean() > 0.5


def test_withdrawing_windows_ranks_patches_nearly_as_occlusion_does():
    encoder, rng = load_encoder("builtin", device="cpu"), np.random.default_rng(778)
    shown = [line.render(rng, size=224) for _ in range(3)]
    pixels, text = encoder.preprocess([scene.image for scene in shown]), encoder.encode_text([f"a photo of a {scene.material} {scene.part}" for scene in shown])
    meter = Meter(encoder, pixels)
    full = meter.encode()
    found = relevance_of(meter, "sampled", full, text)
    assert meter.passes.tolist() == [15] * 3  # all patches, and seven times there and back
    exact = occlusion(token_match(meter, text, full.embedding), torch.arange(3), encoder.grid)
    first = over_windows(encoder.encode_with_worth(pixels, lambda _, rows: text[rows])[2], encoder.grid)
    near, far = (np.mean([spearmanr(a, b)[0] for a, b in zip(exact, other, strict=True)]) for other in (found, first))
    assert near > max(0.93, far)


def test_sampled_stops_where_the_ranking_is_settled_and_each_image_by_itself(worth):
    clear = torch.zeros(GRID)
    clear[:, :3] = 1.0  # half of the grid, which few pairs tell
    noise, asked = torch.Generator().manual_seed(0), []

    def match(rows, keep):
        asked.append(rows.tolist())
        return torch.where(rows == 0, (clear.flatten() * keep).sum(1), torch.randn(len(rows), generator=noise))

    found = sampled(match, torch.arange(2), GRID, pairs=100)
    assert found.pairs[1] == 100 and 8 <= found.pairs[0] < 60
    assert sum(0 in rows for rows in asked) == 2 * found.pairs[0] and sum(1 in rows for rows in asked) == 200
    alone = sampled(additive(clear.view(1, -1)), torch.arange(1), GRID, pairs=100)
    torch.testing.assert_close(alone.relevance[0], found.relevance[0])


def test_fast_terms_add_up_to_the_match():
    dense = torch.randn(3, P, 8, generator=torch.Generator().manual_seed(0))
    text = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    match = (torch.nn.functional.normalize(dense.mean(1), dim=1) * text).sum(1)
    torch.testing.assert_close(fast(dense, text).sum(1), match)


def test_entropy_in_bits():
    relevance = torch.tensor([[1.0, 1, 1, 1], [5, 0, 0, 0], [-1, -2, -1, -1]])
    torch.testing.assert_close(entropy(relevance), torch.tensor([2.0, 0, 2]))
    kept = torch.tensor([[True, True, False, False]] * 3)
    torch.testing.assert_close(entropy(relevance, kept), torch.tensor([1.0, 0, 1]))


def test_top_patches_break_ties_by_number():
    assert top_patches(torch.tensor([[0.0, 1, 1, 0]]), 3).tolist() == [[True, True, True, False]]


def mean_match(worth: torch.Tensor):
    return lambda rows, keep: (worth[rows] * keep).sum(1) / keep.sum(1)


def test_auto_keeps_the_whole_object_and_little_else(worth):
    """Every patch of the object matches as well as all of them together: none may go."""
    keep = keep_mask(nested_by(mean_match(worth - 0.2), worth), worth, GRID)
    assert keep[worth > 0].all()
    assert keep[0].float().mean() < 0.7 and keep[1].float().mean() < 0.5


def test_the_match_at_sizes_that_are_not_measured_lies_on_a_line_between_those_that_are():
    """Of 100 patches the match falls from 1 at 10 to 0 at 100: within 0.17 of it lie 25, and of those sizes the mask may have, 25 is one."""
    relevance, asked = torch.arange(100.0, 0, -1).view(1, -1), []

    def falling(counts):
        asked.extend(counts)
        return torch.tensor([[1 - (count - 10) / 90 for count in counts]])

    few = keep_mask(falling, relevance, (10, 10), sizes=(0.1, 1.0))
    assert asked == [10, 100]
    assert torch.equal(few, keep_mask(falling, relevance, (10, 10), sizes=KEEP_SIZES[1:]))
    rows = np.zeros((10, 10), bool)
    rows.flat[:25] = True
    assert np.array_equal(few.view(10, 10).numpy(), grow(rows))


def test_a_defect_inside_the_object_survives(worth):
    """A defect lowers the relevance of its own patch; a bare top-k would throw it away."""
    worth[0].view(GRID)[2, 3] = -1.0
    assert not top_patches(worth, 8)[0].view(GRID)[2, 3]
    assert keep_mask(nested_by(mean_match(worth), worth), worth, GRID)[0].view(GRID)[2, 3]


def test_grow_fills_a_ring():
    ring = np.zeros((7, 7), bool)
    ring[1:6, 1:6] = True
    ring[2:5, 2:5] = False
    assert grow(ring)[1:6, 1:6].all()


def test_grow_keeps_the_image_edge_open():
    corner = np.zeros((6, 6), bool)
    corner[0, 0] = True
    assert grow(corner).sum() == 3


def test_an_image_without_a_ground_keeps_all_of_it(worth):
    nested = nested_by(mean_match(worth), worth)
    assert keep_mask(nested, worth, GRID, whole=torch.tensor([False, True])).all(1).tolist() == [False, True]
    assert not keep_mask(nested, worth, GRID, keep=0.1, whole=torch.tensor([True, True])).all(1).any()  # a share that is asked for is kept


def test_nested_means_are_the_matches_of_the_means_of_nested_sets():
    generator = torch.Generator().manual_seed(0)
    dense, text = torch.randn(3, P, 8, generator=generator), torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=1)
    relevance = torch.randn(3, P, generator=generator).round()  # with ties

    def match(rows, keep):
        return (torch.nn.functional.normalize((dense[rows] * keep.unsqueeze(-1)).sum(1), dim=-1) * text[rows]).sum(1)

    counts = [1, 7, 30, P]
    torch.testing.assert_close(nested_means(dense, text, relevance)(counts), nested_by(match, relevance)(counts))
    alone = nested_means(dense[1:2], text[1:2], relevance[1:2])(counts)
    assert torch.equal(alone, nested_means(dense, text, relevance)(counts)[1:2])


@pytest.mark.parametrize("relevance", [torch.zeros(1, P), torch.full((1, P), -1.0)])
def test_never_keeps_nothing(relevance):
    keep = keep_mask(nested_by(mean_match(relevance), relevance), relevance, GRID)
    assert keep.any()


@pytest.mark.parametrize("keep", ["all", 0, 1.5])
def test_impossible_keep_is_named(worth, keep):
    with pytest.raises(SettingsError, match="expected auto or a share"):
        keep_mask(nested_by(mean_match(worth), worth), worth, GRID, keep=keep)
