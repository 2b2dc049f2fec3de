"""What a fit learns from captions and images alone: language and patch bank, for several subsets of the images in one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmgcli.album import take_pictures
from cmgcli.bank import LEAST_SHARE, BankBuilder, caption_groups
from cmgcli.calibrate import calibrate
from cmgcli.cmle import ALIKE, ResidualMoments, guided_space, shrink, structure_matrix, uniform_structure, whitening
from cmgcli.detector import Blend, Detector, Language, States
from cmgcli.looks import Looks
from cmgcli.model import Model
from cmgcli.projection import train_projection
from cmgcli.tiles import Box
from cmgcli.view import View

Progress = Callable[[str, int, int], None]
Place = tuple[Box, np.ndarray]  # a piece of an image and its keep mask (h, w) bool


class Learner:
    """Learns from the views of some records, each shown once.

    Memory does not grow with their number, but for the keep masks that the training of a head needs, (h, w) bool each, and the
    embeddings that a trained projection needs, (N, D) float32.
    """

    def __init__(self, looks: Looks, numbers: Sequence[int]) -> None:
        self.looks, self.settings, self.count = looks, looks.settings, len(numbers)
        texts = [looks.records[i].text for i in numbers]
        self.captions = tuple(dict.fromkeys(texts))
        self.number = {text: u for u, text in enumerate(self.captions)}
        self.text = torch.stack([looks.text[text] for text in self.captions])  # (U, D)
        counts = torch.bincount(torch.tensor([self.number[text] for text in texts]), minlength=len(self.captions))
        structure = (
            structure_matrix(self.text, counts, neighbours=self.settings.neighbours, ridge=self.settings.ridge)
            if self.settings.cmle
            else uniform_structure(self.count)
        )
        self.moments = ResidualMoments(structure, looks.encoder.dim)
        most = max(1, self.settings.bank_size // LEAST_SHARE) if self.settings.cmle else 1
        self.groups = caption_groups(self.text, most, alike=ALIKE)  # (U,)
        self.builder = BankBuilder(int(self.groups.max()) + 1, budget=self.settings.bank_size)
        self.states = self._states() if self.settings.cmer else None  # their means are still 0
        self.peaks = torch.zeros_like(self.moments.seen, dtype=torch.float64)  # (U,) sums of the peaks of each caption's images
        self.embeddings: list[Tensor] = []  # (B, D) each, for a trained projection
        self.rows: list[Tensor] = []  # (B,) each, the row of the structure that an image belongs to
        self.places: list[tuple[Place, ...]] = []  # of each view, where a head is to be trained: where its pieces lie and what they keep

    def add(self, numbers: Sequence[int], views: Sequence[View]) -> None:
        """Take in the views of records."""
        if not views:
            return
        captions = [self.number[self.looks.records[i].text] for i in numbers]
        rows = torch.tensor(captions if self.settings.cmle else [0] * len(captions))
        embeddings = torch.stack([view.embedding for view in views]).cpu()
        self.moments.add(embeddings, rows)
        if self.settings.projection != "closed":
            self.embeddings.append(embeddings)
            self.rows.append(rows)
        if self.states is not None:
            for view, row in zip(views, rows.tolist(), strict=True):
                self.peaks[row] += self.states.peaks([piece.embeddings for piece in view.pieces], view.keep.size)[self.states.way[row]]
        for i, view, group in zip(numbers, views, self.groups[captions].tolist(), strict=True):
            for piece in view.pieces:
                self.builder.add(piece.patches, group, image=i, boxes=torch.from_numpy(piece.patch_boxes))
            if self.settings.adapt_steps > 0:
                self.places.append(tuple((piece.box, piece.keep) for piece in view.pieces))

    def _states(self) -> States:
        """Of good images nothing yet."""
        stated, ways = self.looks.towards_defective
        way = (self.text @ stated.T).argmax(1)
        if not self.settings.cmle:
            ways, way = ways.mean(0, keepdim=True), way[:1] * 0
        return States(ways, way, torch.zeros(len(way), dtype=torch.float64))

    def draft(self, *, false_alarm: float, snapshot: Path | None = None, report: Progress) -> Model:
        """A model of what was shown: without a head, its parts not weighted and its threshold not calibrated."""
        s = self.settings
        flat = Blend.even([True, True, False, False])
        empty = calibrate([], [], false_alarm=false_alarm, method=s.calibration)
        reference = np.array([[0.0, 1.0, 1 / 3]] * 3)
        return Model(Detector(s, self._language(snapshot, report), self.builder.build().to(self.looks.encoder.device), None, None, flat, reference, empty, self.count), self.looks.encoder)

    def _language(self, snapshot: Path | None, report: Progress) -> Language:
        s, states = self.settings, self.states
        if states is not None:
            states = replace(states, means=self.peaks / self.moments.seen.clamp(min=1))
        if s.projection == "closed":
            space = guided_space(self.moments, latent_dim=s.latent_dim)
            return Language(self.captions, self.text, self.moments.group_means, self.groups, space, s.cmle, s.neighbours, s.ridge, states=states)
        embeddings, rows = torch.cat(self.embeddings).float(), torch.cat(self.rows)
        latent = train_projection(
            embeddings,
            rows,
            self.moments.structure,
            whitening(shrink(self.moments.covariance(), self.count)),
            kind=s.projection,
            latent_dim=s.latent_dim,
            epochs=s.epochs,
            seed=s.seed,
            device=self.looks.encoder.device.type,
            snapshot=snapshot,
            snapshot_key=hashlib.sha256(repr((s, self.captions)).encode() + rows.numpy().tobytes() + embeddings.numpy().tobytes()).hexdigest(),
            progress=lambda epoch, epochs, loss: report(f"training the guided space (loss {loss:.3f})", epoch, epochs),
        )
        moments = ResidualMoments(self.moments.structure, latent.latent_dim)
        for part in torch.arange(self.count).split(4096):
            moments.add(latent(embeddings[part]), rows[part])
        return Language(self.captions, self.text, moments.group_means, self.groups, guided_space(moments), s.cmle, s.neighbours, s.ridge, latent, states)


def learn(looks: Looks, subsets: Sequence[Sequence[int]], report: Progress) -> list[Learner]:
    """One learner for each subset of record numbers, in one pass over all of them."""
    learners = [Learner(looks, subset) for subset in subsets]
    members = [set(subset) for subset in subsets]
    every = sorted(set().union(*members))
    done = 0
    for numbers, views in looks.sound(every):
        for learner, member in zip(learners, members, strict=True):
            shown = [(i, view) for i, view in zip(numbers, views, strict=True) if i in member]
            learner.add([i for i, _ in shown], [view for _, view in shown])
        done += len(numbers)
        report("learning from captions and images", done, len(every))
    return learners


def with_album(model: Model, looks: Looks) -> Model:
    """The model with small pictures of the patches that its bank holds of the images it looked at."""
    bank, album = take_pictures(model.detector.bank, looks.image, lambda i: looks.records[i].file_name)
    return replace(model, detector=replace(model.detector, bank=bank, album=album))


def state_of(snapshot: Path | None, number: int) -> Path | None:
    """The file for the state of a guided space's training, beside that of the head's."""
    return None if snapshot is None else snapshot.with_name(f"{snapshot.name}.space{number}")
