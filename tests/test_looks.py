"""What a few images of a line tell of all: whether there is a ground around what their captions name."""

from dataclasses import replace

import numpy as np
import pytest
from shell import cmg_here, table

import cmgcli
from cmgcli import line
from cmgcli.dataset import Record
from cmgcli.encoder import load_encoder
from cmgcli.images import write_png
from cmgcli.looks import Looks, ground_of
from cmgcli.model import nothing_discarded


def told(records, encoder):
    return ground_of({record.path: record.text for record in records}, encoder)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("builtin", device="cpu")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Records of twelve parts before a ground, and of as many surfaces that fill the frame, all flawless."""
    folder, rng, found = tmp_path_factory.mktemp("shown"), np.random.default_rng(5), {False: [], True: []}
    while min(map(len, found.values())) < 12:
        scene = line.render(rng, size=168)
        kind = bool(scene.object_mask.all())
        path = folder / f"{kind}_{len(found[kind])}.png"
        write_png(path, scene.image)
        found[kind].append(Record(path.name, path, f"a photo of a {scene.material} {scene.part}", "train", 0))
    return found[False][:12], found[True][:12]


def test_parts_have_a_ground_and_surfaces_that_fill_the_frame_have_none(encoder, shown):
    parts, surfaces = shown
    assert told(parts, encoder) == "yes"
    assert told(surfaces, encoder) == "no"
    assert told([*parts, *surfaces], encoder) == "by image"
    assert told([*parts, *surfaces[:3]], encoder) == told([*parts[:3], *surfaces], encoder) == "by image"


def test_few_images_leave_it_to_each(encoder, shown):
    assert told(shown[0][:7], encoder) == told(shown[1][:7], encoder) == "by image"


def test_an_image_that_cannot_be_read_tells_nothing(encoder, shown, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"none")
    broken = replace(shown[1][0], path=tmp_path / "broken.png")
    assert told([broken, *shown[1][1:]], encoder) == "no"
    assert told([broken] * 20, encoder) == "by image"


def test_other_encoders_leave_it_to_each_image(tiny_folder, shown):
    assert told(shown[1], load_encoder(f"local-dir:{tiny_folder}", device="cpu")) == "by image"


def test_a_fit_on_surfaces_discards_nothing_and_says_so(shown, tmp_path, caplog):
    (tmp_path / "captions.csv").write_text("file_name,text\n" + "".join(f"{record.path},{record.text}\n" for record in shown[1]), encoding="utf-8")
    options = {"adapt": False, "bank_size": 64, "device": "cpu"}
    with caplog.at_level(25, logger="cmgcli"):
        model = cmgcli.fit(shown[1][0].path.parent, tmp_path / "captions.csv", allow_missing=True, **options)
    assert nothing_discarded(model.detector.settings) and "CMER discards nothing" in caplog.text and "fits nothing" not in caplog.text
    model.save(tmp_path / "m.cmg")
    loaded = cmgcli.Model.load(tmp_path / "m.cmg", device="cpu")
    parts = [record.path for record in shown[0][:3]]  # whatever an image looks like by itself
    assert [row.kept for row in loaded.score(parts)] == [1.0] * 3
    kept = cmgcli.fit(shown[1][0].path.parent, tmp_path / "captions.csv", allow_missing=True, keep=0.2, **options)
    assert all(row.kept < 1 for row in kept.score(parts))


def test_masks_of_surfaces_keep_all_and_say_so(shown, tmp_path):
    (tmp_path / "captions.csv").write_text("file_name,text\n" + "".join(f"{record.path},a photo of a 弁座\n" for record in shown[1]), encoding="utf-8")
    masks = "mask", "--images", shown[1][0].path.parent, "--captions", tmp_path / "captions.csv", "--allow-missing", "--out", tmp_path / "out"
    run = cmg_here(*masks)
    assert run.returncode == 0 and "CMER discards nothing" in run.err and "fits nothing" not in run.err
    assert {row["kept"] for row in table((tmp_path / "out" / "summary.csv").read_text(encoding="utf-8"))} == {"1"}
    run = cmg_here(*masks, "--keep", "0.2")
    assert "CMER discards nothing" not in run.err
    assert all(float(row["kept"]) < 1 for row in table((tmp_path / "out" / "summary.csv").read_text(encoding="utf-8")))


def test_looks_under_other_settings_of_the_ground_are_refused(shown, encoder):
    model = cmgcli.fit(shown[1][0].path.parent, caption="a photo of steel", adapt=False, bank_size=64, device="cpu")
    looks, settings = Looks(shown[1], encoder, model.detector.settings), model.detector.settings
    with pytest.raises(ValueError, match="ground"):
        looks.under(replace(settings, ground="yes" if settings.ground != "yes" else "no"))
