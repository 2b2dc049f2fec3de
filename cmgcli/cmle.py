"""Cross-modal Linear Embedding: the correlation structure of the captions, and the latent space it guides.

Letters: ``N`` images, ``U`` unique captions, ``D`` dimensions, ``S`` the (N, N) structure matrix, ``X`` the image
embeddings. ``S`` never exists as a matrix: images with the same caption share their row up to leaving themselves out, so
`Structure` holds the weights between captions (U, U) and the group sizes, which is the same thing in ``O(U k)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmgcli.errors import SettingsError


@dataclass(frozen=True)
class Structure:
    """The captions' structure matrix: row ``u`` of ``weights`` spreads caption ``u`` over itself and its neighbours."""

    weights: Tensor  # (U, U) float64, rows sum to 1 (to 0 for a caption that has neither company nor neighbours)
    counts: Tensor  # (U,) int64, images per caption


def reconstruction_weights(target: Tensor, sources: Tensor, *, ridge: float) -> Tensor:
    """Weights (k,) summing to 1 of the ``k`` sources that best reconstruct the target, ridge-regularised.

    Minimises ``|t - w^T s|^2 + ridge * trace(G) / k * |w|^2`` (Roweis & Saul 2000, with the Gram matrix ``G`` of the
    differences). Where every source equals the target the weights are even.
    """
    difference = (target.unsqueeze(0) - sources).double()  # (k, D)
    gram = difference @ difference.T
    scale = gram.trace() / len(sources)
    regular = gram + torch.eye(len(sources), dtype=torch.float64, device=gram.device) * (ridge * scale).clamp(min=1e-12)
    weights = torch.linalg.solve(regular, torch.ones(len(sources), dtype=torch.float64, device=gram.device))
    return weights / weights.sum()


def structure_matrix(text: Tensor, counts: Tensor, *, neighbours: int = 4, ridge: float = 0.05) -> Structure:
    """Write each caption as a combination of its own group and its nearest captions.

    Args:
        text: (U, D) unit-norm embeddings of the unique captions.
        counts: (U,) int64 images per caption, each at least 1. A caption of a single image has no company of its own
            and is written by its neighbours alone.
        neighbours: ``k``, captions beside its own.
        ridge: larger spreads a caption's weight further over its neighbours.
    """
    if len(text) != len(counts) or bool((counts < 1).any()):
        raise SettingsError(f"structure matrix: expected one positive count per caption, got {len(text)} captions and counts {counts.tolist()}")
    captions = len(text)
    weights = torch.zeros(captions, captions, dtype=torch.float64)
    similarity = text @ text.T
    similarity.fill_diagonal_(-2.0)
    nearest = similarity.topk(min(neighbours, captions - 1), dim=1).indices if captions > 1 else None
    for u in range(captions):
        own = [u] if counts[u] > 1 else []
        near = nearest[u].tolist() if nearest is not None else []
        if own or near:
            weights[u, own + near] = reconstruction_weights(text[u], text[own + near], ridge=ridge).cpu()
    return Structure(weights, counts.cpu())


def uniform_structure(counts: Tensor) -> Structure:
    """The structure that knows nothing: ``S`` is ``1 / (N - 1)`` off the diagonal, what identical captions give."""
    counts = counts.cpu()
    company = max(int(counts.sum()) - 1, 1)
    weights = counts.double().repeat(len(counts), 1) - torch.eye(len(counts), dtype=torch.float64)
    return Structure(weights / company, counts)


def caption_weights(target: Tensor, text: Tensor, *, neighbours: int = 4, ridge: float = 0.05) -> Tensor:
    """Out-of-sample row (U,) float64: the weights of a caption against the stored ones, itself among them if stored."""
    weights = torch.zeros(len(text), dtype=torch.float64)
    nearest = (text @ target).topk(min(neighbours + 1, len(text))).indices
    weights[nearest.cpu()] = reconstruction_weights(target, text[nearest], ridge=ridge).cpu()
    return weights


class ResidualMoments:
    """Streams the embeddings once and keeps what the closed form needs: ``O(U D + D^2)`` memory, whatever ``N``.

    With ``E = X - S X`` and group ``u`` of size ``n_u``, ``e_i = a_u x_i - b_u`` where ``a_u = 1 + w_uu / (n_u - 1)`` is
    known from the captions alone and ``b_u`` from the group sums; so ``E^T E`` follows from sums and second moments.
    """

    def __init__(self, structure: Structure, dim: int) -> None:
        own = structure.weights.diagonal()
        company = (structure.counts - 1).clamp(min=1).double()
        self.structure = structure
        self.scale = 1 + own / company  # (U,) a_u
        self.sums = torch.zeros(len(own), dim, dtype=torch.float64)
        self.seen = torch.zeros(len(own), dtype=torch.int64)
        self.second = torch.zeros(dim, dim, dtype=torch.float64)  # sum of x x^T
        self.scaled_second = torch.zeros(dim, dim, dtype=torch.float64)  # sum of a_u^2 x x^T

    def add(self, embeddings: Tensor, captions: Tensor) -> None:
        """Take in (B, D) embeddings and the (B,) caption number of each."""
        x = embeddings.double().cpu()
        captions = captions.cpu()
        scaled = x * self.scale[captions].unsqueeze(1)
        self.second += x.T @ x
        self.scaled_second += scaled.T @ scaled
        self.sums.index_add_(0, captions, x)
        self.seen += torch.bincount(captions, minlength=len(self.seen))

    @property
    def group_means(self) -> Tensor:
        """(U, D) float64 mean embedding of each caption's images."""
        return self.sums / self.seen.clamp(min=1).unsqueeze(1)

    def residual_second_moment(self) -> Tensor:
        """``E^T E`` (D, D) float64."""
        weights = self.structure.weights
        own = weights.diagonal()
        company = (self.structure.counts - 1).clamp(min=1).double()
        offset = (own / company).unsqueeze(1) * self.sums + (weights - torch.diag(own)) @ self.group_means  # (U, D) b_u
        cross = (self.scale.unsqueeze(1) * self.sums).T @ offset
        return self.scaled_second - cross - cross.T + (offset * self.seen.unsqueeze(1)).T @ offset

    def covariance(self) -> Tensor:
        """``X^T X / N`` (D, D) float64 of the centred embeddings."""
        count = max(int(self.seen.sum()), 1)
        mean = self.sums.sum(0) / count
        return self.second / count - torch.outer(mean, mean)


@dataclass(frozen=True)
class GuidedSpace:
    """``z = A x``, directions ordered from what language explains best to what it does not explain at all."""

    projection: Tensor  # (m, D) float64, rows a_j, with A C A^T = I for the shrunk covariance C
    unexplained: Tensor  # (m,) float64 l_j, the share of a direction's variance that language does not explain


def shrink(covariance: Tensor, count: int) -> Tensor:
    """Shrink a (D, D) covariance of ``count`` samples towards a multiple of the identity.

    The weight of the identity is ``D / (D + count)``, the ratio of free dimensions to evidence, which leaves large
    samples alone and keeps a single image well defined.
    """
    dim = len(covariance)
    scale = (covariance.trace() / dim).clamp(min=1e-8)
    weight = dim / (dim + max(count, 1))
    return (1 - weight) * covariance + weight * scale * torch.eye(dim, dtype=covariance.dtype)


def guided_space(moments: ResidualMoments, *, latent_dim: int | None = None) -> GuidedSpace:
    """Closed form of ``min |Z - S Z|^2 / N`` under ``Z^T Z / N = I``: the smallest generalised eigenvectors of E^T E, X^T X.

    Args:
        latent_dim: keep the ``m`` directions that language explains best; None keeps all, because small defects live
            where language says nothing.
    Raises:
        SettingsError: ``latent_dim`` is not in 1..D.
    """
    count = int(moments.seen.sum())
    residual = shrink(moments.residual_second_moment() / max(count, 1), count)
    total = shrink(moments.covariance(), count)
    dim = len(residual)
    if latent_dim is not None and not 1 <= latent_dim <= dim:
        raise SettingsError(f"latent dim: expected 1 to {dim}, got {latent_dim}")
    whiten = torch.linalg.inv(torch.linalg.cholesky(total))  # W C W^T = I
    values, vectors = torch.linalg.eigh(whiten @ residual @ whiten.T)  # ascending
    return GuidedSpace((vectors.T @ whiten)[:latent_dim].contiguous(), values[:latent_dim].clamp(min=1e-12))


def residual_norm(space: GuidedSpace, embeddings: Tensor, predicted: Tensor) -> Tensor:
    """Mahalanobis norm (...,) float64 of ``z - z~(c)``, each direction weighted by ``1 / l``.

    Args:
        embeddings: (..., D) image embeddings; predicted: (..., D) ``x~(c) = sum_u S(c, u) mu_u``, broadcastable.
    """
    z = (embeddings.double() - predicted.double()) @ space.projection.T  # (..., m)
    return (z**2 / space.unexplained).sum(-1).sqrt()
