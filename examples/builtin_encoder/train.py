"""Train the built-in encoder; the weights it writes ship in ``cmgcli/weights``.

    python examples/builtin_encoder/train.py --materials DIR --out run --minutes 75

A pool of samples (see `samples`) is rendered once by worker processes; the model trains on it with random flips, quarter
turns, brightness and grey pictures, and with most patches dropped: at random, in blobs, or rather around the object than on it,
because CMER drops them so. Some steps keep all, since the match of a whole image is what CMER starts from. Losses:

- contrast (Radford et al. 2021): each image against the captions of the batch and, as a hard negative, its own caption with
  the opposite state. Captions of the same object are no negatives. A defect whose patches were all dropped is none;
- how much of the image shows what the caption names, from how well they match;
- what a patch shows: whether the object that the caption names, and whether its defect ('flawless' against the defect);
- what it is: its part, its material, its kind of defect, among the names of all.

In some captions the words for the object mean nothing, as the words of a user's trade may: what is neither the ground that the caption names nor
clutter is the object then. They are no negatives of the contrast.

Ten per cent of the (part, material) pairs of the line, and every tenth photograph, are never trained on. A training that was
broken off goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmgcli import line
from cmgcli.adapt import fast_bfloat16
from cmgcli.clip import WEIGHTS, builtin_model, builtin_tokenizer
from cmgcli.encoder import save_builtin, trained_builtin_model
from cmgcli.metrics import auroc
from cmgcli.tower import Tower, TowerShape, tower_of

sys.path.insert(0, str(Path(__file__).parent))
import samples  # noqa: E402
from samples import GRID, Samples  # noqa: E402

MEAN, STD = 0.5, 0.25
PATCHES = GRID * GRID
STEPS = ((56, 1.0, 0.6), (112, 0.5, 0.2), (196, 0.285, 0.2))  # patches kept, share of the batch, how often
FULL_MATCH = 0.5  # cosine of a caption and an image that shows nothing else
TOUCHED = 25 / 255  # of a patch, so that its defect counts as seen


@dataclass(frozen=True)
class Data:
    """Samples as tensors, with their captions as tokens."""

    images: Tensor  # (N, S, S, 3) uint8
    shown: Tensor  # (N, P) uint8
    flaw: Tensor  # (N, P) uint8
    numbers: Tensor  # (N, 6) int64: part, front, back, kind, pair, unnamed
    good: Tensor  # (N, L) int64
    bad: Tensor  # (N, L) int64


def as_data(found: Samples, tokenizer) -> Data:
    images, shown, flaw = (torch.from_numpy(each) for each in (found.images, found.shown, found.flaw))
    numbers = np.stack([found.part, found.front, found.back, found.kind, found.pair, found.unnamed], axis=1)
    return Data(images, shown, flaw, torch.from_numpy(numbers), tokenizer(found.good), tokenizer(found.bad))


class Phrases:
    """The names of all parts, of all stuff, and of the states (flawless first), in changing words."""

    def __init__(self, stuff: Sequence[str], tokenizer) -> None:
        states = [samples.FLAWLESS_WORDS, *(things + words for things, words in samples.KINDS.values())]
        groups = [[(name, f"a {name}", f"a photo of a {name}") for name in line.PARTS], [(name, f"{name} surface", f"made of {name}") for name in stuff], states]
        self.sizes = tuple(len(group) for group in groups)
        self.tokens = [tokenizer(list(words)) for group in groups for words in group]

    def drawn(self, generator: torch.Generator) -> Tensor:
        """One wording of each: (sum of sizes, L) int64."""
        return torch.stack([words[int(torch.randint(len(words), (), generator=generator))] for words in self.tokens])


class Net(nn.Module):
    """The model as `cmg` runs it: open_clip's text side, our tower over its vision weights; and the scales of the losses."""

    def __init__(self, model: nn.Module, shape: TowerShape) -> None:
        super().__init__()
        self.model = model
        tower = tower_of(model.visual.state_dict(), shape, (GRID, GRID))
        self.towers: list[Tower] = [tower]  # a list, so that its weights, which the model holds, are not registered twice
        tower.requires_grad_(True)
        self.scales = nn.Parameter(torch.tensor([2.3, 2.3, 2.3]))  # logarithms: shown, state, name
        self.biases = nn.Parameter(torch.tensor([-1.0, -1.0]))

    def trained(self) -> list[nn.Parameter]:
        """Every weight once; those of the tower share their memory with the model's vision side."""
        text = [weight for name, weight in self.model.named_parameters() if not name.startswith("visual.")]
        return [*text, *self.towers[0].parameters(), self.scales, self.biases]

    def images(self, pixels: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """Unit embedding (B, D) and unit patch tokens (B, K, D)."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=fast_bfloat16(pixels.device.type)):
            out = self.towers[0](pixels, index)
        dense = out.dense.float()
        return F.normalize(dense.mean(1), dim=-1), F.normalize(dense, dim=-1)

    def texts(self, tokens: Tensor) -> Tensor:
        """Unit embeddings (U, D) as open_clip makes them, without the empty end that all texts share."""
        model, length = self.model, int((tokens != 0).sum(1).max())
        x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        x = x[torch.arange(len(x)), tokens.argmax(1)]
        return F.normalize(x @ model.text_projection, dim=-1)


def to_pixels(images: Tensor) -> Tensor:
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def augment(images: Tensor, maps: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
    """One random flip and quarter turn for the whole batch, brightness, contrast and at times grey per image; the maps (B, P) move along."""
    pixels, count = to_pixels(images), len(images)
    grids = [each.view(-1, GRID, GRID).float() / 255 for each in maps]
    turns, flip = (int(torch.randint(n, (), generator=generator)) for n in (4, 2))
    pixels, grids = torch.rot90(pixels, turns, (2, 3)), [torch.rot90(each, turns, (1, 2)) for each in grids]
    if flip:
        pixels, grids = pixels.flip(3), [each.flip(2) for each in grids]
    grey = (torch.rand(count, 1, 1, 1, generator=generator) < 0.1).to(pixels.device)
    pixels = torch.where(grey, pixels.mean(1, keepdim=True), pixels)
    gain, bias = (0.15 * torch.randn(count, 1, 1, 1, generator=generator).to(pixels.device) for _ in range(2))
    return pixels * (1 + gain) + bias, [each.flatten(1) for each in grids]


def choose(shown: Tensor, flaw: Tensor, keep: int, generator: torch.Generator) -> Tensor | None:
    """The patches to keep (B, K) int64: at random, in blobs, drawn to the object or away from it; a defect rather stays than goes."""
    if keep >= PATCHES:
        return None
    count = len(shown)
    field = torch.rand(count, PATCHES, generator=generator)
    blobs = F.interpolate(torch.rand(count, 1, 6, 6, generator=generator), (GRID, GRID), mode="bilinear", align_corners=True).flatten(1)
    smooth = torch.rand(count, 1, generator=generator) < 0.5
    field = torch.where(smooth, 0.2 * field + 2 * blobs, field)
    pull = torch.randn(count, 1, generator=generator) * (torch.rand(count, 1, generator=generator) < 0.5)
    stays = 2.0 * (torch.rand(count, 1, generator=generator) < 0.6)
    return (field + pull * shown.cpu() + stays * (flaw.cpu() > 0)).argsort(1, descending=True)[:, :keep].to(shown.device)


def losses(net: Net, data: Data, rows: Tensor, keep: int, phrases: Phrases, generator: torch.Generator, device: str) -> dict[str, Tensor]:
    pixels, (shown, flaw) = augment(data.images[rows].to(device), [data.shown[rows].to(device), data.flaw[rows].to(device)], generator)
    part, front, back, kind, pair, unnamed = data.numbers[rows].to(device).T
    index = choose(shown, flaw, keep, generator)
    if index is not None:
        shown, flaw = shown.gather(1, index), flaw.gather(1, index)  # (B, K)
    image, dense = net.images(pixels, index)
    count = len(image)
    captions = torch.cat([data.good[rows], data.bad[rows]])
    texts, names = net.texts(captions.to(device)), net.texts(phrases.drawn(generator).to(device))
    good, bad = texts[:count], texts[count:]
    scales = net.scales.exp().clamp(max=100)

    whole, bare = shown > 0.5, shown < 0.02
    broken = (flaw > TOUCHED).any(1)  # (B,)
    sound = ~(flaw > 0).any(1)
    named = unnamed == 0
    there = ((whole.sum(1) >= 3) & named).float()
    number = torch.arange(count, device=device)
    logits = net.model.logit_scale.exp().clamp(max=100) * image @ texts.T  # (B, 2 B)
    alike = ((pair[:, None] == pair[None]) | ~named).repeat(1, 2)
    alike[number, number] = False
    alike[number, count + number] = ~(broken | sound)
    target = torch.where(broken, count + number, number)
    by_image = F.cross_entropy(logits.masked_fill(alike, -1e4), target, reduction="none")
    back_logits = logits.gather(1, target.expand(count, -1))  # (B, B): image i against the caption that fits image j
    other = ((pair[:, None] == pair[None]) | ~named) & ~torch.eye(count, dtype=torch.bool, device=device)
    by_text = F.cross_entropy(back_logits.masked_fill(other, -1e4).T, number, reduction="none")
    contrast = ((by_image + by_text) / 2 * there).sum() / there.sum().clamp(min=1)

    fits = scales[0] * torch.einsum("bkd,bd->bk", dense, good) + net.biases[0]
    shown_loss = F.binary_cross_entropy_with_logits(fits, whole.float(), weight=(whole | bare).float())
    shift = 1 + int(torch.randint(count - 1, (), generator=generator))
    strangers = scales[0] * torch.einsum("bkd,bd->bk", dense, good.roll(shift, 0)) + net.biases[0]
    strange = ((pair != pair.roll(shift, 0)) & named.roll(shift, 0)).float()[:, None].expand_as(strangers)
    shown_loss = shown_loss + 0.5 * F.binary_cross_entropy_with_logits(strangers, torch.zeros_like(strangers), weight=strange)

    object_share = shown.mean(1)
    expected = object_share / (object_share.square() + (1 - object_share).square()).sqrt()  # as if what surrounds the object were orthogonal to the caption
    share = ((image * good).sum(1) - FULL_MATCH * expected).square().mean()

    flawed, clean = flaw > TOUCHED, flaw == 0
    odds = scales[1] * torch.einsum("bkd,bd->bk", dense, bad - good) + net.biases[1]
    weight = 4 * flawed.float() + clean.float()
    state = (F.binary_cross_entropy_with_logits(odds, flawed.float(), reduction="none") * weight).sum() / weight.sum()

    parts, stuff, states = names.split(phrases.sizes)
    tokens = scales[2] * dense.flatten(0, 1)
    sides = torch.where(whole, front[:, None], back[:, None]).masked_fill(~(whole | bare) | (flaw > 0.3), -1).flatten()
    made = F.cross_entropy(tokens @ stuff.T, sides, ignore_index=-1, label_smoothing=0.1)
    of_part = torch.where(whole, part[:, None], -1).flatten()
    called_part = F.cross_entropy((tokens @ parts.T)[of_part >= 0], of_part[of_part >= 0], label_smoothing=0.1) if (of_part >= 0).any() else 0 * made
    called = torch.where(flawed, kind[:, None] + 1, 0).flatten()
    weight = (flawed.float() + 0.04 * clean.float()).flatten()
    which = (F.cross_entropy(tokens @ states.T, called, reduction="none") * weight).sum() / weight.sum()
    return {"contrast": contrast, "shown": shown_loss, "share": 4 * share, "state": state, "made": 0.25 * made, "part": 0.25 * called_part, "kind": 0.5 * which}


@torch.no_grad()
def retrieval(model: nn.Module, images: Tensor, tokens: Tensor, pairs: Tensor, among: int = 256) -> float:
    """Top-1 image-to-caption retrieval over groups of held-out pairs; a caption of the same pair counts as right."""
    image = torch.cat([F.normalize(model.visual(to_pixels(images[i : i + 64])), dim=-1) for i in range(0, len(images), 64)])
    text = model.encode_text(tokens, normalize=True)
    hits = []
    for start in range(0, len(image) - among + 1, among):
        rows = slice(start, start + among)
        best = (image[rows] @ text[rows].T).argmax(1)
        hits.append((pairs[rows][best] == pairs[rows]).float().mean())
    return float(torch.stack(hits).mean())


@torch.no_grad()
def states(net: Net, data: Data, device: str) -> tuple[float, float]:
    """AUROC of telling drawn defects by the texts of the two states: of the images, by their highest patch; and of the patches."""
    odds = []
    for start in range(0, len(data.images), 64):
        rows = slice(start, start + 64)
        _, dense = net.images(to_pixels(data.images[rows].to(device)), None)
        odds.append(torch.einsum("bkd,bd->bk", dense, net.texts(data.bad[rows].to(device)) - net.texts(data.good[rows].to(device))).cpu())
    odds, flaw = torch.cat(odds), data.flaw.float() / 255
    sure = (flaw > TOUCHED) | (flaw == 0)
    return auroc((data.numbers[:, 3] >= 0).numpy(), odds.amax(1).numpy()), auroc((flaw > TOUCHED)[sure].numpy(), odds[sure].numpy())


def averaged(net: Net, average: Sequence[Tensor]) -> nn.Module:
    """The open_clip model with the averaged weights."""
    model = builtin_model()
    model.load_state_dict(net.model.state_dict())
    other = Net(model, net.towers[0].shape)
    with torch.no_grad():
        for weight, mean in zip(other.trained(), average, strict=True):
            weight.copy_(mean)
    return other.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--materials", type=Path, help="photographs of materials, with their metadata.csv")
    parser.add_argument("--out", type=Path, default=Path("builtin_run"))
    parser.add_argument("--minutes", type=float, default=75.0, help="of training; rendering comes before")
    parser.add_argument("--pool", type=int, default=48000)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--go-on", action="store_true", help="start from the weights in the package, not from random ones")
    parser.add_argument("--weights", type=Path, default=WEIGHTS / "cmg-builtin.safetensors")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    photos, held = samples.read_photos(args.materials) if args.materials else ([], [])
    stuff = samples.stuff_of([*photos, *held])
    started, tokenizer = time.time(), builtin_tokenizer()
    data = as_data(samples.render(args.pool, 1000 * (args.seed + 1), photos, stuff, workers=args.workers), tokenizer)
    print(f"rendered {args.pool} samples, {args.pool / (time.time() - started):.0f} a second", flush=True)
    test = as_data(samples.render(1000, 900_000_000 + args.seed, (), stuff, held="flawless"), tokenizer)
    test_states = as_data(samples.render(1000, 910_000_000 + args.seed, held, stuff, held="defects"), tokenizer)
    phrases = Phrases(stuff, tokenizer)
    touched = torch.cat([data.good.unique(), data.bad.unique(), *(words.unique() for words in phrases.tokens)]).unique()
    unknown = int(tokenizer([samples.UNKNOWN])[0, 1])
    touched = touched[touched != unknown]

    config = TowerShape(image_size=samples.SIZE, heads=4, averages=True, norm_after_pool=False, activation="gelu")
    net = Net((trained_builtin_model if args.go_on else builtin_model)().train().to(args.device), config).to(args.device)
    rows_of_tokens = net.model.token_embedding.weight.detach()  # shares the weights' memory
    rows_of_tokens[unknown] = 0
    weights = net.trained()
    groups = [{"params": [p for p in weights if p.ndim >= 2], "weight_decay": 0.05}, {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    average = [weight.detach().clone() for weight in weights]
    spent, step, seen, state_path = 0.0, 0, 0, args.out / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        with torch.no_grad():
            for weight, saved in zip(weights, state["weights"], strict=True):
                weight.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        average, spent, step, seen = state["average"], state["spent"], state["step"], state["seen"]
    generator = torch.Generator().manual_seed(args.seed + step)

    last, budget = time.time(), args.minutes * 60
    with (args.out / "curve.csv").open("a") as curve:
        while spent < budget:
            share = spent / budget
            for group in optimizer.param_groups:
                group["lr"] = args.lr * min(1.0, share / 0.03 + 0.01) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
            keep, part, _ = STEPS[int(torch.multinomial(torch.tensor([often for *_, often in STEPS]), 1, generator=generator))]
            rows = torch.randint(len(data.images), (max(2, round(args.batch * part)),), generator=generator)
            found = losses(net, data, rows, keep, phrases, generator, args.device)
            optimizer.zero_grad(set_to_none=True)
            sum(found.values()).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            rows_of_tokens[unknown] = 0
            step, seen = step + 1, seen + len(rows)
            torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1 - min(0.998, step / (step + 9)))
            now = time.time()
            spent, last = spent + now - last, now
            if step % 50 == 0:
                said = " ".join(f"{name} {value.item():.3f}" for name, value in found.items())
                print(f"{spent / 60:5.1f} min step {step} {said} {seen / spent:.0f} img/s", flush=True)
            if step % 400 == 0 or spent >= budget:
                mean = averaged(net, average)
                top1 = retrieval(mean.model, test.images, test.good, test.numbers[:, 4])
                of_images, of_patches = states(mean, test_states, "cpu")
                curve.write(f"{spent:.0f},{step},{seen},{top1:.4f},{of_images:.4f},{of_patches:.4f}\n")
                curve.flush()
                print(f"held out: retrieval among 256 {top1:.3f}; drawn defects, AUROC of images {of_images:.3f}, of patches {of_patches:.3f}", flush=True)
                state = {"weights": [w.detach() for w in weights], "average": average, "optimizer": optimizer.state_dict()}
                torch.save(state | {"spent": spent, "step": step, "seen": seen}, state_path)
                save_builtin(mean.model, touched, args.weights)
                last = time.time()


if __name__ == "__main__":
    main()
