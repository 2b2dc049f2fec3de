"""The shapes of the parts on the procedural line: each a stack of polygons in a unit frame, painted bottom to top."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

Colour = tuple[int, int, int]
_GOLD, _CHIP, _BALL = (205, 170, 80), (34, 34, 38), (200, 204, 210)


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


def _disc(radius: float, x: float = 0.0, y: float = 0.0, count: int = 48) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def _box(x0: float, y0: float, x1: float, y1: float, corner: float = 0.0) -> np.ndarray:
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


def _capsule(x0: float, y0: float, x1: float, y1: float, radius: float) -> np.ndarray:
    direction = np.arctan2(y1 - y0, x1 - x0)
    half = np.linspace(-np.pi / 2, np.pi / 2, 7)
    ends = [(x1, y1, direction), (x0, y0, direction + np.pi)]
    return np.concatenate([np.stack([x + radius * np.cos(a + half), y + radius * np.sin(a + half)], axis=1) for x, y, a in ends])


def _arc(inner: float, outer: float, start: float, stop: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    angles = np.linspace(start, stop, 24)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([outer * ring, inner * ring[::-1]]) + (x, y)


def _around(count: int, radius: float, turn: float = 0.0) -> list[tuple[float, float]]:
    return [(radius * np.cos(a), radius * np.sin(a)) for a in turn + np.arange(count) * 2 * np.pi / count]


def _hex_nut(rng: np.random.Generator) -> list[Layer]:
    bore = rng.uniform(0.42, 0.54)
    return [
        Layer(_disc(1, count=6), 90, 0.82),
        Layer(_disc(0.86), 150),
        Layer(_disc(bore + 0.09), 110, 0.7),
        Layer(_disc(bore + 0.045), 70, 0.45),
        Layer(_disc(bore), 0, hole=True),
    ]


def _washer(rng: np.random.Generator) -> list[Layer]:
    return [Layer(_disc(1), 90), Layer(_disc(0.95), 110), Layer(_disc(rng.uniform(0.42, 0.58)), 0, hole=True)]


def _gear(rng: np.random.Generator) -> list[Layer]:
    teeth, root = int(rng.integers(10, 23)), rng.uniform(0.78, 0.84)
    profile = np.array([[-0.5, root], [-0.27, root], [-0.15, 1.0], [0.15, 1.0], [0.27, root]])
    angles = ((np.arange(teeth)[:, None] + profile[:, 0]) * 2 * np.pi / teeth).ravel()
    radii = np.tile(profile[:, 1], teeth)
    layers = [Layer(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1), 130), Layer(_disc(root - 0.12), 90, 0.88)]
    if (spokes := int(rng.choice((0, 4, 5, 6)))) > 0:
        layers += [Layer(_disc(0.13, x, y), 0, hole=True) for x, y in _around(spokes, 0.47)]
    return [*layers, Layer(_disc(0.29), 150), Layer(_disc(0.15), 0, hole=True)]


def _bolt(rng: np.random.Generator) -> list[Layer]:
    width, head = rng.uniform(0.15, 0.19), rng.uniform(0.36, 0.44)
    neck = -0.55
    layers = [
        Layer(_box(neck, -width, 1.0, width, 0.05), 80, 0.85),
        Layer(_box(neck, -width * 0.6, 0.97, width * 0.5), 130, 1.05),
        Layer(_box(-0.98, -head, neck, head, 0.04), 120, 0.75),
        Layer(_box(-0.98, -head * 0.52, neck, head * 0.52), 170),
    ]
    for x in np.arange(rng.uniform(-0.25, 0.1), 0.96, 0.075):
        slant = np.array([[x, -width], [x + 0.032, -width], [x + 0.057, width], [x + 0.025, width]])
        layers.append(Layer(slant, 50, 0.5))
    return layers


def _bearing(rng: np.random.Generator) -> list[Layer]:
    balls, bore = int(rng.integers(7, 12)), rng.uniform(0.3, 0.38)
    layers = [Layer(_disc(1), 120), Layer(_disc(0.96), 150), Layer(_disc(0.78), 40, 0.3)]
    for x, y in _around(balls, 0.65):
        layers += [Layer(_disc(0.125, x, y, 16), 120, 1, _BALL), Layer(_disc(0.06, x - 0.02, y - 0.02, 12), 170, 1.25, _BALL)]
    return [*layers, Layer(_disc(0.52), 150), Layer(_disc(bore + 0.04), 120), Layer(_disc(bore), 0, hole=True)]


def _bracket(rng: np.random.Generator) -> list[Layer]:
    arm = rng.uniform(0.42, 0.52)
    low, high = -0.72, 0.72
    shape = np.array([[low, low], [low + arm, low], [low + arm, high - arm], [high, high - arm], [high, high], [low, high]])
    middle, radius = arm / 2, arm * rng.uniform(0.2, 0.27)
    spots = [(low + middle, low + middle), (low + middle, -0.05), (0.1, high - middle), (high - middle, high - middle)]
    return [Layer(shape, 120), *(Layer(_disc(radius + 0.04, x, y), 95, 0.85) for x, y in spots)] + [
        Layer(_disc(radius, x, y), 0, hole=True) for x, y in spots
    ]


def _flange(rng: np.random.Generator) -> list[Layer]:
    count, bore = int(rng.choice((4, 6, 8))), rng.uniform(0.24, 0.32)
    layers = [Layer(_disc(1), 100), Layer(_disc(0.56), 150, 0.95), Layer(_disc(0.47), 190, 1.05)]
    layers += [Layer(_disc(0.115, x, y, 24), 0, hole=True) for x, y in _around(count, 0.78)]
    return [*layers, Layer(_disc(bore), 0, hole=True)]


def _spring(rng: np.random.Generator) -> list[Layer]:
    coils, half, wire = int(rng.integers(6, 10)), rng.uniform(0.3, 0.4), rng.uniform(0.055, 0.075)
    xs = np.linspace(-0.92, 0.92, 2 * coils + 1)
    back = [Layer(_capsule(xs[i], half, xs[i + 1], -half, wire), 60, 0.55) for i in range(1, 2 * coils, 2)]
    front = []
    for i in range(0, 2 * coils, 2):
        front += [
            Layer(_capsule(xs[i], -half, xs[i + 1], half, wire), 110),
            Layer(_capsule(xs[i], -half, xs[i + 1], half, wire * 0.4), 170, 1.25),
        ]
    return back + front


def _bottle_cap(rng: np.random.Generator) -> list[Layer]:
    angles = np.linspace(0, 2 * np.pi, 168, endpoint=False)
    radii = 0.94 + 0.06 * np.cos(21 * angles)
    crimp = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    flutes = [Layer(_capsule(0.8 * x, 0.8 * y, 0.95 * x, 0.95 * y, 0.035), 120, 1.15) for x, y in _around(21, 1.0)]
    emblem = _disc(0.38, count=int(rng.choice((3, 5, 6, 40))))
    return [Layer(crimp, 70, 0.7), *flutes, Layer(_disc(0.77), 150), Layer(_disc(0.66), 170, 1.08), Layer(emblem, 140, 0.72)]


def _circuit_board(rng: np.random.Generator) -> list[Layer]:
    w, h = 0.85, rng.uniform(0.5, 0.6)
    layers = [Layer(_box(-w, -h, w, h, 0.05), 70)]
    for _ in range(9):
        x, y = rng.uniform(-0.7, 0.7), rng.uniform(-0.8, 0.8) * h
        bend = np.clip(y + rng.uniform(-0.4, 0.4), -0.85 * h, 0.85 * h)
        layers += [Layer(_box(min(x, 0), y, max(x, 0), y + 0.025), 75, 1.4), Layer(_box(x, min(y, bend), x + 0.025, max(y, bend)), 75, 1.4)]
    layers += [Layer(_box(x, h - 0.14, x + 0.07, h - 0.01), 80, 1, _GOLD) for x in np.arange(-0.6, 0.55, 0.12)]
    for x, y, a, b in ((-0.35, -0.12, 0.2, 0.2), (0.3, 0.05, 0.14, 0.22), (0.62, -0.25, 0.1, 0.07), (-0.05, 0.2, 0.08, 0.06)):
        pins = [Layer(_box(x - a - 0.04, y + t, x + a + 0.04, y + t + 0.03), 90, 1, _BALL) for t in np.linspace(-0.8 * b, 0.7 * b, 4)]
        layers += [*pins, Layer(_box(x - a, y - b, x + a, y + b, 0.02), 150, 1, _CHIP)]
    return [*layers, *(Layer(_disc(0.06, x, y, 20), 0, hole=True) for x in (-0.75, 0.75) for y in (0.12 - h, h - 0.22))]


def _key(rng: np.random.Generator) -> list[Layer]:
    cuts = np.repeat(rng.uniform(0.02, 0.16, 6), 2)
    xs = np.linspace(0.05, 0.92, 12)
    blade = np.concatenate([[[-0.3, 0.13], [-0.3, -0.14], [0.05, -0.14]], np.stack([xs, -0.15 + cuts], 1), [[1.0, 0.04], [0.9, 0.13]]])
    bow = _disc(0.4, -0.58, 0, count=int(rng.choice((6, 8, 48))))
    groove = Layer(_box(-0.15, 0.04, 0.9, 0.075), 80, 0.6)
    return [Layer(blade, 110), Layer(bow, 120), groove, Layer(_disc(0.27, -0.56, 0), 135, 0.9), Layer(_disc(0.13, -0.72, 0), 0, hole=True)]


def _connector(rng: np.random.Generator) -> list[Layer]:
    count = int(rng.integers(4, 8))
    layers = [Layer(_box(-0.88, -0.45, 0.88, 0.4, 0.06), 110), Layer(_box(-0.3, -0.6, 0.3, -0.42), 90, 0.85)]
    layers += [Layer(_box(-0.78, -0.3, 0.78, 0.27, 0.04), 60, 0.5)]
    for x in np.linspace(-0.64, 0.64, count):
        for y in (-0.14, 0.12):
            layers.append(Layer(_box(x - 0.07, y - 0.07, x + 0.07, y + 0.07), 50, 0.3))
            layers.append(Layer(_box(x - 0.04, y - 0.04, x + 0.04, y + 0.04), 150, 1, _GOLD))
        layers.append(Layer(_box(x - 0.03, 0.38, x + 0.03, 0.62), 90, 1, _BALL))
    return layers


def _seal_ring(rng: np.random.Generator) -> list[Layer]:
    width = rng.uniform(0.16, 0.24)
    rings = [(0.0, 40, 0.8), (0.2, 110, 1.0), (0.38, 150, 1.12), (0.62, 110, 1.0), (0.82, 50, 0.8)]
    return [Layer(_disc(1 - width * part, count=72), height, tone) for part, height, tone in rings] + [Layer(_disc(1 - width, count=72), 0)]


def _pipe_elbow(rng: np.random.Generator) -> list[Layer]:
    half = rng.uniform(0.25, 0.32)
    x = y = -0.62
    profile = ((1.0, 60, 0.7), (0.75, 120, 0.9), (0.45, 170, 1.05), (0.18, 190, 1.2))
    layers = [Layer(_arc(0.92 - half * w, 0.92 + half * w, 0, np.pi / 2, x, y), height, tone) for w, height, tone in profile]
    for w, height, tone in profile:
        layers.append(Layer(_box(x + 0.92 - (half + 0.09) * w, y - 0.22, x + 0.92 + (half + 0.09) * w, y + 0.06, 0.02), height + 30, tone))
        layers.append(Layer(_box(x - 0.22, y + 0.92 - (half + 0.09) * w, x + 0.06, y + 0.92 + (half + 0.09) * w, 0.02), height + 30, tone))
    return layers


def _tag(rng: np.random.Generator) -> list[Layer]:
    shape = np.array([[-0.95, 0], [-0.62, -0.46], [0.9, -0.46], [0.9, 0.46], [-0.62, 0.46]])
    layers, x = [Layer(shape, 90), Layer(shape * 0.93, 100, 1.06)], -0.3
    while x < 0.72:
        bar = rng.uniform(0.02, 0.06)
        layers.append(Layer(_box(x, -0.3, x + bar, 0.1), 100, 0.3))
        x += bar + rng.uniform(0.02, 0.05)
    layers += [Layer(_box(-0.3, y, rng.uniform(0.3, 0.75), y + 0.05), 100, 0.4) for y in (0.18, 0.28)]
    return [*layers, Layer(_disc(0.19, -0.6, 0), 125, 0.8), Layer(_disc(0.11, -0.6, 0), 0, hole=True)]


def _impeller(rng: np.random.Generator) -> list[Layer]:
    count, layers = int(rng.integers(4, 8)), []
    sweep = np.linspace(0, rng.uniform(0.5, 0.9), 12)
    radii = np.linspace(0.2, 1.0, 12)
    for turn in np.arange(count) * 2 * np.pi / count:
        front = np.stack([radii * np.cos(turn + sweep), radii * np.sin(turn + sweep)], 1)
        width = np.linspace(0.9, 1.9, 12) / count * 1.5
        rear = np.stack([radii * np.cos(turn + sweep + width), radii * np.sin(turn + sweep + width)], 1)
        middle = 0.6 * front + 0.4 * rear
        layers += [Layer(np.concatenate([front, rear[::-1]]), 80, 0.75), Layer(np.concatenate([front, middle[::-1]]), 130, 1.1)]
    return [*layers, Layer(_disc(0.36), 150), Layer(_disc(0.28), 180, 1.08), Layer(_disc(0.13), 0, hole=True)]


def _hinge(rng: np.random.Generator) -> list[Layer]:
    h = rng.uniform(0.6, 0.68)
    layers = [Layer(_box(-0.76, -h, -0.03, h, 0.08), 90), Layer(_box(0.03, -h, 0.76, h, 0.08), 90)]
    for i, y in enumerate(np.linspace(-h, h, 6)[:-1]):
        step = 2 * h / 5
        layers.append(Layer(_box(-0.13, y + 0.01, 0.13, y + step - 0.01), 130, 0.75 + 0.15 * (i % 2)))
        layers.append(Layer(_box(-0.05, y + 0.01, 0.03, y + step - 0.01), 190, 1.15))
    spots = [(x, y) for x in (-0.47, 0.47) for y in (-0.42, 0.0, 0.42)]
    return layers + [Layer(_disc(0.1, x, y, 24), 0, hole=True) for x, y in spots]


def _chain_link(rng: np.random.Generator) -> list[Layer]:
    waist = rng.uniform(0.2, 0.3)
    layers = [Layer(_box(-0.55, -waist, 0.55, waist), 110)] + [Layer(_disc(0.43, x), 110) for x in (-0.55, 0.55)]
    layers += [Layer(_disc(0.31, x), 140, 0.92) for x in (-0.55, 0.55)]
    return layers + [Layer(_disc(0.2, x), 0, hole=True) for x in (-0.55, 0.55)]


_SHAPES: dict[str, Callable[[np.random.Generator], list[Layer]]] = {
    "hex nut": _hex_nut, "washer": _washer, "gear": _gear, "bolt": _bolt, "bearing": _bearing, "bracket": _bracket,
    "flange": _flange, "spring": _spring, "bottle cap": _bottle_cap, "circuit board": _circuit_board, "key": _key,
    "connector": _connector, "seal ring": _seal_ring, "pipe elbow": _pipe_elbow, "tag": _tag, "impeller": _impeller,
    "hinge": _hinge, "chain link": _chain_link,
}  # fmt: skip
PARTS: tuple[str, ...] = tuple(_SHAPES)
WITH_HOLES: tuple[str, ...] = tuple(
    part for part in PARTS if part not in ("bolt", "spring", "bottle cap", "connector", "seal ring", "pipe elbow")
)


def shape(part: str, rng: np.random.Generator) -> list[Layer]:
    """One design of a part, its proportions drawn at random. Raises ValueError for an unknown part."""
    if part not in _SHAPES:
        raise ValueError(f"unknown part {part!r}: choose one of {', '.join(PARTS)}")
    return [replace(layer, points=np.asarray(layer.points, dtype=np.float64)) for layer in _SHAPES[part](rng)]
