"""How good is a model on labelled images: metrics at every threshold, and the rates at the calibrated one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from cmgcli import metrics
from cmgcli.dataset import Record, test_records, training_records
from cmgcli.detector import PARTS
from cmgcli.encoder import Encoder
from cmgcli.errors import DatasetError
from cmgcli.images import read_mask
from cmgcli.loader import BATCH
from cmgcli.model import Model
from cmgcli.pipeline import Progress, fit_records, read_records
from cmgcli.report import Evaluation, Rate

MAP_SIDE = 256
PAPER_GAIN = 0.1681
VARIANTS = {"baseline": (False, False), "+CMER": (True, False), "+CMLE": (False, True), "CMG": (True, True)}


def evaluate(
    model: Model,
    images: Path | str,
    labels: Path | str | None = None,
    *,
    batch_size: int = BATCH,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the labelled test images and compare.

    Args:
        labels: dataset file with a `label` column, and `mask` where pixels are judged; None for a folder layout. Of a file
            with splits only ``test`` is used.
    Raises:
        DatasetError: no label, or only one class; says which.
    """
    records = read_records(images, labels, allow_missing=allow_missing)
    return evaluate_records(model, labelled(test_records(records), labels or images), batch_size=batch_size, progress=progress)


def labelled(records: Sequence[Record], source: Path | str) -> tuple[Record, ...]:
    """The records, all of which have a label and both classes among them, or a DatasetError that says what is missing."""
    bare = [record.file_name for record in records if record.label is None]
    if bare:
        raise DatasetError(f"{source}: {len(bare)} test images have no label, the first is {bare[0]}; fill the column label with 0 or 1")
    classes = {int(record.label > 0) for record in records}
    if classes != {0, 1}:
        found = "no test image" if not classes else f"only label {classes.pop()}"
        raise DatasetError(f"{source}: expected normal (0) and anomalous (1) test images, found {found}")
    return tuple(records)


def evaluate_records(
    model: Model, records: Sequence[Record], *, batch_size: int = BATCH, progress: Progress | None = None
) -> Evaluation:
    """`evaluate` on records that are read and checked. Maps and masks are compared at most 256 pixels a side."""
    report = progress or (lambda stage, done, total: None)
    captions = {record.path: record.text for record in records}
    judge_pixels = any(record.mask for record in records)
    kept, rows, maps, masks = [], [], [], []
    inspections = model.inspect([record.path for record in records], captions, batch_size=batch_size, maps=judge_pixels)
    unreadable = []
    for done, (record, inspection) in enumerate(zip(records, inspections, strict=True), 1):
        report("scoring", done, len(records))
        if inspection.row.error:
            unreadable.append(record.file_name)
            continue
        kept.append(record)
        rows.append(inspection.row)
        if judge_pixels and (record.mask or not record.label):  # an anomaly without a mask tells nothing about pixels
            heights = inspection.anomaly_map
            maps.append(_small(heights))
            masks.append(_small_mask(record.mask, heights.shape, maps[-1].shape))
    truth = np.array([int(record.label > 0) for record in labelled(kept, "what could be read")])
    scores = np.array([row.score for row in rows])
    flagged = np.array([row.anomalous for row in rows], bool)
    best = metrics.f1_max(truth, scores)
    parts = {name: np.array([getattr(row, name) for row in rows], float) for name in PARTS}
    defects = sorted({record.defect for record in kept if record.label and record.defect})
    names = np.array([record.defect for record in kept])
    return Evaluation(
        images=len(kept),
        anomalous=int(truth.sum()),
        unreadable=tuple(unreadable),
        image_auroc=metrics.auroc(truth, scores),
        average_precision=metrics.average_precision(truth, scores),
        f1_max=best.value,
        f1_max_threshold=best.threshold,
        threshold=model.detector.calibration.threshold(),
        false_alarm_rate=_rate(flagged[truth == 0]),
        miss_rate=_rate(~flagged[truth == 1]),
        pixel_auroc=metrics.pixel_auroc(masks, maps) if any(mask.any() for mask in masks) else None,
        aupro=metrics.aupro(masks, maps) if any(mask.any() for mask in masks) else None,
        auroc_by_defect={name: _auroc_against_good(truth, scores, names == name) for name in defects},
        auroc_by_part={name: metrics.auroc(truth, values) for name, values in parts.items() if np.isfinite(values).all()},
    )


def _auroc_against_good(truth: np.ndarray, scores: np.ndarray, chosen: np.ndarray) -> float:
    rows = chosen | (truth == 0)
    return metrics.auroc(truth[rows], scores[rows])


def _rate(hits: np.ndarray) -> Rate:
    low, high = metrics.wilson_interval(int(hits.sum()), len(hits))
    return Rate(float(hits.mean()) if len(hits) else float("nan"), low, high)


def _small(values: np.ndarray) -> np.ndarray:
    height, width = values.shape
    factor = min(1.0, MAP_SIDE / max(height, width))
    return cv2.resize(values, (max(1, round(width * factor)), max(1, round(height * factor))), interpolation=cv2.INTER_AREA)


def _small_mask(path: Path | None, full: tuple[int, int], small: tuple[int, int]) -> np.ndarray:
    """The mask (H', W') bool at the size of the small map; a pixel is set where any of its pixels is."""
    if path is None:
        return np.zeros(small, bool)
    mask = read_mask(path)
    if mask.shape != full:
        raise DatasetError(f"mask {path}: expected the size of its image, {full[1]} x {full[0]}, got {mask.shape[1]} x {mask.shape[0]}")
    return cv2.resize(mask.astype(np.float32), small[::-1], interpolation=cv2.INTER_AREA) > 0


def ablate(
    model: Model,
    images: Path | str,
    labels: Path | str | None = None,
    *,
    adapt_steps: int = 0,
    seed: int = 0,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> dict[str, Evaluation]:
    """Fit and evaluate baseline, +CMER, +CMLE and CMG with the model's other settings, and each with the head too.

    Args:
        labels: a dataset file with both splits: train to fit, test to judge.
        adapt_steps: steps of the head in the second half of the table; 0 leaves that half out.
    """
    records = read_records(images, labels, allow_missing=allow_missing)
    train = training_records(records)
    test = labelled(test_records(records), labels or images)
    if not train:
        raise DatasetError(f"{labels or images}: the ablation fits its own models and needs rows with split train")
    table = {}
    for steps in (0, adapt_steps) if adapt_steps else (0,):
        for name, (cmer, cmle) in VARIANTS.items():
            title = f"{name} with head" if steps else name
            stage = (lambda what, done, total, title=title: progress(f"{title}: {what}", done, total)) if progress else None
            variant = _variant(train, model, cmer, cmle, steps, seed, stage)
            table[title] = evaluate_records(variant, test, progress=stage)
    return table


def _variant(train: Sequence[Record], model: Model, cmer: bool, cmle: bool, steps: int, seed: int, progress) -> Model:
    encoder: Encoder = model.encoder
    return fit_records(
        train,
        encoder,
        replace(model.detector.settings, cmer=cmer, cmle=cmle),
        adapt_steps=steps,
        false_alarm=model.detector.calibration.false_alarm,
        batch_size=BATCH,
        seed=seed,
        progress=progress,
    )
