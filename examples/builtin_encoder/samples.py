"""What the built-in encoder is trained on: images with captions, and what each of their patches shows.

Half of the samples are surfaces of one material that fill the frame and parts of one material on another, made of photographs
(`materials`); the other half are scenes of the line. Nearly half have a drawn defect, from barely visible to gross. Without
photographs, all are scenes of the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from materials import part, surface

from cmgcli import defects, line
from cmgcli.builtin import UNKNOWN
from cmgcli.dataset import read_dataset
from cmgcli.images import read_image

SIZE = 224
RIM = 2  # pixels at the edge of a photograph that may be paler than the rest
# Kinds of defects, each with what it is called: things, then properties.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "scratch": (("a scratch", "a long scratch", "scratches"), ("scratched",)),
    "crack": (("a crack", "a hairline crack", "a fracture"), ("cracked", "fractured")),
    "chip": (("a chip", "a broken edge", "a missing piece", "a break"), ("chipped", "broken")),
    "pits": (("pits", "a blowhole", "pores", "pitting"), ("pitted", "porous")),
    "stain": (("a stain", "a spot", "a dirt spot"), ("stained", "dirty")),
    "smear": (("a smear", "a smudge"), ("smeared", "smudged")),
    "dent": (("a dent", "a bump"), ("dented",)),
    "uneven": (("an uneven patch", "an uneven finish"), ("uneven",)),
    "blur": (("a blurred patch",), ("blurred",)),
    "fibre": (("a fibre", "a hair", "a thread"), ("frayed", "fuzzy")),
    "cut-paste": (("a misplaced piece", "a foreign body"), ("contaminated",)),
    "blend": (("a discoloured patch", "a patch of another material"), ("discoloured",)),
    "scuff": (("a scuff", "a worn edge", "abrasion"), ("scuffed", "worn")),
    "missing print": (("a missing print", "a bare patch"), ("incomplete",)),
    "missing hole": (("a missing hole",), ("incomplete",)),
}  # fmt: skip
KIND_NAMES = tuple(KINDS)
ANY_DEFECT = (("a defect", "a flaw", "damage", "a fault"), ("defective", "damaged", "faulty", "flawed"))
FLAWLESS_WORDS = ("flawless", "perfect", "intact", "undamaged", "new", "faultless")
_SURFACE = (
    "{thing}", "{thing} surface", "a photo of {thing}", "a close-up of {thing}", "a surface of {thing}", "inspection image of {thing}", "an image of {thing}",
    "a {thing} surface", "{thing} texture", "a good picture of a {thing} surface", "the surface of {thing}, seen from above",
)  # fmt: skip
_PIECE = (
    "a piece of {thing}", "{thing} part", "a part made of {thing}", "a photo of a {thing} part", "a cut piece of {thing}", "a {thing} {shape}", "{thing} {shape}",
    "a photo of a {thing} {shape}", "a {shape} made of {thing}", "a {shape} of {thing}",
)  # fmt: skip
UNNAMED = 0.25  # share of the captions of parts in which it does
_ON = ("{piece} on {ground}", "{piece} lying on {ground}", "{piece}, {ground} behind it")


@dataclass(frozen=True)
class Samples:
    """N samples.

    images: (N, S, S, 3) uint8 RGB. areas: (N, S, S) uint8, 1 where the object is, 2 where its defect is, 0 elsewhere.
    part: (N,) index into `line.PARTS`, -1 without one. front, back: (N,) index into the names of stuff (`stuff_of`) of what the object and what its
    surroundings are made of. kind: (N,) index into `KIND_NAMES`, -1 where flawless. pair: (N,) the same number for the same
    object. unnamed: (N,) whether the captions name the object in unknown words. good, bad: N captions that call the object flawless, or say nothing of its state; that say it has a defect, its own if it has.
    """

    images: np.ndarray
    areas: np.ndarray
    part: np.ndarray
    front: np.ndarray
    back: np.ndarray
    kind: np.ndarray
    pair: np.ndarray
    unnamed: np.ndarray
    good: list[str]
    bad: list[str]


@dataclass(frozen=True)
class Photo:
    """A photograph of a material."""

    image: np.ndarray
    category: str


def read_photos(directory: Path) -> tuple[list[Photo], list[Photo]]:
    """The photographs of ``directory/metadata.csv``, to train on and, every tenth of them, held out."""
    records = read_dataset(directory, directory / "metadata.csv").records
    photos = [Photo(read_image(record.path)[RIM:-RIM, RIM:-RIM], record.text) for record in records]
    order = np.random.default_rng(1).permutation(len(photos))
    photos = [photos[i] for i in order]
    return photos[len(photos) // 10 :], photos[: len(photos) // 10]


def stuff_of(photos: Sequence[Photo]) -> tuple[str, ...]:
    """The names of all that a patch may be made of."""
    return tuple(dict.fromkeys((*line.MATERIALS, *sorted({photo.category for photo in photos}), *line.BACKGROUNDS)))


def held_out(part_name: str, material: str) -> bool:
    """Every tenth (part, material) pair of the line never appears in training."""
    return (line.PARTS.index(part_name) * 7 + line.MATERIALS.index(material) * 3) % 10 == 0


def render(count: int, seed: int, photos: Sequence[Photo], stuff: Sequence[str], *, held: str = "") -> Samples:
    """``count`` samples, of which half show photographs, where there are any.

    held: "" for training; "flawless" or "defects" for held-out pairs of the line, without defects and with captions that say
    nothing of a state, or as in training.
    """
    rng, rows = np.random.default_rng(seed), []
    while len(rows) < count:
        if photos and rng.random() < 0.5:
            rows.append(_of_photos(photos, stuff, rng))
        elif (row := _of_line(stuff, rng, held)) is not None:
            rows.append(row)
    texts = {name: [row[name] for row in rows] for name in ("good", "bad")}
    return Samples(**texts, **{name: np.stack([row[name] for row in rows]) for name in rows[0] if name not in texts})


def _of_line(stuff: Sequence[str], rng: np.random.Generator, held: str) -> dict | None:
    name, material = str(rng.choice(line.PARTS)), str(rng.choice(line.MATERIALS))
    if held_out(name, material) != bool(held):
        return None
    missing = held != "flawless" and name in line.WITH_HOLES and rng.random() < 0.06
    scene = line.render(rng, size=SIZE, part=name, material=material, defect="missing hole" if missing else "", harsh=bool(rng.random() < 0.6))
    image, flaw, kind = scene.image, scene.defect_mask, "missing hole" if missing else ""
    if not missing and held != "flawless" and rng.random() < 0.42:
        drawn = defects.draw(image, rng, allowed=scene.object_mask)
        image, flaw, kind = drawn.image, drawn.mask, drawn.kind
    pair = line.PARTS.index(name) * len(line.MATERIALS) + line.MATERIALS.index(material)
    places = line.PARTS.index(name), stuff.index(material), stuff.index(scene.background)
    caption, unnamed = scene.caption, not held and bool(rng.random() < UNNAMED)
    if unnamed:
        which = rng.random()  # the part, the material or both
        caption = line.describe(name if which < 0.2 else _unknown(rng), material if which > 0.6 else _unknown(rng), scene.background, rng)
    row = _row(image, scene.object_mask, flaw, kind, places, pair, caption, unnamed, rng)
    return row | {"good": scene.caption} if held == "flawless" else row


def _unknown(rng: np.random.Generator) -> str:
    """One to three words, or pieces of words, that mean nothing."""
    return " ".join([UNKNOWN] * int(rng.integers(1, 4)))


def _of_photos(photos: Sequence[Photo], stuff: Sequence[str], rng: np.random.Generator) -> dict:
    front, back = (photos[int(rng.integers(len(photos)))] for _ in range(2))
    unnamed = False
    if rng.random() < 0.5:
        image, mask, back = surface(front.image, rng, SIZE), np.ones((SIZE, SIZE), bool), front
        caption = str(rng.choice(_SURFACE)).format(thing=front.category)
    else:
        others = [photos[int(i)].image for i in rng.integers(len(photos), size=int(rng.choice((0, 0, 1, 2))))]
        image, mask, shape = part(front.image, back.image, rng, SIZE, others)
        unnamed = bool(rng.random() < UNNAMED)
        thing, shape = (_unknown(rng), shape if rng.random() < 0.5 else _unknown(rng)) if unnamed else (front.category, shape)
        caption = str(rng.choice(_PIECE)).format(thing=thing, shape=shape)
        if rng.random() < 0.4:
            caption = str(rng.choice(_ON)).format(piece=caption, ground=back.category)
    flaw, kind = np.zeros((SIZE, SIZE), bool), ""
    if rng.random() < 0.5:
        drawn = defects.draw(image, rng, allowed=mask)
        image, flaw, kind = drawn.image, drawn.mask, drawn.kind
    pair = 100_000 + stuff.index(front.category)
    return _row(image, mask, flaw, kind, (-1, stuff.index(front.category), stuff.index(back.category)), pair, caption, unnamed, rng)


def _row(
    image: np.ndarray,
    mask: np.ndarray,
    flaw: np.ndarray,
    kind: str,
    places: tuple[int, int, int],
    pair: int,
    caption: str,
    unnamed: bool,
    rng: np.random.Generator,
) -> dict:
    """One row of `Samples`: image (S, S, 3) uint8, masks (S, S) bool of the object and of its defect; places: part, front and back."""
    said = kind or KIND_NAMES[int(rng.integers(len(KIND_NAMES)))]
    return {
        "images": image,
        "areas": np.where(flaw, np.uint8(2), mask.astype(np.uint8)),
        "part": np.int64(places[0]),
        "front": np.int64(places[1]),
        "back": np.int64(places[2]),
        "kind": np.int64(KIND_NAMES.index(kind) if kind else -1),
        "pair": np.int64(pair),
        "unnamed": np.int64(unnamed),
        "good": good_caption(caption, rng),
        "bad": bad_caption(caption, said, rng),
    }


def good_caption(caption: str, rng: np.random.Generator) -> str:
    """The caption as it is, or one that calls its object flawless."""
    if rng.random() < 0.5:
        return caption
    word = str(rng.choice(FLAWLESS_WORDS))
    if rng.random() < 0.6:
        return _with_word(caption, word)
    return str(rng.choice(("{c} without any defect", "{c}, {w}", "{w}: {c}", "{c}, no defect"))).format(c=caption, w=word)


def bad_caption(caption: str, kind: str, rng: np.random.Generator) -> str:
    """The caption of an object with a defect of that kind, now and then without saying which."""
    things, words = ANY_DEFECT if rng.random() < 0.25 else KINDS[kind]
    thing, word = str(rng.choice(things)), str(rng.choice(words))
    if rng.random() < 0.4:
        return _with_word(caption, word)
    return str(rng.choice(("{c} with {t}", "{c}, {w}", "damaged, {t}: {c}", "{c}, defective, {t}", "{t} on {c}"))).format(c=caption, t=thing, w=word)


def _with_word(caption: str, word: str) -> str:
    """The property put before what the caption names: `a photo of a scratched brass gear on a bench`."""
    thing, on, ground = caption.partition(" on ")
    words = thing.split()
    heads = [i for i, each in enumerate(words) if each in ("a", "an", "the", "one")]
    if not heads:
        return f"{word} {caption}"
    if words[heads[-1]] in ("a", "an"):
        words[heads[-1]] = "an" if word[0] in "aeiou" else "a"
    return " ".join([*words[: heads[-1] + 1], word, *words[heads[-1] + 1 :]]) + on + ground
