"""The trained form of the guided latent space: CMLE's objective by AdamW, for a linear projection or a small MLP."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cmgcli import ranks
from cmgcli.cmle import Structure, check_latent_dim
from cmgcli.errors import SettingsError
from cmgcli.snapshot import Course, load_snapshot, save_snapshot

PROJECTIONS = ("closed", "linear", "mlp")
VARIANCE, COVARIANCE = 1.0, 1.0  # heavier ones hold the space stiff, and it turns slowly
LEARNING_RATE = {"linear": 5e-2, "mlp": 5e-3}
DRAWS = 4  # of each neighbour, for each of two estimates of an image's place


def check_projection(kind: str) -> str:
    """The projection asked for. Raises SettingsError for an unknown one."""
    if kind not in PROJECTIONS:
        raise SettingsError(f"projection: expected one of {', '.join(PROJECTIONS)}, got {kind!r}")
    return kind


class Latent(nn.Module):
    """``z = h(x)``, of embeddings that are centred and whitened first: a matrix, or an MLP with one hidden layer of ``2 D``."""

    def __init__(self, kind: str, dim: int, latent_dim: int) -> None:
        super().__init__()
        self.kind, self.dim, self.latent_dim = kind, dim, latent_dim
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whiten", torch.eye(dim))
        if kind == "linear":
            self.layers = nn.Linear(dim, latent_dim, bias=False)
        else:
            self.layers = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, latent_dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        """(..., m) of embeddings (..., D)."""
        return self.layers((embeddings - self.mean) @ self.whiten.T)


def train_projection(
    embeddings: Tensor,
    captions: Tensor,
    structure: Structure,
    whiten: Tensor,
    *,
    kind: str,
    latent_dim: int | None = None,
    epochs: int = 300,
    batch: int = 256,
    seed: int = 0,
    device: str = "cpu",
    snapshot: Path | None = None,
    snapshot_key: str = "",
    progress: Callable[[int, int, float], None] | None = None,
) -> Latent:
    """Minimise ``||Z - S Z||^2 / N``, with the variance and covariance terms of VICReg (Bardes et al. 2022) for ``Z^T Z / N = I``.

    A batch holds images with two independent sets of their caption neighbours. The product of the two residuals is an
    unbiased estimate of the objective: the square of one would add the neighbours' own spread to it.

    Args:
        embeddings: (N, D) float32. captions: (N,) int64 row of the structure that each image belongs to.
        structure: the captions' structure matrix. whiten: (D, D) float64 ``W`` with ``W C W^T = I``, see `cmle.whitening`.
        kind: linear or mlp. latent_dim: ``m``; None: ``D``.
        epochs: passes over the images; the learning rate falls over them as half a cosine.
        snapshot: a file that holds the state after each epoch, and from which a training broken off with the same
            ``snapshot_key`` goes on; the result is that of an undisturbed run.
        progress: called with the epoch, the number of epochs and the loss.
    Raises:
        SettingsError: ``latent_dim`` is not in 1..D.
    """
    count, dim = embeddings.shape
    directions = check_latent_dim(latent_dim, dim) or dim
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        latent = Latent(kind, dim, directions)
    latent.mean.copy_(embeddings.double().mean(0))
    latent.whiten.copy_(whiten)
    latent.to(device).train()
    optimizer = torch.optim.AdamW(latent.parameters(), lr=LEARNING_RATE[kind], weight_decay=1e-4)
    course = Course(decay_from=0)
    if snapshot is not None:
        course = load_snapshot(snapshot, snapshot_key, latent, optimizer) or course
    neighbours = _Neighbours(captions, structure)
    while course.step < epochs:
        rng = np.random.default_rng((seed % 2**32, course.step))
        parts = np.array_split(rng.permutation(count), math.ceil(count / batch))
        losses = []
        for k, rows in enumerate(map(torch.from_numpy, parts)):
            done = (course.step + k / len(parts)) / epochs
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE[kind] * 0.5 * (1 + math.cos(math.pi * done))
            drawn = neighbours.draw(rows, rng)  # (2 DRAWS, B, K)
            weights = structure.rows.weights[captions[rows]].float().to(device)  # (B, K)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                z = latent(embeddings[rows].to(device)).float()  # (B, m)
                around = latent(embeddings[drawn].to(device)).float()  # (2 DRAWS, B, K, m)
            places = (weights.unsqueeze(-1) * around).sum(2).unflatten(0, (2, DRAWS)).mean(1)  # (2, B, m)
            loss = guidance_loss(z, places)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        course = course.after(float(np.mean(losses)))
        if snapshot is not None:
            save_snapshot(snapshot, snapshot_key, latent, optimizer, course)
        if progress is not None:
            progress(course.step, epochs, course.loss)
    ranks.copy_of_first(latent)  # GPUs may round differently
    return latent.cpu().eval().requires_grad_(False)


def guidance_loss(z: Tensor, around: Tensor) -> Tensor:
    """The loss of latent images (B, m) and two independent estimates (2, B, m) of where language puts them."""
    residuals = z - around  # (2, B, m)
    centred = z - z.mean(0)
    covariance = centred.T @ centred / len(z)  # (m, m)
    spread = (covariance.diagonal() + 1e-4).sqrt()
    variance = (1 - spread).clamp(min=0).sum()
    crossed = (covariance - torch.diag(covariance.diagonal())).square().sum()
    return (residuals[0] * residuals[1]).sum(1).mean() + VARIANCE * variance + COVARIANCE * crossed


class _Neighbours:
    """Draws, for images, one other image of each caption that their own is written by."""

    def __init__(self, captions: Tensor, structure: Structure) -> None:
        self.order = captions.argsort(stable=True)
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(len(captions))
        self.first = structure.counts.cumsum(0) - structure.counts
        self.captions, self.sources, self.counts = captions, structure.rows.sources, structure.counts

    def draw(self, rows: Tensor, rng: np.random.Generator) -> Tensor:
        """(2 DRAWS, B, K) image numbers for images (B,), drawn independently, never the image itself unless it has no company."""
        sources = self.sources[self.captions[rows]]  # (B, K)
        own = sources == self.captions[rows].unsqueeze(1)
        others = (self.counts[sources] - own.long()).clamp(min=1)
        picked = (torch.from_numpy(rng.random((2 * DRAWS, *sources.shape))) * others).long()
        inside = (self.place[rows] - self.first[self.captions[rows]]).unsqueeze(1)  # place within the own group
        picked += (own & (self.counts[sources] > 1) & (picked >= inside)).long()
        return self.order[self.first[sources] + picked]
