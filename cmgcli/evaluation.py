"""How good is a model on labelled images: metrics at every threshold, and the rates at the calibrated one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from cmgcli.calibrate import choose_calibration
from cmgcli.dataset import Record, test_records, training_records
from cmgcli.errors import DatasetError
from cmgcli.exhibits import Worst, exhibit, shrink
from cmgcli.figures import evaluation_of, labelled
from cmgcli.images import read_mask
from cmgcli.loader import BATCH
from cmgcli.metrics import PixelTally
from cmgcli.model import MAP_CALM, MAP_STRANGE, Model
from cmgcli.pipeline import Progress, fit_records, read_records
from cmgcli.report import Case, Evaluation

MAP_SIDE = 256
PAPER_GAIN = 0.1681
VARIANTS = {"baseline": (False, False), "+CMER": (True, False), "+CMLE": (False, True), "CMG": (True, True)}


def evaluate(
    model: Model,
    images: Path | str,
    labels: Path | str | None = None,
    *,
    exhibits: int = 0,
    batch_size: int = BATCH,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the labelled test images and compare.

    Args:
        labels: dataset file with a `label` column, and `mask` where pixels are judged; None for a folder layout. Of a file
            with splits only ``test`` is used.
        exhibits: how many of the worst misses and of the worst false alarms are kept as pictures.
    Raises:
        DatasetError: no label, or only one class; says which. A mask that has not the size of its image.
    """
    records = read_records(images, labels, allow_missing=allow_missing)
    test = labelled(test_records(records), labels or images)
    return evaluate_records(model, test, exhibits=exhibits, batch_size=batch_size, progress=progress)


def evaluate_records(
    model: Model, records: Sequence[Record], *, exhibits: int = 0, batch_size: int = BATCH, progress: Progress | None = None
) -> Evaluation:
    """`evaluate` on records that are read and checked. Maps and masks are compared at most 256 pixels a side.

    One image after the other: only rows, counts and the exhibits are kept.
    """
    report = progress or (lambda stage, done, total: None)
    captions = {record.path: record.text for record in records}
    pixels = PixelTally() if any(record.mask for record in records) else None
    worst = Worst(exhibits)
    cases = []
    maps = pixels is not None or exhibits > 0
    inspections = model.inspect([record.path for record in records], captions, batch_size=batch_size, maps=maps)
    for done, (record, inspection) in enumerate(zip(records, inspections, strict=True), 1):
        report("scoring", done, len(records))
        case = Case(record, inspection.row)
        cases.append(case)
        if inspection.row.error:
            continue
        if pixels is not None and (record.mask or not record.label):  # an anomaly without a mask tells nothing about pixels
            heights = inspection.anomaly_map
            small = shrink(heights, MAP_SIDE)
            pixels.add(_small_mask(record, heights.shape, small.shape), small)
        worst.offer(case, partial(exhibit, case, inspection.view.image, inspection.anomaly_map, low=MAP_CALM, high=MAP_STRANGE))
    calibration = model.detector.calibration
    promised = calibration.promised_rate if len(calibration.scores) else None
    return evaluation_of(cases, worst, threshold=calibration.threshold(), promised=promised, pixels=pixels)


def _small_mask(record: Record, full: tuple[int, int], small: tuple[int, int]) -> np.ndarray:
    """The mask (H', W') bool at the size of the small map; a pixel is set where any of its pixels is."""
    if record.mask is None:
        return np.zeros(small, bool)
    mask = read_mask(record.mask)
    if mask.shape != full:
        raise DatasetError(
            f"mask {record.mask} of {record.file_name}: expected the size of its image, {full[1]} x {full[0]}, "
            f"got {mask.shape[1]} x {mask.shape[0]}; draw it on the image as it is, or leave the column mask empty"
        )
    return cv2.resize(mask.astype(np.float32), small[::-1], interpolation=cv2.INTER_AREA) > 0


def ablate(
    model: Model,
    images: Path | str,
    labels: Path | str | None = None,
    *,
    adapt_steps: int = 0,
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
            variant = _variant(train, model, cmer, cmle, steps, stage)
            table[title] = evaluate_records(variant, test, progress=stage)
    return table


def _variant(train: Sequence[Record], model: Model, cmer: bool, cmle: bool, steps: int, progress: Progress | None) -> Model:
    method = choose_calibration(None, head=steps > 0)
    settings = replace(model.detector.settings, cmer=cmer, cmle=cmle, adapt_steps=steps, calibration=method)
    return fit_records(train, model.encoder, settings, false_alarm=model.detector.calibration.false_alarm, progress=progress)
