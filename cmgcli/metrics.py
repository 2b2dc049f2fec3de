"""How well scores separate normal from anomalous, on arrays. Everywhere a higher score means more anomalous."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from cmgcli.errors import InputError
from cmgcli.words import counted

_DROPPED_BITS = 12  # of a float32's 32
_BINS = 1 << (32 - _DROPPED_BITS)


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


def auroc_interval(labels: np.ndarray, scores: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of `auroc`: (low, high) in [0, 1]; arguments and errors as `auroc`.

    DeLong's variance (DeLong, DeLong and Clarke-Pearson, Biometrics 1988, by midranks as in Sun and Xu, IEEE SPL 2014) on
    the logit scale, where the interval keeps inside [0, 1] (Pepe 2003). Where that variance is zero or unknown (perfect
    separation, one image in a class) it would claim certainty; there Newcombe's score interval stands in (method 5,
    Statistics in Medicine 2006), the analogue of Wilson's.
    """
    labels, scores = _checked(labels, scores)
    if not 0 < level < 1:
        raise InputError(f"expected a level between 0 and 1, got {level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    good, bad = scores[~labels], scores[labels]
    above = _share_below(bad, good)  # (M,): how much of the good each bad one exceeds
    below = 1 - _share_below(good, bad)  # (N,)
    area = float(above.mean())
    variance = 0.0
    if min(len(good), len(bad)) > 1:
        variance = float(above.var(ddof=1) / len(bad) + below.var(ddof=1) / len(good))
    if variance == 0 or not 0 < area < 1:
        return _newcombe_interval(area, len(bad), len(good), z)
    centre, half = math.log(area / (1 - area)), z * math.sqrt(variance) / (area * (1 - area))
    return _logistic(centre - half), _logistic(centre + half)


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each value (M,) the share of the others (N,) that lie below it, ties one half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(others))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _newcombe_interval(area: float, bad: int, good: int, z: float) -> tuple[float, float]:
    """The areas t with (area - t)^2 <= z^2 V(t), V the variance of Hanley and McNeil (1982) with the mean class size."""
    mean = (bad + good) / 2

    def outside(t: float) -> bool:
        variance = t * (1 - t) * (2 * mean - 1 - 3 * (mean - 1) / ((2 - t) * (1 + t))) / (bad * good)
        return (area - t) ** 2 > z * z * variance

    def limit(far: float) -> float:
        near = area
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (near, middle) if outside(middle) else (middle, far)
        return near

    return limit(0.0), limit(1.0)


@dataclass(frozen=True)
class Agreement:
    """How far scores rise with severity."""

    c_index: float  # share of the pairs of different severity that the scores put in order, ties one half; 0.5 is guessing
    kendall_tau: float  # tau-b, in [-1, 1]


def severity_agreement(levels: np.ndarray, scores: np.ndarray) -> Agreement:
    """Concordance index (Harrell 1982) and Kendall's tau-b of (N,) severity levels, 0 is normal, and (N,) scores.

    Raises InputError where shapes differ, a score is not finite, or all levels are alike.
    """
    from scipy.stats import kendalltau, somersd

    levels, scores = np.asarray(levels, np.float64), np.asarray(scores, np.float64)
    if levels.shape != scores.shape or levels.ndim != 1:
        raise InputError(f"expected as many levels as scores, got {levels.shape} and {scores.shape}")
    if not np.isfinite(scores).all() or len(np.unique(levels)) < 2:
        raise InputError("agreement with severity: expected finite scores and at least two levels")
    return Agreement((1 + float(somersd(levels, scores).statistic)) / 2, float(np.nan_to_num(kendalltau(levels, scores).statistic)))


@dataclass(frozen=True)
class Curves:
    """The ROC and the precision-recall curve, from the highest threshold to the lowest."""

    false_alarm: np.ndarray  # (K,) share of the normal called anomalous
    found: np.ndarray  # (K,) share of the anomalous called anomalous
    recall: np.ndarray  # (L,)
    precision: np.ndarray  # (L,)


def curves(labels: np.ndarray, scores: np.ndarray) -> Curves:
    """Both curves, without the points that lie on a line between others; arguments and errors as `auroc`."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    labels, scores = _checked(labels, scores)
    false_alarm, found, _ = roc_curve(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores, drop_intermediate=True)
    return Curves(false_alarm, found, recall[::-1], precision[::-1])


class PixelTally:
    """Pixel AUROC and AUPRO of a stream of images, in 24 MB however many there are.

    Each pixel falls into one of 2^20 bins by the leading bits of its float32 value, so that pixels tie where their values
    differ by less than 1 in 2000; both measures are the exact ones of the binned values.
    """

    def __init__(self) -> None:
        self._normal = np.zeros(_BINS)  # (bins,) normal pixels
        self._defect = np.zeros(_BINS)  # (bins,) defect pixels
        self._share = np.zeros(_BINS)  # (bins,) the sum of 1 / area of the region over its pixels
        self._images = 0

    def add(self, mask: np.ndarray, anomaly_map: np.ndarray) -> None:
        """Take in one image.

        `mask`: (H, W), not zero = defect. `anomaly_map`: (H, W), higher = more anomalous.

        Raises InputError where the shapes differ or the map is not finite (naming the image's row).
        """
        if mask.shape != anomaly_map.shape or mask.ndim != 2:
            raise InputError(f"expected mask and map of one shape, got {mask.shape}, {anomaly_map.shape} in row {self._images}")
        if not np.isfinite(anomaly_map).all():
            raise InputError(f"expected finite maps, got NaN or infinity in row {self._images}")
        shares = _region_shares(mask)
        bins = _bin(anomaly_map.ravel())
        inside = shares > 0
        self._normal += np.bincount(bins[~inside], minlength=_BINS)
        self._defect += np.bincount(bins[inside], minlength=_BINS)
        self._share += np.bincount(bins[inside], shares[inside], minlength=_BINS)
        self._images += 1

    @property
    def defect_pixels(self) -> int:
        """How many pixels of a defect were added."""
        return int(self._defect.sum())

    def auroc(self) -> float:
        """Area under the ROC curve over all pixels, in [0, 1]. Raises InputError where a class is missing."""
        from sklearn.metrics import roc_auc_score

        self._require_both()
        used = np.flatnonzero(self._normal + self._defect)
        labels = np.repeat([0, 1], len(used))
        return float(roc_auc_score(labels, np.r_[used, used], sample_weight=np.r_[self._normal[used], self._defect[used]]))

    def aupro(self, *, limit: float = 0.3) -> float:
        """Area under the per-region overlap curve up to the false-positive rate `limit`, divided by `limit`: in [0, 1].

        At each threshold the per-region overlap is the found share of a defect region, averaged over all regions of all
        images (8-connected), so that a small region counts as much as a large one (Bergmann et al., "The MVTec Anomaly
        Detection Dataset", IJCV 2021). The false-positive rate is over all normal pixels.

        Raises InputError where a class is missing or the limit is not in (0, 1].
        """
        if not 0 < limit <= 1:
            raise InputError(f"expected a limit of the false-positive rate in (0, 1], got {limit}")
        self._require_both()
        used = np.flatnonzero(self._normal + self._defect)[::-1]  # from the highest value down
        fpr = np.append(0.0, np.cumsum(self._normal[used]) / self._normal.sum())
        pro = np.append(0.0, np.cumsum(self._share[used]) / self._share.sum())
        inside = int(np.searchsorted(fpr, limit, side="right"))
        at_limit = np.interp(limit, fpr[inside - 1 : inside + 1], pro[inside - 1 : inside + 1])
        area = np.trapezoid(np.append(pro[:inside], at_limit), np.append(fpr[:inside], limit))
        return float(area / limit)

    def _require_both(self) -> None:
        normal, defect = int(self._normal.sum()), self.defect_pixels
        if not normal or not defect:
            raise InputError(f"expected normal and anomalous pixels, got {normal} normal and {defect} anomalous: this measure needs both")


def _bin(values: np.ndarray) -> np.ndarray:
    """(P,) values to (P,) bin numbers in their order: the sign, the exponent and 11 bits of the fraction of a float32."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.int32)  # + 0 makes one zero of the two
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # the magnitude of a negative float counts backwards
    return (ordered >> _DROPPED_BITS).astype(np.int64) + _BINS // 2


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
        raise InputError(f"expected finite scores, got {scores[bad[0]]} in row {bad[0]} ({counted(bad.size, 'such row')})")
    labels = labels != 0
    anomalous = int(labels.sum())
    if anomalous in (0, labels.size):
        raise InputError(
            f"expected normal and anomalous labels, got {labels.size - anomalous} normal and {anomalous} anomalous: "
            "this measure needs both"
        )
    return labels, scores


def _region_shares(mask: np.ndarray) -> np.ndarray:
    """(H, W) mask to (H * W,) float64: 1 / (pixels of the region) inside a region, 0 outside."""
    import cv2

    count, regions = cv2.connectedComponents((mask != 0).astype(np.uint8), connectivity=8)
    areas = np.bincount(regions.ravel(), minlength=count)
    share = np.append(0.0, 1 / areas[1:])
    return share[regions.ravel()]
