"""Scores without a model beside those of a fitted one: image AUROC of the test images, in all and by part and by kind of defect.

    python -m tests.benchmarks.zero_shot --data DIR [--model FILE | --no-fit] [--references 96]

DIR holds `metadata.csv` with splits and labels. Zero-shot sees the test images alone, good and bad mixed, without their labels;
a model is fitted with the defaults on the training images, unless there is one already.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmgcli.dataset import Record, caption_lookup, read_dataset, test_records
from cmgcli.metrics import auroc
from cmgcli.model import Model
from cmgcli.pipeline import fit
from cmgcli.rows import Row
from cmgcli.zeroshot import REFERENCES, zero_shot


def report(name: str, records: Sequence[Record], rows: Sequence[Row], seconds: float) -> None:
    """Print the areas of one way to score."""
    truth = np.array([bool(record.label) for record in records])
    score = np.array([row.score for row in rows])
    parts = {part: np.array([getattr(row, part) for row in rows], np.float64) for part in ("image_score", "patch_score", "head_score")}
    each = [f"{part} {auroc(truth, values):.3f}" for part, values in parts.items() if np.isfinite(values).all()]
    kinds = sorted({record.defect for record in records if record.label})
    named = np.array([record.defect for record in records])
    of_kinds = [f"{kind} {auroc(truth[chosen], score[chosen]):.2f}" for kind in kinds for chosen in [~truth | (named == kind)]]
    print(f"{name}: AUROC {auroc(truth, score):.3f} ({', '.join(each)}); {', '.join(of_kinds)}; {seconds / len(rows):.2f} s per image", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--no-fit", action="store_true")
    parser.add_argument("--references", type=int, default=REFERENCES)
    args = parser.parse_args()
    labels = args.data / "metadata.csv"
    records = test_records(read_dataset(args.data, labels).records)
    paths, captions = [record.path for record in records], caption_lookup(records)
    started = time.time()
    scorer = zero_shot(paths, captions, references=args.references)
    rows = [inspection.row for inspection in scorer.inspect(paths)]
    print("weights of image, patch and head score:", np.round(scorer.blend.weight[:3], 2))
    report("zero-shot", records, rows, time.time() - started)
    if not args.no_fit:
        model = Model.load(args.model) if args.model else fit(args.data, labels)
        started = time.time()
        report("fitted", records, list(model.score(paths, captions)), time.time() - started)


if __name__ == "__main__":
    main()
