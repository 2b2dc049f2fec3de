"""Fit and mask: the one place where encoder, CMER, CMLE, head and calibration meet.

    model = cmgcli.fit("images", "captions.csv")
    for row in model.score(["part.png"]):
        print(row.file, row.score, row.anomalous)
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmgcli.adapt import Drawn, Scene, draw_defects, train_head
from cmgcli.calibrate import calibrate, split
from cmgcli.cmer import entropy
from cmgcli.cmle import ResidualMoments, guided_space, structure_matrix, uniform_structure
from cmgcli.dataset import Record, read_dataset, training_records
from cmgcli.detector import BankBuilder, Blend, Detector, Language, PatchBank, Settings
from cmgcli.encoder import Encoder, load_encoder
from cmgcli.errors import DatasetError, ImageError
from cmgcli.head import DefectHead, fast_bfloat16
from cmgcli.heldout import Progress, drawn_auroc, read_all, weigh
from cmgcli.loader import BATCH, ImageStore, decoded
from cmgcli.model import Model, look_by
from cmgcli.pretrained_head import load_head
from cmgcli.rows import MaskRow
from cmgcli.view import View, best_other, choose_relevance, look

logger = logging.getLogger(__name__)

FEWEST_TO_TUNE = 4
GO_ON_RATE = 5e-4  # for a head that has learnt; four times as much, right for a fresh one, lets it forget


def read_records(
    images: Path | str, captions: Path | str | None = None, *, caption: str | None = None, allow_missing: bool = False
) -> tuple[Record, ...]:
    """`dataset.read_dataset`; what `allow_missing` leaves out is logged, one warning each."""
    dataset = read_dataset(Path(images), None if captions is None else Path(captions), caption=caption, allow_missing=allow_missing)
    for sentence in dataset.missing:
        logger.warning("left out: %s", sentence)
    return dataset.records


def fit(
    images: Path | str,
    captions: Path | str | None = None,
    *,
    caption: str | None = None,
    encoder: str = "builtin",
    device: str = "auto",
    cmer: bool = True,
    cmle: bool = True,
    adapt: bool = True,
    adapt_steps: int = 400,
    false_alarm: float = 0.01,
    relevance: str | None = None,
    keep: float | str = "auto",
    neighbours: int = 4,
    ridge: float = 0.05,
    bank_size: int = 4096,
    latent_dim: int | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    allow_missing: bool = False,
    snapshot: Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """Learn what normal looks like from normal images and their captions.

    Args:
        images: directory of the images; captions: dataset file, None for a folder layout; caption: one for all images.
        encoder: see `encoder.load_encoder`. device: auto, cpu or cuda.
        cmer, cmle: without them every patch is kept, or every caption says the same; without both: the image-only baseline.
        adapt: train the defect head, for at most ``adapt_steps`` steps.
        false_alarm: the promised share of good images called anomalous.
        relevance: fast, sampled or occlusion; None takes the best that the encoder allows cheaply.
        keep: share of patches that CMER keeps, or auto. neighbours, ridge: see `cmle.structure_matrix`.
        bank_size: patches in memory. latent_dim: truncates the guided space; None keeps all directions.
        snapshot: a file for the state of the head's training; a fit broken off goes on from it. None keeps no state.
        progress: called with a stage, what is done of it and its total.
    Raises:
        CmgError: input, settings or weights that cannot be used.
    """
    records = training_records(read_records(images, captions, caption=caption, allow_missing=allow_missing))
    if not records:
        raise DatasetError(f"{captions or images}: no normal training image; expected rows with split train (or none) and label 0 (or none)")
    tower = load_encoder(encoder, device=device)
    settings = Settings(
        encoder=encoder,
        encoder_sha256=tower.sha256,
        layers=tower.feature_layers,
        cmer=cmer,
        cmle=cmle,
        relevance=choose_relevance(tower, relevance),
        keep=keep,
        neighbours=neighbours,
        ridge=ridge,
        bank_size=bank_size,
        latent_dim=latent_dim,
        adapt_steps=adapt_steps if adapt else 0,
        seed=seed,
        precision="bfloat16" if fast_bfloat16(tower.device.type) else "float32",
    )
    return fit_records(records, tower, settings, false_alarm=false_alarm, batch_size=batch_size, snapshot=snapshot, progress=progress)


def fit_records(
    records: Sequence[Record],
    encoder: Encoder,
    settings: Settings,
    *,
    false_alarm: float,
    batch_size: int = BATCH,
    snapshot: Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """`fit` on records that are read and an encoder that is loaded: split, embed, train the head, blend, calibrate."""
    report = progress or (lambda stage, done, total: None)
    parts = split(len(records), false_alarm=false_alarm, seed=settings.seed)
    chosen = [records[i] for i in parts.fit]
    language, bank, keeps = _embed(chosen, encoder, settings, batch_size, report)
    head = None
    if settings.adapt_steps > 0:
        held = [records[i] for i in parts.tune]
        head = _adapt(chosen, held, keeps, language, encoder, settings, snapshot, report)
    empty = calibrate([], [], false_alarm=false_alarm)
    flat = Blend(np.zeros(3), np.ones(3), np.array([0.5, 0.5, 0.0]))
    draft = Model(Detector(settings, language, bank, head, flat, np.array([[0.0, 1.0]] * 2), empty, len(chosen)), encoder)

    # the calibration images must not be touched here, or the promise of the threshold would be void
    enough = len(parts.tune) >= FEWEST_TO_TUNE
    draft = weigh(draft, [records[i] for i in parts.tune] if enough else chosen, not enough, batch_size, report)
    scores, groups = _calibration_scores(draft, [records[i] for i in parts.calibration], batch_size, report)
    calibration = calibrate(scores, groups, false_alarm=false_alarm)
    return replace(draft, detector=replace(draft.detector, calibration=calibration))


def _embed(
    chosen: Sequence[Record], encoder: Encoder, settings: Settings, batch_size: int, report: Progress
) -> tuple[Language, PatchBank, list[np.ndarray]]:
    """One streaming pass over the fit images: CMLE's moments, the patch bank, and the keep mask (h, w) of each image."""
    names = tuple(dict.fromkeys(record.text for record in chosen))
    number = {name: u for u, name in enumerate(names)}
    text = encoder.encode_text(names).cpu()  # (U, D)
    counts = torch.bincount(torch.tensor([number[record.text] for record in chosen]), minlength=len(names))
    structure = (
        structure_matrix(text, counts, neighbours=settings.neighbours, ridge=settings.ridge) if settings.cmle else uniform_structure(counts)
    )
    moments = ResidualMoments(structure, encoder.dim)
    builder = BankBuilder(len(names) if settings.cmle else 1, budget=settings.bank_size)
    keeps: list[np.ndarray] = []
    on_device = text.to(encoder.device)
    for rows, images in read_all(chosen, batch_size):
        captions = torch.tensor([number[record.text] for record in rows])
        views = look_by(encoder, settings, images, lambda _, c=captions: on_device[c.to(encoder.device)])
        moments.add(torch.stack([view.embedding for view in views]), captions)
        for view, caption in zip(views, captions.tolist(), strict=True):
            builder.add(view.patches, caption if settings.cmle else 0)
            keeps.append(view.keep)
        report("learning from captions and images", len(keeps), len(chosen))
    space = guided_space(moments, latent_dim=settings.latent_dim)
    language = Language(names, text, structure, moments.group_means, space, settings.cmle, settings.neighbours, settings.ridge)
    return language, builder.build(), keeps


def _adapt(
    chosen: Sequence[Record],
    held: Sequence[Record],
    keeps: Sequence[np.ndarray],
    language: Language,
    encoder: Encoder,
    settings: Settings,
    snapshot: Path | None,
    report: Progress,
) -> DefectHead:
    """Train the head on the chosen images; the held-out ones say when it has learnt enough."""
    store = ImageStore([record.path for record in chosen])

    def sample(rng: np.random.Generator) -> Drawn:
        i, donor = (int(k) for k in rng.integers(len(chosen), size=2))
        return draw_defects(Scene(store[i], keeps[i]), store[donor], rng)

    def told(step: int, total: int, loss: float, found: float | None) -> None:
        report(f"training the defect head (loss {loss:.2f}" + (")" if found is None else f", AUROC of drawn defects {found:.3f})"), step, total)

    return train_head(
        sample,
        encoder.width,
        encode=encoder.encode_tokens,
        steps=settings.adapt_steps,
        learning_rate=GO_ON_RATE,
        seed=settings.seed,
        start=load_head(encoder.width),
        device=encoder.device.type,
        validate=drawn_auroc(held, language, encoder, settings) if len(held) >= FEWEST_TO_TUNE else None,
        snapshot=snapshot,
        snapshot_key=_key(chosen, settings),
        progress=told,
    )


def _key(chosen: Sequence[Record], settings: Settings) -> str:
    """What a training of the head depends on, as a digest: a snapshot of another fit must not be gone on with."""
    files = [(str(record.path), record.path.stat().st_size, record.path.stat().st_mtime_ns, record.text) for record in chosen]
    return hashlib.sha256(repr((settings, files)).encode("utf-8", "surrogateescape")).hexdigest()


def _calibration_scores(model: Model, records: Sequence[Record], batch_size: int, report: Progress) -> tuple[list[float], list[int]]:
    scores, groups = [], []
    captions = {record.path: record.text for record in records}
    for row in model.score([record.path for record in records], captions, batch_size=batch_size):
        if row.error:
            raise ImageError(row.error)
        scores.append(row.score)
        known = row.caption in model.detector.language.captions and model.detector.language.guided
        groups.append(model.detector.language.captions.index(row.caption) if known else -1)
        report("calibrating the threshold", len(scores), len(records))
    return scores, groups


@dataclass(frozen=True)
class MaskResult:
    """What CMER makes of one image; without a view where the image could not be read."""

    row: MaskRow
    view: View | None = None


def mask(
    images: Path | str,
    captions: Path | str | None = None,
    *,
    caption: str | None = None,
    encoder: str = "builtin",
    device: str = "auto",
    relevance: str | None = None,
    keep: float | str = "auto",
    batch_size: int = BATCH,
    allow_missing: bool = False,
) -> Iterator[MaskResult]:
    """Run CMER alone: one result per record, in order. The arguments are those of `fit`."""
    records = read_records(images, captions, caption=caption, allow_missing=allow_missing)
    tower = load_encoder(encoder, device=device)
    estimator = choose_relevance(tower, relevance)
    texts = tuple(dict.fromkeys(record.text for record in records))
    number = {text: u for u, text in enumerate(texts)}
    embedded = tower.encode_text(texts)  # (U, D)
    start = 0
    for batch in decoded([record.path for record in records], batch_size=batch_size):
        rows = records[start : start + len(batch)]
        start += len(batch)
        good = [i for i, (_, image) in enumerate(batch) if not isinstance(image, ImageError)]
        wanted = embedded[[number[rows[i].text] for i in good]]  # (b, D)
        views = (
            look(tower, [batch[i][1] for i in good], lambda _, wanted=wanted: wanted, layers=tower.feature_layers, relevance=estimator, keep=keep)
            if good
            else []
        )
        seen = dict(zip(good, views, strict=True))
        for i, record in enumerate(rows):
            if i not in seen:
                yield MaskResult(MaskRow(record.file_name, caption=record.text, error=str(batch[i][1])))
                continue
            row = _mask_row(record, seen[i], number[record.text], texts, embedded, sharpness=tower.sharpness)
            yield MaskResult(replace(row, estimator=estimator), seen[i])


def _mask_row(record: Record, view: View, own: int, texts: Sequence[str], embedded: Tensor, *, sharpness: float) -> MaskRow:
    """The row of an image that was read; `own` is the number of its caption among the run's, with (U, D) embeddings."""
    relevance, kept = torch.from_numpy(view.relevance).view(1, -1), torch.from_numpy(view.keep).view(1, -1)
    other, match_other = best_other(view.whole, embedded, own)
    return MaskRow(
        file=record.file_name,
        match_before=view.match_before,
        match_after=view.match,
        kept=float(view.keep.mean()),
        entropy_before=float(entropy(relevance)),
        entropy_after=float(entropy(relevance, kept)),
        passes=view.passes,
        caption=record.text,
        other_caption="" if other is None else texts[other],
        match_other=match_other,
        doubt=None if other is None else 1 / (1 + math.exp(sharpness * (view.match_before - match_other))),
    )
