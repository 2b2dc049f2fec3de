"""The defect head that every fit starts from, trained on drawn defects by ``examples/builtin_encoder/train_head.py``."""

from __future__ import annotations

from pathlib import Path

import torch

from cmgcli.encoder import WEIGHTS
from cmgcli.errors import EncoderError
from cmgcli.files import write_whole
from cmgcli.head import DefectHead

HEAD = WEIGHTS / "cmg-head.safetensors"


def save_head(head: DefectHead, path: Path) -> None:
    """Write the head's weights as fp16 safetensors, but for the layers that read an encoder's tokens."""
    from safetensors.torch import save

    state = {name: tensor.cpu() for name, tensor in head.state_dict().items() if not name.startswith("token_")}
    write_whole(path, save({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}))


def load_head(token_width: int, path: Path = HEAD) -> DefectHead:
    """A head to start from; the layers that read an encoder's tokens of this width start at zero.

    Raises:
        EncoderError: the weight file of the package is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    torch.manual_seed(0)
    head = DefectHead(token_width)
    fresh = {name: tensor for name, tensor in head.state_dict().items() if name.startswith("token_")}
    try:
        state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}
        head.load_state_dict(state | fresh)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise EncoderError(f"the defect head's weights {path} are missing or damaged ({error}); install cmgcli again") from error
    return head
