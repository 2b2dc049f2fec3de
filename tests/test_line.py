"""The procedural line: every part with every defect, true masks, repeatable files."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from cmgcli.captions import describe
from cmgcli.errors import OutputError
from cmgcli.line import BACKGROUNDS, DEFECTS, MATERIALS, PARTS, WITH_HOLES, Sample, render, write_line
from cmgcli.parts import FRAME_FILLING, shape


def test_there_is_enough_variety() -> None:
    assert len(PARTS) >= 28 and len(MATERIALS) >= 22 and len(BACKGROUNDS) >= 11
    assert set(WITH_HOLES) | set(FRAME_FILLING) < set(PARTS) and not set(WITH_HOLES) & set(FRAME_FILLING)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("defect", ["", *DEFECTS])
def test_every_part_with_every_defect(part: str, defect: str) -> None:
    if defect == "missing hole" and part not in WITH_HOLES:
        with pytest.raises(ValueError, match="no hole"):
            render(np.random.default_rng(0), size=64, part=part, defect=defect)
        return
    sample = render(np.random.default_rng(0), size=64, part=part, defect=defect)
    assert sample.image.shape == (64, 64, 3) and sample.image.dtype == np.uint8
    assert sample.object_mask.dtype == sample.defect_mask.dtype == bool
    if part in FRAME_FILLING and defect != "wrong part":
        assert sample.object_mask.all()
    else:  # a wrong part, or the right part in a wrong material
        assert 0.04 < sample.object_mask.mean() < 0.5 or part in FRAME_FILLING and sample.object_mask.all()
    assert sample.defect_mask.any() == (defect not in ("", "wrong part"))
    assert not (sample.defect_mask & ~sample.object_mask).any()
    assert (sample.part, sample.defect) == (part, defect) and sample.caption


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("size", [8, 33, 128])
def test_backgrounds_at_any_size(background: str, size: int) -> None:
    assert np.ptp(render(np.random.default_rng(2), size=size, background=background).image) > 20


@pytest.mark.parametrize("material", MATERIALS)
def test_materials_differ(material: str) -> None:
    def colour(name: str) -> np.ndarray:
        sample = render(np.random.default_rng(4), size=64, part="washer", material=name, background="grey belt")
        return sample.image[sample.object_mask].mean(axis=0)

    others = [np.abs(colour(material) - colour(other)).max() for other in MATERIALS if other != material]
    assert min(others) > 3


@pytest.mark.parametrize("part", WITH_HOLES)
def test_a_missing_hole_fills_the_part(part: str) -> None:
    for seed in range(4):
        whole, filled = (
            render(np.random.default_rng(seed), size=128, part=part, defect=defect, caption="a part", design=seed)
            for defect in ("", "missing hole")
        )
        fresh = filled.object_mask & ~whole.object_mask
        assert fresh.any()
        assert (fresh & filled.defect_mask).sum() > 0.9 * fresh.sum()
        assert fresh.sum() > 0.6 * filled.defect_mask.sum()


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_caption_is_kept(defect: str) -> None:
    sample = render(np.random.default_rng(1), size=48, part="gear", material="brass", defect=defect, caption="gear 7")
    assert (sample.caption, sample.part, sample.material) == ("gear 7", "gear", "brass")


def test_the_same_seed_renders_the_same() -> None:
    first, second = (render(np.random.default_rng(9), size=96, defect="crack") for _ in range(2))
    assert np.array_equal(first.image, second.image) and np.array_equal(first.defect_mask, second.defect_mask)
    assert first.caption == second.caption


def test_captions_vary_and_are_whole() -> None:
    rng = np.random.default_rng(0)
    captions = {describe("gear", "aluminium", "newspaper", rng) for _ in range(200)}
    assert len(captions) > 20
    assert any("paper" in caption for caption in captions) and any("paper" not in caption for caption in captions)
    every = [describe(part, material, "grey belt", rng) for part in PARTS for material in MATERIALS]
    assert not any("{" in caption or "a aluminium" in caption or "an steel" in caption for caption in every)


def test_the_parts_with_holes_are_those_that_have_some() -> None:
    assert {part for part in PARTS if any(layer.hole for layer in shape(part, np.random.default_rng(0)))} == set(WITH_HOLES)


def test_a_frame_filling_part_hides_what_is_under_it() -> None:
    rng = np.random.default_rng(0)
    for size in (16, 97):
        for _ in range(20):
            assert render(rng, size=size, part="sheet").object_mask.all()
    assert not any("paper" in describe("sheet", "steel", "newspaper", rng) for _ in range(200))


def test_no_other_part_is_swapped_for_a_frame_filling_one() -> None:
    rng = np.random.default_rng(0)
    assert not any(render(rng, size=16, part="gear", defect="wrong part").object_mask.all() for _ in range(150))


def test_a_bad_day_changes_the_picture_only() -> None:
    fair, harsh = ([render(np.random.default_rng(seed), size=64, defect="stain", harsh=bad) for seed in range(60)] for bad in (False, True))
    for one, other in zip(fair, harsh, strict=True):
        assert one.caption == other.caption and np.array_equal(one.object_mask, other.object_mask)
        assert np.array_equal(one.defect_mask, other.defect_mask) and not np.array_equal(one.image, other.image)

    def grey(samples: list[Sample]) -> float:
        return np.mean([np.ptp(sample.image, axis=2).max() == 0 for sample in samples])

    assert grey(fair) == 0 and 0.05 < grey(harsh) < 0.4
    levels = [np.array([sample.image.mean() for sample in samples]) for samples in (fair, harsh)]
    assert levels[1].min() < levels[0].min() and levels[1].std() > levels[0].std()


def test_unknown_names_are_named() -> None:
    rng = np.random.default_rng(0)
    for wrong in ({"part": "cat"}, {"material": "cheese"}, {"background": "moon"}, {"defect": "sadness"}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"unknown {name} '{value}': choose one of"):
            render(rng, size=32, **wrong)


def read(metadata: Path) -> list[dict[str, str]]:
    with metadata.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_written_line(tmp_path: Path) -> None:
    metadata = write_line(tmp_path / "new" / "line", train=7, test=24, size=48, seed=3)
    folder, rows = metadata.parent, read(metadata)
    assert metadata.read_bytes().startswith(b"file_name,text,split,label,defect,mask\n") and b"\r" not in metadata.read_bytes()
    assert [row["split"] for row in rows] == ["train"] * 7 + ["test"] * 24
    assert all(row["label"] == "0" for row in rows[:7])
    assert sorted(row["defect"] for row in rows if row["label"] == "1") == sorted(DEFECTS * 2)
    assert len({row["text"] for row in rows}) == 6
    for row in rows:
        image = cv2.imread(str(folder / row["file_name"]))
        assert image.shape == (48, 48, 3)
        assert bool(row["mask"]) == (row["defect"] not in ("", "wrong part"))
        if row["mask"]:
            mask = cv2.imread(str(folder / row["mask"]), cv2.IMREAD_UNCHANGED)
            assert mask.shape == (48, 48) and set(np.unique(mask)) == {0, 255}
    assert len(list((folder / "images").iterdir())) == 31 and len(list((folder / "masks").iterdir())) == 10


def test_two_lines_are_equal_byte_for_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_line(tmp_path / name, train=4, test=6, size=40, seed=1)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) > 10
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    write_line(tmp_path / "c", train=4, test=6, size=40, seed=2)
    assert (tmp_path / "c/images/train_0000.png").read_bytes() != (tmp_path / "a/images/train_0000.png").read_bytes()


def test_a_line_is_never_overwritten(tmp_path: Path) -> None:
    write_line(tmp_path, train=1, test=0, size=16)
    with pytest.raises(OutputError, match=r"metadata\.csv already exists: choose an empty directory"):
        write_line(tmp_path, train=1, test=0, size=16)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="choose another directory"):
        write_line(tmp_path / "file" / "line", train=1, test=0, size=16)
