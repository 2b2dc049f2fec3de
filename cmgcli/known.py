"""Bad parts that are known: the defect head may learn from them too, beside the defects drawn on good ones.

Lineage: supervised surface inspection (Tabernik et al. 2020), and its union with drawn defects in SuperSimpleNet (Rolih et al. 2024).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from cmgcli.adapt import Crop, crops_of_defect
from cmgcli.dataset import Record, known_bad_records, mask_of
from cmgcli.errors import SettingsError
from cmgcli.heldout import VALIDATED, VALIDATED_PIXELS
from cmgcli.images import read_image
from cmgcli.loader import ImageStore
from cmgcli.looks import Looks, spread
from cmgcli.words import counted

logger = logging.getLogger(__name__)

SHARE = 0.15  # of the images that a training takes crops from
BUDGET = 100_000_000  # bytes


class KnownDefects:
    """Known bad images and where their defects lie, from which a training takes crops; `records` are what `known_records` gives.

    tile: side in pixels of the pieces in which a model sees larger images; None: it sees them whole.
    """

    def __init__(self, records: Sequence[Record], *, tile: int | None = None, seed: int = 0) -> None:
        self.tile = tile
        self.store = ImageStore(records, budget=BUDGET, seed=seed, read=_image_and_mask)

    def crops(self, rng: np.random.Generator, turn: int) -> list[Crop]:
        """Crops around defects of one of the images that are there in this turn; see `loader.ImageStore`."""
        there = self.store.there(turn)
        seen = self.store[there[rng.integers(len(there))]]
        if self.tile is not None:
            middle = (at := np.argwhere(seen[..., 3]))[rng.integers(len(at))]
            low = [int(np.clip(m - rng.integers(self.tile), 0, max(0, side - self.tile))) for m, side in zip(middle, seen.shape[:2], strict=True)]
            seen = seen[low[0] : low[0] + self.tile, low[1] : low[1] + self.tile]
        return crops_of_defect(np.ascontiguousarray(seen[..., :3]), seen[..., 3] > 0, rng)


def shown_defects(records: Sequence[Record], like: Looks) -> list[tuple[np.ndarray, np.ndarray]]:
    """Some of the known bad images (H, W, 3) and their keep masks (h, w), as many as `heldout.drawn_auroc` takes; of tiles the one that shows most of the defect.

    like: the looks of the good images, whose encoder and settings serve here too.
    """
    found, pixels = [], 0
    looks = Looks(records, like.encoder, like.settings, batch_size=like.batch_size, budget=0)
    for numbers, views in looks.sound(spread(range(len(records)), VALIDATED)):
        for number, view in zip(numbers, views, strict=True):
            if pixels <= VALIDATED_PIXELS:
                mask = mask_of(records[number], view.image.shape[:2])
                piece = max(view.pieces, key=lambda piece: np.count_nonzero(mask[piece.box]))
                found.append((piece.image.copy(), piece.keep))  # of a tile not the whole image, which its pixels are part of
                pixels += mask[piece.box].size
        if pixels > VALIDATED_PIXELS:
            break
    return found


def known_records(records: Sequence[Record]) -> tuple[Record, ...]:
    """The known bad images that a head can learn from: labelled bad, of split train, with a mask that marks something. Those left out are logged.

    Raises:
        SettingsError: there is none. ImageError: one cannot be read. DatasetError: a mask is of another size than its image.
    """
    bad = known_bad_records(records)
    marked = tuple(record for record in bad if record.mask is not None and _image_and_mask(record)[..., 3].any())
    if not marked:
        reason = "no image of split train is labelled bad" if not bad else f"of {counted(len(bad), 'image')} of split train labelled bad none has a mask that marks a defect"
        raise SettingsError(f"known defects: {reason}; expected rows with split train, label 1 and the mask of the defect, and others to judge by, of split test")
    if len(marked) < len(bad):
        logger.warning("left out: %s labelled bad, first %s: no mask marks where the defect lies, which the head must be told", counted(len(bad) - len(marked), "image"), next(record.file_name for record in bad if record not in marked))
    return marked


def _image_and_mask(record: Record) -> np.ndarray:
    """(H, W, 4) uint8: the image, and 1 where its defect lies."""
    image = read_image(record.path)
    return np.dstack([image, mask_of(record, image.shape[:2]).astype(np.uint8)])
