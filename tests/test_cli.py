"""The commands as a shell sees them: data on stdout, words on stderr, exit codes, one-line errors."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from shell import cmg, cmg_here, heed_interrupts, table, wrong

from cmgcli import contact, pictures
from cmgcli.calibrate import calibrate
from cmgcli.rows import COLUMNS, read_scores


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
    assert scored.err.count("\n") == 1 and "not fitted on 'a photo of a red plastic bottle cap' (4 images)" in scored.err  # held out for the threshold
    gate = ("eval", "--model", model, "--images", line, "--labels", line / "metadata.csv", "--json", tmp_path / "e.json")
    evaluated = cmg(*gate, "--min-auroc", 0)
    assert evaluated.returncode == 0, evaluated.err
    assert "image AUROC" in evaluated.out and "AUPRO" in evaluated.out
    numbers = json.loads((tmp_path / "e.json").read_text())
    assert 0 <= numbers["image_auroc"] <= 1 and numbers["images"] == 12
    failed = cmg(*gate, "--max-miss", 0)
    assert failed.returncode == 1
    assert "gate failed: miss rate" in failed.err
    (judged,) = json.loads((tmp_path / "e.json").read_text())["gates"]
    assert judged["figure"] == "miss rate" and judged["limit"] == 0 and judged["passed"] is False


def test_what_demo_says_next_is_what_a_shell_takes(tmp_path):
    run = cmg_here("demo", tmp_path / "my line", "--train", 1, "--test", 2, "--size", 32)
    line = str(tmp_path / "my line")
    assert shlex.split(run.err.splitlines()[-1]) == ["cmg:", "next:", "cmg", "fit", "--images", line, "--captions", f"{line}/metadata.csv"]


def test_demo_refuses_to_overwrite(small_line):
    run = cmg_here("demo", small_line)
    assert run.returncode == 2
    assert run.err.count("\n") == 1 and "metadata.csv" in run.err


def test_score_reads_standard_input_and_keeps_order(small_line, model_file):
    paths = sorted(str(p) for p in (small_line / "images").glob("test*"))[::-1]
    lines = cmg("score", "--model", model_file, "-", stdin="\n".join(paths) + "\n")
    assert [row["file"] for row in table(lines.out)] == paths
    nul = cmg("score", "--model", model_file, "-0", "-", stdin="\0".join(paths))
    assert nul.out == lines.out
    forgotten = cmg("score", "--model", model_file, "-", stdin="\0".join(paths))
    assert forgotten.returncode == 3
    assert [bool(row["error"]) for row in table(forgotten.out)] == [True]


def test_a_truncated_image_among_good_ones(small_line, model_file, tmp_path):
    good = sorted((small_line / "images").glob("test*"))[:3]
    for path in good:
        shutil.copy(path, tmp_path / path.name)
    bad = tmp_path / good[1].name
    bad.write_bytes(bad.read_bytes()[:-500])
    whole = table(cmg_here("score", "--model", model_file, *good).out)
    run = cmg_here("score", "--model", model_file, tmp_path, tmp_path / "missing.png")
    rows = table(run.out)
    assert run.returncode == 3
    assert "2 inputs could not be read" in run.err
    assert [bool(row["error"]) for row in rows] == [False, True, False, True]
    assert rows[1]["score"] == "" and rows[1]["anomalous"] == ""
    for i in (0, 2):
        assert float(rows[i]["score"]) == pytest.approx(float(whole[i]["score"]), rel=1e-4)


def test_another_rate_needs_no_new_fit(small_line, model_file, tmp_path):
    score = ("score", "--model", model_file, "--captions", small_line / "metadata.csv", small_line / "images")
    plain, wide = cmg_here(*score), cmg_here(*score, "--false-alarm", 0.3)
    assert "at most 0.3 of good images" in wide.err or "about 0.3 of good images" in wide.err
    rows = table(wide.out)
    assert [row["anomalous"] for row in rows] == [str(int(float(row["p_value"]) <= 0.3)) for row in rows]
    assert sum(row["anomalous"] == "1" for row in rows) > sum(row["anomalous"] == "1" for row in table(plain.out))
    drop = {"anomalous": ""}
    assert [row | drop for row in rows] == [row | drop for row in table(plain.out)]
    report = ("eval", "--model", model_file, "--images", small_line, "--labels", small_line / "metadata.csv", "--json", tmp_path / "e.json")
    assert cmg_here(*report, "--false-alarm", 0.2).returncode == 0
    figures = json.loads((tmp_path / "e.json").read_text())
    assert figures["promised_false_alarm_rate"] == 0.2
    for name in ("false_alarm_rate", "miss_rate"):
        assert figures["by_promised_rate"]["0.2"][name] == figures[name]
    wrong(cmg_here(*score, "--false-alarm", 1.5), "false alarm", "between 0 and 1")
    wrong(cmg_here("score", "--zero-shot", "--caption", "a part", "--false-alarm", 0.1, small_line / "images"), "--false-alarm")


@pytest.mark.parametrize("style", ["csv", "jsonl"])
def test_resume_goes_on_after_the_last_whole_row(small_line, model_file, tmp_path, style):
    out = tmp_path / "scores"
    images = sorted((small_line / "images").glob("test*"))[:6]
    command = ("score", "--model", model_file, "--batch-size", 1, "--format", style, "--out", out, "--resume")
    assert cmg_here(*command, *images).returncode == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:10])
    assert cmg_here(*command, *images).returncode == 0
    assert out.read_bytes() == whole
    wrong(cmg_here(*command, *images[1:]), "--resume", "give the same inputs")
    wrong(cmg_here("score", "--model", model_file, "--resume", images[0]), "--out")
    other = "csv" if style == "jsonl" else "jsonl"
    wrong(cmg_here(*command, "--format", other, *images), "--format it was begun with")


def test_resume_refuses_rows_that_another_rate_would_judge_otherwise(small_line, model_file, tmp_path):
    images = sorted((small_line / "images").glob("*.png"))
    command = ("score", "--model", model_file, "--out", tmp_path / "scores.csv", "--resume")
    assert cmg_here(*command, "--false-alarm", 0.3, *images).returncode == 0
    before = (tmp_path / "scores.csv").read_bytes()
    wrong(cmg_here(*command, *images), "--resume", "is called anomalous", "--false-alarm")
    assert (tmp_path / "scores.csv").read_bytes() == before
    assert cmg_here(*command, "--false-alarm", 0.3, *images).returncode == 0


def test_resume_refuses_rows_that_other_captions_gave(small_line, model_file, tmp_path):
    images = sorted((small_line / "images").glob("test*"))[:4]
    sheet = (small_line / "metadata.csv").read_text()
    (tmp_path / "changed.csv").write_text(sheet.replace("test_0000.png,a photo of a brass gear", "test_0000.png,a photo of a copper flange"))
    command = ("score", "--model", model_file, "--batch-size", 1, "--images", small_line, "--out", tmp_path / "scores.csv")
    assert cmg_here(*command, "--captions", small_line / "metadata.csv", *images[:3]).returncode == 0
    before = (tmp_path / "scores.csv").read_bytes()
    wrong(cmg_here(*command, "--captions", tmp_path / "changed.csv", "--resume", *images), "--resume", "test_0000.png", "copper flange", "--captions")
    assert (tmp_path / "scores.csv").read_bytes() == before


def test_resume_refuses_rows_with_other_p_values(small_line, model_file, tmp_path):
    image, out = small_line / "images/test_0000.png", tmp_path / "scores.csv"
    assert cmg_here("score", "--model", model_file, "--out", out, image).returncode == 0
    (row,) = table(out.read_text())
    out.write_text(out.read_text().replace(f",{row['p_value']},", f",{max(0.01, float(row['p_value']) - 0.5):g},"))
    wrong(cmg_here("score", "--model", model_file, "--out", out, "--resume", image), "--resume", "has the p-value", "--false-alarm")


def test_resume_refuses_to_go_on_without_the_captions(small_line, model_file, tmp_path):
    images, out = sorted((small_line / "images").glob("test*"))[:3], tmp_path / "scores.csv"
    sheet = (small_line / "metadata.csv").read_text()
    (tmp_path / "other.csv").write_text(sheet.replace("a photo of a brass gear", "a photo of a brass thing"))
    command = ("score", "--model", model_file, "--batch-size", 1, "--out", out)
    assert cmg_here(*command, "--images", small_line, "--captions", tmp_path / "other.csv", *images[:1]).returncode == 0
    before = out.read_bytes() + b"torn"
    out.write_bytes(before)
    wrong(cmg_here(*command, "--resume", *images), "--resume", "'a photo of a brass thing'", "--captions")
    assert out.read_bytes() == before, "nor is its torn row cut"


def test_resume_takes_scores_that_are_equal_but_for_their_rounding(small_line, small_model, tmp_path):
    image, out = small_line / "images/test_0000.png", tmp_path / "scores.csv"
    (row,) = small_model.score([image])
    calibration = calibrate([row.score + 1e-9] * 3 + [row.score - 1e-9] * 3 + [0.1, 9.0], false_alarm=0.2)
    replace(small_model, detector=replace(small_model.detector, calibration=calibration)).save(tmp_path / "m.cmg")
    for _ in range(2):
        assert cmg_here("score", "--model", tmp_path / "m.cmg", "--out", out, "--resume", image).returncode == 0


def test_no_gate_without_a_threshold(small_line, small_model, tmp_path):
    calibration = calibrate([], false_alarm=0.1)
    replace(small_model, detector=replace(small_model.detector, calibration=calibration)).save(tmp_path / "m.cmg")
    image, labels = small_line / "images/test_0000.png", small_line / "metadata.csv"
    for gate in (("--fail-on-anomaly",), ("--max-anomalies", "2%")):
        wrong(cmg_here("score", "--model", tmp_path / "m.cmg", "-q", *gate, image), gate[0], "the model has no threshold")
    for gate in ("--max-false-alarm", "--max-miss"):
        wrong(cmg_here("eval", "--model", tmp_path / "m.cmg", "-q", "--images", small_line, "--labels", labels, gate, 1), gate, "the model has no threshold")
    assert cmg_here("eval", "--model", tmp_path / "m.cmg", "-q", "--images", small_line, "--labels", labels, "--min-auroc", 0).returncode == 0


def test_resume_refuses_rows_of_another_model(small_line, model_file, tmp_path):
    images, other, out = sorted((small_line / "images").glob("test*")), tmp_path / "other.cmg", tmp_path / "scores.csv"
    assert cmg_here("fit", "--images", small_line, "--captions", small_line / "metadata.csv", "--no-adapt", "--out", other).returncode == 0
    assert cmg_here("score", "--model", other, "--out", out, *images[:4]).returncode == 0
    before = out.read_bytes()
    calm = before.replace(b",1,", b",0,")  # so that both would judge alike
    for content in (before, calm):
        out.write_bytes(content)
        wrong(cmg_here("score", "--model", model_file, "--false-alarm", 0.01, "-q", "--out", out, "--resume", *images), "--resume", "another --out")
        assert out.read_bytes() == content


def test_a_caption_file_that_names_other_images_or_new_captions_is_said(small_line, model_file, tmp_path):
    images = sorted((small_line / "images").glob("test*"))[:3]
    for path in images:
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "captions.csv").write_text(f"file_name,text\n{images[0].name},a photo of a pink umbrella\n{images[1].name},a photo of a brass gear\n", encoding="utf-8")
    command = ("score", "--model", model_file, "--captions")
    run = cmg_here(*command, tmp_path / "captions.csv", *(tmp_path / path.name for path in images))
    assert "no caption for 1 of 3 images" in run.err and "not fitted on 'a photo of a pink umbrella' (1 image)" in run.err
    assert "no caption for 3 of 3 images" in cmg_here(*command, tmp_path / "captions.csv", *images).err
    assert cmg_here(*command, small_line / "metadata.csv", *images).err == ""


def test_jsonl_has_the_rows_of_the_csv(small_line, model_file, tmp_path):
    image = sorted((small_line / "images").glob("test*"))[0]
    (tmp_path / "broken.png").write_bytes(b"no image")
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png"))
    shutil.copy(image, odd)
    inputs = ("score", "--model", model_file, image, tmp_path / "broken.png", odd)
    assert cmg_here(*inputs, "--out", tmp_path / "s.csv").returncode == 3
    run = cmg_here(*inputs, "--format", "jsonl")
    assert run.returncode == 3 and run.out.isascii()
    good, broken, oddly_named = map(json.loads, run.out.splitlines())
    assert tuple(good) == COLUMNS
    assert os.fsencode(oddly_named["file"]) == os.fsencode(odd)
    assert broken["score"] is None and broken["caption"] is None and "not an image" in broken["error"] and good["error"] is None
    (tmp_path / "s.jsonl").write_text(run.out)
    assert read_scores(tmp_path / "s.jsonl") == read_scores(tmp_path / "s.csv")


@pytest.fixture
def noise(tmp_path) -> Path:
    """An image that every model finds anomalous."""
    cv2.imwrite(str(tmp_path / "noise.png"), np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8))
    return tmp_path / "noise.png"


def test_gates(small_line, model_file, noise, tmp_path):
    good = sorted((small_line / "images").glob("train*"))[0]
    command = ("score", "--model", model_file)
    scored = cmg_here(*command, noise, good)
    assert scored.returncode == 0
    assert [row["anomalous"] for row in table(scored.out)] == ["1", "0"]
    for limit in (("--fail-on-anomaly",), ("--max-anomalies", 0), ("--max-anomalies", "49.9%")):
        run = cmg_here(*command, *limit, noise, good, tmp_path / "none.png")
        assert run.returncode == 1  # a failed gate beats an unreadable input
        assert f"gate failed: 1 of 2 readable images is anomalous, which {' '.join(map(str, limit))} does not allow" in run.err
    for limit in (1, "50%"):
        assert cmg_here(*command, "--max-anomalies", limit, noise, good).returncode == 0
    for bad in ("few", "-1", "101%", "3x", "", "%"):
        wrong(cmg_here(*command, "--max-anomalies", bad, noise), "--max-anomalies", "a count such as 3")


def test_junit_and_summary_tell_the_whole_run_also_when_resumed(small_line, model_file, noise, tmp_path):
    good = sorted((small_line / "images").glob("train*"))[0]
    out, junit, summary = tmp_path / "s.csv", tmp_path / "j.xml", tmp_path / "s.md"
    command = ("score", "--model", model_file, "--out", out, "--resume", "--junit", junit, "--summary", summary, "--max-anomalies", "1%")
    assert cmg_here(*command, noise, tmp_path / "none.png", good).returncode == 1
    once = summary.read_text()
    assert once.startswith("### cmg: 1 of 2 readable images is anomalous, 1 could not be read\n")
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:3]))
    junit.unlink()
    assert cmg_here(*command, noise, tmp_path / "none.png", good).returncode == 1
    assert summary.read_text() == once * 2
    suite = ElementTree.parse(junit).getroot()[0]
    assert [suite.get(name) for name in ("tests", "failures", "errors")] == ["4", "2", "1"]
    names = [(case.get("name"), [child.tag for child in case]) for case in suite]
    assert names == [("noise.png", ["failure"]), ("none.png", ["error"]), (good.name, []), ("--max-anomalies 1%", ["failure"])]
    wrong(cmg_here(*command, "--junit", tmp_path / "no" / "j.xml", noise), "does not exist", "--junit")


def test_maps_have_the_size_of_their_image_and_can_be_read_back(small_model, small_line, model_file, tmp_path):
    image = sorted((small_line / "images").glob("test*"))[0]
    wide = tmp_path / "wide.png"
    cv2.imwrite(str(wide), cv2.resize(cv2.imread(str(image)), (150, 70)))
    maps = tmp_path / "maps"
    assert cmg_here("score", "--model", model_file, "--maps", maps, "--batch-size", 1, wide, wide).returncode == 0
    assert sorted(path.name for path in maps.iterdir()) == ["wide-2_anomaly.png", "wide-2_map.png", "wide_anomaly.png", "wide_map.png"]
    assert cv2.imread(str(maps / "wide_map.png")).shape == (70, 150, 3)
    (inspection,) = small_model.inspect([wide], batch_size=1, maps=True)
    expected = inspection.anomaly_map
    assert expected.shape == (70, 150) and -32 < expected.min() and expected.max() < 31.99
    np.testing.assert_allclose(pictures.read_map(maps / "wide_anomaly.png"), expected, atol=0.5 / 1024 + 1e-5)


def test_mask_writes_three_pictures_per_image_and_a_summary(small_line, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((small_line / "images").glob("test*"))[:2]:
        shutil.copy(path, few)
    (few / "broken.png").write_bytes(b"")
    run = cmg_here("mask", "--images", few, "--caption", "a photo of a brass gear", "--out", tmp_path / "out")
    assert run.returncode == 3
    rows = table((tmp_path / "out" / "summary.csv").read_text())
    assert [bool(row["error"]) for row in rows] == [True, False, False]
    for row in rows[1:]:
        stem = Path(row["file"]).stem
        keep = cv2.imread(str(tmp_path / "out" / f"{stem}_keep.png"), cv2.IMREAD_UNCHANGED)
        assert keep.shape == (96, 96) and set(keep.ravel().tolist()) <= {0, 255} and keep.any()
        assert (tmp_path / "out" / f"{stem}_relevance.png").exists() and (tmp_path / "out" / f"{stem}_overlay.png").exists()
        assert float(row["entropy_after"]) <= float(row["entropy_before"])
        middles = ((np.arange(14) + 0.5) * 96 / 14).astype(int)
        patches = (keep[np.ix_(middles, middles)] > 0).astype(np.uint8)
        assert patches.mean() == pytest.approx(float(row["kept"]), abs=1e-6)
        seen = cv2.dilate(patches, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))).mean()
        assert 1 + seen <= float(row["passes"]) + 1e-4 <= 1 + seen + 8 / 196  # kept patches and their rim have room in steps of 8


def test_mask_shows_many_images_on_one_contact_sheet(small_line, tmp_path, monkeypatch):
    out = tmp_path / "out"
    masks = "mask", "--images", small_line, "--captions", small_line / "metadata.csv", "--out", out
    run = cmg_here(*masks, "--contact-sheet", out / "sheet.png")
    assert run.returncode == 0 and f"cmg: wrote {out / 'summary.csv'}\ncmg: wrote {out / 'sheet.png'}\n" in run.err
    whole = cv2.imread(str(out / "sheet.png"))
    monkeypatch.setattr(contact, "MOST_CELLS", 5)
    run = cmg_here(*masks, "--contact-sheet", tmp_path / "few.png")
    assert f"wrote {tmp_path / 'few.png'}: 5 images drawn at random, 31 left out" in run.err
    assert len(cv2.imread(str(tmp_path / "few.png"))) < len(whole) / 2
    wrong(cmg_here(*masks, "--contact-sheet", tmp_path / "no" / "sheet.png"), "no does not exist", "--contact-sheet")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"")
    run = cmg_here("mask", "--images", tmp_path / "broken", "--caption", "x", "--out", out, "--contact-sheet", tmp_path / "none.png")
    assert run.returncode == 3 and "no image to show" in run.err and not (tmp_path / "none.png").exists()


def test_wrong_input_is_one_line_with_the_remedy(small_line, tmp_path):
    captions = tmp_path / "captions.csv"
    captions.write_text("file_name,txt\nimages/a.png,a gear\n")
    wrong(cmg_here("fit", "--images", small_line, "--captions", captions), "captions.csv", "text", "txt")
    wrong(cmg_here("fit", "--images", tmp_path / "nowhere", "--captions", captions), "nowhere")
    wrong(cmg_here("score", "--model", captions, "x.png"), "not a cmg model", "cmg fit")
    wrong(cmg_here("score", "--model", tmp_path / "none.cmg", "x.png"), "no model", "cmg fit")
    wrong(cmg_here("fit", "--images", small_line), "no captions", "--captions")
    wrong(cmg_here("fit", "--images", small_line, "--caption", "x", "--encoder", "ViT-B16/openai"), "did you mean ViT-B-16")
    wrong(cmg_here("fit", "--images", small_line, "--caption", "x", "--keep", "half"), "--keep")
    wrong(cmg_here("fit", "--images", small_line, "--caption", "x", "--out", tmp_path / "no" / "m.cmg"), "does not exist")


@pytest.mark.parametrize("gate", ["--min-auroc", "--max-false-alarm", "--max-miss"])
@pytest.mark.parametrize("limit", ["5", "-0.1", "nan", "80%"])
def test_a_gate_that_could_never_do_its_work_is_refused(gate, limit):
    run = cmg_here("eval", "--scores", "s.csv", "--labels", "l.csv", gate, limit)
    assert run.returncode == 2 and run.out == "" and gate in run.err


def test_no_option_is_ignored(small_line, model_file):
    score = ("score", "--model", model_file, small_line)
    wrong(cmg_here(*score, "--images", small_line), "give it with --captions")
    wrong(cmg_here(*score, "-0"), "give - as the only path")
    wrong(cmg_here("eval", "--scores", "s.csv", "--labels", "l.csv", "--adapt-steps", 3), "give it with --ablate")


@pytest.mark.parametrize(
    ("command", "option", "other"),
    [
        ("fit --images x --no-adapt", "--adapt-steps 3", "--no-adapt"),
        ("fit --images x --no-cmer", "--relevance fast", "--no-cmer"),
        ("fit --images x --no-cmer", "--keep 0.4", "--no-cmer"),
        ("fit --images x --no-cmle", "--neighbours 2", "--no-cmle"),
        ("fit --images x --no-cmle", "--ridge 0.1", "--no-cmle"),
        ("fit --images x", "--overlap 0.25", "--tile"),
        ("fit --images x --projection closed", "--epochs 300", "--projection"),
        ("score x --model m", "--resume", "--out"),
        ("score x --model m", "--explain-all", "--explain DIR"),
        ("score x --model m --engine local", "--address auto", "--engine ray"),
        ("eval --model m", "--stress-images 4", "--stress too"),
        ("eval --model m", "--adapt-steps 4", "--ablate"),
        *(("eval --scores s", option, "--model") for option in ("--false-alarm 0.1", "--ablate", "--defects d", "--stress", "--device cpu", "--batch-size 3")),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_with_the_other_one(command, option, other):
    wrong(cmg_here(*command.split(), *option.split()), option.split()[0], other)


def test_eval_needs_labels_of_both_kinds(small_line, model_file, tmp_path):
    header, *lines = (small_line / "metadata.csv").read_text().splitlines()
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join([header, *(line for line in lines if ",test,0," in line)]) + "\n")
    wrong(cmg_here("eval", "--model", model_file, "--images", small_line), "no captions", "--labels")
    run = cmg_here("eval", "--model", model_file, "--images", small_line, "--labels", labels, "--allow-missing")
    assert run.returncode == 2
    *listed, last = run.err.splitlines()
    assert len(listed) == 30 and all(line.startswith("cmg: left out: ") for line in listed)
    assert "found only label 0" in last


def test_a_closed_pipe_is_silent(small_line, model_file):
    command = f'find "{small_line}/images" | "{sys.executable}" -m cmgcli score --model "{model_file}" --batch-size 1 - | head -n 2'
    run = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert len(run.stdout.splitlines()) == 2


def test_a_gate_judges_the_whole_run_whoever_reads_its_rows(small_line, model_file, tmp_path):
    command = f'"{sys.executable}" -m cmgcli score --model "{model_file}" --batch-size 1 --max-anomalies 0 --junit "{tmp_path}/j.xml" "{small_line}/images" | head -n 2'
    run = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert run.stdout.count("\n") == 2
    assert run.returncode == 1 and "gate failed" in run.stderr and "Traceback" not in run.stderr
    assert (tmp_path / "j.xml").is_file()



@pytest.mark.parametrize("size", ["0", "x", "-1", "2.5", "Auto"])
def test_a_batch_size_is_a_count_or_auto(size):
    run = cmg("score", "x", "--model", "m", "--batch-size", size)
    assert run.returncode == 2 and run.out == "" and "expected auto or a whole number from 1 up" in run.err


def test_a_batch_size_that_is_left_to_the_program_changes_no_row(small_line, model_file):
    image = str(min((small_line / "images").glob("test*")))
    runs = [cmg_here("score", "--model", str(model_file), *size, image) for size in ((), ("--batch-size", "auto"))]
    assert runs[0].returncode == runs[1].returncode == 0 and runs[0].out == runs[1].out


def test_an_interrupt_leaves_whole_rows_to_go_on_from(small_line, model_file, tmp_path):
    images = sorted(str(path) for path in (small_line / "images").glob("test*"))[:5]
    out = tmp_path / "scores.csv"
    command = ["score", "--model", str(model_file), "--batch-size", "1", "--out", str(out)]
    run = subprocess.Popen([sys.executable, "-m", "cmgcli", *command, "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_interrupts)
    run.stdin.write("".join(f"{name}\n" for name in images[:3]).encode())
    run.stdin.flush()  # and it waits for more
    patience = time.monotonic() + 120
    while not out.exists() or out.read_text().count("\n") < 4:
        assert time.monotonic() < patience and run.poll() is None
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, words = run.communicate(timeout=60)
    assert run.returncode == 130
    assert words.decode().splitlines() == [f"cmg: {out} has 3 rows; --resume goes on from there", "cmg: interrupted"]
    assert [row.file for row in read_scores(out)] == images[:3]
    assert cmg_here(*command, "--resume", *images).returncode == 0
    assert [row.file for row in read_scores(out)] == images


def test_a_fit_that_is_interrupted_goes_on(small_line, tmp_path, monkeypatch):
    from cmgcli import adapt

    save, saved = adapt.save_snapshot, []

    def save_and_interrupt(*arguments):
        save(*arguments)
        saved.append(arguments)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("cmgcli.adapt.CHECKS", 2)
    fit = ("fit", "--images", small_line, "--captions", small_line / "metadata.csv", "--adapt-steps", 7, "--device", "cpu", "--out")
    assert cmg_here(*fit, tmp_path / "whole.cmg").returncode == 0
    monkeypatch.setattr("cmgcli.adapt.save_snapshot", save_and_interrupt)
    state = tmp_path / "m.cmg.training"
    run = cmg_here(*fit, tmp_path / "m.cmg")
    assert run.returncode == 130 and f"{state} has the training so far" in run.err
    assert not (tmp_path / "m.cmg").exists()
    run = cmg_here(*fit, tmp_path / "m.cmg", "--resume")
    assert run.returncode == 0 and "nothing to resume" not in run.err
    assert len(saved) == 3  # after 2, 4 and 6 steps of 7
    assert (tmp_path / "m.cmg").read_bytes() == (tmp_path / "whole.cmg").read_bytes()
    assert not state.exists()
    assert "nothing to resume" in cmg_here(*fit, tmp_path / "m.cmg", "--resume").err


def test_drift_is_said_when_it_is_seen_and_fails_the_gate(small_line, small_model, tmp_path, monkeypatch):
    monkeypatch.setattr("cmgcli.drift._FEWEST", 1)
    model_file = tmp_path / "m.cmg"
    pooled = calibrate(small_model.detector.calibration.scores, false_alarm=0.1)  # so few of each caption would show nothing
    replace(small_model, detector=replace(small_model.detector, calibration=pooled)).save(model_file)
    good = [small_line / "images" / f"train_{i:04d}.png" for i in range(4)]
    strange = tmp_path / "strange"
    strange.mkdir()
    for i in range(60):
        blocks = np.random.default_rng(i).integers(0, 255, (6, 6, 3), np.uint8)
        cv2.imwrite(str(strange / f"{i}.png"), cv2.resize(blocks, (96, 96), interpolation=cv2.INTER_NEAREST))
    command = ("score", "--model", model_file, "--captions", small_line / "metadata.csv", "--out", tmp_path / "s.csv")
    calm = cmg_here(*command, "--fail-on-drift", *good)
    assert calm.returncode == 0 and calm.err.endswith("cmg: no drift seen in 4 scores\n")
    run = cmg_here(*command, "--fail-on-drift", "--summary", tmp_path / "s.md", *good, strange)
    assert run.returncode == 1
    said, told, failed = run.err.splitlines()
    assert "no caption for 60 of 64 images" in told
    assert said.startswith("cmg: the line has drifted") and str(strange) in said and failed.startswith("cmg: gate failed: the line has drifted")
    assert "The line has drifted" in (tmp_path / "s.md").read_text()
    assert "cmg: the line has drifted" in cmg_here(*command, "--fail-on-drift", "--resume", *good, strange).err  # all of it was done before
    assert cmg_here(*command, "--watch-drift", strange).returncode == 0
