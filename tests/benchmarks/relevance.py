"""The estimators of relevance beside each other: what they cost, and whether they find what matters for the caption.

    python -m tests.benchmarks.relevance [--encoders builtin ViT-B-16] [--scenes 24]

On unseen scenes of the line, for each estimator: processor time in units of one forward pass of the encoder; Spearman's correlation with `occlusion`
over the patches; AUROC against the object's patches; the mean match while patches are inserted, and while they are deleted, the most relevant
first (Petsiuk et al., BMVC 2018: the higher, and the lower, the better). Captum's Occlusion, which paints pixels, is compared where `captum` is
installed. Encoders other than builtin get random weights and a sixth of the scenes: their matches mean nothing, but their derivatives and times do.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from cmgcli import cmer, line
from cmgcli.encoder import Encoder, load_encoder
from cmgcli.view import Meter, keep_index, relevance_of
from tests.benchmarks.speed import random_vit

SHARES = np.linspace(0.1, 0.9, 9)  # of the patches, inserted or deleted


def scenes(count: int) -> list[line.Sample]:
    """Flawless parts that do not fill the frame."""
    rng, found = np.random.default_rng(778), []
    while len(found) < count:
        scene = line.render(rng, size=224)
        if not scene.object_mask.all():
            found.append(scene)
    return found


def estimators(encoder: Encoder, text: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """From pixels (B, 3, S, S) to relevance (B, P), each from nothing but the pixels; the last argument of none is the batch's captions (B, D)."""

    def by(name: str) -> Callable[[Tensor], Tensor]:
        def run(pixels: Tensor) -> Tensor:
            meter = Meter(encoder, pixels)
            return relevance_of(meter, name, meter.encode(), text)

        return run

    def exact(pixels: Tensor) -> Tensor:
        return cmer.occlusion(lambda _, keep: match(encoder, pixels, text, keep), torch.arange(len(pixels)), encoder.grid)

    def derivative(pixels: Tensor) -> Tensor:
        return cmer.over_windows(encoder.encode_with_worth(pixels, lambda _, rows: text[rows])[2], encoder.grid)

    dense = {"fast (patch by patch)": by("fast")} if encoder.averages else {}
    found = {"occlusion": exact, **dense, "fast (first order)": derivative, "sampled": by("sampled"), "random": lambda pixels: torch.rand(len(pixels), encoder.patch_count)}
    return found | ({"Captum's Occlusion": captum_occlusion(encoder, text)} if importlib.util.find_spec("captum") else {})


def captum_occlusion(encoder: Encoder, text: Tensor) -> Callable[[Tensor], Tensor]:
    """The same window and stride, painted with the mean colour."""
    from captum.attr import Occlusion

    patch = encoder.image_size // encoder.grid[0]

    def run(pixels: Tensor) -> Tensor:
        rule = Occlusion(lambda painted, captions: (encoder.encode_image(painted).embedding * captions).sum(1))
        found = rule.attribute(pixels, sliding_window_shapes=(3, 3 * patch, 3 * patch), strides=(3, patch, patch), baselines=0, additional_forward_args=text)
        return torch.nn.functional.avg_pool2d(found.mean(1, keepdim=True), patch).flatten(1)

    return run


def match(encoder: Encoder, pixels: Tensor, text: Tensor, keep: Tensor) -> Tensor:
    return (encoder.encode_image(pixels, index=None if keep.all() else keep_index(keep)[0]).embedding * text).sum(1)


def curve(encoder: Encoder, pixels: Tensor, text: Tensor, relevance: Tensor) -> float:
    """The mean match over growing sets of the most relevant patches."""
    counts = [round(share * encoder.patch_count) for share in SHARES]
    return float(torch.stack([match(encoder, pixels, text, cmer.top_patches(relevance, count)) for count in counts]).mean())


def compare(encoder: Encoder, pictures: list[line.Sample]) -> None:
    if encoder.name == "builtin":
        text = encoder.encode_text([f"a photo of a {scene.material} {scene.part}" for scene in pictures])
    else:
        text = torch.nn.functional.normalize(torch.randn(len(pictures), encoder.dim, generator=torch.Generator().manual_seed(0)), dim=1)
    pixels = encoder.preprocess([scene.image for scene in pictures])
    masks = [cv2.resize(scene.object_mask.astype(np.float32), encoder.grid[::-1], interpolation=cv2.INTER_AREA) > 0.3 for scene in pictures]
    encoder.encode_image(pixels[:2])
    started = time.process_time()
    encoder.encode_image(pixels)
    unit = time.process_time() - started
    reference = None
    for name, estimate in estimators(encoder, text).items():
        started = time.process_time()
        found = estimate(pixels)
        units = (time.process_time() - started) / unit
        reference = found if reference is None else reference
        correlation = np.mean([spearmanr(a, b)[0] for a, b in zip(found.numpy(), reference.numpy(), strict=True)])
        auroc = np.mean([roc_auc_score(mask.ravel(), row) for mask, row in zip(masks, found.numpy(), strict=True)])
        inserted, deleted = curve(encoder, pixels, text, found), curve(encoder, pixels, text, -found)
        print(f"  {name:24} {units:6.1f} units, Spearman {correlation:6.3f}, AUROC {auroc:.3f}, insertion {inserted:.4f}, deletion {deleted:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["builtin", "ViT-B-16"], help="builtin, or open_clip architectures, which get random weights")
    parser.add_argument("--scenes", type=int, default=24)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.encoders:
            built_in = name == "builtin"
            encoder = load_encoder(name if built_in else random_vit(Path(folder), name), device="cpu")
            print(f"{name}, {encoder.patch_count} patches", flush=True)
            compare(encoder, scenes(args.scenes if built_in else max(2, args.scenes // 6)))


if __name__ == "__main__":
    main()
