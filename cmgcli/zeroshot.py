"""Scores without a model: what the captions say of flawless and defective states, and how alike the images of one run are.

A normal patch finds many alike in the other images of the run, a defect few (MuSc, Li et al., ICLR 2024). The other images are
a sample of the run, so that memory has a bound. Good parts are not known here, so nothing is promised: scores rank the images of
the run, and there is no threshold.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmgcli import defects
from cmgcli.detector import Blend, fit_blend, top_mean
from cmgcli.encoder import Encoder, choose_device, choose_precision, load_encoder
from cmgcli.errors import ImageError, SettingsError
from cmgcli.files import resolved
from cmgcli.head import DefectHead, head_map, patch_mask_to
from cmgcli.loader import BATCH, decoded
from cmgcli.looks import ground_of
from cmgcli.model import NO_NUMBER, Inspection, Parts, on_grid, weighted_map
from cmgcli.precision import fast_bfloat16
from cmgcli.pretrained_head import load_head
from cmgcli.rows import Row
from cmgcli.states import flawless_and_defective
from cmgcli.view import View, choose_relevance, images_at_once, look, views_of

logger = logging.getLogger(__name__)

REFERENCES = 96  # images of the run whose patches are held
WEIGHED = 32  # of them that weigh the parts of the score
ALIKE_SHARE = 0.3  # of the other images: as many should look alike where a patch is normal
NO_PROMISE = (
    "no model: the scores rank the images of this run; without good parts there is no threshold and no false-alarm promise, "
    "so the columns anomalous and p_value stay empty"
)


@dataclass(frozen=True)
class StateOdds:
    """What the captions of a run say an image could show."""

    captions: tuple[str, ...]  # U
    text: Tensor  # (U, D) unit norm, the captions themselves
    flawless: Tensor  # (U, D) unit norm, see `states.flawless_and_defective`
    defective: Tensor  # (U, D)
    sharpness: float

    def odds(self, embedding: Tensor, caption: str) -> float:
        """Log-odds that an image (D,) shows a defective state, or what another caption names, against a flawless state of its own."""
        own = self.number[caption]
        flawless = self.sharpness * self.flawless.to(embedding) @ embedding  # (U,)
        against = flawless.clone()
        against[own] = self.sharpness * self.defective[own].to(embedding) @ embedding
        return float(against.logsumexp(0) - flawless[own])

    @cached_property
    def number(self) -> dict[str, int]:
        """The number of each caption."""
        return {caption: number for number, caption in enumerate(self.captions)}


def states_of(encoder: Encoder, captions: Sequence[str]) -> StateOdds:
    """Encode the captions and their states."""
    return StateOdds(tuple(captions), encoder.encode_text(captions), *flawless_and_defective(encoder, captions), encoder.sharpness)


@dataclass(frozen=True)
class References:
    """The kept patches of some images of one caption."""

    features: Tensor  # (M, V) float32
    owners: Tensor  # (M,) int64, which image each patch is of
    names: tuple[Path, ...]  # the images, resolved

    def alone(self, name: Path) -> bool:
        """Whether there is no image to compare this one with."""
        return all(other == name for other in self.names)

    def distances(self, patches: Tensor, name: Path) -> Tensor | None:
        """How far each patch (K, V) lies from its nearest in the images that look most alike: (K,); None without another image.

        For each other image the distance to its nearest patch; of these the mean of the lowest `ALIKE_SHARE`. The image itself,
        by its name, tells nothing.
        """
        if self.alone(name):
            return None
        others = [number for number, other in enumerate(self.names) if other != name]
        distances = torch.cdist(patches.to(self.features), self.features)  # (K, M)
        nearest = torch.full((len(patches), len(self.names)), torch.inf, device=distances.device)
        nearest.scatter_reduce_(1, self.owners.expand(len(patches), -1), distances, "amin")
        count = max(1, round(ALIKE_SHARE * len(others)))
        return nearest[:, others].topk(count, dim=1, largest=False).values.mean(1).cpu()


@dataclass(frozen=True)
class ZeroShot:
    """Scores the images of one run as a `Model` does, without a fit; made by `zero_shot`."""

    encoder: Encoder
    head: DefectHead  # the one that every fit starts from
    states: StateOdds
    caption_of: Mapping[Path, str]  # by resolved path
    references: Mapping[str, References]  # by caption
    blend: Blend
    map_reference: np.ndarray  # (3, 3) as in a Detector
    ground: str  # of `view.GROUNDS`

    def inspect(self, paths: Iterable[Path | str], *, batch_size: int | str = BATCH, live: bool = False, maps: bool = False) -> Iterator[Inspection]:
        """As `Model.inspect`; an image without a caption gives a row with `error`."""
        for name, view in self.looked(paths, images_at_once(self.encoder, batch_size), live):
            yield Inspection(Row(file=str(name), error=str(view))) if isinstance(view, ImageError) else self._inspection(name, view, maps)

    def _inspection(self, name: Path | str, view: View, maps: bool) -> Inspection:
        caption = self.caption_of[resolved(name)]
        parts = self.judge(view, caption, resolved(name))
        told = parts.values.copy()
        if self.references[caption].alone(resolved(name)):
            told[1] = self.blend.location[1]  # what nothing is known of counts as usual
        score = float(self.blend(told[None])[0])
        if not np.isfinite(score):
            return Inspection(Row(file=str(name), caption=caption, error=NO_NUMBER))
        row = Row(
            file=str(name),
            score=score,
            image_score=float(parts.values[0]),
            patch_score=None if np.isnan(parts.values[1]) else float(parts.values[1]),
            head_score=float(parts.values[2]),
            match=view.match,
            kept=float(view.keep.mean()),
            caption=caption,
        )
        return Inspection(row, view, weighted_map(self.map_reference, view, parts) if maps else None)

    def judge(self, view: View, caption: str, name: Path) -> Parts:
        """The parts of the score: the log-odds of the states, how few images look alike, what the defect head sees that every fit starts from; the first
        tells of the states of the whole image, so that no part of its own does."""
        precision = "bfloat16" if fast_bfloat16(self.encoder.device.type) else "float32"
        head_score, logits = head_map(self.head, view.image, view.keep, precision=precision)
        distances = self.references[caption].distances(view.patches, name)
        patch_map, patch_score = np.zeros(view.keep.shape, np.float32), np.nan
        if distances is not None:
            patch_map, patch_score = on_grid(distances, view.keep), top_mean(distances, view.keep.size)
        return Parts(np.array([self.states.odds(view.embedding, caption), patch_score, head_score, np.nan]), patch_map, logits)

    def look(self, images: Sequence[np.ndarray], captions: Sequence[str]) -> list[View]:
        """The images through CMER, each under its caption."""
        text = self.states.text[[self.states.number[caption] for caption in captions]]
        return look(self.encoder, images, list(text), layers=self.encoder.feature_layers, relevance=choose_relevance(self.encoder, None), keep="auto", ground=self.ground)

    def looked(self, paths: Iterable[Path | str], batch_size: int, live: bool = False) -> Iterator[tuple[Path | str, View | ImageError]]:
        """Each path with its view, or with the reason why there is none."""
        untold = ImageError("no caption: name it in --captions, or give one for all with --caption")
        for batch in decoded(paths, batch_size=batch_size, live=live):
            captions = [self.caption_of.get(resolved(name)) for name, _ in batch]
            told = [untold if caption is None and isinstance(image, np.ndarray) else image for (_, image), caption in zip(batch, captions, strict=True)]
            for (name, _), view in zip(batch, views_of(told, captions, self.look), strict=True):
                yield name, view


def zero_shot(
    paths: Sequence[Path | str],
    captions: Mapping[Path, str] | None = None,
    *,
    caption: str | None = None,
    encoder: str = "builtin",
    device: str = "auto",
    batch_size: int | str = BATCH,
    references: int = REFERENCES,
    seed: int = 0,
) -> ZeroShot:
    """Look at a sample of a run's images, so that all of them can be scored against it.

    Args:
        paths: all images of the run.
        captions: caption by resolved path; caption: for the images that it does not name.
        references: how many images are held, shared evenly among the captions; each is compared with those of its caption.
    Raises:
        SettingsError: no caption at all; EncoderError: weights that cannot be used.
    """
    if caption is not None and not caption.strip():
        raise SettingsError("the caption for all images is empty: describe what they show")
    given = {path: (captions or {}).get(path, caption) for path in map(resolved, paths)}
    caption_of = {path: text for path, text in given.items() if text is not None}
    if not caption_of:
        raise SettingsError("zero-shot: the prompts are made of a caption, and no image has one; give --caption TEXT, or --captions FILE that names these images")
    device = choose_device(device)
    tower = load_encoder(encoder, device=device, precision=choose_precision(device))
    batch_size, head = images_at_once(tower, batch_size), load_head().to(tower.device)
    flat = Blend.even([True, True, True, False])
    states = states_of(tower, tuple(dict.fromkeys(caption_of.values())))
    scorer = ZeroShot(tower, head, states, caption_of, {}, flat, np.array([[0.0, 1.0, 0.5], [0.0, 1.0, 0.5], [0.0, 1.0, 0.0]]), ground_of(caption_of, tower))
    chosen = _sample(caption_of, references, np.random.default_rng(seed))
    scorer = replace(scorer, references={text: _held(scorer, chosen.get(text, ()), batch_size) for text in scorer.states.captions})
    held = sum(len(found.names) for found in scorer.references.values())
    if held < len(caption_of):
        logger.info("%d of the %d images are the sample that each is compared with", held, len(caption_of))
    return _weighed(scorer, batch_size, np.random.default_rng(seed))


def _held(scorer: ZeroShot, names: Sequence[Path], batch_size: int) -> References:
    """The patches of those images that can be read."""
    seen = [(name, view.patches.cpu()) for name, view in scorer.looked(names, batch_size) if isinstance(view, View)]
    owners = [torch.full((len(patches),), number) for number, (_, patches) in enumerate(seen)]
    features = torch.cat([patches for _, patches in seen]) if seen else torch.empty(0, 0)
    return References(features, torch.cat(owners) if owners else torch.empty(0, dtype=torch.int64), tuple(Path(name) for name, _ in seen))


def _sample(caption_of: Mapping[Path, str], most: int, rng: np.random.Generator) -> dict[str, list[Path]]:
    """A random sample of the images of each caption, in their order; the captions share evenly, at least two images each.

    None of a caption that one image has, which has nothing to be compared with, and of the rarest where two of each are too many.
    """
    groups: dict[str, list[Path]] = {}
    for path, text in caption_of.items():
        groups.setdefault(text, []).append(path)
    alike = sorted((text for text in groups if len(groups[text]) > 1), key=lambda text: -len(groups[text]))[: most // 2]
    share = max(2, most // max(1, len(alike)))
    return {text: [groups[text][i] for i in np.sort(rng.permutation(len(groups[text]))[:share])] for text in groups if text in alike}


def _weighed(scorer: ZeroShot, batch_size: int, rng: np.random.Generator) -> ZeroShot:
    """Standardise the parts on some references, and weight each by what it sees of drawn defects and of wrong captions.

    Most images of a run are taken to be good. Captions with a single image say nothing of how alike images are, and are left
    out where others do.
    """
    compared = [found.names for found in scorer.references.values() if len(found.names) > 1]
    groups = compared or [tuple(scorer.caption_of)]
    names = [name for turn in zip_longest(*groups) for name in turn if name is not None][:WEIGHED]
    normal, peaks, drawn, wrong = [], [], [], []
    for name, view in scorer.looked(names, batch_size):
        if isinstance(view, ImageError):
            continue
        caption = scorer.caption_of[name]
        parts = scorer.judge(view, caption, name)
        normal.append(parts.values)
        peaks.append([0.0 if one is None else one.max() for one in parts.maps])
        broken = defects.draw(view.image, rng, allowed=patch_mask_to(view.keep, *view.image.shape[:2]), strength=float(rng.random() ** 0.5))
        drawn.append(scorer.judge(scorer.look([broken.image], [caption])[0], caption, name).values)
        others = [text for text, found in scorer.references.items() if text != caption and (found.names or not compared)]
        if others:
            other = others[int(rng.integers(len(others)))]
            wrong.append(scorer.judge(scorer.look([view.image], [other])[0], other, name).values)
    if not normal:
        return scorer
    blend = fit_blend(np.array(normal), np.array(drawn), np.array(wrong))
    weight = blend.weight[1:] if blend.weight[1:].sum() > 0 else np.array([0.0, 1.0, 0.0])
    location, scale = np.median(peaks, axis=0), np.maximum(np.std(peaks, axis=0), 1e-6)
    return replace(scorer, blend=blend, map_reference=np.column_stack([location, scale, weight / weight.sum()]))
