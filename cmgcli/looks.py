"""Views of records under their own captions, computed once as far as memory reaches and shared by whoever needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from cmgcli import ranks
from cmgcli.bank import k_center
from cmgcli.dataset import Record
from cmgcli.detector import Settings
from cmgcli.encoder import Encoder
from cmgcli.errors import ImageError
from cmgcli.images import read_image
from cmgcli.loader import BATCH, decoded
from cmgcli.model import look_by
from cmgcli.states import flawless_and_defective
from cmgcli.view import View, images_at_once, show_ground, views_of

Item = TypeVar("Item")

BUDGET = 500_000_000
STATED = 16  # captions whose states are encoded, 75 prompts each; others go by the nearest of them
ASKED, FEWEST_ASKED, MOST_AGREE = 64, 8, 0.85  # images that tell whether there is a ground, and the share of them that settles it
FRAME_FILLED = f"CMER discards nothing: what the captions name fills the frame in at least {100 * MOST_AGREE:.0f} % of the images asked"


class Looks:
    """What the encoder sees of some records; the first views up to a budget of bytes are held, the others made again.

    Several ranks take the batches in turn, and each has the views of all.
    """

    def __init__(
        self,
        records: Sequence[Record],
        encoder: Encoder,
        settings: Settings,
        *,
        batch_size: int | str = BATCH,
        mirrored: bool = False,
        budget: int = BUDGET,
    ) -> None:
        self.records, self.encoder, self.settings = records, encoder, settings
        self.batch_size, self.mirrored = images_at_once(encoder, batch_size, tile=settings.tile), mirrored
        texts = tuple(dict.fromkeys(record.text for record in records))
        self.text = dict(zip(texts, encoder.encode_text(texts).cpu(), strict=True))  # caption: (D,)
        self.held = _Held(budget)
        self.seen = bytearray(len(records))  # of those looked at 1, without their captions 2; see `view.guided`

    def of(self, numbers: Sequence[int]) -> Iterator[tuple[list[int], list[View | ImageError]]]:
        """Batches of record numbers with their views, in the order given; an image that cannot be read gives its error."""
        missing = [i for i in numbers if i not in self.held.views]
        fresh, awaited = self._look(missing), set(missing)
        for start in range(0, len(numbers), self.batch_size):
            batch = list(numbers[start : start + self.batch_size])
            yield batch, [next(fresh) if i in awaited else self.held.views[i] for i in batch]

    @cached_property
    def towards_defective(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Some of the captions, at most `STATED` that lie far apart, (R, D), and the way from the flawless to the defective state of what each names, (R, D)."""
        captions, text = list(self.text), torch.stack(list(self.text.values()))
        chosen = k_center(text, STATED).chosen
        flawless, defective = flawless_and_defective(self.encoder, [captions[u] for u in chosen.tolist()])
        return text[chosen], (defective - flawless).cpu()

    def image(self, i: int) -> np.ndarray:
        """The ``i``-th image (H, W, 3) uint8, as it is; ImageError where it cannot be read."""
        return self.held.views[i].image if i in self.held.views and not self.mirrored else read_image(self.records[i].path)

    def under(self, settings: Settings) -> Looks:
        """The same looks, the held views shared, for a fit with other settings of what comes after the encoder."""
        for name in ("encoder_sha256", "layers", "relevance", "keep", "cmer", "ground", "tile", "overlap"):
            if getattr(settings, name) != getattr(self.settings, name):
                raise ValueError(f"looks with {name} {getattr(self.settings, name)} cannot serve a fit with {getattr(settings, name)}")
        same = copy(self)
        same.settings = settings
        return same

    def sound(self, numbers: Sequence[int]) -> Iterator[tuple[list[int], list[View]]]:
        """`of` for a fit, which an image that cannot be used ends, by name."""
        for batch, views in self.of(numbers):
            for i, view in zip(batch, views, strict=True):
                if isinstance(view, ImageError):
                    raise ImageError(f"{view}; a model is fitted on sound images only, mend or remove it")
                if not all(bool(torch.isfinite(seen).all()) for seen in (view.embedding, *(piece.patches for piece in view.pieces))):
                    raise ImageError(f"{self.records[i].path}: the encoder's features of this image are not numbers; mend or remove it")
            yield batch, views

    def _look(self, numbers: Sequence[int]) -> Iterator[View | ImageError]:
        batches = [numbers[start : start + self.batch_size] for start in range(0, len(numbers), self.batch_size)]
        own = self._own([batch for k, batch in enumerate(batches) if ranks.mine(k)])
        for start in range(0, len(batches), ranks.size()):
            seen = next(own, None)  # all ranks look at once, and only then hear what the others saw, one batch after the other
            for k, batch in enumerate(batches[start : start + ranks.size()]):
                for i, view in zip(batch, self._from(k, seen), strict=True):
                    if isinstance(view, View):
                        self.held.offer(i, view)
                        self.seen[i] = 1 if view.named else 2
                    yield view

    def _from(self, sender: int, seen: list[View | ImageError] | None) -> list[View | ImageError]:
        """What the sender has seen, here."""
        if ranks.size() == 1:
            return seen
        sent = ranks.broadcast([_packed(view) for view in seen] if ranks.rank() == sender else None, sender)
        return [_unpacked(view, self.encoder.device) for view in sent]

    def _own(self, batches: Sequence[Sequence[int]]) -> Iterator[list[View | ImageError]]:
        """What is seen in each of the batches; all but the last are full."""
        ahead = decoded([self.records[i].path for batch in batches for i in batch], batch_size=self.batch_size)
        for rows, batch in zip(batches, ahead, strict=True):
            images = [np.ascontiguousarray(image[:, ::-1]) if self.mirrored and isinstance(image, np.ndarray) else image for _, image in batch]
            yield views_of(images, [self.text[self.records[i].text] for i in rows], partial(look_by, self.encoder, self.settings))


def ground_of(captions: Mapping[Path, str], encoder: Encoder) -> str:
    """Whether images show a ground around what their captions name, one of `view.GROUNDS`; a few of them, evenly from first to last, tell for all.

    A single image may be wrong about it: of surfaces that fill the frame up to one in ten looks as if it had one. Few images, and lines in which
    more than 15 % are of the other kind, leave it to each.
    """
    if encoder.unnamed is None:
        return "by image"
    return ranks.broadcast(_agreed(captions, encoder) if ranks.leads() else None, 0)


def _agreed(captions: Mapping[Path, str], encoder: Encoder) -> str:
    paths = list(captions)
    asked = spread(paths, ASKED)
    texts, told = iter([captions[path] for path in asked]), []
    for batch in decoded(asked, batch_size=BATCH):
        sound = [(image, text) for (_, image), text in zip(batch, texts, strict=False) if not isinstance(image, ImageError)]
        if sound:
            images, said = zip(*sound, strict=True)
            told += show_ground(encoder, images, encoder.encode_text(said)).tolist()
    if len(told) < FEWEST_ASKED or 1 - MOST_AGREE < np.mean(told) < MOST_AGREE:
        return "by image"
    return "yes" if np.mean(told) >= MOST_AGREE else "no"


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly from the first to the last: records often come sorted by caption."""
    return [items[k] for k in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))]


def _packed(view: View | ImageError) -> View | ImageError:
    """A view for another process: tensors in main memory with storage of their own, tiles without the pixels, which are those of the image."""
    if isinstance(view, ImageError):
        return view
    tiles = (replace(tile, image=tile.image[:0]) for tile in view.tiles)
    return replace(_moved(view, torch.device("cpu")), tiles=tuple(_moved(tile, torch.device("cpu")) for tile in tiles))


def _unpacked(view: View | ImageError, device: torch.device) -> View | ImageError:
    if isinstance(view, ImageError):
        return view
    return replace(_moved(view, device), tiles=tuple(replace(_moved(tile, device), image=view.image[tile.box]) for tile in view.tiles))


def _moved(view: View, device: torch.device) -> View:
    seen = {name: getattr(view, name) for name in ("text", "whole", "embedding", "patches", "dense")}
    return replace(view, **{name: each.to(device, copy=True) for name, each in seen.items() if each is not None})


class _Held:
    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.views: dict[int, View] = {}

    def offer(self, i: int, view: View) -> None:
        seen = (view, *view.tiles)  # a tile's pixels are those of the image
        size = view.image.nbytes + sum(one.patches.nbytes + one.embeddings.nbytes + one.relevance.nbytes for one in seen)
        if size <= self.budget:
            self.budget -= size
            self.views[i] = view
