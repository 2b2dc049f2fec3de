"""What changes on a shop floor, at five strengths each: light, lens, sensor, compression, the part's place, dust on the camera.

Pure functions of an image: the same seed and the same number of an image give the same picture, and only the amount of a
change grows with its strength, not its direction or its pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

STRENGTHS = 5
_DUST_SEED = 0
_LUMPS = 24  # the largest speck's radius goes so often into the shorter side


@dataclass(frozen=True)
class Change:
    """One way in which pictures change."""

    name: str
    wording: str  # an amount in words, with {} for the number
    amounts: tuple[float, ...]  # one for each strength, each worse than the one before
    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]  # image, amount, directions and patterns


def changed(image: np.ndarray, change: Change, strength: int, number: int, *, seed: int = 0) -> np.ndarray:
    """The picture (H, W, 3) uint8 RGB under a change.

    Args:
        image: (H, W, 3) uint8 RGB; it is left as it is.
        strength: 1 to 5.
        number: of the image in its run; another number, another direction and pattern.
    """
    return change.apply(image, change.amounts[strength - 1], np.random.default_rng((seed, number)))


def brightness(image: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    """Every value times 1 + p or times 1 / (1 + p): more light or less, clipped as a sensor does."""
    gain = 1 + percent / 100
    return _bytes(image * np.float32(gain if rng.random() < 0.5 else 1 / gain))


def contrast(image: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    """The distance of every value from the image's mean times 1 + p or times 1 / (1 + p)."""
    gain, mean = 1 + percent / 100, np.float32(image.mean())
    return _bytes((image - mean) * np.float32(gain if rng.random() < 0.5 else 1 / gain) + mean)


def blur(image: np.ndarray, percent: float, _: np.random.Generator) -> np.ndarray:
    """Out of focus: a Gaussian whose standard deviation is a share of the shorter side."""
    return cv2.GaussianBlur(image, (0, 0), percent / 100 * min(image.shape[:2]), borderType=cv2.BORDER_REFLECT)


def noise(image: np.ndarray, levels: float, rng: np.random.Generator) -> np.ndarray:
    """A sensor at a high gain: Gaussian noise of so many grey levels; a gray image stays gray."""
    gray = bool((image == image[..., :1]).all())
    grain = rng.standard_normal((*image.shape[:2], 1 if gray else 3), dtype=np.float32)
    return _bytes(image + np.float32(levels) * grain)


def jpeg(image: np.ndarray, quality: float, _: np.random.Generator) -> np.ndarray:
    """Written and read again as JPEG of a quality from 100 down to 1."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def shift(image: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    """Moved by a share of the shorter side in any direction; what comes in at the border mirrors what is there."""
    angle, reach = rng.uniform(0, 2 * np.pi), percent / 100 * min(image.shape[:2])
    return _warped(image, np.array([[1, 0, reach * np.cos(angle)], [0, 1, reach * np.sin(angle)]]))


def rotation(image: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    """Turned about the middle, to the left or to the right."""
    height, width = image.shape[:2]
    return _warped(image, cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees if rng.random() < 0.5 else -degrees, 1))


def dust(image: np.ndarray, specks: float, _: np.random.Generator) -> np.ndarray:
    """Soft dark specks on lens or sensor: in the same places of every picture, as dust is; more of them, never other ones."""
    rng, sides = np.random.default_rng(_DUST_SEED), np.array(image.shape[:2])
    picture = image.astype(np.float32)
    for _speck in range(round(specks)):
        middle, radius, depth = rng.uniform(0.05, 0.95, 2) * sides, rng.uniform(0.5, 1) * sides.min() / _LUMPS, rng.uniform(0.4, 0.8)
        radius = max(radius, 0.5)
        low, high = np.maximum(middle - 2 * radius, 0).astype(int), np.minimum(middle + 2 * radius + 1, sides).astype(int)
        y, x = np.ogrid[low[0] : high[0], low[1] : high[1]]
        squared = ((y - middle[0]) ** 2 + (x - middle[1]) ** 2) / radius**2
        picture[low[0] : high[0], low[1] : high[1]] *= np.float32(1) - (depth * np.exp(-(squared**2))).astype(np.float32)[..., None]
    return _bytes(picture)


def _warped(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(values + np.float32(0.5), 0, 255).astype(np.uint8)


CHANGES: tuple[Change, ...] = (
    Change("brightness", "{} %", (5, 10, 20, 35, 50), brightness),
    Change("contrast", "{} %", (5, 10, 20, 35, 50), contrast),
    Change("blur", "{} % of the side", (0.2, 0.4, 0.7, 1, 1.5), blur),
    Change("noise", "{} grey levels", (2, 4, 8, 14, 22), noise),
    Change("JPEG", "quality {}", (95, 80, 50, 30, 10), jpeg),
    Change("shift", "{} % of the side", (1, 2, 4, 7, 10), shift),
    Change("rotation", "{} degrees", (1, 2, 4, 7, 10), rotation),
    Change("camera dust", "{} specks", (2, 4, 8, 12, 20), dust),
)
