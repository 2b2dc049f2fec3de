"""What a fit learns from captions and images alone: language and patch bank, for several subsets of the images in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from cmgcli.bank import LEAST_SHARE, BankBuilder, caption_groups
from cmgcli.calibrate import calibrate
from cmgcli.cmle import ResidualMoments, guided_space, structure_matrix, uniform_structure
from cmgcli.detector import Blend, Detector, Language
from cmgcli.looks import Looks
from cmgcli.model import Model
from cmgcli.view import View

Progress = Callable[[str, int, int], None]


class Learner:
    """Learns from the views of some records, each shown once; memory does not grow with their number."""

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
        self.groups = caption_groups(self.text, most)  # (U,)
        self.builder = BankBuilder(int(self.groups.max()) + 1, budget=self.settings.bank_size)
        self.keeps: list[np.ndarray] = []  # (h, w) bool of each view

    def add(self, numbers: Sequence[int], views: Sequence[View]) -> None:
        """Take in the views of records."""
        if not views:
            return
        captions = [self.number[self.looks.records[i].text] for i in numbers]
        rows = torch.tensor(captions if self.settings.cmle else [0] * len(captions))
        self.moments.add(torch.stack([view.embedding for view in views]), rows)
        for view, group in zip(views, self.groups[captions].tolist(), strict=True):
            self.builder.add(view.patches, group)
            self.keeps.append(view.keep)

    def draft(self, *, false_alarm: float) -> Model:
        """A model of what was shown: without a head, its parts not weighted and its threshold not calibrated."""
        s = self.settings
        space = guided_space(self.moments, latent_dim=s.latent_dim)
        language = Language(self.captions, self.text, self.moments.group_means, self.groups, space, s.cmle, s.neighbours, s.ridge)
        flat = Blend(np.zeros(3), np.ones(3), np.array([0.5, 0.5, 0.0]))
        empty = calibrate([], [], false_alarm=false_alarm, method=s.calibration)
        reference = np.array([[0.0, 1.0]] * 2)
        return Model(Detector(s, language, self.builder.build(), None, flat, reference, empty, self.count), self.looks.encoder)


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
