"""Small pictures of the patch bank's patches, and which good images they come from: what a flagged patch is shown beside.

The pictures lie in the model file, so that a model explains itself where the images of its fit are not: a patch and half a
patch around it at 48 pixels, twice what the encoder sees of it, all on one square JPEG sheet of about half a kilobyte a patch
(2 MB of 9 for the default bank). Only the pictures of the final bank are taken, so that a fit needs no more memory for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from cmgcli.bank import PatchBank
from cmgcli.errors import CheckpointError

SIDE = 48  # pixels of a picture; a multiple of 16, so that JPEG's blocks keep the pictures apart
_QUALITY = 85


@dataclass(frozen=True)
class Album:
    """The pictures of a bank of ``M`` patches."""

    names: tuple[str, ...]  # of the images of the fit, which the bank's origins count
    sheet: Tensor  # (n,) uint8, a JPEG file, about as wide as high

    def pictures(self, rows: Sequence[int]) -> list[np.ndarray]:
        """The pictures (SIDE, SIDE, 3) uint8 RGB of some rows of the bank.

        Raises CheckpointError where the sheet is damaged.
        """
        found = cv2.imdecode(self.sheet.numpy(), cv2.IMREAD_COLOR) if len(self.sheet) else None
        columns = 0 if found is None else found.shape[1] // SIDE
        if columns == 0 or found.shape[0] // SIDE * columns <= max(rows, default=0):
            raise CheckpointError("the model's pictures of good patches are damaged; fit it again")
        boxes = [(row // columns * SIDE, row % columns * SIDE) for row in rows]
        return [np.ascontiguousarray(found[top : top + SIDE, left : left + SIDE, ::-1]) for top, left in boxes]


def patch_picture(image: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """A patch with half a patch around it, (SIDE, SIDE, 3) uint8, of an image (H, W, 3) uint8; its top, left, bottom, right in pixels.

    Beyond the image its edge goes on.
    """
    top, left, bottom, right = box
    y, x = -(-(bottom - top) // 2), -(-(right - left) // 2)
    rows, columns = (np.arange(*span).clip(0, side - 1) for span, side in zip(((top - y, bottom + y), (left - x, right + x)), image.shape, strict=False))
    shown = image[np.ix_(rows, columns)]
    return cv2.resize(shown, (SIDE, SIDE), interpolation=cv2.INTER_AREA if min(shown.shape[:2]) > SIDE else cv2.INTER_LINEAR)


def take_pictures(bank: PatchBank, image: Callable[[int], np.ndarray], name: Callable[[int], str]) -> tuple[PatchBank, Album]:
    """The album of a bank, and the bank with its origins counted by the album's names; each image is asked for once.

    Args:
        image, name: of a number in the bank's origins.
    """
    used, renumbered = bank.origins[:, 0].unique(return_inverse=True)
    columns = math.ceil(math.sqrt(len(bank.origins)))
    sheet = np.zeros((-(-len(bank.origins) // columns) * SIDE, columns * SIDE, 3), np.uint8)
    for k, number in enumerate(used.tolist()):
        whole = image(number)
        for row in (renumbered == k).nonzero().flatten().tolist():
            top, left = row // columns * SIDE, row % columns * SIDE
            sheet[top : top + SIDE, left : left + SIDE] = patch_picture(whole, bank.origins[row, 1:].tolist())[..., ::-1]
    _, data = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    origins = torch.cat([renumbered[:, None], bank.origins[:, 1:]], dim=1)
    return replace(bank, origins=origins), Album(tuple(map(name, used.tolist())), torch.from_numpy(data.ravel().copy()))
