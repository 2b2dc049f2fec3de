"""What a fit learns from normal images that it holds out: the curve of the head's training, and the weights of the score's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from cmgcli import defects
from cmgcli.dataset import Record
from cmgcli.detector import Language, Settings, fit_blend
from cmgcli.encoder import Encoder
from cmgcli.errors import ImageError
from cmgcli.head import DefectHead, head_map, patch_mask_to
from cmgcli.loader import BATCH, decoded
from cmgcli.metrics import auroc
from cmgcli.model import Model, judge, look_by, look_with
from cmgcli.view import View

Progress = Callable[[str, int, int], None]
DRAWN_PER_IMAGE = 2
VALIDATED, VALIDATED_PIXELS = 32, 32_000_000


def read_all(records: Sequence[Record], batch_size: int) -> Iterator[tuple[list[Record], list[np.ndarray]]]:
    """Batches of records with their images; a training image that cannot be read ends the fit, by name."""
    start = 0
    for batch in decoded([record.path for record in records], batch_size=batch_size):
        images = [image for _, image in batch]
        for image in images:
            if isinstance(image, ImageError):
                raise ImageError(f"{image}; a model is fitted on sound images only, mend or remove it")
        yield list(records[start : start + len(batch)]), images
        start += len(batch)


def drawn_auroc(held: Sequence[Record], language: Language, encoder: Encoder, settings: Settings) -> Callable[[DefectHead], float]:
    """What tells a head's AUROC between held-out normal images and the same with a drawn defect each."""
    rng = np.random.default_rng(settings.seed)
    captions = dict(zip(language.captions, language.text, strict=True))
    views, pixels = [], 0
    for rows, images in read_all(held[:VALIDATED], BATCH):
        pixels += sum(image[..., 0].size for image in images)
        texts = torch.stack([captions[r.text] if r.text in captions else encoder.encode_text([r.text])[0].cpu() for r in rows]).to(encoder.device)
        normal = look_by(encoder, settings, images, lambda _, texts=texts: texts)
        views += [*zip(normal, look_by(encoder, settings, [_with_defect(view, rng) for view in normal], lambda _, texts=texts: texts), strict=True)]
        if pixels > VALIDATED_PIXELS:
            break

    def found(head: DefectHead) -> float:
        scores = np.array([[head_map(head, view.image, view.tokens, normal.keep)[0] for view in (normal, drawn)] for normal, drawn in views])
        return auroc(np.repeat([0, 1], len(views)), scores.T.ravel())

    return found


def weigh(model: Model, records: Sequence[Record], mirrored: bool, batch_size: int, report: Progress) -> Model:
    """Standardise and weight the parts on held-out normals, the same with drawn defects, and the same under a wrong caption.

    Where too few images are held out, the mirror images of those that were fitted stand in.
    """
    rng = np.random.default_rng(model.detector.settings.seed)
    language = model.detector.language
    normal, drawn, wrong, peaks = [], [], [], []
    done = 0
    for rows, images in read_all(records, batch_size):
        images = [np.ascontiguousarray(image[:, ::-1]) for image in images] if mirrored else images
        texts = list(model.encoder.encode_text([record.text for record in rows]).cpu())
        views = look_with(model, images, texts)
        weights = [language.weights_of(text) for text in texts]
        judged = [judge(model.detector, view, w) for view, w in zip(views, weights, strict=True)]
        normal += [parts.values for parts in judged]
        peaks += [(parts.patch_map.max(), np.nan if parts.head_map is None else parts.head_map.max()) for parts in judged]
        for _ in range(DRAWN_PER_IMAGE):
            broken = [_with_defect(view, rng) for view in views]
            drawn += [judge(model.detector, v, w).values for v, w in zip(look_with(model, broken, texts), weights, strict=True)]
        if len(language.captions) > 1 and language.guided:
            others = [_other_caption(language, record.text, rng) for record in rows]
            swapped = look_with(model, images, [language.text[u] for u in others])
            wrong += [judge(model.detector, v, language.weights_of(language.text[u])).values for v, u in zip(swapped, others, strict=True)]
        done += len(rows)
        report("weighing the parts of the score", done, len(records))
    reference = np.array([[np.median(column), max(float(np.std(column)), 1e-6)] for column in np.array(peaks).T])
    blend = fit_blend(np.array(normal), [np.array(kind) for kind in (drawn, wrong) if kind])
    return replace(model, detector=replace(model.detector, blend=blend, map_reference=reference))


def _with_defect(view: View, rng: np.random.Generator) -> np.ndarray:
    """The view's image (H, W, 3) uint8 with a defect in the kept area, rather visible than not."""
    allowed = patch_mask_to(view.keep, *view.image.shape[:2])
    return defects.draw(view.image, rng, allowed=allowed, strength=float(rng.random() ** 0.5)).image


def _other_caption(language: Language, text: str, rng: np.random.Generator) -> int:
    others = [u for u, caption in enumerate(language.captions) if caption != text]
    return int(rng.choice(others))
