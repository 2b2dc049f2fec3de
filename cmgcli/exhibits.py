"""The worst cases of an evaluation, as small pictures. Only they are kept, so that memory does not grow with the images."""

import bisect
from collections.abc import Callable

import cv2
import numpy as np

from cmgcli.images import read_mask
from cmgcli.pictures import map_overlay
from cmgcli.report import Case, Exhibit

SIDE = 320
_QUALITY = 88
_OUTLINE = (0, 230, 160)  # RGB
_MARGIN = 4  # pixels between a labelled defect and its outline, so that the defect itself is seen


class Worst:
    """Keeps the anomalous cases of the lowest and the good ones of the highest scores, up to `count` of each."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: dict[bool, list[tuple[float, Exhibit]]] = {True: [], False: []}

    def offer(self, case: Case, draw: Callable[[], Exhibit]) -> None:
        """Take a case with a score in, if it is among the worst so far; `draw` is called only then."""
        kept = self._kept[case.anomalous]
        key = case.row.score if case.anomalous else -case.row.score
        if len(kept) < self._count or (kept and key < kept[-1][0]):
            bisect.insort(kept, (key, draw()), key=lambda entry: entry[0])
            del kept[self._count :]

    @property
    def misses(self) -> tuple[Exhibit, ...]:
        """The anomalous cases with the lowest scores, lowest first."""
        return tuple(exhibit for _, exhibit in self._kept[True])

    @property
    def false_alarms(self) -> tuple[Exhibit, ...]:
        """The good cases with the highest scores, highest first."""
        return tuple(exhibit for _, exhibit in self._kept[False])


def exhibit(case: Case, image: np.ndarray, anomaly_map: np.ndarray | None = None, *, low: float = 0, high: float = 1) -> Exhibit:
    """Draw one case at most `SIDE` pixels a side.

    Args:
        image: (H, W, 3) uint8 RGB. anomaly_map: (H, W) float32, coloured from `low` to `high` as in `pictures.map_overlay`.
    Raises:
        ImageError: the case's mask cannot be read.
    """
    small = shrink(image, SIDE)
    overlay = None
    if anomaly_map is not None:
        overlay = _jpeg(map_overlay(small, shrink(anomaly_map, SIDE), low=low, high=high))
    return Exhibit(case, _jpeg(_with_truth(small, case)), overlay)


def shrink(values: np.ndarray, side: int) -> np.ndarray:
    """(H, W) or (H, W, C) to at most `side` pixels a side by averaging; what is small enough stays as it is."""
    height, width = values.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return values
    return cv2.resize(values, (max(1, round(width * factor)), max(1, round(height * factor))), interpolation=cv2.INTER_AREA)


def _with_truth(image: np.ndarray, case: Case) -> np.ndarray:
    """The picture with a line around the labelled defect."""
    if case.record.mask is None:
        return image
    height, width = image.shape[:2]
    mask = cv2.resize(read_mask(case.record.mask).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0
    grown = cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _MARGIN + 1,) * 2))
    contours, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(image).copy(), contours, -1, _OUTLINE, 1)


def _jpeg(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB to a JPEG file."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return data.tobytes()
