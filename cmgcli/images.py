"""Find image files, decode them to what a person sees, and write PNG files.

Files are read by Python and decoded by OpenCV from memory, so that any file name works. OpenCV decodes a truncated file
to a picture with a grey part and believes a header that promises terabytes; therefore the container is checked first.
"""

import contextlib
import functools
import glob
import logging
import os
import re
import stat
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmgcli.errors import ImageError, InputError, OutputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 200_000_000

_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}  # BYTE, SHORT, LONG
_TIFF_WIDTH, _TIFF_HEIGHT, _ORIENTATION = 256, 257, 274
_TIFF_CHUNKS = ((273, 279), (324, 325))  # offsets and byte counts of strips, of tiles
_PNG_SEEN = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class _Container(NamedTuple):
    """What a file's header says, and the bytes to decode."""

    width: int
    height: int
    data: bytes
    orientation: int = 1  # EXIF: 1 is upright
    alpha: bool = True  # a fourth channel is opacity


def find_images(paths: Iterable[str]) -> list[str]:
    """List the image files that `paths` stand for, each spelled the way the user spelled its beginning.

    A file stays as given, also when it is missing or has an odd suffix (its reader reports it). A directory gives its
    image files (`SUFFIXES`, hidden ones left out), recursively, in natural order (`2.png` before `10.png`). What does
    not exist and has wildcards is expanded; without a match it stays as given.

    Raises InputError for a directory that cannot be listed.
    """
    found: list[str] = []
    for path in map(os.fspath, paths):
        given = os.path.lexists(path) or not glob.has_magic(path)
        matches = [path] if given else sorted(glob.glob(path, recursive=True), key=_natural)
        files = [file for match in matches for file in (_walk(match) if os.path.isdir(match) else [match])]
        if not given:  # `**` names a file and also the folder that holds it
            files = [file for file in dict.fromkeys(files) if _has_suffix(file)] or [path]
        found += files
    return found


def _walk(folder: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    above |= {os.path.realpath(folder)}
    try:
        names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=_natural)
    except OSError as error:
        raise InputError(f"{folder!r}: the folder cannot be listed: {error.strerror}") from error
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.isdir(path):
            if _has_suffix(name):
                yield path
        elif os.path.realpath(path) not in above:  # a link to a folder above would never end
            yield from _walk(path, above)


def _has_suffix(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES


def _natural(path: str) -> tuple[list[tuple[str, int]], str]:
    parts = re.findall(r"([^0-9]*)([0-9]*)", path.casefold())
    return [(text, int(digits or -1)) for text, digits in parts], path


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode an image file as a person sees it: (H, W, 3) uint8, RGB, EXIF rotation applied.

    Grayscale, palette and CMYK become RGB; what is transparent becomes white; values deeper than 8 bits are scaled by
    the image's own range (its least value becomes 0, its greatest 255), which is logged once. Of several pages or
    frames the first counts.

    Raises ImageError, with the path and a short reason, for a file that is missing, unreadable, empty, truncated,
    damaged, no image, or larger than `MAX_PIXELS`.
    """
    cv2 = _opencv()
    pixels, orientation = _decode(path)  # (H, W, C)
    colour, opacity = _split_opacity(pixels)
    colour = _to_eight_bits(colour)
    if colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
    else:
        colour = cv2.cvtColor(colour, cv2.COLOR_BGR2RGB)
    if opacity is not None and (opacity < 1).any():
        colour = np.rint(255 + (colour - np.float32(255)) * opacity[..., None]).astype(np.uint8)
    return np.ascontiguousarray(_upright(colour, orientation))


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode a mask file: (H, W) bool, True where any colour channel is not zero (and not transparent).

    Raises ImageError as `read_image` does.
    """
    pixels, orientation = _decode(path)
    colour, opacity = _split_opacity(pixels)
    mask = (colour != 0).any(axis=2)
    if opacity is not None:
        mask &= opacity > 0
    return np.ascontiguousarray(_upright(mask, orientation))


def to_square(image: np.ndarray, size: int) -> np.ndarray:
    """Squash an (H, W, 3) uint8 image to (size, size, 3) uint8; nothing is cropped.

    Sides that shrink are averaged (INTER_AREA), sides that grow are interpolated (INTER_CUBIC).
    """
    cv2 = _opencv()
    height, width = image.shape[:2]
    shrunk = min(height, size), min(width, size)
    if shrunk != (height, width):
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    if shrunk != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(image)


def write_png(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an (H, W) or (H, W, 3) RGB array of uint8 or uint16 as PNG; the file appears complete or not at all.

    Raises OutputError where the file cannot be written, ValueError for another shape or dtype.
    """
    if array.dtype not in (np.uint8, np.uint16) or array.size == 0 or array.shape[2:] not in ((), (3,)):
        raise ValueError(f"expected (H, W) or (H, W, 3) of uint8 or uint16, got {array.shape} of {array.dtype}")
    pixels = np.ascontiguousarray(array[..., ::-1] if array.ndim == 3 else array)  # OpenCV keeps BGR
    _, data = _opencv().imencode(".png", pixels)
    path = Path(path)
    partial = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OutputError(f"{str(path)!r} cannot be written: {error.strerror}") from error


@functools.cache
def _opencv() -> Any:
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is damaged, an ImageError says
    return cv2


@functools.cache
def _say_deep_once() -> None:
    logging.getLogger(__name__).warning("images deeper than 8 bits are scaled by their own range of values")


def _decode(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """Pixels as stored, (H, W, C) with C in 1..4, BGR(A), and the EXIF orientation still to apply."""
    cv2 = _opencv()
    name = repr(os.fspath(path))
    data = _read_bytes(path)
    try:
        container = _inspect(data)
    except (struct.error, IndexError) as error:
        raise ImageError(f"{name}: the file is truncated or damaged") from error
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    width, height = container.width, container.height
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels are more than the {MAX_PIXELS // 10**6} million allowed")
    try:
        pixels = cv2.imdecode(np.frombuffer(container.data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, MemoryError) as error:
        raise ImageError(f"{name}: the image cannot be decoded") from error
    if pixels is None or pixels.size == 0:
        raise ImageError(f"{name}: the image is damaged or of a kind that cannot be decoded")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] > 4:
        raise ImageError(f"{name}: expected 1 to 4 channels, got {pixels.shape[2]}")
    return pixels if container.alpha else pixels[..., :3], container.orientation


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    name = repr(os.fspath(path))
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device could block for ever
            raise ImageError(f"{name}: not a regular file")
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: the file cannot be read: {reason}") from error
    if not data:
        raise ImageError(f"{name}: the file is empty")
    return data


def _split_opacity(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, C) to its colour, (H, W, 1 or 3), and its opacity, (H, W) float32 in [0, 1], where it has one."""
    channels = pixels.shape[2]
    if channels in (1, 3):
        return pixels, None
    full = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1.0
    return pixels[..., : channels - 1], pixels[..., -1].astype(np.float32) / np.float32(full)


def _to_eight_bits(colour: np.ndarray) -> np.ndarray:
    if colour.dtype == np.uint8:
        return np.ascontiguousarray(colour)
    _say_deep_once()
    finite = np.isfinite(colour)
    values = np.where(finite, colour, 0).astype(np.float32 if colour.itemsize <= 2 else np.float64)
    low, high = values.min(initial=np.inf, where=finite), values.max(initial=-np.inf, where=finite)
    if not high > low:  # flat: there is no range, so the depth of the type has to do
        full = np.iinfo(colour.dtype).max if np.issubdtype(colour.dtype, np.integer) else 1.0
        low, high = 0.0, float(full)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an (H, W, ...) array upright by its EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _inspect(data: bytes) -> _Container:
    """Recognise the container by its first bytes; ImageError (without a name) where it is incomplete or unknown."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _inspect_png(data)
    if data.startswith(b"\xff\xd8"):
        return _inspect_jpeg(data)
    if data.startswith((b"II*\0", b"MM\0*")):
        return _inspect_tiff(data)
    if data.startswith(b"BM"):
        return _inspect_bmp(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _inspect_webp(data)
    raise ImageError("not an image of a known kind (PNG, JPEG, BMP, TIFF, WebP)")


def _inspect_png(data: bytes) -> _Container:
    """Check every chunk; only what is needed to see the pixels goes on (libpng prints warnings about the rest)."""
    kept, orientation, position, kind = [data[:8]], 1, 8, b""
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        kind, body = data[position + 4 : position + 8], data[position + 8 : end - 4]
        if end > len(data):
            raise ImageError("the PNG file is truncated")
        if zlib.crc32(body, zlib.crc32(kind)) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ImageError(f"the PNG file is damaged (checksum at byte {position})")
        if kind == b"eXIf":
            orientation = _exif_orientation(body)
        if kind in _PNG_SEEN:
            kept.append(data[position:end])
        position = end
    width, height = struct.unpack_from(">II", data, 16)
    return _Container(width, height, b"".join(kept), orientation)


def _inspect_jpeg(data: bytes) -> _Container:
    """Follow the segments to the end-of-image marker; a thumbnail's own marker inside a segment does not count."""
    width = height = 0
    orientation, position = 1, 2
    while True:
        while data[position + 1] == 0xFF:  # fill bytes
            position += 1
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0xD9:
            break
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, position + 5)
        elif marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
        if marker == 0xDA:
            scan_end = _JPEG_END_OF_SCAN.search(data, position)
            if scan_end is None:
                raise ImageError("the JPEG file is truncated (it has no end-of-image marker)")
            position = scan_end.start()
    if not width or not height:
        raise ImageError("the JPEG file is damaged (it has no size)")
    return _Container(width, height, data, orientation)


def _inspect_bmp(data: bytes) -> _Container:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    return _Container(abs(width), abs(height), data, alpha=False)  # the fourth byte mostly is filler


def _inspect_webp(data: bytes) -> _Container:
    (size,) = struct.unpack_from("<I", data, 4)
    if len(data) < size + 8:
        raise ImageError("the WebP file is truncated")
    kind, orientation = data[12:16], 1
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        if data[20] & 0x08:
            exif = data.rfind(b"EXIF")
            orientation = _exif_orientation(data[exif + 8 :].removeprefix(b"Exif\0\0")) if exif >= 0 else 1
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return _Container(width, height, data, orientation)


def _inspect_tiff(data: bytes) -> _Container:
    tags = _tiff_tags(data)
    if _TIFF_WIDTH not in tags or _TIFF_HEIGHT not in tags:
        raise ImageError("the TIFF file is damaged (it has no size)")
    for offsets, counts in _TIFF_CHUNKS:
        ends = map(sum, zip(tags.get(offsets, ()), tags.get(counts, ())))
        if max(ends, default=0) > len(data):
            raise ImageError("the TIFF file is truncated")
    return _Container(tags[_TIFF_WIDTH][0], tags[_TIFF_HEIGHT][0], data)  # OpenCV turns TIFF upright itself


def _exif_orientation(block: bytes) -> int:
    try:
        return _tiff_tags(block).get(_ORIENTATION, (1,))[0]
    except (struct.error, IndexError):
        return 1  # a broken note about the picture does not spoil the picture


def _tiff_tags(block: bytes) -> dict[int, tuple[int, ...]]:
    """The integer tags of the first directory of a TIFF block."""
    order = "<" if block[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, start)
    tags = {}
    for position in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", block, position)
        if kind not in _TIFF_TYPES or not length:
            continue
        values, form = position + 8, f"{order}{length}{_TIFF_TYPES[kind]}"
        if struct.calcsize(form) > 4:  # too long for the entry itself
            (values,) = struct.unpack_from(order + "I", block, values)
        tags[tag] = struct.unpack_from(form, block, values)
    return tags
