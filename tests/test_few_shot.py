"""A handful of good parts: every size fits, and says what its threshold can promise."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cmgcli
from cmgcli.images import write_png

SCRIPT = Path(__file__).parents[1] / "examples" / "few_shot.py"


@pytest.mark.parametrize(("count", "calibrate"), [(1, 0), (2, 1), (4, 2), (8, 4)])
def test_every_size_fits_and_promises_what_its_images_allow(count, calibrate, small_line, tmp_path):
    for i in range(count):
        (tmp_path / f"{i}.png").write_bytes((small_line / "images" / f"train_{i:04d}.png").read_bytes())
    model = cmgcli.fit(tmp_path, caption="a photo of a part", adapt_steps=1, device="cpu")
    calibration = model.detector.calibration
    assert len(calibration.scores) == calibrate and calibration.promised_rate == pytest.approx(1 / (calibrate + 1))
    assert ("no false-alarm promise" in calibration.sentence) == (calibrate == 0)
    write_png(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8))
    (row,) = model.score([tmp_path / "noise.png"])
    assert np.isfinite(row.score) and 0 < row.p_value <= 1


def test_the_learning_curve_of_the_examples_is_drawn(small_line, tmp_path):
    command = [sys.executable, SCRIPT, small_line, "--sizes", "1", "4", "--seeds", "1", "--steps", "0", "--out", tmp_path / "curve"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    with (tmp_path / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["images"] for row in rows] == ["1", "4"] and float(rows[0]["promised_rate"]) == 1
    assert (tmp_path / "curve.png").stat().st_size > 5000 and run.stdout.startswith("images  AUROC")
