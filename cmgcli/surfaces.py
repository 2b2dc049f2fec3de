"""What the parts of the procedural line lie on: benches and belts, and the clutter on them."""

import cv2
import numpy as np

from cmgcli.materials import Colour, Material, smooth_noise, surface, turned


def _tinted(rng: np.random.Generator, colour: Colour, field: np.ndarray, spread: float = 6) -> np.ndarray:
    """A colour, slightly off, times (1 + field)."""
    base = np.array(colour, np.float32) + rng.normal(0, spread, 3).astype(np.float32) * 0.25 + np.float32(rng.normal(0, spread))
    return np.clip(base * (1 + field[..., None]), 0, 255).astype(np.uint8)


def _grey_belt(rng: np.random.Generator, size: int) -> np.ndarray:
    field = 0.03 * smooth_noise(rng, (size, size), (3, 3)) + 0.025 * smooth_noise(rng, (size, size), (size / 2, size / 2))
    return _tinted(rng, (150, 152, 155), field, 12)


def _dark_belt(rng: np.random.Generator, size: int) -> np.ndarray:
    side = int(size * 1.5)
    pitch = size / rng.uniform(9, 16)
    ribs = 0.25 * np.clip(np.sin(np.arange(side, dtype=np.float32) * np.float32(2 * np.pi / pitch)) * 2, -1, 1)
    texture = np.repeat(ribs[:, None], side, axis=1) + 0.10 * smooth_noise(rng, (side, side), (side / 2, side / 3))
    return _tinted(rng, (48, 50, 53), turned(texture, rng.uniform(-0.3, 0.3) + rng.integers(2) * np.pi / 2, (size, size)))


def _wooden_bench(rng: np.random.Generator, size: int) -> np.ndarray:
    plank = surface(Material((186, 146, 98), 0, "wood", 0.12), rng, (size, size), rng.uniform(-0.1, 0.1))
    step = int(size / rng.uniform(2, 4))
    for y in range(int(rng.integers(step)), size, step):
        plank[y : y + max(1, size // 100)] = plank[y : y + max(1, size // 100)] // 2
        plank[y:] = np.clip(plank[y:].astype(np.float32) * rng.uniform(0.93, 1.06), 0, 255).astype(np.uint8)
    return plank if rng.random() < 0.5 else np.ascontiguousarray(plank.transpose(1, 0, 2))


def _concrete_floor(rng: np.random.Generator, size: int) -> np.ndarray:
    field = 0.07 * smooth_noise(rng, (size, size), (7, 7)) + 0.05 * smooth_noise(rng, (size, size), (30, 30))
    image = _tinted(rng, (164, 160, 152), field + 0.05 * smooth_noise(rng, (size, size), (size / 1.5, size / 1.5)), 10)
    for x, y, grey in zip(rng.integers(size, size=40).tolist(), rng.integers(size, size=40).tolist(), rng.integers(70, 215, 40).tolist()):
        cv2.circle(image, (x, y), max(1, size // 128), (grey, grey, grey - 6), -1, cv2.LINE_AA)
    if rng.random() < 0.4:
        walk = np.cumsum(rng.normal((size / 18, 0), size / 30, (26, 2)), axis=0) + (-size / 8, rng.uniform(0, size))
        cv2.polylines(image, [walk.astype(np.int32)], False, (92, 90, 86), 1, cv2.LINE_AA)
    return image


def _cutting_mat(rng: np.random.Generator, size: int) -> np.ndarray:
    image = _tinted(rng, (30, 106, 82), 0.04 * smooth_noise(rng, (size, size), (size / 2, size / 2)))
    step, angle = size / rng.uniform(6, 12), rng.uniform(-0.5, 0.5)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    for i in range(-14, 15):
        for a, b in ((along, across), (across, along)):
            middle = size / 2 + a * step * i
            ends = [tuple(np.round((middle + b * t * size) * 16).astype(int).tolist()) for t in (-1, 1)]
            colour = (178, 198, 130) if i % 5 == 0 else (96, 152, 116)
            cv2.line(image, ends[0], ends[1], colour, 1, cv2.LINE_AA, shift=4)
    return image


def _perforated_tray(rng: np.random.Generator, size: int) -> np.ndarray:
    image = surface(Material((172, 178, 186), 0, "brushed", 0.04), rng, (size, size), rng.uniform(0, np.pi))
    step, angle = size / rng.uniform(7, 13), rng.uniform(0, np.pi / 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    grid = np.stack(np.meshgrid(np.arange(-10, 11), np.arange(-10, 11)), axis=-1).reshape(-1, 2) * step
    for x, y in np.round((grid @ turn.T + size / 2) * 16).astype(int).tolist():
        if -16 * step < x < 16 * (size + step) and -16 * step < y < 16 * (size + step):
            cv2.circle(image, (x + 10, y + 10), round(step * 4.6), (214, 218, 224), -1, cv2.LINE_AA, shift=4)
            cv2.circle(image, (x, y), round(step * 4.4), (46, 48, 52), -1, cv2.LINE_AA, shift=4)
    return image


def _newspaper(rng: np.random.Generator, size: int) -> np.ndarray:
    side = int(size * 1.5)
    paper = np.full((side, side), 226, dtype=np.uint8)
    line, column = max(4, round(size / rng.uniform(22, 40))), int(size / rng.uniform(2, 3.5))
    for x in range(0, side, column):
        y = int(rng.integers(0, 3 * line))
        while y < side:
            if rng.random() < 0.06:  # a headline or a picture
                height = int(rng.integers(2, 9)) * line
                cv2.rectangle(paper, (x, y), (x + column - line, y + height), int(rng.integers(60, 190)), -1)
                y += height + line
            ends = x + np.cumsum(rng.integers(line // 2 + 1, 3 * line, 12))
            for start, stop in zip([x, *ends[:-1].tolist()], ends.tolist(), strict=True):
                if stop < x + column - line:
                    cv2.rectangle(paper, (start, y), (stop - line // 2, y + line // 2 - 1), int(rng.integers(40, 120)), -1)
            y += line
    printed = turned(paper, rng.uniform(-0.6, 0.6), (size, size)).astype(np.float32) / 226
    return _tinted(rng, (222, 216, 202), printed * (1 + 0.02 * smooth_noise(rng, (size, size), (size / 2, size / 2))) - 1)


def _blue_cloth(rng: np.random.Generator, size: int) -> np.ndarray:
    steps = np.arange(size, dtype=np.float32)
    pitch = np.float32(rng.uniform(0.9, 1.6))
    weave = 0.10 * np.sin(steps * pitch)[:, None] * np.sin(steps * pitch)[None]
    folds = 0.12 * smooth_noise(rng, (size, size), (4, 3)) + 0.07 * smooth_noise(rng, (size, size), (size / 2, size / 2))
    return _tinted(rng, (82, 108, 152), weave + folds, 8)


def _light_table(rng: np.random.Generator, size: int) -> np.ndarray:
    steps = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = rng.uniform(-0.4, 0.4, 2).astype(np.float32)
    field = -np.float32(rng.uniform(0.02, 0.10)) * (np.square(steps - y)[:, None] + np.square(steps - x)[None])
    return _tinted(rng, (242, 244, 246), field + 0.008 * smooth_noise(rng, (size, size), (4, 4)), 4)


def _pitted_foam(rng: np.random.Generator, size: int) -> np.ndarray:
    image = _tinted(rng, (56, 57, 62), 0.10 * smooth_noise(rng, (size, size), (size / 2, size / 2)) + 0.05 * smooth_noise(rng, (size, size), (4, 4)))
    count, grey = int(rng.integers(120, 260)), int(rng.integers(14, 28))
    spots = rng.integers(0, size * 16, (count, 2)).tolist()
    for (x, y), radius in zip(spots, (rng.uniform(0.005, 0.02, count) * size * 16).astype(int).tolist(), strict=True):
        cv2.circle(image, (x + 10, y + 10), radius, (92, 93, 98), -1, cv2.LINE_AA, shift=4)
        cv2.circle(image, (x, y), radius, (grey, grey, grey + 2), -1, cv2.LINE_AA, shift=4)
    return image


def _cardboard(rng: np.random.Generator, size: int) -> np.ndarray:
    side, flutes = int(size * 1.5) + 2, rng.uniform(80, 180)
    ribs = np.sin(np.linspace(0, np.float32(flutes), side, dtype=np.float32))[:, None]
    field = 0.025 * ribs + 0.03 * smooth_noise(rng, (side, side), (side / 2, side / 6)) + 0.03 * smooth_noise(rng, (side, side), (4, 4))
    image = _tinted(rng, (188, 150, 106), turned(field, rng.uniform(0, np.pi), (size, size)), 8)
    if rng.random() < 0.4:  # a fold
        ends = (rng.uniform(-0.1, 1.1, (2, 2)) * size).astype(int)
        ends[:, rng.integers(2)] = (-size, 2 * size)
        for shift, colour in ((0, (128, 98, 64)), (max(1, size // 120), (214, 178, 132))):
            cv2.line(image, tuple((ends[0] + shift).tolist()), tuple((ends[1] + shift).tolist()), colour, max(1, size // 120), cv2.LINE_AA)
    return image


_BACKGROUNDS = {
    "grey belt": _grey_belt, "dark conveyor belt": _dark_belt, "wooden bench": _wooden_bench, "concrete floor": _concrete_floor,
    "cutting mat": _cutting_mat, "perforated tray": _perforated_tray, "newspaper": _newspaper, "blue cloth": _blue_cloth,
    "light table": _light_table, "dark foam": _pitted_foam, "cardboard sheet": _cardboard,
}  # fmt: skip
BACKGROUNDS: tuple[str, ...] = tuple(_BACKGROUNDS)


def lay_background(background: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """A bare background (size, size, 3) uint8 RGB. Raises ValueError for an unknown one."""
    if background not in _BACKGROUNDS:
        raise ValueError(f"unknown background {background!r}: choose one of {', '.join(BACKGROUNDS)}")
    return _BACKGROUNDS[background](rng, size)


def _colour(rng: np.random.Generator) -> Colour:
    return tuple(rng.integers(20, 236, 3).tolist())


def _swarf(image: np.ndarray, rng: np.random.Generator, x: float, y: float, unit: float) -> None:
    grey = int(rng.integers(120, 240))
    for _ in range(int(rng.integers(3, 12))):
        spot = (round(x + rng.normal(0, unit)), round(y + rng.normal(0, unit)))
        axes = (max(1, round(unit * rng.uniform(0.1, 0.35))), max(1, round(unit * rng.uniform(0.04, 0.2))))
        start = rng.uniform(0, 360)
        cv2.ellipse(image, spot, axes, rng.uniform(0, 180), start, start + rng.uniform(120, 300), (grey, grey, grey), 1, cv2.LINE_AA)


def _offcut(image: np.ndarray, rng: np.random.Generator, x: float, y: float, unit: float) -> None:
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.4, 1.1, (len(angles), 1)) * unit + (x, y)
    fixed = np.round(points * 16).astype(np.int32)
    colour = np.array(_colour(rng))
    cv2.fillPoly(image, [fixed + 16 * max(1, round(unit / 9))], (30, 30, 30), cv2.LINE_AA, shift=4)
    cv2.fillPoly(image, [fixed], colour.tolist(), cv2.LINE_AA, shift=4)
    cv2.polylines(image, [fixed], True, np.minimum(colour + 35, 255).tolist(), 1, cv2.LINE_AA, shift=4)


def _drop(image: np.ndarray, rng: np.random.Generator, x: float, y: float, unit: float) -> None:
    axes = (max(1, round(unit * rng.uniform(0.2, 0.8))), max(1, round(unit * rng.uniform(0.2, 0.8))))
    cv2.ellipse(image, (round(x), round(y)), axes, rng.uniform(0, 180), 0, 360, _colour(rng), -1, cv2.LINE_AA)
    cv2.circle(image, (round(x - axes[0] / 3), round(y - axes[1] / 3)), max(1, axes[1] // 5), (240, 240, 240), -1, cv2.LINE_AA)


def _screw(image: np.ndarray, rng: np.random.Generator, x: float, y: float, unit: float) -> None:
    angle, length = rng.uniform(0, 2 * np.pi), unit * rng.uniform(0.8, 1.6)
    along = np.array([np.cos(angle), np.sin(angle)]) * length
    tip = (round(x + along[0]), round(y + along[1]))
    grey, wide = int(rng.integers(110, 215)), max(1, round(unit * 0.22))
    shade = max(1, wide // 2)
    cv2.line(image, (round(x) + shade, round(y) + shade), (tip[0] + shade, tip[1] + shade), (34, 34, 34), wide, cv2.LINE_AA)
    cv2.line(image, (round(x), round(y)), tip, (grey - 40,) * 3, wide, cv2.LINE_AA)
    for part in np.linspace(0.2, 0.95, 7):
        spot = (round(x + along[0] * part), round(y + along[1] * part))
        cv2.circle(image, spot, max(1, wide // 3), (grey, grey, grey), -1, cv2.LINE_AA)
    cv2.circle(image, (round(x), round(y)), max(1, round(unit * 0.32)), (grey, grey, grey + 8), -1, cv2.LINE_AA)
    cross = np.round(along[::-1] * (1, -1) * 0.16).astype(int)
    cv2.line(image, (round(x) - cross[0], round(y) - cross[1]), (round(x) + cross[0], round(y) + cross[1]), (40, 40, 40), 1, cv2.LINE_AA)


def _tape(image: np.ndarray, rng: np.random.Generator, x: float, y: float, unit: float) -> None:
    angle, half = rng.uniform(0, np.pi), unit * rng.uniform(0.25, 0.5)
    along = np.array([np.cos(angle), np.sin(angle)])
    long, wide = along * unit * rng.uniform(1.5, 5), along[::-1] * (-half, half)
    corners = np.array([long + wide, long - wide, -long - wide, -long + wide]) + (x, y)
    mask = np.zeros(image.shape[:2], dtype=np.uint8)
    cv2.fillPoly(mask, [np.round(corners * 16).astype(np.int32)], int(rng.integers(110, 255)), cv2.LINE_AA, shift=4)
    left, top, width, height = cv2.boundingRect(np.clip(corners, 0, len(image)).astype(np.float32))
    box = np.s_[top : top + height, left : left + width]
    share = mask[box].astype(np.float32)[..., None] / 255
    image[box] = (image[box] * (1 - share) + np.array(_colour(rng), np.float32) * share).astype(np.uint8)


def _cable(image: np.ndarray, rng: np.random.Generator, x: float, y: float, unit: float) -> None:
    turn = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(rng.normal(0, 0.15), 0.12, 18))
    points = np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1) * unit * 0.6, axis=0) + (x, y)
    fixed, wide, colour = np.round(points * 16).astype(np.int32), max(2, round(unit * 0.24)), np.array(_colour(rng))
    cv2.polylines(image, [fixed + 12 * wide], False, (32, 32, 32), wide, cv2.LINE_AA, shift=4)
    cv2.polylines(image, [fixed], False, colour.tolist(), wide, cv2.LINE_AA, shift=4)
    cv2.polylines(image, [fixed - 3 * wide], False, np.minimum(colour + 70, 255).tolist(), max(1, wide // 4), cv2.LINE_AA, shift=4)


def _print(image: np.ndarray, rng: np.random.Generator, x: float, y: float, unit: float) -> None:
    words = ("LOT 4711", "OK", "QC PASS", "A-17", "THIS SIDE UP", "2024", "No. 358", "REV B", "STATION 3")
    scale = unit / 28 * rng.uniform(0.6, 1.4)
    word = words[rng.integers(len(words))]
    spot, wide = (round(x - unit), round(y)), max(1, round(scale * 2))
    cv2.putText(image, word, spot, cv2.FONT_HERSHEY_SIMPLEX, scale, _colour(rng), wide, cv2.LINE_AA)


_CLUTTER = (_swarf, _offcut, _drop, _screw, _screw, _tape, _cable, _print)


def scatter(image: np.ndarray, rng: np.random.Generator, count: int) -> None:
    """Throw `count` pieces of clutter on an image (S, S, 3) uint8 RGB, in place."""
    size = len(image)
    for _ in range(count):
        unit = size * rng.uniform(0.03, 0.10)
        x, y = rng.uniform(-0.03, 1.03, 2) * size
        _CLUTTER[rng.integers(len(_CLUTTER))](image, rng, x, y, max(2.0, unit))
