"""Peak memory of a fit without the head and of scoring, by the number of small images. Used by ``python -m tests.benchmarks``."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from cmgcli.images import write_png


def many_images(folder: Path, count: int) -> Path:
    """A folder of so many different images of 48 x 48 pixels and their captions, of which there are ten; the caption file."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["file_name,text"]
    for i in range(count):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        write_png(folder / f"{i}.png", np.kron(coarse, np.ones((8, 8, 1), np.uint8)))
        lines.append(f"{i}.png,a photo of part number {i % 10}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "metadata.csv"


def peaks(folder: Path, counts: list[int]) -> dict[str, dict[str, float]]:
    """Peak MiB of a fit and of a scoring run by the number of images, each in a process of its own."""
    found: dict[str, dict[str, float]] = {"fit": {}, "score": {}}
    for count in counts:
        captions, model = many_images(folder / str(count), count), folder / f"{count}.cmg"
        options = ["--captions", str(captions)]
        found["fit"][str(count)] = peak_of(["fit", "--images", str(captions.parent), *options, "--no-adapt", "--out", str(model)])
        found["score"][str(count)] = peak_of(["score", "--model", str(model), *options, "--out", str(folder / "scores.csv"), str(captions.parent)])
    for figures in found.values():
        figures["most images / fewest"] = figures[str(max(counts))] / figures[str(min(counts))]
    return found


def peak_of(arguments: list[str]) -> float:
    """Peak MiB of one run of cmg."""
    run = subprocess.run([sys.executable, "-m", "tests.benchmarks.memory", *arguments], check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def main(arguments: list[str]) -> None:
    from cmgcli.cli import app

    try:
        app(arguments)
    except SystemExit as done:
        if done.code:
            raise
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main(sys.argv[1:])
