"""Fit and mask: the one place where encoder, CMER, CMLE, head and calibration meet.

    model = cmgcli.fit("images", "captions.csv")
    for row in model.score(["part.png"]):
        print(row.file, row.score, row.anomalous)
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmgcli.adapt import Crop, Scene, draw_crops, train_head
from cmgcli.calibrate import Split, calibrate, check_rate, choose_calibration, folds, split
from cmgcli.clip import from_anywhere
from cmgcli.cmer import WINDOW, check_keep, entropy
from cmgcli.cmle import check_latent_dim, check_ridge
from cmgcli.crossfit import cross_fit
from cmgcli.dataset import Record, known_bad_records, read_dataset, training_records
from cmgcli.detector import Settings
from cmgcli.encoder import Encoder, choose_device, choose_precision, load_encoder
from cmgcli.errors import DatasetError, ImageError, SettingsError, check_batch_size, check_count
from cmgcli.head import DefectHead
from cmgcli.heldout import accustom, drawn_auroc, gather, gather_folds, joined
from cmgcli.known import SHARE, KnownDefects, known_records, shown_defects
from cmgcli.learn import Place, Progress, learn, state_of, with_album
from cmgcli.loader import BATCH, ImageStore, decoded
from cmgcli.looks import FRAME_FILLED, Looks, ground_of
from cmgcli.model import Model, nothing_discarded
from cmgcli.precision import fast_bfloat16
from cmgcli.pretrained_head import load_head
from cmgcli.projection import check_projection
from cmgcli.rows import MaskRow
from cmgcli.tiles import check_tiling
from cmgcli.view import View, best_other, choose_relevance, images_at_once, look, views_of
from cmgcli.words import counted, misfit

logger = logging.getLogger(__name__)

STEPS_A_TURN = 4  # of the head's training, for one more image to read where memory does not hold them all
GO_ON_RATE = 1e-3  # for a head that has learnt; a fresh one takes twice as much


def read_records(
    images: Path | str, captions: Path | str | None = None, *, caption: str | None = None, allow_missing: bool = False
) -> tuple[Record, ...]:
    """`dataset.read_dataset`; what `allow_missing` leaves out is logged, one warning each."""
    dataset = read_dataset(Path(images), None if captions is None else Path(captions), caption=caption, allow_missing=allow_missing)
    for sentence in dataset.missing:
        logger.warning("left out: %s", sentence)
    return dataset.records


def records_to_fit(records: Sequence[Record]) -> tuple[Record, ...]:
    """The normal training records without copies, which would let a model judge images that it has seen; what is left out is logged."""
    training = training_records(records)
    sizes = Counter(_size(record.path) for record in training)
    kept: dict[tuple[object, str], Record] = {}
    for record in training:
        kept.setdefault((_content(record.path, alone=sizes[_size(record.path)] == 1), record.text), record)
    if len(kept) < len(training):
        logger.warning("left out: %s with the content of another training image under the same caption", counted(len(training) - len(kept), "file"))
    if twice := len(kept) - len({content for content, _ in kept}):
        logger.warning("%s with the content of another training image under another caption: the false-alarm promise is weaker for it; keep one of the two", counted(twice, "file"))
    return tuple(kept.values())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _content(path: Path, *, alone: bool) -> object:
    """What two files are equal by; a file that cannot be read is itself, and named when it is decoded."""
    try:
        return path if alone else hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return path


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
    known_defects: bool = False,
    adapt_steps: int = 1500,
    false_alarm: float = 0.01,
    calibration: str | None = None,
    relevance: str | None = None,
    keep: float | str = "auto",
    neighbours: int = 4,
    ridge: float = 0.05,
    bank_size: int = 4096,
    latent_dim: int | None = None,
    tile: int | None = None,
    overlap: float = 0.25,
    projection: str = "closed",
    epochs: int = 300,
    batch_size: int | str = BATCH,
    precision: str | None = None,
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
        adapt: train the defect head, for at most ``adapt_steps`` steps. known_defects: it also learns from the labelled bad images of split train
            that have a mask; the threshold still comes from good images alone.
        false_alarm: the promised share of good images called anomalous.
        calibration: split holds images out for the threshold, which then keeps the promise exactly; cross fits on all of
            them and calibrates by K-fold cross-fitting. None: split where the head is trained, else cross.
        relevance: fast, sampled or occlusion; None takes the best that the encoder allows cheaply.
        keep: share of patches that CMER keeps, or auto. neighbours, ridge: see `cmle.structure_matrix`.
        bank_size: patches in memory. latent_dim: truncates the guided space; None keeps all directions.
        tile: images larger than so many pixels a side are also seen in tiles of that side, where CMER keeps something; the
            model then scores in the same tiles. overlap: share of a tile that its neighbours see too. None: no tiles.
        projection: closed (the closed form), or a linear or mlp projection trained for so many epochs; see `projection`.
        precision: of the large matrix products of encoder and head, float32 or bfloat16; None: bfloat16 where the machine is fast at it. It is
            stored in the model, so that every machine scores alike.
        snapshot: a file for the state of the trainings; a fit broken off goes on from it. None keeps no state.
        progress: called with a stage, what is done of it and its total.
    Raises:
        CmgError: input, settings or weights that cannot be used.
    """
    check_rate(false_alarm)
    check_batch_size(batch_size)
    for name, value, least in (("neighbours", neighbours, 0), ("bank size", bank_size, 1), ("epochs", epochs, 1), ("adapt steps", adapt_steps, 0)):
        check_count(name, value, least)
    check_count("seed", seed, 0, 2**63 - 1)
    if known_defects and not (adapt and adapt_steps):
        raise SettingsError("known defects are for the defect head, which this fit leaves out; train it, or do without them")
    every = read_records(images, captions, caption=caption, allow_missing=allow_missing)
    records = records_to_fit(every)
    if not records:
        raise DatasetError(f"{captions or images}: no normal training image; expected rows with split train (or none) and label 0 (or none)")
    known = _known(every, asked=known_defects, adapt=adapt)
    device = choose_device(device)
    tower = load_encoder(encoder, device=device, precision=choose_precision(device, precision))
    check_tiling(tile, overlap, tower.image_size // tower.grid[0])
    settings = Settings(
        encoder=from_anywhere(encoder),
        encoder_sha256=tower.sha256,
        layers=tower.feature_layers,
        cmer=cmer,
        cmle=cmle,
        ground=ground_of({record.path: record.text for record in records}, tower) if keep == "auto" else "by image",
        relevance=choose_relevance(tower, relevance),
        keep=check_keep(keep),
        neighbours=neighbours,
        ridge=check_ridge(ridge),
        bank_size=bank_size,
        latent_dim=check_latent_dim(latent_dim, tower.dim),
        tile=tile,
        overlap=overlap,
        adapt_steps=adapt_steps if adapt else 0,
        known_defects=len(known),
        calibration=choose_calibration(calibration, head=adapt),
        projection=check_projection(projection),
        epochs=epochs,
        seed=seed,
        encoder_precision=tower.precision,
        precision=precision or ("bfloat16" if fast_bfloat16(device) else "float32"),
    )
    looks = Looks(records, tower, settings, batch_size=batch_size)
    model = fit_records(records, tower, settings, false_alarm=false_alarm, batch_size=batch_size, known=known, snapshot=snapshot, progress=progress, looks=looks)
    if nothing_discarded(settings):
        logger.warning(FRAME_FILLED)
    if count := looks.seen.count(2):
        logger.warning("%s", misfit(count, len(records) - looks.seen.count(0), records[looks.seen.index(2)].file_name))
    return model


def _known(records: Sequence[Record], *, asked: bool, adapt: bool) -> tuple[Record, ...]:
    """The known bad images that the head is to learn from; those that lie idle are told of."""
    if asked:
        return known_records(records)
    if adapt and (idle := sum(record.mask is not None for record in known_bad_records(records))):
        logger.warning("left out: %s of split train labelled bad, with masks; --known-defects lets the defect head learn from them", counted(idle, "image"))
    return ()


def fit_records(
    records: Sequence[Record],
    encoder: Encoder,
    settings: Settings,
    *,
    false_alarm: float,
    batch_size: int | str = BATCH,
    known: Sequence[Record] = (),
    snapshot: Path | None = None,
    progress: Progress | None = None,
    looks: Looks | None = None,
    head: DefectHead | None = None,
) -> Model:
    """`fit` on records that are read and an encoder that is loaded: learn, train the head, weigh the parts, calibrate.

    known: bad images that the head learns from too; see `known.known_records`.
    looks: views of the records that were made before with the same encoder, relevance and keep; None makes them.
    head: that of another fit on these looks, known images, rate and seed, which would be trained alike here; None trains one, if there is to be one.
    """
    report = progress or (lambda stage, done, total: None)
    looks = looks.under(settings) if looks else Looks(records, encoder, settings, batch_size=batch_size)
    if settings.calibration == "cross" and len(records) > 1:
        return with_album(cross_fit(looks, false_alarm=false_alarm, snapshot=snapshot, report=report), looks)
    parts = split(len(records), false_alarm=false_alarm, seed=settings.seed)

    # the calibration images must not be touched here, or the promise of the threshold would be void
    basis, held = looks, (parts.tune,)  # what tells how good images score, in folds each of which is judged by a model that has not seen it
    if not parts.tune:
        basis = Looks([records[i] for i in parts.fit], encoder, settings, batch_size=batch_size, mirrored=True)
        held = folds(len(parts.fit), seed=settings.seed) if len(parts.fit) > 1 else ((0,),)
    crossed = [sorted(set(parts.fit) - {parts.fit[i] for i in fold}) for fold in held] if len(held) > 1 else []
    learners = learn(looks, [parts.fit, *crossed], report)
    draft, *judges = (learner.draft(false_alarm=false_alarm, snapshot=state_of(snapshot, k), report=report) for k, learner in enumerate(learners))
    numbers = [i for fold in held for i in fold]
    if head is None and settings.adapt_steps > 0:
        head = accustom(_adapt(looks, parts, learners[0].places, known, snapshot, report), basis, numbers, partial(report, "looking at good images"))
    draft, *judges = (replace(model, detector=replace(model.detector, head=head)) for model in (draft, *judges))
    told = partial(report, "weighing the parts of the score")
    model = joined(gather_folds(judges or [draft], basis, held, made_up=len(numbers), report=told)).settle(draft)

    unseen = gather(model, looks, parts.calibration, made_up=0, report=lambda done: report("calibrating the threshold", done, len(parts.calibration)))
    scores = model.detector.blend(unseen.normal)
    groups, fitted = ([model.detector.language.group_of(records[i].text) for i in part] for part in (parts.calibration, parts.fit))
    calibration = calibrate(scores, groups, fitted, false_alarm=false_alarm)
    return with_album(replace(model, detector=replace(model.detector, calibration=calibration)), looks)


def _adapt(
    looks: Looks, parts: Split, places: Sequence[Sequence[Place]], known: Sequence[Record], snapshot: Path | None, report: Progress
) -> DefectHead:
    """Train the head on the fit images and on known bad ones; the tuning ones say when it has learnt enough."""
    chosen = [looks.records[i] for i in parts.fit]
    settings = looks.settings
    store = ImageStore([record.path for record in chosen], seed=settings.seed)
    bad = KnownDefects(known, tile=settings.tile, seed=settings.seed) if known else None

    def piece(i: int, rng: np.random.Generator) -> Scene:
        box, keep = places[i][rng.integers(len(places[i]))]
        return Scene(store[i][box], keep)

    def sample(rng: np.random.Generator, step: int) -> list[Crop]:
        if bad is not None and rng.random() < SHARE:
            return bad.crops(rng, step // STEPS_A_TURN)
        there = store.there(step // STEPS_A_TURN)
        i, donor = (there[k] for k in rng.integers(len(there), size=2))
        return draw_crops(piece(i, rng), piece(donor, rng).image, rng)

    def told(step: int, total: int, loss: float, found: float | None) -> None:
        judged = "" if found is None else f", AUROC of drawn {'and known ' if known else ''}defects {found:.3f}"
        report(f"training the defect head (loss {loss:.2f}{judged})", step, total)

    return train_head(
        sample,
        steps=settings.adapt_steps,
        learning_rate=GO_ON_RATE,
        seed=settings.seed,
        start=load_head(),
        device=looks.encoder.device.type,
        precision=settings.precision,
        validate=drawn_auroc(looks, parts.tune, shown_defects(known, looks) if known else ()) if parts.tune else None,
        snapshot=snapshot,
        snapshot_key=_key([*chosen, *known], settings),
        progress=told,
    )


def _key(chosen: Sequence[Record], settings: Settings) -> str:
    """What a training of the head depends on, as a digest: a snapshot of another fit must not be gone on with."""
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns, record.text) for record in chosen for path in (record.path, record.mask) if path]
    return hashlib.sha256(repr((settings, files)).encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class MaskResult:
    """What CMER makes of one image; without a view where the image could not be read."""

    row: MaskRow
    view: View | None = None
    patches: int = 1  # whose worth together a relevance is


def mask(
    images: Path | str,
    captions: Path | str | None = None,
    *,
    caption: str | None = None,
    encoder: str = "builtin",
    device: str = "auto",
    relevance: str | None = None,
    keep: float | str = "auto",
    batch_size: int | str = BATCH,
    allow_missing: bool = False,
) -> Iterator[MaskResult]:
    """Run CMER alone: one result per record, in order. The arguments are those of `fit`, and are checked at once."""
    keep, batch_size = check_keep(keep), check_batch_size(batch_size)
    records = read_records(images, captions, caption=caption, allow_missing=allow_missing)
    device = choose_device(device)
    tower = load_encoder(encoder, device=device, precision=choose_precision(device))
    return _masked(records, tower, choose_relevance(tower, relevance), keep, batch_size)


def _masked(records: Sequence[Record], tower: Encoder, estimator: str, keep: float | str, batch_size: int | str) -> Iterator[MaskResult]:
    texts = tuple(dict.fromkeys(record.text for record in records))
    number = {text: u for u, text in enumerate(texts)}
    embedded = tower.encode_text(texts)  # (U, D)
    ground = ground_of({record.path: record.text for record in records}, tower) if keep == "auto" else "by image"
    if ground == "no":
        logger.warning(FRAME_FILLED)
    looking = partial(look, tower, layers=tower.feature_layers, relevance=estimator, keep=keep, ground=ground)
    start = 0
    for batch in decoded([record.path for record in records], batch_size=images_at_once(tower, batch_size)):
        rows = records[start : start + len(batch)]
        start += len(batch)
        views = views_of([image for _, image in batch], [embedded[number[record.text]] for record in rows], looking)
        for record, view in zip(rows, views, strict=True):
            if isinstance(view, ImageError):
                yield MaskResult(MaskRow(record.file_name, caption=record.text, error=str(view)))
                continue
            row = _mask_row(record, view, number[record.text], texts, embedded, sharpness=tower.sharpness)
            yield MaskResult(replace(row, estimator=estimator), view, patches=1 if estimator == "fast" and tower.averages else WINDOW**2)


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
