"""Why an image has its score: the parts, the places that decided, what they are compared with, and what the caption does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cmgcli.detector import PARTS, Blend, Detector
from cmgcli.model import Inspection, Model, Parts, judge, look_with
from cmgcli.reasons import PART_NAMES, reason
from cmgcli.rows import Row
from cmgcli.view import View, best_other

MOST_PLACES = 4
NEIGHBOURS = 4
SAME_SCORE = 0.01  # a share of the score below which a change is none

PatchBox = tuple[int, int, int, int]  # top, left, bottom, right in an image, pixels


@dataclass(frozen=True)
class PartOfScore:
    """One part of a score beside what good images have."""

    name: str  # one of detector.PARTS
    value: float
    usual: float  # of a typical good image
    spread: float  # of good images
    points: float  # what it adds to the score
    usual_points: float  # what it adds to that of a typical good image
    excess: float  # its share in how far the score lies above that of a typical good image; above zero where its value is above the usual one

    @property
    def spreads(self) -> float:
        """How far it lies above a typical good image, in spreads of good ones."""
        return (self.value - self.usual) / self.spread


@dataclass(frozen=True)
class Neighbour:
    """A normal patch of an image of the fit."""

    picture: np.ndarray  # (album.SIDE, album.SIDE, 3) uint8 RGB, with half a patch around it
    image: str  # as the fit's dataset spells it
    box: PatchBox  # of that image
    distance: float


@dataclass(frozen=True)
class Place:
    """A patch that decided."""

    box: PatchBox
    strangeness: float  # see Evidence
    patch_spreads: float  # its distance against that of a typical good image's strangest patch, in spreads
    head_spreads: float | None  # what the head sees there against the most that it sees in a typical good image; None without a head
    state_spreads: float | None  # how like a defective state it is against what is most so in a typical good image; None where there is no such map
    neighbours: tuple[Neighbour, ...]  # nearest first


@dataclass(frozen=True)
class OtherCaption:
    """What the score would be if the image were judged, and CMER guided, by another caption."""

    text: str
    match: float  # cosine of the whole image and that caption
    score: float
    passes: bool  # whether it would not be called anomalous
    changes: tuple[float, ...]  # points more than under its own caption, in the order of detector.PARTS


@dataclass(frozen=True)
class Explanation:
    """All that a row rests on."""

    row: Row
    threshold: float  # infinite where nothing was calibrated
    view: View
    anomaly_map: np.ndarray  # (H, W) float32
    parts: tuple[PartOfScore, ...]  # those that the model has
    places: tuple[Place, ...]  # what decided most, first
    nearest: View  # of the pieces of the view the one with the first of them
    other: OtherCaption | None  # None where the model knows no other caption

    @property
    def usual_score(self) -> float:
        """The score of a typical good image."""
        return sum(part.usual_points for part in self.parts)

    @property
    def verdict(self) -> str:
        """The row in words."""
        row = self.row
        state = "anomalous" if row.anomalous else "not anomalous"
        if not np.isfinite(self.threshold):
            return f"{state}: score {row.score:.3g}, but the model has no threshold; a typical good part has {self.usual_score:.3g}"
        return f"{state}: score {row.score:.3g}, threshold {self.threshold:.3g}, p = {row.p_value:.3g}; a typical good part has {self.usual_score:.3g}"

    @property
    def reason(self) -> str:
        """What decided, in a sentence."""
        return reason({part.name: part.excess for part in self.parts})

    @property
    def caption_words(self) -> tuple[str, ...]:
        """What the caption and CMER did, in sentences."""
        view, kept = self.view, float(self.view.keep.mean())
        said = [f"Caption: {self.row.caption}"]
        if kept < 1:
            said.append(f"CMER hid {1 - kept:.0%} of the patches; the match with the caption went from {view.match_before:.2f} to {view.match:.2f}.")
        else:
            said.append(f"CMER hid nothing; the match with the caption is {view.match:.2f}.")
        if self.other is None:
            return (*said, "The model knows no other caption to compare with.")
        other = self.other
        parts = ", ".join(f"{PART_NAMES[part.name]} {other.changes[PARTS.index(part.name)]:+z.2f}" for part in self.parts)
        said.append(f"Best other caption: {other.text} (match {other.match:.2f}). By it the score would be {other.score:.3g}: {parts}.")
        return (*said, self._caption_verdict)

    @property
    def _caption_verdict(self) -> str:
        other, row = self.other, self.row
        if abs(other.score - row.score) < SAME_SCORE * row.score:
            return "The caption makes no difference: the encoder hardly tells the two apart."
        if row.anomalous and other.passes:
            return "By that caption it would pass: is it another part, or is the caption wrong?"
        if row.anomalous and other.score < row.score:
            return "By that caption it would look less strange, but would still be rejected."
        if other.score < row.score:
            return "By that caption it would look even less strange."
        return "The caption raises no doubt: by the other one it would look stranger."


def explain(model: Model, inspection: Inspection) -> Explanation:
    """Explain one image that was scored with its map; looks at it once more, under the best other caption.

    Raises CheckpointError where the model's pictures of good patches are damaged.
    """
    detector, view, parts, row = model.detector, inspection.view, inspection.parts, inspection.row
    language = detector.language
    number = language.number.get(row.caption)
    said = evidence(detector.map_reference, view, parts)
    chosen = _decisive(said)
    return Explanation(
        row=row,
        threshold=detector.threshold_of(row.caption),
        view=view,
        anomaly_map=inspection.anomaly_map,
        parts=parts_of_score(detector.blend, parts.values),
        places=_places(detector, said, chosen, view.text.cpu() if number is None else language.text[number]),
        nearest=view.pieces[said.pieces[chosen[0]]],
        other=_under_other(model, view, parts, number),
    )


def parts_of_score(blend: Blend, values: np.ndarray) -> tuple[PartOfScore, ...]:
    """The parts (4,) of a score that have a weight, each beside what a typical good image has."""
    points, usual = blend.terms(values), blend.terms(blend.location)
    score, usual_score = points.sum(), usual.sum()
    excess = (blend.squares(values) - blend.squares(blend.location)) / max(score + usual_score, np.finfo(float).tiny)  # of the squares that the score is the root of
    return tuple(
        PartOfScore(name, float(values[k]), float(blend.location[k]), float(blend.scale[k]), float(points[k]), float(usual[k]), float(excess[k]))
        for k, name in enumerate(PARTS)
        if blend.counts[k]
    )


@dataclass(frozen=True)
class Evidence:
    """What each kept patch says, of all pieces of an image."""

    pieces: np.ndarray  # (N,) int64, the number of the piece that it is of
    boxes: np.ndarray  # (N, 4) int64, see `View.patch_boxes`
    patches: Tensor  # (N, V) features
    spreads: np.ndarray  # (N, 3) float64, of patch, head and state map, above the peak of a typical good image; NaN of an absent one
    strangeness: np.ndarray  # (N,) float64, these weighted as in `model.anomaly_map`: 0 is the peak of a typical good image


def evidence(reference: np.ndarray, view: View, parts: Parts) -> Evidence:
    """What the kept patches of an image say against a reference (3, 3) as in a Detector; of the head the highest logit in a patch counts."""
    found = []
    for number, (piece, judged) in enumerate(zip(view.pieces, parts.pieces, strict=True)):
        head = state = np.full(piece.keep.shape, np.nan)
        if judged.state_map is not None:
            state = judged.state_map
        if judged.head_map is not None:
            head = F.adaptive_max_pool2d(torch.from_numpy(judged.head_map)[None, None], piece.keep.shape)[0, 0].numpy()
        values = np.stack([judged.patch_map[piece.keep], head[piece.keep], state[piece.keep]], axis=1).astype(np.float64)  # (K, 3)
        found.append((np.full(len(values), number), piece.patch_boxes, piece.patches.cpu().numpy(), (values - reference[:, 0]) / reference[:, 1]))
    pieces, boxes, patches, spreads = map(np.concatenate, zip(*found, strict=True))
    return Evidence(pieces, boxes, torch.from_numpy(patches), spreads, np.nansum(reference[:, 2] * spreads, axis=1))


def chosen_places(strangeness: np.ndarray, boxes: np.ndarray, most: int) -> list[int]:
    """The numbers of the strangest (N,), of which no two have boxes (N, 4) that touch; at most ``most``."""
    left, chosen = strangeness.copy(), []
    while len(chosen) < most and np.isfinite(left).any():
        best = int(left.argmax())
        chosen.append(best)
        left[(boxes[:, :2] <= boxes[best, 2:]).all(axis=1) & (boxes[:, 2:] >= boxes[best, :2]).all(axis=1)] = -np.inf
    return chosen


def _decisive(said: Evidence) -> list[int]:
    """The numbers of the patches to show: the strangest, and others stranger than a typical good image's strangest."""
    chosen = chosen_places(said.strangeness, said.boxes, MOST_PLACES)
    return chosen[:1] + [number for number in chosen[1:] if said.strangeness[number] > 0]


def _places(detector: Detector, said: Evidence, chosen: Sequence[int], text: Tensor) -> tuple[Place, ...]:
    bank, album = detector.bank, detector.album
    nearest = bank.nearest(said.patches[chosen], detector.language.bank_groups(detector.language.weights_of(text)), NEIGHBOURS)
    pictures = iter(album.pictures(nearest.rows.flatten().tolist()))
    found = []
    for number, rows, far in zip(chosen, nearest.rows.tolist(), nearest.distances.tolist(), strict=True):
        origins = bank.origins[rows].tolist()
        neighbours = tuple(Neighbour(next(pictures), album.names[image], tuple(box), distance) for (image, *box), distance in zip(origins, far, strict=True))
        patch, *others = (None if np.isnan(spreads) else spreads for spreads in said.spreads[number].tolist())
        found.append(Place(tuple(said.boxes[number].tolist()), float(said.strangeness[number]), patch, *others, neighbours))
    return tuple(found)


def _under_other(model: Model, view: View, parts: Parts, number: int | None) -> OtherCaption | None:
    """The score under the stored caption that matches the whole image best, but for its own, which has a number if it is stored."""
    detector = model.detector
    language = detector.language
    text = language.text.to(view.whole)
    if number is None:
        matches = text @ view.whole
        other, match = int(matches.argmax()), float(matches.max())
    else:
        other, match = best_other(view.whole, text, number)
    if other is None:
        return None
    (seen,) = look_with(model, [view.image], [language.text[other]])
    judged = judge(detector, seen, language.weights_of(language.text[other]))
    terms = detector.blend.terms(judged.values)
    score = float(terms.sum())
    passes = score <= detector.threshold_of(language.captions[other])
    return OtherCaption(language.captions[other], match, score, passes, tuple((terms - detector.blend.terms(parts.values)).tolist()))
