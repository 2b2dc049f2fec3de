"""Evaluations with a model and from a scores file, and what they say about input that does not fit."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import astuple, replace
from datetime import datetime

import cv2
import numpy as np
import pytest
from made_cases import made_case, made_cases, made_evaluation

from cmgcli import evaluation, metrics, rows
from cmgcli.calibrate import calibrate
from cmgcli.errors import DatasetError, SettingsError
from cmgcli.exhibits import SIDE, Worst, exhibit
from cmgcli.figures import evaluation_of
from cmgcli.images import write_png
from cmgcli.page import Page, render
from cmgcli.report import Choice, Exhibit, evaluation_table, group_tables, rate_table
from cmgcli.rows import Row
from cmgcli.scored import evaluate_scores


def test_the_figures_are_those_of_the_cases():
    result = made_evaluation()
    readable = [case for case in result.cases if not case.row.error]
    truth, scores = [case.anomalous for case in readable], [case.row.score for case in readable]
    assert result.image_auroc == metrics.auroc(truth, scores)
    assert result.miss_rate.count == sum(case.anomalous and not case.row.anomalous for case in readable)
    for groups in (result.by_caption, result.by_defect):
        assert sum(group.anomalous for group in groups.values()) == result.anomalous == 20
    good = [case for case in readable if not case.anomalous]
    stains = [case for case in readable if case.record.defect == "stain"]
    area = metrics.auroc([0] * len(good) + [1] * len(stains), [case.row.score for case in good + stains])
    assert result.by_defect["stain"].auroc == area
    assert result.by_defect["stain"].false_alarm_rate is None
    assert result.auroc_by_part == {"image_score": result.image_auroc}
    assert sum(case.wrong for case in readable) == result.miss_rate.count + result.false_alarm_rate.count


def test_levels_of_severity_are_compared_with_the_scores():
    cases = [made_case(i, i % 3 > 0, score=float(i % 3)) for i in range(30)]
    assert evaluation_of(cases, Worst(0), threshold=1.0, promised=None).severity is None
    levels = [replace(case, record=replace(case.record, label=i % 3)) for i, case in enumerate(cases)]
    result = evaluation_of(levels, Worst(0), threshold=1.0, promised=None)
    assert (result.severity.c_index, result.severity.kendall_tau) == (1.0, pytest.approx(1))
    assert result.anomalous == 20 and result.as_dict()["severity"]["c_index"] == 1.0
    assert "C-index of severity" in [str(cell) for cell in evaluation_table(result).columns[0].cells]
    assert "Severity, C-index" in render(Page("p", result, datetime(2026, 1, 1)))


def test_other_promised_rates_are_told_by_the_p_values():
    values = [0.5, 0.04, 0.3, 0.2, 0.04, 0.02, 0.02, 0.9]
    cases = [made_case(i, i > 4, score=0.0) for i in range(1, 9)]
    cases = [replace(case, row=replace(case.row, p_value=value)) for case, value in zip(cases, values, strict=True)]
    result = evaluation_of(cases, Worst(0), threshold=1.0, promised=0.05, calibrated=60, method="split")
    found = {name: (choice.false_alarm_rate.count, choice.miss_rate.count) for name, choice in result.by_promised_rate.items()}
    assert found == {"0.02": (0, 2), "0.05": (1, 1), "0.1": (1, 1), "0.2": (2, 1)}  # 60 images cannot promise 0.01
    quiet = [replace(case, row=replace(case.row, p_value=0.5)) for case in cases]
    assert list(evaluation_of(quiet, Worst(0), threshold=1.0, promised=0.05, calibrated=10, method="split").by_promised_rate) == ["0.1", "0.2"]
    assert evaluation_of(quiet, Worst(0), threshold=None, promised=None).by_promised_rate == {}
    assert result.as_dict()["by_promised_rate"]["0.2"]["false_alarm_rate"]["total"] == 4
    assert [str(cell) for cell in rate_table(result).columns[0].cells] == list(found)
    assert "By promised false-alarm rate" in render(Page("p", result, datetime(2026, 1, 1)))
    bare = [replace(case, row=replace(case.row, p_value=None)) for case in cases]
    assert evaluation_of(bare, Worst(0), threshold=1.0, promised=None).by_promised_rate == {}


def test_recall_is_told_for_each_decade_of_the_defects_size():
    areas = [None, 3e-6, 1e-5, 2e-4, 2e-4, 0.03, 0.3]
    cases = [made_case(i, bad, score=float(i)) for i, bad in enumerate([False, *[True] * 6], 1)]
    cases = [replace(case, area=area, row=replace(case.row, anomalous=int(i > 4))) for i, (case, area) in enumerate(zip(cases, areas, strict=True), 1)]
    result = evaluation_of([*cases, made_case(20, True, 0.0)], Worst(0), threshold=1.0, promised=None)
    found = {name: (rate.count, rate.total) for name, rate in result.recall_by_size.items()}
    expected = {"below 0.001 %": (0, 1), "0.001 to 0.01 %": (0, 1), "0.01 to 0.1 %": (1, 2), "1 to 10 %": (1, 1), "10 % and more": (1, 1)}
    assert found == expected and list(found) == list(expected)
    half = result.recall_by_size["0.01 to 0.1 %"]
    assert (half.value, half.low) == (0.5, pytest.approx(1 - half.high)) and result.as_dict()["recall_by_size"]["1 to 10 %"]["value"] == 1
    (table,) = [table for table in group_tables(result) if "size" in table.title]
    assert [str(cell) for cell in table.columns[0].cells] == list(expected)
    assert "By size of the defect" in render(Page("p", result, datetime(2026, 1, 1)))
    assert "By size of the defect" not in render(Page("p", made_evaluation(), datetime(2026, 1, 1)))


@pytest.mark.parametrize("count", [0, 3, 50])
def test_the_worst_are_the_first_of_the_sorted_cases(count):
    cases, drawn = made_cases(200, seed=3), []
    worst = Worst(count)
    for case in cases:
        worst.offer(case, lambda case=case: drawn.append(case) or Exhibit(case))
    bad = sorted((case for case in cases if case.anomalous), key=lambda case: case.row.score)
    good = sorted((case for case in cases if not case.anomalous), key=lambda case: -case.row.score)
    assert [exhibit.case for exhibit in worst.misses] == bad[:count]
    assert [exhibit.case for exhibit in worst.false_alarms] == good[:count]
    assert len(drawn) < 2 * count * (1 + np.log(100)) + 1  # few pictures are drawn in vain


def test_an_exhibit_is_small_and_outlines_the_labelled_defect(tmp_path):
    mask = np.zeros((200, 900), np.uint8)
    mask[80:120, 400:500] = 255
    write_png(tmp_path / "mask.png", mask)
    case = made_case(2, True, 0.0)
    image = np.full((200, 900, 3), 90, np.uint8)
    plain = cv2.imdecode(np.frombuffer(exhibit(case, image).image, np.uint8), cv2.IMREAD_COLOR)
    assert plain.shape == (71, SIDE, 3) and np.ptp(plain) < 3
    case = replace(case, record=replace(case.record, mask=tmp_path / "mask.png"))
    shown = exhibit(case, image, np.zeros((50, 225), np.float32), low=0, high=1)
    outlined = cv2.imdecode(np.frombuffer(shown.image, np.uint8), cv2.IMREAD_COLOR)
    assert np.ptp(outlined) > 60
    assert abs(outlined[35, 160].astype(int) - 90).max() < 12  # the defect itself is left as it is
    assert cv2.imdecode(np.frombuffer(shown.overlay, np.uint8), cv2.IMREAD_COLOR).shape == plain.shape


@pytest.fixture(scope="module")
def result(small_model, small_line):
    return evaluation.evaluate(small_model, small_line, small_line / "metadata.csv", exhibits=2)


def test_an_evaluation_keeps_its_cases_and_the_worst_pictures(result, small_model, small_line):
    assert [case.record.file_name for case in result.cases] == [f"images/test_{i:04d}.png" for i in range(12)]
    assert len(result.worst_misses) == len(result.worst_false_alarms) == 2
    lowest = min((case for case in result.cases if case.anomalous), key=lambda case: case.row.score)
    assert result.worst_misses[0].case == lowest
    for shown in (*result.worst_misses, *result.worst_false_alarms):
        sizes = {cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape for data in (shown.image, shown.overlay)}
        assert sizes == {(96, 96, 3)}
    assert result.threshold == small_model.detector.calibration.threshold()
    assert result.promised_false_alarm_rate == small_model.detector.calibration.promised_rate
    assert 0 <= result.aupro <= 1 and 0 <= result.pixel_auroc <= 1


def changed_labels(small_line, tmp_path, change):
    """The line's metadata beside copies of its images, with rows changed by `change(rows)`."""
    shutil.copytree(small_line, tmp_path / "line")
    with (small_line / "metadata.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    change(table)
    with (tmp_path / "line" / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return tmp_path / "line"


def test_a_mask_of_another_size_is_named_with_its_image(small_model, small_line, tmp_path):
    line = changed_labels(small_line, tmp_path, lambda table: None)
    with (line / "metadata.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["mask"])
    write_png(line / row["mask"], np.full((50, 96), 255, np.uint8))
    with pytest.raises(DatasetError, match=f"{row['mask']} of {row['file_name']}: expected the size of its image, 96 x 96, got 96 x 50"):
        evaluation.evaluate(small_model, line, line / "metadata.csv")


def test_a_mask_that_marks_nothing_is_no_good_image(small_model, small_line, tmp_path, caplog):
    """Its pixels would count as good ones, though a defect is among them."""
    line = changed_labels(small_line, tmp_path, lambda table: None)
    with (line / "metadata.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["mask"])
    write_png(line / row["mask"], np.zeros((96, 96), np.uint8))
    empty = evaluation.evaluate(small_model, line, line / "metadata.csv")
    assert [record.message for record in caplog.records] == ["1 mask of bad images marks nothing: left out of pixel AUROC and AUPRO"]

    def without(table):
        next(other for other in table if other["mask"] == row["mask"])["mask"] = ""

    unmasked = evaluation.evaluate(small_model, other := changed_labels(small_line, tmp_path / "other", without), other / "metadata.csv")
    assert (empty.pixel_auroc, empty.aupro, empty.image_auroc) == (unmasked.pixel_auroc, unmasked.aupro, unmasked.image_auroc)
    assert empty.pixel_auroc != evaluation.evaluate(small_model, small_line, small_line / "metadata.csv").pixel_auroc


def test_an_unreadable_image_is_left_out_and_named(small_model, small_line, tmp_path):
    line = changed_labels(small_line, tmp_path, lambda table: None)
    (line / "images" / "test_0003.png").write_bytes(b"no image")
    result = evaluation.evaluate(small_model, line, line / "metadata.csv", exhibits=1)
    assert result.unreadable == ("images/test_0003.png",)
    assert (result.images, len(result.cases)) == (11, 12)


def test_each_promised_rate_gives_what_a_run_at_that_rate_gives(small_model, small_line):
    """Thirty calibration images of each caption, whose scores lie apart: enough for thresholds of their own at 0.2, not at 0.1."""
    captions = len(small_model.detector.language.captions)
    groups = np.repeat(np.arange(captions), 30)
    scores = np.random.default_rng(0).uniform(0.2, 1.2, 30 * captions) * (1 + groups)
    calibration = calibrate(scores, groups, groups, false_alarm=0.1)
    assert not calibration.own and len(calibration.at(0.2).own) == captions

    def result_at(rate):
        return evaluation.evaluate(replace(small_model, detector=replace(small_model.detector, calibration=calibration.at(rate))), small_line, small_line / "metadata.csv")

    strict, loose = result_at(0.1), result_at(0.2)
    assert strict.by_promised_rate == loose.by_promised_rate
    for rate, result in (("0.1", strict), ("0.2", loose)):
        assert result.by_promised_rate[rate] == Choice(result.false_alarm_rate, result.miss_rate)
    assert not strict.thresholds and set(loose.thresholds) == set(small_model.detector.language.captions)
    said = [any("by caption" in str(cell) for cell in evaluation_table(found).columns[1].cells) for found in (strict, loose)]
    assert said == [False, True]


@pytest.fixture(scope="module")
def scores_file(result, tmp_path_factory):
    return write_scores(tmp_path_factory.mktemp("scores") / "scores.csv", [case.row for case in result.cases])


def write_scores(path, table):
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        write = rows.row_writer(stream)
        for row in table:
            write(row)
    return path


def test_a_scores_file_gives_the_figures_of_its_model(result, scores_file, small_line):
    again = evaluate_scores(scores_file, small_line / "metadata.csv", exhibits=2)
    ours, theirs = again.as_dict(), result.as_dict()
    for name in ("threshold", "promised_false_alarm_rate", "calibration_images", "calibration", "pixel_auroc", "aupro"):
        assert ours.pop(name) is None
        theirs.pop(name)
    assert ours.pop("f1_max_threshold") == pytest.approx(theirs.pop("f1_max_threshold"), rel=1e-5)  # six digits in the file
    assert ours == theirs
    assert [shown.case.record for shown in again.worst_misses] == [shown.case.record for shown in result.worst_misses]
    assert all(shown.image and shown.overlay is None for shown in again.worst_misses)


def test_json_lines_serve_as_well(result, small_line, tmp_path):
    with (tmp_path / "s.jsonl").open("w", newline="") as stream:
        write = rows.row_writer(stream, jsonl=True)
        for case in result.cases:
            write(case.row)
    assert evaluate_scores(tmp_path / "s.jsonl", small_line / "metadata.csv").image_auroc == result.image_auroc


def test_files_join_by_the_end_of_their_names_where_the_images_are_gone(result, small_line, tmp_path):
    labels = shutil.copy(small_line / "metadata.csv", tmp_path / "labels.csv")
    for prefix in ("/data/day 1/line/images/", "images/", "./images/", "../line/images/", ""):
        table = [replace(case.row, file=prefix + case.record.path.name) for case in result.cases]
        again = evaluate_scores(write_scores(tmp_path / "s.csv", table), labels, exhibits=2)
        assert again.image_auroc == result.image_auroc
        assert again.worst_misses[0].image is None


def test_a_folder_layout_needs_no_labels_file(tmp_path):
    table = []
    for kind in ("good", "crack"):
        (tmp_path / "test" / kind).mkdir(parents=True)
        for i in range(2):
            write_png(tmp_path / "test" / kind / f"{i}.png", np.full((8, 8, 3), 50 * i, np.uint8))
            table.append(Row(f"test/{kind}/{i}.png", score=float(kind == "crack"), anomalous=0))
    (tmp_path / "train" / "good").mkdir(parents=True)
    write_png(tmp_path / "train" / "good" / "0.png", np.zeros((8, 8, 3), np.uint8))
    result = evaluate_scores(write_scores(tmp_path / "s.csv", table), images=tmp_path)
    assert result.image_auroc == 1 and result.miss_rate.value == 1 and list(result.by_defect) == ["crack"]


def test_labels_of_a_scores_file_need_no_captions(result, scores_file, small_line, tmp_path):
    with open(small_line / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    (tmp_path / "labels.csv").write_text("file_name,label\n" + "".join(f"{row['file_name']},{row['label']}\n" for row in rows), encoding="utf-8")
    again = evaluate_scores(scores_file, tmp_path / "labels.csv", small_line)
    assert again.image_auroc == result.image_auroc and again.by_caption.keys() == result.by_caption.keys()


def test_neither_labels_nor_images_is_refused(scores_file):
    with pytest.raises(SettingsError, match="--labels FILE"):
        evaluate_scores(scores_file)


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (2, {"score": float("nan")}, "row 3 ('.*test_0002.png'): expected a finite score, got nan"),
        (2, {"score": float("-inf")}, "row 3 .*got -inf"),
        (0, {"score": None}, "row 1 .*expected a score or an error, found neither"),
        (4, {"anomalous": None}, "row 5 .*expected 0 or 1 in the column anomalous, found nothing"),
        (3, {"file": "images/test_0002.png"}, "row 4: 'images/test_0002.png' is scored in row 3 too .*labels.csv', line 28"),
        (3, {"file": "elsewhere/x.png"}, "row 4: 'elsewhere/x.png' is not in '.*labels.csv': add it there"),
        (3, {"file": "other/test_0003.png"}, "row 4: 'other/test_0003.png' is not in"),
        (3, {"file": "\0"}, "row 4: '.x00' is not in"),
    ],
)
def test_rows_that_do_not_fit_are_named(result, small_line, tmp_path, number, change, message):
    labels = shutil.copy(small_line / "metadata.csv", tmp_path / "labels.csv")
    table = [replace(case.row, file=case.record.file_name) for case in result.cases]
    table[number] = replace(table[number], **change)
    path = write_scores(tmp_path / "s.csv", table)
    with pytest.raises(DatasetError, match=message.replace("('", r"\('").replace("png')", r"png'\)")) as caught:
        evaluate_scores(path, labels)
    assert "s.csv', row " in str(caught.value) and "\n" not in str(caught.value)


def test_a_label_without_a_row_is_named_or_left_out(result, small_line, tmp_path, caplog):
    labels = shutil.copy(small_line / "metadata.csv", tmp_path / "labels.csv")
    table = [replace(case.row, file=case.record.file_name) for case in result.cases]
    path = write_scores(tmp_path / "s.csv", [*table[:3], *table[4:], Row("more.png", score=1.0, anomalous=0)])
    with pytest.raises(DatasetError, match="row 12: 'more.png' is not in"):
        evaluate_scores(path, labels)
    assert evaluate_scores(path, labels, allow_missing=True).images == 11
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["left out"] * 2
    path = write_scores(tmp_path / "s.csv", [*table[:3], *table[4:]])
    with pytest.raises(DatasetError, match="labels.csv', line 29: 'images/test_0003.png' has no row in '.*s.csv'"):
        evaluate_scores(path, labels)


def test_names_that_fit_two_labels_or_are_labelled_twice_are_refused(tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("file_name,text,label\na/1.png,x,0\nb/1.png,x,1\n")
    path = write_scores(tmp_path / "s.csv", [Row("1.png", score=1.0, anomalous=0)])
    with pytest.raises(DatasetError, match="row 1: '1.png' may be .*line 2 or .*line 3: score the images by a longer path"):
        evaluate_scores(path, labels)
    labels.write_text("file_name,text,label\na/1.png,x,0\na/1.png,x,1\n")
    with pytest.raises(DatasetError, match="line 3: 'a/1.png' is also in .*line 2: keep one of the two"):
        evaluate_scores(path, labels)


def test_labels_of_one_class_are_refused_with_a_file_name(result, small_line, tmp_path):
    line = changed_labels(small_line, tmp_path, lambda table: [row.update(label="0", mask="") for row in table])
    path = write_scores(tmp_path / "s.csv", [case.row for case in result.cases])
    with pytest.raises(DatasetError, match="metadata.csv: expected normal .* found only label 0 .12 images, the first is images/test_0000.png"):
        evaluate_scores(path, line / "metadata.csv", line)


def cmg(*arguments):
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-m", "cmgcli", "eval", *map(str, arguments)], capture_output=True, text=True, env=environment, check=False)


def test_the_command_writes_a_page_and_json_without_torch(scores_file, small_line, tmp_path):
    program = (
        "import sys; from cmgcli.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code)\n"
        "sys.exit(str({'torch', 'open_clip'} & set(sys.modules)) if 'torch' in sys.modules else 0)"
    )
    arguments = ["eval", "--scores", scores_file, "--labels", small_line / "metadata.csv", "--report", tmp_path / "r.html", "--json", tmp_path / "r.json"]
    run = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "0" and f"wrote {tmp_path / 'r.html'}" in run.stderr
    page = (tmp_path / "r.html").read_text()
    assert "By the scores file," in page and "command" in page and "sha256" in page
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 12


def test_the_page_of_a_model_says_how_to_repeat_it(model_file, small_line, tmp_path):
    labels = small_line / "metadata.csv"
    run = cmg("--model", model_file, "--images", small_line, "--labels", labels, "--report", tmp_path / "r.html", "--max-miss", 0, "--min-auroc", 0)
    assert run.returncode == 1, run.stderr
    page = (tmp_path / "r.html").read_text()
    for words in ("1 of 2 gates failed", "encoder sha256", "promise", "calibration images", "fitted with", "--max-miss 0", "Anomaly map over"):
        assert words in page
    assert page.count("data:image/jpeg") == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --model FILE"),
        (("--model", "m", "--scores", "s"), "give one of --model FILE"),
        (("--model", "m"), "--images"),
        (("--scores", "s", "--labels", "x", "--ablate"), "--ablate fits models of its own"),
        (("--scores", "s", "--labels", "x", "--report", "no/r.html"), "the directory no does not exist"),
        (("--scores", "no.csv", "--labels", "no.csv"), "'no.csv' cannot be read"),
    ],
)
def test_options_that_do_not_fit_exit_with_2(arguments, message):
    run = cmg(*arguments)
    assert run.returncode == 2 and message in run.stderr and run.stderr.count("\n") == 1


def test_unreadable_rows_exit_with_3(result, small_line, tmp_path):
    table = [case.row for case in result.cases]
    table[1] = Row(table[1].file, error="truncated")
    run = cmg("--scores", write_scores(tmp_path / "s.csv", table), "--labels", small_line / "metadata.csv")
    assert run.returncode == 3 and "could not be read: images/test_0001.png" in run.stderr
    assert len(astuple(table[1])) == len(rows.COLUMNS)
