"""The patch bank: normal patches grouped by caption, and the streaming k-center coreset that fills it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cmgcli.precision import native_bfloat16

SHORTLIST = 4  # rows
SKETCH = 64  # dimensions
SLACK = 4  # times its share that a group may hold before it is reduced
LEAST_SHARE = 32  # patches of a group, below which captions share groups


@dataclass(frozen=True)
class PatchBank:
    """Normal patches, grouped by caption: language is the coarse quantiser of the search."""

    features: Tensor  # (M, V) float32, unit norm
    groups: Tensor  # (M,) int64 caption numbers, ascending
    origins: Tensor  # (M, 5) int64, which image of the fit each comes from, and its top, left, bottom and right there, pixels

    def distances(self, patches: Tensor, groups: Tensor) -> Tensor:
        """Distance (K,) of each patch (K, V) to its nearest normal patch in the given groups.

        A processor that multiplies bfloat16 draws up a shortlist in it and measures that in float32: five times as fast, and seldom
        another row than the nearest, one hardly farther.
        """
        patches = patches.to(self.features)
        wanted = groups.to(self.groups).unique()
        starts = torch.searchsorted(self.groups, wanted).tolist()
        ends = torch.searchsorted(self.groups, wanted, right=True).tolist()
        found = [self._nearest(patches, start, end) for start, end in zip(starts, ends, strict=True) if end > start]
        return torch.stack(found).amin(0)

    def _nearest(self, patches: Tensor, start: int, end: int) -> Tensor:
        """Distance (K,) to the nearest of the rows from `start` to `end`."""
        features = self.features[start:end]
        if self._rough is None or len(features) <= SHORTLIST:
            return torch.cdist(patches, features).amin(dim=1)
        likeness = patches.bfloat16() @ self._rough[start:end].T  # (K, rows); of unit-norm features, so the greatest is the nearest
        shortlist = features[likeness.topk(SHORTLIST, dim=1, sorted=False).indices]  # (K, SHORTLIST, V)
        return (patches.unsqueeze(1) - shortlist).norm(dim=2).amin(dim=1)

    @functools.cached_property
    def _rough(self) -> Tensor | None:
        return self.features.bfloat16() if self.features.device.type == "cpu" and native_bfloat16() else None

    def nearest(self, patches: Tensor, groups: Tensor, count: int) -> Nearest:
        """The ``count`` normal patches in the given groups nearest to each patch (K, V), or as many as there are."""
        rows = torch.isin(self.groups, groups.to(self.groups)).nonzero().flatten()
        found = torch.cdist(patches.to(self.features), self.features[rows]).topk(min(count, len(rows)), dim=1, largest=False)
        return Nearest(rows[found.indices], found.values)

    def to(self, device: torch.device) -> PatchBank:
        """The bank on another device; the origins, which are only looked up, stay."""
        return replace(self, features=self.features.to(device), groups=self.groups.to(device))


@dataclass(frozen=True)
class Nearest:
    """Normal patches near given ones, nearest first."""

    rows: Tensor  # (K, n) int64, of the bank
    distances: Tensor  # (K, n) float32


@dataclass(frozen=True)
class Cover:
    """Chosen rows, and how far from its nearest chosen one any row is."""

    chosen: Tensor  # (budget,) int64, ascending
    radius: float


def sketch(features: Tensor, *, seed: int = 0) -> Tensor:
    """Random projection (n, 64) of features (n, V), in which a coreset is chosen as in PatchCore (Roth et al. 2022)."""
    projection = torch.randn(features.shape[1], SKETCH, generator=torch.Generator().manual_seed(seed)) / SKETCH**0.5
    return features.float().cpu() @ projection


def k_center(points: Tensor, budget: int) -> Cover:
    """Greedy k-center coreset of points (n, d): every one has a chosen one within the radius.

    Farthest-first traversal from the point nearest the mean (Gonzalez 1985): at most twice the least possible radius.
    All points where ``n <= budget``.
    """
    if len(points) <= budget:
        return Cover(torch.arange(len(points)), 0.0)
    norms = (points**2).sum(1)
    chosen = torch.empty(budget, dtype=torch.int64)
    nearest = torch.full((len(points),), torch.inf)
    current = int((points - points.mean(0)).norm(dim=1).argmin())
    for i in range(budget):
        chosen[i] = current
        squared = norms - 2 * (points @ points[current]) + norms[current]
        nearest = torch.minimum(nearest, squared)
        nearest[current] = -1.0
        current = int(nearest.argmax())
    return Cover(chosen.sort().values, float(nearest.max().clamp(min=0).sqrt()))


def caption_groups(text: Tensor, most: int, *, alike: float = 0.0) -> Tensor:
    """The group (U,) int64 of each caption embedding (U, D), numbered from 0 without gaps.

    Each caption is its own group, but for those whose squared distance is below ``alike``: each of their groups would have but a share of the bank,
    filled with what the others hold as well. Of more than ``most`` captions so many that lie far apart have one, the others join the nearest.
    """
    centres = text[:0]
    for centre in text[k_center(text, most).chosen]:
        if not bool(((centres - centre).square().sum(1) < alike).any()):
            centres = torch.cat([centres, centre[None]])
    return (text @ centres.T).argmax(1).unique(return_inverse=True)[1]


class _Group:
    """The patches of one group so far: a coreset within its share, and what came since that it does not cover."""

    def __init__(self, share: int) -> None:
        self.share, self.radius = share, 0.0
        self.features: list[Tensor] = []
        self.points: list[Tensor] = []
        self.origins: list[Tensor] = []
        self.size = 0

    def add(self, features: Tensor, origins: Tensor) -> None:
        points = sketch(features)
        if self.radius > 0:
            novel = torch.cdist(points, self.points[0]).amin(1) > self.radius
            features, points, origins = features[novel], points[novel], origins[novel]
            if not len(points):
                return
        else:
            features = features.clone()  # a few rows of a whole batch, which would stay with them
        self.features.append(features)
        self.points.append(points)
        self.origins.append(origins)
        self.size += len(points)
        if self.size > SLACK * self.share:
            self.reduce()

    def reduce(self) -> None:
        features, points, origins = torch.cat(self.features), torch.cat(self.points), torch.cat(self.origins)
        cover = k_center(points, self.share)
        self.features, self.points, self.origins = [features[cover.chosen]], [points[cover.chosen]], [origins[cover.chosen]]
        self.radius = max(self.radius, cover.radius)
        self.size = len(cover.chosen)


class BankBuilder:
    """Streams patches into a bank of fixed budget.

    Groups share the budget evenly. One that holds more than four times its share is reduced to a k-center coreset, and
    from there on takes in only patches that lie farther from it than its radius.
    """

    def __init__(self, groups: int, *, budget: int) -> None:
        self.groups = [_Group(max(1, budget // groups)) for _ in range(groups)]

    def add(self, patches: Tensor, group: int, *, image: int, boxes: Tensor) -> None:
        """Take in kept patches (K, V) of one image of the fit, with the top, left, bottom and right (K, 4) of each in it."""
        origins = torch.cat([torch.full_like(boxes[:, :1], image), boxes], dim=1)
        self.groups[group].add(patches.detach().float().cpu(), origins)

    def build(self) -> PatchBank:
        """The bank of what was added, within the budget."""
        for group in self.groups:
            group.reduce()
        features = [group.features[0] for group in self.groups]
        groups = [torch.full((group.size,), number) for number, group in enumerate(self.groups)]
        return PatchBank(torch.cat(features).contiguous(), torch.cat(groups), torch.cat([group.origins[0] for group in self.groups]))
