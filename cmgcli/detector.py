"""The score: how far an image lies from where its caption puts it, how strange its patches are, what the head sees, and how like a defective state it looks.

A `Detector` is complete once constructed and never changes; `pipeline` makes and uses it, `checkpoint` stores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cmgcli.album import Album
from cmgcli.bank import PatchBank
from cmgcli.calibrate import NO_GROUP, Calibration
from cmgcli.cmle import GuidedSpace, Reconstruction, caption_weights, residual_norm
from cmgcli.head import DefectHead
from cmgcli.projection import Latent

PARTS = ("image_score", "patch_score", "head_score", "state_score")
TOP_SHARE = 0.01
SEARCHED_WEIGHT = 0.05
LEAST_SPREADS = (1e-3, 1e-3, 1e-3, 0.02)  # of `PARTS`, where good images show none; the last is a difference of cosines, so that its location says nothing of its size
REACH = 0.95  # of good images lie below where a part begins to speak of wrong captions


@dataclass(frozen=True)
class Settings:
    """All that decides a score beside the weights; stored in the checkpoint, so that a reloaded model scores the same."""

    encoder: str
    encoder_sha256: str
    layers: tuple[int, ...]
    cmer: bool
    cmle: bool
    ground: str  # of `view.GROUNDS`: do the images of the fit show one around what their captions name
    relevance: str  # fast, sampled or occlusion
    keep: float | str
    neighbours: int
    ridge: float
    bank_size: int
    latent_dim: int | None
    tile: int | None  # side in pixels of the tiles in which larger images are seen; None: as a whole
    overlap: float  # share of a tile
    adapt_steps: int  # the most; 0: no defect head
    known_defects: int  # bad images that the head learns from too
    calibration: str  # split or cross
    projection: str  # closed, linear or mlp
    epochs: int  # of a trained projection
    seed: int
    encoder_precision: str  # of the matrix products that encode images: bfloat16 where the processor that fitted is fast at it, else float32
    precision: str  # of the head's convolutions: bfloat16 where the machine that fitted is fast at it, else float32


@dataclass(frozen=True)
class States:
    """Where the captions put a defective state of what they name, and how far towards it good images go."""

    ways: Tensor  # (R, D) float32 from the flawless to the defective state of what some captions name; see `states.flawless_and_defective`
    way: Tensor  # (U,) int64, which of them goes for each caption; (1,) where CMLE is off
    means: Tensor  # (U,) float64 of the peaks of each caption's images; (1,) of all images where CMLE is off

    def peaks(self, dense: Sequence[Tensor], patch_count: int) -> Tensor:
        """How far along each way what is most like a defective state goes, (R,) float64: of the pieces of an image, unit-norm patches (K, D) each."""
        return torch.stack([_top_means(piece.float().cpu() @ self.ways.T, patch_count) for piece in dense]).amax(0).double()


@dataclass(frozen=True)
class Language:
    """What the captions know: their embeddings, and where each puts its images in the latent space."""

    captions: tuple[str, ...]  # U unique captions
    text: Tensor  # (U, D) float32 unit norm
    means: Tensor  # (U, D) float64 mean embedding of each caption's images; (1, D) of all images where CMLE is off
    groups: Tensor  # (U,) int64 group of the patch bank that a caption's images fill
    space: GuidedSpace
    guided: bool  # False where CMLE is off: then every caption says the same
    neighbours: int
    ridge: float
    latent: Latent | None = None  # of a trained projection: then space and means are those of z = h(x)
    states: States | None = None  # None where CMER is off

    def weights_of(self, text: Tensor) -> Reconstruction:
        """Any caption embedding (D,) written by the stored captions."""
        if not self.guided:
            return Reconstruction(torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.float64))
        return caption_weights(text, self.text, neighbours=self.neighbours, ridge=self.ridge)

    @cached_property
    def number(self) -> dict[str, int]:
        """The number of each stored caption."""
        return {caption: number for number, caption in enumerate(self.captions)}

    def group_of(self, caption: str) -> int:
        """The caption's group in the calibration: its number, NO_GROUP where it is not stored or every caption says the same."""
        return self.number.get(caption, NO_GROUP) if self.guided else NO_GROUP

    def bank_groups(self, caption: Reconstruction) -> Tensor:
        """The groups of the patch bank that a caption's weights (K,) point to."""
        return self.groups[caption.sources[caption.weights >= min(SEARCHED_WEIGHT, float(caption.weights.max()))]]

    def image_score(self, embedding: Tensor, caption: Reconstruction) -> float:
        """Norm of the residual between an image embedding (D,) and the place that its caption's weights (K,) give it."""
        place = embedding.cpu().float()
        return float(residual_norm(self.space, place if self.latent is None else self.latent(place), caption.of(self.means)))

    def state_score(self, dense: Sequence[Tensor], patch_count: int, caption: Reconstruction) -> float:
        """How much further towards a defective state an image goes than its caption's weights (K,) expect; see `States.peaks`. NaN where CMER is off."""
        if self.states is None:
            return np.nan
        beyond = self.states.peaks(dense, patch_count)[self.states.way[caption.sources]] - self.states.means[caption.sources]  # (K,)
        return float(caption.weights @ beyond)

    def state_map(self, dense: Tensor, caption: Reconstruction) -> Tensor | None:
        """How far towards a defective state each unit-norm patch (K, D) goes by its caption's weights (K,), (K,); None where CMER is off, or patches have no embeddings."""
        if self.states is None:
            return None
        way = caption.weights.float() @ self.states.ways[self.states.way[caption.sources]]  # (D,)
        return dense.float().cpu() @ way

    def best_caption(self, embedding: Tensor, *, candidates: int = 3) -> int:
        """The stored caption for an image that has none: of those that match it best, the one with the least residual."""
        matches = self.text @ embedding.to(self.text)  # (U,)
        nearest = matches.topk(min(candidates, len(matches))).indices.tolist()
        return min(nearest, key=lambda u: self.image_score(embedding, self.weights_of(self.text[u])))


def patch_features(layers: Sequence[Tensor]) -> Tensor:
    """Join the tokens of several blocks, each (..., W), into unit-norm patch features (..., L * W)."""
    return torch.cat([F.normalize(tokens.float(), dim=-1) for tokens in layers], dim=-1) / len(layers) ** 0.5


def top_mean(distances: Tensor, patch_count: int) -> float:
    """Mean of the largest distances, as many as 1 % of an image's patches."""
    return float(_top_means(distances.unsqueeze(1), patch_count))


def _top_means(values: Tensor, patch_count: int) -> Tensor:
    """`top_mean` of each column of (K, n), (n,)."""
    count = min(len(values), max(1, round(TOP_SHARE * patch_count)))
    return values.topk(count, dim=0).values.mean(0)


@dataclass(frozen=True)
class Blend:
    """How the parts make one score: the root of their weighted squares, each standardised on held-out normals and bent above zero.

    ``softplus`` keeps every part strictly increasing and unclamped, while a part that finds an image *more* normal than
    usual cannot buy off the evidence of another. The square lets plain evidence of one part stand out of the murmur of all.
    A part that sees wrong captions counts for them where hardly any good image lies, and so says nothing of small defects that it does not see.
    """

    location: np.ndarray  # (P,) float64, one each of some parts, those of a `Detector` in the order of `PARTS`
    scale: np.ndarray  # (P,) float64, positive
    weight: np.ndarray  # (P,) float64, sums to 1; 0 for an absent part
    far: np.ndarray = field(default_factory=lambda: np.zeros(1))  # (P,) float64 in [0, 1], of what lies above `reach`; or one for all
    reach: np.ndarray = field(default_factory=lambda: np.zeros(1))  # (P,) float64, in scales above the location; or one for all

    @classmethod
    def even(cls, there: Sequence[bool]) -> Blend:
        """Of parts of which nothing is known yet: as they are, those that are there alike."""
        weight = np.asarray(there, np.float64)
        return cls(np.zeros(len(there)), np.ones(len(there)), weight / weight.sum())

    def __call__(self, parts: np.ndarray) -> np.ndarray:
        """Scores (n,) of parts (n, P), about 1 for a good image; an absent part is NaN and has no weight; another that is NaN makes the score NaN."""
        return np.sqrt(self.squares(parts).sum(axis=1))

    def terms(self, parts: np.ndarray) -> np.ndarray:
        """What each part adds to the score: (..., P) of parts (..., P); 0 for an absent part."""
        squares = self.squares(parts)
        return squares / np.sqrt(np.maximum(squares.sum(axis=-1, keepdims=True), np.finfo(float).tiny))

    @property
    def counts(self) -> np.ndarray:
        """Which parts (P,) bool have any weight."""
        return (self.weight > 0) | (self.far > 0)

    def squares(self, parts: np.ndarray) -> np.ndarray:
        """What each part adds to the square of the score: (..., P) of parts (..., P); 0 for an absent part, NaN for another that is NaN."""
        z = (np.where(self.counts, parts, self.location).astype(np.float64) - self.location) / self.scale
        with np.errstate(invalid="ignore"):
            return self.weight * np.logaddexp(0, z) ** 2 + self.far * np.logaddexp(0, z - self.reach) ** 2


def fit_blend(normal: np.ndarray, drawn: np.ndarray, wrong: np.ndarray) -> Blend:
    """Standardise on normals and weight each part by what it sees, squared: ``(2 AUROC - 1)^2``.

    Drawn defects decide, and what chance shows on average is added for each part, so that where nothing is seen all weigh alike. What a part sees of
    wrong captions, less what chance shows, counts only beyond `REACH` of the good images: a wrong part is far out where it is seen at all, while
    the murmur of a part that sees nothing else would drown the small defects. Real defects are never looked at.

    Args:
        normal: (n, P) parts of normal images. NaN columns are absent.
        drawn: (m, P) parts of images with drawn defects. wrong: (l, P) of normal images under a wrong caption. Either may be empty.
    """
    from cmgcli.metrics import auroc

    count = normal.shape[1]
    scale, (location, weight, far, reach) = np.ones(count), np.zeros((4, count))
    for k in range(count):
        if np.isnan(normal[:, k]).any():
            continue
        location[k] = np.median(normal[:, k])
        spread = normal[:, k].std()
        usual = max(abs(location[k]), LEAST_SPREADS[k])
        scale[k] = spread if spread > 1e-3 * usual else usual
        reach[k] = (np.quantile(normal[:, k], REACH) - location[k]) / scale[k]
        for kind, seen in ((drawn, weight), (wrong, far)):
            if len(kind):
                labels = np.repeat([0, 1], [len(normal), len(kind)])
                seen[k] = max(0.0, 2 * auroc(labels, np.r_[normal[:, k], kind[:, k]]) - 1) ** 2
    if len(wrong):
        far = np.maximum(0, far - _by_chance(len(normal), len(wrong)))
    there = ~np.isnan(normal).any(axis=0)
    weight += there * (_by_chance(len(normal), len(drawn)) if len(drawn) else 1.0)
    return Blend(location, scale, weight / weight.sum(), far, reach)


def _by_chance(first: int, second: int) -> float:
    """What ``max(0, 2 AUROC - 1)^2`` is on average between so many values and so many, all alike: half of the variance of Mann and Whitney's statistic."""
    return (first + second + 1) / (6 * first * second)


@dataclass(frozen=True)
class Detector:
    """A fitted model."""

    settings: Settings
    language: Language
    bank: PatchBank
    album: Album | None  # None until a fit has taken the pictures
    head: DefectHead | None
    blend: Blend
    map_reference: np.ndarray  # (3, 3) location and scale of a normal image's peak, and weight, of the patch map, the head map and the state map
    calibration: Calibration
    fit_images: int

    def threshold_of(self, caption: str) -> float:
        """The score above which an image of this caption is anomalous."""
        return self.calibration.threshold(self.language.group_of(caption))
