"""What CMER's keep mask keeps: object recall, kept share and defect recall on unseen scenes of the line.

    python -m tests.benchmarks.keep_rule [SCENES]

Compares the largest top-k set within tolerance of the best match (the rule of `cmer.keep_mask`) with the smallest one. Prints, too, how well
captions match that fit, that name another part, and that say nothing it knows: what `cmer.MATCH_FLOOR` goes by.
"""

import sys

import cv2
import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from cmgcli import cmer, line
from cmgcli.encoder import load_encoder
from cmgcli.view import Meter, pooled_match, relevance_of


def smallest_within(match, relevance, grid, *, tolerance: float) -> np.ndarray:
    """The rule that is not used: the smallest set within tolerance, then the same morphology."""
    sizes = sorted({max(1, round(size * relevance.shape[1])) for size in cmer.KEEP_SIZES})
    matches = torch.stack([match(torch.arange(len(relevance)), cmer.top_patches(relevance, size)) for size in sizes], dim=1)
    best, worst = matches.amax(1, keepdim=True), matches.amin(1, keepdim=True)
    first = (matches >= best - (tolerance * (best - worst)).clamp(min=0.01)).to(torch.int8).argmax(1)
    cores = [cmer.top_patches(relevance[i : i + 1], sizes[k])[0] for i, k in enumerate(first.tolist())]
    return np.stack([cmer.grow(core.numpy().reshape(grid)) for core in cores])


def figures(keep: np.ndarray, objects: np.ndarray, scenes: list[line.Sample]) -> str:
    recall = np.mean([(k & o).sum() / o.sum() for k, o in zip(keep, objects, strict=True)])
    ratio = np.mean(keep.mean((1, 2)) / objects.mean((1, 2)))
    survived = []
    for k, scene in zip(keep, scenes, strict=True):
        if scene.defect_mask.any():
            full = cv2.resize(k.astype(np.uint8), scene.defect_mask.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
            survived.append((full & scene.defect_mask).sum() / scene.defect_mask.sum())
    return f"object recall {recall:.3f}, kept / object {ratio:.2f}, defect recall {np.mean(survived):.3f}"


def best_match(dense: torch.Tensor, text: torch.Tensor, objects: np.ndarray) -> str:
    """How well captions (B, D) match the best set of the patches (B, P, D), and whether their relevance finds the objects (B, h, w)."""
    relevance, match = cmer.fast(dense, text), pooled_match(dense, text)
    counts = sorted({max(1, round(size * dense.shape[1])) for size in cmer.KEEP_SIZES})
    best = torch.stack([match(torch.arange(len(text)), cmer.top_patches(relevance, count)) for count in counts], dim=1).amax(1)
    auroc = np.mean([roc_auc_score(o.ravel(), r) for o, r in zip(objects, relevance.numpy(), strict=True)])
    low, middle, high = np.quantile(best.numpy(), [0.05, 0.5, 0.95])
    return f"best match {low:.2f} to {high:.2f}, median {middle:.2f}; AUROC {auroc:.3f}"


def main(count: int = 96) -> None:
    encoder = load_encoder("builtin", device="cpu")
    rng = np.random.default_rng(777)
    kinds = ("", "scratch", "stain", "chip", "crack", "missing hole")
    scenes = []
    while len(scenes) < count:
        scene = line.render(rng, size=192, defect=str(rng.choice(kinds)))
        if not scene.object_mask.all():  # a sheet fills the frame, there is nothing to discard
            scenes.append(scene)
    text = encoder.encode_text([f"a photo of a {scene.material} {scene.part}" for scene in scenes])
    pixels = encoder.preprocess([scene.image for scene in scenes])
    full = encoder.encode_image(pixels)
    masks = [cv2.resize(scene.object_mask.astype(np.float32), encoder.grid[::-1], interpolation=cv2.INTER_AREA) for scene in scenes]
    objects = np.stack(masks) > 0.3
    match = pooled_match(full.dense, text)
    for estimator in ("fast", "sampled", "occlusion"):
        relevance = relevance_of(Meter(encoder, pixels), estimator, full, text)
        auroc = np.mean([roc_auc_score(o.ravel(), r) for o, r in zip(objects, relevance.numpy(), strict=True)])
        print(f"{estimator}: AUROC of the relevance against the object, per patch: {auroc:.3f}")
    captions = {"right": text, "another part": text.roll(7, 0), "unknown words": encoder.encode_text(["a photo of a quux"]).expand(len(text), -1)}
    for name, embedded in captions.items():
        print(f"caption, {name}: {best_match(full.dense, embedded, objects)}")
    relevance = cmer.fast(full.dense, text)
    print(f"the object itself, grown by one patch: {figures(np.stack([cmer.grow(o) for o in objects]), objects, scenes)}")
    for tolerance in (0.03, 0.1, 0.2):
        largest = cmer.keep_mask(match, relevance, encoder.grid, tolerance=tolerance)
        print(f"largest within {tolerance}: {figures(largest.numpy().reshape(-1, *encoder.grid), objects, scenes)}")
        print(f"smallest within {tolerance}: {figures(smallest_within(match, relevance, encoder.grid, tolerance=tolerance), objects, scenes)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
