"""The closed form of the guided space over many embeddings: one pass, time and peak memory.

    python -m tests.benchmarks.closed_form

Synthetic embeddings of 512 dimensions, 500 captions, drawn batch by batch as an encoder would give them. Each size runs
in a process of its own, whose peak beyond what it has after its imports and the captions is printed.
"""

import resource
import subprocess
import sys
import time

import torch

from cmgcli.cmle import ResidualMoments, guided_space, structure_matrix

DIM, CAPTIONS, BATCH = 512, 500, 256


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB


def one(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(CAPTIONS, DIM, generator=generator), dim=1)
    captions = torch.randint(CAPTIONS, (count,), generator=generator)
    torch.linalg.eigh(torch.eye(DIM, dtype=torch.float64))  # the solver's own workspace
    before, start = peak(), time.perf_counter()
    moments = ResidualMoments(structure_matrix(text, torch.bincount(captions, minlength=CAPTIONS).clamp(min=1)), DIM)
    for rows in captions.split(BATCH):
        moments.add(text[rows] + torch.randn(len(rows), DIM, generator=generator), rows)
    space = guided_space(moments)
    seconds = time.perf_counter() - start
    print(f"{count} embeddings: {seconds:.1f} s, peak {peak() - before:.1f} MiB beyond {before:.0f} MiB, least l {float(space.unexplained[0]):.3f}", flush=True)


def main() -> None:
    for count in (10_000, 100_000):
        subprocess.run([sys.executable, "-m", "tests.benchmarks.closed_form", str(count)], check=True)


if __name__ == "__main__":
    one(int(sys.argv[1])) if len(sys.argv) > 1 else main()
