"""The streaming coreset of the patch bank beside random rows and exact greedy: coverage radius, time, memory.

    python -m tests.benchmarks.coreset [PATCHES]

Synthetic patches: unit-norm, 384 dimensions, 200 kinds of texture of unequal frequency, each of 12 dimensions, with noise;
they come as images of 196 patches. Ratios are against exact greedy (farthest first over all patches at once).
"""

import sys
import time

import torch

from cmgcli.bank import BankBuilder, k_center, sketch

WIDTH, PER_IMAGE, BUDGET = 384, 196, 4096


def patches(count: int, seed: int = 0) -> torch.Tensor:
    """(count, WIDTH) float32 unit-norm patches."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(200, WIDTH, generator=generator)
    directions = torch.randn(200, 12, WIDTH, generator=generator)
    kinds = (200 * torch.rand(count, generator=generator) ** 3).long()
    found = torch.empty(count, WIDTH)
    for rows in torch.arange(count).split(4096):
        inside = torch.randn(len(rows), 1, 12, generator=generator) @ directions[kinds[rows]]
        found[rows] = centres[kinds[rows]] + 0.3 * inside[:, 0] + 0.1 * torch.randn(len(rows), WIDTH, generator=generator)
    return torch.nn.functional.normalize(found, dim=1)


def radius(features: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Distance (n,) of each row to the nearest chosen one."""
    return torch.cat([torch.cdist(part, chosen).amin(1) for part in features.split(2048)])


def stream(features: torch.Tensor, budget: int) -> torch.Tensor:
    """The bank of patches that come image by image."""
    builder = BankBuilder(1, budget=budget)
    for number, image in enumerate(features.split(PER_IMAGE)):
        builder.add(image, 0, image=number, boxes=torch.zeros(len(image), 4, dtype=torch.int64))
    return builder.build().features


def main(count: int = 50_000) -> None:
    features = patches(count)
    methods = {
        "exact greedy": lambda: features[k_center(sketch(features), BUDGET).chosen],
        "streaming": lambda: stream(features, BUDGET),
        "random": lambda: features[torch.randperm(count, generator=torch.Generator().manual_seed(1))[:BUDGET]],
    }
    unit = None
    for name, choose in methods.items():
        start = time.perf_counter()
        chosen = choose()
        seconds = time.perf_counter() - start
        distances = radius(features, chosen)
        row = torch.tensor([float(distances.max()), float(distances.quantile(0.99)), float(distances.mean()), seconds])
        unit = row if unit is None else unit
        ratios = row / unit
        print(
            f"{name}: {len(chosen)} of {count}, radius {row[0]:.4f} ({ratios[0]:.3f}), 99 % within {row[1]:.4f} ({ratios[1]:.3f}), "
            f"mean distance {row[2]:.4f} ({ratios[2]:.3f}), {seconds:.2f} s ({ratios[3]:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
