"""Whether a JPEG file is whole: its markers follow the standard, and its compressed pixels last exactly to its end.

libjpeg, and so OpenCV, makes a picture of almost anything and only prints a warning. Nothing in the file is a checksum,
therefore a changed byte that leaves every marker and the length of the picture right cannot be noticed.
"""

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from cmgcli.errors import ImageError

_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame
_SEQUENTIAL = frozenset({0xC0, 0xC1})  # Huffman-coded, in one go
_SCAN, _END, _RESTART_INTERVAL, _APP1 = 0xDA, 0xD9, 0xDD, 0xE1
_WITH_BODY = _SIZES | {0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xFE} | frozenset(range(0xE0, 0xF0))
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_SLACK = 16  # bytes too many that sloppy but sound encoders leave at the end
_FILLER = bytes(8)  # what a Huffman decoder looks ahead


class Scan(NamedTuple):
    """What the markers say, and where the compressed pixels lie that `check_length` can follow."""

    width: int
    height: int
    exif: bytes = b""
    start: int = 0
    end: int = 0  # of the one sequential scan; 0 where there are several, or of another kind


class _Segment(NamedTuple):
    marker: int
    body: bytes
    pixels: tuple[int, int]  # where the compressed data of a scan begins and ends


def read_scan(data: bytes) -> Scan:
    """Follow the segments to the end-of-image marker; a thumbnail's own marker inside a segment does not count.

    Raises ImageError (without a file name) where markers are missing, unknown or out of order; struct.error and
    IndexError where the data ends within a segment.
    """
    width = height = interval = frame = 0
    exif, scans = b"", []
    for marker, body, pixels in _segments(data):
        if marker in _SIZES:
            frame, (height, width) = marker, struct.unpack_from(">HH", body, 1)
        elif marker == _RESTART_INTERVAL:
            (interval,) = struct.unpack_from(">H", body)
        elif marker == _APP1 and body.startswith(b"Exif\0\0"):
            exif = body[6:]
        elif marker == _SCAN:
            _check_restarts(data, pixels, interval)
            scans.append(pixels)
    if not width or not height:
        raise ImageError("the JPEG file is damaged (it has no size)")
    if not scans:
        raise ImageError("the JPEG file is damaged (it has no pixels)")
    followed = scans[0] if frame in _SEQUENTIAL and len(scans) == 1 else (0, 0)
    return Scan(width, height, exif, *followed)


def _segments(data: bytes) -> Iterator[_Segment]:
    position = 2
    while True:
        begin = position
        while data[position + 1] == 0xFF:  # fill bytes
            position += 1
        marker = data[position + 1]
        if data[begin] != 0xFF or marker not in _WITH_BODY | {_END}:
            raise ImageError(f"the JPEG file is damaged (no valid marker at byte {begin})")
        if marker == _END:
            return
        (length,) = struct.unpack_from(">H", data, position + 2)
        end = pixels_end = position + 2 + length
        if length < 2 or end > len(data):
            raise ImageError(f"the JPEG file is truncated or damaged (segment at byte {begin})")
        if marker == _SCAN:
            found = _SCAN_END.search(data, end)
            if found is None:
                raise ImageError("the JPEG file is truncated (it has no end-of-image marker)")
            pixels_end = found.start()
        yield _Segment(marker, data[position + 4 : end], (end, pixels_end))
        position = pixels_end


def _check_restarts(data: bytes, pixels: tuple[int, int], interval: int) -> None:
    """Restart markers are numbered 0 to 7 in turn; a lost or invented one breaks the turn."""
    numbers = [found[0] - 0xD0 for found in _RESTART.findall(data, *pixels)]
    if numbers and not interval or any(number != i % 8 for i, number in enumerate(numbers)):
        raise ImageError("the JPEG file is damaged (its restart markers are out of order)")


def check_length(data: bytes, scan: Scan) -> None:
    """Raise ImageError (without a file name) where the picture is complete long before its data ends, or not at the end.

    A broken byte makes a Huffman decoder lose or invent blocks. Pillow decodes data as it reads it, which OpenCV cannot:
    it must ask for more when it has all but the last bytes, and must not when it has all of them.
    """
    from PIL.JpegImagePlugin import JpegImageFile

    if not scan.end:
        return
    source = _Source(data[: scan.end] + _FILLER, pause=max(scan.end - _SLACK, scan.start))
    try:
        image = JpegImageFile(source)
    except (SyntaxError, OSError, ValueError):  # a kind that Pillow does not know, so that it cannot judge
        return
    image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))  # one pixel a block is enough, and fast
    source.asked_for_more = False
    try:
        image.load()
    except OSError as error:
        raise ImageError("the JPEG file is damaged (its data ends before its picture)") from error
    if not source.asked_for_more:
        raise ImageError("the JPEG file is damaged (its picture ends before its data)")


class _Source(io.BytesIO):
    """A file that stops once at `pause`, and notes whether more is read after it."""

    def __init__(self, data: bytes, pause: int) -> None:
        super().__init__(data)
        self.pause, self.asked_for_more = pause, False

    def read(self, size: int | None = -1) -> bytes:
        left = self.pause - self.tell()
        if left <= 0:
            self.asked_for_more = True
            return super().read(size)
        return super().read(left if size is None or size < 0 else min(size, left))
