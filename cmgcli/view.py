"""One image seen through CMER: the encoder's features of the patches that matter for the caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmgcli import cmer
from cmgcli.detector import patch_features
from cmgcli.encoder import Encoder
from cmgcli.errors import SettingsError

RELEVANCE = ("fast", "sampled", "occlusion")


@dataclass(frozen=True)
class View:
    """One image as the detector sees it, after CMER."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    text: Tensor  # (D,) embedding of the caption that guided CMER
    tokens: Tensor  # (W, h, w) float32 late tokens of the whole image, for the head
    relevance: np.ndarray  # (h, w) float32
    keep: np.ndarray  # (h, w) bool
    embedding: Tensor  # (D,) unit-norm embedding of the kept patches
    patches: Tensor  # (K, V) features of the kept patches, in the order of their numbers
    match_before: float  # cosine of the whole image and the caption
    match: float  # cosine of the kept patches and the caption


def token_match(encoder: Encoder, text: Tensor) -> cmer.Match:
    """The match with (B, D) captions through the kept tokens only: ``match(pixels (B, 3, S, S), keep (B, P)) -> (B,)``."""

    def match(pixels: Tensor, keep: Tensor) -> Tensor:
        return (encoder.encode_image(pixels, index=keep_index(keep)).embedding * text).sum(1)

    return match


def keep_index(keep: Tensor) -> Tensor:
    """(B, P) bool with K True in each row to (B, K) ascending patch numbers."""
    return keep.nonzero()[:, 1].view(len(keep), -1)


def pooled_match(dense: Tensor, text: Tensor) -> cmer.Match:
    """The match without another pass, where the embedding is a mean of tokens: the mean over the kept ones alone."""

    def match(_: Tensor, keep: Tensor) -> Tensor:
        pooled = torch.nn.functional.normalize((dense * keep.unsqueeze(-1)).sum(1), dim=-1)  # (B, D)
        return (pooled * text).sum(1)

    return match


def look(
    encoder: Encoder,
    images: Sequence[np.ndarray],
    text: Callable[[Tensor], Tensor],
    *,
    layers: tuple[int, ...],
    relevance: str,
    keep: float | str | None,
) -> list[View]:
    """Encode images, let CMER choose their patches, and encode what is kept.

    Args:
        images: ``B`` arrays (H, W, 3) uint8.
        text: from the (B, D) embeddings of the whole images to the (B, D) caption embeddings that guide CMER.
        layers: blocks whose tokens make the patch features; the last one also serves the head.
        relevance: fast, sampled or occlusion.
        keep: auto, or the share of patches to keep; None keeps all, which is no CMER.
    """
    pixels = encoder.preprocess(images)
    full = encoder.encode_image(pixels, layers=layers)
    captions = text(full.embedding)  # (B, D)
    scores = relevance_of(encoder, relevance, pixels, full.dense, captions)  # (B, P)
    kept = torch.ones_like(scores, dtype=torch.bool)
    if keep is not None:
        match = pooled_match(full.dense, captions) if relevance == "fast" else token_match(encoder, captions)
        kept = cmer.keep_mask(match, pixels, scores, encoder.grid, keep=keep)
    views: list[View | None] = [None] * len(images)
    counts = kept.sum(1)
    for count in counts.unique().tolist():  # rows that keep equally many patches go through the tower together
        rows = (counts == count).nonzero().flatten()
        everything = count == encoder.patch_count and len(rows) == len(images)
        seen = full if everything else encoder.encode_image(pixels[rows], index=keep_index(kept[rows]), layers=layers)
        features = patch_features(seen.patches)  # (b, K, V)
        for i, row in enumerate(rows.tolist()):
            views[row] = View(
                image=images[row],
                text=captions[row],
                tokens=full.patches[-1][row].T.reshape(encoder.width, *encoder.grid),
                relevance=scores[row].reshape(encoder.grid).cpu().numpy(),
                keep=kept[row].reshape(encoder.grid).cpu().numpy(),
                embedding=seen.embedding[i],
                patches=features[i],
                match_before=float(full.embedding[row] @ captions[row]),
                match=float(seen.embedding[i] @ captions[row]),
            )
    return views


def relevance_of(encoder: Encoder, estimator: str, pixels: Tensor, dense: Tensor, text: Tensor) -> Tensor:
    """Relevance (B, P) by the named estimator of `cmer`."""
    if estimator == "fast":
        return cmer.fast(dense, text)
    if estimator == "sampled":
        return cmer.sampled(token_match(encoder, text), pixels, encoder.grid).relevance
    return cmer.occlusion(token_match(encoder, text), pixels, encoder.grid, window=3, stride=2)


def choose_relevance(encoder: Encoder, estimator: str | None) -> str:
    """The estimator asked for; by default ``fast`` where it is exact (an averaging tower), else ``sampled``."""
    if estimator is None:
        return "fast" if encoder.averages else "sampled"
    if estimator not in RELEVANCE:
        raise SettingsError(f"relevance: expected one of {', '.join(RELEVANCE)}, got {estimator!r}")
    if estimator == "fast" and not encoder.averages:
        raise SettingsError(f"relevance fast needs an encoder that averages its patch tokens, {encoder.name} does not; use sampled or occlusion")
    return estimator
