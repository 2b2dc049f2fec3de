"""Cross-modal Entropy Reduction: which patches carry the match with the caption, and which may be discarded.

Pure tensors in and out. The functions get the model as a callable ``match(rows, keep) -> scores``: ``rows`` (b,) int64 are the numbers
of some of its ``B`` images, ``keep`` (b, P) bool with the same number of True in every row, the scores (b,) are
``s(K) = cos(f(x restricted to K), g(c))``. Grids are ``(h, w)`` with ``P = h * w``, row by row.

Relevance ``R`` (B, P) says how much a patch adds to the match. Occlusion goes back to Zeiler & Fergus (ECCV 2014), random
sets to RISE (Petsiuk et al., BMVC 2018); both here remove tokens where those paint pixels. Withdrawing a window step by step is integrated
gradients (Sundararajan et al., ICML 2017), of what a patch counts in place of its pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cmgcli.errors import SettingsError

Match = Callable[[Tensor, Tensor], Tensor]
Slope = Callable[[Tensor], Tensor]  # from how often each patch counts, (P,), 1 once, to the derivative (B, P) of each image's match by that
Nested = Callable[[Sequence[int]], Tensor]  # from counts to (B, counts): the match of so many of the most relevant patches of each image

MATCH_FLOOR, GAIN_FLOOR = 0.16, 0.055  # of the built-in encoder's cosines; `tests/benchmarks/keep_rule.py` prints what they go by
WINDOW = 3  # patches a side, that are hidden together
FEWEST_PAIRS, MOST_PAIRS = 8, 20
LATE, LATE_SHARE = 1 / 3, 3 / 4  # Radau's rule of two points over [0, 1]: what it reads at 1 has the rest
SETS, APART = 6, 2  # of tiles, so that those of one set lie at least a knight's move apart
TOLERANCE = 0.17  # of the range of a match over the sizes
KEEP_SIZES = (0.08, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.575, 0.65, 0.725, 0.8, 0.9, 1.0)
FEW_KEEP_SIZES = (0.1, 0.2, 0.4, 1.0)  # that are measured where each of them costs a pass; the match at the others is read between them


@dataclass(frozen=True)
class SampledRelevance:
    """Relevance of each patch and how sure it is: standard deviation of the mean."""

    relevance: Tensor  # (B, P) float32
    standard_error: Tensor  # (B, P) float32
    pairs: Tensor  # (B,) int64, how many it took


def occlusion(match: Match, rows: Tensor, grid: tuple[int, int], *, window: int = WINDOW, stride: int = 1) -> Tensor:
    """Relevance (B, P) by sliding a window: the mean drop in the match over the windows that hide a patch.

    The exact reference of the other estimators. Costs one pass per window, about ``P / stride**2``.

    Args:
        rows: (B,) int64, the numbers of the images.
        window, stride: in patches; the last window of a row is moved in, so that every patch is covered.
    Raises:
        SettingsError: the stride would leave patches uncovered.
    """
    if not 1 <= stride <= window:
        raise SettingsError(f"occlusion: expected 1 <= stride <= window, got stride {stride} and window {window}")
    h, w = grid
    batch = len(rows)
    full = match(rows, torch.ones(batch, h * w, dtype=torch.bool, device=rows.device))  # (B,)
    drop = torch.zeros(batch, h * w, device=rows.device)
    times = torch.zeros(h * w, device=rows.device)
    tall, wide = min(window, h), min(window, w)
    if tall * wide == h * w:
        raise SettingsError(f"occlusion: a window of {window} hides the whole {h} x {w} grid; choose a smaller one")
    for top, left in corners(grid, window, stride):
        hidden = torch.zeros(h, w, dtype=torch.bool, device=rows.device)
        hidden[top : top + tall, left : left + wide] = True
        hidden = hidden.flatten()
        seen = match(rows, (~hidden).expand(batch, -1))
        drop[:, hidden] += (full - seen).unsqueeze(1)
        times[hidden] += 1
    return drop / times


def corners(grid: tuple[int, int], window: int = WINDOW, stride: int = 1) -> list[tuple[int, int]]:
    """The top left patches of the windows of `occlusion`, each of which costs a pass."""
    return list(itertools.product(*(_starts(side, min(window, side), stride) for side in grid)))


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = length - window
    return sorted({*range(0, last + 1, stride), last})


def sampled(
    match: Match, rows: Tensor, grid: tuple[int, int], *, pairs: int = MOST_PAIRS, unsettled: float = 0.2, window: int = WINDOW, seed: int = 0
) -> SampledRelevance:
    """Relevance from ``E[s | p seen] - E[s | p hidden]`` over random halves of the grid, each with its complement, and the sum of it over windows.

    Complementary (antithetic) halves cancel what all patches share. The halves are smooth blobs rather than salt and
    pepper, because neighbours matter together. The same halves serve every image, so that a relevance does not depend
    on the batch it was computed in. An image is done when its ranking is settled. Costs two passes over half of the tokens for each pair.

    Args:
        rows: (B,) int64, the numbers of the images.
        pairs: the most for an image.
        unsettled: share of the variance over the patches that may be that of the errors, from 8 pairs on, where the ranking counts as settled.
        window: in patches, at most the grid; see `over_windows`. It makes this the drop of a window, as `occlusion` has it, and averages noise out; 1
            takes each patch by itself.
    Raises:
        SettingsError: fewer than 2 pairs, from which no standard error follows.
    """
    if pairs < 2:
        raise SettingsError(f"sampled: expected at least 2 pairs, got {pairs}")
    h, w = grid
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(len(rows), h * w, device=rows.device)
    squares = torch.zeros_like(mean)  # of what the terms differ from their mean
    times = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    open_rows = torch.arange(len(rows), device=rows.device)
    while len(open_rows) and times[open_rows[0]] < pairs:
        coarse = torch.rand(1, 1, (h + 1) // 2 + 1, (w + 1) // 2 + 1, generator=generator)
        field = F.interpolate(coarse, (h, w), mode="bilinear", align_corners=True).flatten()  # (P,)
        field = field + 1e-3 * torch.rand(h * w, generator=generator)
        seen = torch.zeros(h * w, dtype=torch.bool)
        seen[field.argsort()[: h * w // 2]] = True
        seen = seen.to(rows.device).expand(len(open_rows), -1)
        difference = match(rows[open_rows], seen) - match(rows[open_rows], ~seen)
        term = over_windows(torch.where(seen, difference.unsqueeze(1), -difference.unsqueeze(1)), grid, window)
        times[open_rows] += 1
        off = term - mean[open_rows]
        mean[open_rows] += off / times[open_rows].unsqueeze(1)
        squares[open_rows] += off * (term - mean[open_rows])
        settled = _square_error(squares, times)[open_rows].mean(1) <= unsettled * mean[open_rows].var(1)
        open_rows = open_rows[~(settled & (times[open_rows] >= FEWEST_PAIRS))]
    return SampledRelevance(mean, _square_error(squares, times).sqrt(), times)


def _square_error(squares: Tensor, times: Tensor) -> Tensor:
    """Square of the standard error (B, P) of means over ``times`` (B,) terms, from the sum of squares of their deviations."""
    return squares / (times * (times - 1)).clamp(min=1).unsqueeze(1)


def withdrawn(slope: Slope, grid: tuple[int, int], *, window: int = WINDOW) -> Tensor:
    """Relevance (B, P) from sets of windows that are withdrawn, by the derivative on the way: nearly `occlusion` at an eighth of its cost.

    The drop of a window is the integral of the derivative while its patches count less and less. Tiles of a window's size fall into sets whose
    members lie apart. The derivative is read where all patches count once, for all tiles together, and where those of one set count a third,
    for them; Radau's rule joins the two. Exact where the match is of the third degree in how often patches count, and what one tile is worth
    does not depend on the others. Costs ``1 + SETS`` passes, each with the way back.

    Args:
        slope: the derivative (B, P) of each image's match by how often patches count, at counts (P,) float32 on the CPU.
        window: in patches; see `over_windows`.
    """
    h, w = grid
    down, right = torch.arange(h) // window, torch.arange(w) // window
    member = ((down.unsqueeze(1) + APART * right) % SETS).flatten()  # (P,)
    worth = (1 - LATE_SHARE) * slope(torch.ones(h * w))
    for number in range(SETS):
        chosen = member == number
        if chosen.any():
            late = slope(torch.where(chosen, LATE, 1.0))
            worth = worth + LATE_SHARE * late * chosen.to(late.device)
    return over_windows(worth, grid, window)


def fast(dense: Tensor, text: Tensor) -> Tensor:
    """Relevance (B, P) from the forward pass that is made anyway: each patch's own term of the match.

    Where the embedding is the mean of the projected patch tokens, ``s = sum_p <v_p, g> / (P |mean v|)``: the terms add up
    to the match exactly.

    Args:
        dense: (B, P, D) patch tokens in the embedding space, not normalised.
        text: (B, D) unit-norm caption embeddings.
    """
    norm = dense.mean(dim=1).norm(dim=-1, keepdim=True).clamp(min=1e-12)  # (B, 1)
    return torch.einsum("bpd,bd->bp", dense, text) / (norm * dense.shape[1])


def over_windows(worth: Tensor, grid: tuple[int, int], window: int = WINDOW) -> Tensor:
    """The mean (B, P) over all windows, in patches and at most the grid, that hide a patch, of what their patches (B, P) are worth together.

    Of the derivative that `Encoder.encode_with_worth` gives it makes a relevance: `occlusion` at a stride of one, the drop of each window
    taken to first order, for any tower that can weigh its patches, at the cost of one backward pass.
    """
    kernel = worth.new_ones(1, 1, min(window, grid[0]), min(window, grid[1]))
    drops = F.conv2d(worth.view(-1, 1, *grid), kernel)  # of each window
    return (F.conv_transpose2d(drops, kernel) / F.conv_transpose2d(torch.ones_like(drops), kernel)).flatten(1)


def entropy(relevance: Tensor, keep: Tensor | None = None) -> Tensor:
    """Entropy ``H(R)`` in bits (B,) of the positive part of the relevance, normalised to sum 1, over the kept patches.

    A relevance that is nowhere positive counts as uniform over the kept patches.
    """
    keep = torch.ones_like(relevance, dtype=torch.bool) if keep is None else keep
    positive = relevance.clamp(min=0) * keep
    empty = positive.sum(dim=1, keepdim=True) <= 0
    positive = torch.where(empty, keep.to(relevance.dtype), positive)
    share = positive / positive.sum(dim=1, keepdim=True)
    return (share * -share.clamp(min=1e-30).log2()).sum(dim=1)


def top_patches(relevance: Tensor, count: int) -> Tensor:
    """(B, P) bool, True for the ``count`` most relevant patches of each row; ties go to the lower patch number."""
    order = relevance.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(relevance, dtype=torch.bool).scatter(1, order, True)


def nested_by(match: Match, relevance: Tensor) -> Nested:
    """The matches of nested sets, each by a pass; relevance: (B, P)."""
    rows = torch.arange(len(relevance), device=relevance.device)
    return lambda counts: torch.stack([match(rows, top_patches(relevance, count)) for count in counts], dim=1)


def nested_means(dense: Tensor, text: Tensor, relevance: Tensor) -> Nested:
    """The matches of nested sets without another pass, where the embedding is a mean of tokens: of the mean over each set alone.

    Args:
        dense: (B, P, D) patch tokens in the embedding space. text: (B, D) unit-norm captions. relevance: (B, P).
    """
    order = relevance.argsort(dim=1, descending=True, stable=True)
    sums = dense.gather(1, order.unsqueeze(-1).expand_as(dense)).cumsum(1)  # (B, P, D), one patch after the other: the same in every batch
    return lambda counts: (F.normalize(sums[:, [count - 1 for count in counts]], dim=-1) * text.unsqueeze(1)).sum(-1)


def counts_of(sizes: Sequence[float], patches: int) -> list[int]:
    """How many of so many patches shares of them are, each once, ascending."""
    return sorted({max(1, round(size * patches)) for size in sizes})


def keep_mask(
    nested: Nested,
    relevance: Tensor,
    grid: tuple[int, int],
    *,
    keep: float | str = "auto",
    sizes: Sequence[float] = KEEP_SIZES,
    tolerance: float = TOLERANCE,
    whole: Tensor | None = None,
) -> Tensor:
    """The keep mask (B, P) bool: nearly the best match, and no hole where a defect could fall through.

    ``auto`` evaluates the nested top-k sets of ``sizes``, shares of the grid up to 1, reads the match at the others of `KEEP_SIZES` between
    them, and takes the *largest* whose match is within ``tolerance`` (of the match's own range over the sizes, at least 0.01 in cosine) of
    the best: what does not lower the match may stay, because a part of an object matches its caption as well as the whole, and the rest of
    the object is where a defect may be (``tests/benchmarks/keep_rule.py`` compares it with the smallest set). Images of which ``whole`` (B,)
    bool says that they show nothing to discard keep everything. A number keeps that share. A defect lowers the match of its own patch, so
    the set is then closed, its holes are filled and it is grown by the patches beside, above and below.

    Raises:
        SettingsError: ``keep`` is neither ``auto`` nor in (0, 1].
    """
    patches = grid[0] * grid[1]
    if check_keep(keep) == "auto":
        measured = counts_of(sizes, patches)
        counts = [count for count in counts_of(KEEP_SIZES, patches) if count >= measured[0]]
        matches = _between(nested(measured), measured, counts)  # (B, counts)
        best, worst = matches.amax(1, keepdim=True), matches.amin(1, keepdim=True)
        slack = (tolerance * (best - worst)).clamp(min=0.01)
        within = (matches >= best - slack).to(torch.int8)
        last = len(counts) - 1 - within.flip(1).argmax(dim=1)  # (B,)
        chosen = torch.tensor(counts, device=relevance.device)[last]
        if whole is not None:
            chosen[whole] = patches
    else:
        chosen = torch.full((len(relevance),), max(1, round(keep * patches)), device=relevance.device)
    rank = relevance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # (B, P)
    core = rank < chosen.unsqueeze(1)
    grown = [grow(row.reshape(grid)).ravel() for row in core.cpu().numpy()]
    return torch.from_numpy(np.stack(grown)).to(relevance.device)


def _between(values: Tensor, at: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Values (B, wanted) between those (B, at), by straight lines; ``at`` and ``wanted`` ascend, and nothing is wanted outside."""
    if list(at) == list(wanted):
        return values
    places, asked = torch.tensor(at, device=values.device), torch.tensor(wanted, device=values.device)
    right = torch.searchsorted(places, asked).clamp(min=1)
    share = (asked - places[right - 1]) / (places[right] - places[right - 1])
    return values[:, right - 1] * (1 - share) + values[:, right] * share


def check_keep(keep: float | str) -> float | str:
    """What to keep; SettingsError where it is neither ``auto`` nor a share."""
    if keep == "auto" or isinstance(keep, int | float) and not isinstance(keep, bool) and 0 < keep <= 1:
        return keep
    raise SettingsError(f"keep: expected auto or a share in (0, 1], got {keep!r}")


def with_rim(keep: Tensor, grid: tuple[int, int]) -> Tensor:
    """Keep masks (B, P) bool grown by the patches beside, above and below."""
    masks = keep.view(-1, 1, *grid).float()
    beside, above = F.max_pool2d(masks, (1, 3), 1, (0, 1)), F.max_pool2d(masks, (3, 1), 1, (1, 0))
    return beside.maximum(above).flatten(1) > 0


def grow(core: np.ndarray) -> np.ndarray:
    """Close a patch mask (h, w) bool, fill its holes and grow it by the patches beside, above and below."""
    square, cross = np.ones((3, 3), np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    padded = np.pad(core.astype(np.uint8), 2)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, square)
    outside = closed.copy()
    cv2.floodFill(outside, None, (0, 0), 1)
    filled = closed | (1 - outside)
    return cv2.dilate(filled, cross)[2:-2, 2:-2].astype(bool)
