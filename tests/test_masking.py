"""Which captions of a masking run look like mistakes, and where the answer is silence."""

import csv
import math

import numpy as np
import pytest
from shell import cmg_here, table

import cmgcli
from cmgcli.images import write_png
from cmgcli.masking import Misfits
from cmgcli.rows import MaskRow


def found(rows) -> list[str]:
    misfits = Misfits()
    for row in rows:
        misfits.add(row)
    return [row.file for row in misfits.rows]


def row(name: str, caption: str, match: float, other: str = "", match_other: float | None = None, doubt: float | None = None) -> MaskRow:
    return MaskRow(name, match_before=match, caption=caption, other_caption=other, match_other=match_other, doubt=doubt)


def rows_of(line, captions) -> list[MaskRow]:
    return [result.row for result in cmgcli.mask(line, captions, device="cpu", allow_missing=True)]


@pytest.fixture(scope="module")
def good_line(small_line, tmp_path_factory):
    """The flawless images of the small line: their captions are right."""
    path = tmp_path_factory.mktemp("good") / "captions.csv"
    with open(small_line / "metadata.csv", newline="") as file:
        good = [record for record in csv.DictReader(file) if record["label"] in ("", "0")]
    write_captions(path, {record["file_name"]: record["text"] for record in good})
    return path


def write_captions(path, captions: dict[str, str]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *captions.items()])


def captions_of(path) -> dict[str, str]:
    with open(path, newline="") as file:
        return {record["file_name"]: record["text"] for record in csv.DictReader(file)}


@pytest.fixture(scope="module")
def masked(small_line, good_line):
    return rows_of(small_line, good_line)


def test_right_captions_are_left_alone(masked):
    assert len(masked) == 30 and found(masked) == []


def test_a_swapped_caption_is_found_with_its_file_name(small_line, good_line, masked, tmp_path):
    clear = max(masked, key=lambda row: row.match_before)
    captions = captions_of(good_line)
    captions[clear.file] = next(text for text in captions.values() if text != clear.caption)
    write_captions(tmp_path / "swapped.csv", captions)
    masks = "mask", "--images", small_line, "--captions", tmp_path / "swapped.csv", "--allow-missing", "--out", tmp_path / "out"
    said = [line for line in cmg_here(*masks).err.splitlines() if "another caption" in line]
    assert said == [
        f"cmg: another caption of the run is clearly a better match for 1 of 30 images, first {clear.file}: "
        "are the captions right? see the columns other_caption and doubt"
    ]
    rows = {row["file"]: row for row in table((tmp_path / "out" / "summary.csv").read_text())}
    assert rows[clear.file]["other_caption"] == clear.caption and float(rows[clear.file]["doubt"]) > 0.95
    assert cmg_here("-q", *masks).err == ""


def test_most_swapped_captions_are_found(masked):
    """Each image in turn under a caption that fits it no better than its best other one does."""
    hits = 0
    for wrong in masked:
        swapped = row(wrong.file, wrong.other_caption, wrong.match_other, wrong.caption, wrong.match_before, 1 - wrong.doubt)
        hits += found([swapped if other is wrong else other for other in masked]) == [wrong.file]
    assert hits >= 0.6 * len(masked)


def test_blank_images_have_numbers_and_no_better_caption(small_line, good_line, tmp_path):
    captions = captions_of(good_line)
    for level in (0, 128, 255):
        write_png(tmp_path / f"{level}.png", np.full((90, 90, 3), level, np.uint8))
        captions[str(tmp_path / f"{level}.png")] = captions[next(iter(captions))]
    write_captions(tmp_path / "captions.csv", captions)
    rows = rows_of(small_line, tmp_path / "captions.csv")
    assert len(rows) == 33 and found(rows) == []
    for row in rows:
        values = row.match_before, row.match_after, row.kept, row.entropy_before, row.entropy_after, row.match_other, row.doubt
        assert all(math.isfinite(value) for value in values) and 0 <= row.doubt <= 1


def test_images_in_which_the_caption_fits_nothing_are_told_of(small_line, good_line, tmp_path):
    masks = "mask", "--images", small_line, "--captions", good_line, "--allow-missing", "--out", tmp_path / "out"
    assert "fits nothing" not in cmg_here(*masks).err
    captions = captions_of(good_line)
    first, second, *_ = captions
    write_captions(tmp_path / "wrong.csv", captions | {first: "a photo of a circuit board", second: "a photo of a circuit board"})
    said = [line for line in cmg_here("mask", "--images", small_line, "--captions", tmp_path / "wrong.csv", *masks[5:]).err.splitlines() if "fits nothing" in line]
    assert said == [
        f"cmg: the caption fits nothing in 2 of 30 images, first {first}: it names something else, or in words that the encoder does not know; "
        "there CMER looks for whatever lies on the ground"
    ]


def test_with_one_caption_there_is_no_other(small_line):
    result = next(cmgcli.mask(small_line / "images", caption="a photo of a brass gear", device="cpu"))
    assert (result.row.other_caption, result.row.match_other, result.row.doubt) == ("", None, None)
    assert found([result.row]) == []


@pytest.mark.parametrize("wrong_option", [("--keep", 7), ("--encoder", "nosuch"), ("--captions", "nosuch.csv")])
def test_a_run_that_cannot_begin_leaves_the_summary_of_the_last(small_line, tmp_path, wrong_option):
    (tmp_path / "summary.csv").write_text("of the last run", encoding="utf-8")
    captions = () if "--captions" in wrong_option else ("--captions", small_line / "metadata.csv")
    assert cmg_here("mask", "--images", small_line, *captions, "--out", tmp_path, *wrong_option).returncode == 2
    assert (tmp_path / "summary.csv").read_text(encoding="utf-8") == "of the last run"


def test_the_other_caption_must_fit_as_it_fits_its_own_images():
    bolts = [row(f"{i}.png", "bolt", match) for i, match in enumerate((0.1, 0.2, 0.3, 0.4, 0.5))]
    for match, fits in ((0.2, True), (0.19, False)):
        assert found([*bolts, row("x.png", "nut", -0.5, "bolt", match, 0.99)]) == (["x.png"] if fits else [])
    assert found([*bolts, row("x.png", "nut", 0.2, "bolt", 0.3, 0.95)]) == []
    assert found([row("x.png", "nut", -0.5, "bolt", 0.9, 0.99)]) == []  # the images of that caption could not be read
