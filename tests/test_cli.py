"""The commands as a shell sees them: data on stdout, words on stderr, exit codes, one-line errors."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from cmgcli.rows import COLUMNS


def cmg(*arguments: object, stdin: str | bytes | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "200"}
    data = stdin.encode() if isinstance(stdin, str) else stdin
    command = [sys.executable, "-m", "cmgcli", *map(str, arguments)]
    run = subprocess.run(command, input=data, capture_output=True, env=environment, check=False)
    run.out, run.err = run.stdout.decode(), run.stderr.decode()
    assert "Traceback" not in run.err, run.err
    return run


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_help_names_every_command():
    run = cmg("--help")
    assert run.returncode == 0
    for command in ("demo", "fit", "score", "mask", "eval"):
        assert command in run.out
        assert cmg(command, "--help").returncode == 0


def test_demo_fit_score_eval(tmp_path):
    line, model = tmp_path / "line", tmp_path / "model.cmg"
    assert cmg("demo", line, "--train", 12, "--test", 12, "--size", 64).returncode == 0
    fitted = cmg("fit", "--images", line, "--captions", line / "metadata.csv", "--out", model, "--adapt-steps", 2)
    assert fitted.returncode == 0, fitted.err
    assert fitted.out == ""
    assert "6 calibration images cannot promise a false-alarm rate of 0.01" in fitted.err
    assert "built-in encoder" in fitted.err
    scored = cmg("score", "--model", model, "--captions", line / "metadata.csv", line / "images")
    assert scored.returncode == 0, scored.err
    rows = table(scored.out)
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 24
    assert scored.err == ""
    gate = ("eval", "--model", model, "--images", line, "--labels", line / "metadata.csv", "--json", tmp_path / "e.json")
    evaluated = cmg(*gate, "--min-auroc", 0)
    assert evaluated.returncode == 0, evaluated.err
    assert "image AUROC" in evaluated.out and "AUPRO" in evaluated.out
    numbers = json.loads((tmp_path / "e.json").read_text())
    assert 0 <= numbers["image_auroc"] <= 1 and numbers["images"] == 12
    failed = cmg(*gate, "--min-auroc", 1.1)
    assert failed.returncode == 1
    assert "gate failed: image AUROC" in failed.err


def test_demo_refuses_to_overwrite(small_line):
    run = cmg("demo", small_line)
    assert run.returncode == 2
    assert run.err.count("\n") == 1 and "metadata.csv" in run.err


def test_score_reads_standard_input_and_keeps_order(small_line, model_file):
    paths = sorted(str(p) for p in (small_line / "images").glob("test*"))[::-1]
    lines = cmg("score", "--model", model_file, "-", stdin="\n".join(paths) + "\n")
    assert [row["file"] for row in table(lines.out)] == paths
    nul = cmg("score", "--model", model_file, "-0", "-", stdin="\0".join(paths))
    assert nul.out == lines.out


def test_a_truncated_image_among_good_ones(small_line, model_file, tmp_path):
    good = sorted((small_line / "images").glob("test*"))[:3]
    for path in good:
        shutil.copy(path, tmp_path / path.name)
    bad = tmp_path / good[1].name
    bad.write_bytes(bad.read_bytes()[:-500])
    whole = table(cmg("score", "--model", model_file, *good).out)
    run = cmg("score", "--model", model_file, tmp_path, tmp_path / "missing.png")
    rows = table(run.out)
    assert run.returncode == 3
    assert "2 inputs could not be read" in run.err
    assert [bool(row["error"]) for row in rows] == [False, True, False, True]
    assert rows[1]["score"] == "" and rows[1]["anomalous"] == ""
    for i in (0, 2):
        assert float(rows[i]["score"]) == pytest.approx(float(whole[i]["score"]), rel=1e-4)


def test_resume_goes_on_after_the_last_whole_row(small_line, model_file, tmp_path):
    out = tmp_path / "scores.csv"
    images = sorted((small_line / "images").glob("test*"))[:6]
    command = ("score", "--model", model_file, "--batch-size", 1, "--out", out, "--resume")
    assert cmg(*command, *images).returncode == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:10])
    assert cmg(*command, *images).returncode == 0
    assert out.read_bytes() == whole
    wrong(cmg(*command, *images[1:]), "--resume", "give the same inputs")
    wrong(cmg("score", "--model", model_file, "--resume", images[0]), "--out")


def test_fail_on_anomaly(small_line, model_file, tmp_path):
    noise = tmp_path / "noise.png"
    cv2.imwrite(str(noise), cv2.randu(cv2.UMat(96, 96, cv2.CV_8UC3).get(), 0, 255))
    scored = cmg("score", "--model", model_file, noise)
    flagged = table(scored.out)[0]["anomalous"] == "1"
    assert scored.returncode == 0
    assert flagged
    assert cmg("score", "--model", model_file, "--fail-on-anomaly", noise).returncode == 1


def test_maps_have_the_size_of_their_image(small_line, model_file, tmp_path):
    image = sorted((small_line / "images").glob("test*"))[0]
    assert cmg("score", "--model", model_file, "--maps", tmp_path / "maps", image, image).returncode == 0
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == [f"{image.stem}-2_map.png", f"{image.stem}_map.png"]
    assert cv2.imread(str(tmp_path / "maps" / names[0])).shape == cv2.imread(str(image)).shape


def test_mask_writes_three_pictures_per_image_and_a_summary(small_line, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((small_line / "images").glob("test*"))[:2]:
        shutil.copy(path, few)
    (few / "broken.png").write_bytes(b"")
    run = cmg("mask", "--images", few, "--caption", "a photo of a brass gear", "--out", tmp_path / "out")
    assert run.returncode == 3
    rows = table((tmp_path / "out" / "summary.csv").read_text())
    assert [bool(row["error"]) for row in rows] == [True, False, False]
    for row in rows[1:]:
        stem = Path(row["file"]).stem
        keep = cv2.imread(str(tmp_path / "out" / f"{stem}_keep.png"), cv2.IMREAD_UNCHANGED)
        assert keep.shape == (96, 96) and set(keep.ravel().tolist()) <= {0, 255} and keep.any()
        assert (tmp_path / "out" / f"{stem}_relevance.png").exists() and (tmp_path / "out" / f"{stem}_overlay.png").exists()
        assert float(row["entropy_after"]) <= float(row["entropy_before"])


def test_config_file_and_command_line(small_line, tmp_path):
    config = tmp_path / "cmg.yaml"
    config.write_text("false-alarm: 0.2\nadapt: false\ncmle: false\n")
    run = cmg("fit", "--images", small_line, "--captions", small_line / "metadata.csv", "--out", tmp_path / "m.cmg", "--config", config)
    assert run.returncode == 0, run.err
    assert "at most 0.2 of good images" in run.err
    config.write_text("false_alrm: 0.2\n")
    run = cmg("fit", "--images", small_line, "--captions", small_line / "metadata.csv", "--config", config)
    assert run.returncode == 2
    assert "unknown key false_alrm; did you mean false_alarm?" in run.err


def wrong(run: subprocess.CompletedProcess, *words: str) -> None:
    assert run.returncode == 2
    assert run.out == ""
    assert run.err.startswith("cmg: ") and run.err.count("\n") == 1
    for word in words:
        assert word in run.err


def test_wrong_input_is_one_line_with_the_remedy(small_line, tmp_path):
    captions = tmp_path / "captions.csv"
    captions.write_text("file_name,txt\nimages/a.png,a gear\n")
    wrong(cmg("fit", "--images", small_line, "--captions", captions), "captions.csv", "text", "txt")
    wrong(cmg("fit", "--images", tmp_path / "nowhere", "--captions", captions), "nowhere")
    wrong(cmg("score", "--model", captions, "x.png"), "not a cmg model", "cmg fit")
    wrong(cmg("score", "--model", tmp_path / "none.cmg", "x.png"), "no model", "cmg fit")
    wrong(cmg("fit", "--images", small_line), "no captions", "--captions")
    wrong(cmg("fit", "--images", small_line, "--caption", "x", "--encoder", "ViT-B16/openai"), "did you mean ViT-B-16")
    wrong(cmg("fit", "--images", small_line, "--caption", "x", "--keep", "half"), "--keep")
    wrong(cmg("fit", "--images", small_line, "--caption", "x", "--out", tmp_path / "no" / "m.cmg"), "does not exist")


def test_eval_needs_labels_of_both_kinds(small_line, model_file, tmp_path):
    header, *lines = (small_line / "metadata.csv").read_text().splitlines()
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join([header, *(line for line in lines if ",test,0," in line)]) + "\n")
    run = cmg("eval", "--model", model_file, "--images", small_line, "--labels", labels, "--allow-missing")
    assert run.returncode == 2
    *listed, last = run.err.splitlines()
    assert len(listed) == 30 and all(line.startswith("cmg: left out: ") for line in listed)
    assert "found only label 0" in last


def test_usage_errors_exit_with_2():
    assert cmg("score").returncode == 2
    assert cmg("fit", "--imges", "x").returncode == 2
    assert cmg("fly").returncode == 2


def test_a_closed_pipe_is_silent(small_line, model_file):
    command = f'find "{small_line}/images" | "{sys.executable}" -m cmgcli score --model "{model_file}" --batch-size 1 - | head -n 2'
    run = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert len(run.stdout.splitlines()) == 2


def test_version_names_what_matters():
    run = cmg("--version")
    assert run.returncode == 0
    assert "cmgcli" in run.out and "torch" in run.out
