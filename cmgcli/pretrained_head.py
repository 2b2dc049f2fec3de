"""The defect head that every fit starts from, trained on drawn defects by ``examples/builtin_encoder/train_head.py``."""

from __future__ import annotations

from pathlib import Path

import torch

from cmgcli.adapt import DefectHead
from cmgcli.encoder import WEIGHTS, Encoder
from cmgcli.errors import EncoderError

HEAD = "cmg-head.safetensors"


def save_head(head: DefectHead, path: Path) -> None:
    """Write the head's weights as fp16 safetensors."""
    from safetensors.torch import save_file

    save_file({name: tensor.cpu().half() if tensor.is_floating_point() else tensor.cpu() for name, tensor in head.state_dict().items()}, path)


def load_head(encoder: Encoder) -> DefectHead:
    """A head to start from: all of it for the built-in encoder; for another one the layers that read its tokens start anew.

    Raises:
        EncoderError: the weight file of the package is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(WEIGHTS / HEAD).items()}
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"the defect head's weights {WEIGHTS / HEAD} are missing or damaged ({error}); install cmgcli again") from error
    torch.manual_seed(0)
    head = DefectHead(encoder.width)
    if encoder.name != "builtin":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("token_")}
    head.load_state_dict(state, strict=encoder.name == "builtin")
    return head
