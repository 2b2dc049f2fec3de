"""The polygons that parts on the procedural line are stacked from, bottom to top, in a unit frame."""

from dataclasses import dataclass

import cv2
import numpy as np

Colour = tuple[int, int, int]
GOLD, CHIP, TIN = (205, 170, 80), (34, 34, 38), (200, 204, 210)


@dataclass(frozen=True)
class Layer:
    """One polygon of a part.

    points: (N, 2) float x, y; the part lies in the disc of radius 1 around the origin.
    height: 0 cuts through to the background; 1 to 255 is the level of the surface, which the bevels are shaded from.
    tone: factor on the material's brightness. colour: RGB in place of the material. hole: may be missing as a defect.
    """

    points: np.ndarray
    height: int = 120
    tone: float = 1.0
    colour: Colour | None = None
    hole: bool = False


def to_pixels(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Unit frame (N, 2) to OpenCV fixed point (4 fractional bits) by a (2, 3) affine pose."""
    return np.round((points @ pose[:, :2].T + pose[:, 2]) * 16).astype(np.int32)


def outline(layers: list[Layer], pose: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Coverage (height, width) uint8 of a part in a picture of `size` (height, width)."""
    canvas = np.zeros(size, dtype=np.uint8)
    for layer in layers:
        cv2.fillPoly(canvas, [to_pixels(layer.points, pose)], 255 if layer.height else 0, cv2.LINE_AA, shift=4)
    return canvas


def without_hole(layers: list[Layer], rng: np.random.Generator) -> tuple[list[Layer], Layer]:
    """The part with one of its holes not cut, and that hole. Raises ValueError for a part without holes."""
    holes = [i for i, layer in enumerate(layers) if layer.hole]
    if not holes:
        raise ValueError("this part has no hole that could be missing: choose one of cmgcli.parts.WITH_HOLES")
    missing = holes[rng.integers(len(holes))]
    return layers[:missing] + layers[missing + 1 :], layers[missing]


def disc(radius: float, x: float = 0.0, y: float = 0.0, count: int = 48) -> np.ndarray:
    """A circle as a polygon (count, 2); few corners make a regular one."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def box(x0: float, y0: float, x1: float, y1: float, corner: float = 0.0) -> np.ndarray:
    """A rectangle with rounded corners."""
    if corner <= 0:
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    quarter = np.linspace(0, np.pi / 2, 6)
    centres = ((x1 - corner, y1 - corner), (x0 + corner, y1 - corner), (x0 + corner, y0 + corner), (x1 - corner, y0 + corner))
    arcs = [
        np.stack([cx + corner * np.cos(quarter + i * np.pi / 2), cy + corner * np.sin(quarter + i * np.pi / 2)], axis=1)
        for i, (cx, cy) in enumerate(centres)
    ]
    return np.concatenate(arcs)


def capsule(x0: float, y0: float, x1: float, y1: float, radius: float) -> np.ndarray:
    """A stroke (14, 2) with round ends from (x0, y0) to (x1, y1)."""
    direction = np.arctan2(y1 - y0, x1 - x0)
    half = np.linspace(-np.pi / 2, np.pi / 2, 7)
    ends = [(x1, y1, direction), (x0, y0, direction + np.pi)]
    return np.concatenate([np.stack([x + radius * np.cos(a + half), y + radius * np.sin(a + half)], axis=1) for x, y, a in ends])


def ring_sector(inner: float, outer: float, start: float, stop: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """A piece (48, 2) of a ring around (x, y) between two angles in radians."""
    angles = np.linspace(start, stop, 24)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([outer * ring, inner * ring[::-1]]) + (x, y)


def around(count: int, radius: float, turn: float = 0.0) -> list[tuple[float, float]]:
    """So many points, evenly spread on a circle around the origin; `turn` in radians."""
    return [(radius * np.cos(a), radius * np.sin(a)) for a in turn + np.arange(count) * 2 * np.pi / count]
