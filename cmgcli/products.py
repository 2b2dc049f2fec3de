"""What the procedural line packs, prints, weaves, moulds and solders: as in `parts`, each a stack of polygons in a unit frame."""

import numpy as np

from cmgcli.shapes import CHIP, TIN, Colour, Layer, around, box, capsule, disc

_INK = (36, 36, 44)


def _dye(rng: np.random.Generator) -> Colour:
    """A strong colour: one channel high, one low, one between."""
    return tuple(rng.permutation((int(rng.integers(190, 246)), int(rng.integers(20, 70)), int(rng.integers(30, 220)))).tolist())


def _lines_of_print(rng: np.random.Generator, x0: float, x1: float, rows: np.ndarray, height: float = 0.045) -> list[Layer]:
    """Words as dark bars, one line of them from x0 to at most x1 for each y in `rows`."""
    words = []
    for y in rows:
        x = x0
        while x < x1 - 0.05:
            stop = min(x1, x + rng.uniform(0.06, 0.2))
            words.append(Layer(box(x, y, stop, y + height), 100, 1, _INK))
            x = stop + 0.04
    return words


def tile(rng: np.random.Generator) -> list[Layer]:
    """A square glazed tile with a frame and an ornament."""
    tint, turn = _dye(rng), rng.choice((0, np.pi / 4))
    layers = [Layer(box(-0.7, -0.7, 0.7, 0.7, 0.03), 60, 0.8), Layer(box(-0.65, -0.65, 0.65, 0.65, 0.03), 130)]
    for low, high in ((-0.57, -0.5), (0.5, 0.57)):
        layers += [Layer(box(-0.57, low, 0.57, high), 125, 1, tint), Layer(box(low, -0.57, high, 0.57), 125, 1, tint)]
    petals = [capsule(0.12 * x, 0.12 * y, 0.3 * x, 0.3 * y, 0.11) for x, y in around(4, 1, turn)]
    corners = [disc(0.13, x, y, 20) for x in (-0.4, 0.4) for y in (-0.4, 0.4)]
    ornament = petals if rng.random() < 0.5 else [disc(0.34, count=4)]
    layers += [Layer(points, 125, 1, tint) for points in (*corners, *ornament)]
    return [*layers, Layer(disc(0.1, count=16), 130, 1, (238, 236, 230))]


def blister_pack(rng: np.random.Generator) -> list[Layer]:
    """Tablets in domes on a foil."""
    w, h, pill = 0.88, rng.uniform(0.42, 0.48), _dye(rng) if rng.random() < 0.6 else (238, 236, 230)
    columns, rows = int(rng.integers(4, 6)), 2
    layers = [Layer(box(-w, -h, w, h, 0.09), 70), Layer(box(-w + 0.04, -h + 0.04, w - 0.04, h - 0.04, 0.07), 80, 1.06)]
    long = rng.random() < 0.5
    for x in (np.arange(columns) - (columns - 1) / 2) * 1.7 / columns:
        for y in (np.arange(rows) - 0.5) * h:
            for radius, height, colour in ((0.155, 150, None), (0.115, 190, pill)):
                points = capsule(x, y - 0.045, x, y + 0.045, radius) if long else disc(radius, x, y, 24)
                layers.append(Layer(points, height, 1.1, colour))
            layers.append(Layer(box(x - 0.08, y - 0.006, x + 0.08, y + 0.006), 160, 0.75, pill))
    return [*layers, *(Layer(box(x - 0.006, -h, x + 0.006, h), 55, 0.75) for x in (np.arange(1, columns) - columns / 2) * 1.7 / columns)]


def carton(rng: np.random.Generator) -> list[Layer]:
    """A folded carton lying open: panel, flaps, a printed stripe and lettering."""
    w, h, tint = rng.uniform(0.5, 0.56), rng.uniform(0.4, 0.46), _dye(rng)
    layers = [Layer(box(-w - 0.22, -h, w + 0.22, h), 70, 0.8)]
    for side in (-1, 1):
        flap = np.array([[-w, side * h], [-w + 0.08, side * (h + 0.3)], [w - 0.08, side * (h + 0.3)], [w, side * h]])
        layers += [Layer(flap, 70, 0.86), Layer(box(-w, min(side * h, side * (h + 0.02)), w, max(side * h, side * (h + 0.02))), 50, 0.65)]
    layers += [Layer(box(-w, -h, w, h), 110), Layer(box(-w, -h + 0.08, w, -h + 0.28), 110, 1, tint)]
    layers += [Layer(box(-w + 0.07, -h + 0.13, 0.1, -h + 0.22), 110, 1, (238, 238, 234)), Layer(disc(0.12, w - 0.18, 0.16, 24), 110, 1, tint)]
    return layers + _lines_of_print(rng, -w + 0.08, w - 0.36, np.arange(-0.02, h - 0.12, 0.11))


def bottle(rng: np.random.Generator) -> list[Layer]:
    """A moulded bottle seen from the side, with cap and label."""
    half, neck, tint = rng.uniform(0.3, 0.37), rng.uniform(0.11, 0.15), _dye(rng)
    profile = np.array([[-0.97, 0.85], [-0.92, 1.0], [0.28, 1.0], [0.4, 0.93], [0.5, 0.72], [0.6, 0.5], [0.66, 0.4]])
    profile = np.concatenate([profile * (1, half), [[0.7, neck], [0.8, neck]]])

    def slice_of(share: float) -> np.ndarray:
        return np.concatenate([profile, profile[::-1] * (1, -1)]) * (1, share)

    layers = [Layer(slice_of(share), height, tone) for share, height, tone in ((1, 60, 0.72), (0.8, 120, 0.95), (0.5, 160, 1.1))]
    layers += [Layer(box(-0.75, -half, 0.12, half), 130, 1, (236, 234, 226)), Layer(box(-0.75, -half, 0.12, -half * 0.45), 130, 1, tint)]
    layers += _lines_of_print(rng, -0.68, 0.04, np.arange(-half * 0.2, half * 0.7, 0.11))
    layers += [Layer(box(0.74, -neck - 0.05, 0.99, neck + 0.05, 0.02), 150, 0.9, tint)]
    return [*layers, *(Layer(box(0.76, y, 0.97, y + 0.012), 110, 0.6, tint) for y in np.linspace(-neck, neck, 6))]


def coin(rng: np.random.Generator) -> list[Layer]:
    """A stamped coin: beaded rim, legend, and a head or a star in relief."""
    layers = [Layer(disc(1, count=72), 150), Layer(disc(0.92, count=72), 90, 0.9)]
    layers += [Layer(disc(0.03, x, y, 6), 150, 1.15) for x, y in around(28, 0.87)]
    for x, y in around(20, 0.72, rng.uniform(0, 6))[: int(rng.integers(11, 17))]:
        layers.append(Layer(capsule(x * 0.94, y * 0.94, x * 1.06, y * 1.06, 0.022), 150, 1.15))
    if rng.random() < 0.5:
        profile = [[-0.2, -0.42], [0.12, -0.46], [0.28, -0.28], [0.29, -0.12], [0.4, 0.06], [0.29, 0.09], [0.29, 0.24], [0.12, 0.28]]
        head = np.array([*profile, [0.13, 0.4], [0.26, 0.54], [-0.34, 0.54], [-0.2, 0.3], [-0.34, 0.05], [-0.35, -0.25]])
        return [*layers, Layer(head, 160, 1.1), Layer(disc(0.2, -0.13, -0.2, 20), 190, 0.9), Layer(disc(0.03, 0.17, -0.12, 8), 100, 0.6)]
    points = int(rng.integers(5, 9))
    star = np.array([around(2 * points, radius)[i] for i, radius in zip(range(2 * points), (0.5, 0.22) * points, strict=True)])
    return [*layers, Layer(star, 160, 1.12), Layer(disc(0.14, count=20), 190, 0.9)]


def button(rng: np.random.Generator) -> list[Layer]:
    """A button with a rim and four holes."""
    rim, reach = rng.uniform(0.66, 0.78), rng.uniform(0.22, 0.28)
    layers = [Layer(disc(1), 110, 0.9), Layer(disc(0.93), 160, 1.06), Layer(disc(rim), 110, 0.8), Layer(disc(rim - 0.05), 90)]
    return layers + [Layer(disc(0.125, x, y, 20), 0, hole=True) for x, y in around(4, reach * 1.2, np.pi / 4)]


def webbing_strap(rng: np.random.Generator) -> list[Layer]:
    """A band woven in herringbone, with dyed edges."""
    half, pitch, tint = rng.uniform(0.24, 0.3), rng.uniform(0.085, 0.12), _dye(rng)
    layers = [Layer(box(-0.98, -half, 0.95, half), 80, 0.7)]
    for x in np.arange(-0.95, 0.94 - half * 0.5, pitch):
        for share, tone in ((-1, 1.12), (1, 0.95)):
            near, far = sorted((0.012 * share, share * half * 0.96))
            lean = half * 0.5
            start, stop = (lean, 0) if share < 0 else (0, lean)
            thread = np.array([[x + start, near], [x + start + pitch * 0.66, near], [x + stop + pitch * 0.66, far], [x + stop, far]])
            layers.append(Layer(thread, 150, tone))
    return layers + [Layer(box(-0.98, y, 0.95, y + half * 0.2), 130, 1, tint) for y in (-half * 0.8, half * 0.6)]


def chip_package(rng: np.random.Generator) -> list[Layer]:
    """An integrated circuit with two rows of legs, a notch and lettering."""
    w, h, legs = rng.uniform(0.66, 0.8), rng.uniform(0.3, 0.38), int(rng.integers(5, 10))
    layers = []
    for x in np.linspace(-w + 0.1, w - 0.1, legs):
        for side in (-1, 1):
            for long, wide, tone in ((0.24, 0.032, 0.85), (0.1, 0.052, 1.0)):
                low, high = sorted((side * h, side * (h + long)))
                layers.append(Layer(box(x - wide, low, x + wide, high), 90, tone, TIN))
    layers += [Layer(box(-w, -h, w, h, 0.02), 120, 0.85), Layer(box(-w + 0.04, -h + 0.04, w - 0.04, h - 0.04), 160)]
    layers += [Layer(disc(0.09, -w + 0.02, 0, 20), 100, 0.5), Layer(disc(0.045, -w + 0.14, h - 0.13, 12), 120, 0.6)]
    words = _lines_of_print(rng, -w + 0.26, w - 0.12, np.array([-0.14, 0.02]), 0.07)
    return [*layers, *(Layer(word.points, 160, 1, (205, 205, 200)) for word in words)]


def resistor(rng: np.random.Generator) -> list[Layer]:
    """An axial resistor: two wires, a waisted body, coloured bands."""
    half = rng.uniform(0.2, 0.25)
    layers = [Layer(box(-1, -0.035, 1, 0.035), 90, 0.8, TIN), Layer(box(-1, -0.02, 1, 0.005), 130, 1.1, TIN)]
    for share, height, tone in ((1.0, 60, 0.75), (0.72, 130, 1.0), (0.35, 180, 1.15)):
        layers += [Layer(capsule(x - 0.08, 0, x + 0.08, 0, half * share), height, tone) for x in (-0.4, 0.4)]
        layers.append(Layer(box(-0.4, -half * 0.78 * share, 0.4, half * 0.78 * share), height, tone))
    for i, x in enumerate((-0.44, -0.2, -0.04, 0.12, 0.42)):
        reach = half * (0.98 if i in (0, 4) else 0.78)
        layers.append(Layer(box(x - 0.045, -reach, x + 0.045, reach), 150, 1, CHIP if rng.random() < 0.2 else _dye(rng)))
    return layers


def zip_fastener(rng: np.random.Generator) -> list[Layer]:
    """A zip: two tapes, teeth, and the slider with its pull."""
    half, metal = rng.uniform(0.3, 0.36), TIN if rng.random() < 0.6 else (196, 158, 84)
    layers = [Layer(box(-0.94, side, 0.94, side + half - 0.02), 80, 0.95) for side in (-half, 0.02)]
    layers += [Layer(box(-0.94, y, 0.94, y + 0.015), 70, 0.7) for y in (-half * 0.6, half * 0.6)]
    for i, x in enumerate(np.arange(-0.9, 0.9, 0.06)):
        y = 0.035 if i % 2 else -0.035
        layers.append(Layer(box(x, y - 0.075, x + 0.042, y + 0.075), 150, 1, metal))
    at = rng.uniform(-0.3, 0.4)
    slider = np.array([[-0.16, -0.1], [-0.04, -0.16], [0.16, -0.12], [0.16, 0.12], [-0.04, 0.16], [-0.16, 0.1]]) + (at, 0)
    layers += [Layer(slider, 200, 0.95, metal), Layer(box(at + 0.04, -0.05, at + 0.46, 0.05, 0.04), 230, 0.8, metal)]
    return [*layers, Layer(box(at + 0.08, -0.025, at + 0.36, 0.025, 0.02), 210, 1.15, metal)]


def two_piece_capsule(rng: np.random.Generator) -> list[Layer]:
    """A medicine capsule: body, a dyed cap over it, an imprint."""
    half, tint, seam = rng.uniform(0.32, 0.38), _dye(rng), rng.uniform(-0.15, 0.15)
    layers = []
    for share, height, tone in ((1.0, 60, 0.78), (0.82, 130, 0.95), (0.55, 180, 1.05)):
        layers.append(Layer(capsule(-0.95 + half, 0, 0.95 - half, 0, half * share), height, tone))
        end = half * (share + 0.04)
        cap = capsule(seam + end, 0, 0.96 - half, 0, end)
        layers.append(Layer(np.concatenate([cap[:7], [[seam, end], [seam, -end]]]), height + 10, tone, tint))
    layers += [Layer(box(seam - 0.012, -half * 1.02, seam + 0.012, half * 1.02), 90, 0.7)]
    words = _lines_of_print(rng, -0.55, seam - 0.08, np.array([-0.06, 0.05]), 0.06)
    return [*layers, *words, Layer(capsule(-0.6, -half * 0.6, seam - 0.1, -half * 0.6, 0.025), 190, 1.4)]
