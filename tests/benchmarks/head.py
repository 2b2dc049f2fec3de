"""The defect head on real surfaces: how fast it learns, from what, and whether it learns "defect" or the list of drawings.

    python -m tests.benchmarks.head --data DIR [--steps 1500] [curve start kinds nets looks keep]

DIR holds `metadata.csv` with splits and labels. Half of the good training images train, a quarter is held out for drawn
defects; labelled test images, where there are any, give the figure on real defects. No choice is made by the latter. ``kinds`` leaves out one family
of drawings after the other, from random weights, since the shipped ones have seen them all; what is drawn on the held-out images stays the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cmgcli import defects
from cmgcli import head as head_module
from cmgcli.adapt import Scene, draw_crops, train_head
from cmgcli.dataset import Record, read_dataset, test_records, training_records
from cmgcli.encoder import Encoder, load_encoder
from cmgcli.head import DefectHead, head_map, patch_mask_to, peaks_and_map
from cmgcli.images import read_image
from cmgcli.looks import ground_of
from cmgcli.metrics import auroc
from cmgcli.pipeline import GO_ON_RATE
from cmgcli.precision import fast_bfloat16
from cmgcli.pretrained_head import load_head
from cmgcli.view import View, look

FRESH_RATE = 2e-3
DRAWN = 3  # of each held-out image
FAMILIES = {
    "lines": ("scratch", "crack", "fibre", "scuff"),
    "spots": ("chip", "pits", "stain", "dent"),
    "areas": ("uneven", "blur", "smear", "missing print"),
    "pieces": ("cut-paste", "blend"),
}
NETS = {"half as wide": {"width": 16}, "half wider": {"width": 48}, "half as deep": {"dilations": (1, 2, 4)}, "narrow view": {"dilations": (1,) * 6}}


class Bench:
    """Images and their views, computed once and shared by all trials."""

    def __init__(self, folder: Path, steps: int) -> None:
        records = read_dataset(folder, folder / "metadata.csv").records
        train = training_records(records)
        order = np.random.default_rng(0).permutation(len(train))
        self.encoder, self.steps = load_encoder("builtin"), steps
        self.ground = ground_of({record.path: record.text for record in train}, self.encoder)
        self.precision = "bfloat16" if fast_bfloat16(self.encoder.device.type) else "float32"
        self.fit = self._views([train[i] for i in order[: len(train) // 2]])
        self.held = self._views([train[i] for i in order[len(train) // 2 : 3 * len(train) // 4]][:96])
        self.test_records = test_records(records)
        self.test = self._views(self.test_records)
        rng = np.random.default_rng(1)
        basis = self.held * DRAWN
        self.kinds = np.array([defects.KINDS[i % len(defects.KINDS)] for i in range(len(basis))])
        drawn = [self._defect(view, rng, str(kind)) for view, kind in zip(basis, self.kinds, strict=True)]
        self.drawn = list(zip(basis, drawn, strict=True))

    def _views(self, records: Sequence[Record]) -> list[View]:
        encoder: Encoder = self.encoder
        views: list[View] = []
        for start in range(0, len(records), 16):
            batch = records[start : start + 16]
            text = encoder.encode_text([record.text for record in batch])
            images = [read_image(record.path) for record in batch]
            views += look(encoder, images, list(text), layers=encoder.feature_layers, relevance="fast", keep="auto", ground=self.ground)
        return views

    @staticmethod
    def _defect(view: View, rng: np.random.Generator, kind: str) -> np.ndarray:
        """The view's image with a defect where CMER keeps it."""
        allowed = patch_mask_to(view.keep, *view.image.shape[:2])
        return defects.draw(view.image, rng, allowed=allowed, kind=kind, strength=float(rng.random() ** 0.5)).image

    def trial(
        self,
        name: str,
        *,
        steps: int = 0,
        fresh: DefectHead | None = None,
        keep: bool = True,
        kinds: Sequence[str] = defects.KINDS,
    ) -> None:
        """Train one head, from the shipped weights unless ``fresh`` is given, and print what it finds."""
        started, steps = time.time(), steps or self.steps
        everywhere = np.ones(self.encoder.grid, bool)

        def sample(rng: np.random.Generator, _: int):
            view, donor = (self.fit[int(i)] for i in rng.integers(len(self.fit), size=2))
            return draw_crops(Scene(view.image, view.keep if keep else everywhere), donor.image, rng, kinds=kinds)

        head = train_head(
            sample,
            steps=steps,
            learning_rate=FRESH_RATE if fresh else GO_ON_RATE,
            start=fresh or load_head(),
            device=self.encoder.device.type,
        )
        minutes = (time.time() - started) / 60
        head.accustom(torch.stack([peaks_and_map(head, v.image, v.keep if keep else everywhere, precision=self.precision)[0] for v in self.held]))
        print(f"{name}: {steps} steps, {minutes:.1f} min; {self._found(head, keep, kinds)}; {self._real(head, keep)}", flush=True)

    def _score(self, head: DefectHead, view: View, image: np.ndarray, keep: bool) -> float:
        return head_map(head, image, view.keep if keep else np.ones_like(view.keep), precision=self.precision)[0]

    def _found(self, head: DefectHead, keep: bool, kinds: Sequence[str]) -> str:
        calm = np.array([self._score(head, view, view.image, keep) for view in self.held])
        broken = np.array([self._score(head, view, image, keep) for view, image in self.drawn])
        families = {name: np.isin(self.kinds, family) for name, family in FAMILIES.items()}
        each = [f"{name} {against(calm, broken[ours]):.3f}{'' if set(FAMILIES[name]) <= set(kinds) else ' left out'}" for name, ours in families.items()]
        return f"drawn {against(calm, broken):.3f} ({', '.join(each)})"

    def _real(self, head: DefectHead, keep: bool) -> str:
        if not self.test:
            return "no labelled images"
        scores = np.array([self._score(head, view, view.image, keep) for view in self.test])
        names = np.array([record.defect if record.label else "" for record in self.test_records])
        each = [f"{name} {against(scores[names == ''], scores[names == name]):.2f}" for name in sorted(set(names) - {""})]
        return f"real {against(scores[names == ''], scores[names != '']):.3f} ({', '.join(each)})"


def against(calm: np.ndarray, broken: np.ndarray) -> float:
    """AUROC of broken against calm."""
    return auroc(np.repeat([0, 1], [len(calm), len(broken)]), np.r_[calm, broken])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("what", nargs="*", default=["curve", "start", "kinds", "nets", "looks", "keep"])
    args = parser.parse_args()
    bench = Bench(args.data, args.steps)
    if "curve" in args.what:
        for steps in (100, 300, 1000, 3000):
            bench.trial("learning curve", steps=steps)
    if "start" in args.what:
        bench.trial("from the shipped weights")
        if "kinds" not in args.what:
            bench.trial("from scratch, all kinds", fresh=DefectHead())
    if "kinds" in args.what:
        bench.trial("from scratch, all kinds", fresh=DefectHead())
        for family, left_out in FAMILIES.items():
            bench.trial(f"from scratch, without {family}", fresh=DefectHead(), kinds=[kind for kind in defects.KINDS if kind not in left_out])
    if "nets" in args.what:
        for name, shape in NETS.items():
            bench.trial(f"from scratch, {name}", fresh=DefectHead(**shape))
    if "looks" in args.what:
        enlarged, head_module.ENLARGED_PIXELS = head_module.ENLARGED_PIXELS, 0
        bench.trial("from scratch, never enlarged", fresh=DefectHead())
        head_module.ENLARGED_PIXELS = enlarged
    if "keep" in args.what:
        if "start" not in args.what:
            bench.trial("from the shipped weights")
        bench.trial("without the keep mask", keep=False)


if __name__ == "__main__":
    main()
