"""A fitted model as one ONNX graph: an image of a fixed size in, score, threshold and anomaly map out; runs without torch.

What `model.judge` and `model.anomaly_map` do for one image under a stored caption, written as one torch module of fixed
shapes. Patches beyond the kept ones and their rim are masked as keys of every attention, which equals their removal from the
token sequence, and all that are not kept are left out of every mean. Resizing by OpenCV's area rule is linear for a given size, so it is two matrix products; to a level of
255 where a side grows, for there OpenCV rounds its weights.

Not in the graph, and refused: encoders that are no plain vision transformers, relevance by sampling, by occlusion or by a derivative, and
images beyond the size at which the head looks by tiles. Left to the program: the choice of a caption where none is given, captions that are
not stored, and p-values.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmgcli import cmer, head
from cmgcli.cmle import Reconstruction
from cmgcli.detector import TOP_SHARE, Detector, States
from cmgcli.errors import OutputError, SettingsError
from cmgcli.files import write_whole
from cmgcli.model import Model, nothing_discarded
from cmgcli.tower import Tower, TowerOutput
from cmgcli.view import least_gain

logger = logging.getLogger(__name__)

OPSET = 18


def export_onnx(model: Model, path: Path, *, size: tuple[int, int]) -> None:
    """Write the model as ONNX for images of one size.

    Inputs of the graph: ``image`` (H, W, 3) uint8 RGB and ``caption`` () int64, a number in the list ``captions`` of the
    metadata. Outputs: ``score`` () float32, ``threshold`` () float32, the score above which the image is anomalous, and
    ``map`` (H, W) float32. The metadata also has ``size`` and ``false_alarm``.

    Args:
        size: height and width of the images, pixels.
    Raises:
        SettingsError: the model has a part that the graph cannot, or an extra is not installed.
        OutputError: the file cannot be written.
    """
    graph = Inspector(model, size)
    onnx = _onnx()
    example = (torch.zeros(*size, 3, dtype=torch.uint8), torch.zeros((), dtype=torch.int64))
    names = {"input_names": ["image", "caption"], "output_names": ["score", "threshold", "map"]}
    with tempfile.TemporaryDirectory() as folder, _quiet(), torch.no_grad():
        file = Path(folder) / "model.onnx"
        torch.onnx.export(graph, example, file, opset_version=OPSET, dynamo=True, external_data=False, verbose=False, **names)
        written = onnx.load(file)
    detector = model.detector
    for key, value in {"captions": detector.language.captions, "size": size, "false_alarm": detector.calibration.false_alarm}.items():
        written.metadata_props.add(key=key, value=json.dumps(value))
    try:
        write_whole(Path(path), written.SerializeToString())
    except OSError as error:
        raise OutputError(f"the graph could not be written to {path} ({error.strerror}); choose another --out") from error
    if detector.settings.encoder_precision != "float32" or (detector.head is not None and detector.settings.precision != "float32"):
        logger.warning("the model computes in bfloat16 and the graph in float32, so that their scores differ a little; fit with --precision float32 for the same ones")


def _onnx():
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise SettingsError(f"cmg export needs {error.name}, which is not installed: pip install 'cmgcli[onnx]'") from error
    return onnx


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx tells of its own future on stderr."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def resize_matrix(before: int, after: int, interpolation: int, *, enlarges: bool = False) -> Tensor:
    """(after, before) float32: OpenCV's resizing of one side as a matrix.

    enlarges: whether the image grows along its other side; OpenCV's area rule then is another one along this side too.
    """
    columns = np.eye(before, dtype=np.float32)  # the resized side first, the unit images along the other
    wide = before * 2 if enlarges else before
    return torch.from_numpy(cv2.resize(columns, (wide, after), interpolation=interpolation)[:, :: wide // before].copy())


class Resize(nn.Module):
    """OpenCV's resizing of (..., H, W) for one size; on uint8 values it rounds, as OpenCV does: halves up where it halves both sides, else to even."""

    def __init__(self, before: tuple[int, int], after: tuple[int, int], interpolation: int, *, rounds: bool = False) -> None:
        super().__init__()
        self.rounds, self.halves = rounds, (before[0], before[1]) == (2 * after[0], 2 * after[1])
        grows = [one > other and interpolation == cv2.INTER_AREA for one, other in zip(after, before, strict=True)]
        self.register_buffer("rows", resize_matrix(before[0], after[0], interpolation, enlarges=grows[1]))
        self.register_buffer("columns", resize_matrix(before[1], after[1], interpolation, enlarges=grows[0]).T.contiguous())

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        resized = self.rows @ image @ self.columns
        if not self.rounds:
            return resized
        return ((resized + 0.5).floor() if self.halves else resized.round()).clamp(0, 255)


class Inspector(nn.Module):
    """Image (H, W, 3) uint8 and caption number to score, threshold and anomaly map (H, W)."""

    def __init__(self, model: Model, size: tuple[int, int]) -> None:
        super().__init__()
        detector, encoder = model.detector, model.encoder
        settings, language = detector.settings, detector.language
        if not isinstance(encoder.tower, Tower):
            raise SettingsError(f"cmg export: encoder {encoder.name} is no plain vision transformer, which the graph takes; fit with builtin or one such as ViT-B-16")
        if settings.cmer and not nothing_discarded(settings) and (settings.relevance != "fast" or not model.encoder.averages):
            raise SettingsError(f"cmg export: relevance {settings.relevance} of encoder {settings.encoder} takes more than one forward pass; fit with --no-cmer")
        if settings.tile is not None and max(size) > settings.tile:
            raise SettingsError(
                f"cmg export: this model sees images beyond {settings.tile} pixels a side in tiles, which the graph cannot; "
                f"export for at most {settings.tile}x{settings.tile}, or fit without --tile"
            )
        if detector.head is not None and size[0] * size[1] > head.MAX_PIXELS:
            raise SettingsError(f"cmg export: expected at most {head.MAX_PIXELS} pixels, got {size[0]} x {size[1]}; export for a smaller size, and resize the images to it")
        self.keep = settings.keep if settings.cmer and not nothing_discarded(settings) else None
        self.least_gain = least_gain(settings.ground) if encoder.unnamed is not None else 0.0
        self.layers, self.grid, self.averages = settings.layers, encoder.grid, encoder.averages
        self.tower = _float_tower(encoder.tower)
        self.to_square = _squash(size, encoder.image_size)
        self.register_buffer("unnamed", None if encoder.unnamed is None else encoder.unnamed.cpu())  # (D,)
        self.register_buffer("mean", torch.tensor(encoder.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.std).view(3, 1, 1))
        weights = [language.weights_of(text) for text in language.text]
        self.latent = language.latent
        self.register_buffer("text", language.text.float())  # (U, D)
        self.register_buffer("places", torch.stack([one.of(language.means) for one in weights]))  # (U, D) float64
        self.register_buffer("projection", language.space.projection)
        self.register_buffer("unexplained", language.space.unexplained)
        self.states = language.states is not None
        if self.states:
            ways, expected = zip(*(_towards_defective(language.states, one) for one in weights), strict=True)
            self.register_buffer("ways", torch.stack(ways))  # (U, K, D)
            self.register_buffer("way_weights", torch.stack([one.weights for one in weights]))  # (U, K) float64
            self.register_buffer("expected", torch.stack(expected))  # (U,) float64
        searched = torch.stack([torch.isin(detector.bank.groups.cpu(), language.bank_groups(one)) for one in weights])
        self.register_buffer("bank", detector.bank.features.cpu())  # (M, V)
        self.register_buffer("apart", torch.where(searched, 0.0, 1e6))  # (U, M) added to the squared distance
        self.register_buffer("thresholds", _thresholds(detector))  # (U,)
        self.head = None if detector.head is None else HeadScore(detector.head, size, encoder.grid)
        blend, reference = detector.blend, detector.map_reference
        for part in fields(blend):
            self.register_buffer(f"blend_{part.name}", torch.from_numpy(getattr(blend, part.name)))
        self.register_buffer("reference", torch.from_numpy(reference).float())  # (3, 3)
        self.patch_map_to_image = Resize(encoder.grid, size, cv2.INTER_LINEAR)

    def forward(self, image: Tensor, caption: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        channels = image.permute(2, 0, 1).float()  # (3, H, W)
        pixels = ((self.to_square(channels) / 255 - self.mean) / self.std)[None]
        text = self.text.index_select(0, caption.view(1))[0]  # (D,)
        whole = self.tower(pixels, layers=self.layers)
        kept = self._kept(whole.dense, text)  # (P,) bool
        seen, embedding = (whole, whole.embedding[0]) if self.keep is None else self._through(pixels, kept)
        distances = self._distances(seen.layers, caption)  # (P,)
        head_score, head_map = torch.zeros((), dtype=torch.float64), None
        if self.head is not None:
            head_score, head_map = self.head(channels, kept.view(self.grid))
        embedding = F.normalize(embedding, dim=0)
        state, towards = self._state(F.normalize(seen.dense[0], dim=-1), embedding, kept, caption) if self.states else (torch.zeros((), dtype=torch.float64), None)
        parts = torch.stack([self._image_score(embedding, caption), _top_mean(distances, kept, TOP_SHARE).double(), head_score.double(), state])
        z = (parts - self.blend_location) / self.blend_scale
        score = (self.blend_weight * _softplus(z) ** 2 + self.blend_far * _softplus(z - self.blend_reach) ** 2).sum().sqrt().float()
        return score, self.thresholds.index_select(0, caption.view(1))[0], self._map(distances, towards, kept, head_map)

    def _through(self, pixels: Tensor, kept: Tensor) -> tuple[TowerOutput, Tensor]:
        """What the kept patches (P,) bool and a rim around them give, and the embedding (D,) of the kept ones; see `view.look`."""
        shown = cmer.with_rim(kept[None], self.grid)
        seen = self.tower(pixels, layers=self.layers, weight=torch.where(shown, 0.0, -torch.inf))  # none looks at the others
        return seen, (seen.dense[0] * kept.unsqueeze(1)).sum(0)

    def _kept(self, dense: Tensor, text: Tensor) -> Tensor:
        count = dense.shape[1]
        if self.keep is None:
            return torch.ones(count, dtype=torch.bool)
        sizes = sorted({max(1, round(size * count)) for size in cmer.KEEP_SIZES})
        rank, matches = _nested(dense, text, sizes)
        gain = matches.max() - matches[-1]
        if self.unnamed is not None:
            by_name, (rank_unnamed, matches_unnamed) = matches.max() >= cmer.MATCH_FLOOR, _nested(dense, self.unnamed, sizes)
            thing = matches_unnamed.max() - matches_unnamed[-1]
            gain = torch.where(by_name, gain.maximum(thing), thing)
            rank, matches = torch.where(by_name, rank, rank_unnamed), torch.where(by_name, matches, matches_unnamed)
        if self.keep == "auto":
            best = matches.max()
            within = matches >= best - (cmer.TOLERANCE * (best - matches.min())).clamp(min=0.01)
            largest = (within * torch.tensor(sizes)).max()
            chosen = torch.where(gain < self.least_gain, count, largest)
        else:
            chosen = max(1, round(self.keep * count))
        return grown((rank < chosen).view(self.grid)).flatten()

    def _image_score(self, embedding: Tensor, caption: Tensor) -> Tensor:
        place = embedding if self.latent is None else self.latent(embedding)
        z = self.projection @ (place.double() - self.places.index_select(0, caption.view(1))[0].double())
        return (z**2 / self.unexplained).sum().sqrt()

    def _state(self, dense: Tensor, embedding: Tensor, kept: Tensor, caption: Tensor) -> tuple[Tensor, Tensor | None]:
        """The state score and, of an encoder whose patches have embeddings, their map (P,)."""
        ways, weights = self.ways.index_select(0, caption.view(1))[0], self.way_weights.index_select(0, caption.view(1))[0]  # (K, D), (K,)
        expected = self.expected.index_select(0, caption.view(1))[0]
        if not self.averages:
            return weights @ (ways @ embedding).double() - expected, None
        towards = dense @ ways.T  # (P, K)
        peaks = torch.stack([_top_mean(towards[:, k], kept, TOP_SHARE) for k in range(len(ways))])
        return weights @ peaks.double() - expected, towards @ weights.float()

    def _distances(self, layers: tuple[Tensor, ...], caption: Tensor) -> Tensor:
        features = torch.cat([F.normalize(tokens[0], dim=-1) for tokens in layers], dim=-1) / len(layers) ** 0.5  # (P, V)
        squared = (features**2).sum(1, keepdim=True) + (self.bank**2).sum(1) - 2 * features @ self.bank.T + self.apart.index_select(0, caption.view(1))
        return squared.amin(1).clamp(min=0).sqrt()

    def _map(self, distances: Tensor, towards: Tensor | None, kept: Tensor, head_map: Tensor | None) -> Tensor:
        total = torch.zeros(self.grid[0] * self.grid[1])
        for values, (location, scale, weight) in ((distances, self.reference[0]), (towards, self.reference[2])):
            if values is not None:
                calm = torch.where(kept, values, torch.inf).min()
                total = total + weight * (torch.where(kept, values, calm) - location) / scale
        total = self.patch_map_to_image(total.view(self.grid))
        if head_map is None:
            return total
        location, scale, weight = self.reference[1]
        return total + self.head.map_to_image(weight * (head_map - location) / scale)


def _towards_defective(states: States, caption: Reconstruction) -> tuple[Tensor, Tensor]:
    """The ways (K, D) that a caption's weights (K,) name, and how far along them its images go, () float64."""
    return states.ways[states.way[caption.sources]], caption.weights @ states.means[caption.sources]


def _softplus(z: Tensor) -> Tensor:
    return z.clamp(min=0) + (1 + (-z.abs()).exp()).log()


def _nested(dense: Tensor, text: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The place (P,) of each patch token (1, P, D) in the order of its relevance for a text (D,), and the match (sizes,) of so many of the first."""
    relevance = cmer.fast(dense, text[None])[0]  # (P,)
    before = relevance > relevance.unsqueeze(1)  # (P, P): of equal ones the lower number comes first
    ties = (relevance == relevance.unsqueeze(1)) & torch.ones_like(before).tril(-1)
    rank = (before | ties).sum(1)
    pooled = torch.stack([F.normalize((dense[0] * (rank < size).unsqueeze(1)).sum(0), dim=0) for size in sizes])
    return rank, pooled @ text


class HeadScore(nn.Module):
    """`head.head_map` for one size: channels (3, H, W) float32 of 0 to 255 and keep (h, w) to score and map."""

    def __init__(self, net: head.DefectHead, size: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).float().cpu()
        sizes = [head.scaled_size(*size, scale) for scale in head.look_scales(*size)]
        maps = [tuple(-(-side // head.STRIDE) for side in one) for one in sizes]
        self.base = tuple(-(-side // head.STRIDE) for side in head.scaled_size(*size, 1.0))
        self.looks = nn.ModuleList(Resize(size, one, cv2.INTER_AREA, rounds=True) for one in sizes)
        self.places = [[torch.from_numpy(head.places_over(side, length)) for side, length in zip(grid, one, strict=True)] for one in maps]
        self.map_to_image = Resize(self.base, size, cv2.INTER_LINEAR)

    def forward(self, channels: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        mean = channels.mean()
        spread = ((channels - mean) ** 2).mean().sqrt().clamp(min=4.0)
        peaks, shown = [], []
        for resize, (rows, columns) in zip(self.looks, self.places, strict=True):
            logits = self.net(((resize(channels) - mean) / spread)[None])[0, 0]
            kept = rows @ keep.float() @ columns.T > 0
            peaks += [_top_mean(logits.flatten(), kept.flatten(), share, of_kept=True) for share in head.TOP_SHARES]
            calm = torch.where(kept, logits, torch.where(kept, logits, torch.inf).min())
            shown.append(F.interpolate(calm[None, None], self.base, mode="bilinear", align_corners=False)[0, 0])
        return self.net.unusual(torch.stack(peaks).view(len(self.looks), -1)), torch.stack(shown).amax(0)


def _squash(size: tuple[int, int], side: int) -> nn.Module:
    """`images.to_square` of (3, H, W) for one size."""
    shrunk = min(size[0], side), min(size[1], side)
    steps = [Resize(size, shrunk, cv2.INTER_AREA, rounds=True)] if shrunk != size else []
    steps += [Resize(shrunk, (side, side), cv2.INTER_CUBIC, rounds=True)] if shrunk != (side, side) else []
    return nn.Sequential(*steps)


def _float_tower(tower: Tower) -> Tower:
    """A copy in float32 on the CPU."""
    state = {name: tensor.float().cpu() for name, tensor in tower.state_dict().items()}
    embed = state.pop("embed.weight")
    return Tower(state | {"conv1.weight": embed.view(-1, 3, tower.patch, tower.patch)}, tower.shape, tower.grid)


def _thresholds(detector: Detector) -> Tensor:
    return torch.tensor([detector.threshold_of(caption) for caption in detector.language.captions], dtype=torch.float32)


def _top_mean(values: Tensor, kept: Tensor, share: float, *, of_kept: bool = False) -> Tensor:
    """Mean of the largest kept values: the share of all places, or of the kept ones, at least one, at most all that are kept."""
    ordered = torch.where(kept, values, -torch.inf).topk(max(1, round(share * len(values)))).values
    count = (share * kept.sum()).round().clamp(min=1) if of_kept else kept.sum().clamp(max=len(ordered))
    counted = torch.arange(len(ordered)) < count
    return torch.where(counted, ordered, 0.0).sum() / count


def grown(core: Tensor) -> Tensor:
    """`cmer.grow` of a mask (h, w) bool in tensors: closed, its holes filled, one patch larger."""
    height, width = core.shape
    padded = F.pad(core.float()[None], (2, 2, 2, 2))
    closed = -F.max_pool2d(-F.max_pool2d(padded, 3, 1, 1), 3, 1, 1)
    free = (1 - closed).flatten()
    steps = _steps(height + 4, width + 4) * free * free.unsqueeze(1)  # 1 where one place is reached from another
    for _ in range(int(np.ceil(np.log2(len(free))))):  # each time by ways twice as long
        steps = (steps @ steps).clamp(max=1)
    filled = torch.maximum(closed, 1 - steps[0].view_as(closed))
    return cmer.with_rim(filled.flatten()[None] > 0.5, (height + 4, width + 4)).view(height + 4, width + 4)[2:-2, 2:-2]


def _steps(height: int, width: int) -> Tensor:
    """(n, n) float32 for the ``n`` places of a grid: 1 for a place with itself and with those beside, above and below it."""
    rows, columns = np.divmod(np.arange(height * width), width)
    apart = np.abs(rows[:, None] - rows) + np.abs(columns[:, None] - columns)
    return torch.from_numpy((apart <= 1).astype(np.float32))
