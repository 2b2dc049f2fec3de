import struct
import zlib

import cv2
import numpy as np
import pytest

from cmgcli import images
from cmgcli.errors import ImageError, OutputError

PICTURE = np.zeros((20, 30, 3), np.uint8)  # no symmetry: red, green over black, blue
PICTURE[:10, :15], PICTURE[:10, 15:], PICTURE[10:, 15:] = (255, 0, 0), (0, 200, 0), (0, 0, 255)


def encode(suffix, array, *options):
    """Bytes of an image file from (H, W), (H, W, 3) RGB or (H, W, 4) RGBA."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGBA2BGRA if array.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    return cv2.imencode(suffix, array, options)[1].tobytes()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, raw, *extra):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + png_chunk(b"IEND", b"")


def exif(orientation):
    return struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 274, 3, 1, orientation, 0)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_lossless_files_are_read_as_written(tmp_path, suffix):
    path = tmp_path / f"ärm {suffix}{suffix}"
    path.write_bytes(encode(suffix, PICTURE))
    np.testing.assert_array_equal(images.read_image(path), PICTURE)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_files_keep_their_colours(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(suffix, PICTURE))
    seen = images.read_image(path).astype(int)
    assert np.abs(seen[3:7, 3:12] - (255, 0, 0)).max() < 12
    assert np.abs(seen[13:17, 18:27] - (0, 0, 255)).max() < 12


def test_grayscale_becomes_rgb(tmp_path):
    gray = noise(7, 5)
    (tmp_path / "a.png").write_bytes(encode(".png", gray))
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), np.repeat(gray[..., None], 3, 2))


def test_palette_becomes_rgb(tmp_path):
    palette = png_chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 50]))
    (tmp_path / "a.png").write_bytes(png(2, 1, 8, 3, b"\0\1\0", palette))
    assert images.read_image(tmp_path / "a.png").tolist() == [[[200, 100, 50], [10, 20, 30]]]


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    image = pytest.importorskip("PIL.Image").fromarray(PICTURE).convert("CMYK")
    image.save(tmp_path / "a.jpg", quality=98)
    seen = images.read_image(tmp_path / "a.jpg").astype(int)
    assert np.abs(seen[3:7, 3:12] - (255, 0, 0)).max() < 12


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_transparency_shows_white(tmp_path, suffix):
    rgba = np.dstack([PICTURE, np.full((20, 30), 255, np.uint8)])
    rgba[:, 15:, 3] = 0
    rgba[0, 0, 3] = 127
    (tmp_path / f"a{suffix}").write_bytes(encode(suffix, rgba))
    seen = images.read_image(tmp_path / f"a{suffix}")
    assert (seen[:, 15:] == 255).all() and (seen[1:10, :15] == (255, 0, 0)).all()
    assert seen[0, 0].tolist() == [255, 128, 128]


def test_sixteen_bits_are_scaled_by_their_own_range_and_said_once(tmp_path, caplog):
    images._say_deep_once.cache_clear()
    ramp = np.linspace(1000, 4095, 600).astype(np.uint16).reshape(20, 30)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encode(".png", ramp))
        seen = images.read_image(tmp_path / name)
        assert seen.min() == 0 and seen.max() == 255 and (np.diff(seen[..., 0].ravel().astype(int)) >= 0).all()
    assert len(caplog.records) == 1


def test_a_flat_deep_image_keeps_its_level(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(".png", np.full((3, 3), 257 * 100, np.uint16)))
    assert (images.read_image(tmp_path / "a.png") == 100).all()


def test_nan_in_a_float_image_is_tolerated(tmp_path):
    values = np.array([[0.5, 1.5], [np.nan, 2.5]], np.float32)
    (tmp_path / "a.tif").write_bytes(encode(".tif", values))
    assert images.read_image(tmp_path / "a.tif")[0].tolist() == [[0, 0, 0], [128, 128, 128]]


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    block = exif(orientation)
    raw = b"".join(b"\0" + row.tobytes() for row in PICTURE)
    (tmp_path / "a.png").write_bytes(png(30, 20, 8, 2, raw, png_chunk(b"eXIf", block)))
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), UPRIGHT[orientation](PICTURE))

    plain = encode(".jpg", PICTURE)
    (tmp_path / "plain.jpg").write_bytes(plain)
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block
    (tmp_path / "turned.jpg").write_bytes(plain[:2] + segment + plain[2:])
    upright = UPRIGHT[orientation](images.read_image(tmp_path / "plain.jpg"))
    np.testing.assert_array_equal(images.read_image(tmp_path / "turned.jpg"), upright)


@pytest.mark.parametrize("suffix", sorted(images.SUFFIXES))
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_truncated_files_are_errors(tmp_path, capfd, suffix, kept):
    data = encode(suffix, noise(64, 64, 3))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=f"a{suffix}"):
        images.read_image(path)
    assert capfd.readouterr().err == ""


def test_a_thumbnail_does_not_hide_a_truncated_jpeg(tmp_path):
    data = encode(".jpg", noise(64, 64, 3))
    thumbnail = b"\xff\xe1" + struct.pack(">H", 300) + b"Exif\0\0" + b"\0" * 290 + b"\xff\xd9"
    (tmp_path / "a.jpg").write_bytes(data[:2] + thumbnail + data[2:-200])
    with pytest.raises(ImageError, match="truncated"):
        images.read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", sorted(images.SUFFIXES))
def test_bytes_after_the_image_do_no_harm(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(encode(suffix, PICTURE) + bytes(100) + b"trailer")
    assert images.read_image(tmp_path / f"a{suffix}").shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "not an image"),
        (b"\xff\xd8\xff\xd9", "no size"),
        (png(50_000, 50_000, 8, 2, b"\0" * 100), "50000 x 50000 pixels"),
        (b"BM" + struct.pack("<IIIIii", 54, 0, 54, 40, 100_000, -100_000) + bytes(30), "100000 x 100000 pixels"),
        (png(5, 5, 8, 0, bytes(30)).replace(b"IDAT", b"IDAX"), "checksum"),
    ],
)
def test_bad_content_is_an_error_with_its_reason(tmp_path, data, reason):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match=reason) as caught:
        images.read_image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        images.read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="not a regular file"):
        images.read_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        images.read_image("zero\0byte.png")


def test_masks_are_true_where_not_zero(tmp_path):
    gray = np.array([[0, 1], [255, 0]], np.uint8)
    (tmp_path / "gray.png").write_bytes(encode(".png", gray))
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, :] = [(255, 0, 0, 255), (255, 255, 255, 0), (0, 0, 0, 255)]
    (tmp_path / "rgba.png").write_bytes(encode(".png", rgba))
    assert images.read_mask(tmp_path / "gray.png").tolist() == [[False, True], [True, False]]
    assert images.read_mask(tmp_path / "rgba.png").tolist() == [[True, False, False]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (300, 2), (64, 64), (65, 63)])
def test_to_square_squashes_any_shape(shape):
    image = np.full((*shape, 3), 77, np.uint8)
    square = images.to_square(image, 64)
    assert square.shape == (64, 64, 3) and square.dtype == np.uint8 and (square == 77).all()


def test_to_square_keeps_what_lies_at_the_edge():
    image = np.zeros((40, 400, 3), np.uint8)
    image[:, -40:] = 255
    assert (images.to_square(image, 20)[:, -2:] == 255).all()


def test_directories_are_listed_in_natural_order_and_spelled_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("d/10.png", "d/2.PNG", "d/sub/1.tiff", "d/note.txt", "d/.hidden.png", "x[1].png", "y.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "d/sub/up").symlink_to(tmp_path / "d")
    assert images.find_images(["d"]) == ["d/2.PNG", "d/10.png", "d/sub/1.tiff"]
    assert images.find_images(["./d/", "y.bin", "none.png", "x[1].png"]) == [
        "./d/2.PNG", "./d/10.png", "./d/sub/1.tiff", "y.bin", "none.png", "x[1].png",
    ]  # fmt: skip
    assert images.find_images(["d/*0.png", "*.gif", "*"]) == [
        "d/10.png", "*.gif", "d/2.PNG", "d/10.png", "d/sub/1.tiff", "x[1].png",
    ]  # fmt: skip
    (tmp_path / "d/sub/up").unlink()
    assert images.find_images(["d/**"]) == ["d/2.PNG", "d/10.png", "d/sub/1.tiff"]


def test_a_directory_that_cannot_be_listed_stands_for_itself(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images.os, "listdir", refuse)
    assert images.find_images([str(tmp_path)]) == [str(tmp_path)]
    with pytest.raises(ImageError, match="cannot be listed: Permission denied"):
        images.read_image(tmp_path)


def test_a_directory_that_gives_its_names_but_may_not_be_entered_stands_for_itself(tmp_path, monkeypatch):
    """Its subfolders cannot be told from files, and would be left out without a word."""
    (tmp_path / "line" / "monday").mkdir(parents=True)
    images.write_png(tmp_path / "line" / "monday" / "0.png", noise(4, 6))

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images.os, "lstat", refuse)
    assert images.find_images([str(tmp_path / "line")]) == [str(tmp_path / "line")]
    with pytest.raises(ImageError, match="cannot be listed: Permission denied"):
        images.read_image(tmp_path / "line")


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_write_png_gives_back_its_array(tmp_path, shape, dtype):
    array = (noise(*shape).astype(dtype) * (257 if dtype == np.uint16 else 1))[:, ::-1]
    images.write_png(tmp_path / "a.png", array)
    read = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read[..., ::-1] if read.ndim == 3 else read, array)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_write_png_failures(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        images.write_png(tmp_path / "none" / "a.png", PICTURE)
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError):
        images.write_png(tmp_path / "a.png", PICTURE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match="float64"):
        images.write_png(tmp_path / "b.png", np.zeros((2, 2)))
