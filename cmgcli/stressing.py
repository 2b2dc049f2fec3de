"""A stress run: labelled images as they are and under every change, at the threshold that the model has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from cmgcli.changes import CHANGES, STRENGTHS, changed
from cmgcli.dataset import Record, test_records
from cmgcli.errors import ImageError, SettingsError
from cmgcli.figures import labelled, rate_of
from cmgcli.loader import BATCH, decoded
from cmgcli.model import Model, look_with
from cmgcli.pipeline import Progress, read_records
from cmgcli.stress import Rates, Stress, Trial

FEWEST = 2  # images: a good one and a bad one
_AS_IS = (-1, 0)  # change and strength of the picture as it is


@dataclass(frozen=True)
class _Picture:
    record: Record
    change: int
    strength: int
    image: np.ndarray  # (H, W, 3) uint8


def stress(
    model: Model,
    images: Path | str,
    labels: Path | str | None = None,
    *,
    most: int | None = None,
    seed: int = 0,
    batch_size: int | str = BATCH,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> Stress:
    """Score the labelled test images as they are and under 40 changes; takes 41 times what scoring them takes.

    One image after the other: only counts are kept. An image that cannot be read counts nowhere.

    Args:
        labels: as in `evaluation.evaluate`.
        most: take only so many images, drawn at random with the share of bad ones kept; None: all.
        seed: of the directions and patterns of the changes, and of the draw.
    Raises:
        SettingsError: ``most`` is less than 2. DatasetError: as in `evaluation.evaluate`.
    """
    records = labelled(test_records(read_records(images, labels, allow_missing=allow_missing)), labels or images)
    chosen = drawn(records, most, seed=seed)
    report = progress or (lambda stage, done, total: None)
    texts = tuple(dict.fromkeys(record.text for record in chosen))
    known = dict(zip(texts, model.encoder.encode_text(texts).cpu(), strict=True))
    counts: Counter[tuple[int, int, bool, bool]] = Counter()  # of change, strength, bad, flagged
    sound, done, total = [], 0, len(chosen) * (1 + len(CHANGES) * STRENGTHS)
    for batch in _batches(_pictures(chosen, seed), model.images_at_once(batch_size)):
        for picture, flagged in zip(batch, _flags(model, batch, known), strict=True):
            if (picture.change, picture.strength) == _AS_IS:
                sound.append(picture.record)
            if flagged is not None:
                counts[picture.change, picture.strength, bool(picture.record.label), flagged] += 1
        done += len(batch)
        report("stress", done, total)
    report("stress", total, total)
    labelled(sound, "the images that could be read")
    calibration = model.detector.calibration
    trials = tuple(
        Trial(change.name, change.wording, change.amounts, tuple(_rates(counts, number, strength) for strength in range(1, STRENGTHS + 1)))
        for number, change in enumerate(CHANGES)
    )
    return Stress(
        images=len(sound),
        anomalous=sum(bool(record.label) for record in sound),
        promised=calibration.promised_rate if len(calibration.scores) else None,
        calibrated=len(calibration.scores),
        method=calibration.method,
        untouched=_rates(counts, *_AS_IS),
        trials=trials,
    )


def drawn(records: Sequence[Record], most: int | None, *, seed: int = 0) -> tuple[Record, ...]:
    """At most ``most`` of the records, in their order, with good and bad ones in the share that they have, at least one of each."""
    if most is None or most >= len(records):
        return tuple(records)
    if most < FEWEST:
        raise SettingsError(f"a stress run needs at least a good and a bad image, got {most}; take {FEWEST} or more")
    bad = [i for i, record in enumerate(records) if record.label]
    good = [i for i, record in enumerate(records) if not record.label]
    count = min(max(1, round(most * len(bad) / len(records))), most - 1)
    rng = np.random.default_rng(seed)
    chosen = [*rng.choice(bad, count, replace=False), *rng.choice(good, min(most - count, len(good)), replace=False)]
    return tuple(records[i] for i in sorted(chosen))


def _pictures(records: Sequence[Record], seed: int) -> Iterator[_Picture]:
    """Each image as it is and under each change, one image after the other."""
    number = 0
    for batch in decoded([record.path for record in records], batch_size=1):
        for _, image in batch:
            record = records[number]
            if not isinstance(image, ImageError):
                yield _Picture(record, *_AS_IS, image)
                for k, change in enumerate(CHANGES):
                    for strength in range(1, STRENGTHS + 1):
                        yield _Picture(record, k, strength, changed(image, change, strength, number, seed=seed))
            number += 1


def _batches(pictures: Iterator[_Picture], size: int) -> Iterator[list[_Picture]]:
    batch = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _flags(model: Model, batch: Sequence[_Picture], known: dict[str, Tensor]) -> list[bool | None]:
    """Whether each picture is called anomalous; None where it has no score."""
    views = look_with(model, [picture.image for picture in batch], [known[picture.record.text] for picture in batch])
    rows = [model.inspection("", view, picture.record.text, known, False).row for picture, view in zip(batch, views, strict=True)]
    return [None if row.error else bool(row.anomalous) for row in rows]


def _rates(counts: Counter[tuple[int, int, bool, bool]], change: int, strength: int) -> Rates:
    passed, rejected, missed, found = (counts[change, strength, bad, flagged] for bad in (False, True) for flagged in (False, True))
    return Rates(rate_of(rejected, passed + rejected), rate_of(missed, missed + found))
