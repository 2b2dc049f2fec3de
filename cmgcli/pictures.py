"""Pictures of results: heat colours, overlays, mask files. Every scale is given by the caller, never stretched per image."""

from pathlib import Path

import cv2
import numpy as np

from cmgcli.errors import ImageError
from cmgcli.images import write_png

_OUTLINE = (0, 230, 160)  # RGB
_ALARM = (200, 0, 0)
_WARM = np.array([(255, 240, 90), (255, 200, 0), (255, 110, 0), (220, 0, 0)], np.float32)  # calm, threshold, ..., gross
_WARM_AT = (0.0, 1.0, 1.5, 2.0)  # in units of high - low

LEVEL_OF_ZERO = 32768  # of a written anomaly map; see `map_levels`
LEVELS_PER_UNIT = 1024

_LONGEST_STEM = 220  # bytes


def heat(values: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Colour (H, W) values from black (`low` and below) over red to pale yellow (`high` and above): uint8 RGB.

    One scale for all pictures: the caller gives it. Clipping is for the picture only; NaN is black.
    """
    level = np.rint(np.clip(_share(values, low, high), 0, 1) * 255).astype(np.uint8)
    return cv2.applyColorMap(np.ascontiguousarray(level), cv2.COLORMAP_INFERNO)[..., ::-1].copy()


def keep_overlay(image: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Show what a keep mask keeps: in full colour with a thin outline, the rest dark and nearly grey.

    `image`: (H, W, 3) uint8 RGB. `keep`: (H, W) bool, or a grid (h, w) that covers the image. Returns (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    keep = cv2.resize(keep.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    hidden = 0.35 * (0.75 * grey[..., None] + 0.25 * image)
    picture = np.where(keep[..., None] != 0, image, np.rint(hidden).astype(np.uint8))
    return _outline(picture, keep, _OUTLINE)


def map_overlay(image: np.ndarray, anomaly_map: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Lay an anomaly map over its image: clear up to `low`, yellow at the threshold `high`, red far above it.

    What lies above `high` is outlined. `image`: (H, W, 3) uint8 RGB. `anomaly_map`: (H, W), or a smaller grid (h, w)
    that covers the image and is enlarged linearly; NaN is clear. Returns (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    share = _share(anomaly_map, low, high)  # 0 at low, 1 at high
    if share.shape != (height, width):
        share = cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR)
    share = np.clip(share, 0, 2)
    colour = np.stack([np.interp(share, _WARM_AT, channel) for channel in _WARM.T], axis=2)
    opacity = np.interp(share, (0, 1, 2), (0, 0.45, 0.7))[..., None]
    picture = np.rint(image * (1 - opacity) + colour * opacity).astype(np.uint8)
    return _outline(picture, (share > 1).astype(np.uint8), _ALARM)


def _share(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as float32 with 0 at `low` and 1 at `high`, within [-1, 3]; NaN becomes 0."""
    span = max(high - low, np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):
        share = (np.asarray(values, np.float64) - low) / span
    return np.nan_to_num(np.clip(share, -1, 3), nan=0.0).astype(np.float32)


def _outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Draw the edge of an (H, W) uint8 mask, about 1/250 of the picture wide."""
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(min(picture.shape[:2]) / 250))
    return cv2.drawContours(np.ascontiguousarray(picture), contours, -1, colour, width)


def write_mask_pictures(directory: Path, stem: str, image: np.ndarray, keep: np.ndarray, relevance: np.ndarray, *, patches: int = 1) -> None:
    """Write `STEM_keep.png` (0/255), `STEM_relevance.png` and `STEM_overlay.png`, all in the image's own size.

    `image`: (H, W, 3) uint8 RGB. `keep`: (h, w) bool. `relevance`: (h, w) float, the term of a cosine that so many
    `patches` make together; coloured from 0 to four times their even share, on the same scale for every image.
    """
    height, width = image.shape[:2]
    full = cv2.resize(keep.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_NEAREST)
    smooth = cv2.resize(relevance.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    write_png(directory / f"{stem}_keep.png", full)
    write_png(directory / f"{stem}_relevance.png", heat(smooth, low=0, high=4 * patches / relevance.size))
    write_png(directory / f"{stem}_overlay.png", keep_overlay(image, keep))


def map_levels(anomaly_map: np.ndarray) -> np.ndarray:
    """An anomaly map (H, W) float as uint16 levels, on one scale for all images of all models.

    ``level = 32768 + 1024 * value``, rounded, so ``value = (level - 32768) / 1024``: 0 is the peak of a typical good image, 1 one
    spread above it, one level 1/1024 of a spread. Values outside [-32, 31.999] become the end of the scale; NaN
    becomes level 0.
    """
    levels = np.rint(np.asarray(anomaly_map, np.float64) * LEVELS_PER_UNIT + LEVEL_OF_ZERO)
    return np.clip(np.nan_to_num(levels, nan=0.0), 0, 65535).astype(np.uint16)


def read_map(path: Path | str) -> np.ndarray:
    """Read an anomaly map that `write_map_pictures` wrote: (H, W) float32, within half a level of what was computed.

    Raises ImageError for a file that is no picture of one channel and 16 bits.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"{str(path)!r}: the file cannot be read: {error.strerror}") from error
    levels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if levels is None or levels.dtype != np.uint16 or levels.ndim != 2:
        raise ImageError(f"{str(path)!r}: expected a grey PNG of 16 bits; give a STEM_anomaly.png that cmg score --maps wrote")
    return (levels.astype(np.float32) - LEVEL_OF_ZERO) / LEVELS_PER_UNIT


def write_map_pictures(directory: Path, stem: str, image: np.ndarray, anomaly_map: np.ndarray, *, low: float, high: float) -> None:
    """Write `STEM_map.png`, the overlay (see `map_overlay`), and `STEM_anomaly.png`, the map itself (see `map_levels`).

    `image`: (H, W, 3) uint8 RGB. `anomaly_map`: (H, W) float, in the image's own size.
    """
    write_png(directory / f"{stem}_map.png", map_overlay(image, anomaly_map, low=low, high=high))
    write_png(directory / f"{stem}_anomaly.png", map_levels(anomaly_map))


def unused_stem(file: str, used: dict[str, int]) -> str:
    """The file's stem, to name its pictures by, with a number where an earlier file of the run had the same.

    ``used`` holds the names that are taken, each with the first number that may be free. Of a long stem as much as leaves room for the picture's own ending in 255 bytes, what file systems allow.
    """
    stem = name = Path(file).stem.encode("utf-8", "replace")[:_LONGEST_STEM].decode("utf-8", "ignore")
    while name in used:
        name, used[stem] = f"{stem}-{used[stem]}", used[stem] + 1
    used[name] = 2
    return name
