"""The structure matrix and the guided space against dense, slow twins."""

import numpy as np
import pytest
import torch

from cmgcli.cmle import (
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
    n = len(captions)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            u, v = int(captions[i]), int(captions[j])
            others = int(structure.counts[v]) - (u == v)
            if i != j and others:
                matrix[i, j] = structure.weights[u, v] / others
    return matrix


CAPTIONS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])


def test_rows_of_the_structure_matrix_sum_to_one_and_duplicates_share_evenly():
    structure = structure_matrix(unit(4, 16), torch.bincount(CAPTIONS), neighbours=2)
    matrix = dense_matrix(structure, CAPTIONS)
    torch.testing.assert_close(matrix.sum(1), torch.ones(10, dtype=torch.float64))
    assert (matrix.diagonal() == 0).all()
    torch.testing.assert_close(matrix[6, 0], matrix[6, 1])  # images of one caption weigh the same
    assert structure.weights[2, 2] == 0  # a caption of one image has no company of its own


def test_permuting_the_captions_permutes_the_matrix():
    text, counts = unit(5, 16), torch.tensor([3, 1, 2, 4, 2])
    order = torch.tensor([3, 0, 4, 1, 2])
    plain = structure_matrix(text, counts, neighbours=3).weights
    permuted = structure_matrix(text[order], counts[order], neighbours=3).weights
    torch.testing.assert_close(permuted, plain[order][:, order], atol=1e-9, rtol=0)


def test_identical_captions_give_the_uniform_matrix():
    counts = torch.tensor([7])
    torch.testing.assert_close(structure_matrix(unit(1, 8), counts).weights, uniform_structure(counts).weights)


def test_uniform_structure_is_one_over_n_minus_one_off_the_diagonal():
    matrix = dense_matrix(uniform_structure(torch.bincount(CAPTIONS)), CAPTIONS)
    expected = (1 - torch.eye(10, dtype=torch.float64)) / 9
    torch.testing.assert_close(matrix, expected)


def test_reconstruction_weights_find_an_exact_combination():
    sources = unit(3, 8).double()
    target = 0.2 * sources[0] + 0.5 * sources[1] + 0.3 * sources[2]
    torch.testing.assert_close(
        reconstruction_weights(target, sources, ridge=1e-9), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_a_stored_caption_is_mostly_itself_out_of_sample():
    text = unit(6, 16)
    weights = caption_weights(text[2], text, neighbours=3)
    assert int(weights.argmax()) == 2
    assert float(weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize("uniform", [False, True])
def test_streamed_residual_moment_equals_the_dense_one(uniform):
    counts = torch.bincount(CAPTIONS)
    structure = uniform_structure(counts) if uniform else structure_matrix(unit(4, 16), counts, neighbours=2)
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moments = ResidualMoments(structure, 6)
    for start in (0, 3, 4, 8):
        stop = {0: 3, 3: 4, 4: 8, 8: 10}[start]
        moments.add(x[start:stop], CAPTIONS[start:stop])
    residual = x - dense_matrix(structure, CAPTIONS) @ x
    torch.testing.assert_close(moments.residual_second_moment(), residual.T @ residual)
    torch.testing.assert_close(moments.covariance(), torch.from_numpy(np.cov(x.numpy().T, bias=True)))


def test_guided_space_solves_the_generalised_eigenproblem_and_all_of_it_is_the_mahalanobis_norm():
    moments = ResidualMoments(uniform_structure(torch.tensor([400])), 5)
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
    moments = ResidualMoments(uniform_structure(torch.tensor([3])), 4)
    moments.add(unit(3, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(SettingsError, match="expected 1 to 4, got 9"):
        guided_space(moments, latent_dim=9)
