"""Bad parts that are known: the head learns from them, the threshold does not, and nothing else changes."""

import csv
import json
import tracemalloc
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
from shell import cmg, wrong

import cmgcli
from cmgcli import evaluation, pipeline
from cmgcli.adapt import CROP, crops_of_defect
from cmgcli.dataset import read_dataset
from cmgcli.errors import DatasetError, ImageError, SettingsError
from cmgcli.head import peaks_and_map
from cmgcli.heldout import drawn_auroc
from cmgcli.images import write_png
from cmgcli.known import KnownDefects, known_records
from cmgcli.looks import Looks
from cmgcli.metrics import auroc
from cmgcli.pipeline import _key


def rewritten(line: Path, out: Path, change) -> Path:
    """The caption file of a line with ``change(number, row)`` made to each of its bad rows; paths stay those of the line."""
    with (line / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate([row for row in rows if row["label"] == "1"]):
        row.update(change(number, row))
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return out


@pytest.fixture(scope="module")
def known_line(small_line, tmp_path_factory) -> Path:
    """The small line's captions with three of its bad parts known, those with a mask."""
    left = iter(range(100))
    return rewritten(small_line, tmp_path_factory.mktemp("known") / "known.csv", lambda _, row: {"split": "train"} if row["mask"] and next(left) < 3 else {})


def records_of(line: Path, captions: Path):
    return read_dataset(line, captions).records


# ---- crops


@pytest.mark.parametrize("shape", [(300, 200), (60, 40), (24, 500)])
def test_crops_lie_around_the_defect_and_have_it_for_their_target(shape):
    rng = np.random.default_rng(0)
    image, mask = np.full((*shape, 3), 100, np.uint8), np.zeros(shape, bool)
    top, left = shape[0] // 2, shape[1] // 3
    mask[top : top + 10, left : left + 10] = True
    image[mask] = 250
    for crop in (crop for _ in range(10) for crop in crops_of_defect(image, mask, rng)):
        assert crop.image.shape == (CROP, CROP, 3) and crop.target.shape == crop.counts.shape == (CROP // 4, CROP // 4)
        bright = cv2.resize((crop.image[..., 0] - 100.0) / 150, crop.target.shape[::-1], interpolation=cv2.INTER_AREA)  # the share that is of the defect, about
        assert crop.target.any() and bright[crop.target].min() > 0.01 and bright[crop.counts & ~crop.target].max(initial=0) < 0.03
        assert not crop.target[~crop.counts].any()


@pytest.mark.parametrize("side", [4, 6])
def test_a_small_defect_is_never_taught_as_good(side):
    image, mask = np.full((700, 900, 3), 100, np.uint8), np.zeros((700, 900), bool)
    mask[350 : 350 + side, 500 : 500 + side] = True
    image[mask] = 250
    rng, without = np.random.default_rng(0), 0
    for crop in (crop for _ in range(30) for crop in crops_of_defect(image, mask, rng)):
        taught = cv2.resize(crop.counts.astype(np.uint8), (CROP, CROP), interpolation=cv2.INTER_NEAREST) * ~cv2.resize(
            crop.target.astype(np.uint8), (CROP, CROP), interpolation=cv2.INTER_NEAREST
        ).astype(bool)
        assert crop.image[taught > 0].max() < 110
        without += not crop.target.any()
    assert without < 30  # of 120: those that only graze it, or see it from far away


def test_finding_crops_in_a_large_image_takes_little_memory():
    image, mask = np.full((3000, 4000, 3), 100, np.uint8), np.zeros((3000, 4000), bool)
    mask[1500:1510, 2000:2010] = True
    tracemalloc.start()
    crops_of_defect(image, mask, np.random.default_rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000  # a float32 copy of the mask alone has 48


def test_crops_of_an_image_seen_in_tiles_are_of_one_tile(tmp_path):
    image, mask = np.full((400, 600, 3), 100, np.uint8), np.zeros((400, 600), bool)
    mask[200:210, 300:310] = True
    image[mask] = 250
    write_png(tmp_path / "a.png", image)
    (tmp_path / "masks").mkdir()
    write_png(tmp_path / "masks" / "mask.png", mask.astype(np.uint8)[..., None].repeat(3, 2) * 255)
    (tmp_path / "m.csv").write_text("file_name,text,split,label,mask\na.png,a part,train,1,masks/mask.png\n")
    (record,) = known_records(records_of(tmp_path, tmp_path / "m.csv"))
    spreads = {tile: {crop.spread for seed in range(9) for crop in KnownDefects([record], tile=tile).crops(np.random.default_rng(seed), 0)} for tile in (None, 64)}
    assert len(spreads[None]) == 1 and min(spreads[64]) > 4 * max(spreads[None])  # of the piece that a crop is cut from


# ---- which ones


def test_only_marked_bad_images_of_split_train_are_known(small_line, known_line, tmp_path, caplog):
    known = known_records(records_of(small_line, known_line))
    assert len(known) == 3 and all(record.label and record.split == "train" for record in known) and not caplog.records
    dark = tmp_path / "dark.png"
    write_png(dark, np.zeros((96, 96, 3), np.uint8))
    masks = iter([str(dark), "", *[None] * 9])
    captions = rewritten(small_line, tmp_path / "some.csv", lambda _, row: {"split": "train"} if not row["mask"] or (mask := next(masks)) is None else {"split": "train", "mask": mask})
    bad = [record for record in records_of(small_line, captions) if record.label]
    known = known_records(bad)
    assert known == tuple(record for record in bad if record.mask not in (None, dark.resolve())) and known
    assert f"left out: {len(bad) - len(known)} images labelled bad, first" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "no image of split train is labelled bad"),
        ({"split": "train", "mask": ""}, "of 6 images of split train labelled bad none has a mask that marks a defect"),
    ],
)
def test_without_a_known_defect_it_is_refused(small_line, tmp_path, change, words):
    captions = rewritten(small_line, tmp_path / "c.csv", lambda *_: change)
    with pytest.raises(SettingsError, match=f"known defects: {words}; expected rows with split train, label 1 and the mask"):
        cmgcli.fit(small_line, captions, known_defects=True, device="cpu")


def test_without_splits_no_bad_image_is_known(tmp_path):
    """`cmg eval` would judge by the images that the head has learnt from."""
    for name in ("a", "b", "m"):
        write_png(tmp_path / f"{name}.png", np.full((40, 40, 3), 200, np.uint8))
    (tmp_path / "m.csv").write_text("file_name,text,label,mask\na.png,a part,0,\nb.png,a part,1,m.png\n")
    with pytest.raises(SettingsError, match="no image of split train is labelled bad"):
        known_records(records_of(tmp_path, tmp_path / "m.csv"))


def test_a_mask_of_another_size_and_a_damaged_image_are_named_before_any_training(small_line, tmp_path):
    write_png(tmp_path / "m.png", np.full((50, 96, 3), 255, np.uint8))
    captions = rewritten(small_line, tmp_path / "c.csv", lambda *_: {"split": "train", "mask": str(tmp_path / "m.png")})
    with pytest.raises(DatasetError, match="expected the size of its image, 96 x 96, got 96 x 50"):
        cmgcli.fit(small_line, captions, known_defects=True, device="cpu", allow_missing=True)
    (tmp_path / "m.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="m.png"):
        cmgcli.fit(small_line, captions, known_defects=True, device="cpu", allow_missing=True)


def test_an_mvtec_training_image_does_not_take_the_mask_of_a_test_image(tmp_path):
    for path in ("train/good/0.png", "train/scratch/0.png", "test/scratch/0.png", "test/good/0.png", "ground_truth/scratch/0_mask.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        write_png(tmp_path / path, np.full((20, 20, 3), 200, np.uint8))
    masks = {record.file_name: record.mask for record in read_dataset(tmp_path, caption="a part").records}
    assert masks["test/scratch/0.png"].name == "0_mask.png" and masks["train/scratch/0.png"] is None


# ---- the fit


OPTIONS = {"false_alarm": 0.1, "adapt_steps": 4, "device": "cpu"}


def test_the_head_learns_from_them_and_all_else_is_as_before(small_line, known_line, small_model, tmp_path):
    model, again = (cmgcli.fit(small_line, known_line, known_defects=True, **OPTIONS) for _ in range(2))
    for name, weight in model.detector.head.state_dict().items():
        assert weight.equal(again.detector.head.state_dict()[name])
    assert any(not weight.equal(small_model.detector.head.state_dict()[name]) for name, weight in model.detector.head.state_dict().items())
    assert model.detector.settings.known_defects == 3 and small_model.detector.settings.known_defects == 0
    assert model.detector.fit_images == small_model.detector.fit_images and len(model.detector.calibration.scores) == len(small_model.detector.calibration.scores)
    assert model.detector.bank.features.equal(small_model.detector.bank.features)
    model.save(tmp_path / "m.cmg")
    assert cmgcli.Model.load(tmp_path / "m.cmg", device="cpu").detector.settings == model.detector.settings


def test_known_bad_images_that_lie_idle_change_nothing_and_are_told_of(small_line, known_line, small_model, tmp_path, caplog):
    model = cmgcli.fit(small_line, known_line, **OPTIONS)
    assert "left out: 3 images of split train labelled bad, with masks; --known-defects lets the defect head learn from them" in caplog.text
    model.save(tmp_path / "a.cmg")
    small_model.save(tmp_path / "b.cmg")
    assert (tmp_path / "a.cmg").read_bytes() == (tmp_path / "b.cmg").read_bytes()


@pytest.mark.parametrize("tile", [None, 48])
def test_the_held_out_curve_sees_them_too(small_line, known_line, monkeypatch, tile):
    monkeypatch.setattr("cmgcli.adapt.CHECKS", 2)
    shown, real = [], pipeline.drawn_auroc

    def spied(looks, numbers, known=()):
        shown.extend(known)
        return real(looks, numbers, known)

    monkeypatch.setattr(pipeline, "drawn_auroc", spied)
    monkeypatch.setattr("cmgcli.calibrate.FEWEST_TO_TUNE", 3)
    said = []
    cmgcli.fit(small_line, known_line, known_defects=True, tile=tile, progress=lambda stage, *_: said.append(stage), **OPTIONS)
    assert len(shown) == 3 and all(image.base is None and max(image.shape) == (tile or 96) and keep.dtype == bool for image, keep in shown)
    assert any("AUROC of drawn and known defects 0." in stage for stage in said)


def test_a_known_image_counts_in_the_curve(small_line, small_model):
    looks = Looks(records_of(small_line, small_line / "metadata.csv")[:6], small_model.encoder, small_model.detector.settings)
    (view,), views = next(looks.of([0]))[1], next(looks.of(range(1, 6)))[1]
    gross, head = view.image.copy(), deepcopy(small_model.detector.head)
    gross[20:50, 20:50] = 255 - gross[20:50, 20:50]
    plain = drawn_auroc(looks, range(1, 6))(head)
    found = drawn_auroc(looks, range(1, 6), [(gross, view.keep)] * 3)(head)
    good, bad = ([float(head.unusual(peaks_and_map(head, *one, precision=looks.settings.precision)[0])) for one in some] for some in ([(each.image, each.keep) for each in views], [(gross, view.keep)]))
    assert found == pytest.approx((5 * plain + 3 * auroc(np.r_[np.zeros(5), 1], np.r_[good, bad])) / 8)


def test_the_ablation_fits_with_them_where_the_model_did(small_line, known_line, monkeypatch):
    model, fitted = cmgcli.fit(small_line, known_line, known_defects=True, **OPTIONS), []
    real = evaluation.fit_records
    monkeypatch.setattr(evaluation, "VARIANTS", {"CMG": (True, True)})
    monkeypatch.setattr(evaluation, "fit_records", lambda *given, **options: fitted.append(real(*given, **options)) or fitted[-1])
    evaluation.ablate(model, small_line, known_line, adapt_steps=4)
    assert [one.detector.settings.known_defects for one in fitted] == [0, 3]
    with_head = fitted[1].detector.head.state_dict()
    assert all(weight.equal(with_head[name]) for name, weight in model.detector.head.state_dict().items() if name != "usual")


def test_a_broken_off_training_does_not_go_on_with_another_mask(small_line, known_line, small_model, tmp_path):
    record = known_records(records_of(small_line, known_line))[0]
    copy = tmp_path / "m.png"
    copy.write_bytes(record.mask.read_bytes())
    moved = [cmgcli.dataset.Record(record.file_name, record.path, record.text, "train", 1, mask=copy)]
    before = _key(moved, small_model.detector.settings)
    assert before == _key(moved, small_model.detector.settings) != _key([record], small_model.detector.settings)
    copy.write_bytes(record.mask.read_bytes() + b"\0")
    assert _key(moved, small_model.detector.settings) != before


def test_a_kind_that_nobody_would_draw_is_found_once_it_is_known(tmp_path):
    (tmp_path / "masks").mkdir()
    rng = np.random.default_rng(0)
    rows = ["file_name,text,split,label,mask"]
    for number in range(36):
        image, mask = rng.normal(128, 12, (64, 64)).clip(0, 255), np.zeros((64, 64), bool)
        if number >= 16:
            top, left = rng.integers(0, 40, 2)
            mask[top : top + 24, left : left + 24] = number % 2 > 0
            image[mask] = cv2.blur(image, (9, 1))[mask] * 0.3 + image[mask] * 0.7  # a faint grain along the rows
        write_png(tmp_path / f"{number}.png", image.astype(np.uint8)[..., None].repeat(3, 2))
        write_png(tmp_path / "masks" / f"{number}.png", mask.astype(np.uint8)[..., None].repeat(3, 2) * 255)
        split = "train" if number < 16 or (number < 24 and number % 2) else "test"
        rows.append(f"{number}.png,a grey plate,{split},{int(mask.any())},{f'masks/{number}.png' if mask.any() else ''}")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    test = [record for record in records_of(tmp_path, tmp_path / "m.csv") if record.split == "test"]
    truth = [record.label for record in test]

    def found(**options) -> float:
        model = cmgcli.fit(tmp_path, tmp_path / "m.csv", adapt_steps=60, device="cpu", **options)
        return auroc(truth, [row.head_score for row in model.score([record.path for record in test])])

    assert found(known_defects=True) > 0.9 > found() + 0.2


def test_the_command_says_what_the_head_learnt_from_and_the_report_too(small_line, known_line, tmp_path):
    out = tmp_path / "m.cmg"
    run = cmg("fit", "--images", small_line, "--captions", known_line, "--known-defects", "--adapt-steps", 2, "--false-alarm", 0.1, "--device", "cpu", "--out", out)
    assert run.returncode == 0 and "cmg: the defect head learnt from 3 known bad images too; the threshold is of good ones alone\n" in run.err
    run = cmg("eval", "--model", out, "--images", small_line, "--labels", known_line, "--report", tmp_path / "r.html", "--json", tmp_path / "f.json")
    assert run.returncode == 0 and "known defects" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "f.json").read_text())["images"] == 9  # three of the twelve test images are known, and judge nothing


def test_it_needs_the_head():
    wrong(cmg("fit", "--images", "x", "--known-defects", "--no-adapt"), "--known-defects teaches the defect head, which --no-adapt leaves out")
    for without in ({"adapt": False}, {"adapt_steps": 0}):
        with pytest.raises(SettingsError, match="known defects are for the defect head"):
            cmgcli.fit(Path(__file__).parent, caption="a part", known_defects=True, device="cpu", **without)


def test_a_file_may_ask_for_it_and_the_command_line_for_no_head(small_line, known_line, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(f"images: {small_line}\ncaptions: {known_line}\nknown_defects: true\n")
    for more in ((), ("--no-known-defects",)):
        assert cmg("fit", "--config", config, "--no-adapt", "--device", "cpu", "--out", tmp_path / "m.cmg", *more).returncode == 0
