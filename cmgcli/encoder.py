"""One CLIP model: weights, preprocessing, image, patch and text features. The sole importer of open_clip.

Letters as in the rest of the package: ``B`` images, ``P = h * w`` patches, ``W`` token width, ``D`` embedding size.

open_clip's `VisionTransformer` calls ``self.patch_dropout`` right after the position embedding. `TokenGather` stands in
its place, so that hidden patches are *removed from the token sequence* and the tower never computes them (the trick of
patch dropout, Li et al., "Scaling Language-Image Pre-training via Masking", CVPR 2023).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cmgcli.errors import EncoderError
from cmgcli.images import to_square

logger = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parent / "weights"
BUILTIN = "cmg-builtin"


@dataclass(frozen=True)
class ImageFeatures:
    """What one forward pass gives for ``B`` images seen through ``K`` of their ``P`` patches (all, where no keep is given)."""

    embedding: Tensor  # (B, D) float32, unit norm
    dense: Tensor  # (B, K, D) float32, last-layer tokens in the embedding space, not normalised
    patches: tuple[Tensor, ...]  # each (B, K, W) float32, one per layer asked for

    def rows(self, rows: Tensor) -> ImageFeatures:
        """The features of the images whose numbers (b,) int64 are given."""
        return ImageFeatures(self.embedding[rows], self.dense[rows], tuple(layer[rows] for layer in self.patches))


class TokenGather(nn.Module):
    """Passes on the class token and the patch tokens named by `index`; every token while `index` is None."""

    def __init__(self) -> None:
        super().__init__()
        self.index: Tensor | None = None  # (B, K) int64, patch numbers

    def forward(self, tokens: Tensor) -> Tensor:  # (B, 1 + P, W)
        """The class token and the chosen patch tokens (B, 1 + K, W); all of them where nothing is chosen."""
        if self.index is None:
            return tokens
        index = self.index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])  # (B, K, W)
        return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, index)], dim=1)


class Encoder:
    """A CLIP model with a vision transformer, ready to encode on one device; made by `load_encoder`.

    Attributes:
        name: the spelling it was loaded by.
        sha256: digest of all its weights, so that a checkpoint can tell it from another.
        image_size: side ``S`` of the square it sees, pixels.
        grid: ``(h, w)`` patches.
        dim, width: ``D`` and ``W``.
        averages: True where the embedding is the mean of the projected patch tokens, so that the match with a text
            splits exactly into one term per patch.
        sharpness: what the model learnt to multiply a cosine by, to have the log-odds of a caption.
    """

    def __init__(self, name: str, model: nn.Module, tokenizer, *, mean: Sequence[float], std: Sequence[float], device: str) -> None:
        from open_clip.transformer import VisionTransformer

        tower = model.visual
        if not isinstance(tower, VisionTransformer) or tower.attn_pool is not None:
            raise EncoderError(
                f"encoder {name}: expected a plain open_clip vision transformer, got {type(tower).__name__}; "
                "choose a ViT such as ViT-B-16"
            )
        self.name = name
        self.device = torch.device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.tokenizer = tokenizer
        self.gather = TokenGather()
        tower.patch_dropout = self.gather
        self.image_size = int(tower.image_size[0])
        self.grid = tuple(tower.grid_size)
        self.dim = int(tower.output_dim)
        self.width = int(tower.ln_pre.normalized_shape[0]) if hasattr(tower.ln_pre, "normalized_shape") else tower.conv1.out_channels
        self.depth = len(tower.transformer.resblocks)
        self.averages = tower.pool_type == "avg" and not tower.final_ln_after_pool
        self.mean = tuple(float(v) for v in mean)
        self.std = tuple(float(v) for v in std)
        self.sharpness = float(model.logit_scale.exp())
        self.sha256 = digest(model)

    @property
    def patch_count(self) -> int:
        """``P``."""
        return self.grid[0] * self.grid[1]

    @property
    def feature_layers(self) -> tuple[int, int]:
        """A middle and a late block: texture and meaning (as PatchCore takes two levels of a ResNet)."""
        return (self.depth // 2 - 1, max(self.depth - 2, 0))

    def preprocess(self, images: Sequence[np.ndarray]) -> Tensor:
        """Squash RGB images to the model's square and normalise them; never crops, a defect at the edge must be seen.

        Args:
            images: ``B`` arrays (H, W, 3) uint8 RGB, any sizes.
        Returns:
            (B, 3, S, S) float32 on the encoder's device.
        """
        squares = np.stack([to_square(image, self.image_size) for image in images])  # (B, S, S, 3)
        pixels = torch.from_numpy(squares).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean = pixels.new_tensor(self.mean).view(1, 3, 1, 1)
        std = pixels.new_tensor(self.std).view(1, 3, 1, 1)
        return (pixels - mean) / std

    @torch.inference_mode()
    def encode_image(self, pixels: Tensor, *, index: Tensor | None = None, layers: Sequence[int] = ()) -> ImageFeatures:
        """One forward pass over the tokens that `index` names; a batch that does not fit into memory goes in halves.

        Args:
            pixels: (B, 3, S, S) float32, from `preprocess`.
            index: (B, K) int64 patch numbers to keep, row by row; None keeps all ``P``.
            layers: blocks whose patch tokens are wanted.
        Raises:
            EncoderError: a single image does not fit into memory.
        """
        try:
            return self._forward(pixels, index, layers)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(pixels) == 1:
                raise EncoderError(
                    f"encoder {self.name}: there is not enough memory on {self.device} for one image ({_first_line(error)}); choose a smaller encoder"
                ) from error
        _say_halved_once()  # here the error is gone, and with it the tensors of the forward pass that its traceback held
        half = len(pixels) // 2
        first = self.encode_image(pixels[:half], index=None if index is None else index[:half], layers=layers)
        second = self.encode_image(pixels[half:], index=None if index is None else index[half:], layers=layers)
        patches = tuple(torch.cat(pair) for pair in zip(first.patches, second.patches, strict=True))
        return ImageFeatures(torch.cat([first.embedding, second.embedding]), torch.cat([first.dense, second.dense]), patches)

    def _forward(self, pixels: Tensor, index: Tensor | None, layers: Sequence[int]) -> ImageFeatures:
        tower = self.model.visual
        last = self.depth - 1
        wanted = sorted({*layers, last})
        self.gather.index = index
        try:
            out = tower.forward_intermediates(pixels, indices=wanted, output_fmt="NLC")
        finally:
            self.gather.index = None
        tokens = dict(zip(wanted, out["image_intermediates"], strict=True))  # each (B, K, W)
        dense = tower.ln_post(tokens[last]) @ tower.proj  # (B, K, D)
        embedding = nn.functional.normalize(out["image_features"], dim=-1)
        return ImageFeatures(embedding, dense, tuple(tokens[layer] for layer in layers))

    def encode_tokens(self, images: Sequence[np.ndarray]) -> Tensor:
        """Late patch tokens (B, W, h, w) float32 of whole images, each (H, W, 3) uint8; what the defect head reads."""
        tokens = self.encode_image(self.preprocess(images), layers=self.feature_layers[-1:]).patches[0]  # (B, P, W)
        return tokens.transpose(1, 2).unflatten(2, self.grid)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(U, D) float32 unit-norm embeddings of ``U`` texts; words past the model's context length are cut off."""
        if not texts:
            return torch.empty(0, self.dim, device=self.device)
        chunks = [
            self.model.encode_text(self.tokenizer(list(texts[i : i + 256])).to(self.device), normalize=True)
            for i in range(0, len(texts), 256)
        ]
        return torch.cat(chunks).float()


def is_out_of_memory(error: BaseException) -> bool:
    """True for the error of an allocation that failed, in whichever of their ways Python, torch, CUDA and oneDNN say it."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "could not create a primitive", "could not create a memory object")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@functools.cache
def _say_halved_once() -> None:
    logger.warning("a batch of images did not fit into memory and was encoded in halves; a smaller --batch-size saves the attempts")


def digest(model: nn.Module) -> str:
    """sha256 over the names, shapes and float32 values of all weights, in the order of their names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().float().contiguous().numpy())
    return sha.hexdigest()


def choose_device(device: str) -> str:
    """'auto' becomes 'cuda' where there is a usable GPU, else 'cpu'; a GPU that is asked for and absent is an error."""
    if device not in ("auto", "cpu", "cuda"):
        raise EncoderError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise EncoderError("device cuda was asked for, but torch sees no GPU; use --device auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def load_encoder(name: str = "builtin", *, device: str = "auto") -> Encoder:
    """Load an encoder with its weights; never one that is randomly initialised.

    Args:
        name: ``builtin``; ``NAME/TAG``, open_clip's pretrained weights from the Hugging Face cache or hub;
            ``NAME@FILE``, an open_clip architecture with weights on disk; ``local-dir:DIR`` or ``hf-hub:ORG/REPO``, an
            open_clip folder on disk or in the cache.
        device: auto, cpu or cuda.
    Raises:
        EncoderError: the name is unknown, or the weights are missing or damaged; it names the remedy.
    """
    import open_clip

    device = choose_device(device)
    if name == "builtin":
        return _load_builtin(device)
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
            model = open_clip.create_model(
                architecture, pretrained=pretrained, require_pretrained=True, force_quick_gelu=quick_gelu, device="cpu"
            )
            tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # noqa: BLE001 - open_clip, huggingface_hub, torch and safetensors each raise their own
        raise EncoderError(
            f"encoder {name}: the weights could not be loaded ({_first_line(error)}); without a network, put them into the Hugging Face "
            "cache (HF_HOME), or give them as NAME@FILE or local-dir:DIR"
        ) from error
    config = open_clip.get_model_preprocess_cfg(model)
    return Encoder(name, model, tokenizer, mean=config["mean"], std=config["std"], device=device)


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


def save_builtin(model: nn.Module, touched: Tensor, path: Path) -> None:
    """Write the built-in weights as fp16 safetensors; of the token table only the rows that training touched.

    Args:
        touched: (R,) int64 token numbers whose rows are shipped; the others load as zeros, so unseen words carry nothing.
    """
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items() if name != "attn_mask"}
    table = state.pop("token_embedding.weight")
    state["token_embedding.rows"] = touched.to(torch.int32).contiguous()
    state["token_embedding.values"] = table[touched].contiguous()
    save_file(state, path, metadata={"sha256": _tensor_digest(state)})


def _load_builtin(device: str) -> Encoder:
    from safetensors import SafetensorError, safe_open

    path = WEIGHTS / f"{BUILTIN}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get("sha256", "")
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"the built-in encoder's weights {path} are missing or damaged ({error}); install cmgcli again") from error
    found = _tensor_digest(state)
    if found != expected:
        raise EncoderError(
            f"the built-in encoder's weights {path} are damaged: expected checksum {expected[:16]}, got {found[:16]}; install cmgcli again"
        )
    model = builtin_model()
    table = torch.zeros_like(model.token_embedding.weight)
    table[state.pop("token_embedding.rows").long()] = state.pop("token_embedding.values").float()
    state["token_embedding.weight"] = table
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    return Encoder("builtin", model, builtin_tokenizer(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), device=device)


def _tensor_digest(state: dict[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(f"{name}{tuple(state[name].shape)}".encode())
        sha.update(state[name].numpy().tobytes())
    return sha.hexdigest()
