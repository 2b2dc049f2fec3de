"""What a fit learns from normal images that it holds out: the curve of the head's training, and the weights of the score's parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from cmgcli import defects
from cmgcli.detector import Blend, Language, fit_blend
from cmgcli.head import DefectHead, head_map, patch_mask_to
from cmgcli.looks import Looks
from cmgcli.metrics import auroc
from cmgcli.model import Model, judge, look_by
from cmgcli.view import View

DRAWN_PER_IMAGE = 2
VALIDATED, VALIDATED_PIXELS = 32, 32_000_000


def drawn_auroc(looks: Looks, numbers: Sequence[int]) -> Callable[[DefectHead], float]:
    """What tells a head's AUROC between held-out normal images and the same with a drawn defect each."""
    rng = np.random.default_rng(looks.settings.seed)
    pairs, pixels = [], 0
    for _, views in looks.sound(numbers[:VALIDATED]):
        pixels += sum(view.image[..., 0].size for view in views)
        pairs += zip(views, _look_again(looks, views, [_with_defect(view, rng) for view in views], [view.text for view in views]), strict=True)
        if pixels > VALIDATED_PIXELS:
            break

    def found(head: DefectHead) -> float:
        scores = np.array([[head_map(head, view.image, view.tokens, normal.keep)[0] for view in (normal, drawn)] for normal, drawn in pairs])
        return auroc(np.repeat([0, 1], len(pairs)), scores.T.ravel())

    return found


@dataclass(frozen=True)
class Evidence:
    """Parts of the score, in the order of `detector.PARTS`, of images that a model has not seen, NaN where there is no head."""

    normal: np.ndarray  # (n, 3)
    peaks: np.ndarray  # (n, 2) highest value of the patch map and of the head map
    drawn: np.ndarray  # (m, 3) the same images with drawn defects
    wrong: np.ndarray  # (l, 3) the same images under a wrong caption

    def blend(self) -> Blend:
        """The parts standardised and weighted; see `detector.fit_blend`."""
        return fit_blend(self.normal, [kind for kind in (self.drawn, self.wrong) if len(kind)])

    def settle(self, model: Model) -> Model:
        """The model with its parts weighted, and its maps standardised, by this evidence."""
        reference = np.array([[np.median(column), max(float(np.std(column)), 1e-6)] for column in self.peaks.T])
        return replace(model, detector=replace(model.detector, blend=self.blend(), map_reference=reference))


def joined(several: Sequence[Evidence]) -> Evidence:
    """The evidence of several sets of images."""
    return Evidence(*(np.concatenate([getattr(one, field.name) for one in several]) for field in fields(Evidence)))


def gather(model: Model, looks: Looks, numbers: Sequence[int], *, made_up: int, report: Callable[[int], None]) -> Evidence:
    """Judge normal images, and the first ``made_up`` of them also with drawn defects and under a wrong caption.

    Args:
        report: called with how many images are done.
    """
    rng = np.random.default_rng(model.detector.settings.seed)
    language = model.detector.language
    normal, peaks, drawn, wrong = [], [], [], []
    for _, views in looks.sound(numbers):
        judged = [judge(model.detector, view, language.weights_of(view.text.cpu())) for view in views]
        peaks += [(parts.patch_map.max(), np.nan if parts.head_map is None else parts.head_map.max()) for parts in judged]
        basis = views[: max(0, made_up - len(normal))]
        normal += [parts.values for parts in judged]
        for _ in range(DRAWN_PER_IMAGE):
            broken = [_with_defect(view, rng) for view in basis]
            drawn += _parts(model, _look_again(looks, basis, broken, [view.text for view in basis]))
        if language.guided:
            swapped = [(view, text) for view in basis if (text := _other_caption(language, view.text, rng)) is not None]
            others = [view for view, _ in swapped]
            wrong += _parts(model, _look_again(looks, others, [view.image for view in others], [text for _, text in swapped]))
        report(len(normal))
    return Evidence(*(np.reshape(values, (-1, width)).astype(np.float64) for values, width in ((normal, 3), (peaks, 2), (drawn, 3), (wrong, 3))))


def _look_again(looks: Looks, views: Sequence[View], images: Sequence[np.ndarray], texts: Sequence[torch.Tensor]) -> list[View]:
    if not views:
        return []
    stacked = torch.stack([text.to(view.text) for text, view in zip(texts, views, strict=True)])
    return look_by(looks.encoder, looks.settings, images, lambda _: stacked)


def _parts(model: Model, views: Sequence[View]) -> list[np.ndarray]:
    return [judge(model.detector, view, model.detector.language.weights_of(view.text.cpu())).values for view in views]


def _with_defect(view: View, rng: np.random.Generator) -> np.ndarray:
    """The view's image (H, W, 3) uint8 with a defect in the kept area, rather visible than not."""
    allowed = patch_mask_to(view.keep, *view.image.shape[:2])
    return defects.draw(view.image, rng, allowed=allowed, strength=float(rng.random() ** 0.5)).image


def _other_caption(language: Language, text: torch.Tensor, rng: np.random.Generator) -> torch.Tensor | None:
    """The embedding (D,) of a stored caption that says something else, or None where none does."""
    others = (language.text != text.cpu()).any(1).nonzero().flatten().tolist()
    return language.text[int(rng.choice(others))] if others else None
