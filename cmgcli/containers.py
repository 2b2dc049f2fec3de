"""What the header of an image file says, and whether the file is whole.

OpenCV decodes a truncated file to a picture with a grey part and believes a header that promises terabytes; therefore
the container is checked before.
"""

import struct
import zlib
from typing import NamedTuple

from cmgcli import jpeg
from cmgcli.errors import ImageError

_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}  # BYTE, SHORT, LONG
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _ORIENTATION, _TIFF_OPACITY = 256, 257, 258, 274, 338
_TIFF_CHUNKS = ((273, 279), (324, 325))  # offsets and byte counts of strips, of tiles
_PNG_SEEN = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


class Container(NamedTuple):
    """What a file's header says, and the bytes to decode."""

    width: int
    height: int
    data: bytes
    orientation: int = 1  # EXIF: 1 is upright
    alpha: bool = True  # a fourth channel is opacity
    premultiplied: bool = False  # colours are stored times their opacity
    scan: jpeg.Scan | None = None  # whose length is still to check


def inspect(data: bytes) -> Container:
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


def _inspect_png(data: bytes) -> Container:
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
    return Container(width, height, b"".join(kept), orientation)


def _inspect_jpeg(data: bytes) -> Container:
    scan = jpeg.read_scan(data)
    return Container(scan.width, scan.height, data, _exif_orientation(scan.exif), scan=scan)


def _inspect_bmp(data: bytes) -> Container:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    return Container(abs(width), abs(height), data, alpha=False)  # the fourth byte mostly is filler


def _inspect_webp(data: bytes) -> Container:
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
    return Container(width, height, data, orientation)


def _inspect_tiff(data: bytes) -> Container:
    tags = _tiff_tags(data)
    if _TIFF_WIDTH not in tags or _TIFF_HEIGHT not in tags:
        raise ImageError("the TIFF file is damaged (it has no size)")
    for offsets, counts in _TIFF_CHUNKS:
        ends = map(sum, zip(tags.get(offsets, ()), tags.get(counts, ())))
        if max(ends, default=0) > len(data):
            raise ImageError("the TIFF file is truncated")
    # OpenCV turns TIFF upright itself, and multiplies 8-bit colours by their opacity where the file does not
    opacity = tags.get(_TIFF_OPACITY, (0,))[0], tags.get(_TIFF_BITS, (1,))[0]
    return Container(tags[_TIFF_WIDTH][0], tags[_TIFF_HEIGHT][0], data, premultiplied=opacity[0] == 1 or opacity == (2, 8))


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
