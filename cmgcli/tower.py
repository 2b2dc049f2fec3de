"""CLIP's vision transformer in plain torch: the weights of an open_clip `VisionTransformer`, any of the tokens left out.

It gives what open_clip's own gives (a test compares them), in less time: attention is torch's fused kernel, patches that
are left out are never embedded, and the large matrix products can be done in bfloat16 while the residual stream and the
norms stay float32. It also needs nothing but torch, which is why a model with the built-in encoder starts in a third of
the time. Leaving tokens out is the trick of patch dropout (Li et al., "Scaling Language-Image Pre-training via Masking",
CVPR 2023).

Letters: ``B`` images, ``P = h * w`` patches, ``K`` of them kept, ``W`` token width, ``D`` embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@dataclass(frozen=True)
class TowerShape:
    """What the weights do not say of themselves."""

    image_size: int  # side of the square it sees, pixels
    heads: int
    averages: bool  # the embedding is the mean of the patch tokens, not the class token
    norm_after_pool: bool
    activation: str  # one of ACTIVATIONS
    eps: float = 1e-5  # of the norms


@dataclass(frozen=True)
class TowerOutput:
    """What one forward pass gives."""

    embedding: Tensor  # (B, D), not normalised
    dense: Tensor  # (B, K, D) patch tokens in the embedding space
    layers: tuple[Tensor, ...]  # each (B, K, W) patch tokens after a block asked for


class Block(nn.Module):
    """One transformer block: (B, L, W) to the same shape, the products in the dtype of its weights."""

    def __init__(self, width: int, inner: int, shape: TowerShape, *, scaled: bool) -> None:
        super().__init__()
        self.heads, self.activation = shape.heads, ACTIVATIONS[shape.activation]
        self.ln_1, self.ln_2 = nn.LayerNorm(width, shape.eps), nn.LayerNorm(width, shape.eps)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rise, self.fall = nn.Linear(width, inner), nn.Linear(inner, width)
        self.scale_1, self.scale_2 = (nn.Parameter(torch.ones(width)) if scaled else None for _ in range(2))

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """See the class. weight: (B, L) logarithm of how often each token is there to be looked at, None: once each."""
        batch, length, width = x.shape
        dtype = self.qkv.weight.dtype
        joint = self.qkv(self.ln_1(x).to(dtype)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = joint.permute(2, 0, 3, 1, 4)  # each (B, heads, L, W / heads)
        if weight is not None and weight.requires_grad:
            mixed = _weighted_attention(query, key, value, weight)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=None if weight is None else weight[:, None, None].to(dtype))
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        x = x + _scaled(self.out(mixed), self.scale_1)
        return x + _scaled(self.fall(self.activation(self.rise(self.ln_2(x).to(dtype)))), self.scale_2)


def _weighted_attention(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """Attention with ``weight`` (B, L) added to the logits of the keys, as one more coordinate of each: torch's fused kernel
    then serves its derivative as well, which it does not for a mask."""
    batch, heads, length, size = query.shape
    scale, more = size**-0.5, 8  # coordinates, as many as keep the kernel's blocks whole
    column = (weight / scale).to(key.dtype).view(batch, 1, length, 1).expand(-1, heads, -1, -1)
    zeros = query.new_zeros(batch, heads, length, more - 1)
    query = torch.cat([query, torch.ones_like(column), zeros], dim=-1)
    key, value = torch.cat([key, column, zeros], dim=-1), F.pad(value, (0, more))
    return F.scaled_dot_product_attention(query, key, value, scale=scale)[..., :size]


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


class Tower(nn.Module):
    """Pixels (B, 3, S, S) float32, normalised, to embeddings and patch tokens; made by `tower_of`.

    Attributes:
        grid: ``(h, w)`` patches. dim, width, depth: ``D``, ``W`` and the number of blocks.
        image_size, averages, paints, weighs: see `clip.VisionSide`.
    """

    paints, weighs = False, True

    def __init__(self, state: Mapping[str, Tensor], shape: TowerShape, grid: tuple[int, int]) -> None:
        super().__init__()
        self.shape, self.grid = shape, grid
        self.image_size, self.averages = shape.image_size, shape.averages and not shape.norm_after_pool
        self.width, _, self.patch, _ = state["conv1.weight"].shape
        self.dim = state["proj"].shape[1]
        self.depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        inner = state["blocks.0.rise.weight"].shape[0]
        self.embed = nn.Linear(3 * self.patch**2, self.width, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(self.width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + grid[0] * grid[1], self.width))
        self.ln_pre = nn.LayerNorm(self.width, shape.eps) if "ln_pre.weight" in state else nn.Identity()
        self.blocks = nn.ModuleList(Block(self.width, inner, shape, scaled="blocks.0.scale_1" in state) for _ in range(self.depth))
        self.ln_post = nn.LayerNorm(self.width, shape.eps)
        self.proj = nn.Parameter(torch.empty(self.width, self.dim))
        weights = {name: tensor for name, tensor in state.items() if name != "conv1.weight"}
        self.load_state_dict(weights | {"embed.weight": state["conv1.weight"].flatten(1)}, assign=True)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor, index: Tensor | None = None, layers: Sequence[int] = (), weight: Tensor | None = None) -> TowerOutput:
        """One pass over the patches that ``index`` (B, K) int64 names, row by row, and the class token; None keeps all ``P``.

        weight: (B, K), the logarithm of how often each patch counts, in all attention and in the mean: 0 once, minus infinity not at all,
            as if it were left out. Its derivative says what leaving out a patch does to first order. None: all count once.
        """
        x, seen = self.tokens(pixels, index), {}
        of_tokens = None if weight is None else F.pad(weight, (1, 0))
        for number, block in enumerate(self.blocks):
            x = block(x, weight=of_tokens)
            if number in layers:
                seen[number] = x[:, 1:]
        return self._read_out(x, tuple(seen[layer] for layer in layers), weight)

    def tokens(self, pixels: Tensor, index: Tensor | None = None) -> Tensor:
        """What goes into the first block: (B, 1 + K, W), the class token first."""
        patches = F.unfold(pixels, self.patch, stride=self.patch).transpose(1, 2)  # (B, P, 3 * patch^2)
        places = self.positional_embedding[1:]  # (P, W)
        if index is not None:
            patches = patches.gather(1, index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
            places = places[index]
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(pixels), 1, -1)
        return self.ln_pre(torch.cat([first, self.embed(patches) + places], dim=1))

    def _read_out(self, x: Tensor, layers: tuple[Tensor, ...], weight: Tensor | None) -> TowerOutput:
        normed = self.ln_post(x)
        dense = normed[:, 1:] @ self.proj
        if self.shape.norm_after_pool:
            embedding = self.ln_post(mean(x[:, 1:], weight) if self.shape.averages else x[:, 0]) @ self.proj
        else:
            embedding = (mean(normed[:, 1:], weight) if self.shape.averages else normed[:, 0]) @ self.proj
        return TowerOutput(embedding, dense, layers)

    def in_bfloat16(self) -> Tower:
        """The same tower, the matrix products of its blocks from now on in bfloat16."""
        for block in self.blocks:
            for linear in (block.qkv, block.out, block.rise, block.fall):
                linear.to(torch.bfloat16)
        return self


def mean(tokens: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of tokens (B, K, W), (B, W); weight: (B, K), the logarithm of how often each counts, None: all once."""
    return tokens.mean(1) if weight is None else (tokens * weight.softmax(1).unsqueeze(-1)).sum(1)


_NAMES = {
    "transformer.resblocks.": "blocks.",
    "attn.in_proj_": "qkv.",
    "attn.out_proj.": "out.",
    "mlp.c_fc.": "rise.",
    "mlp.c_proj.": "fall.",
    "ls_1.gamma": "scale_1",
    "ls_2.gamma": "scale_2",
}


def tower_of(state: Mapping[str, Tensor], shape: TowerShape, grid: tuple[int, int]) -> Tower:
    """The tower with the weights of an open_clip `VisionTransformer`, by its own names; the tensors are shared, not copied.

    Raises KeyError or RuntimeError where the names or shapes are not those of a plain vision transformer.
    """
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor.detach()
    return Tower(renamed, shape, grid)
