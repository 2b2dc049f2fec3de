"""The scenes the method is for: parts that lie anywhere on real materials among clutter, with captions that say what lies on what.

Every other part is a photograph of a real magnetic tile, with its real defect; the others are cut out of photographs of materials,
with drawn defects. Training scenes show training tiles only, test scenes test tiles only.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cmgcli import defects
from cmgcli.camera import photograph
from cmgcli.dataset import Record, read_dataset, test_records, training_records
from cmgcli.images import read_image, read_mask, write_png
from cmgcli.line import Sample
from cmgcli.surfaces import scatter

SIZE = 256
TILE = ("grey", "magnetic tile")
PRODUCTS = (TILE, ("cork", "disc"), TILE, ("marble", "plate"), TILE, ("rubber", "ring"))  # material, part; in turn
GROUNDS = ("wood", "concrete", "fabric", "metal")
KINDS = ("scratch", "crack", "stain", "chip")  # drawn
COVERS = 0.10, 0.35  # share of the picture that a part may cover, as far as it fits in
VISIBLE = 0.002  # share of its part that a defect covers at least: what is smaller is lost where the part is laid small
SIDE = 160  # pixels of a part that is cut out, before it is laid
RIM = 2  # pixels at the edge of a photograph that may be paler than the rest


@dataclass(frozen=True)
class Piece:
    """A part before it is laid: image (h, w, 3) uint8 RGB, shape (h, w) bool, flaw (h, w) bool, the flaw's name or ""."""

    image: np.ndarray
    shape: np.ndarray
    flaw: np.ndarray
    defect: str = ""


@dataclass(frozen=True)
class Stock:
    """What scenes are made of."""

    train: tuple[Record, ...]  # normal tiles
    good: tuple[Record, ...]  # to test on
    bad: tuple[Record, ...]
    photos: Mapping[str, Sequence[np.ndarray]]  # category: seamless photographs (h, w, 3) uint8


def read_stock(tiles: Path, materials: Path) -> Stock:
    """The tiles of ``tiles/metadata.csv`` and the photographs of ``materials/metadata.csv``, whose text is the category.

    Of the defective tiles only those whose mask covers at least `VISIBLE`. Raises ValueError where a category or a kind of tile is missing.
    """
    records = read_dataset(tiles, tiles / "metadata.csv").records
    test = test_records(records)
    good = tuple(record for record in test if not record.label)
    bad = tuple(record for record in test if record.label and record.mask and read_mask(record.mask).mean() >= VISIBLE)
    stock = Stock(training_records(records), good, bad, _read_photos(materials))
    if not (stock.train and stock.good and stock.bad):
        raise ValueError(f"{tiles}: expected normal training tiles, and normal and defective test tiles with a mask")
    return stock


def _read_photos(materials: Path) -> dict[str, list[np.ndarray]]:
    photos: dict[str, list[np.ndarray]] = {}
    for record in read_dataset(materials, materials / "metadata.csv").records:
        photos.setdefault(record.text, []).append(read_image(record.path)[RIM:-RIM, RIM:-RIM])
    wanted = {*GROUNDS, *(material for material, _ in PRODUCTS if material != TILE[0])}
    if missing := wanted - photos.keys():
        raise ValueError(f"{materials}: no photograph of {', '.join(sorted(missing))}; expected at least one with each as its text")
    return photos


def write_scenes(folder: Path, stock: Stock, *, train: int, test: int, seed: int) -> Path:
    """Write ``images/``, ``masks/`` and ``metadata.csv`` as `line.write_line` does; gives the path of the CSV file."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("file_name", "text", "split", "label", "defect", "mask"))
        for split, count in (("train", train), ("test", test)):
            for index in range(count):
                name, sample = f"{split}_{index:04d}.png", scene(stock, seed, split, index)
                write_png(folder / "images" / name, sample.image)
                if sample.defect:
                    write_png(folder / "masks" / name, sample.defect_mask.astype(np.uint8) * 255)
                mask = f"masks/{name}" if sample.defect else ""
                writer.writerow((f"images/{name}", sample.caption, split, int(bool(sample.defect)), sample.defect, mask))
    return folder / "metadata.csv"


def scene(stock: Stock, seed: int, split: str, index: int) -> Sample:
    """One scene, always the same for the same arguments; every other test scene is defective, and products take turns."""
    rng = np.random.default_rng((seed, split == "test", index))
    defective = split == "test" and index % 2 == 1
    material, part = PRODUCTS[(index if split == "train" else index // 2) % len(PRODUCTS)]
    if (material, part) == TILE:
        pool = stock.train if split == "train" else stock.bad if defective else stock.good
        piece = tile(pool[np.random.default_rng(seed).permutation(len(pool))[index % len(pool)]])
    else:
        of_material = stock.photos[material]
        piece = cut(of_material[seed % len(of_material)], part, rng, defective=defective)  # all are cut from the same photograph
    background = str(rng.choice(GROUNDS))
    picture, light = ground(_any(stock.photos[background], rng), rng, SIZE), rng.uniform(0, 2 * np.pi)
    scatter(picture, rng, int(rng.choice((0, 2, 5, 10))))
    for _ in range(int(rng.integers(3))):
        category = str(rng.choice(sorted(stock.photos)))
        other = cut(_any(stock.photos[category], rng), str(rng.choice(("disc", "plate", "ring"))), rng, defective=False)
        picture, _, _ = lay(picture, other, rng, light, inside=False)
    picture, shape, flaw = lay(picture, piece, rng, light, inside=True)
    caption = f"a photo of a {material} {part} on {background}"
    return Sample(photograph(picture, rng), shape, flaw, caption, part, material, background, piece.defect)


def _any(photos: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    return photos[int(rng.integers(len(photos)))]


def tile(record: Record) -> Piece:
    """A tile as it was photographed, with its real defect if it has one."""
    image = read_image(record.path)
    flaw = np.zeros(image.shape[:2], bool) if record.mask is None or not record.label else read_mask(record.mask)
    return Piece(image, np.ones(image.shape[:2], bool), flaw, record.defect if record.label else "")


def cut(photo: np.ndarray, part: str, rng: np.random.Generator, *, defective: bool) -> Piece:
    """A disc, plate or ring of a material, with a drawn defect that covers at least `VISIBLE` of it, unless six tries bring only less."""
    image, shape = ground(photo, rng, SIDE), _outline(part)
    if not defective:
        return Piece(image, shape, np.zeros_like(shape))
    kind = str(rng.choice(KINDS))
    for _ in range(6):
        drawn = defects.draw(image, rng, allowed=shape, kind=kind, strength=rng.uniform(0.4, 1))
        if drawn.mask.sum() >= VISIBLE * shape.sum():
            break
    return Piece(drawn.image, shape, drawn.mask, f"drawn {kind}")


def _outline(part: str) -> np.ndarray:
    """(SIDE, SIDE) bool."""
    mask, half = np.zeros((SIDE, SIDE), np.uint8), SIDE // 2
    if part == "plate":
        mask[SIDE // 6 : -(SIDE // 6), 2:-2] = 1
    else:
        cv2.circle(mask, (half, half), half - 2, 1, -1)
    if part == "ring":
        cv2.circle(mask, (half, half), half // 2, 0, -1)
    return mask > 0


def ground(photo: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """A square (size, size, 3) uint8 of a seamless photograph: from a random place of it, enlarged 1 to 2 times, in a random quarter turn."""
    reach = np.arange(round(size / rng.uniform(1, 2)))
    rows, columns = ((int(rng.integers(side)) + reach) % side for side in photo.shape[:2])
    square = cv2.resize(photo[np.ix_(rows, columns)], (size, size), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(np.rot90(square, int(rng.integers(4))))


def lay(
    picture: np.ndarray, piece: Piece, rng: np.random.Generator, light: float, *, inside: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay a piece on a picture (S, S, 3) uint8, turned and scaled at random, with its shadow.

    light: the angle in radians where it comes from. inside: wholly in the picture; else it reaches in from the border.
    Returns the picture and the masks (S, S) bool of the piece and of its flaw.
    """
    size = len(picture)
    scale = size * np.sqrt(np.exp(rng.uniform(*np.log(COVERS))) / piece.shape.sum())
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    half = np.abs(turn) @ (np.array(piece.shape.shape[::-1]) / 2)  # of the box around it, (x, y)
    scale = min(scale, 0.48 * size / half.max())
    if inside:
        centre = rng.uniform(scale * half + 2, size - scale * half - 2)
    else:
        away = rng.uniform(0, 2 * np.pi)
        centre = size / 2 + size * rng.uniform(0.55, 0.75) * np.array([np.cos(away), np.sin(away)])
    image, shape, flaw = (_warped(each, scale, turn, centre, size) for each in (piece.image, piece.shape, piece.flaw))
    alpha = cv2.GaussianBlur(shape, (0, 0), 0.7)[..., None]
    reach = np.array([np.cos(light), np.sin(light)]) * rng.uniform(2, 6)
    shifted = cv2.warpAffine(shape, np.float32([[1, 0, -reach[0]], [0, 1, -reach[1]]]), (size, size))
    shadow = 1 - rng.uniform(0.3, 0.6) * cv2.GaussianBlur(shifted, (0, 0), rng.uniform(2, 5))[..., None]
    laid = image * alpha + picture * shadow * (1 - alpha)
    return np.clip(laid + 0.5, 0, 255).astype(np.uint8), shape > 0.5, flaw > min(0.25, flaw.max() / 2)


def _warped(array: np.ndarray, scale: float, turn: np.ndarray, centre: np.ndarray, size: int) -> np.ndarray:
    """An image (h, w, 3) or a mask (h, w), shrunk by area, turned about its middle and moved to `centre`, as float32 of the picture's size."""
    height, width = array.shape[:2]
    small = max(1, round(width * scale)), max(1, round(height * scale))
    scaled = cv2.resize(array.astype(np.float32), small, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    pose = np.column_stack([turn, centre - 0.5 - turn @ ((np.array(small) - 1) / 2)])  # a pixel is where its middle is
    border = cv2.BORDER_REPLICATE if array.ndim == 3 else cv2.BORDER_CONSTANT
    return cv2.warpAffine(scaled, pose, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)
