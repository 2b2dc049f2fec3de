"""How many good parts does it take? Fits on 1, 2, 4, ... good images and draws the learning curve.

    cmg demo line && python examples/few_shot.py line --out curve

Writes curve.csv and curve.png and prints a table: the image AUROC on the labelled test images, what the threshold can promise
at each size, and how many good parts it then rejects and how many bad ones it misses.
"""

import argparse
import csv
import logging
import tempfile
from pathlib import Path

import numpy as np

import cmgcli
from cmgcli.dataset import Record, read_dataset, training_records

COLUMNS = ("images", "seed", "auroc", "calibration_images", "promised_rate", "false_alarm_rate", "miss_rate", "promise")


def some(records: list[Record], count: int, seed: int) -> list[Record]:
    """So many records, at random; every caption gets its first before any gets its second."""
    turns: dict[str, int] = {}
    order = []
    for i in np.random.default_rng(seed).permutation(len(records)):
        turns[records[i].text] = turns.get(records[i].text, 0) + 1
        order.append((turns[records[i].text], len(order), records[i]))
    return [record for _, _, record in sorted(order, key=lambda entry: entry[:2])[:count]]


def fit_and_judge(folder: Path, records: list[Record], seed: int, options: dict) -> dict:
    """One row: a model of these images, judged on the test images."""
    with tempfile.TemporaryDirectory() as place:
        captions = Path(place) / "captions.csv"
        with captions.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("file_name", "text"))
            writer.writerows((record.file_name, record.text) for record in records)
        model = cmgcli.fit(folder, captions, allow_missing=True, seed=seed, **options)
    result = cmgcli.evaluate(model, folder, folder / "metadata.csv")
    calibration = model.detector.calibration
    rates = (result.false_alarm_rate.value, result.miss_rate.value)
    return dict(zip(COLUMNS, (len(records), seed, result.image_auroc, len(calibration.scores), calibration.promised_rate, *rates, calibration.sentence), strict=True))


def draw(rows: list[dict], path: Path) -> None:
    """AUROC of each fit and their mean, and the rate that can be promised, against the number of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = sorted({row["images"] for row in rows})
    left.plot([row["images"] for row in rows], [row["auroc"] for row in rows], "o", alpha=0.35, color="tab:blue")
    left.plot(sizes, [np.mean([row["auroc"] for row in rows if row["images"] == size]) for size in sizes], color="tab:blue")
    left.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    left.set(ylabel="image AUROC")
    for name, label, style in (("promised_rate", "promised", "-"), ("false_alarm_rate", "seen", ":")):
        right.plot(sizes, [np.mean([row[name] for row in rows if row["images"] == size]) for size in sizes], style, marker="o", color="tab:red", label=label)
    right.set(ylabel="share of good parts rejected")
    right.legend()
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("good images to fit on")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds metadata.csv with splits and labels")
    parser.add_argument("--out", type=Path, default=Path("curve"), help="name of the CSV and the PNG file, without ending")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--seeds", type=int, default=3, help="fits of each size")
    parser.add_argument("--steps", type=int, default=100, help="of the defect head; 0: no head")
    parser.add_argument("--false-alarm", type=float, default=0.05)
    args = parser.parse_args()
    logging.getLogger("cmgcli").setLevel(logging.ERROR)  # the images left out are meant to be
    options = {"false_alarm": args.false_alarm, "adapt": args.steps > 0, "adapt_steps": max(1, args.steps)}
    records = list(training_records(read_dataset(args.folder, args.folder / "metadata.csv").records))
    rows = []
    print("images  AUROC (spread)   calibrate  promised  rejected  missed")
    for size in (size for size in args.sizes if size <= len(records)):
        new = [fit_and_judge(args.folder, some(records, size, seed), seed, options) for seed in range(args.seeds)]
        rows += new
        mean = {name: np.mean([row[name] for row in new]) for name in COLUMNS if name not in ("seed", "promise")}
        spread = np.std([row["auroc"] for row in new])
        print(
            f"{size:6d}  {mean['auroc']:.3f} ({spread:.3f})  {mean['calibration_images']:9.0f}  {mean['promised_rate']:8.3f}"
            f"  {mean['false_alarm_rate']:8.3f}  {mean['miss_rate']:6.3f}",
            flush=True,
        )
    with args.out.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, args.out.with_suffix(".png"))
    print(f"wrote {args.out.with_suffix('.csv')} and {args.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
