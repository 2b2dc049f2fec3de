"""open_clip's models: found by name, with weights that are never random. The sole importer of open_clip and timm, when they are needed."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from cmgcli.convolutional import ClipResNet, TimmMaps
from cmgcli.errors import EncoderError, first_line
from cmgcli.tokens import ClipTokens, TimmTokens
from cmgcli.tower import Tower, TowerOutput, TowerShape, tower_of

WEIGHTS = Path(__file__).parent / "weights"
BUILTIN = "cmg-builtin"


class VisionSide(Protocol):
    """What encodes images: pixels (B, 3, S, S) float32, normalised, to embeddings and patch tokens, on one device."""

    image_size: int  # S
    grid: tuple[int, int]  # (h, w) patches
    dim: int  # D
    depth: int  # layers that can be asked for
    averages: bool  # the embedding is the mean of the dense tokens
    paints: bool  # a patch that is left out is painted over in the pixels, and saves nothing; else its token is never computed
    weighs: bool  # it takes a weight

    def __call__(self, pixels: Tensor, index: Tensor | None = None, layers: Sequence[int] = (), weight: Tensor | None = None) -> TowerOutput:
        """One pass over the patches that ``index`` (B, K) int64 names, row by row; None keeps all. weight: see `tower.Tower`."""

    def in_bfloat16(self) -> Self:
        """The same with its matrix products from now on in bfloat16."""

    def to(self, device: torch.device) -> Self:
        """The same on another device."""


@dataclass(frozen=True)
class TextSide:
    """What encodes texts: open_clip's model and the tokenizer of its words."""

    model: nn.Module
    tokenizer: Any


@dataclass(frozen=True)
class Clip:
    """A model of open_clip with its weights."""

    tower: VisionSide
    text: TextSide
    state: dict[str, Tensor]  # all its weights, by open_clip's names
    mean: Sequence[float]  # of the pixels that it was trained on, in [0, 1]
    std: Sequence[float]


def from_anywhere(name: str) -> str:
    """The name of an encoder with its path made absolute, where it has one, so that it loads from every working directory."""
    if name.startswith("local-dir:"):
        return f"local-dir:{Path(name.removeprefix('local-dir:')).absolute()}"
    if "@" in name and not name.startswith("hf-hub:"):
        architecture, file = name.split("@", 1)
        return f"{architecture}@{Path(file).absolute()}"  # links are kept: open_clip judges a file by its ending
    return name


def load_clip(name: str) -> Clip:
    """The model that a name stands for, on the CPU; see `encoder.load_encoder`.

    Raises:
        EncoderError: the name is unknown, or the weights are missing or damaged; it names the remedy.
    """
    import open_clip

    if name.startswith("hf-hub:"):
        architecture, pretrained = name, None
    elif name.startswith("local-dir:"):
        if not Path(name.removeprefix("local-dir:")).is_dir():
            raise EncoderError(f"encoder {name}: no such directory; expected a folder with open_clip_config.json and weights")
        architecture, pretrained = name, None
    elif "@" in name:
        architecture, pretrained = name.split("@", 1)
        if not Path(pretrained).is_file():
            raise EncoderError(f"encoder {name}: no weight file {pretrained}; give the path of an open_clip checkpoint")
    elif "/" in name:
        architecture, pretrained = name.split("/", 1)
    else:
        raise EncoderError(f"encoder {name}: expected builtin, NAME/TAG, NAME@FILE or local-dir:DIR{_suggest(name, ['builtin', *open_clip.list_models()])}")
    if pretrained is not None and architecture not in open_clip.list_models():
        raise EncoderError(f"encoder {name}: open_clip knows no model {architecture}{_suggest(architecture, open_clip.list_models())}")
    quick_gelu = False  # the activation that some weights were trained with; the wrong one would only be warned of
    if pretrained is not None and "@" not in name:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if pretrained not in tags:
            raise EncoderError(f"encoder {name}: no weights named {pretrained}; {architecture} has {', '.join(tags) or 'none'}{_suggest(pretrained, tags)}")
        quick_gelu = bool(open_clip.get_pretrained_cfg(architecture, pretrained).get("quick_gelu"))
    try:
        with quiet_open_clip():
            model = open_clip.create_model(architecture, pretrained=pretrained, require_pretrained=True, force_quick_gelu=quick_gelu, device="cpu")
            tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # noqa: BLE001 - open_clip, huggingface_hub, torch and safetensors each raise their own
        raise EncoderError(
            f"encoder {name}: the weights could not be loaded ({first_line(error)}); without a network, put them into the Hugging Face "
            "cache (HF_HOME), or give them as NAME@FILE or local-dir:DIR"
        ) from error
    config = open_clip.get_model_preprocess_cfg(model)
    state, tower = model.state_dict(), _tower(name, model.visual)
    model.visual = nn.Identity()  # the tower has its weights now
    return Clip(tower, TextSide(model, tokenizer), state, config["mean"], config["std"])


def _tower(name: str, visual: nn.Module) -> VisionSide:
    """The tower with the weights of an open_clip model's vision side, which are not copied."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer as TimmTransformer

    if isinstance(visual, VisionTransformer) and visual.pool_type in ("avg", "tok"):
        plain = visual.attn_pool is None and type(visual.transformer.resblocks[0]) is ResidualAttentionBlock
        return _plain(visual) if plain else ClipTokens(visual)
    if isinstance(visual, ModifiedResNet):
        return ClipResNet(visual)
    if isinstance(visual, TimmModel) and type(visual.trunk) in (TimmTransformer, Eva) and visual.trunk.global_pool in ("avg", "token", "map"):
        return TimmTokens(visual)
    if isinstance(visual, TimmModel) and visual.trunk.default_cfg.get("pool_size") and hasattr(visual.trunk, "forward_intermediates"):
        return TimmMaps(visual)
    kind = type(visual.trunk if isinstance(visual, TimmModel) else visual).__name__
    raise EncoderError(
        f"encoder {name}: expected a vision transformer of open_clip or timm with one pool, a ResNet or a ConvNeXt, got {kind}; "
        "choose one such as ViT-B-16"
    )


def _plain(visual: nn.Module) -> Tower:
    from open_clip.transformer import QuickGELU

    block = visual.transformer.resblocks[0]
    approximate = getattr(block.mlp.gelu, "approximate", "none")
    shape = TowerShape(
        image_size=int(visual.image_size[0]),
        heads=block.attn.num_heads,
        averages=visual.pool_type == "avg",
        norm_after_pool=visual.final_ln_after_pool,
        activation="quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu" if approximate == "none" else f"gelu_{approximate}",
        eps=visual.ln_post.eps,
    )
    return tower_of(visual.state_dict(), shape, tuple(visual.grid_size))


@contextmanager
def quiet_open_clip() -> Iterator[None]:
    """open_clip announces each step on the root logger; what goes wrong reaches the user as an error of ours."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _suggest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def builtin_model() -> nn.Module:
    """The built-in architecture of ``weights/cmg-builtin.json``, without its weights (for training it, and `load_encoder`)."""
    import open_clip

    open_clip.add_model_config(WEIGHTS / f"{BUILTIN}.json")
    with quiet_open_clip():
        return open_clip.create_model(BUILTIN, device="cpu")


def builtin_tokenizer():
    """open_clip's byte-pair tokenizer at the built-in model's context length."""
    import open_clip

    config = json.loads((WEIGHTS / f"{BUILTIN}.json").read_text(encoding="utf-8"))
    return open_clip.get_tokenizer("ViT-B-32", context_length=config["text_cfg"]["context_length"])
