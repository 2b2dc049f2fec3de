"""What the parts of the procedural line are made of."""

from dataclasses import dataclass

import cv2
import numpy as np

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Material:
    """colour: RGB. shine: strength of the highlights. rough: strength of the grain.

    grain: how the surface varies, one of brushed, ground, spangled, cast, rust, wood, plain, leather, woven, fibrous, veined.
    """

    colour: Colour
    shine: float
    grain: str
    rough: float


_MATERIALS: dict[str, Material] = {
    "steel": Material((122, 130, 144), 0.9, "brushed", 0.07),
    "aluminium": Material((176, 179, 183), 0.7, "brushed", 0.045),
    "brass": Material((184, 146, 66), 0.9, "brushed", 0.05),
    "copper": Material((188, 104, 66), 0.9, "brushed", 0.05),
    "cast iron": Material((84, 78, 76), 0.2, "cast", 0.16),
    "rusty iron": Material((134, 76, 44), 0.1, "rust", 0.30),
    "black plastic": Material((34, 34, 37), 0.8, "plain", 0.03),
    "red plastic": Material((190, 34, 34), 0.6, "plain", 0.02),
    "blue plastic": Material((30, 78, 178), 0.6, "plain", 0.02),
    "yellow plastic": Material((240, 204, 16), 0.5, "plain", 0.02),
    "green plastic": Material((28, 130, 66), 0.6, "plain", 0.02),
    "white ceramic": Material((236, 234, 228), 0.7, "plain", 0.015),
    "wood": Material((178, 128, 78), 0.05, "wood", 0.22),
    "rubber": Material((60, 60, 63), 0.08, "cast", 0.10),
    "ground steel": Material((148, 149, 150), 0.5, "ground", 0.10),
    "zinc": Material((158, 167, 180), 0.5, "spangled", 0.09),
    "orange plastic": Material((238, 112, 22), 0.6, "plain", 0.02),
    "green laminate": Material((36, 88, 62), 0.45, "woven", 0.06),
    "leather": Material((88, 52, 38), 0.35, "leather", 0.17),
    "blue fabric": Material((66, 86, 138), 0.0, "woven", 0.20),
    "cardboard": Material((192, 154, 108), 0.0, "fibrous", 0.07),
    "white paper": Material((222, 223, 226), 0.0, "fibrous", 0.025),
    "marble": Material((206, 203, 200), 0.5, "veined", 0.16),
}
MATERIALS: tuple[str, ...] = tuple(_MATERIALS)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[float, float]) -> np.ndarray:
    """Noise (height, width) float32 of about unit variance with so many waves down and across."""
    coarse = rng.standard_normal((max(2, round(cells[0])), max(2, round(cells[1]))), dtype=np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def turned(texture: np.ndarray, angle: float, size: tuple[int, int]) -> np.ndarray:
    """A square texture seen at an angle (radians), cut to `size`."""
    middle = texture.shape[0] / 2
    turn = cv2.getRotationMatrix2D((middle, middle), np.degrees(-angle), 1.0)
    turn[:, 2] += (size[1] / 2 - middle, size[0] / 2 - middle)
    return cv2.warpAffine(texture, turn, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def find_material(material: str) -> Material:
    """Raises ValueError for an unknown material."""
    if material not in _MATERIALS:
        raise ValueError(f"unknown material {material!r}: choose one of {', '.join(MATERIALS)}")
    return _MATERIALS[material]


def surface(material: Material, rng: np.random.Generator, size: tuple[int, int], angle: float) -> np.ndarray:
    """A flat piece (height, width, 3) uint8 RGB of a material whose grain runs along `angle` (radians)."""
    texture = _grain(material.grain, rng, size, angle)
    colour = np.array(material.colour, np.float32)
    if material.grain == "rust":
        patches = np.clip(smooth_noise(rng, size, (7, 7)), -1, 1)[..., None]
        colour = colour + patches * np.array([28, 4, -8], np.float32)
        texture = texture * 0.6
    return np.clip(colour * (1 + material.rough * texture[..., None]), 0, 255).astype(np.uint8)


def _grain(grain: str, rng: np.random.Generator, size: tuple[int, int], angle: float) -> np.ndarray:
    """The variation (height, width) float32 of a surface, of about unit variance."""
    side = int(np.ceil(max(size) * 1.25)) + 2
    if grain == "brushed":
        streaks = smooth_noise(rng, (side, side), (side / 1.5, 3)) * 0.9 + smooth_noise(rng, (side, side), (side / 3, 2)) * 0.2
        return turned(streaks, angle, size)
    if grain == "ground":
        return turned(smooth_noise(rng, (side, side), (side, side / 14)), angle, size)
    if grain == "wood":
        bend = smooth_noise(rng, (side, side), (5, 2)) * 1.6
        rings = np.sin(np.linspace(0, rng.uniform(20, 40), side, dtype=np.float32)[:, None] + bend)
        return turned(rings * 0.6 + 0.5 * smooth_noise(rng, (side, side), (side / 2, 4)), angle, size)
    if grain == "woven":
        return _weave(rng, side, angle, size)
    if grain == "plain":
        return smooth_noise(rng, size, (3, 3))
    if grain == "spangled":
        return _cells(rng, size, side / 12)[0]
    if grain == "leather":
        level, edge = _cells(rng, size, max(4.0, side / 30))
        return 0.25 * level - 1.4 * edge + 0.4 * smooth_noise(rng, size, (5, 5))
    if grain == "fibrous":
        return 0.5 * turned(smooth_noise(rng, (side, side), (side / 1.2, side / 3)), angle, size) + 0.6 * smooth_noise(rng, size, (6, 6))
    if grain == "veined":
        field = turned(smooth_noise(rng, (side, side), (7, 4)) + 0.35 * smooth_noise(rng, (side, side), (18, 12)), angle, size)
        fading = np.clip(smooth_noise(rng, size, (5, 5)) + np.float32(0.5), 0, 1)
        return 0.3 - 2.6 * fading * np.exp(-np.square(field * np.float32(5))) - 0.5 * np.abs(smooth_noise(rng, size, (6, 6)))
    return 0.6 * smooth_noise(rng, size, (size[0] / 2, size[1] / 2)) + 0.6 * smooth_noise(rng, size, (8, 8))


def _weave(rng: np.random.Generator, side: int, angle: float, size: tuple[int, int]) -> np.ndarray:
    """Threads that pass over and under each other, (height, width) float32."""
    phase = np.arange(side, dtype=np.float32) * np.float32(np.pi / max(2.0, side * rng.uniform(0.012, 0.022)))
    over = (np.sin(phase)[:, None] * np.sin(phase)[None]) > 0
    threads = np.where(over, np.abs(np.sin(phase))[:, None], np.abs(np.sin(phase))[None] - np.float32(0.5))
    threads = threads + 0.3 * smooth_noise(rng, (side, side), (side / 2, side / 2)) - np.float32(0.35)
    return turned(threads, angle, size)


def _cells(rng: np.random.Generator, size: tuple[int, int], width: float) -> tuple[np.ndarray, np.ndarray]:
    """Irregular cells about `width` pixels wide: a level each, and 1 where two of them meet, both (height, width) float32."""
    seeds = np.ones(size, np.uint8)
    count = max(2, round(size[0] * size[1] / width**2))
    seeds[rng.integers(size[0], size=count), rng.integers(size[1], size=count)] = 0
    labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1]
    level = rng.standard_normal(count + 1, dtype=np.float32)[labels]
    edge = np.zeros(size, np.float32)
    edge[1:] = labels[1:] != labels[:-1]
    edge[:, 1:] = np.maximum(edge[:, 1:], labels[:, 1:] != labels[:, :-1])
    return level, cv2.blur(edge, (2, 2))
