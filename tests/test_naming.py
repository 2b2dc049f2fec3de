"""Naming defects: the file of phrases, the regions, the phrase that fits best, the columns, and the confusion."""

import json
from dataclasses import replace
from datetime import datetime

import cv2
import numpy as np
import pytest
import torch
from made_cases import made_evaluation
from shell import cmg_here, table, wrong

from cmgcli import naming, rows
from cmgcli.encoder import load_encoder
from cmgcli.errors import DatasetError
from cmgcli.figures import confusion_of
from cmgcli.model import Inspection
from cmgcli.naming import Namer, Phrase, patch_peaks, read_phrases, strange_regions, strangest_patches
from cmgcli.page import Page, render
from cmgcli.report import confusion_table
from cmgcli.rows import COLUMNS, NamedRow, Row, read_scores


def test_phrases_are_names_or_names_with_a_text(tmp_path):
    path = tmp_path / "defects.txt"
    path.write_bytes("\ufeff# of this line\nscratch\r\n\n stain : a dark, oily: patch \nRiß\n".encode())
    assert read_phrases(path) == (Phrase("scratch", "scratch"), Phrase("stain", "a dark, oily: patch"), Phrase("Riß", "Riß"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["names no defect", "one a line"]),
        (b"# only words\n\n", ["names no defect"]),
        (b"scratch\nchip:\n", ["line 2", "expected a defect such as scratch", "'chip:'"]),
        (b": a phrase\n", ["line 1", "': a phrase'"]),
        (b"scratch\nScratch: again\n", ["line 2", "named twice"]),
        (b"scratch; chip\n", ["line 1", "leave out ';'"]),
        (b"scr\x07atch\n", ["control characters"]),
        (b"caf\xe9\n", ["not UTF-8"]),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, data, words):
    path = tmp_path / "defects.txt"
    path.write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        read_phrases(path)
    for word in ("defects.txt", *words):
        assert word in str(caught.value)
    for other in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(DatasetError, match="cannot be read"):
            read_phrases(other)


def test_regions_are_strange_patches_that_touch():
    keep = np.ones((8, 8), bool)
    keep[7] = False
    strange = np.zeros((80, 80), np.float32)
    strange[5, 5] = strange[15, 15] = 1  # two patches that touch at a corner
    strange[65, 35] = 2
    strange[75, 75] = 9  # hidden
    peaks = patch_peaks(strange, keep)
    assert [region.tolist() for region in strange_regions(peaks)] == [[0, 9], [51]]
    assert strange_regions(peaks * 0.1) == [] and strangest_patches(peaks).tolist() == [51]


class KnowingEncoder:
    """An encoder that averages and has an axis for each word; a patch shows the word whose number its pixels have."""

    averages, sharpness = True, 10.0
    words = ("plain", "scratch", "stain")

    def preprocess(self, images):
        return torch.from_numpy(np.stack(images)[..., 0])

    def encode_image(self, pixels):
        from cmgcli.encoder import ImageFeatures

        dense = torch.eye(3)[pixels.flatten(1).long()]
        return ImageFeatures(dense.mean(1), dense, ())

    def encode_text(self, texts):
        return torch.stack([torch.eye(3)[next((i for i, word in enumerate(self.words) if i and word in text), 0)] for text in texts])


def inspection(image: np.ndarray, model, path) -> Inspection:
    (found,) = model.inspect([path], maps=True)
    strange = (image > 0).astype(np.float32)
    view = replace(found.view, image=np.repeat(image[..., None], 3, axis=2), keep=np.ones(image.shape, bool))
    return replace(found, view=view, anomaly_map=strange)


def test_each_region_is_named_and_the_surest_comes_first(small_model, small_line):
    image = np.zeros((6, 6), np.uint8)
    image[0, 0] = 1
    image[3:5, 3:5], image[5, 5] = 2, 1  # mostly a stain
    namer = Namer(KnowingEncoder(), [Phrase("a", "scratch"), Phrase("b", "a stain")])
    found = namer.defects(inspection(image, small_model, small_line / "images" / "test_0001.png"))
    assert [defect.name for defect in found] == ["a", "b"] and 1 > found[0].score > found[1].score > 0.5
    alone = namer.defects(inspection(image * (image == 2), small_model, small_line / "images" / "test_0001.png"))
    assert [defect.name for defect in alone] == ["b"]


def test_a_tower_that_does_not_average_encodes_the_region_alone(tiny_folder, small_line, small_model):
    encoder = load_encoder(f"local-dir:{tiny_folder}", device="cpu")
    assert not encoder.averages
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    (found,) = small_model.inspect([small_line / "images" / "test_0001.png"], maps=True)
    strange = np.zeros((32, 32), np.float32)
    strange[10, 10], strange[12, 18] = 1, 1  # patches 5 and 6 of 4 x 4
    seen = replace(found, view=replace(found.view, image=image, keep=np.ones((4, 4), bool)), anomaly_map=strange)
    (embedding,) = Namer(encoder, [Phrase("x", "x")]).regions(seen)
    alone = encoder.encode_image(encoder.preprocess([image]), index=torch.tensor([[5, 6]])).embedding[0]
    torch.testing.assert_close(embedding, alone)


@pytest.fixture
def noise(tmp_path):
    cv2.imwrite(str(tmp_path / "noise.png"), np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8))
    return tmp_path / "noise.png"


@pytest.fixture
def defects(tmp_path):
    (tmp_path / "defects.txt").write_text("scratch\nstain: a dark stain\n")
    return tmp_path / "defects.txt"


def test_the_columns_stand_at_the_end_of_anomalous_rows_only(small_line, model_file, noise, defects, tmp_path):
    good = sorted((small_line / "images").glob("train*"))[0]
    command = ("score", "--model", model_file)
    plain = cmg_here(*command, noise, good, tmp_path / "none.png")
    run = cmg_here(*command, "--defects", defects, noise, good, tmp_path / "none.png")
    assert run.returncode == plain.returncode == 3
    first, second, third = table(run.out)
    assert tuple(first) == (*COLUMNS, "defect", "defect_score")
    assert [{name: row[name] for name in COLUMNS} for row in (first, second, third)] == table(plain.out)
    assert set(first["defect"].split("; ")) <= {"scratch", "stain"} and 0 < float(first["defect_score"]) < 1
    assert [row[name] for row in (second, third) for name in ("defect", "defect_score")] == [""] * 4
    assert cmg_here(*command, "--defects", defects, "--batch-size", 1, noise, good, tmp_path / "none.png").out == run.out


@pytest.mark.parametrize("style", ["csv", "jsonl"])
def test_a_run_with_names_is_read_and_resumed_as_such(small_line, model_file, noise, defects, tmp_path, style):
    good = sorted((small_line / "images").glob("train*"))[0]
    out = tmp_path / "scores"
    command = ("score", "--model", model_file, "--batch-size", 1, "--format", style, "--out", out, "--resume")
    assert cmg_here(*command, "--defects", defects, noise, good).returncode == 0
    whole = out.read_bytes()
    read = read_scores(out)
    assert [type(row) for row in read] == [NamedRow] * 2 and read[0].defect and read[1].defect_score is None
    out.write_bytes(whole[:-5])
    wrong(cmg_here(*command, noise, good), "begun with --defects")
    assert cmg_here(*command, "--defects", defects, noise, good).returncode == 0
    assert out.read_bytes() == whole
    out.unlink()
    assert cmg_here(*command, noise, good).returncode == 0
    wrong(cmg_here(*command, "--defects", defects, noise, good), "begun without --defects")


def test_rows_with_names_come_back(tmp_path):
    written = (NamedRow("a.png", score=1.0, anomalous=1, defect="scratch; Riß, lang", defect_score=0.5), NamedRow("b.png"))
    for jsonl in (False, True):
        with open(tmp_path / "s", "w", encoding="utf-8", newline="") as stream:
            write = rows.row_writer(stream, NamedRow, jsonl=jsonl)
            for row in written:
                write(row)
        assert read_scores(tmp_path / "s") == written
    assert Row("a") != NamedRow("a")


def test_the_confusion_counts_first_names_by_label():
    found = confusion_of(("scratch", "Stain"), [("scratch", "scratch"), ("scratch", "Stain"), ("stain", "Stain"), ("dent", "scratch")])
    assert found.counts == {"dent": {"scratch": 1}, "scratch": {"scratch": 1, "Stain": 1}, "stain": {"Stain": 1}}
    assert (found.right.count, found.right.total) == (2, 3)
    assert found.sentence.startswith("The first name is the label in 2 of 3 bad images: 0.67 [") and found.sentence.endswith("2 names: 0.50.")
    cells = [[str(cell) for cell in column.cells] for column in confusion_table(found).columns]
    assert cells == [["dent", "scratch", "stain"], ["1", "1", "0"], ["0", "1", "1"]]
    assert confusion_of(("a",), [("b", "a")]).sentence == "None of the labels is one of the names: a."
    result = replace(made_evaluation(), naming=found)
    assert "What is it?" in render(Page("p", result, datetime(2026, 1, 1)))
    assert json.loads(json.dumps(result.as_dict()))["naming"]["counts"]["scratch"] == {"scratch": 1, "Stain": 1}


def test_eval_compares_the_names_with_the_labels(small_line, model_file, tmp_path):
    names = tmp_path / "defects.txt"
    names.write_text("\n".join(("scratch", "stain", "chip", "crack", "missing hole", "wrong part")))
    labels = "--images", small_line, "--labels", small_line / "metadata.csv"
    run = cmg_here("eval", "--model", model_file, *labels, "--defects", names, "--json", tmp_path / "e.json")
    assert run.returncode == 0 and "what is it?" in run.out and "guessing among 6 names: 0.17" in " ".join(run.out.split())
    found = json.loads((tmp_path / "e.json").read_text())["naming"]
    assert sum(sum(counts.values()) for counts in found["counts"].values()) == 6 == found["right"]["total"]
    wrong(cmg_here("eval", "--scores", tmp_path / "s.csv", *labels, "--defects", names), "--model instead of --scores")
    names.write_text("")
    wrong(cmg_here("eval", "--model", model_file, *labels, "--defects", names), "names no defect")
    wrong(cmg_here("score", "--model", model_file, "--defects", tmp_path / "none.txt", small_line), "cannot be read")


def test_flawless_and_defective_have_as_many_wordings():
    assert len(naming.FLAWLESS) == len(naming.DEFECTIVE)
