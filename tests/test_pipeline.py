"""Fit, score and mask as a whole, on a small line and a real model."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import cmgcli
from cmgcli import checkpoint
from cmgcli.dataset import caption_lookup, read_dataset
from cmgcli.encoder import Encoder
from cmgcli.errors import CheckpointError, DatasetError, EncoderError, ImageError
from cmgcli.images import write_png
from cmgcli.model import Model
from cmgcli.view import RELEVANCE


def captions_of(folder):
    return caption_lookup(read_dataset(folder, folder / "metadata.csv").records)


def test_images(folder):
    return sorted((folder / "images").glob("test*"))


test_images.__test__ = False


@pytest.fixture(scope="module")
def rows(small_model, small_line):
    return list(small_model.score(test_images(small_line), captions_of(small_line)))


def test_one_row_per_image_in_order_with_every_part(rows, small_line):
    assert [row.file for row in rows] == [str(path) for path in test_images(small_line)]
    for row in rows:
        assert row.error == ""
        assert all(np.isfinite([row.score, row.image_score, row.patch_score, row.head_score, row.match]))
        assert 0 < row.p_value <= 1 and 0 < row.kept <= 1 and row.anomalous in (0, 1)
        assert row.caption.startswith("a photo of a")
    assert len({row.score for row in rows}) == len(rows)


def test_scores_are_equal_after_save_and_load(rows, model_file, small_line):
    again = list(Model.load(model_file, device="cpu").score(test_images(small_line), captions_of(small_line)))
    assert again == rows


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_scores_do_not_depend_on_the_batch_size(rows, small_model, small_line, batch_size):
    others = list(small_model.score(test_images(small_line), captions_of(small_line), batch_size=batch_size))
    for row, other in zip(rows, others, strict=True):
        for name in ("score", "image_score", "patch_score", "head_score", "match"):
            assert getattr(other, name) == pytest.approx(getattr(row, name), abs=1e-4)
        assert (other.anomalous, other.kept) == (row.anomalous, row.kept)


def test_scores_are_the_same_in_the_batches_that_fit(rows, model_file, small_line, monkeypatch):
    model = Model.load(model_file, device="cpu")
    monkeypatch.setattr(model.encoder, "at_once", None)  # as on a GPU
    block, sizes = model.encoder.tower.blocks[0], []
    real = block.forward

    def forward(tokens, *args, **options):
        sizes.append(len(tokens))
        if len(tokens) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(tokens, *args, **options)

    monkeypatch.setattr(block, "forward", forward)
    others = list(model.score(test_images(small_line), captions_of(small_line), batch_size="auto"))
    assert sizes[:6] == [64, 32, 16, 8, 4, 4] and max(sizes[5:]) == 4
    assert [other.score for other in others] == pytest.approx([row.score for row in rows], abs=1e-4)
    assert [(other.file, other.kept) for other in others] == [(row.file, row.kept) for row in rows]


def test_a_damaged_image_costs_its_own_row_only(rows, small_model, small_line, tmp_path):
    good = test_images(small_line)
    broken = tmp_path / "broken.png"
    broken.write_bytes(good[0].read_bytes()[:2000])
    results = list(small_model.score([good[0], broken, good[1]], captions_of(small_line)))
    assert [bool(row.error) for row in results] == [False, True, False]
    assert results[1].score is None
    assert results[0].score == pytest.approx(rows[0].score, abs=1e-4)
    assert results[2].score == pytest.approx(rows[1].score, abs=1e-4)


def test_without_a_caption_a_stored_one_is_chosen(small_model, small_line):
    row = next(small_model.score(test_images(small_line)[:1]))
    assert row.caption in small_model.detector.language.captions


def test_a_caption_never_seen_at_fit_scores(small_model, small_line):
    path = test_images(small_line)[0]
    row = next(small_model.score([path], {path.resolve(): "a wooden spoon"}))
    assert np.isfinite(row.score) and row.caption == "a wooden spoon"


def test_maps_are_in_the_frame_of_the_image(small_model, small_line, tmp_path):
    wide = tmp_path / "wide.png"
    write_png(wide, np.random.default_rng(0).integers(0, 255, (50, 130, 3), dtype=np.uint8))
    inspection = next(small_model.inspect([wide], maps=True))
    assert inspection.anomaly_map.shape == (50, 130)
    assert np.isfinite(inspection.anomaly_map).all()


@pytest.mark.parametrize(("cmer", "cmle"), [(False, False), (True, False), (False, True)])
def test_the_ablations_fit_and_score(small_line, cmer, cmle):
    model = cmgcli.fit(small_line, small_line / "metadata.csv", cmer=cmer, cmle=cmle, adapt=False, device="cpu")
    row = next(model.score(test_images(small_line)[:1], captions_of(small_line)))
    assert np.isfinite(row.score) and row.head_score is None
    assert (row.kept == 1) is (not cmer)


def test_identical_captions_without_cmer_are_the_baseline(small_line):
    options = {"caption": "a part", "cmer": False, "adapt": False, "device": "cpu"}
    guided = cmgcli.fit(small_line / "images", cmle=True, **options)
    plain = cmgcli.fit(small_line / "images", cmle=False, **options)
    paths = test_images(small_line)
    for a, b in zip(guided.score(paths), plain.score(paths), strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_fit_and_say_what_they_promise(small_line, tmp_path, count):
    for path in sorted((small_line / "images").glob("train*"))[:count]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = cmgcli.fit(tmp_path, caption="a part", adapt_steps=1, device="cpu")
    assert model.detector.calibration.promised_rate == pytest.approx(1 / (1 + count // 2))
    assert all(np.isfinite(row.score) for row in model.score(test_images(small_line)[:2]))


def test_odd_images_fit_and_score(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [np.full((1, 1, 3), 9, np.uint8), np.zeros((40, 40), np.uint8), rng.integers(0, 255, (30, 300, 3), dtype=np.uint8)]
    for i, picture in enumerate(pictures):
        write_png(tmp_path / f"{i}.png", picture)
    model = cmgcli.fit(tmp_path, caption="anything", adapt_steps=1, device="cpu")
    assert all(np.isfinite(row.score) for row in model.score(sorted(tmp_path.glob("*.png"))))


def test_a_broken_training_image_is_named(small_line, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match="bad.png.*mend or remove it"):
        cmgcli.fit(tmp_path, caption="a part", device="cpu")


def test_only_anomalous_images_cannot_be_fitted(small_line, tmp_path):
    source = (small_line / "metadata.csv").read_text().splitlines()
    file = tmp_path / "bad.csv"
    file.write_text("\n".join([source[0], *(line for line in source if ",test,1," in line)]) + "\n")
    with pytest.raises(DatasetError, match="no normal training image"):
        cmgcli.fit(small_line, file, allow_missing=True, device="cpu")


def test_every_relevance_fits_on_any_tower(tiny_folder, small_line):
    for relevance in RELEVANCE:
        model = cmgcli.fit(
            small_line, small_line / "metadata.csv", encoder=f"local-dir:{tiny_folder}", relevance=relevance, adapt=False, device="cpu"
        )
        assert np.isfinite(next(model.score(test_images(small_line)[:1])).score)
    assert cmgcli.fit(small_line, small_line / "metadata.csv", encoder=f"local-dir:{tiny_folder}", adapt=False).detector.settings.relevance == "fast"


def test_mask_gives_entropy_and_match(small_line):
    results = list(cmgcli.mask(small_line, small_line / "metadata.csv", device="cpu"))
    assert len(results) == 36
    for result in results:
        assert result.row.entropy_after <= result.row.entropy_before + 1e-6
        assert result.view.keep.shape == result.view.relevance.shape
        assert result.row.kept == pytest.approx(result.view.keep.mean())


def test_a_model_of_another_encoder_is_refused(tiny_folder, small_line, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "tiny"
    copy.mkdir()
    for path in tiny_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    model = cmgcli.fit(small_line, small_line / "metadata.csv", encoder=f"local-dir:{copy}", adapt=False, relevance="sampled", device="cpu")
    model.save(tmp_path / "m.cmg")
    weights = load_file(copy / "open_clip_model.safetensors")
    save_file({k: v + (0.01 if v.dtype == torch.float32 else 0) for k, v in weights.items()}, copy / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match="other weights of encoder"):
        Model.load(tmp_path / "m.cmg", device="cpu")


@pytest.mark.parametrize("name", ["local-dir:tiny", "tiny-vit@tiny/open_clip_model.safetensors"])
def test_a_model_finds_its_encoder_from_every_folder(tiny_folder, small_line, tmp_path, monkeypatch, name):
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    (tmp_path / "few").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for path in test_images(small_line)[:2]:
        shutil.copy(path, tmp_path / "few")
    monkeypatch.chdir(tmp_path)
    cmgcli.fit("few", caption="a part", encoder=name, adapt=False, device="cpu").save("m.cmg")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert next(Model.load("../m.cmg", device="cpu").score(["../few/" + test_images(small_line)[0].name])).error == ""
    shutil.rmtree(tmp_path / "tiny")
    with pytest.raises(EncoderError, match=f"m.cmg was fitted with an encoder that cannot be loaded: .*{tmp_path / 'tiny'}"):
        Model.load("../m.cmg", device="cpu")


@pytest.mark.parametrize("damage", ["text", "truncated", "foreign"])
def test_a_file_that_is_no_model_is_named(model_file, tmp_path, damage):
    path = tmp_path / "m.cmg"
    if damage == "text":
        path.write_text("hello")
    elif damage == "truncated":
        path.write_bytes(model_file.read_bytes()[:-1000])
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a cmg model"):
        Model.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda header: header | {"format": 3}, f"model format 3, this program reads {checkpoint.FORMAT}; fit it again"),
        (lambda header: header | {"album": header["album"][:1]}, "is damaged .*no name"),
    ],
)
def test_a_model_of_another_format_or_with_a_changed_header_is_refused(model_file, tmp_path, change, words):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(model_file, framework="pt") as file:
        header, tensors = json.loads(file.metadata()["cmg"]), {name: file.get_tensor(name) for name in file.keys()}
    header.pop("sha256")
    changed = change(header)
    signed = changed | {"sha256": checkpoint._digest(changed, tensors)}
    save_file(tensors, tmp_path / "m.cmg", metadata={"cmg": json.dumps(signed)})
    with pytest.raises(CheckpointError, match=words):
        Model.load(tmp_path / "m.cmg", device="cpu")


def test_a_source_tree_that_is_not_installed_saves_a_model(small_model, tmp_path, monkeypatch):
    import importlib.metadata

    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    small_model.save(tmp_path / "m.cmg")
    assert Model.load(tmp_path / "m.cmg", device="cpu").detector.fit_images == small_model.detector.fit_images


def test_a_model_says_what_it_is_in_a_line(small_model):
    assert repr(small_model).startswith("<Model: ") and "encoder builtin" in repr(small_model) and len(repr(small_model)) < 120


def test_the_same_model_is_the_same_file(small_model, tmp_path):
    """safetensors writes several entries of metadata in any order, so more than one would change the file half of the time."""
    for number in range(8):
        small_model.save(tmp_path / f"{number}.cmg")
    assert len({(tmp_path / f"{number}.cmg").read_bytes() for number in range(8)}) == 1


@pytest.mark.parametrize("place", ["header", "first array", "middle", "end"])
def test_a_single_bit_that_is_lost_is_found(model_file, tmp_path, place):
    content = bytearray(model_file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    at = {"header": content.index(b"false_alarm") + 17, "first array": start, "middle": (start + len(content)) // 2, "end": len(content) - 1}[place]
    content[at] ^= 1
    (tmp_path / "m.cmg").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged .*fit the model again"):
        Model.load(tmp_path / "m.cmg", device="cpu")


def test_saving_replaces_the_file_at_once_or_not_at_all(small_model, tmp_path):
    path = tmp_path / "m.cmg"
    small_model.save(path)
    small_model.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.cmg"]


def test_the_same_seed_gives_the_same_model(small_line, small_model, rows):
    again = cmgcli.fit(small_line, small_line / "metadata.csv", false_alarm=0.1, adapt_steps=4, device="cpu")
    assert list(again.score(test_images(small_line), captions_of(small_line))) == rows


def test_a_fit_broken_off_goes_on_where_its_head_was(small_line, tmp_path, monkeypatch):
    class Crash(Exception):
        pass

    def crash(stage, done, total):
        if "head" in stage and done == 6:
            raise Crash

    monkeypatch.setattr("cmgcli.adapt.CHECKS", 4)
    options = {"false_alarm": 0.1, "adapt_steps": 8, "device": "cpu"}
    whole = cmgcli.fit(small_line, small_line / "metadata.csv", **options)
    with pytest.raises(Crash):
        cmgcli.fit(small_line, small_line / "metadata.csv", snapshot=tmp_path / "state", progress=crash, **options)
    steps = []
    again = cmgcli.fit(
        small_line,
        small_line / "metadata.csv",
        snapshot=tmp_path / "state",
        progress=lambda stage, done, total: steps.append(done) if "head" in stage else None,
        **options,
    )
    assert steps == [5, 6, 7, 8]
    for name, tensor in whole.detector.head.state_dict().items():
        assert torch.equal(tensor, again.detector.head.state_dict()[name]), name


def test_fit_score_and_mask_get_by_with_little_memory(small_line, tmp_path, monkeypatch):
    """More than three images at once do not fit; what comes out is what comes out of a large memory."""

    def results():
        model = cmgcli.fit(small_line, small_line / "metadata.csv", adapt_steps=2, device="cpu")
        masked = [result.row for result in cmgcli.mask(small_line, small_line / "metadata.csv", device="cpu")]
        return list(model.score(test_images(small_line), captions_of(small_line))), masked

    plenty, sizes = results(), []
    forward, made = Encoder._forward, Encoder.__init__

    def as_on_a_gpu(self, *args, **options):
        made(self, *args, **options)
        self.at_once = None

    def cramped(self, pixels, *rest):
        sizes.append(min(self.at_once or len(pixels), len(pixels)))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pixels, *rest)

    monkeypatch.setattr(Encoder, "__init__", as_on_a_gpu)
    monkeypatch.setattr(Encoder, "_forward", cramped)
    little = results()
    assert max(sizes) == 16
    for row, other in zip(plenty[0] + plenty[1], little[0] + little[1], strict=True):
        for name, value in vars(row).items():
            expected = pytest.approx(value, abs=1e-3) if isinstance(value, float) else value
            assert getattr(other, name) == expected, name


def test_a_fit_tells_of_images_in_which_the_caption_fits_nothing(small_line, caplog):
    options = {"adapt": False, "bank_size": 64, "device": "cpu"}
    with caplog.at_level(25, logger="cmgcli"):
        cmgcli.fit(small_line, small_line / "metadata.csv", **options)
        assert "fits nothing" not in caplog.text
        cmgcli.fit(small_line / "images", caption="a green textile label", **options)
    (said,) = [record.getMessage() for record in caplog.records if "fits nothing" in record.getMessage()]
    count, total = re.match(r"the caption fits nothing in (\d+) of (\d+) images, first \S+: ", said).groups()
    assert 0 < int(count) < int(total) == len(list((small_line / "images").iterdir()))
