"""Changes of a shop floor, the run over them, and what it says."""

import json
from dataclasses import replace
from datetime import datetime

import cv2
import numpy as np
import pytest
from made_cases import made_case, made_evaluation
from shell import cmg_here, wrong
from test_page import Elements

from cmgcli import changes, stressing
from cmgcli.changes import CHANGES, STRENGTHS, changed
from cmgcli.errors import DatasetError, SettingsError
from cmgcli.figures import rate_of
from cmgcli.images import read_image, write_png
from cmgcli.page import Page, render
from cmgcli.stress import Rates, Stress, Trial, stress_table


def picture(height: int = 60, width: int = 90) -> np.ndarray:
    """Coloured, with a fine grain: what lies further away differs more."""
    coarse = np.array([[[60, 90, 200], [180, 120, 60]], [[100, 200, 80], [200, 60, 150]]], np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return smooth + np.random.default_rng(0).integers(0, 8, smooth.shape, np.uint8)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_a_change_grows_with_its_strength_and_is_the_same_each_time(change):
    image = picture(300, 240)
    before = image.copy()
    assert len(change.amounts) == STRENGTHS
    distances = [0.0]
    for strength in range(1, STRENGTHS + 1):
        out = changed(image, change, strength, 7)
        assert out.shape == image.shape and out.dtype == np.uint8
        np.testing.assert_array_equal(out, changed(image, change, strength, 7))
        distances.append(float(np.abs(out.astype(int) - image).mean()))
    np.testing.assert_array_equal(image, before)
    assert all(weaker < stronger for weaker, stronger in zip(distances, distances[1:], strict=False)), distances


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2)])
def test_tiny_pictures_survive(change, size):
    image = np.full((*size, 3), 90, np.uint8)
    assert all(changed(image, change, strength, 0).shape == image.shape for strength in (1, STRENGTHS))


def test_directions_differ_from_image_to_image_but_dust_stays_where_it_is():
    flat = np.full((40, 40, 3), 120, np.uint8)
    light = next(change for change in CHANGES if change.name == "brightness")
    means = {int(changed(flat, light, 3, number).mean()) for number in range(20)}
    assert means == {100, 144}  # 120 / 1.2 and 120 * 1.2
    specks = next(change for change in CHANGES if change.name == "camera dust")
    first = changed(flat, specks, 3, 0)
    np.testing.assert_array_equal(first, changed(flat, specks, 3, 1))
    assert ((changed(flat, specks, 5, 1) < flat) >= (first < flat)).all()


def test_a_gray_picture_stays_gray_under_noise():
    gray = np.repeat(picture()[..., :1], 3, axis=2)
    out = changes.noise(gray, 10, np.random.default_rng(0))
    assert (out == out[..., :1]).all()


def test_the_run_gives_the_counts_of_scoring_the_changed_files(small_model, small_line, tmp_path, monkeypatch):
    few = tuple(change for change in CHANGES if change.name in ("noise", "rotation"))
    monkeypatch.setattr(stressing, "CHANGES", few)
    labels = small_line / "metadata.csv"
    found = stressing.stress(small_model, small_line, labels, most=4, batch_size=7)
    assert (found.images, found.anomalous, found.promised) == (4, 2, small_model.detector.calibration.promised_rate)
    records = stressing.drawn([r for r in stressing.read_records(small_line, labels) if r.split == "test"], 4)
    for k, change in enumerate(few):
        for strength in (1, 5):
            rejected = {0: 0, 1: 0}
            for number, record in enumerate(records):
                path = tmp_path / f"{k}{strength}{number}.png"
                write_png(path, changed(read_image(record.path), change, strength, number))
                (row,) = small_model.score([path], {path.resolve(): record.text})
                rejected[record.label] += row.anomalous
            rates = found.trials[k].rates[strength - 1]
            assert (rates.false_alarm.count, rates.miss.count) == (rejected[0], 2 - rejected[1])


def test_an_image_that_cannot_be_read_counts_nowhere(small_model, small_line, tmp_path, monkeypatch):
    monkeypatch.setattr(stressing, "CHANGES", CHANGES[:1])
    rows = ["file_name,text,label"]
    for i, source in enumerate(["test_0000", "test_0001", "test_0002"]):
        (tmp_path / f"{i}.png").write_bytes((small_line / "images" / f"{source}.png").read_bytes() if i < 2 else b"no")
        rows.append(f"{i}.png,a photo of a brass gear,{i % 2}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    found = stressing.stress(small_model, tmp_path, tmp_path / "m.csv")
    assert (found.images, found.anomalous, found.untouched.false_alarm.total) == (2, 1, 1)
    (tmp_path / "1.png").write_bytes(b"no")
    with pytest.raises(DatasetError, match="only label 0"):
        stressing.stress(small_model, tmp_path, tmp_path / "m.csv")


def test_a_draw_keeps_the_share_of_bad_parts():
    records = [made_case(i, i % 4 == 0, 0.0).record for i in range(100)]
    for most, bad in ((2, 1), (3, 1), (20, 5), (99, 25)):
        chosen = stressing.drawn(records, most)
        assert len(chosen) == most and sum(record.label for record in chosen) == bad
        assert list(chosen) == sorted(chosen, key=lambda record: record.path)
    assert stressing.drawn(records, 100) == tuple(records) == stressing.drawn(records, None)
    with pytest.raises(SettingsError, match="at least a good and a bad image, got 1"):
        stressing.drawn(records, 1)


def made_stress(noise: tuple[int, ...] = (1, 2, 30, 55, 60), *, promised: float | None = 0.01, untouched: int = 1) -> Stress:
    """60 good and 50 bad parts; noise makes so many false alarms, blur hides the bad parts, light changes nothing."""

    def trial(number: int, alarms: tuple[int, ...], misses: tuple[int, ...]) -> Trial:
        change = CHANGES[number]
        rates = tuple(Rates(rate_of(a, 60), rate_of(m, 50)) for a, m in zip(alarms, misses, strict=True))
        return Trial(change.name, change.wording, change.amounts, rates)

    calm, still = (untouched,) * 5, (20,) * 5
    trials = trial(0, calm, still), trial(2, calm, (20, 30, 40, 50, 50)), trial(3, noise, (15, 10, 5, 0, 0))
    return Stress(110, 50, promised, 99, "split", Rates(rate_of(untouched, 60), rate_of(20, 50)), trials)


def test_the_sentence_names_what_breaks_first():
    def said(stress: Stress) -> str:
        return stress.sentence.replace("\xa0", " ")

    assert said(made_stress()) == (
        "Noise breaks the promise first: at 8 grey levels 30 of 60 good parts are rejected, promised: at most 1.0 %; 1 of the same without it."
    )
    assert said(made_stress((1, 1, 2, 2, 3))) == "No change breaks the promise of at most 1.0 % false alarms, as far as 60 good parts can tell."
    assert said(made_stress(promised=None)) == "Nothing was promised, so no change can break it."
    assert said(made_stress(untouched=20)).startswith("The promise is broken before anything changes: 20 of 60 good parts are rejected")
    assert "promised: about 1.0 %" in said(replace(made_stress(), method="cross"))
    assert made_stress().blindness == "Most bad parts are hidden by blur: at 1 % of the side 50 of 50 are missed, 20 without it."
    assert made_stress().first_break.strength == 3


def test_one_rate_of_many_that_is_high_by_chance_breaks_nothing():
    stress = made_stress((3, 1, 1, 1, 1))
    assert rate_of(3, 60).low > 0.01  # by its own interval it would
    assert stress.first_break is None
    assert made_stress((1, 1, 1, 1, 5)).first_break is None  # so many a calibration of 99 images may give
    assert replace(made_stress((1, 1, 1, 1, 5)), calibrated=9999).first_break.strength == 5
    assert made_stress((1, 1, 1, 1, 12)).first_break.strength == 5


def test_table_json_and_page_say_the_same():
    stress = made_stress()
    table = stress_table(stress)
    noise = [str(list(column.cells)[2]) for column in table.columns]
    assert noise == ["noise\n2 to 22 grey levels", "2/40", "2/30", "3/20", "!50/10", "!92/0", "!100/0"]
    figures = json.loads(json.dumps(stress.as_dict(), allow_nan=False))
    assert figures["first_break"]["change"] == "noise" and figures["trials"][2]["rates"][2]["false_alarm"]["count"] == 30
    assert made_stress(untouched=20).as_dict()["first_break"]["change"] is None
    result = made_evaluation()
    page = render(Page("p", result, datetime(2026, 1, 1), stress=stress))
    elements = Elements(page)
    assert "Noise breaks the promise first" in elements.text and "nan" not in page[page.index("Will it hold") :].lower().split("</svg>")[0]
    assert render(Page("p", result, datetime(2026, 1, 1), stress=stress)) == page
    assert "shop floor" not in render(Page("p", result, datetime(2026, 1, 1)))
    empty = replace(stress, untouched=Rates(rate_of(0, 60), None), promised=None)
    assert "Nothing was promised" in render(Page("p", result, datetime(2026, 1, 1), stress=empty))


def test_the_command_runs_it(small_line, model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(stressing, "CHANGES", CHANGES[:1])
    labels = "--images", small_line, "--labels", small_line / "metadata.csv"
    run = cmg_here("eval", "--model", model_file, *labels, "--stress", "--stress-images", 4, "--json", tmp_path / "e.json", "--report", tmp_path / "r.html")
    assert run.returncode == 0 and "stress: % of 2 good parts" in run.out
    figures = json.loads((tmp_path / "e.json").read_text())["stress"]
    assert figures["images"] == 4 and figures["trials"][0]["name"] == "brightness"
    assert "Will it hold on the shop floor?" in (tmp_path / "r.html").read_text()
    wrong(cmg_here("eval", "--model", model_file, *labels, "--stress-images", 4), "give --stress too")
    wrong(cmg_here("eval", "--scores", tmp_path / "s.csv", *labels, "--stress"), "--model instead of --scores")
