"""What a few known bad parts are worth: fits with and without them, judged by the other bad parts.

    python -m tests.benchmarks.known --data DIR [--known 0 2 6] [--apart 6] [--seed 0] [--steps 1500]

DIR holds `metadata.csv` with splits, labels, masks and kinds of defect. Of each kind so many bad test images are
set apart, whatever a fit learns from, that all are judged by the same ones. Each fit is that of `cmg fit` with its defaults, and
`--known-defects` where it learns from some. Prints image AUROC, AUROC of each kind, AUPRO, and what is missed at the promised rates.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from cmgcli.evaluation import evaluate
from cmgcli.pipeline import fit


def set_apart(rows: list[dict[str, str]], most: int, seed: int) -> dict[str, list[int]]:
    """The numbers of up to so many bad test images of each kind that have a mask."""
    kinds = defaultdict(list)
    for number, row in enumerate(rows):
        if row["split"] == "test" and row["label"] != "0" and row["mask"]:
            kinds[row["defect"]].append(number)
    rng = np.random.default_rng(seed)
    return {kind: rng.permutation(numbers)[:most].tolist() for kind, numbers in sorted(kinds.items())}


def written(rows: list[dict[str, str]], apart: dict[str, list[int]], known: int, path: Path) -> Path:
    """The caption file in which so many of each kind are known, and the others of those set apart are left out."""
    changed = {number: place < known for numbers in apart.values() for place, number in enumerate(numbers)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row | ({"split": "train"} if number in changed else {}) for number, row in enumerate(rows) if changed.get(number, True))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--known", type=int, nargs="+", default=[0, 2, 6], help="bad images of each kind that a fit learns from")
    parser.add_argument("--apart", type=int, default=6, help="bad images of each kind that judge nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    with (args.data / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    logging.getLogger("cmgcli").setLevel(logging.ERROR)  # it tells of the images that are set apart
    apart = set_apart(rows, max(args.apart, *args.known), args.seed)
    with tempfile.TemporaryDirectory() as folder:
        for known in args.known:
            captions = written(rows, apart, known, Path(folder) / f"{known}.csv")
            model = fit(args.data, captions, known_defects=known > 0, seed=args.seed, adapt_steps=args.steps, allow_missing=True)
            found = evaluate(model, args.data, captions, allow_missing=True)
            kinds = " ".join(f"{kind} {group.auroc:.2f}" for kind, group in found.by_defect.items())
            rates = ", ".join(
                f"{promised}: {choice.false_alarm_rate.count} of {choice.false_alarm_rate.total} and {choice.miss_rate.value:.0%}"
                for promised, choice in found.by_promised_rate.items()
            )
            print(f"{known} of each kind known, {model.detector.settings.known_defects} in all: image AUROC {found.image_auroc:.3f} ({kinds}), AUPRO {found.aupro:.3f}; false alarms and missed where promised {rates}", flush=True)


if __name__ == "__main__":
    main()
