"""The structure matrix and the guided space against dense, slow twins."""

import numpy as np
import pytest
import torch

from cmgcli.cmle import (
    ALIKE,
    ResidualMoments,
    caption_weights,
    guided_space,
    reconstruction_weights,
    residual_norm,
    structure_matrix,
    uniform_structure,
)
from cmgcli.errors import SettingsError


def unit(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def dense_matrix(structure, captions: torch.Tensor) -> torch.Tensor:
    """The (N, N) matrix S that `Structure` stands for, written out image by image."""
    weights = torch.zeros(len(structure.counts), len(structure.counts), dtype=torch.float64)
    weights.scatter_add_(1, structure.rows.sources, structure.rows.weights)
    n = len(captions)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            u, v = int(captions[i]), int(captions[j])
            others = int(structure.counts[v]) - (u == v)
            if i != j and others:
                matrix[i, j] = weights[u, v] / others
    return matrix


def slow_matrix(text: np.ndarray, *, neighbours: int, ridge: float) -> np.ndarray:
    """The (N, N) matrix S from the caption embedding of each image (N, D), image by image, by Lagrange's equations."""
    n = len(text)
    matrix = np.zeros((n, n))
    for i in range(n):
        same = (text == text[i]).all(1)
        groups = [np.flatnonzero(same & (np.arange(n) != i))] if same.sum() > 1 else []
        rest = sorted({tuple(row) for row in text[~same]}, key=lambda row: -float(text[i] @ row))
        groups += [np.flatnonzero((text == row).all(1)) for row in rest[:neighbours]]
        sources = np.stack([text[group[0]] for group in groups])
        k = len(groups)
        penalty = ridge * max(((text[i] - sources) ** 2).sum() / k, ALIKE)
        system = np.block([[sources @ sources.T + penalty * np.eye(k), np.ones((k, 1))], [np.ones((1, k)), np.zeros((1, 1))]])
        for group, weight in zip(groups, np.linalg.solve(system, np.r_[sources @ text[i], 1])[:k], strict=True):
            matrix[i, group] = weight / len(group)
    return matrix


CAPTIONS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])


def test_captions_that_say_nearly_the_same_share_nearly_evenly():
    """A digit that the encoder does not know must not set them apart as another product would."""
    torch.manual_seed(0)
    base = torch.nn.functional.normalize(torch.randn(1, 32), dim=1)
    near, far = (torch.nn.functional.normalize(base + step * torch.randn(5, 32), dim=1) for step in (0.001, 0.1))
    even, own = (structure_matrix(text, torch.full((5,), 10), ridge=0.05).rows.weights for text in (near, far))
    assert even[:, 0].max() < 0.35 and even.min() > 0.1
    assert own[:, 0].min() > 0.6


@pytest.mark.parametrize("counts", [[1, 1, 1], [4, 1, 3]])
def test_without_neighbours_a_caption_of_one_image_has_one(counts):
    structure = structure_matrix(unit(3, 8), torch.tensor(counts), neighbours=0)
    matrix = dense_matrix(structure, torch.repeat_interleave(torch.arange(3), torch.tensor(counts)))
    torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix), dtype=torch.float64))
    for u, count in enumerate(counts):
        assert int((structure.rows.weights[u] != 0).sum()) == 1
        assert (structure.rows.sources[u][structure.rows.weights[u] != 0] == u).all() == (count > 1)


@pytest.mark.parametrize("neighbours", [1, 2, 3])
def test_the_structure_matrix_equals_the_slow_one_in_any_order_of_the_images(neighbours, monkeypatch):
    text = unit(4, 16).double()
    permuted = CAPTIONS[torch.randperm(10, generator=torch.Generator().manual_seed(1))]
    for captions in (CAPTIONS, permuted):
        slow = slow_matrix(text[captions].numpy(), neighbours=neighbours, ridge=0.05)
        for chunk in (1, 3, 1024):
            monkeypatch.setattr("cmgcli.cmle.CHUNK", chunk)
            structure = structure_matrix(text, torch.bincount(captions), neighbours=neighbours, ridge=0.05)
            np.testing.assert_allclose(dense_matrix(structure, captions), slow, atol=1e-9)


def test_rows_of_the_structure_matrix_sum_to_one_and_duplicates_share_evenly():
    structure = structure_matrix(unit(4, 16), torch.bincount(CAPTIONS), neighbours=2)
    matrix = dense_matrix(structure, CAPTIONS)
    torch.testing.assert_close(matrix.sum(1), torch.ones(10, dtype=torch.float64))
    assert (matrix.diagonal() == 0).all()
    torch.testing.assert_close(matrix[6, 0], matrix[6, 1])  # images of one caption weigh the same
    assert structure.rows.sources[2, 0] == 2 and structure.rows.weights[2, 0] == 0  # a single image has no company of its own


def test_permuting_the_captions_permutes_the_matrix():
    text, counts = unit(5, 16), torch.tensor([3, 1, 2, 4, 2])
    order = torch.tensor([3, 0, 4, 1, 2])
    images = torch.arange(5).repeat_interleave(counts)
    plain = dense_matrix(structure_matrix(text, counts, neighbours=3), images)
    permuted = dense_matrix(structure_matrix(text[order], counts[order], neighbours=3), order.argsort()[images])
    torch.testing.assert_close(permuted, plain, atol=1e-9, rtol=0)


def test_identical_captions_give_the_uniform_matrix():
    structure, uniform = structure_matrix(unit(1, 8), torch.tensor([7])), uniform_structure(7)
    expected = (1 - torch.eye(7, dtype=torch.float64)) / 6
    for made in (structure, uniform):
        torch.testing.assert_close(dense_matrix(made, torch.zeros(7, dtype=torch.int64)), expected)


def test_many_captions_take_no_square_matrix():
    structure = structure_matrix(unit(3000, 8), torch.full((3000,), 2), neighbours=4)
    assert structure.rows.sources.shape == structure.rows.weights.shape == (3000, 5)
    moments = ResidualMoments(structure, 8)
    moments.add(unit(6000, 8, seed=1), torch.arange(3000).repeat(2))
    assert torch.isfinite(moments.residual_second_moment()).all()


def test_reconstruction_weights_find_an_exact_combination():
    sources = unit(3, 8).double()
    target = 0.2 * sources[0] + 0.5 * sources[1] + 0.3 * sources[2]
    torch.testing.assert_close(
        reconstruction_weights(target, sources, ridge=1e-9), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_a_stored_caption_is_mostly_itself_out_of_sample():
    text = unit(6, 16)
    caption = caption_weights(text[2], text, neighbours=3)
    assert int(caption.sources[caption.weights.argmax()]) == 2
    assert float(caption.weights.sum()) == pytest.approx(1)


def test_a_caption_never_seen_is_written_by_the_nearest_stored_ones():
    text = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    target = torch.tensor([0.8, 0.6, 0, 0], dtype=torch.float64)
    caption = caption_weights(target, text, neighbours=1, ridge=1e-6)
    assert sorted(caption.sources.tolist()) == [0, 1]
    assert float(caption.weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(caption.of(text), torch.tensor([0.6, 0.4, 0, 0], dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("uniform", [False, True])
def test_streamed_residual_moment_equals_the_dense_one(uniform):
    captions = torch.zeros_like(CAPTIONS) if uniform else CAPTIONS
    structure = uniform_structure(10) if uniform else structure_matrix(unit(4, 16), torch.bincount(CAPTIONS), neighbours=2)
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moments = ResidualMoments(structure, 6)
    for start in (0, 3, 4, 8):
        stop = {0: 3, 3: 4, 4: 8, 8: 10}[start]
        moments.add(x[start:stop], captions[start:stop])
    residual = x - dense_matrix(structure, captions) @ x
    torch.testing.assert_close(moments.residual_second_moment(), residual.T @ residual)
    torch.testing.assert_close(moments.covariance(), torch.from_numpy(np.cov(x.numpy().T, bias=True)))


def test_guided_space_solves_the_generalised_eigenproblem_and_all_of_it_is_the_mahalanobis_norm():
    moments = ResidualMoments(uniform_structure(400), 5)
    x = torch.randn(400, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * torch.tensor([1, 2, 3, 4, 5.0])
    moments.add(x, torch.zeros(400, dtype=torch.int64))
    space = guided_space(moments)
    assert (space.unexplained.diff() >= 0).all()
    from cmgcli.cmle import shrink

    covariance = shrink(moments.covariance(), 400)
    residual = shrink(moments.residual_second_moment() / 400, 400)
    identity = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(space.projection @ covariance @ space.projection.T, identity, atol=1e-8, rtol=0)
    difference = x[0] - moments.group_means[0]
    expected = (difference @ torch.linalg.inv(residual) @ difference).sqrt()
    torch.testing.assert_close(residual_norm(space, x[0], moments.group_means[0]), expected)


def test_a_single_image_gives_a_usable_space():
    moments = ResidualMoments(structure_matrix(unit(1, 4), torch.tensor([1])), 4)
    moments.add(unit(1, 4), torch.tensor([0]))
    assert torch.isfinite(residual_norm(guided_space(moments), unit(1, 4, seed=3)[0], moments.group_means[0]))


def test_impossible_latent_dim_is_named():
    moments = ResidualMoments(uniform_structure(3), 4)
    moments.add(unit(3, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(SettingsError, match="expected 1 to 4, the embedding size of the encoder, got 9"):
        guided_space(moments, latent_dim=9)
