"""What a fit learns from normal images that it holds out: the curve of the head's training, and the weights of the score's parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import torch

from cmgcli import defects, ranks
from cmgcli.detector import Blend, Language, fit_blend
from cmgcli.head import DefectHead, highest, patch_mask_to, peaks_and_map
from cmgcli.looks import Looks, spread
from cmgcli.metrics import auroc
from cmgcli.model import Model, Parts, judge, look_by
from cmgcli.view import View

DRAWN_PER_IMAGE = 2
VALIDATED, VALIDATED_PIXELS = 32, 32_000_000
WIDTHS = (4, 3, 4, 3, 4)  # of the fields of `Evidence`


def drawn_auroc(looks: Looks, numbers: Sequence[int], known: Sequence[tuple[np.ndarray, np.ndarray]] = ()) -> Callable[[DefectHead], float]:
    """What tells a head's AUROC between held-out normal images and the same with a drawn defect each, and known bad ones.

    known: images (H, W, 3) and keep masks (h, w), which the head may have seen.
    """
    rng = np.random.default_rng(looks.settings.seed)
    images, pixels = [], 0  # (normal, drawn, keep mask)
    for _, wholes in looks.sound(spread(numbers, VALIDATED)):
        for view in (_piece(whole, rng) for whole in wholes):
            if pixels <= VALIDATED_PIXELS:
                pixels += view.image[..., 0].size
                images.append((view.image.copy(), _with_defect(view, rng).image, view.keep))  # of a tile not the whole image, which its pixels are part of
        if pixels > VALIDATED_PIXELS:
            break

    def found(head: DefectHead) -> float:
        def peaks(shown: tuple[np.ndarray, ...]) -> torch.Tensor:
            *alike, keep = shown
            return torch.stack([peaks_and_map(head, image, keep, precision=looks.settings.precision)[0] for image in alike])

        seen = torch.cat(ranks.shared(peaks, [*images, *known]))  # normal and drawn in turn, then the known: (n, looks, shares)
        truth = np.r_[np.tile([0, 1], len(images)), np.ones(len(known))]
        head.accustom(seen[truth == 0])
        return auroc(truth, head.unusual(seen).numpy())

    return found


def accustom(head: DefectHead, looks: Looks, numbers: Sequence[int], report: Callable[[int, int], None]) -> DefectHead:
    """The head, shown normal images that it was not trained on, so that it knows how high their peaks usually are.

    Args:
        report: called with how many images are done, and of how many.
    """
    seen = []
    for _, views in looks.sound(numbers):
        pieces = [piece for view in views for piece in view.pieces]
        peaks = iter(ranks.shared(lambda piece: peaks_and_map(head, piece.image, piece.keep, precision=looks.settings.precision)[0], pieces))
        seen += [highest([next(peaks) for _ in view.pieces]) for view in views]
        report(len(seen), len(numbers))
    head.accustom(torch.stack(seen))
    return head


@dataclass(frozen=True)
class Evidence:
    """Parts of the score, in the order of `detector.PARTS`, of images that a model has not seen, NaN where one is absent."""

    normal: np.ndarray  # (n, 4)
    peaks: np.ndarray  # (n, 3) highest value of the patch map, of the head map and of the state map, NaN for an absent one
    drawn: np.ndarray  # (m, 4) the same images with drawn defects
    places: np.ndarray  # (m, 3) AUROC of the places of a drawn defect against the rest of its image, in each of these maps
    wrong: np.ndarray  # (l, 4) the same images under a wrong caption

    def blend(self) -> Blend:
        """The parts standardised and weighted; see `detector.fit_blend`."""
        return fit_blend(self.normal, self.drawn, self.wrong)

    def settle(self, model: Model) -> Model:
        """The model with its parts weighted, and its maps standardised and weighted, by this evidence."""
        peaks = [[np.median(column), max(float(np.std(column)), 1e-6)] for column in self.peaks.T]
        reference = np.column_stack([peaks, self._map_weights()])
        return replace(model, detector=replace(model.detector, blend=self.blend(), map_reference=reference))


    def _map_weights(self) -> np.ndarray:
        """(3,) summing to 1: by how well each map shows where a drawn defect lies, as the parts of the score, ``(2 AUROC - 1)^2``; even where none does."""
        there = ~np.isnan(self.peaks).all(axis=0)
        found = np.where(there, np.maximum(0, 2 * self.places.mean(axis=0) - 1) ** 2, 0) if len(self.places) else np.zeros(3)
        found = found if found.sum() > 0 else there.astype(float)
        return found / found.sum()


def joined(several: Sequence[Evidence]) -> Evidence:
    """The evidence of several sets of images."""
    return Evidence(*(np.concatenate([getattr(one, field.name) for one in several]) for field in fields(Evidence)))


def gather_folds(
    judges: Sequence[Model], looks: Looks, folds: Sequence[Sequence[int]], *, made_up: int, report: Callable[[int, int], None]
) -> list[Evidence]:
    """`gather` of each fold by its judge, which has not seen it; the folds share ``made_up``. report: called with how many images are done, and of how many."""
    evidence, done, total = [], 0, sum(map(len, folds))
    for number, (model, fold) in enumerate(zip(judges, folds, strict=True)):
        evidence.append(gather(model, looks, fold, fold=number, made_up=-(-made_up // len(folds)), report=lambda judged, done=done: report(done + judged, total)))
        done += len(fold)
    return evidence


def gather(model: Model, looks: Looks, numbers: Sequence[int], *, made_up: int, fold: int = 0, report: Callable[[int], None]) -> Evidence:
    """Judge normal images, and ``made_up`` of them also with drawn defects and under a wrong caption.

    Several ranks take the batches in turn; the defects are drawn by each of them, from one stream of random numbers.

    Args:
        fold: each has defects of its own.
        report: called with how many images are done.
    """
    rng = np.random.default_rng((model.detector.settings.seed, fold))
    own, done, chosen = {}, 0, set(spread(numbers, made_up))
    for k, (batch, views) in enumerate(looks.sound(numbers)):
        basis = [view for i, view in zip(batch, views, strict=True) if i in chosen]
        found = _gather_batch(model, looks, views, basis, rng, judging=ranks.mine(k))
        if ranks.mine(k):
            own[k] = found
        done += len(views)
        report(done)
    every = {k: found for part in ranks.exchanged(own) for k, found in part.items()}
    columns = [[row for k in sorted(every) for row in every[k][column]] for column in range(len(WIDTHS))]
    return Evidence(*(np.reshape(rows, (-1, width)).astype(np.float64) for rows, width in zip(columns, WIDTHS, strict=True)))


def _gather_batch(
    model: Model, looks: Looks, views: Sequence[View], basis: Sequence[View], rng: np.random.Generator, *, judging: bool
) -> tuple[list, list, list, list, list]:
    """The rows of each field of `Evidence` for one batch; a batch that another rank judges only takes its random numbers."""
    language = model.detector.language
    drawn, places, wrong = [], [], []
    judged = _judged(model, views) if judging else []
    for _ in range(DRAWN_PER_IMAGE):
        broken = [_with_defect(view, rng) for view in basis]
        if judging:
            seen = _judged(model, look_by(looks.encoder, looks.settings, [defect.image for defect in broken], [view.text for view in basis]))
            drawn += [parts.values for parts in seen]
            places += [_places(parts, defect.mask) for parts, defect in zip(seen, broken, strict=True)]
    if language.guided:
        swapped = [(view, text) for view in basis if (text := _other_caption(language, view.text, rng)) is not None]
        if judging:
            again = look_by(looks.encoder, looks.settings, [view.image for view, _ in swapped], [text for _, text in swapped])
            wrong = [parts.values for parts in _judged(model, again)]
    peaks = [[np.nan if one is None else one.max() for one in parts.maps] for parts in judged]
    return [parts.values for parts in judged], peaks, drawn, places, wrong


def _judged(model: Model, views: Sequence[View]) -> list[Parts]:
    return [judge(model.detector, view, model.detector.language.weights_of(view.text.cpu())) for view in views]


def _places(parts: Parts, mask: np.ndarray) -> list[float]:
    """AUROC of the defect's places in each map, at the resolution of a head's, or twice that of the patches; even for a lonely or absent one, and where the defect is nowhere or everywhere."""
    size = tuple(2 * side for side in parts.patch_map.shape[::-1]) if parts.head_map is None else parts.head_map.shape[::-1]
    truth = (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5).ravel()
    if sum(one is not None for one in parts.maps) < 2 or truth.all() or not truth.any():
        return [0.5] * len(parts.maps)
    return [0.5 if one is None else auroc(truth, cv2.resize(one, size, interpolation=cv2.INTER_LINEAR).ravel()) for one in parts.maps]


def _with_defect(view: View, rng: np.random.Generator) -> defects.DrawnDefect:
    """The view's image with a defect in the kept area of one of its pieces, rather visible than not."""
    piece = _piece(view, rng)
    allowed = patch_mask_to(piece.keep, *piece.image.shape[:2])
    drawn = defects.draw(piece.image, rng, allowed=allowed, strength=float(rng.random() ** 0.5))
    if piece is view:
        return drawn
    image, mask = view.image.copy(), np.zeros(view.image.shape[:2], bool)
    image[piece.box], mask[piece.box] = drawn.image, drawn.mask
    return replace(drawn, image=image, mask=mask)


def _piece(view: View, rng: np.random.Generator) -> View:
    return view.pieces[rng.integers(len(view.pieces))]


def _other_caption(language: Language, text: torch.Tensor, rng: np.random.Generator) -> torch.Tensor | None:
    """The embedding (D,) of a stored caption that says something else, or None where none does."""
    others = (language.text != text.cpu()).any(1).nonzero().flatten().tolist()
    return language.text[int(rng.choice(others))] if others else None
