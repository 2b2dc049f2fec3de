"""The parts of the procedural line: turned, stamped and cast ones here, all others in `products`."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cmgcli import products
from cmgcli.shapes import CHIP, GOLD, TIN, Layer, around, box, capsule, disc, ring_sector


def _hex_nut(rng: np.random.Generator) -> list[Layer]:
    bore = rng.uniform(0.42, 0.54)
    return [
        Layer(disc(1, count=6), 90, 0.82),
        Layer(disc(0.86), 150),
        Layer(disc(bore + 0.09), 110, 0.7),
        Layer(disc(bore + 0.045), 70, 0.45),
        Layer(disc(bore), 0, hole=True),
    ]


def _washer(rng: np.random.Generator) -> list[Layer]:
    return [Layer(disc(1), 90), Layer(disc(0.95), 110), Layer(disc(rng.uniform(0.42, 0.58)), 0, hole=True)]


def _gear(rng: np.random.Generator) -> list[Layer]:
    teeth, root = int(rng.integers(10, 23)), rng.uniform(0.78, 0.84)
    profile = np.array([[-0.5, root], [-0.27, root], [-0.15, 1.0], [0.15, 1.0], [0.27, root]])
    angles = ((np.arange(teeth)[:, None] + profile[:, 0]) * 2 * np.pi / teeth).ravel()
    radii = np.tile(profile[:, 1], teeth)
    layers = [Layer(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1), 130), Layer(disc(root - 0.12), 90, 0.88)]
    if (spokes := int(rng.choice((0, 4, 5, 6)))) > 0:
        layers += [Layer(disc(0.13, x, y), 0, hole=True) for x, y in around(spokes, 0.47)]
    return [*layers, Layer(disc(0.29), 150), Layer(disc(0.15), 0, hole=True)]


def _bolt(rng: np.random.Generator) -> list[Layer]:
    width, head = rng.uniform(0.15, 0.19), rng.uniform(0.36, 0.44)
    neck = -0.55
    layers = [
        Layer(box(neck, -width, 1.0, width, 0.05), 80, 0.85),
        Layer(box(neck, -width * 0.6, 0.97, width * 0.5), 130, 1.05),
        Layer(box(-0.98, -head, neck, head, 0.04), 120, 0.75),
        Layer(box(-0.98, -head * 0.52, neck, head * 0.52), 170),
    ]
    for x in np.arange(rng.uniform(-0.25, 0.1), 0.96, 0.075):
        slant = np.array([[x, -width], [x + 0.032, -width], [x + 0.057, width], [x + 0.025, width]])
        layers.append(Layer(slant, 50, 0.5))
    return layers


def _bearing(rng: np.random.Generator) -> list[Layer]:
    balls, bore = int(rng.integers(7, 12)), rng.uniform(0.3, 0.38)
    layers = [Layer(disc(1), 120), Layer(disc(0.96), 150), Layer(disc(0.78), 40, 0.3)]
    for x, y in around(balls, 0.65):
        layers += [Layer(disc(0.125, x, y, 16), 120, 1, TIN), Layer(disc(0.06, x - 0.02, y - 0.02, 12), 170, 1.25, TIN)]
    return [*layers, Layer(disc(0.52), 150), Layer(disc(bore + 0.04), 120), Layer(disc(bore), 0, hole=True)]


def _bracket(rng: np.random.Generator) -> list[Layer]:
    arm = rng.uniform(0.42, 0.52)
    low, high = -0.72, 0.72
    shape = np.array([[low, low], [low + arm, low], [low + arm, high - arm], [high, high - arm], [high, high], [low, high]])
    middle, radius = arm / 2, arm * rng.uniform(0.2, 0.27)
    spots = [(low + middle, low + middle), (low + middle, -0.05), (0.1, high - middle), (high - middle, high - middle)]
    return [Layer(shape, 120), *(Layer(disc(radius + 0.04, x, y), 95, 0.85) for x, y in spots)] + [
        Layer(disc(radius, x, y), 0, hole=True) for x, y in spots
    ]


def _flange(rng: np.random.Generator) -> list[Layer]:
    count, bore = int(rng.choice((4, 6, 8))), rng.uniform(0.24, 0.32)
    layers = [Layer(disc(1), 100), Layer(disc(0.56), 150, 0.95), Layer(disc(0.47), 190, 1.05)]
    layers += [Layer(disc(0.115, x, y, 24), 0, hole=True) for x, y in around(count, 0.78)]
    return [*layers, Layer(disc(bore), 0, hole=True)]


def _spring(rng: np.random.Generator) -> list[Layer]:
    coils, half, wire = int(rng.integers(6, 10)), rng.uniform(0.3, 0.4), rng.uniform(0.055, 0.075)
    xs = np.linspace(-0.92, 0.92, 2 * coils + 1)
    back = [Layer(capsule(xs[i], half, xs[i + 1], -half, wire), 60, 0.55) for i in range(1, 2 * coils, 2)]
    front = []
    for i in range(0, 2 * coils, 2):
        front += [
            Layer(capsule(xs[i], -half, xs[i + 1], half, wire), 110),
            Layer(capsule(xs[i], -half, xs[i + 1], half, wire * 0.4), 170, 1.25),
        ]
    return back + front


def _bottle_cap(rng: np.random.Generator) -> list[Layer]:
    angles = np.linspace(0, 2 * np.pi, 168, endpoint=False)
    radii = 0.94 + 0.06 * np.cos(21 * angles)
    crimp = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    flutes = [Layer(capsule(0.8 * x, 0.8 * y, 0.95 * x, 0.95 * y, 0.035), 120, 1.15) for x, y in around(21, 1.0)]
    emblem = disc(0.38, count=int(rng.choice((3, 5, 6, 40))))
    return [Layer(crimp, 70, 0.7), *flutes, Layer(disc(0.77), 150), Layer(disc(0.66), 170, 1.08), Layer(emblem, 140, 0.72)]


def _circuit_board(rng: np.random.Generator) -> list[Layer]:
    w, h = 0.85, rng.uniform(0.5, 0.6)
    layers = [Layer(box(-w, -h, w, h, 0.05), 70)]
    for _ in range(9):
        x, y = rng.uniform(-0.7, 0.7), rng.uniform(-0.8, 0.8) * h
        bend = np.clip(y + rng.uniform(-0.4, 0.4), -0.85 * h, 0.85 * h)
        layers += [Layer(box(min(x, 0), y, max(x, 0), y + 0.025), 75, 1.4), Layer(box(x, min(y, bend), x + 0.025, max(y, bend)), 75, 1.4)]
    layers += [Layer(box(x, h - 0.14, x + 0.07, h - 0.01), 80, 1, GOLD) for x in np.arange(-0.6, 0.55, 0.12)]
    for x, y, a, b in ((-0.35, -0.12, 0.2, 0.2), (0.3, 0.05, 0.14, 0.22), (0.62, -0.25, 0.1, 0.07), (-0.05, 0.2, 0.08, 0.06)):
        pins = [Layer(box(x - a - 0.04, y + t, x + a + 0.04, y + t + 0.03), 90, 1, TIN) for t in np.linspace(-0.8 * b, 0.7 * b, 4)]
        layers += [*pins, Layer(box(x - a, y - b, x + a, y + b, 0.02), 150, 1, CHIP)]
    return [*layers, *(Layer(disc(0.06, x, y, 20), 0, hole=True) for x in (-0.75, 0.75) for y in (0.12 - h, h - 0.22))]


def _key(rng: np.random.Generator) -> list[Layer]:
    cuts = np.repeat(rng.uniform(0.02, 0.16, 6), 2)
    xs = np.linspace(0.05, 0.92, 12)
    blade = np.concatenate([[[-0.3, 0.13], [-0.3, -0.14], [0.05, -0.14]], np.stack([xs, -0.15 + cuts], 1), [[1.0, 0.04], [0.9, 0.13]]])
    bow = disc(0.4, -0.58, 0, count=int(rng.choice((6, 8, 48))))
    groove = Layer(box(-0.15, 0.04, 0.9, 0.075), 80, 0.6)
    return [Layer(blade, 110), Layer(bow, 120), groove, Layer(disc(0.27, -0.56, 0), 135, 0.9), Layer(disc(0.13, -0.72, 0), 0, hole=True)]


def _connector(rng: np.random.Generator) -> list[Layer]:
    count = int(rng.integers(4, 8))
    layers = [Layer(box(-0.88, -0.45, 0.88, 0.4, 0.06), 110), Layer(box(-0.3, -0.6, 0.3, -0.42), 90, 0.85)]
    layers += [Layer(box(-0.78, -0.3, 0.78, 0.27, 0.04), 60, 0.5)]
    for x in np.linspace(-0.64, 0.64, count):
        for y in (-0.14, 0.12):
            layers.append(Layer(box(x - 0.07, y - 0.07, x + 0.07, y + 0.07), 50, 0.3))
            layers.append(Layer(box(x - 0.04, y - 0.04, x + 0.04, y + 0.04), 150, 1, GOLD))
        layers.append(Layer(box(x - 0.03, 0.38, x + 0.03, 0.62), 90, 1, TIN))
    return layers


def _seal_ring(rng: np.random.Generator) -> list[Layer]:
    width = rng.uniform(0.16, 0.24)
    rings = [(0.0, 40, 0.8), (0.2, 110, 1.0), (0.38, 150, 1.12), (0.62, 110, 1.0), (0.82, 50, 0.8)]
    return [Layer(disc(1 - width * part, count=72), height, tone) for part, height, tone in rings] + [Layer(disc(1 - width, count=72), 0)]


def _pipe_elbow(rng: np.random.Generator) -> list[Layer]:
    half = rng.uniform(0.25, 0.32)
    x = y = -0.62
    profile = ((1.0, 60, 0.7), (0.75, 120, 0.9), (0.45, 170, 1.05), (0.18, 190, 1.2))
    layers = [Layer(ring_sector(0.92 - half * w, 0.92 + half * w, 0, np.pi / 2, x, y), height, tone) for w, height, tone in profile]
    for w, height, tone in profile:
        layers.append(Layer(box(x + 0.92 - (half + 0.09) * w, y - 0.22, x + 0.92 + (half + 0.09) * w, y + 0.06, 0.02), height + 30, tone))
        layers.append(Layer(box(x - 0.22, y + 0.92 - (half + 0.09) * w, x + 0.06, y + 0.92 + (half + 0.09) * w, 0.02), height + 30, tone))
    return layers


def _tag(rng: np.random.Generator) -> list[Layer]:
    shape = np.array([[-0.95, 0], [-0.62, -0.46], [0.9, -0.46], [0.9, 0.46], [-0.62, 0.46]])
    layers, x = [Layer(shape, 90), Layer(shape * 0.93, 100, 1.06)], -0.3
    while x < 0.72:
        bar = rng.uniform(0.02, 0.06)
        layers.append(Layer(box(x, -0.3, x + bar, 0.1), 100, 0.3))
        x += bar + rng.uniform(0.02, 0.05)
    layers += [Layer(box(-0.3, y, rng.uniform(0.3, 0.75), y + 0.05), 100, 0.4) for y in (0.18, 0.28)]
    return [*layers, Layer(disc(0.19, -0.6, 0), 125, 0.8), Layer(disc(0.11, -0.6, 0), 0, hole=True)]


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
    return [*layers, Layer(disc(0.36), 150), Layer(disc(0.28), 180, 1.08), Layer(disc(0.13), 0, hole=True)]


def _hinge(rng: np.random.Generator) -> list[Layer]:
    h = rng.uniform(0.6, 0.68)
    layers = [Layer(box(-0.76, -h, -0.03, h, 0.08), 90), Layer(box(0.03, -h, 0.76, h, 0.08), 90)]
    for i, y in enumerate(np.linspace(-h, h, 6)[:-1]):
        step = 2 * h / 5
        layers.append(Layer(box(-0.13, y + 0.01, 0.13, y + step - 0.01), 130, 0.75 + 0.15 * (i % 2)))
        layers.append(Layer(box(-0.05, y + 0.01, 0.03, y + step - 0.01), 190, 1.15))
    spots = [(x, y) for x in (-0.47, 0.47) for y in (-0.42, 0.0, 0.42)]
    return layers + [Layer(disc(0.1, x, y, 24), 0, hole=True) for x, y in spots]


def _chain_link(rng: np.random.Generator) -> list[Layer]:
    waist = rng.uniform(0.2, 0.3)
    layers = [Layer(box(-0.55, -waist, 0.55, waist), 110)] + [Layer(disc(0.43, x), 110) for x in (-0.55, 0.55)]
    layers += [Layer(disc(0.31, x), 140, 0.92) for x in (-0.55, 0.55)]
    return layers + [Layer(disc(0.2, x), 0, hole=True) for x in (-0.55, 0.55)]


def _shaft(rng: np.random.Generator) -> list[Layer]:
    steps = np.sort(rng.uniform(-0.75, 0.75, 3))
    ends = [-0.98, *steps, 0.98]
    halves = [rng.uniform(0.1, 0.14), rng.uniform(0.2, 0.25), rng.uniform(0.28, 0.33), rng.uniform(0.13, 0.18)]
    layers = []
    for share, height, tone in ((1.0, 60, 0.7), (0.78, 120, 0.95), (0.4, 170, 1.15), (0.12, 180, 1.3)):
        layers += [Layer(box(ends[i], -half * share, ends[i + 1], half * share, 0.02 * share), height, tone) for i, half in enumerate(halves)]
    groove = ends[2] + 0.5 * (ends[3] - ends[2])
    layers += [Layer(box(x - 0.016, -half, x + 0.016, half), 50, 0.45) for x, half in ((groove, halves[2]), (0.86, halves[3]), (-0.86, halves[0]))]
    middle = 0.5 * (ends[1] + ends[2])
    return [*layers, Layer(capsule(middle - 0.08, 0.03, middle + 0.08, 0.03, 0.04), 60, 0.4)]


def _pulley(rng: np.random.Generator) -> list[Layer]:
    spokes, bore, gap = int(rng.integers(3, 7)), rng.uniform(0.11, 0.16), rng.uniform(0.18, 0.28)
    layers = [Layer(disc(1), 140), Layer(disc(0.95), 60, 0.6), Layer(disc(0.88), 150, 1.05), Layer(disc(0.76), 90, 0.9)]
    for turn in np.arange(spokes) * 2 * np.pi / spokes:
        layers.append(Layer(ring_sector(0.38, 0.7, turn + gap, turn + 2 * np.pi / spokes - gap), 0, hole=True))
    return [*layers, Layer(disc(0.3), 160), Layer(box(-0.05, -bore - 0.07, 0.05, 0), 0), Layer(disc(bore), 0)]


def _grille(rng: np.random.Generator) -> list[Layer]:
    h = rng.uniform(0.48, 0.58)
    layers = [Layer(box(-0.82, -h, 0.82, h, 0.06), 90, 0.92), Layer(box(-0.79, -h + 0.03, 0.79, h - 0.03, 0.05), 120)]
    if rng.random() < 0.5:
        slots = [capsule(x, y - 0.35 * h, x, y + 0.35 * h, 0.045) for x in np.linspace(-0.65, 0.65, 8) for y in (-0.45 * h, 0.45 * h)]
        return layers + [Layer(points, 0, hole=True) for points in slots]
    spots = [(x, y) for x in np.linspace(-0.63, 0.63, 7) for y in np.linspace(-0.68 * h, 0.68 * h, 4)]
    return layers + [Layer(disc(0.075, x, y, 20), 0, hole=True) for x, y in spots]


def _gasket(rng: np.random.Generator) -> list[Layer]:
    lobes = [(-0.82, -0.3), (-0.3, 0.44), (0.4, 0.46), (0.8, -0.1), (0.25, -0.5), (-0.35, -0.5)]
    bores = [(-0.42, -0.04, rng.uniform(0.26, 0.33)), (0.3, 0.0, rng.uniform(0.26, 0.33))]
    rims = [(x, y, 0.17) for x, y in lobes] + [(x, y, radius + 0.13) for x, y, radius in bores]
    layers = [Layer(np.array(lobes), 90)] + [Layer(disc(radius, x, y), 90) for x, y, radius in rims]
    layers += [Layer(disc(radius + 0.06, x, y), 120, 1.12) for x, y, radius in bores]
    layers += [Layer(disc(radius, x, y), 0) for x, y, radius in bores]
    return layers + [Layer(disc(0.085, x, y, 24), 0, hole=True) for x, y in lobes]


def _wrench(rng: np.random.Generator) -> list[Layer]:
    jaw, half = rng.uniform(0.12, 0.15), rng.uniform(0.1, 0.13)
    layers = [Layer(disc(0.32, -0.66), 120), Layer(disc(0.27, 0.71), 120), Layer(box(-0.55, -half, 0.6, half), 110)]
    layers += [Layer(capsule(-0.28, 0, 0.36, 0, half * 0.55), 70, 0.75), Layer(capsule(-0.26, 0.01, 0.34, 0.01, half * 0.4), 80, 0.92)]
    mouth = np.array([[-1.05, -jaw - 0.06], [-0.62, -jaw + 0.06], [-0.55, 0.03], [-0.62, jaw + 0.03], [-1.05, jaw - 0.04]])
    return [*layers, Layer(mouth, 0), Layer(disc(0.21, 0.71), 90, 0.85), Layer(disc(0.165, 0.71, 0, 6), 0, hole=True)]


def _sheet(rng: np.random.Generator) -> list[Layer]:
    """Half of the sheets are plain; others have raised ribs, a chequered relief, or a printed grid."""
    side, pattern, pitch = 0.7, int(rng.integers(6)), rng.uniform(0.09, 0.2)
    steps = np.arange(-side + pitch / 2, side, pitch)
    if pattern == 0:
        figures = [Layer(box(-side, y, side, y + 0.4 * pitch), 160, 1.05) for y in steps]
    elif pattern == 1:
        figures = [Layer(box(*(x, -side, x + 0.015, side) if upright else (-side, x, side, x + 0.015)), 120, 0.8) for x in steps for upright in (0, 1)]
    elif pattern == 2:
        pairs = [(x, y, (i + j) % 2) for i, x in enumerate(np.arange(-0.63, 0.7, 0.18)) for j, y in enumerate(np.arange(-0.63, 0.7, 0.18))]
        figures = [Layer(capsule(x - 0.035, y - 0.035 * (1 - 2 * odd), x + 0.035, y + 0.035 * (1 - 2 * odd), 0.016), 180, 1.15) for x, y, odd in pairs]
    else:
        figures = []
    return [Layer(box(-side, -side, side, side), 120), *figures]


_SHAPES: dict[str, Callable[[np.random.Generator], list[Layer]]] = {
    "hex nut": _hex_nut, "washer": _washer, "gear": _gear, "bolt": _bolt, "bearing": _bearing, "bracket": _bracket,
    "flange": _flange, "spring": _spring, "bottle cap": _bottle_cap, "circuit board": _circuit_board, "key": _key,
    "connector": _connector, "seal ring": _seal_ring, "pipe elbow": _pipe_elbow, "tag": _tag, "impeller": _impeller,
    "hinge": _hinge, "chain link": _chain_link, "shaft": _shaft, "pulley": _pulley, "grille": _grille, "gasket": _gasket,
    "wrench": _wrench, "tile": products.tile, "blister pack": products.blister_pack, "carton": products.carton,
    "bottle": products.bottle, "coin": products.coin, "button": products.button, "strap": products.webbing_strap,
    "chip package": products.chip_package, "resistor": products.resistor, "zip": products.zip_fastener,
    "capsule": products.two_piece_capsule, "sheet": _sheet,
}  # fmt: skip
PARTS: tuple[str, ...] = tuple(_SHAPES)
FRAME_FILLING: tuple[str, ...] = ("sheet",)
WITH_HOLES: tuple[str, ...] = (
    "hex nut", "washer", "gear", "bearing", "bracket", "flange", "circuit board", "key", "tag", "impeller", "hinge", "chain link",
    "pulley", "grille", "gasket", "wrench", "button",
)  # fmt: skip


def shape(part: str, rng: np.random.Generator) -> list[Layer]:
    """One design of a part, its proportions drawn at random. Raises ValueError for an unknown part."""
    if part not in _SHAPES:
        raise ValueError(f"unknown part {part!r}: choose one of {', '.join(PARTS)}")
    return [replace(layer, points=np.asarray(layer.points, dtype=np.float64)) for layer in _SHAPES[part](rng)]
