"""The kinds of defects: each looks at a scene and gives a patch of new pixels with their coverage.

A drawer takes (scene, rng, strength in [0, 1]). It need not care where defects are allowed, nor for two-valued images beyond
their shapes: `defects.draw` clips, rounds and masks what it gives.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from cmgcli.strokes import course, headed_walk, strokes, walk


@dataclass(frozen=True)
class Scene:
    """An image and what the drawers need to know of it."""

    image: np.ndarray  # (H, W, 3) uint8
    allowed: np.ndarray  # (H, W) bool, never empty
    donor: np.ndarray | None  # (H, W, 3) uint8
    gray: bool
    contrast: float  # standard deviation of the brightness
    values: np.ndarray | None  # (2, 3) the two colours of a two-valued image


@dataclass(frozen=True)
class Patch:
    """What a defect does to the box whose upper left corner is (top, left)."""

    top: int
    left: int
    pixels: np.ndarray  # (h, w, 3) float32
    alpha: np.ndarray  # (h, w) float32 in [0, 1], how much of `pixels` shows


def pick(allowed: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """A random True pixel (y, x)."""
    height, width = allowed.shape
    for y, x in zip(rng.integers(height, size=12).tolist(), rng.integers(width, size=12).tolist(), strict=True):
        if allowed[y, x]:
            return y, x
    index = np.flatnonzero(allowed)
    y, x = divmod(int(index[rng.integers(len(index))]), width)
    return y, x


def _pick_edge(allowed: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """A random pixel (y, x) on the rim of the allowed region; the image's border counts as a rim."""
    inner = cv2.erode(allowed.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return pick(allowed & (inner == 0), rng)


def _noise(rng: np.random.Generator, height: int, width: int, cells: float) -> np.ndarray:
    """Smooth noise (height, width) float32 of unit variance; `cells` waves along the longer side."""
    step = max(height, width) / cells
    coarse = rng.standard_normal((max(2, round(height / step) + 1), max(2, round(width / step) + 1)), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _box(scene: Scene, y: float, x: float, half: float) -> tuple[int, int, int, int]:
    height, width = scene.allowed.shape
    top, left = max(0, int(y - half)), max(0, int(x - half))
    return top, left, min(height, int(y + half) + 1), min(width, int(x + half) + 1)


def _area(scene: Scene, rng: np.random.Generator, low: float = 2e-4, high: float = 0.08) -> float:
    """A defect's area in pixels, log-uniform between two shares of the image, at most half of what is allowed."""
    share = np.exp(rng.uniform(np.log(low), np.log(high)))
    if scene.values is not None:
        share = min(share, 0.02)
    return max(4.0, min(share * scene.allowed.size, 0.5 * np.count_nonzero(scene.allowed)))


def _blob(
    scene: Scene, rng: np.random.Generator, *, area: float, ragged: float, soft: float, stretch: float = 0.6, at_edge: bool = False
) -> tuple[int, int, np.ndarray]:
    """A ragged ellipse as (top, left, alpha (h, w)): `soft` is the width of its rim as a share of its radius."""
    y, x = _pick_edge(scene.allowed, rng) if at_edge else pick(scene.allowed, rng)
    radius = np.sqrt(area / np.pi)
    aspect, angle = np.exp(rng.uniform(-stretch, stretch)), rng.uniform(0, np.pi)
    top, left, bottom, right = _box(scene, y, x, (1.05 + 0.5 * soft + ragged) * radius * max(aspect, 1 / aspect) + 1)
    v = np.arange(top - y, bottom - y, dtype=np.float32)[:, None]
    u = np.arange(left - x, right - x, dtype=np.float32)[None]
    along = (u * np.cos(angle) + v * np.sin(angle)) / (radius * aspect)
    across = (v * np.cos(angle) - u * np.sin(angle)) / (radius / aspect)
    field = 1 - np.sqrt(along**2 + across**2) + ragged * _noise(rng, *np.broadcast_shapes(along.shape, across.shape), rng.uniform(3, 9))
    return top, left, np.clip(field / max(soft, 1 / radius) + 0.5, 0, 1).astype(np.float32)


def _old(scene: Scene, top: int, left: int, alpha: np.ndarray) -> np.ndarray:
    return scene.image[top : top + alpha.shape[0], left : left + alpha.shape[1]].astype(np.float32)


def _shift(scene: Scene, rng: np.random.Generator, old: np.ndarray, strength: float, dark: float = 0.5) -> np.ndarray:
    """A change of colour (3,) in grey levels, a multiple of the local contrast; darker with probability `dark`."""
    small = old[:: max(1, old.shape[0] // 24), :: max(1, old.shape[1] // 24)]
    brightness = small.mean(axis=2)
    contrast = 0.7 * float(brightness.std()) + 0.3 * scene.contrast
    size = np.clip((0.5 + 2.2 * strength) * contrast, 6 + 34 * strength, 45 + 90 * strength)
    sign = -1.0 if rng.random() < dark else 1.0
    if not 0 <= float(brightness.mean()) + sign * size <= 255:
        sign = -sign
    tint = np.zeros(3) if scene.gray else rng.normal(0, 0.25, 3)
    return (sign * size * (1 + tint)).astype(np.float32)


def _lay(scene: Scene, rng: np.random.Generator, place: tuple, strength: float, dark: float = 0.5) -> Patch:
    """Colour in a shape: a shift of brightness, or a colour found elsewhere in the image."""
    top, left, alpha = place
    old = _old(scene, top, left, alpha)
    if scene.values is not None:
        pixels = scene.values[::-1][np.abs(old[:, :, None] - scene.values).sum(axis=3).argmin(axis=2)]  # flipped
        mode = rng.integers(3)
        return Patch(top, left, pixels if mode == 2 else np.broadcast_to(scene.values[mode], old.shape), alpha)
    shift = _shift(scene, rng, old, strength, dark)
    if rng.random() < 0.3:
        y, x = pick(scene.allowed, rng)
        colour = scene.image[y, x].astype(np.float32)
        opacity = 0.3 + 0.7 * strength
        if np.abs(colour - old.mean(axis=(0, 1))).max() * opacity > np.abs(shift).max() * 0.6:
            return Patch(top, left, np.broadcast_to(colour, old.shape), alpha * np.float32(opacity))
    return Patch(top, left, old + shift, alpha)


def _length(scene: Scene, rng: np.random.Generator, low: float, high: float) -> float:
    return max(3.0, float(np.exp(rng.uniform(np.log(low), np.log(high)))) * max(scene.allowed.shape))


def _scratch(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    y, x = pick(scene.allowed, rng)
    thickness = int(rng.integers(1, 4)) * max(1, max(scene.allowed.shape) // 768)
    heading, wander = course(scene.image, rng)
    line = walk(rng, np.array([x, y], float), _length(scene, rng, 0.04, 3.0), step=6, jitter=0.02 * wander, drift=rng.normal(0, 0.4 * wander**2), heading=heading)
    line += np.array([x, y]) - line[int(rng.integers(len(line)))]
    lines = [line + rng.normal(0, 6, 2) for _ in range(int(rng.integers(0, 3)))] if rng.random() < 0.25 else []
    top, left, alpha = strokes(scene.allowed.shape, [line, *lines], [thickness] + [1] * len(lines))
    patch = _lay(scene, rng, (top, left, alpha), strength, dark=0.4)
    if thickness == 1 or scene.values is not None:
        return patch
    # The burr: one flank of a wide scratch catches the light, the other lies in shade.
    flank = np.roll(alpha, (1, 1), axis=(0, 1)) - alpha
    return Patch(top, left, patch.pixels + flank[..., None] * 25 * strength, patch.alpha)


def _crack(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    """From a speck to a fracture right across the image, often from its rim: it wanders but keeps its heading, branches, and is finest at its ends."""
    at_rim = rng.random() < 0.3
    y, x = _pick_edge(scene.allowed, rng) if at_rim else pick(scene.allowed, rng)
    length = _length(scene, rng, 0.06, 3.0)
    trunk = headed_walk(rng, np.array([x, y], float), length, *course(scene.image, rng))
    if not at_rim:
        trunk += np.array([x, y]) - trunk[int(rng.integers(len(trunk)))]
    lines = [trunk]
    for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.6 else 0):
        start = trunk[rng.integers(len(trunk))]
        lines.append(headed_walk(rng, start, min(length, 0.5 * max(scene.allowed.shape)) * rng.uniform(0.1, 0.5)))
    widths, wide = [1] * len(lines), int(rng.integers(1, 5)) if rng.random() < 0.5 else 1
    for width in range(2, wide + 1):
        fine = int(len(trunk) * 0.12 * (width - 1))
        if len(trunk) - 2 * fine > 1:
            lines.append(trunk[(0 if at_rim else fine) : len(trunk) - fine])
            widths.append(width)
    return _lay(scene, rng, strokes(scene.allowed.shape, lines, widths), strength, dark=0.85)


def _fibre(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    y, x = pick(scene.allowed, rng)
    line = walk(rng, np.array([x, y], float), _length(scene, rng, 0.06, 0.5), step=2, jitter=0.15, drift=rng.normal(0, 3))
    return _lay(scene, rng, strokes(scene.allowed.shape, [line], [int(rng.integers(1, 3))]), strength)


def _scuff(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    y, x = pick(scene.allowed, rng)
    radius = np.sqrt(_area(scene, rng, 1e-3, 0.04))
    across = walk(rng, np.zeros(2), radius, step=3, jitter=0.0, drift=0.0)[-1]
    lines = []
    for _ in range(int(rng.integers(4, 16))):
        start = np.array([x, y]) + rng.normal(0, 0.4, 2) * radius
        lines.append(np.stack([start, start + across * rng.uniform(0.3, 1.3)]))
    top, left, alpha = strokes(scene.allowed.shape, lines, [1] * len(lines))
    return _lay(scene, rng, (top, left, alpha * np.float32(0.8)), strength)


def _pits(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    y, x = pick(scene.allowed, rng)
    count = int(rng.integers(1, 14)) if rng.random() < 0.7 else int(rng.integers(1, 3))
    spread = np.sqrt(_area(scene, rng, 5e-4, 0.03))
    wide = float(np.exp(rng.uniform(0, np.log(5)))) if count < 3 and scene.values is None else 1.0  # a blowhole
    largest = wide * min(0.6 + max(scene.allowed.shape) / 90, 0.5 + 1.2 * spread)
    radii = rng.uniform(0.6, largest, count) * (0.6 + 0.4 * strength)
    centres = np.array([x, y]) + rng.normal(0, spread, (count, 2)) * (np.arange(count) > 0)[:, None]
    centres = np.clip(centres, 0, np.array(scene.allowed.shape[::-1]) - 1)
    left, top = np.maximum(np.floor(centres.min(axis=0)) - largest - 3, 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(centres.max(axis=0)) + largest + 3, scene.allowed.shape[::-1]).astype(int).tolist()
    holes, rims = (np.zeros((bottom - top, right - left), dtype=np.uint8) for _ in range(2))
    for (cx, cy), radius in zip(centres - (left, top), radii, strict=True):
        centre = (round(cx * 16), round(cy * 16))
        cv2.circle(rims, centre, round((radius + 0.8) * 16), 255, -1, cv2.LINE_AA, shift=4)
        cv2.circle(holes, centre, round(radius * 16), 255, -1, cv2.LINE_AA, shift=4)
    alpha = holes.astype(np.float32) / 255
    patch = _lay(scene, rng, (top, left, alpha), strength, dark=0.85)
    if scene.values is not None:
        return patch
    rim = np.maximum(rims.astype(np.float32) / 255 - alpha, 0)[..., None]
    old = _old(scene, top, left, alpha)
    pixels = old + patch.alpha[..., None] * (patch.pixels - old) - 0.4 * rim * _shift(scene, rng, old, strength, dark=1)
    return Patch(top, left, pixels, np.maximum(alpha, rim[..., 0] > 0).astype(np.float32))


def _chip(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    at_edge = not scene.allowed.all() or rng.random() < 0.5
    place = _blob(scene, rng, area=2 * _area(scene, rng, 2e-4, 0.03), ragged=0.28, soft=0.12, at_edge=at_edge)
    top, left, alpha = place
    outside = ~scene.allowed[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    if scene.values is not None or outside.sum() < 4 or rng.random() < 0.3:
        return _lay(scene, rng, place, 0.4 + 0.6 * strength, dark=0.7)
    old = _old(scene, top, left, alpha)
    beyond = old[outside]  # (n, 3) what lies beyond the edge shows through
    pixels = beyond[rng.integers(len(beyond), size=alpha.shape)]
    pixels = cv2.blur(pixels, (3, 3)) - 12 * (alpha < 0.8)[..., None]
    return Patch(top, left, pixels, alpha * np.float32(0.35 + 0.65 * strength))


def _stain(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    place = _blob(scene, rng, area=_area(scene, rng), ragged=rng.uniform(0.1, 0.4), soft=rng.uniform(0.1, 0.9))
    patch = _lay(scene, rng, place, 0.8 * strength, dark=0.7)
    if rng.random() < 0.3:  # dried from the middle, the rim is strongest
        return Patch(patch.top, patch.left, patch.pixels, patch.alpha * (0.35 + 2.6 * place[2] * (1 - place[2])).astype(np.float32))
    return patch


def _smear(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    place = _blob(scene, rng, area=_area(scene, rng, 1e-3, 0.08), ragged=0.25, soft=0.5, stretch=1.0)
    top, left, alpha = place
    old = _old(scene, top, left, alpha)
    size = int(np.clip((3 + 14 * strength) * max(scene.allowed.shape) / 256, 3, 31)) | 1
    kernel, angle = np.zeros((size, size), np.float32), rng.uniform(0, np.pi)
    reach = (size // 2) * np.array([np.cos(angle), np.sin(angle)])
    cv2.line(kernel, tuple(np.round(size // 2 - reach).astype(int).tolist()), tuple(np.round(size // 2 + reach).astype(int).tolist()), 1.0)
    pixels = cv2.filter2D(old, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT) + 0.3 * _shift(scene, rng, old, strength)
    return Patch(top, left, pixels, alpha)


def _blur(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    top, left, alpha = _blob(scene, rng, area=_area(scene, rng, 2e-3, 0.08), ragged=0.2, soft=0.4)
    old = _old(scene, top, left, alpha)
    pixels = cv2.GaussianBlur(old, (0, 0), (0.8 + 3 * strength) * max(1.0, max(scene.allowed.shape) / 384))
    if rng.random() < 0.3:  # the opposite: a rough spot
        pixels = old + (0.8 + 2 * strength) * (old - pixels)
    return Patch(top, left, pixels, alpha)


def _missing_print(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    """Where the ground shows in place of what was printed, woven or etched: what is thinner than a wide median is gone."""
    top, left, alpha = _blob(scene, rng, area=_area(scene, rng, 1e-3, 0.05), ragged=0.2, soft=0.15)
    old = scene.image[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    wide = int(np.clip(max(scene.allowed.shape) / 16, 7, 63)) | 1
    ground = cv2.medianBlur(np.ascontiguousarray(old), wide).astype(np.float32)
    return Patch(top, left, ground, alpha * np.float32(0.5 + 0.5 * strength))


def _dent(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    """A smooth hollow: the surface is drawn together towards its middle, one flank is lit, the other shaded."""
    top, left, alpha = _blob(scene, rng, area=_area(scene, rng, 6e-4, 0.06), ragged=0.1, soft=1.2, stretch=0.4)
    bump = cv2.GaussianBlur(alpha, (0, 0), max(0.8, 0.08 * max(alpha.shape)))
    slope_y, slope_x = cv2.Sobel(bump, cv2.CV_32F, 0, 1), cv2.Sobel(bump, cv2.CV_32F, 1, 0)
    peak = max(float(np.abs(slope_y).max()), float(np.abs(slope_x).max()), 1e-6)
    angle = rng.uniform(0, 2 * np.pi)
    light = (slope_x * np.float32(np.cos(angle)) + slope_y * np.float32(np.sin(angle))) / peak  # (h, w) in about [-1, 1]
    old = _old(scene, top, left, alpha)
    reach = np.float32((0.5 + 3 * strength) * max(1.0, max(scene.allowed.shape) / 256) / peak)
    grid_y, grid_x = np.indices(alpha.shape, dtype=np.float32)
    pixels = cv2.remap(old, grid_x + reach * slope_x, grid_y + reach * slope_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    pixels = pixels + light[..., None] * np.abs(_shift(scene, rng, old, strength)).mean()
    return Patch(top, left, pixels, np.minimum(4 * bump, 1))


def _uneven(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    """A large area of another finish, its rim soft or sharp: patches, a band right across the image, or all to one side of a line.

    It differs in brightness and contrast, or, half of the time, most of all in its grain, which is that of another place.
    """
    height, width = scene.allowed.shape
    field = _noise(rng, height, width, rng.uniform(1.5, 4))
    if scene.values is None and rng.random() < 0.4:
        angle = rng.uniform(0, 2 * np.pi)
        across = np.arange(height, dtype=np.float32)[:, None] * np.sin(angle) + np.arange(width, dtype=np.float32) * np.cos(angle)
        across = (across - across.mean()) / max(float(across.std()), 1e-6)
        across = across if rng.random() < 0.5 else -np.abs(across - rng.uniform(-1, 1))
        field = (2 * across + rng.uniform(0, 0.5) * field).astype(np.float32)
    share = rng.uniform(0.05, 0.3) if scene.values is None else rng.uniform(0.002, 0.02)
    inside = field[scene.allowed][:: max(1, height * width // 4096)]
    level = np.quantile(inside, 1 - share)
    alpha = np.clip((field - level) / np.exp(rng.uniform(np.log(0.02), np.log(0.8))) + 0.1, 0, 1).astype(np.float32)
    if scene.values is not None:
        return _lay(scene, rng, (0, 0, alpha), strength)
    old = scene.image.astype(np.float32)
    base, much = old, 1.0
    if rng.random() < 0.5:
        base, much = _piece(scene if rng.random() < 0.5 else replace(scene, donor=None), rng, height, width, turned=False), rng.random()
    gain = np.float32(1 + much * (0.1 + 0.4 * strength) * rng.choice((-1, 1)))
    middle = base[:: max(1, height // 24), :: max(1, width // 24)].mean(axis=(0, 1))
    return Patch(0, 0, middle + gain * (base - middle) + np.float32(0.4 * much) * _shift(scene, rng, old, strength), alpha)


def _piece(scene: Scene, rng: np.random.Generator, height: int, width: int, *, turned: bool = True) -> np.ndarray:
    """A piece (height, width, 3) float32 of the donor around a random allowed pixel, turned, zoomed and mirrored, or mirrored at most."""
    source = scene.image if scene.donor is None else scene.donor
    y, x = pick(scene.allowed, rng)
    angle = rng.choice((0, 90, 180, 270)) if scene.values is not None else rng.uniform(0, 360)
    turn = cv2.getRotationMatrix2D((x, y), float(angle), float(rng.uniform(0.8, 1.25))) if turned else np.eye(2, 3)
    turn[:, 2] += (width / 2 - x, height / 2 - y)
    piece = cv2.warpAffine(source, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    piece = piece[:, ::-1] if rng.random() < 0.5 else piece
    piece = piece.astype(np.float32)
    return np.repeat(piece.mean(axis=2, keepdims=True), 3, axis=2).round() if scene.gray else piece


def _cut_paste(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    area = _area(scene, rng, 5e-4, 0.08)
    top, left, alpha = _blob(scene, rng, area=area, ragged=rng.choice((0.0, 0.3)), soft=0.1)
    if rng.random() < 0.4:
        alpha = np.ones_like(alpha[: max(1, int(alpha.shape[0] / 1.5)), : max(1, int(alpha.shape[1] / 1.5))])
    return Patch(top, left, _piece(scene, rng, *alpha.shape), alpha * np.float32(0.4 + 0.6 * strength))


def _blend(scene: Scene, rng: np.random.Generator, strength: float) -> Patch:
    top, left, alpha = _blob(scene, rng, area=_area(scene, rng, 1e-3, 0.08), ragged=0.4, soft=0.7)
    pixels = _piece(scene, rng, *alpha.shape)
    if scene.values is None:
        pixels = pixels + 0.4 * _shift(scene, rng, _old(scene, top, left, alpha), strength)
    return Patch(top, left, pixels, alpha * np.float32(0.25 + 0.6 * strength))


DRAWERS: dict[str, Callable[[Scene, np.random.Generator, float], Patch]] = {
    "scratch": _scratch, "crack": _crack, "chip": _chip, "pits": _pits, "stain": _stain, "smear": _smear, "dent": _dent,
    "uneven": _uneven, "blur": _blur, "fibre": _fibre, "cut-paste": _cut_paste, "blend": _blend, "scuff": _scuff,
    "missing print": _missing_print,
}  # fmt: skip
