"""The patch bank: coverage, budget, groups."""

import pytest
import torch

from cmgcli.bank import BankBuilder, PatchBank, caption_groups, k_center, sketch
from tests.benchmarks.coreset import patches as textures
from tests.benchmarks.coreset import stream


def points(count: int, dim: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def radius(features: torch.Tensor, chosen: torch.Tensor) -> float:
    return float(torch.cdist(features, chosen).amin(dim=1).max())


def slow_k_center(features: torch.Tensor, budget: int) -> list[int]:
    """Farthest first, with every distance computed anew."""
    chosen = [int((features - features.mean(0)).norm(dim=1).argmin())]
    while len(chosen) < budget:
        chosen.append(int(torch.cdist(features, features[chosen]).amin(dim=1).argmax()))
    return sorted(chosen)


def test_k_center_equals_the_slow_one_and_tells_its_radius():
    features = points(300).double()
    cover = k_center(features, 40)
    assert cover.chosen.tolist() == slow_k_center(features, 40)
    assert cover.radius == pytest.approx(radius(features, features[cover.chosen]))
    random = [radius(features, features[torch.randperm(300, generator=torch.Generator().manual_seed(s))[:40]]) for s in range(5)]
    assert cover.radius < min(random)


def test_k_center_keeps_everything_that_fits_and_survives_duplicates():
    assert k_center(points(5), 9).chosen.tolist() == [0, 1, 2, 3, 4]
    cover = k_center(points(1).expand(50, -1), 7)
    assert len(cover.chosen.unique()) == 7 and cover.radius == 0


def test_the_streaming_bank_covers_about_as_well_as_one_made_of_all_patches_at_once():
    kinds = (300 * torch.rand(8000, generator=torch.Generator().manual_seed(2)) ** 3).long()  # some are rare
    features = points(300, dim=48, seed=1)[kinds] + 0.05 * points(8000, dim=48)
    bank = stream(features, 400)
    assert len(bank) == 400
    whole = features[k_center(sketch(features), 400).chosen]
    random = features[torch.randperm(8000, generator=torch.Generator().manual_seed(0))[:400]]
    assert radius(features, bank) < 1.5 * radius(features, whole) < 0.5 * radius(features, random)


@pytest.mark.parametrize("groups", [1, 2, 7])
def test_the_bank_keeps_its_budget_however_many_patches_come(groups):
    builder = BankBuilder(groups, budget=140)
    for i in range(60):
        builder.add(points(50, seed=i), i % groups, image=i, boxes=torch.arange(200).view(50, 4))
        assert sum(group.size for group in builder.groups) <= 4 * 140 + 50
    bank = builder.build()
    assert torch.bincount(bank.groups).tolist() == [140 // groups] * groups == [len(bank.features) // groups] * groups


def test_patches_that_are_covered_leave_nothing_behind():
    builder = BankBuilder(1, budget=40)
    for i in range(8):
        builder.add(points(50, seed=i), 0, image=i, boxes=torch.arange(200).view(50, 4))
    (group,) = builder.groups
    assert group.radius > 0
    held, known = len(group.features), group.features[0][:9].clone()
    for i in range(100):
        builder.add(known, 0, image=i, boxes=torch.arange(36).view(9, 4))
    assert len(group.features) == len(group.points) == len(group.origins) == held


def test_only_the_named_groups_are_searched():
    bank = PatchBank(torch.tensor([[0.0, 0], [10, 0]]), torch.tensor([0, 1]), torch.zeros(2, 5, dtype=torch.int64))
    patch = torch.tensor([[9.0, 0]])
    assert float(bank.distances(patch, torch.tensor([0]))) == pytest.approx(9)
    assert float(bank.distances(patch, torch.tensor([1]))) == pytest.approx(1)
    assert float(bank.distances(patch, torch.tensor([0, 1]))) == pytest.approx(1)


def test_few_captions_are_groups_of_their_own_and_many_share_them():
    text = torch.nn.functional.normalize(points(500), dim=1)
    assert caption_groups(text[:100], 128).tolist() == list(range(100))
    groups = caption_groups(text, 128)
    assert len(groups.unique()) == 128 and int(groups.max()) == 127
    assert (caption_groups(text[:3], 1) == 0).all()
    same = caption_groups(text[:1].expand(6, -1), 4)
    assert (same == 0).all()


def test_captions_that_share_a_group_are_alike():
    text = torch.nn.functional.normalize(points(6, seed=1).repeat_interleave(50, 0) + 0.05 * points(300), dim=1)
    groups = caption_groups(text, 6).view(6, 50)
    assert (groups == groups[:, :1]).all() and len(groups.unique()) == 6


def test_captions_that_say_the_same_share_a_group():
    """As those do that differ in words which mean nothing to the encoder."""
    text = torch.nn.functional.normalize(points(3, seed=1).repeat_interleave(4, 0), dim=1)
    text[:8] = torch.nn.functional.normalize(text[:8] + 0.005 * points(8), dim=1)
    assert len(caption_groups(text, 12).unique()) > 3
    assert caption_groups(text, 12, alike=0.005).tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("native", [True, False])
def test_a_shortlist_gives_the_distances_of_the_whole_bank(monkeypatch, native):
    monkeypatch.setattr("cmgcli.bank.native_bfloat16", lambda: native)
    features = textures(2000)
    bank, seen = PatchBank(features, torch.arange(2000) // 500, torch.zeros(2000, 5, dtype=torch.int64)), textures(300, seed=5)
    found = bank.distances(seen, torch.tensor([3, 1, 3]))
    rows = torch.cat([features[500:1000], features[1500:]])
    torch.testing.assert_close(found, torch.cdist(seen, rows).amin(1), atol=1e-4, rtol=0)
