"""The built-in encoder's weights, as they lie in the package: read and checked, and written by its training."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from cmgcli.clip import BUILTIN, WEIGHTS, builtin_model, builtin_tokenizer
from cmgcli.errors import EncoderError
from cmgcli.tower import Tower, TowerShape, tower_of

UNKNOWN = "zebra"  # stood in captions of its training for words that mean nothing: the row of its token stayed zero, as those of all words it never saw
UNNAMED = f"a photo of a {UNKNOWN}"


def builtin_tower(state: dict[str, Tensor]) -> Tower:
    """Its vision side, of what `builtin_state` gives."""
    config = json.loads((WEIGHTS / f"{BUILTIN}.json").read_text(encoding="utf-8"))["vision_cfg"]
    shape = TowerShape(
        image_size=config["image_size"],
        heads=config["width"] // config["head_width"],
        averages=config["pool_type"] == "avg",
        norm_after_pool=config["final_ln_after_pool"],
        activation="gelu",
    )
    side = config["image_size"] // config["patch_size"]
    visual = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
    return tower_of(visual, shape, (side, side))


def trained_builtin_model() -> nn.Module:
    """open_clip's model of the built-in encoder with its weights."""
    model = builtin_model()
    model.load_state_dict(builtin_state(), strict=True)
    return model


def builtin_state() -> dict[str, Tensor]:
    """All its weights in float32, by open_clip's names; EncoderError where they are missing or damaged."""
    from safetensors import SafetensorError, safe_open

    path = WEIGHTS / f"{BUILTIN}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get("sha256", "")
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"the built-in encoder's weights {path} are missing or damaged ({error}); install cmgcli again") from error
    found = _digest(state)
    if found != expected:
        raise EncoderError(
            f"the built-in encoder's weights {path} are damaged: expected checksum {expected[:16]}, got {found[:16]}; install cmgcli again"
        )
    rows, values = state.pop("token_embedding.rows").long(), state.pop("token_embedding.values").float()
    config = json.loads((WEIGHTS / f"{BUILTIN}.json").read_text(encoding="utf-8"))["text_cfg"]
    table = torch.zeros(config["vocab_size"], values.shape[1])
    table[rows] = values
    return {name: tensor.float() for name, tensor in state.items()} | {"token_embedding.weight": table}


def unnamed_embedding() -> Tensor:
    """The embedding (D,) of `UNNAMED`, which is kept apart, for captions take open_clip and scoring does not; EncoderError where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    path = WEIGHTS / f"{BUILTIN}.unnamed.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            expected, embedding = (file.metadata() or {}).get("sha256", ""), file.get_tensor("embedding")
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"the built-in encoder's file {path} is missing or damaged ({error}); install cmgcli again") from error
    if _digest({"embedding": embedding}) != expected:
        raise EncoderError(f"the built-in encoder's file {path} is damaged: its checksum is wrong; install cmgcli again")
    return embedding


def _digest(state: dict[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(f"{name}{tuple(state[name].shape)}".encode())
        sha.update(state[name].numpy().tobytes())
    return sha.hexdigest()


def save_builtin(model: nn.Module, touched: Tensor, path: Path) -> None:
    """Write the built-in weights as fp16 safetensors; of the token table only the rows that training touched. Beside them what `unnamed_embedding` reads.

    Args:
        touched: (R,) int64 token numbers whose rows are shipped; the others load as zeros, so unseen words carry nothing.
    """
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items() if name != "attn_mask"}
    table = state.pop("token_embedding.weight")
    state["token_embedding.rows"] = touched.to(torch.int32).contiguous()
    state["token_embedding.values"] = table[touched].contiguous()
    save_file(state, path, metadata={"sha256": _digest(state)})
    rounded = copy.deepcopy(model).cpu().half().float().eval()  # as it is shipped
    with torch.no_grad():
        unnamed = {"embedding": rounded.encode_text(builtin_tokenizer()([UNNAMED]), normalize=True)[0].contiguous()}
    save_file(unnamed, path.with_suffix(".unnamed.safetensors"), metadata={"sha256": _digest(unnamed)})
