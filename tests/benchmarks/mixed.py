"""One model of several products beside a model of each: does a caption that names the product keep them apart?

    python -m tests.benchmarks.mixed [--data DIR] [--steps 1500] [--without]

DIR holds `metadata.csv` with splits and labels, and each product has a caption of its own; by default the demo line with 600 test images.
The mixed model and those of one product are fitted alike, with the defaults of `cmg fit` (`--without`: the head), and judged by the same test
images. Prints image AUROC within each product, since the scores of two models cannot be compared, and the means; also that of a mixed model
without CMLE, to which every caption says the same.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmgcli.dataset import Record, read_dataset, test_records, training_records
from cmgcli.encoder import Encoder, load_encoder
from cmgcli.evaluation import evaluate_records
from cmgcli.figures import truth_and_scores
from cmgcli.line import write_line
from cmgcli.looks import ground_of
from cmgcli.metrics import auroc
from cmgcli.pipeline import fit_records
from tests.benchmarks.setting import settings_of


def by_caption(encoder: Encoder, train: Sequence[Record], test: Sequence[Record], *, steps: int, cmle: bool = True) -> dict[str, float]:
    """AUROC among the test images of each caption, by one model of the training images; a caption whose images are all good or all bad is left out."""
    settings = settings_of(encoder, ground=ground_of({record.path: record.text for record in train}, encoder), adapt_steps=steps, cmle=cmle, calibration="split" if steps else "cross")
    cases = evaluate_records(fit_records(train, encoder, settings, false_alarm=0.01), test).cases
    judged = {text: truth_and_scores([case for case in cases if case.record.text == text]) for text in sorted({record.text for record in test})}
    return {text: auroc(truth, scores) for text, (truth, scores) in judged.items() if truth.any() and not truth.all()}


def compare(records: Sequence[Record], steps: int) -> None:
    encoder = load_encoder("builtin", device="cpu")
    train, test = training_records(records), test_records(records)
    found = {"mixed": by_caption(encoder, train, test, steps=steps), "mixed, no CMLE": by_caption(encoder, train, test, steps=steps, cmle=False), "one by one": {}}
    for text in found["mixed"]:
        own, judged = ([record for record in part if record.text == text] for part in (train, test))
        found["one by one"] |= by_caption(encoder, own, judged, steps=steps)
        print(f"{text} ({len(own)} to learn from): {', '.join(f'{name} {areas[text]:.3f}' for name, areas in found.items())}", flush=True)
    print(f"mean: {', '.join(f'{name} {np.mean(list(areas.values())):.3f}' for name, areas in found.items())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--without", action="store_true", help="without the defect head")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        metadata = args.data / "metadata.csv" if args.data else write_line(Path(scratch), test=600)
        compare(read_dataset(metadata.parent, metadata).records, 0 if args.without else args.steps)


if __name__ == "__main__":
    main()
