"""Real photographs, opt-in: ``pytest --real DIR``. A part of the magnetic tiles (Huang, Qiu, Yuan 2020) through everything."""

import csv

import numpy as np
import pytest

import cmgcli
from cmgcli.dataset import caption_lookup, read_dataset

pytestmark = pytest.mark.real


def test_a_part_of_the_magnetic_tiles_runs_through(real_images, tmp_path):
    with (real_images / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    train = [row for row in rows if row["split"] == "train"][::12]
    test = [row for row in rows if row["split"] == "test"][::10]
    part = tmp_path / "part.csv"
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(train + test)
    model = cmgcli.fit(real_images, part, adapt_steps=40, false_alarm=0.1, allow_missing=True, device="cpu")
    captions = caption_lookup(read_dataset(real_images, part, allow_missing=True).records)
    scored = list(model.score([real_images / row["file_name"] for row in test], captions))
    assert len(scored) == len(test)
    assert all(row.error == "" and np.isfinite(row.score) for row in scored)
    assert {row["label"] for row in test} == {"0", "1"}
