"""Find image files, decode them to what a person sees, and write PNG files.

Files are read by Python and decoded by OpenCV from memory, so that any file name works.
"""

import functools
import glob
import logging
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cmgcli.containers import Container, inspect
from cmgcli.errors import ImageError, OutputError
from cmgcli.files import write_whole
from cmgcli.jpeg import check_length

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 200_000_000


def find_images(paths: Iterable[str]) -> list[str]:
    """List the image files that `paths` stand for, each spelled the way the user spelled its beginning.

    A file stays as given, also when it is missing or has an odd suffix (its reader reports it). A directory gives its
    image files (`SUFFIXES`, hidden ones left out), recursively, in natural order (`2.png` before `10.png`); one that
    cannot be listed stands for itself (its reader reports it). What does not exist and has wildcards is expanded;
    without a match it stays as given.
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


def _walk(folder: str) -> Iterator[str]:
    waiting = [(folder, frozenset())]  # a stack of its own: paths may be deeper than Python's
    while waiting:
        path, above = waiting.pop()
        if not os.path.isdir(path):
            if _has_suffix(path):
                yield path
        elif (real := os.path.realpath(path)) not in above:  # a link to a folder above would never end
            above |= {real}
            try:
                names = listed(path)
            except ImageError:
                yield path
            else:
                waiting += [(os.path.join(path, name), above) for name in reversed(names)]


def listed(folder: str) -> list[str]:
    """What is in a folder and not hidden, in natural order. Raises ImageError where it cannot be listed, or may not be entered."""
    try:
        names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=_natural)
        with suppress(FileNotFoundError):  # gone meanwhile
            for name in names[:1]:  # where a folder gives its names, but may not be entered, a subfolder looks like a file
                os.lstat(os.path.join(folder, name))
        return names
    except OSError as error:
        raise ImageError(f"{folder!r}: the folder cannot be listed: {error.strerror}") from error


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
    damaged, no image, or larger than `MAX_PIXELS`, and for a folder.
    """
    cv2 = _opencv()
    pixels, container = _decode(path)  # (H, W, C)
    colour, opacity = _split_opacity(pixels)
    colour = _to_eight_bits(colour)
    if colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
    else:
        colour = cv2.cvtColor(colour, cv2.COLOR_BGR2RGB)
    if opacity is not None and (opacity < 1).any():
        share = opacity[..., None]
        shown = colour * (1 if container.premultiplied else share) + 255 * (1 - share)
        colour = np.rint(shown.clip(0, 255)).astype(np.uint8)
    return np.ascontiguousarray(_upright(colour, container.orientation))


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode a mask file: (H, W) bool, True where any colour channel is not zero (and not transparent).

    Raises ImageError as `read_image` does.
    """
    pixels, container = _decode(path)
    colour, opacity = _split_opacity(pixels)
    mask = (colour != 0).any(axis=2)
    if opacity is not None:
        mask &= opacity > 0
    return np.ascontiguousarray(_upright(mask, container.orientation))


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
    try:
        write_whole(Path(path), data.tobytes(), durable=False)
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written: {error.strerror}") from error


@functools.cache
def _opencv() -> Any:
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is damaged, an ImageError says
    return cv2


@functools.cache
def _say_deep_once() -> None:
    logging.getLogger(__name__).warning("images deeper than 8 bits are scaled by their own range of values")


def _decode(path: str | os.PathLike[str]) -> tuple[np.ndarray, Container]:
    """Pixels as stored, (H, W, C) with C in 1..4, BGR(A), not yet upright, and what their file says of them."""
    cv2 = _opencv()
    name = repr(os.fspath(path))
    container = _whole_container(_read_bytes(path), name)
    try:
        pixels = cv2.imdecode(np.frombuffer(container.data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, MemoryError) as error:
        raise ImageError(f"{name}: the image cannot be decoded") from error
    if pixels is None or pixels.size == 0:
        raise ImageError(f"{name}: the image is damaged or of a kind that cannot be decoded")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] > 4:
        raise ImageError(f"{name}: expected 1 to 4 channels, got {pixels.shape[2]}")
    return pixels if container.alpha else pixels[..., :3], container


def _whole_container(data: bytes, name: str) -> Container:
    try:
        container = inspect(data)
        width, height = container.width, container.height
        if width * height > MAX_PIXELS:
            raise ImageError(f"{width} x {height} pixels are more than the {MAX_PIXELS // 10**6} million allowed")
        if container.scan is not None:
            check_length(data, container.scan)
    except (struct.error, IndexError) as error:
        raise ImageError(f"{name}: the file is truncated or damaged") from error
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    return container


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    name = repr(os.fspath(path))
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            listed(os.fspath(path))
        if not stat.S_ISREG(mode):  # a pipe or a device could block for ever
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
