"""How good is a model on labelled images: metrics at every threshold, and the rates at the calibrated one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from cmgcli.calibrate import choose_calibration
from cmgcli.dataset import Record, mask_of, test_records
from cmgcli.errors import DatasetError, ImageError
from cmgcli.exhibits import Worst, exhibit, shrink
from cmgcli.figures import RATES, confusion_of, evaluation_of, labelled
from cmgcli.known import known_records
from cmgcli.loader import BATCH
from cmgcli.looks import BUDGET, FRAME_FILLED, Looks
from cmgcli.metrics import PixelTally
from cmgcli.model import MAP_CALM, MAP_STRANGE, Inspection, Model, nothing_discarded
from cmgcli.naming import Namer, Phrase
from cmgcli.pipeline import Progress, fit_records, read_records, records_to_fit
from cmgcli.report import Case, Evaluation
from cmgcli.rows import Row
from cmgcli.words import counted

logger = logging.getLogger(__name__)

MAP_SIDE = 256
PAPER_GAIN = 0.1681
VARIANTS = {"baseline": (False, False), "+CMER": (True, False), "+CMLE": (False, True), "CMG": (True, True)}


def evaluate(
    model: Model,
    images: Path | str,
    labels: Path | str | None = None,
    *,
    exhibits: int = 0,
    phrases: Sequence[Phrase] | None = None,
    batch_size: int | str = BATCH,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the labelled test images and compare.

    Args:
        labels: dataset file with a `label` column, and `mask` where pixels are judged; None for a folder layout. Of a file
            with splits only ``test`` is used.
        exhibits: how many of the worst misses and of the worst false alarms are kept as pictures.
        phrases: defects to name bad images by, and to compare with the labels' column `defect`; see `naming`.
    Raises:
        DatasetError: no label, or only one class; says which. A mask that has not the size of its image.
    """
    records = read_records(images, labels, allow_missing=allow_missing)
    test = labelled(test_records(records), labels or images)
    return evaluate_records(model, test, exhibits=exhibits, phrases=phrases, batch_size=batch_size, progress=progress)


def evaluate_records(
    model: Model,
    records: Sequence[Record],
    *,
    exhibits: int = 0,
    phrases: Sequence[Phrase] | None = None,
    batch_size: int | str = BATCH,
    progress: Progress | None = None,
    looks: Looks | None = None,
) -> Evaluation:
    """`evaluate` on records that are read and checked. Maps and masks are compared at most 256 pixels a side.

    One image after the other: only rows, counts and the exhibits are kept.

    looks: views of the records that another model of the same encoder, relevance and keep may have made before.
    """
    report = progress or (lambda stage, done, total: None)
    settings = model.detector.settings
    looks = looks.under(settings) if looks else Looks(records, model.encoder, settings, batch_size=batch_size, budget=0)
    pixels = PixelTally() if any(record.mask for record in records) else None
    worst = Worst(exhibits)
    namer = None if phrases is None else Namer(model.encoder, phrases)
    cases, named, empty = [], [], 0
    maps = pixels is not None or exhibits > 0 or namer is not None
    for done, (record, inspection) in enumerate(zip(records, _inspections(model, looks, maps), strict=True), 1):
        report("scoring", done, len(records))
        truth = None if record.mask is None or inspection.row.error else mask_of(record, inspection.view.image.shape[:2])
        if truth is not None and record.label and not truth.any():
            truth, empty = None, empty + 1
        case = Case(record, inspection.row, None if truth is None else float(truth.mean()))
        cases.append(case)
        if inspection.row.error:
            continue
        if pixels is not None and (truth is not None or not record.label):  # an anomaly without a mask tells nothing about pixels
            small = shrink(inspection.anomaly_map, MAP_SIDE)
            pixels.add(np.zeros(small.shape, bool) if truth is None else _small_mask(truth, small.shape), small)
        if namer is not None and case.anomalous and record.defect:
            named.append((record.defect, namer.defects(inspection)[0].name))
        worst.offer(case, partial(exhibit, case, inspection.view.image, inspection.anomaly_map, low=MAP_CALM, high=MAP_STRANGE))
    if empty:
        logger.warning("%s of bad images mark%s nothing: left out of pixel AUROC and AUPRO", counted(empty, "mask"), "s" if empty == 1 else "")
    calibration = model.detector.calibration
    count = len(calibration.scores)
    promised = calibration.promised_rate if count else None
    language = model.detector.language
    at = {rate: calibration.at(rate) for rate in RATES}
    result = evaluation_of(
        cases, worst, threshold=calibration.threshold(), promised=promised, calibrated=count, method=calibration.method, pixels=pixels,
        thresholds={language.captions[group]: calibration.threshold(group) for group in calibration.own},
        anomalous_at=lambda case, rate: case.row.score > at[rate].threshold(language.group_of(case.row.caption)),
    )  # fmt: skip
    return result if namer is None else replace(result, naming=confusion_of(namer.names, named))


def _inspections(model: Model, looks: Looks, maps: bool) -> Iterator[Inspection]:
    for numbers, views in looks.of(range(len(looks.records))):
        for i, view in zip(numbers, views, strict=True):
            name, text = str(looks.records[i].path), looks.records[i].text
            if isinstance(view, ImageError):
                yield Inspection(Row(file=name, error=str(view)))
            else:
                yield model.inspection(name, view, text, looks.text, maps)


def _small_mask(mask: np.ndarray, small: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) bool at the size of the small map; a pixel is set where any of its pixels is."""
    return cv2.resize(mask.astype(np.float32), small[::-1], interpolation=cv2.INTER_AREA) > 0


def ablate(
    model: Model,
    images: Path | str,
    labels: Path | str | None = None,
    *,
    adapt_steps: int = 0,
    allow_missing: bool = False,
    batch_size: int | str = BATCH,
    progress: Progress | None = None,
) -> dict[str, Evaluation]:
    """Fit and evaluate baseline, +CMER, +CMLE and CMG with the model's other settings, and each with the head too.

    The variants that keep the same patches share what the encoder sees of the images, and the head, which language does not touch.

    Args:
        labels: a dataset file with both splits: train to fit, test to judge.
        adapt_steps: steps of the head in the second half of the table; 0 leaves that half out. Where the model's head has learnt from known bad
            images, these do too.
    Raises:
        DatasetError: no image to fit on, or one that is there to judge by too.
    """
    records = read_records(images, labels, allow_missing=allow_missing)
    train = records_to_fit(records)
    known = known_records(records) if adapt_steps and model.detector.settings.known_defects else ()
    test = labelled(test_records(records), labels or images)
    if not train:
        raise DatasetError(f"{labels or images}: the ablation fits its own models and needs rows with split train")
    if {record.path for record in train} & {record.path for record in test}:
        raise DatasetError(f"{labels or images}: the ablation fits its own models, and would judge them by images they have seen: give each row its split, train or test")
    settings = model.detector.settings
    if nothing_discarded(replace(settings, cmer=True)):
        logger.warning(FRAME_FILLED)
    seen = {
        cmer: [Looks(part, model.encoder, replace(settings, cmer=cmer), batch_size=batch_size, budget=BUDGET // 4) for part in (train, test)] for cmer in (False, True)
    }
    table = {}
    for steps in (0, adapt_steps) if adapt_steps else (0,):
        calibration, heads = choose_calibration(None, head=steps > 0), {}
        for name, (cmer, cmle) in VARIANTS.items():
            title = f"{name} with head" if steps else name
            stage = (lambda what, done, total, title=title: progress(f"{title}: {what}", done, total)) if progress else None
            bad = known if steps else ()
            changed = replace(settings, cmer=cmer, cmle=cmle, adapt_steps=steps, known_defects=len(bad), calibration=calibration)
            rate, discards = model.detector.calibration.false_alarm, cmer and not nothing_discarded(changed)
            variant = fit_records(
                train, model.encoder, changed, false_alarm=rate, batch_size=batch_size, known=bad, progress=stage, looks=seen[cmer][0], head=heads.get(discards)
            )
            heads[discards] = variant.detector.head
            table[title] = evaluate_records(variant, test, progress=stage, looks=seen[cmer][1])
    return table
