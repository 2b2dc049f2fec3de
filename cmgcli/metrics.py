"""How well scores separate normal from anomalous, on arrays. Everywhere a higher score means more anomalous."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from cmgcli.errors import InputError


@dataclass(frozen=True)
class F1:
    """The best F1 value, in [0, 1], and the lowest score that counts as anomalous there."""

    value: float
    threshold: float


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, in [0, 1]: the chance that an anomalous image scores higher than a normal one.

    `labels`: (N,), 0 normal, anything else anomalous. `scores`: (N,), any scale. Ties count one half.

    Raises InputError where a class is missing, the lengths differ, or a score is not finite (naming its row).
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_checked(labels, scores)))


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as a step function, in [0, 1]; arguments and errors as `auroc`."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_checked(labels, scores)))


def f1_max(labels: np.ndarray, scores: np.ndarray) -> F1:
    """The greatest F1 over all thresholds; arguments and errors as `auroc`.

    The threshold is chosen with the labels in hand: it describes the scores, it is not one to work with.
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(*_checked(labels, scores))
    precision, recall = precision[:-1], recall[:-1]  # the last point has no threshold
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = int(f1.argmax())
    return F1(float(f1[best]), float(thresholds[best]))


def pixel_auroc(masks: Sequence[np.ndarray], maps: Sequence[np.ndarray]) -> float:
    """`auroc` over all pixels of all images.

    `masks`: N arrays (H, W), not zero = defect. `maps`: N arrays (H, W) of anomaly, each as large as its mask.

    Raises InputError as `auroc`, and where shapes differ (naming the image's row).
    """
    _check_maps(masks, maps)
    return auroc(np.concatenate([np.ravel(mask) for mask in masks]), np.concatenate([np.ravel(m) for m in maps]))


def aupro(masks: Sequence[np.ndarray], maps: Sequence[np.ndarray], *, limit: float = 0.3) -> float:
    """Area under the per-region overlap curve up to the false-positive rate `limit`, divided by `limit`: in [0, 1].

    At each threshold the per-region overlap is the found share of a defect region, averaged over all regions of all
    images (8-connected), so that a small region counts as much as a large one (Bergmann et al., "The MVTec Anomaly
    Detection Dataset", IJCV 2021). The false-positive rate is over all normal pixels.

    Arguments and errors as `pixel_auroc`.
    """
    _check_maps(masks, maps)
    if not 0 < limit <= 1:
        raise InputError(f"expected a limit of the false-positive rate in (0, 1], got {limit}")
    scores = np.concatenate([np.ravel(m) for m in maps]).astype(np.float64)
    shares = np.concatenate([_region_shares(mask) for mask in masks])  # (pixels,): 1 / area of the region, 0 outside
    _checked(shares > 0, scores)
    order = np.argsort(-scores, kind="stable")
    scores, shares = scores[order], shares[order]
    last_of_tie = np.append(scores[1:] != scores[:-1], True)
    false_positives = np.cumsum(shares == 0)[last_of_tie]
    overlap = np.cumsum(shares)[last_of_tie]
    fpr = np.append(0.0, false_positives / false_positives[-1])
    pro = np.append(0.0, overlap / overlap[-1])
    inside = int(np.searchsorted(fpr, limit, side="right"))
    at_limit = np.interp(limit, fpr[inside - 1 : inside + 1], pro[inside - 1 : inside + 1])
    area = np.trapezoid(np.append(pro[:inside], at_limit), np.append(fpr[:inside], limit))
    return float(area / limit)


def wilson_interval(k: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a rate of which `k` of `n` cases were seen: (low, high) in [0, 1].

    `n = 0` tells nothing: (0, 1). Raises InputError where not 0 <= k <= n or not 0 < level < 1.
    """
    if not 0 <= k <= n or not 0 < level < 1:
        raise InputError(f"expected 0 <= k <= n and a level between 0 and 1, got k={k}, n={n}, level={level}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return 0.0 if k == 0 else max(0.0, centre - half), 1.0 if k == n else min(1.0, centre + half)


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels as (N,) bool and scores as (N,) float64."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise InputError(f"expected one label for each score, got {labels.shape} labels for {scores.shape} scores")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise InputError(f"expected finite scores, got {scores[bad[0]]} in row {bad[0]} ({bad.size} such rows)")
    labels = labels != 0
    anomalous = int(labels.sum())
    if anomalous in (0, labels.size):
        raise InputError(
            f"expected normal and anomalous labels, got {labels.size - anomalous} normal and {anomalous} anomalous: "
            "this measure needs both"
        )
    return labels, scores


def _check_maps(masks: Sequence[np.ndarray], maps: Sequence[np.ndarray]) -> None:
    if len(masks) != len(maps) or not len(masks):
        raise InputError(f"expected one mask for each map and at least one, got {len(masks)} masks, {len(maps)} maps")
    for row, (mask, anomaly_map) in enumerate(zip(masks, maps)):
        if mask.shape != anomaly_map.shape or mask.ndim != 2:
            raise InputError(f"expected mask and map of one shape, got {mask.shape}, {anomaly_map.shape} in row {row}")
        if not np.isfinite(anomaly_map).all():
            raise InputError(f"expected finite maps, got NaN or infinity in row {row}")


def _region_shares(mask: np.ndarray) -> np.ndarray:
    """(H, W) mask to (H * W,) float64: 1 / (pixels of the region) inside a region, 0 outside."""
    import cv2

    count, regions = cv2.connectedComponents((mask != 0).astype(np.uint8), connectivity=8)
    areas = np.bincount(regions.ravel(), minlength=count)
    share = np.append(0.0, 1 / areas[1:])
    return share[regions.ravel()]
