"""The exported graph in ONNX Runtime gives what cmg score gives, and its example needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from shell import cmg_here, wrong

import cmgcli
from cmgcli import cmer
from cmgcli.dataset import caption_lookup, read_dataset
from cmgcli.export import Resize, _squash, grown
from cmgcli.head import look_scales, scaled_size
from cmgcli.images import read_image, to_square

EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx" / "score.py"


@pytest.mark.parametrize("size", [(5, 9), (14, 14)])
def test_growing_in_tensors_is_growing_by_opencv(size):
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.4, 0.6, 0.9, 1.0):
        for _ in range(10):
            core = rng.random(size) < share
            assert np.array_equal(grown(torch.from_numpy(core)).numpy(), cmer.grow(core))


@pytest.mark.parametrize("size", [(96, 96), (64, 200), (40, 30), (224, 224)])
def test_resizing_in_tensors_is_resizing_by_opencv(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = _squash(size, 112)(torch.from_numpy(image).permute(2, 0, 1).float()).permute(1, 2, 0).numpy()
    difference = np.abs(found - to_square(image, 112))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01  # OpenCV's bicubic rule rounds its weights
    assert isinstance(_squash(size, 112)[0], Resize)


def test_without_the_extra_the_remedy_is_named(model_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    wrong(cmg_here("export", "--model", model_file, "--size", "96x96", "--out", tmp_path / "m.onnx"), "onnx", "pip install 'cmgcli[onnx]'")


@pytest.mark.parametrize("size", [(96, 96), (64, 200), (41, 30), (20, 300), (300, 20)])
def test_the_heads_looks_are_resized_as_by_opencv(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for scale in look_scales(*size):
        after = scaled_size(*size, scale)
        found = Resize(size, after, cv2.INTER_AREA, rounds=True)(torch.from_numpy(image).permute(2, 0, 1).float()).permute(1, 2, 0).numpy()
        difference = np.abs(found - cv2.resize(image, after[::-1], interpolation=cv2.INTER_AREA))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.2, scale  # where a side grows, OpenCV rounds its weights


@pytest.mark.parametrize("size", ["96", "0x5", "axb", "96x", "-1x4"])
def test_a_wrong_size_is_named(model_file, size):
    wrong(cmg_here("export", "--model", model_file, "--size", size), "--size", "480x640")


@pytest.fixture(scope="module")
def runtime():
    pytest.importorskip("onnx", reason="the extra cmgcli[onnx] is not installed")
    pytest.importorskip("onnxscript", reason="the extra cmgcli[onnx] is not installed")
    return pytest.importorskip("onnxruntime", reason="the extra cmgcli[onnx] is not installed")


def fitted(line: Path, **options):
    return cmgcli.fit(line, line / "metadata.csv", false_alarm=0.1, device="cpu", precision="float32", **options)


@pytest.mark.parametrize(("options", "size"), [({"adapt_steps": 2}, (96, 96)), ({"adapt": False, "keep": 0.3, "cmle": False}, (70, 120))], ids=["whole", "plain"])
def test_the_graph_gives_what_cmg_score_gives(runtime, small_line, tmp_path, options, size):
    from cmgcli.images import write_png

    model = fitted(small_line, **options)
    model.save(tmp_path / "m.cmg")
    run = cmg_here("export", "--model", tmp_path / "m.cmg", "--size", f"{size[0]}x{size[1]}", "--out", tmp_path / "m.onnx")
    assert run.returncode == 0 and "bfloat16" not in run.err, run.err
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    known = session.get_modelmeta().custom_metadata_map
    captions, lookup = json.loads(known["captions"]), caption_lookup(read_dataset(small_line, small_line / "metadata.csv").records)
    assert json.loads(known["size"]) == list(size)
    sources = [path for path in sorted((small_line / "images").glob("*.png")) if lookup[path.resolve()] in captions][:8]
    images, texts = [tmp_path / f"{i}.png" for i in range(len(sources))], [lookup[path.resolve()] for path in sources]
    for source, path in zip(sources, images, strict=True):
        picture = read_image(source)
        write_png(path, cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA))
    wrong_texts, named = [next(other for other in captions if other != text) for text in texts], []
    for said in (texts, wrong_texts):  # where the caption fits nothing, a thing without a name guides CMER, in the graph too
        for inspection, path, text in zip(model.inspect(images, dict(zip(images, said)), maps=True), images, said, strict=True):
            score, threshold, anomaly_map = session.run(None, {"image": read_image(path), "caption": np.array(captions.index(text))})
            assert float(score) == pytest.approx(inspection.row.score, abs=1e-3)
            assert int(score > threshold) == inspection.row.anomalous
            np.testing.assert_allclose(anomaly_map, inspection.anomaly_map, atol=0.05, rtol=0.03)
            named.append(inspection.view.named)
    assert len(set(named)) == 2
    code = f"import sys; sys.modules['torch'] = None; sys.argv = ['score.py', {str(tmp_path / 'm.onnx')!r}, {texts[0]!r}, {str(images[0])!r}]"
    run = subprocess.run([sys.executable, "-c", f"{code}; exec(open({str(EXAMPLE)!r}).read())"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[1] == pytest.approx(run.stdout.split()[1]) and f"({size[0]}, {size[1]})" in run.stdout


def test_a_model_in_bfloat16_says_that_its_graph_is_not(runtime, small_line, tmp_path):
    model = cmgcli.fit(small_line, small_line / "metadata.csv", adapt=False, cmer=False, device="cpu", precision="bfloat16")
    model.save(tmp_path / "m.cmg")
    run = cmg_here("export", "--model", tmp_path / "m.cmg", "--size", "96x96", "--out", tmp_path / "m.onnx")
    assert run.returncode == 0 and "--precision float32" in run.err


def test_relevance_that_takes_more_than_a_forward_pass_is_refused(runtime, tiny_folder, small_line, tmp_path):
    model = cmgcli.fit(small_line, small_line / "metadata.csv", encoder=f"local-dir:{tiny_folder}", adapt=False, device="cpu")
    model.save(tmp_path / "m.cmg")
    wrong(cmg_here("export", "--model", tmp_path / "m.cmg", "--size", "96x96", "--out", tmp_path / "m.onnx"), "relevance fast", "--no-cmer")
