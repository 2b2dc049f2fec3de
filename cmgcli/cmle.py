"""Cross-modal Linear Embedding: the correlation structure of the captions, and the latent space it guides.

Letters: ``N`` images, ``U`` unique captions, ``D`` dimensions, ``S`` the (N, N) structure matrix, ``X`` the image
embeddings. ``S`` never exists as a matrix: images with the same caption share their row up to leaving themselves out, so
`Structure` holds the few captions that each caption is written by and the group sizes, the same thing in ``O(U k)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cmgcli.errors import SettingsError

ALIKE = 0.04  # squared distance of two captions, a cosine of 0.98, below which they say the same, but for words that the encoder does not know (seen with the built-in one)
CHUNK = 1024  # captions whose similarities to all others are held at a time


@dataclass(frozen=True)
class Reconstruction:
    """Captions written as combinations of a few stored ones."""

    sources: Tensor  # (..., K) int64 numbers of stored captions
    weights: Tensor  # (..., K) float64, sum to 1

    def of(self, values: Tensor) -> Tensor:
        """The same combinations (..., D) of one value (D,) per stored caption, given as (U, D)."""
        return sum(self.weights[..., k, None] * values[self.sources[..., k]] for k in range(self.weights.shape[-1]))


@dataclass(frozen=True)
class Structure:
    """The captions' structure matrix: row ``u`` spreads caption ``u`` over itself and its neighbours."""

    rows: Reconstruction  # (U, K); caption u itself stands first. Weights sum to 1, to 0 where there is neither company nor neighbour
    counts: Tensor  # (U,) int64, images per caption


def reconstruction_weights(target: Tensor, sources: Tensor, *, ridge: float) -> Tensor:
    """Weights (..., k) float64 summing to 1 of the sources (..., k, D) that best reconstruct the target (..., D).

    Minimises ``|t - w^T s|^2 + ridge * max(trace(G) / k, ALIKE) * |w|^2`` (Roweis & Saul 2000, with the Gram matrix ``G`` of the
    differences). Where every source equals the target the weights are even, and nearly so where all lie close by: without the floor the
    least difference would set captions as far apart as a great one does.
    """
    difference = (target.unsqueeze(-2) - sources).double()  # (..., k, D)
    gram = difference @ difference.mT  # (..., k, k)
    penalty = (ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=ALIKE)).clamp(min=1e-12)
    regular = gram + penalty[..., None, None] * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(regular, torch.ones_like(difference[..., 0]))
    return weights / weights.sum(-1, keepdim=True)


def structure_matrix(text: Tensor, counts: Tensor, *, neighbours: int = 4, ridge: float = 0.05) -> Structure:
    """Write each caption as a combination of its own group and its nearest captions, in memory ``O(U k)``.

    Args:
        text: (U, D) unit-norm embeddings of the unique captions.
        counts: (U,) int64 images per caption, each at least 1. A caption of a single image has no company of its own
            and is written by its neighbours alone, by one at least.
        neighbours: ``k``, captions beside its own.
        ridge: larger spreads a caption's weight further over its neighbours.
    """
    if len(text) != len(counts) or bool((counts < 1).any()):
        raise SettingsError(f"structure matrix: expected one positive count per caption, got {len(text)} captions and counts {counts.tolist()}")
    text, counts = text.cpu(), counts.cpu()
    k = min(max(neighbours, 1 if (counts == 1).any() else 0), len(text) - 1)
    sources = torch.empty(len(text), k + 1, dtype=torch.int64)
    weights = torch.zeros(len(text), k + 1, dtype=torch.float64)
    for rows in torch.arange(len(text)).split(CHUNK):
        similarity = text[rows] @ text.T  # (CHUNK, U)
        similarity[torch.arange(len(rows)), rows] = torch.inf  # itself first
        sources[rows] = similarity.topk(k + 1, dim=1).indices
        for members, columns in ((rows[counts[rows] > 1], slice(0, neighbours + 1)), (rows[counts[rows] == 1], slice(1, None))):
            near = sources[members, columns]
            if near.numel():
                weights[members, columns] = reconstruction_weights(text[members], text[near], ridge=ridge)
    return Structure(Reconstruction(sources, weights), counts)


def uniform_structure(count: int) -> Structure:
    """The structure that knows nothing: all ``N`` images are one group, so ``S`` is ``1 / (N - 1)`` off the diagonal."""
    return structure_matrix(torch.ones(1, 1), torch.tensor([count]))


def check_ridge(ridge: float) -> float:
    """The ridge of `reconstruction_weights`; SettingsError where it is none."""
    if not 0 <= ridge < math.inf:
        raise SettingsError(f"ridge: expected a number from 0 up, such as 0.05, got {ridge:g}")
    return ridge


def check_latent_dim(latent_dim: int | None, dim: int) -> int | None:
    """The directions of a guided space of embeddings (D,) asked for, None for all; SettingsError where they are not in 1..D."""
    if latent_dim is not None and not 1 <= latent_dim <= dim:
        raise SettingsError(f"latent dim: expected 1 to {dim}, the embedding size of the encoder, got {latent_dim}")
    return latent_dim


def caption_weights(target: Tensor, text: Tensor, *, neighbours: int = 4, ridge: float = 0.05) -> Reconstruction:
    """Out-of-sample row: a caption (D,) written by the stored ones (U, D) nearest to it, itself among them if stored."""
    nearest = (text @ target).topk(min(neighbours + 1, len(text))).indices
    return Reconstruction(nearest.cpu(), reconstruction_weights(target, text[nearest], ridge=ridge).cpu())


class ResidualMoments:
    """Streams the embeddings once and keeps what the closed form needs: ``O(U D + D^2)`` memory, whatever ``N``.

    With ``E = X - S X`` and group ``u`` of size ``n_u``, ``e_i = a_u x_i - b_u`` where ``a_u = 1 + w_uu / (n_u - 1)`` is
    known from the captions alone and ``b_u`` from the group sums; so ``E^T E`` follows from sums and second moments.
    """

    def __init__(self, structure: Structure, dim: int) -> None:
        own = structure.rows.weights[:, 0]
        self.structure = structure
        self.own = own / (structure.counts - 1).clamp(min=1)  # (U,) w_uu / (n_u - 1)
        self.scale = 1 + self.own  # (U,) a_u
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
        rows = self.structure.rows
        offset = self.own.unsqueeze(1) * self.sums  # (U, D) b_u
        offset += Reconstruction(rows.sources[:, 1:], rows.weights[:, 1:]).of(self.group_means)
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


def whitening(covariance: Tensor) -> Tensor:
    """``W`` (D, D) with ``W C W^T = I`` for a positive definite covariance ``C``."""
    return torch.linalg.inv(torch.linalg.cholesky(covariance))


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
    check_latent_dim(latent_dim, len(residual))
    whiten = whitening(total)
    values, vectors = torch.linalg.eigh(whiten @ residual @ whiten.T)  # ascending
    return GuidedSpace((vectors.T @ whiten)[:latent_dim].contiguous(), values[:latent_dim].clamp(min=1e-12))


def residual_norm(space: GuidedSpace, embeddings: Tensor, predicted: Tensor) -> Tensor:
    """Mahalanobis norm (...,) float64 of ``z - z~(c)``, each direction weighted by ``1 / l``.

    Args:
        embeddings: (..., D) image embeddings; predicted: (..., D) ``x~(c) = sum_u S(c, u) mu_u``, broadcastable.
    """
    z = (embeddings.double() - predicted.double()) @ space.projection.T  # (..., m)
    return (z**2 / space.unexplained).sum(-1).sqrt()
