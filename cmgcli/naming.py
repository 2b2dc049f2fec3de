"""What is it? The phrase that explains an anomalous image's strange patches better than the flawless phrase does.

Each region of strange patches has a place in the space of the texts, and so have, for the image's own caption, each
phrase and the flawless state, as a mean over a few wordings (as CLIP's prompt ensembles). Nothing is trained on defects. After
MultiADS (Sadikaj et al. 2025), which also gives each defect its own texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cmgcli.detector import TOP_SHARE
from cmgcli.encoder import Encoder
from cmgcli.errors import DatasetError
from cmgcli.model import MAP_STRANGE, Inspection
from cmgcli.view import View

SEPARATOR = "; "
DEFECTIVE = ("{caption} with {phrase}", "{caption}, {phrase}", "damaged, {phrase}: {caption}", "{phrase}")
FLAWLESS = ("{caption}", "{caption}, flawless", "intact: {caption}", "a flawless surface")


@dataclass(frozen=True)
class Phrase:
    """A defect as it is called in the rows, and as the encoder is asked about it."""

    name: str
    text: str


@dataclass(frozen=True)
class Defect:
    """A defect of an image."""

    name: str
    score: float  # in (0, 1), the encoder's probability of its phrase against the flawless one


def read_phrases(path: Path) -> tuple[Phrase, ...]:
    """Read a defects file: one defect a line, a name or `name: phrase`; empty lines and those that begin with # say nothing.

    Raises DatasetError naming file, line and remedy where it cannot be read, names nothing, or a line is no such thing.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error.strerror}: give a text file with one defect a line") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{str(path)!r}: the text is not UTF-8: save the file as UTF-8, one defect a line") from error
    found: dict[str, Phrase] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{str(path)!r}, line {number}"
        name, colon, rest = (part.strip() for part in line.partition(":"))
        if not name or (colon and not rest):
            raise DatasetError(f"{where}: expected a defect such as scratch, or name: phrase, got {line.strip()!r}: complete the line")
        if SEPARATOR.strip() in name or not all(map(str.isprintable, name + rest)):
            raise DatasetError(f"{where}: the name {name!r} cannot stand in a row: leave out {SEPARATOR.strip()!r} and control characters")
        if name.casefold() in found:
            raise DatasetError(f"{where}: {name!r} is named twice: keep one of the lines")
        found[name.casefold()] = Phrase(name, rest or name)
    if not found:
        raise DatasetError(f"{str(path)!r} names no defect: write one a line, such as scratch, or scratch: a long thin scratch")
    return tuple(found.values())


class Namer:
    """Names the defects of images, by one encoder and some phrases; what a caption's texts become is kept."""

    def __init__(self, encoder: Encoder, phrases: Sequence[Phrase]) -> None:
        self.encoder, self.phrases = encoder, tuple(phrases)
        self._texts: dict[str, Tensor] = {}  # caption: (1 + phrases, D)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the phrases, in the order given."""
        return tuple(phrase.name for phrase in self.phrases)

    def defects(self, inspection: Inspection) -> tuple[Defect, ...]:
        """The defects of an image that was scored with its map, the surest first; at least one, and none twice.

        Each region of strange patches that touch is one defect; where none is strange, the strangest patches are one.
        """
        texts = self._of(inspection.row.caption)
        surest: dict[str, float] = {}
        for embedding in self.regions(inspection):
            matches = texts @ embedding  # (1 + phrases,), the flawless one first
            best = int(matches[1:].argmax())
            score = float(torch.sigmoid(self.encoder.sharpness * (matches[1 + best] - matches[0])))
            name = self.phrases[best].name
            surest[name] = max(score, surest.get(name, 0.0))
        return tuple(Defect(name, score) for name, score in sorted(surest.items(), key=lambda item: -item[1]))

    def _of(self, caption: str) -> Tensor:
        if caption not in self._texts:
            wordings = [[template.format(caption=caption) for template in FLAWLESS]]
            wordings += [[template.format(caption=caption, phrase=phrase.text) for template in DEFECTIVE] for phrase in self.phrases]
            embedded = self.encoder.encode_text([text for texts in wordings for text in texts]).unflatten(0, (len(wordings), len(FLAWLESS)))
            self._texts[caption] = F.normalize(embedded.mean(dim=1), dim=-1)
        return self._texts[caption]

    def regions(self, inspection: Inspection) -> list[Tensor]:
        """The embedding (D,) of each region, piece by piece: the mean of its tokens where the encoder's embedding is a mean, else it alone is encoded."""
        return [embedding for piece, regions in _strange(inspection) for embedding in self._embedded(piece, regions)]

    def _embedded(self, piece: View, regions: Sequence[np.ndarray]) -> list[Tensor]:
        pixels = self.encoder.preprocess([piece.image])
        if not self.encoder.averages:
            return [self.encoder.encode_image(pixels, index=torch.from_numpy(region)[None].to(pixels.device)).embedding[0] for region in regions]
        dense = self.encoder.encode_image(pixels).dense[0]  # (P, D)
        return [F.normalize(dense[region].mean(dim=0), dim=-1) for region in regions]


def _strange(inspection: Inspection) -> list[tuple[View, list[np.ndarray]]]:
    """The pieces of an image that have strange regions, with these; where none has, the one with the strangest patches, with them."""
    pieces = [(piece, patch_peaks(inspection.anomaly_map[piece.box], piece.keep)) for piece in inspection.view.pieces]
    found = [(piece, strange_regions(peaks)) for piece, peaks in pieces if (peaks > MAP_STRANGE).any()]
    if found:
        return found
    piece, peaks = max(pieces, key=lambda entry: entry[1].max())
    return [(piece, [strangest_patches(peaks)])]


def patch_peaks(anomaly_map: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The highest value of a map (H, W) float32 in each patch that ``keep`` (h, w) bool keeps: (h, w), minus infinity in the others."""
    peaks = F.adaptive_max_pool2d(torch.from_numpy(np.ascontiguousarray(anomaly_map))[None, None], keep.shape)[0, 0].numpy()
    return np.where(keep, peaks, -np.inf)


def strange_regions(peaks: np.ndarray) -> list[np.ndarray]:
    """The numbers (n,) int64 of the patches of each 8-connected region of peaks (h, w) that are very strange, as `pictures.map_overlay` outlines it."""
    import cv2

    count, regions = cv2.connectedComponents((peaks > MAP_STRANGE).astype(np.uint8), connectivity=8)
    return [np.flatnonzero(regions.ravel() == number).astype(np.int64) for number in range(1, count)]


def strangest_patches(peaks: np.ndarray) -> np.ndarray:
    """The numbers (n,) int64 of the highest of the peaks (h, w): 1 % of them, but no hidden one, which has minus infinity."""
    order = peaks.ravel().argsort()[::-1]
    return np.sort(order[: min(int(np.isfinite(peaks).sum()), max(1, round(TOP_SHARE * peaks.size)))]).astype(np.int64)
