"""Vision transformers of open_clip and timm that are not plain, on their own modules: any of the tokens left out.

`tower` is faster where it can be had; here are the other kinds: attention pools (SigLIP, CoCa), no class token or several
tokens that are no patches (registers), rotary positions (EVA-02), blocks with norms of their own. Tokens are left out
right after the position embedding, as in patch dropout (Li et al., CVPR 2023), and a rotary position goes with its token.

Letters: ``B`` images, ``P = h * w`` patches, ``K`` of them kept, ``F`` tokens before them, ``W`` token width, ``D`` embedding size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmgcli.tower import TowerOutput, mean


class TokenTower(nn.Module, ABC):
    """Pixels (B, 3, S, S) float32, normalised, to embeddings and patch tokens; the attributes are those of `clip.VisionSide`."""

    paints, weighs = False, True

    def __init__(self, image_size: int, grid: Sequence[int], blocks: Sequence[nn.Module], first: int, *, averages: bool) -> None:
        super().__init__()
        self.image_size, self.grid, self.first, self.averages = image_size, tuple(grid), first, averages
        self.blocks = nn.ModuleList(blocks)
        self.depth, self.bfloat16 = len(blocks), False

    def forward(self, pixels: Tensor, index: Tensor | None = None, layers: Sequence[int] = (), weight: Tensor | None = None) -> TowerOutput:
        """One pass over the patches that ``index`` (B, K) int64 names, row by row, and the tokens before them; None keeps all ``P``.

        weight: (B, K), the logarithm of how often each patch counts, as in `tower.Tower.forward`.
        """
        x, options = self._start(pixels, index)
        mask = {} if weight is None else {"attn_mask": self._mask(F.pad(weight, (self.first, 0)))}
        seen = {}
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bfloat16):  # x stays float32: it is added to
            for number, (block, option) in enumerate(zip(self.blocks, options, strict=True)):
                x = block(x, **option, **mask)
                if number in layers:
                    seen[number] = x[:, self.first :]
        embedding, dense = self._read_out(x, weight)
        return TowerOutput(embedding, dense, tuple(seen[layer] for layer in layers))

    @abstractmethod
    def _start(self, pixels: Tensor, index: Tensor | None) -> tuple[Tensor, list[dict[str, Any]]]:
        """What goes into the first block, (B, F + K, W), and what each block is told besides."""

    @abstractmethod
    def _mask(self, weight: Tensor) -> Tensor:
        """The weight of all tokens, (B, F + K), as the blocks add it to the logits of their attention."""

    @abstractmethod
    def _read_out(self, x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embedding (B, D) and patch tokens in its space (B, K, D) of what the last block gives, (B, F + K, W)."""

    def in_bfloat16(self) -> Self:
        """The same tower, the matrix products of its blocks from now on in bfloat16."""
        self.bfloat16 = True
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear | nn.MultiheadAttention):
                module.to(torch.bfloat16)
        return self


def kept(x: Tensor, index: Tensor | None, first: int) -> Tensor:
    """(B, F + P, W) tokens to (B, F + K, W): the first ``F``, and those of the patches that ``index`` (B, K) names."""
    if index is None:
        return x
    return torch.cat([x[:, :first], x[:, first:].gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))], dim=1)


class ClipTokens(TokenTower):
    """An open_clip `VisionTransformer` with any blocks, and with or without an attention pool of one stage (CoCa)."""

    def __init__(self, visual: nn.Module) -> None:
        averages = visual.attn_pool is None and visual.pool_type == "avg" and not visual.final_ln_after_pool
        super().__init__(int(visual.image_size[0]), visual.grid_size, visual.transformer.resblocks, 1, averages=averages)
        self.visual, self.dim = visual, visual.proj.shape[1]
        self.eval().requires_grad_(False)

    def _start(self, pixels: Tensor, index: Tensor | None) -> tuple[Tensor, list[dict[str, Any]]]:
        patches = self.visual.conv1(pixels).flatten(2).transpose(1, 2)  # (B, P, W)
        x = torch.cat([self.visual.class_embedding.expand(len(pixels), 1, -1), patches], dim=1) + self.visual.positional_embedding
        return self.visual.ln_pre(kept(x, index, 1)), [{}] * self.depth

    def _mask(self, weight: Tensor) -> Tensor:
        return _of_heads(weight, weight.shape[1], self.blocks[0].attn.num_heads)

    def _read_out(self, x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        visual = self.visual
        if visual.attn_pool is not None:
            x, tokens = self._attended(x, weight)
            pooled = visual._global_pool(visual.ln_post(x))[0]
            return pooled @ visual.proj, visual.ln_post(tokens) @ visual.proj
        normed = visual.ln_post(x)
        before = x if visual.final_ln_after_pool else normed
        pooled = before[:, 0] if visual.pool_type == "tok" else mean(before[:, 1:], weight)
        return (visual.ln_post(pooled) if visual.final_ln_after_pool else pooled) @ visual.proj, normed[:, 1:] @ visual.proj

    def _attended(self, x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the attention pool makes of all tokens, (B, Q, D), and of each patch's alone, (B, K, D)."""
        pool = self.visual.attn_pool
        keys, query = pool.ln_k(x), pool.ln_q(pool.query)  # (B, 1 + K, W), (Q, D)
        mask = None if weight is None else _of_heads(F.pad(weight, (1, 0)), len(query), pool.attn.num_heads)
        alone = keys[:, 1:].flatten(0, 1).unsqueeze(1)  # (B * K, 1, W)
        tokens = pool.attn(query[:1].expand(len(alone), 1, -1), alone, alone, need_weights=False)[0]
        return pool.attn(query.expand(len(x), -1, -1), keys, keys, need_weights=False, attn_mask=mask)[0], tokens.view(len(x), -1, query.shape[1])


def _of_heads(weight: Tensor, queries: int, heads: int) -> Tensor:
    """(B, L) weights as torch's attention wants them: (B * heads, queries, L)."""
    return weight.repeat_interleave(heads, dim=0).unsqueeze(1).expand(-1, queries, -1)


class TimmTokens(TokenTower):
    """An open_clip `TimmModel` around a `VisionTransformer` or an `Eva` of timm, with one of the pools avg, token and map."""

    def __init__(self, visual: nn.Module) -> None:
        trunk = visual.trunk
        pools_first = getattr(trunk, "pool_include_prefix", trunk.attn_pool is not None)  # an Eva's attention pool sees all tokens
        linear = isinstance(trunk.fc_norm, nn.Identity) and not hasattr(visual.head, "mlp")
        averages = linear and trunk.global_pool == "avg" and not pools_first
        super().__init__(int(visual.image_size[0]), trunk.patch_embed.grid_size, trunk.blocks, trunk.num_prefix_tokens, averages=averages)
        self.trunk, self.head, self.pools_first = trunk, visual.head, pools_first
        self.eval().requires_grad_(False)
        self.dim = self._alone(torch.zeros(1, 1, trunk.embed_dim)).shape[-1]

    def _start(self, pixels: Tensor, index: Tensor | None) -> tuple[Tensor, list[dict[str, Any]]]:
        found = self.trunk._pos_embed(self.trunk.patch_embed(pixels))
        if isinstance(found, Tensor):
            return self.trunk.norm_pre(kept(found, index, self.first)), [{}] * self.depth
        x, rope = found
        x = self.trunk.norm_pre(kept(x, index, self.first))
        if rope is None:
            return x, [{}] * self.depth
        ropes = rope if self.trunk.rope_mixed else rope[None]  # one for each block, or one for all
        turns = [{"rope": one if index is None else _turned(one, index)} for one in ropes]
        return x, turns * (self.depth // len(turns))

    def _mask(self, weight: Tensor) -> Tensor:
        return weight[:, None, None]

    def _read_out(self, x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        trunk, x = self.trunk, self.trunk.norm(x)
        if weight is None or trunk.global_pool == "token":
            pooled = trunk.pool(x)
        else:
            seen = x if self.pools_first else x[:, self.first :]
            of_seen = F.pad(weight, (seen.shape[1] - weight.shape[1], 0))
            pooled = mean(seen, of_seen) if trunk.attn_pool is None else trunk.attn_pool(seen, attn_mask=self._mask(of_seen))
        return self.head(trunk.head(trunk.fc_norm(pooled))), self._alone(x[:, self.first :])

    def _alone(self, tokens: Tensor) -> Tensor:
        """What pool and head give for each of the tokens (B, K, W) alone: (B, K, D)."""
        if self.trunk.attn_pool is not None:
            tokens = self.trunk.attn_pool(tokens.flatten(0, 1).unsqueeze(1)).view(*tokens.shape[:2], -1)
        return self.head(self.trunk.head(self.trunk.fc_norm(tokens)))


def _turned(rope: Tensor, index: Tensor) -> Tensor:
    """Rotary positions of all patches, (P, R) or (heads, P, R), at the kept ones of each row: (B, 1 or heads, K, R)."""
    return (rope if rope.ndim == 3 else rope[None])[:, index].transpose(0, 1)
