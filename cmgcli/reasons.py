"""What decided a score, in words: by how much each part lies above what a typical good image has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cmgcli.detector import PARTS, Blend
from cmgcli.rows import Row

CLEAR_SHARE = 0.5  # of what an image has above a typical good one, from which on one part counts as what decided

PART_NAMES = {"image_score": "whole image", "patch_score": "patches", "head_score": "defect head", "state_score": "defect words"}

_MEANINGS = {
    "image_score": "it lies unusually far from its caption",
    "patch_score": "some are unlike those of most good parts",
    "head_score": "it sees more in the pixels than usual",
    "state_score": "what is shown matches them better than usual",
}


def excess_of(blend: Blend, row: Row) -> dict[str, float]:
    """By how much each part of a row's score lies above what a typical good image has, in squares, of which the score is the root.

    The defect words have no column: they are what the others leave of the score.
    """
    squares = blend.squares(np.array([getattr(row, name, None) for name in PARTS], np.float64))  # (4,), None becomes NaN
    squares[np.isnan(squares)] = max(0.0, row.score**2 - np.nansum(squares))
    above = squares - blend.squares(blend.location)
    return {name: float(above[k]) for k, name in enumerate(PARTS) if blend.counts[k]}


def reason(excess: Mapping[str, float]) -> str:
    """What decided, in a sentence."""
    decided = _deciding(excess)
    if not decided:
        return "Nothing here is stranger than in a typical good part."
    first = next(iter(decided))
    if _is_clear(decided):
        return f"{decided[first]:.0%} of what it has above a typical good part comes from the {PART_NAMES[first]}: {_MEANINGS[first]}."
    return f"No part alone decides: the {' and the '.join(map(PART_NAMES.get, decided))} add up."


def short_reason(excess: Mapping[str, float]) -> str:
    """The part that decided, or those that add up; empty where nothing is stranger than in a typical good image."""
    decided = _deciding(excess)
    return " + ".join(map(PART_NAMES.get, list(decided)[:1] if decided and _is_clear(decided) else decided))


def _is_clear(shares: Mapping[str, float]) -> bool:
    """Whether one of the parts, by their shares, counts as what decided."""
    return len(shares) == 1 or max(shares.values()) >= CLEAR_SHARE


def _deciding(excess: Mapping[str, float]) -> dict[str, float]:
    """The parts above what is usual, the highest first, and the share of each; none where the others make up for it."""
    above = {name: excess[name] for name in sorted(excess, key=excess.get, reverse=True) if excess[name] > 0}
    return {name: value / sum(above.values()) for name, value in above.items()} if sum(excess.values()) > 0 else {}
