"""Train the built-in encoder on the procedural inspection line; the weights it writes ship in ``cmgcli/weights``.

    python examples/builtin_encoder/train.py --out run --minutes 32

A pool of captioned scenes is rendered once by worker processes, then the model trains on it with random flips, quarter
turns and brightness, and with most patches dropped, so that it is at home with missing tokens (CMER removes them).
Losses: image-caption contrast (Radford et al. 2021), where pairs of the same part in the same material are no
negatives; and a dense term that asks each kept patch whether it shows what the caption names. Ten per cent of the
(part, material) pairs and all seeds of the held-out set are never trained on. Resumes from ``run/state.pt``.
"""

from __future__ import annotations

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from cmgcli import line
from cmgcli.adapt import fast_bfloat16
from cmgcli.encoder import WEIGHTS, builtin_model, builtin_tokenizer, save_builtin

SIZE, GRID = 112, 14
MEAN, STD = 0.5, 0.25


class TokenGather(torch.nn.Module):
    """In place of open_clip's patch dropout: passes on the class token and the patch tokens that `index` (B, K) int64 names."""

    def __init__(self) -> None:
        super().__init__()
        self.index: torch.Tensor | None = None  # None: every token

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # (B, 1 + P, W) to (B, 1 + K, W)
        if self.index is None:
            return tokens
        index = self.index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, index)], dim=1)


def held_out(part: str, material: str) -> bool:
    """Every tenth (part, material) pair never appears in training."""
    return (line.PARTS.index(part) * 7 + line.MATERIALS.index(material) * 3) % 10 == 0


def render_chunk(job: tuple[int, int, bool]) -> tuple[np.ndarray, np.ndarray, list[str], list[int]]:
    """Render ``count`` scenes of one seed: images (n, S, S, 3) uint8, coverage (n, P) uint8, captions, pair numbers."""
    seed, count, held = job
    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    images, coverage, captions, pairs = [], [], [], []
    while len(images) < count:
        part, material = str(rng.choice(line.PARTS)), str(rng.choice(line.MATERIALS))
        if held_out(part, material) != held:
            continue
        defect = "" if held or rng.random() < 0.75 else str(rng.choice(("scratch", "stain", "chip", "crack")))
        sample = line.render(rng, size=SIZE, part=part, material=material, defect=defect)
        images.append(sample.image)
        mask = cv2.resize(sample.object_mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
        coverage.append((mask * 255).astype(np.uint8).ravel())
        text = sample.caption
        if defect and rng.random() < 0.7:
            text = str(rng.choice((f"{text} with a {defect}", f"damaged, {defect}: {text}", f"{text}, defective, {defect}")))
        captions.append(text)
        pairs.append(line.PARTS.index(part) * len(line.MATERIALS) + line.MATERIALS.index(material))
    return np.stack(images), np.stack(coverage), captions, pairs


def render_pool(count: int, seed: int, held: bool, workers: int):
    jobs = [(seed + i, 250, held) for i in range(count // 250)]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(render_chunk, jobs))
    images, coverage = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    captions, pairs = (sum((p[i] for p in parts), []) for i in (2, 3))
    return torch.from_numpy(images), torch.from_numpy(coverage), captions, torch.tensor(pairs)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def augment(images: torch.Tensor, coverage: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One random flip and quarter turn for the whole batch, brightness and contrast per image; coverage moves along."""
    pixels, cover = to_pixels(images), coverage.view(-1, GRID, GRID).float() / 255
    turns, flip = (int(torch.randint(n, (), generator=generator)) for n in (4, 2))
    pixels, cover = torch.rot90(pixels, turns, (2, 3)), torch.rot90(cover, turns, (1, 2))
    if flip:
        pixels, cover = pixels.flip(3), cover.flip(2)
    gain = 1 + 0.15 * torch.randn(len(pixels), 1, 1, 1, generator=generator)
    bias = 0.15 * torch.randn(len(pixels), 1, 1, 1, generator=generator)
    return pixels * gain + bias, cover.flatten(1)


def encode(model, pixels: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embedding (B, D), dense tokens (B, K, D) and their patch numbers (B, K), over ``keep`` random patches an image."""
    tower = model.visual
    index = torch.rand(len(pixels), GRID * GRID).argsort(1)[:, :keep]
    tower.patch_dropout.index = index
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16("cpu")):
        tokens = tower.transformer(tower._embeds(pixels))
        dense = tower.ln_post(tokens)[:, 1:] @ tower.proj
    tower.patch_dropout.index = None
    dense = dense.float()
    return F.normalize(dense.mean(1), dim=-1), dense, index


def losses(model, dense_scale, pixels, cover, tokens, pairs, keep):
    image, dense, index = encode(model, pixels, keep)
    text = model.encode_text(tokens, normalize=True)
    logits = model.logit_scale.exp().clamp(max=100) * image @ text.T
    same = pairs[:, None] == pairs[None, :]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, -1e4)
    target = torch.arange(len(logits))
    contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    seen = cover.gather(1, index)  # (B, K)
    score = dense_scale[0].exp() * (F.normalize(dense, dim=-1) @ text.unsqueeze(-1)).squeeze(-1) + dense_scale[1]
    weight = ((seen > 0.5) | (seen < 0.02)).float()
    bce = F.binary_cross_entropy_with_logits(score, (seen > 0.5).float(), weight=weight)
    return contrast, bce


@torch.no_grad()
def retrieval(model, images, tokens, pairs) -> float:
    """Top-1 image-to-caption retrieval over groups of 256 held-out pairs; a caption of the same pair counts as right."""
    image = torch.cat([F.normalize(model.visual(to_pixels(images[i : i + 64])), dim=-1) for i in range(0, len(images), 64)])
    text = model.encode_text(tokens, normalize=True)
    hits = []
    for start in range(0, len(image) - 255, 256):
        rows = slice(start, start + 256)
        best = (image[rows] @ text[rows].T).argmax(1)
        hits.append((pairs[rows][best] == pairs[rows]).float().mean())
    return float(torch.stack(hits).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("builtin_run"))
    parser.add_argument("--minutes", type=float, default=32.0)
    parser.add_argument("--pool", type=int, default=24000)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--keep", type=int, default=56, help="patches kept of 196")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=WEIGHTS / "cmg-builtin.safetensors")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    started = time.time()
    images, coverage, captions, pairs = render_pool(args.pool, 1000 * (args.seed + 1), False, args.workers)
    test_images, _, test_captions, test_pairs = render_pool(1000, 900_000_000 + args.seed, True, args.workers)
    print(f"rendered {len(images)} scenes, {len(images) / (time.time() - started):.0f} a second", flush=True)
    tokenizer = builtin_tokenizer()
    tokens, test_tokens = tokenizer(captions), tokenizer(test_captions)
    touched = tokens.unique()

    model = builtin_model()
    model.visual.patch_dropout = TokenGather()
    dense_scale = torch.nn.Parameter(torch.tensor([2.3, -1.0]))
    parameters = [*model.parameters(), dense_scale]
    decay = [p for p in parameters if p.ndim >= 2]
    plain = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.98))
    spent, step = 0.0, 0
    state_path = args.out / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        dense_scale.data.copy_(state["dense_scale"])
        spent, step = state["spent"], state["step"]

    last = time.time()
    budget = args.minutes * 60
    with (args.out / "curve.csv").open("a") as curve:
        while spent < budget:
            share = spent / budget
            lr = args.lr * min(1.0, share / 0.03 + 0.01) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
            for group in optimizer.param_groups:
                group["lr"] = lr
            rows = torch.randint(len(images), (args.batch,), generator=generator)
            pixels, cover = augment(images[rows], coverage[rows], generator)
            contrast, dense = losses(model, dense_scale, pixels, cover, tokens[rows], pairs[rows], args.keep)
            optimizer.zero_grad(set_to_none=True)
            (contrast + dense).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            now = time.time()
            spent, last = spent + now - last, now
            if step % 50 == 0:
                rate = args.batch * step / spent
                print(f"{spent / 60:5.1f} min step {step} contrast {contrast:.3f} dense {dense:.3f} {rate:.0f} img/s", flush=True)
            if step % 250 == 0 or spent >= budget:
                model.eval()
                top1 = retrieval(model, test_images, test_tokens, test_pairs)
                model.train()
                curve.write(f"{spent:.0f},{step},{float(contrast):.4f},{float(dense):.4f},{top1:.4f}\n")
                curve.flush()
                print(f"held-out retrieval among 256: {top1:.3f}", flush=True)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "dense_scale": dense_scale.data}
                torch.save(state | {"spent": spent, "step": step}, state_path)
                save_builtin(model, touched, args.weights)
                last = time.time()


if __name__ == "__main__":
    main()
