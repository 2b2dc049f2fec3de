"""Bad input through the command line: one case for each cell of the table of what happens to it."""

import csv
import io
import os
import struct
import traceback
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cmgcli import images
from cmgcli.images import write_png


class Run:
    """What a command printed, and its exit code; an exception that no user should see fails the test."""

    def __init__(self, *arguments: object, stdin: bytes | None = None) -> None:
        from cmgcli.cli import app

        result = CliRunner().invoke(app, list(map(str, arguments)), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            pytest.fail("".join(traceback.format_exception(result.exception)))
        self.code, self.err, self.out = result.exit_code, result.stderr, result.stdout_bytes.decode(errors="surrogateescape")

    @property
    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.out, newline="")))

    def refused(self, *words: str) -> None:
        assert self.code == 2, self.err
        assert self.out == "" and self.err.startswith("cmg: ") and self.err.count("\n") == 1, self.err
        for word in words:
            assert word in self.err


def noise(seed: int = 0, size: int = 48) -> np.ndarray:
    """(size, size, 3) uint8, smooth, with both 0 and 255 in it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    picture[0, 0], picture[0, 1] = 0, 255
    return picture


def encoded(suffix: str, picture: np.ndarray) -> bytes:
    return cv2.imencode(suffix, picture[..., ::-1])[1].tobytes()


def bomb() -> bytes:
    """A PNG file whose header claims 100000 x 100000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + struct.pack(">I", zlib.crc32(header)) + encoded(".png", noise())[33:]


# ---- files that cannot be read

UNREADABLE = {
    "1_truncated.png": (encoded(".png", noise())[:-500], "truncated"),
    "2_truncated.jpg": (encoded(".jpg", noise())[:-200], "truncated"),
    "3_truncated.tif": (encoded(".tif", noise())[:1000], "truncated"),
    "4_truncated.bmp": (encoded(".bmp", noise())[:1000], "damaged"),
    "5_truncated.webp": (encoded(".webp", noise())[:-100], "truncated"),
    "6_empty.png": (b"", "empty"),
    "7_text.jpg": (b"this is no image\n" * 50, "not an image"),
    "8_bomb.png": (bomb(), "100000 x 100000 pixels are more than"),
    "9_flipped.png": (bytes(255 - b if i == 300 else b for i, b in enumerate(encoded(".png", noise()))), "damaged"),
    "10_holed.jpg": (encoded(".jpg", noise(size=200))[:3000] + encoded(".jpg", noise(size=200))[3200:], "damaged"),
}


@pytest.fixture(scope="module")
def among_good(model_file, tmp_path_factory) -> Run:
    """A run over a folder of good files, the unreadable ones, and things that are no files."""
    folder = tmp_path_factory.mktemp("bad")
    for name, (data, _) in UNREADABLE.items():
        (folder / name).write_bytes(data)
    (folder / "11_folder.png").mkdir()
    os.mkfifo(folder / "12_pipe.png")
    for name in ("0_good.png", "13_good.png"):
        write_png(folder / name, noise())
    return Run("score", "--model", model_file, folder, folder / "14_missing.png")


def test_the_rest_goes_on(among_good):
    names = [Path(row["file"]).name for row in among_good.rows]
    assert names == ["0_good.png", *UNREADABLE, "12_pipe.png", "13_good.png", "14_missing.png"]
    good = [row for row in among_good.rows if "good" in row["file"]]
    assert all(row["score"] and not row["error"] for row in good) and good[0]["score"] == good[1]["score"]
    assert among_good.code == 3
    assert "12 inputs could not be read" in among_good.err


@pytest.mark.parametrize(
    ("name", "reason"),
    [*((name, reason) for name, (_, reason) in UNREADABLE.items()), ("12_pipe.png", "not a regular"), ("14_missing.png", "no such file")],
)
def test_an_unreadable_file_has_its_reason_in_its_row(among_good, name, reason):
    row = next(row for row in among_good.rows if row["file"].endswith(name))
    assert name in row["error"] and reason in row["error"]
    assert all(value == "" for column, value in row.items() if column not in ("file", "error"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(model_file, tmp_path):
    write_png(tmp_path / "a.png", noise())
    (tmp_path / "a.png").chmod(0)
    run = Run("score", "--model", model_file, tmp_path)
    assert run.code == 3 and "Permission denied" in run.rows[0]["error"]


def test_a_folder_that_cannot_be_listed_has_a_row_and_ends_a_fit(model_file, tmp_path, monkeypatch):
    (tmp_path / "line" / "closed").mkdir(parents=True)
    captions = tmp_path / "line" / "captions.csv"
    captions.write_text("file_name,text\n0.png,a part\n")
    write_png(tmp_path / "line" / "0.png", noise())
    entries = os.listdir

    def guarded(folder):
        if os.fspath(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return entries(folder)

    monkeypatch.setattr(images.os, "listdir", guarded)
    run = Run("score", "--model", model_file, "--captions", captions, tmp_path / "line")
    assert run.code == 3 and "could not be read; see the column error" in run.err
    good, closed = run.rows
    assert good["score"] and good["caption"] == "a part"
    assert closed["file"].endswith("closed") and "the folder cannot be listed: Permission denied" in closed["error"]
    Run("fit", "--images", tmp_path / "line", "--captions", captions, "--out", tmp_path / "m.cmg").refused("closed", "cannot be listed", "permissions")


@pytest.mark.parametrize("options", [("--model",), ("--zero-shot", "--caption", "a part")])
def test_a_link_to_itself_has_its_reason_in_its_row_and_ends_a_fit(model_file, tmp_path, options):
    write_png(tmp_path / "a.png", noise())
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    write_png(tmp_path / "c.png", noise(1))
    run = Run("score", *options, *([model_file] if options == ("--model",) else []), tmp_path)
    assert run.code == 3
    assert [bool(row["score"]) for row in run.rows] == [True, False, True]
    assert "links" in run.rows[1]["error"]
    Run("fit", "--images", tmp_path, "--caption", "a part", "--no-adapt", "--out", tmp_path / "m.cmg").refused("b.png", "links")


def test_an_unreadable_file_ends_a_fit_by_name(tmp_path):
    write_png(tmp_path / "0.png", noise())
    (tmp_path / "1.png").write_bytes(b"")
    Run("fit", "--images", tmp_path, "--caption", "a part", "--out", tmp_path / "m.cmg").refused("1.png", "empty", "mend or remove it")
    assert not (tmp_path / "m.cmg").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--false-alarm", "0", "between 0 and 1"),
        ("--false-alarm", "1", "between 0 and 1"),
        ("--false-alarm", "nan", "between 0 and 1"),
        ("--ridge", "inf", "from 0 up"),
        ("--seed", "-1", "greater than or equal to 0"),
        ("--keep", "0", "a share in (0, 1]"),
        ("--latent-dim", "99999", "expected 1 to"),
    ],
)
@pytest.mark.parametrize("head", [("--adapt-steps", 1), ("--no-adapt",)])
def test_a_number_that_cannot_be_is_refused(tmp_path, option, value, words, head):
    for i in range(2):
        write_png(tmp_path / f"{i}.png", noise(i))
    run = Run("fit", "--images", tmp_path, "--caption", "a part", "--out", tmp_path / "m.cmg", *head, option, value)
    assert run.code == 2 and run.out == "" and words in run.err.replace("\n", " "), run.err
    assert not (tmp_path / "m.cmg").exists()


def test_too_many_directions_are_refused_before_an_image_is_read(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    run = Run("fit", "--images", tmp_path, "--caption", "a part", "--out", tmp_path / "m.cmg", "--latent-dim", 99999)
    run.refused("latent dim: expected 1 to", "embedding size", "99999")


# ---- files that a person sees as one picture


def alike(folder: Path, kind: str, stored: Image.Image, suffix: str = ".png", **options: object) -> None:
    """Write `stored`, and what a person sees of it as a plain PNG file."""
    stored.save(folder / f"{kind}{suffix}", **options)
    write_png(folder / f"{kind}_plain.png", np.array(stored.convert("RGB")))


@pytest.fixture(scope="module")
def stored_oddly(model_file, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("odd")
    picture = Image.fromarray(noise())
    alike(folder, "grayscale", picture.convert("L"))
    alike(folder, "palette", picture.convert("P"))
    alike(folder, "bilevel", picture.convert("1"))
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    write_png(folder / "cmyk_plain.png", np.array(Image.open(folder / "cmyk.jpg").convert("RGB")))
    write_png(folder / "16-bit.png", noise().astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "16-bit_tiff.tif"), noise()[..., ::-1].astype(np.uint16) * 16)  # twelve bits in sixteen
    clear = picture.copy()
    clear.putalpha(Image.fromarray(noise(1)[..., 0]))
    white = Image.new("RGBA", clear.size, "white")
    for kind, suffix in (("alpha", ".png"), ("alpha_tiff", ".tif"), ("alpha_webp", ".webp")):
        clear.save(folder / f"{kind}{suffix}", **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
        write_png(folder / f"{kind}_plain.png", np.array(Image.alpha_composite(white, clear).convert("RGB")))
    turned = Image.Exif()
    turned[274] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "rotated.png", exif=turned)
    for kind in ("16-bit", "16-bit_tiff", "rotated"):
        write_png(folder / f"{kind}_plain.png", noise())
    images._say_deep_once.cache_clear()
    return Run("score", "--model", model_file, folder)


@pytest.mark.parametrize(
    "kind", ["grayscale", "palette", "bilevel", "cmyk", "16-bit", "16-bit_tiff", "alpha", "alpha_tiff", "alpha_webp", "rotated"]
)
def test_what_looks_the_same_scores_the_same(stored_oddly, kind):
    assert stored_oddly.code == 0, stored_oddly.err
    scores = {Path(row["file"]).stem: float(row["score"]) for row in stored_oddly.rows}
    assert scores[kind] == pytest.approx(scores[f"{kind}_plain"], rel=0.02)  # rounding of one level, which may tip how much CMER keeps


def test_deep_images_are_said_once(stored_oddly):
    assert stored_oddly.err == "cmg: images deeper than 8 bits are scaled by their own range of values\n"


# ---- caption files


@pytest.fixture
def three(tmp_path) -> Path:
    folder = tmp_path / "three"
    folder.mkdir()
    for i in range(3):
        write_png(folder / f"{i}.png", noise(i))
    write_png(tmp_path / "secret.png", noise())
    return folder


HEAD = "file_name,text\n"
ALL = HEAD + "0.png,nut\n1.png,bolt\n2.png,gear\n"


@pytest.mark.parametrize(
    ("name", "content", "line", "remedy"),
    [
        ("x.csv", ALL.replace("text", "txt"), 1, "rename 'txt' to 'text'"),
        ("x.tsv", ALL.replace(",", "\t").replace("file_name", "name"), 1, "rename 'name' to 'file_name'"),
        ("x.jsonl", '{"file_name": "0.png"}\n', 1, "add a column 'text'"),
        ("x.csv", ALL.replace("bolt", "Schlüssel").encode("latin-1"), 3, "save the file as UTF-8"),
        ("x.csv", ALL.encode("utf-16"), 1, "save the file as UTF-8"),
        ("x.csv", ALL.replace(",", ";"), 1, "separate the columns by commas"),
        ("x.csv", ALL.replace(",", "\t"), 1, "name the file .tsv"),
        ("x.csv", b"PK\x03\x04 a workbook", 1, "save its table as CSV"),
        ("x.json", '[{"file_name": "0.png", "text": "nut"}]', 1, "an object on each line"),
        ("x.jsonl", '{"file_name": "0.png", "text": "\\ud83d"}\n', 1, "its other half"),
        ("x.csv", ALL + "./0.png,nut\n", 5, "keep one of the two"),
        ("x.csv", ALL + "3.png,nut\n", 5, "--allow-missing"),
        ("x.csv", ALL + "../secret.png,nut\n", 5, "use a path below it"),
        ("x.csv", ALL + f"{'a' * 300}.png,nut\n", 5, "correct"),
    ],
)
def test_a_bad_caption_file_is_refused_before_any_work(three, tmp_path, name, content, line, remedy):
    (tmp_path / "c").mkdir()
    captions = tmp_path / "c" / name
    captions.write_bytes(content if isinstance(content, bytes) else content.encode())
    fit = Run("fit", "--images", three, "--captions", captions, "--out", tmp_path / "m.cmg", "--encoder", "local-dir:none")
    fit.refused(f"{str(captions)!r}, line {line}: ", remedy)


def test_an_image_without_caption_is_refused(three, tmp_path):
    captions = tmp_path / "x.csv"
    captions.write_text(HEAD + "0.png,nut\n")
    Run("fit", "--images", three, "--captions", captions).refused("x.csv", "'1.png'", "2 such images", "--allow-missing")
    (three / "0.txt").write_text("nut")
    Run("fit", "--images", three).refused("1.txt", "--allow-missing")


def test_allow_missing_goes_on_and_lists(three, tmp_path):
    captions = tmp_path / "x.csv"
    captions.write_text(HEAD + "0.png,nut\n1.png,bolt\n3.png,gear\n")
    run = Run("mask", "--images", three, "--captions", captions, "--out", tmp_path / "out", "--allow-missing")
    assert run.code == 0, run.err
    assert "'3.png' (line 4) does not exist" in run.err and "'2.png' has no caption" in run.err
    assert len((tmp_path / "out" / "summary.csv").read_text().splitlines()) == 3


# ---- little to learn from


def fitted(folder: Path, out: Path, *options: object) -> Run:
    head = () if "--no-adapt" in options else ("--adapt-steps", 2)
    return Run("fit", "--images", folder, "--caption", "a metal part", "--out", out, "--device", "cpu", *head, *options)


def works(run: Run, model: Path, *inputs: Path) -> None:
    """The fit went well, and its model gives every input a finite score."""
    assert run.code == 0, run.err
    scored = Run("score", "--model", model, *inputs)
    assert scored.code == 0, scored.out + scored.err
    assert all(np.isfinite(float(row["score"])) and 0 < float(row["p_value"]) <= 1 for row in scored.rows)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_few_images(tmp_path, tiny_folder, count):
    folder = tmp_path / "few"
    folder.mkdir()
    for i in range(count):
        write_png(folder / f"{i}.png", noise(i))
    options = () if count == 1 else ("--encoder", f"local-dir:{tiny_folder}", "--no-adapt")
    run = fitted(folder, tmp_path / "m.cmg", *options)
    works(run, tmp_path / "m.cmg", folder)
    assert "calibration images cannot promise" in run.err or "no calibration image" in run.err or "no false-alarm" in run.err


def test_all_captions_alike_is_the_image_only_baseline(small_line, tmp_path, tiny_folder):
    run = fitted(small_line / "images", tmp_path / "m.cmg", "--encoder", f"local-dir:{tiny_folder}", "--no-adapt")
    works(run, tmp_path / "m.cmg", small_line / "images")


@pytest.mark.parametrize("kind", ["one pixel", "constant", "one pixel wide", "alike"])
def test_pictures_with_nothing_in_them(tmp_path, kind):
    folder = tmp_path / "dull"
    folder.mkdir()
    shape = {"one pixel": (1, 1, 3), "one pixel wide": (300, 1, 3)}.get(kind, (64, 64, 3))
    for i in range(8):
        level = 128 if kind == "alike" else 20 + 20 * i
        write_png(folder / f"{i}.png", np.full(shape, level, np.uint8))
    works(fitted(folder, tmp_path / "m.cmg"), tmp_path / "m.cmg", folder)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_not_a_number_in_a_picture(model_file, tmp_path, share):
    values = noise()[..., ::-1].astype(np.float32)
    values[np.random.default_rng(0).random(values.shape[:2]) < share] = np.nan
    cv2.imwrite(str(tmp_path / "nan.tif"), values)
    run = Run("score", "--model", model_file, tmp_path)
    assert run.code == 0 and np.isfinite(float(run.rows[0]["score"]))
