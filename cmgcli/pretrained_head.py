"""The defect head that every fit starts from, trained on drawn defects by ``examples/builtin_encoder/train_head.py``."""

from __future__ import annotations

from pathlib import Path

from cmgcli.clip import WEIGHTS
from cmgcli.errors import EncoderError
from cmgcli.files import write_whole
from cmgcli.head import DefectHead

HEAD = WEIGHTS / "cmg-head.safetensors"


def save_head(head: DefectHead, path: Path) -> None:
    """Write the head's weights as fp16 safetensors."""
    from safetensors.torch import save

    state = {name: tensor.cpu().contiguous() for name, tensor in head.state_dict().items()}
    write_whole(path, save({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}))


def load_head(path: Path = HEAD) -> DefectHead:
    """A head to start from, or to use as it is.

    Raises:
        EncoderError: the weight file of the package is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    head = DefectHead()
    try:
        head.load_state_dict({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise EncoderError(f"the defect head's weights {path} are missing or damaged ({str(error).splitlines()[0]}); install cmgcli again") from error
    return head.eval().requires_grad_(False)
