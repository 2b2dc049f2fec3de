"""Captions turned into words for flawless and for defective states of what they name.

Lineage: the compositional prompt ensemble of WinCLIP (Jeong et al., CVPR 2023), in our own words.
"""

from __future__ import annotations

import re

_PICTURE = re.compile(r"^\s*(?:(?:an?|the|one)\s+)?(?:[\w-]+\s+)?(?:photo|photograph|picture|image|close-up|closeup|shot|view)s?\s+of\s+", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:an?|the|one)\s+", re.IGNORECASE)

FLAWLESS = ("{a} {thing}", "a flawless {thing}", "a perfect {thing}", "an intact {thing}", "an undamaged {thing}", "a new {thing}", "{a} {thing} without any defect")
DEFECTIVE = (
    "a damaged {thing}", "a defective {thing}", "a broken {thing}", "a scratched {thing}", "a cracked {thing}", "a stained {thing}",
    "{a} {thing} with a flaw", "{a} {thing} with a missing piece",
)  # fmt: skip
SHOWN = ("{state}", "a photo of {state}", "a close-up of {state}", "an inspection image of {state}", "a photo of {state} on the line")


def thing_of(caption: str) -> str:
    """What a caption names: `steel nut` of `a photo of a steel nut`; the caption itself where nothing is left."""
    return _ARTICLE.sub("", _PICTURE.sub("", caption)).strip(" .") or caption.strip()


def prompts(caption: str, states: tuple[str, ...]) -> list[str]:
    """Every state of what a caption names, shown in every way; braces in the caption are text."""
    thing = thing_of(caption)
    a = "an" if thing[:1].lower() in "aeiou" else "a"
    said = [state.format(a=a, thing=thing) for state in states]
    return [shown.format(state=state) for state in said for shown in SHOWN]
