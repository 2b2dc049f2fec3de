"""The procedural inspection line: captioned parts on cluttered backgrounds, with defects and their ground truth.

It serves `cmg demo`, the tests and the training of the built-in encoder.
"""

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from cmgcli import defects
from cmgcli.camera import photograph
from cmgcli.captions import describe
from cmgcli.errors import OutputError
from cmgcli.files import write_whole
from cmgcli.images import write_png
from cmgcli.materials import MATERIALS, Material, find_material, surface
from cmgcli.parts import FRAME_FILLING, PARTS, WITH_HOLES, shape
from cmgcli.shapes import Layer, outline, to_pixels, without_hole
from cmgcli.surfaces import BACKGROUNDS, lay_background, scatter

__all__ = ["BACKGROUNDS", "DEFECTS", "MATERIALS", "PARTS", "WITH_HOLES", "Sample", "describe", "render", "write_line"]

DEFECTS: tuple[str, ...] = ("scratch", "stain", "chip", "crack", "missing hole", "wrong part")
_PIECES = tuple(part for part in PARTS if part not in FRAME_FILLING)
_PRODUCTS = (
    ("gear", "brass"), ("hex nut", "steel"), ("bracket", "aluminium"), ("connector", "blue plastic"), ("flange", "copper"),
    ("bottle cap", "red plastic"),
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One picture of the line; part and material are those that the caption names.

    image: (S, S, 3) uint8 RGB. object_mask: (S, S) bool, the part that lies there, a drawn defect included.
    defect_mask: (S, S) bool; all False for a flawless or wrong part. defect: one of `DEFECTS`, "" when flawless.
    """

    image: np.ndarray
    object_mask: np.ndarray
    defect_mask: np.ndarray
    caption: str
    part: str
    material: str
    background: str
    defect: str


@dataclass(frozen=True)
class _Light:
    angle: float  # radians, where the light comes from
    steep: float  # strength of the bevels


def render(
    rng: np.random.Generator,
    *,
    size: int = 256,
    part: str | None = None,
    material: str | None = None,
    background: str | None = None,
    defect: str = "",
    caption: str | None = None,
    design: int | None = None,
    harsh: bool = False,
) -> Sample:
    """Draw one picture; what is None is drawn at random.

    size: side S in pixels. design: the same number gives a part the same proportions every time.
    harsh: light and camera as on a bad day: too dark, too bright, shadows, reflections, blur, noise, a fifth in grey.
    defect: "" or one of `DEFECTS`; a random part is one that can have it. Raises ValueError for an unknown name, and for
    a missing hole in a part without holes.
    """
    for what, name, choices in (
        ("defect", defect or None, DEFECTS),
        ("part", part, PARTS),
        ("material", material, MATERIALS),
        ("background", background, BACKGROUNDS),
    ):
        if name is not None and name not in choices:
            raise ValueError(f"unknown {what} {name!r}: choose one of {', '.join(choices)}")
    part = str(rng.choice(WITH_HOLES if defect == "missing hole" else PARTS)) if part is None else part
    material = str(rng.choice(MATERIALS)) if material is None else material
    background = str(rng.choice(BACKGROUNDS)) if background is None else background
    caption = describe(part, material, background, rng) if caption is None else caption
    shown, stuff = _other(part, material, rng) if defect == "wrong part" else (part, material)
    layers = shape(shown, rng if design is None or shown != part else np.random.default_rng(design))

    light = _Light(rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.3))
    bare = lay_background(background, rng, size)
    scatter(bare, rng, int(rng.choice((0, 2, 5, 10, 18))))
    if rng.random() < 0.4:
        _place_neighbour(bare, rng, light)
    pose = _covering_pose(rng, size) if shown in FRAME_FILLING else _pose(layers, rng, size)
    hole = None
    if defect == "missing hole":
        layers, hole = without_hole(layers, rng)
    image = bare.copy()
    object_mask = _place(image, layers, find_material(stuff), pose, rng, light)
    defect_mask = np.zeros((size, size), dtype=bool)
    if hole is not None:
        defect_mask = _hole_mask(hole, pose, object_mask)
    elif defect and defect != "wrong part":
        drawn = _draw_plainly(image, object_mask, defect, rng)
        image, defect_mask = (_bite(image, bare, drawn.mask), drawn.mask) if defect == "chip" else (drawn.image, drawn.mask)
    return Sample(photograph(image, rng, harsh=harsh), object_mask, defect_mask, caption, part, material, background, defect)


def _draw_plainly(image: np.ndarray, object_mask: np.ndarray, kind: str, rng: np.random.Generator) -> defects.DrawnDefect:
    """A defect that a person would find: at least 0.5 % of the part, unless several tries bring only smaller ones."""
    for _ in range(6):
        drawn = defects.draw(image, rng, allowed=object_mask, kind=kind, strength=rng.uniform(0.4, 1))
        if np.count_nonzero(drawn.mask) >= 0.005 * np.count_nonzero(object_mask):
            break
    return drawn


def _hole_mask(hole: Layer, pose: np.ndarray, object_mask: np.ndarray) -> np.ndarray:
    """The part's pixels (S, S) bool where the hole should be: at least the one nearest to its centre, however small it is."""
    mask = (outline([replace(hole, height=255)], pose, object_mask.shape) > 127) & object_mask
    if not mask.any():
        x, y = pose[:, :2] @ hole.points.mean(axis=0) + pose[:, 2]
        ys, xs = np.nonzero(object_mask)
        nearest = np.argmin((ys - y) ** 2 + (xs - x) ** 2)
        mask[ys[nearest], xs[nearest]] = True
    return mask


def _other(part: str, material: str, rng: np.random.Generator) -> tuple[str, str]:
    """Another part, which is never a frame-filling one, another material, or both."""
    other_parts = [other for other in _PIECES if other != part]
    other_part = other_parts[rng.integers(len(other_parts))]
    other_material = MATERIALS[(MATERIALS.index(material) + int(rng.integers(1, len(MATERIALS)))) % len(MATERIALS)]
    return ((other_part, material), (other_part, other_material), (part, other_material))[rng.choice(3, p=(0.4, 0.3, 0.3))]


def _similarity(angle: float, scale: float, x: float, y: float) -> np.ndarray:
    """(2, 3) pose: turn by `angle`, enlarge by `scale`, move to (x, y)."""
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cosine, -sine, x], [sine, cosine, y]])


def _pose(layers: list[Layer], rng: np.random.Generator, size: int) -> np.ndarray:
    """A random pose in which the part covers 10 to 40 % of the image, as far as it fits into the picture."""
    coverage = np.count_nonzero(outline(layers, _similarity(0, 20, 24, 24), (48, 48)) > 127) / 400  # in unit areas
    scale = np.sqrt(np.exp(rng.uniform(np.log(0.10), np.log(0.40))) / coverage)
    angle, scale = rng.uniform(0, 2 * np.pi), min(scale, 0.52) * size
    corners = np.concatenate([layer.points for layer in layers]) @ _similarity(angle, scale, 0, 0)[:, :2].T
    low, high = corners.min(axis=0), corners.max(axis=0)
    if (span := (high - low).max()) > 0.97 * size:
        scale, low, high = scale * 0.97 * size / span, low * 0.97 * size / span, high * 0.97 * size / span
    x, y = rng.uniform(0.01 * size - low, 0.99 * size - high)
    return _similarity(angle, scale, x, y)


def _covering_pose(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random turn in which a square of side 1.4 covers the whole picture."""
    return _similarity(rng.uniform(0, 2 * np.pi), 1.1 * size, size / 2, size / 2)


def _place_neighbour(image: np.ndarray, rng: np.random.Generator, light: _Light) -> None:
    """Another part that reaches into the picture from its border."""
    size = len(image)
    angle = rng.uniform(0, 2 * np.pi)
    x, y = size / 2 + np.array([np.cos(angle), np.sin(angle)]) * size * rng.uniform(0.55, 0.75)
    pose = _similarity(rng.uniform(0, 2 * np.pi), size * rng.uniform(0.15, 0.3), x, y)
    _place(image, shape(str(rng.choice(_PIECES)), rng), find_material(str(rng.choice(MATERIALS))), pose, rng, light)


def _place(
    image: np.ndarray, layers: list[Layer], material: Material, pose: np.ndarray, rng: np.random.Generator, light: _Light
) -> np.ndarray:
    """Lay a part into an image (S, S, 3) uint8, in place; gives its mask (S, S) bool."""
    size = len(image)
    scale = float(np.hypot(pose[0, 0], pose[1, 0]))
    corners = np.concatenate([layer.points for layer in layers]) @ pose[:, :2].T + pose[:, 2]
    pad = 0.06 * scale + 4
    left, top = np.clip(corners.min(axis=0) - pad, 0, size - 1).astype(int).tolist()
    right, bottom = np.clip(corners.max(axis=0) + pad, (left + 1, top + 1), size).astype(int).tolist()
    box, extent = np.s_[top:bottom, left:right], (bottom - top, right - left)
    pose = pose - np.array([[0, 0, left], [0, 0, top]])
    alpha = outline(layers, pose, extent)
    grain = np.arctan2(pose[1, 0], pose[0, 0]) + float(rng.choice((0, np.pi / 2)))
    lit = _shade(layers, surface(material, rng, extent, grain), material, pose, rng, light)

    reach = np.array([np.cos(light.angle), np.sin(light.angle)]) * rng.uniform(0.02, 0.05) * scale
    shift = np.float32([[1, 0, -reach[0]], [0, 1, -reach[1]]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, shift, extent[::-1]), (0, 0), 0.025 * scale + 0.5).astype(np.float32)
    ground = image[box] * (1 - rng.uniform(0.4, 0.7) / 255 * shadow[..., None])
    share = alpha.astype(np.float32)[..., None] / 255
    image[box] = np.clip(ground + share * (lit - ground) + 0.5, 0, 255).astype(np.uint8)
    mask = np.zeros((size, size), dtype=bool)
    mask[box] = alpha > 127
    return mask


def _shade(
    layers: list[Layer], skin: np.ndarray, material: Material, pose: np.ndarray, rng: np.random.Generator, light: _Light
) -> np.ndarray:
    """The part's surface (h, w, 3) float32: the material under its layers' tones, bevels and highlights."""
    extent = skin.shape[:2]
    scale = float(np.hypot(pose[0, 0], pose[1, 0]))
    height, tone = np.zeros(extent, np.uint8), np.full(extent, 128, np.uint8)
    for layer in layers:
        points = [to_pixels(layer.points, pose)]
        cv2.fillPoly(height, points, layer.height, cv2.LINE_AA, shift=4)
        if layer.height:
            cv2.fillPoly(tone, points, round(128 * layer.tone), cv2.LINE_AA, shift=4)
        if layer.colour is not None:
            cv2.fillPoly(skin, points, layer.colour, cv2.LINE_AA, shift=4)
    relief = cv2.GaussianBlur(height, (0, 0), 0.012 * scale + 0.5)
    slope_x, slope_y = cv2.Sobel(relief, cv2.CV_32F, 1, 0), cv2.Sobel(relief, cv2.CV_32F, 0, 1)
    towards = slope_x * np.float32(np.cos(light.angle)) + slope_y * np.float32(np.sin(light.angle))
    bevel = np.clip(-light.steep * 0.0022 * (0.012 * scale + 0.5) * towards, -0.55, 0.7)  # (h, w), > 0 faces the light
    gleam = _gleam(extent, pose, material, rng)
    bright = tone.astype(np.float32) / 128 * (1 + bevel)
    highlight = material.shine * (90 * np.maximum(bevel, 0) + gleam * (tone.astype(np.float32) / 128))
    return skin * bright[..., None] + highlight[..., None]


def _gleam(extent: tuple[int, int], pose: np.ndarray, material: Material, rng: np.random.Generator) -> np.ndarray:
    """Reflections (h, w) float32 in grey levels: soft bands on metal, one compact spot on glossy plastic and ceramic."""
    scale = float(np.hypot(pose[0, 0], pose[1, 0]))
    v = (np.arange(extent[0], dtype=np.float32)[:, None] - np.float32(pose[1, 2])) / np.float32(scale)
    u = (np.arange(extent[1], dtype=np.float32)[None] - np.float32(pose[0, 2])) / np.float32(scale)
    if material.grain == "brushed":
        angle = rng.uniform(0, 2 * np.pi)
        along = u * np.float32(np.cos(angle)) + v * np.float32(np.sin(angle))
        wave = np.sin(along * np.float32(rng.uniform(1.5, 4)) + np.float32(rng.uniform(0, 6)))
        return 32 * wave + 45 * np.maximum(wave, 0) ** 8
    x, y = rng.uniform(-0.6, 0.6, 2).astype(np.float32)
    return 95 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / np.float32(rng.uniform(0.03, 0.2)))


def _bite(image: np.ndarray, bare: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A chip: the background shows where the part is gone, and the broken edge is lighter."""
    gone = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) > 0
    bitten = image.copy()
    bitten[mask] = np.minimum(image[mask].astype(np.float32) * 0.6 + 70, 255).astype(np.uint8)
    beyond = cv2.erode((gone | ~mask).astype(np.uint8), np.ones((2, 2), np.uint8)) > 0
    bitten[mask & beyond] = (bare[mask & beyond] * 0.75).astype(np.uint8)
    return bitten


def write_line(directory: Path, *, train: int = 240, test: int = 120, size: int = 256, seed: int = 0) -> Path:
    """Write `images/`, `masks/` and `metadata.csv` of a line with six products; gives the path of the CSV file.

    train: number of flawless training images. test: number of test images, every other one defective, cycling through
    `DEFECTS`. The same arguments give the same files, byte for byte. Raises OutputError where a line already lies.
    """
    directory = Path(directory)
    metadata = directory / "metadata.csv"
    try:
        for old in (metadata, directory / "images", directory / "masks"):
            if old.is_file() or old.is_dir() and any(old.iterdir()):
                raise OutputError(f"{old} already exists: choose an empty directory, or delete the old line first")
        for folder in (directory / "images", directory / "masks"):
            folder.mkdir(parents=True, exist_ok=True)
        numbered = [(split, index) for split, count in (("train", train), ("test", test)) for index in range(count)]
        rows = [_write_sample(directory, split, index, size, seed) for split, index in numbered]
        table = io.StringIO()
        writer = csv.DictWriter(table, ("file_name", "text", "split", "label", "defect", "mask"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(metadata, table.getvalue().encode())
    except OSError as error:
        raise OutputError(f"the line could not be written to {directory}: {error.strerror or error}; choose another directory") from error
    return metadata


def _write_sample(directory: Path, split: str, index: int, size: int, seed: int) -> dict[str, str | int]:
    """Render and write one image of the demo line, and its mask; gives its row."""
    rng = np.random.default_rng((seed, split == "test", index))
    defect = DEFECTS[index // 2 % len(DEFECTS)] if split == "test" and index % 2 else ""
    # Products advance by one after each round of defects, so that every product meets every defect.
    turn = index if split == "train" else index // 2
    product = (turn + (turn // len(DEFECTS) if defect else 0)) % len(_PRODUCTS)
    while defect == "missing hole" and _PRODUCTS[product][0] not in WITH_HOLES:
        product = (product + 1) % len(_PRODUCTS)
    part, material = _PRODUCTS[product]
    caption = f"a photo of {'an' if material[0] in 'aeiou' else 'a'} {material} {part}"
    sample = render(rng, size=size, part=part, material=material, defect=defect, caption=caption, design=1000 * seed + product)
    name = f"{split}_{index:04d}.png"
    write_png(directory / "images" / name, sample.image)
    if sample.defect_mask.any():
        write_png(directory / "masks" / name, sample.defect_mask.astype(np.uint8) * 255)
    mask = f"masks/{name}" if sample.defect_mask.any() else ""
    return {"file_name": f"images/{name}", "text": caption, "split": split, "label": int(bool(defect)), "defect": defect, "mask": mask}

