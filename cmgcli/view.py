"""One image seen through CMER: the encoder's features of the patches that matter for the caption."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cmgcli import cmer, ranks
from cmgcli.detector import patch_features
from cmgcli.encoder import Encoder, ImageFeatures
from cmgcli.errors import ImageError, SettingsError, check_batch_size
from cmgcli.loader import BATCH, MOST_IN_A_BATCH
from cmgcli.tiles import WHOLE, Box, patch_boxes, tile_boxes, under

TILES_AT_ONCE = 16
RELEVANCE = ("fast", "sampled", "occlusion")
OCCLUSION_STRIDE = 2  # patches
GROUNDS = ("yes", "no", "by image")  # whether images show a ground to discard: all, none, or each tells for itself


@dataclass(frozen=True)
class View:
    """One image as the detector sees it, after CMER: as a whole, and, where it is large, in tiles, each a view of its own."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    text: Tensor  # (D,) embedding of its caption
    relevance: np.ndarray  # (h, w) float32
    keep: np.ndarray  # (h, w) bool
    whole: Tensor  # (D,) unit-norm embedding of the whole image
    embedding: Tensor  # (D,) unit-norm embedding of the kept patches, as all that follow of the pass that sees these and at most a rim around them
    patches: Tensor  # (K, V) features of the kept patches, in the order of their numbers
    dense: Tensor | None  # (K, D) their unit-norm embeddings; None for an encoder whose patches have none, because it does not average them
    match_before: float  # cosine of the whole image and the caption
    match: float  # cosine of the kept patches and the caption
    passes: float  # what all this cost, in passes over the whole image: one with room for n of P patches counts n / P
    box: Box = WHOLE  # where it lies in the image that it is a tile of
    tiles: tuple[View, ...] = ()  # those in which CMER kept something; none where the image is seen as a whole only
    tile_count: int = 0  # how many cover the image, these and the skipped ones
    named: bool = True  # False where the caption fits nothing in the image, and a thing without a name guided CMER in its stead

    @property
    def pieces(self) -> tuple[View, ...]:
        """The views from nearest by: the tiles, or the view itself where it has none."""
        return self.tiles or (self,)

    @property
    def embeddings(self) -> Tensor:
        """What can be compared with a text: the kept patches (K, D), or all of them together (1, D)."""
        return self.embedding.unsqueeze(0) if self.dense is None else self.dense

    @property
    def patch_boxes(self) -> np.ndarray:
        """Where the kept patches lie in the image, or in the one that this is a tile of: see `tiles.patch_boxes`, (K, 4) int64."""
        return patch_boxes(self.box, self.image.shape[:2], self.keep.shape, np.flatnonzero(self.keep))


def images_at_once(encoder: Encoder, batch_size: int | str, *, tile: int | None = None) -> int:
    """How many images to take at a time, for a ``batch_size`` that is asked for or ``auto``; one where they are seen in tiles, each a batch of them.

    ``auto`` is `loader.BATCH` on a processor, which encodes them one by one, and on a GPU as many as fit into its memory.

    Raises:
        SettingsError: ``batch_size`` is neither ``auto`` nor a whole number from 1 up.
    """
    check_batch_size(batch_size)
    if tile is not None:
        return 1
    if batch_size != "auto":
        return batch_size
    if encoder.at_once == 1:
        return BATCH
    return ranks.broadcast(encoder.images_that_fit(MOST_IN_A_BATCH) if ranks.leads() else None, 0)


class Meter:
    """Encodes the images of one batch, and counts what each of them costs.

    Attributes:
        pixels: (B, 3, S, S) float32, from `Encoder.preprocess`.
        passes: (B,) float64, passes so far in units of one over all ``P`` patches; one with room for ``n`` of them adds ``n / P``,
            or 1 where the encoder paints over the others.
    """

    def __init__(self, encoder: Encoder, pixels: Tensor) -> None:
        self.encoder, self.pixels = encoder, pixels
        self.passes = torch.zeros(len(pixels), dtype=torch.float64)

    def encode_with_worth(
        self, text: Callable[[Tensor, slice], Tensor], layers: Sequence[int] = (), counts: Tensor | None = None
    ) -> tuple[ImageFeatures, Tensor, Tensor]:
        """`Encoder.encode_with_worth`; the way back counts as a pass."""
        self.passes += 2
        return self.encoder.encode_with_worth(self.pixels, text, layers=layers, counts=counts)

    def encode(
        self, keep: Tensor | None = None, *, rows: Tensor | slice = slice(None), layers: Sequence[int] = (), room: int | None = None
    ) -> ImageFeatures:
        """`Encoder.encode_image` of the images `rows` through the patches ``keep`` (b, P) bool, with ``room`` for so many: see `keep_index`.

        The patch tokens of a row that keeps fewer are its own first, and then some that none has looked at. An encoder that does not weigh its
        patches takes rows that keep equally many, and has no room to spare.
        """
        index, weight = (None, None) if keep is None else keep_index(keep, room if self.encoder.weighs else None)
        whole = index is None or self.encoder.paints
        self.passes[rows.cpu() if isinstance(rows, Tensor) else rows] += 1 if whole else index.shape[1] / self.encoder.patch_count
        return self.encoder.encode_image(self.pixels[rows], index=index, weight=weight, layers=layers)


def token_match(meter: Meter, text: Tensor, whole: Tensor) -> cmer.Match:
    """The match of the meter's images with (B, D) captions through the kept tokens only: ``match(rows (b,), keep (b, P)) -> (b,)``.

    whole: (B, D) embeddings through all patches, which take no other pass.
    """

    def match(rows: Tensor, keep: Tensor) -> Tensor:
        return ((whole[rows] if keep.all() else meter.encode(keep, rows=rows).embedding) * text[rows]).sum(1)

    return match


def keep_index(keep: Tensor, room: int | None = None) -> tuple[Tensor, Tensor | None]:
    """(B, P) bool to the patch numbers (B, K) that go through the tower, those of a row in ascending order, and how much each counts.

    room: ``K``; None: as many as each row keeps, which then must be equally many. A row that keeps fewer is filled up with others, which count nothing.
    """
    counts = keep.sum(1)
    if room is None:
        return keep.nonzero()[:, 1].view(len(keep), -1), None
    index = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :room]
    spare = torch.arange(room, device=keep.device) >= counts.unsqueeze(1)
    return index, torch.zeros_like(spare, dtype=torch.float32).masked_fill(spare, -torch.inf)


def look(
    encoder: Encoder,
    images: Sequence[np.ndarray],
    texts: Sequence[Tensor | None],
    *,
    stored: Tensor | None = None,
    layers: tuple[int, ...],
    relevance: str,
    keep: float | str | None,
    ground: str = "by image",
) -> list[View]:
    """Encode images, let CMER choose their patches, and encode what is kept.

    Args:
        images: ``B`` arrays (H, W, 3) uint8.
        texts: the ``B`` caption embeddings (D,) that guide CMER, see `guided`; None stands for the one of ``stored`` (U, D) that matches the whole image best.
        layers: blocks whose tokens make the patch features.
        relevance: fast, sampled or occlusion.
        keep: auto, or the share of patches to keep; None keeps all, which is no CMER, and asks for no relevance that costs a pass.
        ground: one of `GROUNDS`, for auto.
    """

    if not images:
        return []

    def caption_of(found: Tensor, rows: slice) -> Tensor:
        wanted = texts[rows]
        return torch.stack([stored.to(one)[(stored.to(one) @ one).argmax()] if text is None else text.to(one) for one, text in zip(found, wanted, strict=True)])

    meter, pooled = Meter(encoder, encoder.preprocess(images)), relevance == "fast" and encoder.averages
    discards = keep is not None and not (keep == "auto" and ground == "no")
    named, whole = torch.ones(len(images), dtype=torch.bool), None
    if relevance == "fast" and not pooled and keep is not None:
        full, captions, worth = meter.encode_with_worth(caption_of, layers)
        guides, scores = captions, cmer.over_windows(worth, encoder.grid)  # (B, D), (B, P)
    else:
        full = meter.encode(layers=layers)
        guides = captions = caption_of(full.embedding, slice(None))  # (B, D)
        if discards:
            guides, named, whole = guided(encoder, full.dense, captions, ground)
        scores = relevance_of(meter, relevance, full, guides) if pooled or keep is not None else full.embedding.new_zeros(len(images), encoder.patch_count)
    kept = torch.ones_like(scores, dtype=torch.bool)
    if discards:
        nested = cmer.nested_means(full.dense, guides, scores) if pooled else cmer.nested_by(token_match(meter, guides, full.embedding), scores)
        sizes = cmer.KEEP_SIZES if pooled else cmer.FEW_KEEP_SIZES
        kept = cmer.keep_mask(nested, scores, encoder.grid, keep=keep, sizes=sizes, whole=whole)
    views = _views(meter, full, images, captions, scores, kept, layers)
    return [replace(view, named=known) for view, known in zip(views, named.tolist(), strict=True)]


def guided(encoder: Encoder, dense: Tensor, captions: Tensor, ground: str) -> tuple[Tensor, Tensor, Tensor]:
    """What guides CMER in each image, (B, D); whether that is its own caption, (B,) bool; and which images show no ground to discard, (B,) bool.

    A caption that fits no set of patches of its image names what the encoder does not know, or takes for something else. Then whatever lies on
    the ground is looked for, by the embedding of a thing without a name. Only the built-in encoder was trained to understand that; where the
    cosines of true captions lie is another matter for each encoder, about 0.3 for many CLIP models, 0.1 for SigLIP. There is a ground where
    discarding it raises the match, of the caption or, since a caption may name the ground as well, of a thing without a name; of images
    that are known to show one, half as much will do, and a blank image still keeps all.

    Args:
        dense: (B, P, D) patch tokens of all patches. captions: (B, D). ground: one of `GROUNDS`.
    """
    always = torch.ones(len(captions), dtype=torch.bool, device=captions.device)
    if encoder.unnamed is None:
        return captions, always, torch.zeros_like(always)
    unnamed = encoder.unnamed.expand_as(captions)
    counts = cmer.counts_of(cmer.KEEP_SIZES, encoder.patch_count)
    by_name, without = (cmer.nested_means(dense, text, cmer.fast(dense, text))(counts) for text in (captions, unnamed))  # (B, sizes)
    named = by_name.amax(1) >= cmer.MATCH_FLOOR
    own, thing = (matches.amax(1) - matches[:, -1] for matches in (by_name, without))  # (B,)
    return torch.where(named.unsqueeze(1), captions, unnamed), named, torch.where(named, own.maximum(thing), thing) < least_gain(ground)


def least_gain(ground: str) -> float:
    """By how much discarding raises the match of the built-in encoder, for there to be a ground; one of `GROUNDS`."""
    return {"yes": cmer.GAIN_FLOOR / 2, "no": math.inf, "by image": cmer.GAIN_FLOOR}[ground]


def show_ground(encoder: Encoder, images: Sequence[np.ndarray], texts: Tensor) -> np.ndarray:
    """Which images (B,) bool show a ground around what their captions (B, D) name, each by itself."""
    return (~guided(encoder, encoder.encode_image(encoder.preprocess(images)).dense, texts, "by image")[2]).cpu().numpy()


def views_of(images: Sequence[np.ndarray | ImageError], texts: Sequence, looking: Callable[[list[np.ndarray], list], list[View]]) -> list[View | ImageError]:
    """The view of each image that could be read, by one call of ``looking`` with these and their texts; of the others their errors."""
    sound = [not isinstance(image, ImageError) for image in images]
    views = iter(looking(list(compress(images, sound)), list(compress(texts, sound))))
    return [next(views) if there else image for image, there in zip(images, sound, strict=True)]


def look_nearer(encoder: Encoder, view: View, *, layers: tuple[int, ...], tile: int, overlap: float) -> View:
    """The same image seen in tiles too, those in which the view keeps something; an image no larger than a tile stays as it is.

    What matters for the caption is told from the whole image: a tile keeps what the view keeps there.
    """
    shape = view.image.shape[:2]
    boxes = tile_boxes(*shape, tile=tile, overlap=overlap)
    if len(boxes) == 1:
        return view
    keeps = [(box, under(view.keep, box, shape, encoder.grid)) for box in boxes]
    wanted = [(box, keep) for box, keep in keeps if keep.any()]
    tiles: list[View] = []
    for start in range(0, len(wanted), TILES_AT_ONCE):
        batch = wanted[start : start + TILES_AT_ONCE]
        images = [view.image[box] for box, _ in batch]
        meter = Meter(encoder, encoder.preprocess(images))
        full = meter.encode(layers=layers)
        relevance = np.stack([under(view.relevance, box, shape, encoder.grid).ravel() for box, _ in batch])
        kept = torch.from_numpy(np.stack([keep.ravel() for _, keep in batch])).to(full.embedding.device)
        seen = _views(meter, full, images, view.text.expand(len(batch), -1), torch.from_numpy(relevance), kept, layers)
        tiles += [replace(near, box=box) for near, (box, _) in zip(seen, batch, strict=True)]
    return replace(view, tiles=tuple(tiles), tile_count=len(boxes), passes=view.passes + sum(near.passes for near in tiles))


def _views(
    meter: Meter, full: ImageFeatures, images: Sequence[np.ndarray], captions: Tensor, scores: Tensor, kept: Tensor, layers: tuple[int, ...]
) -> list[View]:
    """The views of the meter's images through the patches ``kept`` (B, P) bool; ``full`` is what all patches gave.

    Where the embedding is a mean of patches, a rim around the kept ones is looked at with them: what lies at the edge of a thing is judged in its
    surroundings, and the rim itself is left out of the mean. (A class token would take the rim in.)
    """
    encoder = meter.encoder
    views: list[View | None] = [None] * len(images)
    shown = cmer.with_rim(kept, encoder.grid) if encoder.averages else kept
    counts = shown.sum(1).tolist()
    together = defaultdict(list)  # what goes through the tower together
    for row, count in enumerate(counts):
        together[encoder.room_for(count) if count < encoder.patch_count else None].append(row)
    for room, numbers in together.items():
        rows = torch.tensor(numbers, device=kept.device)
        seen = full.rows(rows) if room is None else meter.encode(shown[rows], rows=rows, layers=layers, room=room)
        features = patch_features(seen.patches)  # (b, K, V)
        dense = F.normalize(seen.dense.float(), dim=-1) if encoder.averages else None
        for i, row in enumerate(numbers):
            judged = kept[row][shown[row]]  # of those shown, in the order of their numbers
            own = slice(0, counts[row])
            embedding = seen.embedding[i] if judged.all() else F.normalize(seen.dense[i, own][judged].float().mean(0), dim=0)
            views[row] = View(
                image=images[row],
                text=captions[row],
                relevance=scores[row].reshape(encoder.grid).cpu().numpy(),
                keep=kept[row].reshape(encoder.grid).cpu().numpy(),
                whole=full.embedding[row],
                embedding=embedding,
                patches=features[i, own][judged],  # a copy: a view that is held shall not hold those of others
                dense=None if dense is None else dense[i, own][judged],
                match_before=float(full.embedding[row] @ captions[row]),
                match=float(embedding @ captions[row]),
                passes=float(meter.passes[row]),
            )
    return views


def relevance_of(meter: Meter, estimator: str, full: ImageFeatures, text: Tensor) -> Tensor:
    """Relevance (B, P) by the named estimator of `cmer`, of the meter's images for (B, D) captions; ``full`` is what all patches gave.

    ``fast`` is that of a tower that averages; see `look` for the others. ``sampled`` withdraws sets of windows where the tower can weigh its
    patches, and hides halves of the grid at random where it paints.
    """
    if estimator == "fast":
        return cmer.fast(full.dense, text)
    if estimator == "sampled" and meter.encoder.weighs:
        return cmer.withdrawn(lambda counts: meter.encode_with_worth(lambda _, rows: text[rows], counts=counts)[2], meter.encoder.grid)
    match, rows = token_match(meter, text, full.embedding), torch.arange(len(text), device=text.device)
    if estimator == "sampled":
        return cmer.sampled(match, rows, meter.encoder.grid).relevance
    return cmer.occlusion(match, rows, meter.encoder.grid, stride=OCCLUSION_STRIDE)


def best_other(whole: Tensor, text: Tensor, own: int) -> tuple[int | None, float | None]:
    """Of the captions (U, D) but for number `own`, the one that matches an image (D,) best, and its cosine; None without another."""
    if len(text) < 2:
        return None, None
    matches = text @ whole  # (U,)
    matches[own] = -torch.inf
    best = int(matches.argmax())
    return best, float(matches[best])


def choose_relevance(encoder: Encoder, estimator: str | None) -> str:
    """The estimator asked for; by default ``fast``. For an encoder that can neither average nor weigh its patches it is ``occlusion``, the exact
    one, where that takes no more passes than ``sampled`` may: up to a grid of 13 x 13, and a 7 x 7 takes 9."""
    able = encoder.averages or encoder.weighs
    if estimator is None:
        windows = len(cmer.corners(encoder.grid, stride=OCCLUSION_STRIDE))
        return "fast" if able else "occlusion" if 1 < windows <= 2 * cmer.MOST_PAIRS else "sampled"
    if estimator == "fast" and not able:
        raise SettingsError(f"relevance fast needs an encoder with tokens, {encoder.name} has none that can be weighed; use sampled or occlusion")
    if estimator not in RELEVANCE:
        raise SettingsError(f"relevance: expected one of {', '.join(RELEVANCE)}, got {estimator!r}")
    return estimator
