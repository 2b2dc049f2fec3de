"""Captions of the procedural line: the words for its parts, materials and backgrounds, and the sentences around them."""

import numpy as np

from cmgcli.parts import FRAME_FILLING

_PART_WORDS = {
    "hex nut": ("hex nut", "hexagonal nut", "nut"), "washer": ("washer", "flat washer", "plain washer"),
    "gear": ("gear", "gear wheel", "cogwheel"), "bolt": ("bolt", "hex bolt", "threaded bolt"),
    "bearing": ("bearing", "ball bearing"), "bracket": ("bracket", "angle bracket", "L-shaped bracket"),
    "flange": ("flange", "pipe flange", "round flange"), "spring": ("spring", "coil spring"),
    "bottle cap": ("bottle cap", "crown cap", "cap"), "circuit board": ("circuit board", "PCB", "printed circuit board"),
    "key": ("key", "door key"), "connector": ("connector", "plug connector", "pin connector"),
    "seal ring": ("seal ring", "O-ring", "sealing ring"), "pipe elbow": ("pipe elbow", "elbow fitting", "pipe bend"),
    "tag": ("tag", "label", "barcode tag"), "impeller": ("impeller", "fan wheel", "rotor"), "hinge": ("hinge", "door hinge"),
    "chain link": ("chain link", "link plate"), "shaft": ("shaft", "turned shaft", "stepped shaft"),
    "pulley": ("pulley", "spoked pulley", "belt pulley"), "grille": ("grille", "perforated plate", "slotted plate"),
    "gasket": ("gasket", "flat gasket", "cover gasket"), "wrench": ("wrench", "spanner", "combination wrench"),
    "tile": ("tile", "square tile", "glazed tile"), "blister pack": ("blister pack", "tablet blister", "pack of tablets"),
    "carton": ("carton", "folding box", "printed carton"), "bottle": ("bottle", "labelled bottle", "bottle with cap"),
    "coin": ("coin", "medal", "stamped coin"), "button": ("button", "four-hole button", "shirt button"),
    "strap": ("strap", "webbing strap", "woven strap"), "chip package": ("chip package", "microchip", "chip with legs"),
    "resistor": ("resistor", "axial resistor", "banded resistor"), "zip": ("zip", "zip fastener", "zipper"),
    "capsule": ("capsule", "medicine capsule", "two-piece capsule"), "sheet": ("sheet", "surface", "plate surface"),
}  # fmt: skip
_MATERIAL_WORDS = {
    "steel": ("steel", "stainless steel", "brushed steel"), "aluminium": ("aluminium", "aluminum"), "rusty iron": ("rusty iron", "rusted", "rusty"),
    "white ceramic": ("white ceramic", "ceramic"), "wood": ("wood", "wooden"), "rubber": ("rubber", "grey rubber"),
    "ground steel": ("ground steel", "finely ground steel"), "zinc": ("zinc", "galvanised", "zinc-coated"),
    "green laminate": ("green laminate", "glass-fibre laminate", "circuit laminate"), "leather": ("leather", "brown leather"),
    "blue fabric": ("blue fabric", "fabric", "woven blue"), "cardboard": ("cardboard", "brown cardboard"),
    "white paper": ("white paper", "paper"), "marble": ("marble", "polished marble", "stone"),
}  # fmt: skip
_BACKGROUND_WORDS = {
    "grey belt": ("a grey belt", "a plain grey belt"), "dark conveyor belt": ("a dark conveyor belt", "a black ribbed belt"),
    "wooden bench": ("a wooden bench", "a wooden table"), "concrete floor": ("a concrete floor", "concrete"),
    "cutting mat": ("a green cutting mat", "a cutting mat with a grid"),
    "perforated tray": ("a perforated tray", "a metal tray with holes"),
    "newspaper": ("a newspaper", "printed paper"), "blue cloth": ("a blue cloth", "blue fabric"),
    "light table": ("a white light table", "a bright white table"), "dark foam": ("dark foam", "black foam with pits"),
    "cardboard sheet": ("a sheet of cardboard", "brown cardboard"),
}  # fmt: skip
_TEMPLATES = (
    "{thing}", "{a} {thing}", "a photo of {a} {thing}", "an image of {a} {thing}", "a close-up of {a} {thing}", "one {thing}",
    "a picture of the {thing}", "inspection image of {a} {thing}", "{part}, {material}", "{a_part} made of {material}",
    "product: {thing}", "a good photo of {a} {thing}", "{a} {thing} on the line", "the {thing}", "{part} ({material})",
    "{material}: {part}", "{a_part} in {material}", "this is {a} {thing}", "a cropped photo of the {thing}", "photo {number}, {thing}",
    "inspection picture number {number} of {a} {thing}, top view", "station {number}, camera view of {a} {thing}",
    "{a} {thing} as it comes from production", "order {number}: {a} {thing}, to be checked", "{thing}, part number {number}",
    "the camera sees {a} {thing} from above",
)  # fmt: skip
_PLACED = (
    "{a} {thing} on {place}", "a photo of {a} {thing} lying on {place}", "{thing}, {place}", "{a} {thing} seen from above on {place}",
    "on {place}: {a} {thing}", "{a_part} made of {material} on {place}", "the {thing} lies on {place}", "picture {number}, {thing} on {place}",
)  # fmt: skip


def describe(part: str, material: str, background: str, rng: np.random.Generator) -> str:
    """A caption in varied wording; about a quarter of the captions name the background too, where it can be seen.

    A name that is none of the line's own is used as it is.
    """
    placed = rng.random() < 0.25 and part not in FRAME_FILLING
    template = str(rng.choice(_PLACED if placed else _TEMPLATES))
    noun = str(rng.choice(_PART_WORDS.get(part, (part,))))
    adjective = material if "{material}" in template else str(rng.choice(_MATERIAL_WORDS.get(material, (material,))))
    return template.format(
        thing=f"{adjective} {noun}", a=_article(adjective), part=noun, a_part=f"{_article(noun)} {noun}", material=adjective,
        place=str(rng.choice(_BACKGROUND_WORDS.get(background, (background,)))), number=int(rng.integers(1, 1000)),
    )  # fmt: skip


def _article(word: str) -> str:
    return "an" if word[0] in "aeiouO" else "a"
