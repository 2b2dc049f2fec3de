"""What CMER's keep mask keeps: object recall, kept share and defect recall on unseen scenes of the line.

    python -m tests.benchmarks.keep_rule [SCENES [SEED]]

Compares the largest top-k set within tolerance of the best match (the rule of `cmer.keep_mask`) with the smallest one. Prints, too, how well
captions match that fit, that name another part, and that say nothing it knows, and what discarding gains: on parts before a ground, and on surfaces that
fill the frame, where nothing should go. `cmer.MATCH_FLOOR` and `cmer.GAIN_FLOOR` go by these.
"""

import sys

import cv2
import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from cmgcli import cmer, line
from cmgcli.encoder import Encoder, load_encoder
from cmgcli.view import Meter, guided, relevance_of

SLOW = 48  # scenes for what takes many passes of each
KINDS = ("", "scratch", "stain", "chip", "crack", "missing hole")


def smallest_within(nested: cmer.Nested, relevance: torch.Tensor, grid: tuple[int, int], *, tolerance: float) -> np.ndarray:
    """The rule that is not used: the smallest set within tolerance, then the same morphology."""
    sizes = sorted({max(1, round(size * relevance.shape[1])) for size in cmer.KEEP_SIZES})
    matches = nested(sizes)
    best, worst = matches.amax(1, keepdim=True), matches.amin(1, keepdim=True)
    first = (matches >= best - (tolerance * (best - worst)).clamp(min=0.01)).to(torch.int8).argmax(1)
    cores = [cmer.top_patches(relevance[i : i + 1], sizes[k])[0] for i, k in enumerate(first.tolist())]
    return np.stack([cmer.grow(core.numpy().reshape(grid)) for core in cores])


def figures(keep: np.ndarray, objects: np.ndarray, scenes: list[line.Sample]) -> str:
    recall = np.mean([(k & o).sum() / o.sum() for k, o in zip(keep, objects, strict=True)])
    ratio = np.mean(keep.mean((1, 2)) / objects.mean((1, 2)))
    ground = [k[~o].mean() for k, o in zip(keep, map(cmer.grow, objects), strict=True) if not o.all()]
    survived = []
    for k, scene in zip(keep, scenes, strict=True):
        if scene.defect_mask.any():
            full = cv2.resize(k.astype(np.uint8), scene.defect_mask.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
            survived.append((full & scene.defect_mask).sum() / scene.defect_mask.sum())
    said = f", ground kept {np.mean(ground):.2f}" if ground else ""
    return f"object recall {recall:.3f}, kept / object {ratio:.2f}, defect recall {np.mean(survived):.3f}{said}"


def matches(dense: torch.Tensor, text: torch.Tensor, objects: np.ndarray) -> str:
    """How well captions (B, D) match the best set of the patches (B, P, D), by how much better than all, and whether their relevance finds the objects (B, h, w)."""
    relevance = cmer.fast(dense, text)
    nested = cmer.nested_means(dense, text, relevance)(cmer.counts_of(cmer.KEEP_SIZES, dense.shape[1]))
    best = nested.amax(1)
    gain = best - nested[:, -1]
    ranked = [roc_auc_score(o.ravel(), r) for o, r in zip(objects, relevance.numpy(), strict=True) if not o.all()]
    return f"best match {spread(best)}, gain {spread(gain)}" + (f", AUROC of the relevance {np.mean(ranked):.3f}" if ranked else "")


def spread(values: torch.Tensor) -> str:
    """From the 5th to the 95th of a hundred."""
    return "{:.2f} to {:.2f}".format(*np.quantile(values.numpy(), [0.05, 0.95]))


def scenes_of(count: int, *, fill: bool, seed: int) -> list[line.Sample]:
    """Scenes of the line, of which four in five have a defect; those that fill the frame, or the others."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        scene = line.render(rng, size=192, defect=str(rng.choice(KINDS)))
        if scene.object_mask.all() == fill:
            found.append(scene)
    return found


def compare(encoder: Encoder, scenes: list[line.Sample]) -> None:
    """Three captions of each scene: what they match, and what is kept by the rule."""
    text = encoder.encode_text([f"a photo of a {scene.material} {scene.part}" for scene in scenes])
    dense, objects = encoder.encode_image(encoder.preprocess([scene.image for scene in scenes])).dense, covers(encoder, scenes) > 0.3
    captions = {"right": text, "another part": text.roll(7, 0), "unknown words": encoder.encode_text(["a photo of a quux"]).expand(len(text), -1)}
    for name, embedded in captions.items():
        for ground in ("by image", "yes"):
            guides, named, whole = guided(encoder, dense, embedded, ground)
            relevance = cmer.fast(dense, guides)
            keep = cmer.keep_mask(cmer.nested_means(dense, guides, relevance), relevance, encoder.grid, whole=whole).numpy().reshape(-1, *encoder.grid)
            if ground == "by image":
                print(f"  caption, {name}: {matches(dense, embedded, objects)}; guides itself in {named.float().mean():.2f}", flush=True)
            print(f"    ground {ground}: {figures(keep, objects, scenes)}", flush=True)
    print(f"  a thing without a name: {matches(dense, encoder.unnamed.expand(len(text), -1), objects)}", flush=True)


def covers(encoder: Encoder, scenes: list[line.Sample]) -> np.ndarray:
    """The share of each patch that is object, (B, h, w)."""
    return np.stack([cv2.resize(scene.object_mask.astype(np.float32), encoder.grid[::-1], interpolation=cv2.INTER_AREA) for scene in scenes])


def main(count: int = 96, seed: int = 777) -> None:
    encoder = load_encoder("builtin", device="cpu")
    scenes = scenes_of(count, fill=False, seed=seed)
    for title, shown in {"parts before a ground": scenes, "surfaces that fill the frame": scenes_of(count, fill=True, seed=seed + 2)}.items():
        print(title)
        compare(encoder, shown)
    text, pixels = encoder.encode_text([f"a photo of a {scene.material} {scene.part}" for scene in scenes]), encoder.preprocess([scene.image for scene in scenes])
    full, objects = encoder.encode_image(pixels), covers(encoder, scenes) > 0.3
    relevance = cmer.fast(full.dense, text)
    print("parts, the right caption")
    nested = cmer.nested_means(full.dense, text, relevance)
    print(f"  the object itself, grown as the mask is: {figures(np.stack([cmer.grow(o) for o in objects]), objects, scenes)}")
    for tolerance in (0.1, cmer.TOLERANCE, 0.25):
        largest = cmer.keep_mask(nested, relevance, encoder.grid, tolerance=tolerance)
        print(f"  largest within {tolerance}: {figures(largest.numpy().reshape(-1, *encoder.grid), objects, scenes)}")
        print(f"  smallest within {tolerance}: {figures(smallest_within(nested, relevance, encoder.grid, tolerance=tolerance), objects, scenes)}")
    print(f"the estimators, on the first {SLOW} of them")
    meter, some = Meter(encoder, pixels[:SLOW]), encoder.encode_image(pixels[:SLOW])
    for estimator in ("fast", "sampled", "occlusion"):
        relevance = relevance_of(meter, estimator, some, text[:SLOW])
        auroc = np.mean([roc_auc_score(o.ravel(), r) for o, r in zip(objects[:SLOW], relevance.numpy(), strict=True)])
        print(f"  {estimator}: AUROC of the relevance against the object, per patch: {auroc:.3f}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
