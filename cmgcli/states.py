"""Flawless or defective: what a caption's thing would look like in either state, as directions of the embedding space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cmgcli.encoder import Encoder
from cmgcli.prompts import DEFECTIVE, FLAWLESS, prompts


def flawless_and_defective(encoder: Encoder, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Unit-norm embeddings (U, D) of the flawless and of the defective states of what each caption names; each is the mean of its prompts."""

    def mean(states: tuple[str, ...]) -> Tensor:
        return torch.stack([F.normalize(encoder.encode_text(prompts(caption, states)).mean(0), dim=0) for caption in captions])

    return mean(FLAWLESS), mean(DEFECTIVE)
