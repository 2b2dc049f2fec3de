"""Train the built-in encoder; its weights ship in ``cmgcli/weights``.

    python examples/builtin_encoder/train.py --materials DIR --out run --minutes 75 --samples 40000 --first 40000    # two cores
    python examples/builtin_encoder/train.py --materials DIR --out run --minutes 9 --designs 168 224 --workers 14 --batch 1536    # a GPU and 16 cores

Worker processes render samples (see `samples`) while the model trains on those that are there, each time turned by any angle, zoomed, flipped,
in another light, at times grey; and with most patches dropped: at random, in blobs, or rather around the object than on it,
because CMER drops them so. Some steps keep all, since the match of a whole image is what CMER starts from. Losses:

- contrast (Radford et al. 2021): each image against the captions of the batch and, as a hard negative, its own caption with
  the opposite state. Captions of the same object are no negatives. A defect whose patches were all dropped is none;
- how much of the image shows what the caption names, from how well they match;
- what a patch shows: whether the object that the caption names, and whether its defect ('flawless' against the defect);
- whether any patch shows a defect, from the one that looks most like it;
- what it is: its part, its material, its kind of defect, among the names of all.

In some captions the words for the object mean nothing, as the words of a user's trade may: what is neither the ground that the caption names nor
clutter is the object then. They are no negatives of the contrast.

Several designs are trained in turn on the same samples. Each leaves OUT/DESIGN.safetensors and DESIGN.json, which become ``cmg-builtin.*`` in
``cmgcli/weights``, and its curve. Ten per cent of the (part, material) pairs of the line, and every tenth photograph, are never trained on. A training that was
broken off goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmgcli import line
from cmgcli.builtin import save_builtin, trained_builtin_model
from cmgcli.clip import BUILTIN, WEIGHTS, builtin_tokenizer
from cmgcli.metrics import auroc
from cmgcli.precision import fast_bfloat16
from cmgcli.tower import Tower, TowerShape, tower_of

sys.path.insert(0, str(Path(__file__).parent))
import samples  # noqa: E402
from feed import CHUNK, Data, Feed, Pool, as_data, rendered  # noqa: E402

MEAN, STD = 0.5, 0.25
DESIGNS = {  # image size, patch size, width and heads of the vision side
    "168": (168, 12, 192, 4),
    "224": (224, 16, 192, 4),
    "224-wide": (224, 16, 256, 4),
}
STEPS = ((0.285, 1.0, 0.6), (0.57, 0.5, 0.2), (1.0, 0.285, 0.2))  # share of the patches that is kept, share of the batch, how often
FULL_MATCH = 0.5  # cosine of a caption and an image that shows nothing else
TOUCHED = 25 / 255  # of a patch, so that its defect counts as seen


class Phrases:
    """The names of all parts, of all stuff, and of the states (flawless first), in changing words."""

    def __init__(self, stuff: Sequence[str], tokenizer, device: str = "cpu") -> None:
        states = [samples.FLAWLESS_WORDS, *(things + words for things, words in samples.KINDS.values())]
        groups = [[(name, f"a {name}", f"a photo of a {name}") for name in line.PARTS], [(name, f"{name} surface", f"made of {name}") for name in stuff], states]
        self.sizes = tuple(len(group) for group in groups)
        wordings = [words for group in groups for words in group]
        most = max(map(len, wordings))
        self.tokens = torch.stack([tokenizer([words[i % len(words)] for i in range(most)]) for words in wordings]).to(device)  # (M, most, L)
        self._counts = torch.tensor([len(words) for words in wordings], device=device)

    def drawn(self, generator: torch.Generator, length: int) -> Tensor:
        """One wording of each: (M, length) int64, M the sum of the sizes."""
        which = (torch.rand(len(self.tokens), generator=generator, device=self.tokens.device) * self._counts).long()
        return self.tokens[torch.arange(len(self.tokens), device=self.tokens.device), which, :length]


def architecture(design: str) -> dict:
    """The configuration of open_clip for a design: that of the built-in encoder with another vision side."""
    config = json.loads((WEIGHTS / f"{BUILTIN}.json").read_text(encoding="utf-8"))
    size, patch, width, heads = DESIGNS[design]
    config["vision_cfg"] |= {"image_size": size, "patch_size": patch, "width": width, "head_width": width // heads}
    return config


def random_model(config: dict) -> nn.Module:
    import open_clip

    return open_clip.CLIP(**config)


class Net(nn.Module):
    """The model as `cmg` runs it: open_clip's text side, our tower over its vision weights; and the scales of the losses."""

    def __init__(self, model: nn.Module, config: dict) -> None:
        super().__init__()
        vision = config["vision_cfg"]
        side = vision["image_size"] // vision["patch_size"]
        shape = TowerShape(vision["image_size"], vision["width"] // vision["head_width"], averages=True, norm_after_pool=False, activation="gelu")
        self.model, self.config, self.size, self.side = model, config, vision["image_size"], side
        tower = tower_of(model.visual.state_dict(), shape, (side, side))
        self.towers: list[Tower] = [tower]  # a list, so that its weights, which the model holds, are not registered twice
        tower.requires_grad_(True)
        self.scales = nn.Parameter(torch.tensor([2.3, 2.3, 2.3], device=tower.proj.device))  # logarithms: shown, state, name
        self.biases = nn.Parameter(torch.tensor([-1.0, -1.0, -1.0], device=tower.proj.device))  # shown, state of a patch, of the image

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
        """Unit embeddings (U, D) as open_clip makes them, in float32."""
        if tokens.device.type != "cpu":  # a GPU would wait to learn the lengths
            return self._texts(tokens)
        lengths = (tokens != 0).sum(1)
        order = lengths.argsort()
        found = [self._texts(tokens[rows, : int(lengths[rows[-1]])]) for rows in order.chunk(4)]
        return torch.cat(found)[order.argsort()]

    def _texts(self, tokens: Tensor) -> Tensor:
        model, length = self.model, tokens.shape[1]
        x = model.token_embedding(tokens) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        x = x[torch.arange(len(x), device=x.device), tokens.argmax(1)]
        return F.normalize(x @ model.text_projection, dim=-1)


def to_pixels(images: Tensor, size: int) -> Tensor:
    """(N, S, S, 3) uint8 to (N, 3, size, size) float32, normalised."""
    return resized((images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD, size)


def resized(pixels: Tensor, size: int) -> Tensor:
    return pixels if pixels.shape[-1] == size else F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


def coverage(areas: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """What of each patch is object, and what is defect, both (N, P) in [0, 1]; areas: (N, S, S), see `Data`."""
    both = torch.stack([areas > 0, areas > 1], 1).float()
    shown, flaw = F.adaptive_avg_pool2d(both, side).flatten(2).unbind(1)
    return shown, flaw


def augment(images: Tensor, areas: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image turned by any angle, zoomed, shifted, maybe flipped, what is beyond its edge mirrored; in another light; at times grey, blurred, noisy.

    Returns pixels (N, 3, size, size), normalised, and areas (N, size, size) uint8, which moved along.
    """
    count, device = len(images), images.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *(shape or (1, 1, 1)), generator=generator, device=device)

    angle, zoom = uniform(-math.pi, math.pi, 1), uniform(math.log(0.8), math.log(1.35), 1).exp()
    flip = torch.where(uniform(0, 1, 1) < 0.5, -1.0, 1.0)
    cosine, sine, shift = angle.cos() * zoom, angle.sin() * zoom, uniform(-0.15, 0.15, 2)
    poses = torch.stack([torch.cat([flip * cosine, -sine, shift[:, :1]], 1), torch.cat([flip * sine, cosine, shift[:, 1:]], 1)], 1)  # (N, 2, 3)
    places = F.affine_grid(poses, [count, 1, size, size], align_corners=False)
    pixels = F.grid_sample(to_pixels(images, images.shape[1]), places, padding_mode="reflection", align_corners=False)
    areas = F.grid_sample(areas[:, None].float(), places, mode="nearest", padding_mode="reflection", align_corners=False)[:, 0].to(torch.uint8)

    def some(share: float) -> Tensor:
        return torch.randperm(count, generator=generator, device=device)[: round(share * count)]

    blurred, grey, loud, slanted = some(0.15), some(0.12), some(0.5), some(0.3)  # the whole batch would cost a CPU as much as the net does
    pixels[blurred] = F.avg_pool2d(pixels[blurred], 3, 1, 1, count_include_pad=False)
    pixels[grey] = pixels[grey].mean(1, keepdim=True)
    gain, bias = (0.15 * torch.randn(count, 1, 1, 1, generator=generator, device=device) for _ in range(2))
    steps = torch.linspace(-1, 1, size, device=device)
    light = uniform(-0.15, 0.15)[slanted] * steps + uniform(-0.15, 0.15)[slanted] * steps[:, None]
    plain = pixels[slanted]
    pixels.mul_(1 + gain).add_(bias)
    pixels[slanted] += light * (plain + MEAN / STD)
    pixels[loud] += uniform(0, 0.1)[loud] * torch.randn(len(loud), 1, size, size, generator=generator, device=device)
    return pixels, areas


def choose(shown: Tensor, flaw: Tensor, keep: int, generator: torch.Generator) -> Tensor | None:
    """The patches to keep (B, K) int64 of P in a square: at random, in blobs, drawn to the object or away from it; a defect rather stays than goes."""
    count, patches = shown.shape
    if keep >= patches:
        return None

    def random(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=shown.device)

    field, side = random(patches), math.isqrt(patches)
    blobs = F.interpolate(random(1, 6, 6), (side, side), mode="bilinear", align_corners=True).flatten(1)
    field = torch.where(random(1) < 0.5, 0.2 * field + 2 * blobs, field)
    pull = torch.randn(count, 1, generator=generator, device=shown.device) * (random(1) < 0.5)
    stays = 2.0 * (random(1) < 0.6)
    return (field + pull * shown + stays * (flaw > 0)).argsort(1, descending=True)[:, :keep]


def losses(net: Net, data: Data, pixels: Tensor, areas: Tensor, share_kept: float, phrases: Phrases, generator: torch.Generator) -> dict[str, Tensor]:
    """data: whose captions and numbers count. pixels (B, 3, S, S), areas (B, S, S): its images, as `augment` left them. generator: of their device."""
    device, count = pixels.device, len(pixels)
    shown, flaw = coverage(areas, net.side)
    part, front, back, kind, pair, unnamed = data.numbers.T
    index = choose(shown, flaw, round(share_kept * net.side**2), generator)
    if index is not None:
        shown, flaw = shown.gather(1, index), flaw.gather(1, index)  # (B, K)
    image, dense = net.images(resized(pixels, net.size), index)
    texts = net.texts(torch.cat([data.good, data.bad, phrases.drawn(generator, data.good.shape[1])]))
    good, bad, names = texts.split([count, count, len(texts) - 2 * count])
    scales = net.scales.exp().clamp(max=100)

    whole, bare = shown > 0.5, shown < 0.02
    broken = (flaw > TOUCHED).any(1)  # (B,)
    sound = ~(flaw > 0).any(1)
    named = unnamed == 0
    there = ((whole.sum(1) >= 3) & named).float()
    number = torch.arange(count, device=device)
    logits = net.model.logit_scale.exp().clamp(max=100) * image @ torch.cat([good, bad]).T  # (B, 2 B)
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
    shift = 1 + int(torch.randint(count - 1, ()))
    strangers = scales[0] * torch.einsum("bkd,bd->bk", dense, good.roll(shift, 0)) + net.biases[0]
    strange = ((pair != pair.roll(shift, 0)) & named.roll(shift, 0)).float()[:, None].expand_as(strangers)
    shown_loss = shown_loss + 0.5 * F.binary_cross_entropy_with_logits(strangers, torch.zeros_like(strangers), weight=strange)

    object_share = shown.mean(1)
    expected = object_share / (object_share.square() + (1 - object_share).square()).sqrt()  # as if what surrounds the object were orthogonal to the caption
    share = ((image * good).sum(1) - FULL_MATCH * expected).square().mean()

    flawed, clean = flaw > TOUCHED, flaw == 0
    leaning = scales[1] * torch.einsum("bkd,bd->bk", dense, bad - good)  # (B, K)
    odds = leaning + net.biases[1]
    weight = 4 * flawed.float() + clean.float()
    state = (F.binary_cross_entropy_with_logits(odds, flawed.float(), reduction="none") * weight).sum() / weight.sum()
    highest = leaning.topk(3, dim=1).values.mean(1) + net.biases[2]
    of_image = F.binary_cross_entropy_with_logits(highest, broken.float(), weight=(broken | sound).float())

    parts, stuff, states = names.split(phrases.sizes)
    tokens = scales[2] * dense.flatten(0, 1)
    sides = torch.where(whole, front[:, None], back[:, None]).masked_fill(~(whole | bare) | (flaw > 0.3), -1).flatten()
    of_part = torch.where(whole, part[:, None], -1).flatten()
    made, called_part = (_told_apart(tokens @ words.T, truth) for words, truth in ((stuff, sides), (parts, of_part)))
    called = torch.where(flawed, kind[:, None] + 1, 0).flatten()
    weight = (flawed.float() + 0.04 * clean.float()).flatten()
    which = (F.cross_entropy(tokens @ states.T, called, reduction="none") * weight).sum() / weight.sum()
    return {
        "contrast": contrast, "shown": shown_loss, "share": 4 * share, "state": state, "any": 0.5 * of_image, "made": 0.25 * made,
        "part": 0.25 * called_part, "kind": 0.5 * which,
    }  # fmt: skip


def _told_apart(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean cross entropy over the rows whose truth is not -1; 0 where there are none."""
    total = F.cross_entropy(logits, truth, ignore_index=-1, label_smoothing=0.1, reduction="sum")
    return total / (truth >= 0).sum().clamp(min=1)


@torch.no_grad()
def retrieval(model: nn.Module, images: Tensor, tokens: Tensor, pairs: Tensor, among: int = 256) -> float:
    """Top-1 image-to-caption retrieval over groups of held-out pairs; a caption of the same pair counts as right."""
    size = model.visual.image_size[0]
    image = torch.cat([F.normalize(model.visual(to_pixels(images[i : i + 64], size)), dim=-1) for i in range(0, len(images), 64)])
    text = model.encode_text(tokens, normalize=True)
    hits, among = [], min(among, len(image))
    for start in range(0, len(image) - among + 1, among):
        rows = slice(start, start + among)
        best = (image[rows] @ text[rows].T).argmax(1)
        hits.append((pairs[rows][best] == pairs[rows]).float().mean())
    return float(torch.stack(hits).mean())


@torch.no_grad()
def states(net: Net, data: Data) -> tuple[float, float]:
    """AUROC of telling drawn defects by the texts of the two states: of the images, by their highest patch; and of the patches."""
    odds = []
    for start in range(0, len(data.images), 64):
        rows = slice(start, start + 64)
        _, dense = net.images(to_pixels(data.images[rows], net.size), None)
        odds.append(torch.einsum("bkd,bd->bk", dense, net.texts(data.bad[rows]) - net.texts(data.good[rows])).cpu())
    odds, flaw = torch.cat(odds), coverage(data.areas, net.side)[1].cpu()
    sure = (flaw > TOUCHED) | (flaw == 0)
    broken = (data.numbers[:, 3] >= 0).cpu()
    return auroc(broken.numpy(), odds.amax(1).numpy()), auroc((flaw > TOUCHED)[sure].numpy(), odds[sure].numpy())


class Trainee:
    """One design in training: its weights, their running mean, the optimizer, and where they are kept."""

    def __init__(self, design: str, args: argparse.Namespace, unknown: int) -> None:
        self.design, self.folder, self.lr, self.unknown = design, args.out, args.lr, unknown
        torch.manual_seed(args.seed)
        config = architecture(design)
        model = trained_builtin_model() if args.go_on else random_model(config)
        self.net = Net(model.train().to(args.device), config)
        self.weights = self.net.trained()
        self._table = self.net.model.token_embedding.weight.detach()  # shares the weights' memory
        self._table[unknown] = 0
        groups = [{"params": [p for p in self.weights if p.ndim >= 2], "weight_decay": 0.05}, {"params": [p for p in self.weights if p.ndim < 2], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=args.device != "cpu")
        self.average = [weight.detach().clone() for weight in self.weights]
        self.step, self.seen, self.said = 0, 0, {}

    def learn(self, found: dict[str, Tensor], progress: float, count: int) -> None:
        """One step down these losses of so many samples; progress: 0 to 1 of the whole training."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, progress / 0.03 + 0.01) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        self.optimizer.zero_grad(set_to_none=True)
        sum(found.values()).backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self._table[self.unknown] = 0
        self.step, self.seen, self.said = self.step + 1, self.seen + count, found
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - min(0.998, self.step / (self.step + 9)))

    def averaged(self) -> Net:
        """The net with the averaged weights."""
        model = random_model(self.net.config).to(self._table.device)
        model.load_state_dict(self.net.model.state_dict())
        other = Net(model, self.net.config)
        with torch.no_grad():
            for weight, mean in zip(other.trained(), self.average, strict=True):
                weight.copy_(mean)
        return other.eval()

    def save(self, touched: Tensor) -> Net:
        """Keeps the averaged weights, to ship, and all that is needed to go on; gives the averaged net."""
        mean = self.averaged()
        save_builtin(mean.model.cpu(), touched, self.folder / f"{self.design}.safetensors")
        mean.model.to(self._table.device)
        (self.folder / f"{self.design}.json").write_text(json.dumps(self.net.config, indent=2) + "\n", encoding="utf-8")
        state = {"weights": [w.detach() for w in self.weights], "average": self.average, "optimizer": self.optimizer.state_dict()}
        torch.save(state | {"step": self.step, "seen": self.seen}, self.folder / f"{self.design}.pt")
        return mean

    def go_on(self) -> bool:
        """Takes up what `save` left, if anything."""
        path = self.folder / f"{self.design}.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        with torch.no_grad():
            for weight, saved in zip(self.weights, state["weights"], strict=True):
                weight.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step, self.seen = [each.to(self._table.device) for each in state["average"]], state["step"], state["seen"]
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--materials", type=Path, help="photographs of materials, with their metadata.csv")
    parser.add_argument("--out", type=Path, default=Path("builtin_run"))
    parser.add_argument("--designs", nargs="+", choices=DESIGNS, default=["168"])
    parser.add_argument("--minutes", type=float, default=75.0, help="of training, all designs together; the first samples are rendered before")
    parser.add_argument("--first", type=int, default=8000, help="samples to render before the first step")
    parser.add_argument("--samples", type=int, default=10_000_000, help="to render in all: on few cores, as many as --first")
    parser.add_argument("--pool", type=int, default=200_000, help="samples held at a time, 200 kB each")
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--every", type=float, default=5.0, help="minutes between two checks on held-out samples")
    parser.add_argument("--checked", type=int, default=1000, help="held-out samples of each of the two checks")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--go-on", action="store_true", help="start from the weights in the package, whose design it must be, not from random ones")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.go_on and any(architecture(design) != json.loads((WEIGHTS / f"{BUILTIN}.json").read_text(encoding="utf-8")) for design in args.designs):
        parser.error("--go-on: the weights in the package are of another design")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = True

    photos, held = samples.read_photos(args.materials) if args.materials else ([], [])
    stuff, tokenizer, started = samples.stuff_of([*photos, *held]), builtin_tokenizer(), time.time()
    taken = args.out / "taken.json"  # seeds and seconds that are spent
    spent, seed = json.loads(taken.read_text()) if taken.exists() else (0.0, 1_000_000 * (args.seed + 1))
    feed = Feed(photos, stuff, tokenizer, workers=args.workers, seed=seed, most=args.samples)
    vocabulary = architecture(args.designs[0])["text_cfg"]["vocab_size"]
    pool = Pool(feed, min(args.pool, args.samples), vocabulary, args.device)  # fills up while the held-out samples are rendered, which took a GPU's host minutes
    test = rendered(args.checked, 900_000_000 + 100 * args.seed, tokenizer, (), stuff, held="flawless", workers=args.workers)
    test_states = rendered(args.checked, 910_000_000 + 100 * args.seed, tokenizer, held, stuff, held="defects", workers=args.workers)
    test, test_states = test.to(args.device), test_states.to(args.device)
    phrases = Phrases(stuff, tokenizer, args.device)
    unknown = int(tokenizer([samples.UNKNOWN])[0, 1])
    trainees = [Trainee(design, args, unknown) for design in args.designs]
    if not all([trainee.go_on() for trainee in trainees]):
        spent = 0.0
    for words in phrases.tokens.flatten(0, 1).cpu():
        pool.touched[words] = True
    pool.wait_for(min(args.first, args.samples, args.pool))
    print(f"{pool.held} samples after {time.time() - started:.0f} s", flush=True)

    finest = max(trainee.net.size for trainee in trainees)
    generator = torch.Generator(args.device).manual_seed(args.seed + trainees[0].step)
    torch.manual_seed(args.seed + trainees[0].step)
    last, budget, checked, often = time.time(), args.minutes * 60, spent, torch.tensor([often for *_, often in STEPS])
    while spent < budget:
        keep, part, _ = STEPS[int(torch.multinomial(often, 1))]
        data = pool.draw(max(2, round(args.batch * part)), generator)
        pixels, areas = augment(data.images, data.areas, finest, generator)
        for trainee in trainees:
            trainee.learn(losses(trainee.net, data, pixels, areas, keep, phrases, generator), min(1.0, spent / budget), len(pixels))
        if trainees[0].step % 50 == 0:
            for trainee in trainees:
                said = " ".join(f"{name} {value.item():.3f}" for name, value in trainee.said.items())
                print(f"{spent / 60:5.1f} min, {trainee.design}, step {trainee.step}: {said}; {trainee.seen / max(spent, 1):.0f} samples/s, {pool.rendered} rendered", flush=True)
        now = time.time()
        spent, last = spent + now - last, now
        if spent - checked >= args.every * 60 or spent >= budget:
            touched = pool.touched.clone()
            touched[unknown] = False
            for trainee in trainees:
                mean = trainee.save(touched.nonzero()[:, 0])
                top1 = retrieval(mean.model, test.images, test.good, test.numbers[:, 4])
                of_images, of_patches = states(mean, test_states)
                with (args.out / f"{trainee.design}.csv").open("a") as curve:
                    curve.write(f"{spent:.0f},{trainee.step},{trainee.seen},{top1:.4f},{of_images:.4f},{of_patches:.4f}\n")
                print(
                    f"{trainee.design}, {trainee.seen} samples: retrieval among 256 {top1:.3f}; drawn defects, AUROC of images {of_images:.3f}, of patches {of_patches:.3f}",
                    flush=True,
                )
            taken.write_text(json.dumps([spent, seed + pool.rendered // CHUNK + 1000]))
            checked, last = spent, time.time()
    feed.close()


if __name__ == "__main__":
    main()
