"""What CMER and CMLE gain over the image-only baseline on the scenes the method is for, without the head and with it, over several seeds.

    python -m tests.benchmarks.composite --tiles DIR --materials DIR [--seeds 0 1 2 3 4] [--train 240] [--test 160] [--adapt-steps 1500] [--out DIR] [--sheet FILE]
    python -m tests.benchmarks.composite --line [--seeds 0 1 2 3 4] [--train 240] [--test 160] [--adapt-steps 1500] [--out DIR] [--sheet FILE]

Scenes: see `scenes`; real magnetic tiles and parts cut from photographs lie anywhere on other materials. Or the demo line. Each seed
draws scenes of its own, and the ablation of ``cmg eval --ablate`` is run on them. Prints its image AUROC and its relative gain beside
the paper's; the AUROC of the two parts of the score; that of each product's images among themselves, which leaves out what comes of
different products having different scores; and, since no method finds what it was not shown, how much of the object, of the defect
and of the ground CMER's keep mask keeps. The built-in encoder was trained on most photographs of materials, never on the tiles.
Without the head the areas are near 0.5, which is guessing: there a relative gain is chance, unless it holds over many seeds. With
``--adapt-steps`` each variant is also fitted with a head of so many steps, and gains over the baseline with the head: there CMER decides where
defects are drawn and looked for.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from cmgcli.contact import ContactSheet
from cmgcli.dataset import read_dataset, test_records
from cmgcli.evaluation import PAPER_GAIN, VARIANTS, ablate
from cmgcli.figures import truth_and_scores
from cmgcli.images import read_mask
from cmgcli.line import write_line
from cmgcli.looks import Looks
from cmgcli.metrics import auroc
from cmgcli.model import Model
from cmgcli.pipeline import fit
from cmgcli.report import Case, Evaluation
from cmgcli.rows import MaskRow
from cmgcli.view import View
from tests.benchmarks.scenes import SIZE, Stock, read_stock, scene, write_scenes

OBJECT, GROUND = 0.3, 0.02  # share of the object from which on, and up to which, a patch counts as object, and as ground


def areas(result: Evaluation) -> dict[str, float]:
    """The areas under the curve that the benchmark tells of one variant."""
    parts = {name.replace("_score", " part"): area for name, area in result.auroc_by_part.items()}
    pixels = {} if result.pixel_auroc is None else {"pixels": result.pixel_auroc}
    return {"AUROC": result.image_auroc} | parts | {"in a product": float(np.mean(list(by_product(result).values())))} | pixels


def by_product(result: Evaluation) -> dict[str, float]:
    """The AUROC among the images whose captions name the same thing, whatever it lies on; things without both classes are left out."""
    products: dict[str, list[Case]] = {}
    for case in result.cases:
        products.setdefault(case.record.text.partition(" on ")[0].removeprefix("a photo of "), []).append(case)
    judged = {name: truth_and_scores(cases) for name, cases in sorted(products.items())}
    return {name: auroc(truth, scores) for name, (truth, scores) in judged.items() if truth.any() and not truth.all()}


def by_kind(result: Evaluation) -> dict[str, float]:
    """The AUROC of each kind of defect against all good images."""
    return {kind: group.auroc for kind, group in result.by_defect.items()}


def shares(views: Sequence[View], flaws: Sequence[np.ndarray | None], objects: Sequence[np.ndarray]) -> dict[str, float]:
    """What the keep masks keep: shares of the picture and of the defects, and, where the objects are known, of these and of the ground.

    flaws: masks (H, W) bool of the pictures, None for a flawless one. objects: the same, without None, or none at all. Also the AUROC
    of the relevance against the object, per patch.
    """
    keeps = [view.keep for view in views]
    kept = {"picture": np.mean([keep.mean() for keep in keeps])}
    kept["defect"] = np.mean([_full(keep, flaw.shape)[flaw].mean() for keep, flaw in zip(keeps, flaws, strict=True) if flaw is not None])
    if objects:
        cover = [cv2.resize(each.astype(np.float32), keeps[0].shape[::-1], interpolation=cv2.INTER_AREA) for each in objects]
        kept["object"] = np.mean([keep[share > OBJECT].mean() for keep, share in zip(keeps, cover, strict=True)])
        kept["ground"] = np.mean([keep[share < GROUND].mean() for keep, share in zip(keeps, cover, strict=True)])
        ranked = [auroc((share > OBJECT).ravel(), view.relevance.ravel()) for view, share in zip(views, cover, strict=True)]
        kept["relevance AUROC"] = np.mean(ranked)
    return {name: float(value) for name, value in kept.items()}


def _full(keep: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(keep.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST) > 0


def masks_of(model: Model, folder: Path, objects: Sequence[np.ndarray], sheet: Path | None) -> dict[str, float]:
    """`shares` of the test images of a folder, as the model keeps them; `sheet` gets a picture of them, their relevance and what is kept."""
    test = test_records(read_dataset(folder, folder / "metadata.csv").records)
    seen = Looks(test, model.encoder, model.detector.settings, budget=0).sound(range(len(test)))
    views = [view for _, batch in seen for view in batch]
    if sheet is not None:
        drawing = ContactSheet()
        for record, view in zip(test, views, strict=True):
            name = f"{Path(record.file_name).name} {record.defect}"
            row = MaskRow(name, match_before=view.match_before, match_after=view.match, kept=float(view.keep.mean()), caption=record.text)
            drawing.add(row, view.image, view.relevance, view.keep)
        drawing.write(sheet)
    return shares(views, [None if record.mask is None else read_mask(record.mask) for record in test], objects)


def say(tables: Sequence[Mapping[str, Evaluation]], suffix: str = "") -> None:
    """Print what each variant gained and its areas, mean and standard deviation over the seeds; then the means by product and by kind of defect.

    suffix: of the names of the variants.
    """
    variants, baseline = [name + suffix for name in VARIANTS], "baseline" + suffix
    print(f"gain in AUROC over the {baseline}, mean +- standard deviation over {len(tables)} seeds (in the paper {PAPER_GAIN:+.2%}); AUROC of the score and others")
    for name in variants:
        gain = [table[name].image_auroc / table[baseline].image_auroc - 1 for table in tables]
        told = {area: [areas(table[name])[area] for table in tables] for area in areas(tables[0][name])}
        each = [f"{area} {np.mean(values):.3f} +- {np.std(values):.3f}" for area, values in told.items()]
        print(f"{name:>19}: {np.mean(gain):+7.2%} +- {np.std(gain):.2%}; {', '.join(each)}")
    for title, split in (("by product", by_product), ("by kind of defect, against all good images", by_kind)):
        print(f"{title}: {', '.join(variants)}")
        for group in sorted({group for table in tables for group in split(table[baseline])}):
            values = [[split(table[name])[group] for table in tables if group in split(table[name])] for name in variants]
            print(f"{group:>24}: {'  '.join(f'{np.mean(each):.3f}' for each in values)}")


def run(folder: Path, stock: Stock | None, args: argparse.Namespace, seed: int) -> tuple[dict[str, Evaluation], dict[str, float]]:
    """Draw the scenes of one seed, or without a stock the line, and give the ablation and what the keep mask keeps."""
    if stock is None:
        write_line(folder, train=args.train, test=args.test, size=SIZE, seed=seed)
    else:
        write_scenes(folder, stock, train=args.train, test=args.test, seed=seed)
    objects = [scene(stock, seed, "test", i).object_mask for i in range(args.test)] if stock else []
    model = fit(folder, folder / "metadata.csv", adapt=False, seed=seed)
    kept = masks_of(model, folder, objects, args.sheet if seed == args.seeds[0] else None)
    return ablate(model, folder, folder / "metadata.csv", adapt_steps=args.adapt_steps), kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, help="folder with metadata.csv of tiles: splits, labels and masks")
    parser.add_argument("--materials", type=Path, help="folder with metadata.csv of seamless photographs: the text is the material")
    parser.add_argument("--line", action="store_true", help="the demo line instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--train", type=int, default=240)
    parser.add_argument("--test", type=int, default=160)
    parser.add_argument("--adapt-steps", type=int, default=0, help="each variant also with a head of so many steps")
    parser.add_argument("--out", type=Path, help="keep the scenes here, in seed_0 and so on, for cmg fit and cmg eval")
    parser.add_argument("--sheet", type=Path, help="PNG of the first seed's test scenes and what CMER makes of them")
    args = parser.parse_args()
    if args.line == (args.tiles is not None and args.materials is not None):
        parser.error("give --tiles and --materials, or --line")
    stock = None if args.line else read_stock(args.tiles, args.materials)
    with tempfile.TemporaryDirectory() as scratch:
        tables, kept = [], []
        for seed in args.seeds:
            table, shown = run((args.out or Path(scratch)) / f"seed_{seed}", stock, args, seed)
            tables.append(table)
            kept.append(shown)
            print(f"seed {seed}: {', '.join(f'{name} {result.image_auroc:.4f}' for name, result in table.items())}", flush=True)
    say(tables)
    if args.adapt_steps:
        say(tables, " with head")
    print(f"the keep mask keeps, of the test scenes: {', '.join(f'{name} {np.mean([each[name] for each in kept]):.3f}' for name in kept[0])}")


if __name__ == "__main__":
    main()
