"""One CLIP model: weights, preprocessing, image, patch and text features.

Letters as in the rest of the package: ``B`` images, ``P = h * w`` patches, ``W`` token width, ``D`` embedding size.

Images go through `tower`, or through `tokens` or `convolutional` where a model is of another kind. open_clip, which takes
longer to import than torch, is needed for weights that are not the built-in ones, and for captions; see `clip`.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmgcli.builtin import builtin_state, builtin_tower, trained_builtin_model, unnamed_embedding
from cmgcli.clip import TextSide, VisionSide, builtin_tokenizer, load_clip
from cmgcli.errors import EncoderError, first_line, is_out_of_memory
from cmgcli.images import to_square
from cmgcli.precision import native_bfloat16

logger = logging.getLogger(__name__)

ROOM = 8  # patches


@dataclass(frozen=True)
class ImageFeatures:
    """What one forward pass gives for ``B`` images seen through ``K`` of their ``P`` patches (all, where no keep is given)."""

    embedding: Tensor  # (B, D) float32, unit norm
    dense: Tensor  # (B, K, D) float32, last-layer tokens in the embedding space, not normalised
    patches: tuple[Tensor, ...]  # each (B, K, W) float32, one per layer asked for; W is the layer's own

    def rows(self, rows: Tensor) -> ImageFeatures:
        """The features of the images whose numbers (b,) int64 are given."""
        return ImageFeatures(self.embedding[rows], self.dense[rows], tuple(layer[rows] for layer in self.patches))


class Encoder:
    """A CLIP model, ready to encode on one device; made by `load_encoder`.

    Attributes:
        name: the spelling it was loaded by.
        sha256: digest of all its weights, so that a checkpoint can tell it from another.
        image_size: side ``S`` of the square it sees, pixels.
        grid: ``(h, w)`` patches.
        dim: ``D``.
        averages: True where the embedding is the mean of the projected patch tokens, so that the match with a text
            splits exactly into one term per patch.
        paints: True where a patch that is left out is painted over, so that a pass costs the same without it; a net
            with tokens never computes it.
        weighs: True where it can tell what each patch is worth from one pass and the way back.
        unnamed: (D,) unit-norm embedding of a caption that names a thing in words that mean nothing, for an encoder that learnt what that
            says: whatever lies on the ground. Else None.
        sharpness: what the model learnt to multiply a cosine by, to have the log-odds of a caption.
        precision: float32 or bfloat16, of the matrix products that encode images; texts are encoded in float32.
        at_once: images in one forward pass. One on a processor: it is as fast there, and makes a result the same to the
            last bit in every batch. None on a GPU: all that come.
    """

    def __init__(
        self,
        name: str,
        tower: VisionSide,
        text: Callable[[], TextSide],
        *,
        sha256: str,
        sharpness: float,
        mean: Sequence[float],
        std: Sequence[float],
        device: str,
        precision: str,
        unnamed: Tensor | None = None,
    ) -> None:
        self.name, self.sha256, self.sharpness, self.precision = name, sha256, sharpness, precision
        self.device = torch.device(device)
        self.tower = (tower.in_bfloat16() if precision == "bfloat16" else tower).to(self.device)
        self.at_once = 1 if device == "cpu" else None
        self.image_size, self.grid = tower.image_size, tower.grid
        self.dim, self.depth = tower.dim, tower.depth
        self.averages, self.paints, self.weighs = tower.averages, tower.paints, tower.weighs
        self.unnamed = None if unnamed is None else unnamed.to(self.device)
        self.mean = tuple(float(v) for v in mean)
        self.std = tuple(float(v) for v in std)
        self._load_text_side = text
        self._found_to_fit: dict[int, int] = {}

    @functools.cached_property
    def _text_side(self) -> TextSide:
        """Loaded when the first text is encoded."""
        side = self._load_text_side()
        side.model.eval().requires_grad_(False).to(self.device)
        return side

    @property
    def patch_count(self) -> int:
        """``P``."""
        return self.grid[0] * self.grid[1]

    @property
    def feature_layers(self) -> tuple[int, int]:
        """A middle and a late block or stage: texture and meaning (as PatchCore takes two levels of a ResNet)."""
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
    def encode_image(self, pixels: Tensor, *, index: Tensor | None = None, weight: Tensor | None = None, layers: Sequence[int] = ()) -> ImageFeatures:
        """One forward pass over the patches that `index` names; where a batch does not fit into memory, half as many go at once from then on.

        Args:
            pixels: (B, 3, S, S) float32, from `preprocess`.
            index: (B, K) int64 patch numbers to keep, row by row; None keeps all ``P``.
            weight: (B, K), how much each of them counts, see `tower.Tower.forward`; None: all alike. Only for an encoder that weighs.
            layers: blocks or stages whose patch tokens are wanted.
        Raises:
            EncoderError: a single image does not fit into memory.
        """
        return self._fitting(len(pixels), lambda step: self._forward(pixels, index, weight, layers, step))

    def room_for(self, count: int) -> int:
        """For how many patches, ``count`` or more, the tower has room when it sees so many of an image.

        Few sizes in place of one for each count: on a GPU images that keep about as many go through together, and on a processor
        torch holds no kernel for each count. It is told by the image alone, so a result does not depend on its batch.
        """
        if not self.weighs:
            return count
        step = ROOM if self.device.type == "cpu" else max(ROOM, self.patch_count // 4)
        return min(self.patch_count, -(-count // step) * step)

    def encode_with_worth(
        self, pixels: Tensor, text: Callable[[Tensor, slice], Tensor], *, layers: Sequence[int] = (), counts: Tensor | None = None
    ) -> tuple[ImageFeatures, Tensor, Tensor]:
        """`encode_image` of all patches, and what each of them is worth to the match with a caption, to first order.

        Costs a forward and a backward pass; where a batch does not fit into memory, half as many go at once from then on.

        Args:
            pixels: (B, 3, S, S) float32, from `preprocess`.
            text: gives the captions (b, D) of the images that a slice of the batch names; it is shown their embeddings (b, D).
            layers: blocks or stages whose patch tokens are wanted.
            counts: (P,) how often each patch counts, above 0; None: once.
        Returns:
            The features, the captions (B, D), and the derivative (B, P) of the cosine by how often a patch counts.
        Raises:
            EncoderError: a single image does not fit into memory.
        """
        return self._fitting(len(pixels), lambda step: self._forward_and_back(pixels, text, layers, step, counts))

    def _fitting(self, count: int, compute: Callable[[int], Any]) -> Any:
        """What ``compute`` gives for so many images at once as fit into memory."""
        while True:
            try:
                return compute(self.at_once or count)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                tried = min(self.at_once or count, count)
                if tried == 1:
                    raise self._too_small(error) from error
            self.at_once = (tried + 1) // 2  # here the error is gone, and with it the tensors of the forward pass that its traceback held
            logger.warning("%d images at once did not fit into memory; from now on %d go through the encoder at once", tried, self.at_once)

    def images_that_fit(self, most: int) -> int:
        """The most images, of ``most``, half of them, and so on, for which a pass with the features of a fit finds the memory; at least 1. Tried once."""
        if most not in self._found_to_fit:
            count = most
            while count > 1 and not self._fits(count):
                count //= 2
            self._found_to_fit[most] = count
        return self._found_to_fit[most]

    def _fits(self, count: int) -> bool:
        try:
            pixels = torch.zeros(count, 3, self.image_size, self.image_size, device=self.device)
            if self.weighs and not self.averages:
                self._forward_and_back(pixels, lambda found, _: found, self.feature_layers, count)
            else:
                with torch.inference_mode():
                    self._forward(pixels, None, None, self.feature_layers, count)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _too_small(self, error: BaseException) -> EncoderError:
        """What to raise where a single image does not fit into memory."""
        return EncoderError(f"encoder {self.name}: there is not enough memory on {self.device} for one image ({first_line(error)}); choose a smaller encoder")

    def _forward(self, pixels: Tensor, index: Tensor | None, weight: Tensor | None, layers: Sequence[int], step: int) -> ImageFeatures:
        outs = []
        for start in range(0, len(pixels), step):
            rows = slice(start, start + step)
            counts = {} if weight is None else {"weight": weight[rows]}
            outs.append(self.tower(pixels[rows], None if index is None else index[rows], layers, **counts))
        return _joined([ImageFeatures(nn.functional.normalize(out.embedding, dim=-1), out.dense, out.layers) for out in outs])

    def _forward_and_back(
        self, pixels: Tensor, text: Callable[[Tensor, slice], Tensor], layers: Sequence[int], step: int, counts: Tensor | None = None
    ) -> tuple[ImageFeatures, Tensor, Tensor]:
        counts = torch.ones(self.patch_count, device=self.device) if counts is None else counts.to(self.device)
        features, captions, worths = [], [], []
        for start in range(0, len(pixels), step):
            rows = slice(start, min(start + step, len(pixels)))
            with torch.inference_mode(False), torch.enable_grad():
                weight = counts.log().repeat(rows.stop - start, 1).requires_grad_()
                out = self.tower(pixels[rows].clone(), None, layers, weight)
                embedding = nn.functional.normalize(out.embedding, dim=-1)
                caption = text(embedding.detach(), rows).clone()
                (worth,) = torch.autograd.grad((embedding * caption).sum(), weight)  # each image's is its own
            features.append(ImageFeatures(embedding.detach(), out.dense.detach(), tuple(layer.detach() for layer in out.layers)))
            captions.append(caption)
            worths.append(worth / counts)
        return _joined(features), torch.cat(captions), torch.cat(worths)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(U, D) float32 unit-norm embeddings of ``U`` texts; words past the model's context length are cut off."""
        if not texts:
            return torch.empty(0, self.dim, device=self.device)
        model, tokenizer = self._text_side.model, self._text_side.tokenizer
        chunks = [model.encode_text(tokenizer(list(texts[i : i + 256])).to(self.device), normalize=True) for i in range(0, len(texts), 256)]
        return torch.cat(chunks).float()


def _joined(features: Sequence[ImageFeatures]) -> ImageFeatures:
    patches = tuple(torch.cat(parts) for parts in zip(*(one.patches for one in features), strict=True))
    return ImageFeatures(torch.cat([one.embedding for one in features]), torch.cat([one.dense for one in features]), patches)


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over the names, shapes and float32 values of all weights, in the order of their names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
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


def choose_precision(device: str, precision: str | None = None) -> str:
    """The precision asked for; by default, bfloat16 on a processor that is fast at it, else float32.

    On a GPU the kernel, and with it the rounding, changes with the size of the batch: in bfloat16 a score would.
    """
    if precision not in (None, "float32", "bfloat16"):
        raise EncoderError(f"precision: expected float32 or bfloat16, got {precision!r}")
    if precision is not None:
        return precision
    return "bfloat16" if device == "cpu" and native_bfloat16() else "float32"


@torch.inference_mode(False)  # also for a caller in that mode: a weight made in it has no derivative, see `Encoder.encode_with_worth`
def load_encoder(name: str = "builtin", *, device: str = "auto", precision: str = "float32") -> Encoder:
    """Load an encoder with its weights; never one that is randomly initialised.

    Args:
        name: ``builtin``; ``NAME/TAG``, open_clip's pretrained weights from the Hugging Face cache or hub;
            ``NAME@FILE``, an open_clip architecture with weights on disk; ``local-dir:DIR`` or ``hf-hub:ORG/REPO``, an
            open_clip folder on disk or in the cache.
        device: auto, cpu or cuda. precision: float32 or bfloat16; see `choose_precision`.
    Raises:
        EncoderError: the name is unknown, or the weights are missing or damaged; it names the remedy.
    """
    device = choose_device(device)
    if device == "cuda":
        torch.backends.cudnn.deterministic = True  # the same seed trains the same head
        torch.backends.cudnn.allow_tf32 = False  # of float32 it would leave 10 bits, on some cards; a model scores alike on all
    if name == "builtin":
        return _load_builtin(device, precision)
    clip = load_clip(name)
    text = clip.text
    return Encoder(
        name,
        clip.tower,
        lambda: text,
        sha256=digest(clip.state),
        sharpness=math.exp(clip.state["logit_scale"]),
        mean=clip.mean,
        std=clip.std,
        device=device,
        precision=precision,
    )


def _load_builtin(device: str, precision: str) -> Encoder:
    state = builtin_state()
    return Encoder(
        "builtin",
        builtin_tower(state),
        lambda: TextSide(trained_builtin_model(), builtin_tokenizer()),
        sha256=digest(state),
        sharpness=math.exp(state["logit_scale"]),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        device=device,
        precision=precision,
        unnamed=unnamed_embedding(),
    )
