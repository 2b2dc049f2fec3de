"""Readers of files give a result or a CmgError for any bytes whatever, never another exception, a crash or a hang.

CMG_THOROUGH=1 reads 10 000 damaged images instead of 1 500, and tries ten times as many caption files.
"""

import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cmgcli.dataset import read_dataset
from cmgcli.errors import DatasetError, ImageError
from cmgcli.images import read_image

THOROUGH = bool(os.environ.get("CMG_THOROUGH"))
MUTATIONS = 10_000 if THOROUGH else 1_500


# ---- images


def small_images() -> dict[str, bytes]:
    """A file of each kind, 32 x 24 pixels, by its suffix and what is special about it."""
    y, x = np.mgrid[:24, :32]
    rgb = np.stack([x * 8, y * 10, (x * y) % 256], 2).astype(np.uint8)
    picture, deep = Image.fromarray(rgb), rgb.astype(np.uint16) * 257
    clear = Image.fromarray(np.dstack([rgb, rgb[..., 0]]))
    return {
        ".png": _stored(picture, "PNG"), "alpha.png": _stored(clear, "PNG"), "palette.png": _stored(picture.convert("P"), "PNG"),
        "16.png": cv2.imencode(".png", deep)[1].tobytes(), ".jpg": _stored(picture, "JPEG"),
        "progressive.jpg": _stored(picture, "JPEG", progressive=True), "restarts.jpg": _stored(picture, "JPEG", restart_marker_blocks=1),
        "cmyk.jpg": _stored(picture.convert("CMYK"), "JPEG"), ".bmp": _stored(picture, "BMP"), "palette.bmp": _stored(picture.convert("P"), "BMP"),
        ".tif": _stored(picture, "TIFF"), "lzw.tif": cv2.imencode(".tif", rgb)[1].tobytes(), "16.tif": cv2.imencode(".tif", deep)[1].tobytes(),
        "float.tif": cv2.imencode(".tif", rgb.astype(np.float32))[1].tobytes(), "jpeg.tif": _stored(picture, "TIFF", compression="jpeg"),
        "alpha.tif": _stored(clear, "TIFF"), ".webp": _stored(picture, "WEBP"), "lossless.webp": _stored(picture, "WEBP", lossless=True),
        "alpha.webp": _stored(clear, "WEBP"),
    }  # fmt: skip


def _stored(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three flips, overwritten or inserted or deleted bytes, or cuts; half of them among the first 100 bytes."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(changed) if rng.random() < 0.5 else min(len(changed), 100)))
        some = rng.bytes(rng.integers(1, 9))
        kind = rng.integers(6)
        if kind == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == 2:
            changed[at:at] = some
        elif kind == 3:
            del changed[at : at + len(some)]
        elif kind == 4:
            changed[at : at + len(some)] = some
        else:
            del changed[at:]
        if not changed:
            break
    return bytes(changed)


def read_mutated(count: int) -> Counter:
    """Read so many mutated images; how many gave an image, and how many an ImageError."""
    rng, kinds, results = np.random.default_rng(0), small_images(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            suffix = list(kinds)[number % len(kinds)]
            path = Path(folder, "a" + suffix)
            path.write_bytes(mutated(kinds[suffix], rng))
            try:
                image = read_image(path)
            except ImageError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                results["errors"] += 1
                continue
            except Exception as error:
                raise AssertionError(f"{suffix}: {error!r} for {path.read_bytes().hex()}") from error
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
            results["images"] += 1
    return results


def test_a_damaged_image_is_an_image_or_an_image_error():
    """In a process of its own: a crash of a decoder would take pytest with it."""
    run = subprocess.run([sys.executable, __file__, str(MUTATIONS)], capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads(run.stdout.splitlines()[-1])
    assert sum(results.values()) == MUTATIONS and min(results.values()) > MUTATIONS // 10


@pytest.mark.parametrize("kind", small_images())
def test_the_images_are_sound_before_they_are_damaged(tmp_path, kind):
    (tmp_path / f"a{kind}").write_bytes(small_images()[kind])
    assert read_image(tmp_path / f"a{kind}").shape == (24, 32, 3)


def test_scoring_damaged_images_loses_no_row(model_file, tmp_path):
    rng, kinds = np.random.default_rng(1), small_images()
    names = [f"{i}_{list(kinds)[i % len(kinds)]}" for i in range(200)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(mutated(list(kinds.values())[i % len(kinds)], rng))
    command = [sys.executable, "-m", "cmgcli", "score", "--model", str(model_file), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 3 and "Traceback" not in run.stderr, run.stderr
    rows = list(csv.DictReader(io.StringIO(run.stdout)))
    assert [Path(row["file"]).name for row in rows] == names
    assert all(bool(row["score"]) != bool(row["error"]) for row in rows)


# ---- caption files


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for name in ("a.png", "b.png", "sub/c.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


NAMES = st.sampled_from(["a.png", "b.png", "sub/c.png", "sub/../a.png", "../x", "/etc/passwd", "no.png", "", "\0", "~", "sub"])
CELLS = NAMES | st.sampled_from(["nut", '"', '""', '"a\nb"', "0", "1", "-1", "9" * 5000, "train", "test", "x" * 200_000, "\ufeff"]) | st.text(max_size=5)
HEADS = st.sampled_from(["file_name", "text", "image", "caption", "label", "split", "mask", "defect", "File_Name", "txt", ""])
BREAKS = st.sampled_from([",", ",", ",", "\t", "\n", "\n", "\r\n", "\r", ";", "\x0b", "\u2028"])
PIECES = st.tuples(CELLS, BREAKS).map("".join)
TABLES = st.tuples(st.sampled_from(["file_name,text\n", "file_name\ttext\tlabel\n", "image,caption,label,split,mask\n", ""]), st.lists(PIECES)).map(
    lambda parts: parts[0] + "".join(parts[1])
)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | CELLS, lambda inner: st.lists(inner, max_size=2))
OBJECTS = st.dictionaries(HEADS, VALUES, max_size=4) | st.fixed_dictionaries({"file_name": NAMES, "text": CELLS}, optional={"label": VALUES, "mask": NAMES})
LINES = st.lists((OBJECTS | VALUES).map(json.dumps) | st.text(max_size=20), max_size=4).map("\n".join)


@settings(max_examples=4000 if THOROUGH else 400, deadline=None, derandomize=True, database=None)
@given(content=st.binary() | (TABLES | LINES | st.text()).map(lambda text: text.encode("utf-8", "surrogatepass")), suffix=st.sampled_from(["csv", "tsv", "jsonl"]))
def test_any_bytes_are_a_dataset_or_a_dataset_error(parts, content, suffix):
    captions = parts.parent / f"captions.{suffix}"
    captions.write_bytes(content)
    for allow_missing in (False, True):
        try:
            dataset = read_dataset(parts, captions, allow_missing=allow_missing)
        except DatasetError as error:
            said = str(error)
            assert said.startswith(repr(str(captions))) and "\n" not in said
            assert re.match(r"'.*', line \d+: ", said) or "no line for" in said or "no image with a caption" in said
        else:
            assert dataset.records and all(record.path.is_relative_to(parts.parent) and record.text for record in dataset.records)


if __name__ == "__main__":
    print(json.dumps(read_mutated(int(sys.argv[1]))))
