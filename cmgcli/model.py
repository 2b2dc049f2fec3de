"""A fitted model: score images, draw their anomaly maps, save and load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from cmgcli import checkpoint
from cmgcli.cmle import Reconstruction
from cmgcli.detector import Detector, Settings, top_mean
from cmgcli.encoder import Encoder, load_encoder
from cmgcli.errors import CheckpointError, EncoderError, ImageError
from cmgcli.files import resolved
from cmgcli.head import highest, peaks_and_map
from cmgcli.loader import BATCH, decoded
from cmgcli.rows import Row
from cmgcli.tiles import stitch
from cmgcli.view import View, images_at_once, look, look_nearer, views_of

NO_NUMBER = "the score is not a number: the image gives no usable features"
NEW_CAPTIONS = 1024  # held beside those of the model
MAP_CALM, MAP_STRANGE = -1.5, 0.3  # the colour scale of anomaly maps, the same for every image; see `anomaly_map`


@dataclass(frozen=True)
class Inspection:
    """What scoring one image gives: its row and, unless the image was unreadable, what pictures are made of."""

    row: Row
    view: View | None = None
    anomaly_map: np.ndarray | None = None  # (H, W) float32; 0 is the peak of a typical normal image, 1 one spread above
    parts: Parts | None = None  # of its score, with the maps they come from


@dataclass(frozen=True, repr=False)
class Model:
    """A fitted detector with its encoder, ready to score."""

    detector: Detector
    encoder: Encoder

    def __repr__(self) -> str:
        """What it is, in a line: what it holds would fill pages."""
        detector = self.detector
        threshold = detector.calibration.said_threshold if len(detector.calibration.scores) else "none"
        return f"<Model: {detector.fit_images} images, encoder {self.encoder.name}, {'a' if detector.head else 'no'} head, threshold {threshold}>"

    def save(self, path: Path | str) -> None:
        """Write one safetensors file; see `checkpoint.save`."""
        checkpoint.save(self.detector, Path(path))

    @staticmethod
    def load(path: Path | str, *, device: str = "auto", false_alarm: float | None = None) -> Model:
        """Read a model and the encoder it was fitted with.

        Args:
            false_alarm: judge by the threshold of this promised rate; None: by that of the fit.
        Raises:
            SettingsError: a rate outside (0, 1).
            CheckpointError: a damaged file, or the encoder's weights are no longer the ones of the fit.
            EncoderError: the encoder cannot be loaded.
        """
        detector = checkpoint.load(Path(path))
        if false_alarm is not None:
            detector = replace(detector, calibration=detector.calibration.at(false_alarm))
        try:
            encoder = load_encoder(detector.settings.encoder, device=device, precision=detector.settings.encoder_precision)
        except EncoderError as error:
            raise EncoderError(f"{path} was fitted with an encoder that cannot be loaded: {error}") from error
        if encoder.sha256 != detector.settings.encoder_sha256:
            raise CheckpointError(
                f"{path} was fitted with other weights of encoder {encoder.name} (expected {detector.settings.encoder_sha256[:16]}, "
                f"got {encoder.sha256[:16]}); fit it again or bring back those weights"
            )
        if detector.head is not None:
            detector.head.to(encoder.device)
        return Model(replace(detector, bank=detector.bank.to(encoder.device)), encoder)

    def images_at_once(self, batch_size: int | str) -> int:
        """How many images it takes at a time; see `view.images_at_once`."""
        return images_at_once(self.encoder, batch_size, tile=self.detector.settings.tile)

    def score(
        self, paths: Iterable[Path | str] | Path | str, captions: Mapping[Path | str, str] | Path | str | None = None, *, batch_size: int | str = BATCH
    ) -> Iterator[Row]:
        """One row per path, in order; see `inspect`.

        Args:
            paths: or a single one.
            captions: by any path that leads to the image, or a caption file, whose paths are relative to its directory.
        """
        if isinstance(captions, str | Path):
            from cmgcli.dataset import read_lookup

            known = read_lookup(Path(captions), Path(captions).parent)
        else:
            known = None if captions is None else {resolved(path): caption for path, caption in captions.items()}
        paths = [paths] if isinstance(paths, str | Path) else paths
        for inspection in self.inspect(paths, known, batch_size=batch_size):
            yield inspection.row

    def inspect(
        self,
        paths: Iterable[Path | str],
        captions: Mapping[Path, str] | None = None,
        *,
        batch_size: int | str = BATCH,
        live: bool = False,
        maps: bool = False,
    ) -> Iterator[Inspection]:
        """Score images one batch after the other; a file that cannot be read gives a row with `error`.

        Args:
            captions: caption by resolved path. An image without one gets the stored caption that explains it best.
            batch_size: images per forward pass, it does not change a score; auto takes as many as fit, see `view.images_at_once`.
            live: the paths come as they are made; see `loader.decoded`.
            maps: also compute anomaly maps.
        """
        stored: dict[str, Tensor] = dict(zip(self.detector.language.captions, self.detector.language.text, strict=True))
        known = stored.copy()
        for batch in decoded(paths, batch_size=self.images_at_once(batch_size), live=live):
            given = [(captions or {}).get(resolved(name)) for name, _ in batch]
            if len(known) > len(stored) + NEW_CAPTIONS:  # each image of a long run may have one of its own
                known = stored.copy()
            for caption in {c for c in given if c is not None and c not in known}:
                known[caption] = self.encoder.encode_text([caption])[0].cpu()
            texts = [None if caption is None else known[caption] for caption in given]
            views = views_of([image for _, image in batch], texts, partial(look_with, self))
            for (name, _), caption, view in zip(batch, given, views, strict=True):
                if isinstance(view, ImageError):
                    yield Inspection(Row(file=str(name), error=str(view)))
                else:
                    yield self.inspection(str(name), view, caption, known, maps)

    def inspection(self, name: str, view: View, caption: str | None, known: Mapping[str, Tensor], maps: bool) -> Inspection:
        """What scoring gives for one image that is looked at; ``known`` has the embedding (D,) of its caption, if it has one."""
        detector = self.detector
        language = detector.language
        if caption is None:
            caption = language.captions[language.best_caption(view.embedding)]
        parts = judge(detector, view, language.weights_of(known[caption]))
        score = float(detector.blend(parts.values[None])[0])
        if not np.isfinite(score):
            return Inspection(Row(file=name, caption=caption, error=NO_NUMBER))
        group = language.group_of(caption)
        row = Row(
            file=name,
            score=score,
            anomalous=int(score > detector.calibration.threshold(group)),
            p_value=detector.calibration.p_value(score, group),
            image_score=float(parts.values[0]),
            patch_score=float(parts.values[1]),
            head_score=None if detector.head is None else float(parts.values[2]),
            match=float(view.embedding @ known[caption].to(view.embedding)),
            kept=float(view.keep.mean()),
            caption=caption,
        )
        return Inspection(row, view, anomaly_map(detector, view, parts) if maps else None, parts)


def look_by(
    encoder: Encoder, settings: Settings, images: Sequence[np.ndarray], texts: Sequence[Tensor | None], stored: Tensor | None = None
) -> list[View]:
    """`look` as the settings say, and nearer where they ask for tiles; without CMER, or a ground to discard, every patch is kept."""
    keep = None if not settings.cmer or nothing_discarded(settings) else settings.keep
    views = look(encoder, images, texts, stored=stored, layers=settings.layers, relevance=settings.relevance, keep=keep, ground=settings.ground)
    if settings.tile is None:
        return views
    return [look_nearer(encoder, view, layers=settings.layers, tile=settings.tile, overlap=settings.overlap) for view in views]


def nothing_discarded(settings: Settings) -> bool:
    """Whether CMER finds nothing to discard in any image, as on surfaces that fill the frame."""
    return settings.cmer and settings.keep == "auto" and settings.ground == "no"


def look_with(model: Model, images: Sequence[np.ndarray], texts: Sequence[Tensor | None]) -> list[View]:
    """`look` with given caption embeddings; where one is None, the stored caption that matches the whole image best."""
    return look_by(model.encoder, model.detector.settings, images, texts, model.detector.language.text)


@dataclass(frozen=True)
class Parts:
    """The parts of one image's score and the maps they come from."""

    values: np.ndarray  # (4,) float64 in the order of detector.PARTS; NaN where one is absent
    patch_map: np.ndarray  # (h, w) float32 distances, the least kept one where hidden
    head_map: np.ndarray | None  # (H', W') float32 logits
    state_map: np.ndarray | None = None  # (h, w) float32 towards a defective state, the least kept one where hidden; None where patches have no embeddings
    tiles: tuple[Parts, ...] = ()  # of a view with tiles the parts of each; but for their patch score they are NaN

    @property
    def maps(self) -> tuple[np.ndarray | None, ...]:
        """The patch map, the head map and the state map, None for an absent one."""
        return self.patch_map, self.head_map, self.state_map

    @property
    def pieces(self) -> tuple[Parts, ...]:
        """The parts of each of `View.pieces`."""
        return self.tiles or (self,)


def judge(detector: Detector, view: View, caption: Reconstruction) -> Parts:
    """The parts of the score of one view against the place and the patches that its caption's weights (K,) name.

    Of a view with tiles the worst tile speaks, whatever the size of the image: for the patches the one that is strangest, for the
    head, look by look and for each size of a peak, the one that has the highest, so that a scratch which one look alone sees is not
    outdone by a tile that is a little unusual in all.
    """
    groups = detector.language.bank_groups(caption)
    pieces, peaks = zip(*(_judge_piece(detector, piece, groups, caption) for piece in view.pieces), strict=True)
    head_score = np.nan if detector.head is None else float(detector.head.unusual(highest(peaks)))
    strangest = max(piece.values[1] for piece in pieces)
    maps = (_joined(view, alike) for alike in zip(*(piece.maps for piece in pieces), strict=True))
    state = detector.language.state_score([piece.embeddings for piece in view.pieces], view.keep.size, caption)
    values = np.array([detector.language.image_score(view.embedding, caption), strangest, head_score, state])
    return Parts(values, *maps, tiles=pieces if view.tiles else ())


def _judge_piece(detector: Detector, view: View, groups: Tensor, caption: Reconstruction) -> tuple[Parts, Tensor | None]:
    """What is told from nearest by, all scores but that of the patches left out, NaN; and the head's peaks (4, 3), None without a head."""
    distances = detector.bank.distances(view.patches, groups).cpu()
    peaks, logits = (None, None) if detector.head is None else peaks_and_map(detector.head, view.image, view.keep, precision=detector.settings.precision)
    towards = None if view.dense is None else detector.language.state_map(view.dense, caption)
    state_map = None if towards is None else on_grid(towards, view.keep)
    return Parts(np.array([np.nan, top_mean(distances, view.keep.size), np.nan, np.nan]), on_grid(distances, view.keep), logits, state_map), peaks


def on_grid(distances: Tensor, keep: np.ndarray) -> np.ndarray:
    """The map (h, w) float32 of what each patch kept by (h, w) bool is worth, (K,); the least of it where they are hidden."""
    shown = np.full(keep.shape, float(distances.min()), np.float32)
    shown[keep] = distances.numpy()
    return shown


def _joined(view: View, maps: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The map of a view from those of its pieces."""
    if not view.tiles or maps[0] is None:
        return maps[0]
    return stitch(maps, [tile.keep for tile in view.tiles], [tile.box for tile in view.tiles], view.image.shape[:2])


def anomaly_map(detector: Detector, view: View, parts: Parts) -> np.ndarray:
    """(H, W) float32 map in the image's own frame: patch, head and state map, each against held-out normals' peaks, weighted.

    Not by the weights of the score: where in the image and whether at all are different questions.
    """
    return weighted_map(detector.map_reference, view, parts)


def weighted_map(reference: np.ndarray, view: View, parts: Parts) -> np.ndarray:
    """`anomaly_map` by a reference (3, 3): location, scale and weight of each of `Parts.maps`."""
    height, width = view.image.shape[:2]
    total = np.zeros((height, width), np.float32)
    for values, (location, scale, weight) in zip(parts.maps, reference, strict=True):
        if values is not None and weight > 0:
            standard = (weight * (values - location) / scale).astype(np.float32)
            total += cv2.resize(standard, (width, height), interpolation=cv2.INTER_LINEAR)
    return total
