"""What is it? Top-1 accuracy of the names of drawn defects on (part, material) pairs that the built-in encoder was never trained on.

    python -m tests.benchmarks.naming [IMAGES]

Four kinds whose words the encoder's training captions had: guessing is 0.25. Each image is named twice: by the patches of the
defect as it was drawn, and by those that a model without head, fitted on good images of the same pairs, finds strange. The last
figure, a logistic regression over the drawn patches' embeddings (five folds), says how much of the kind the image tower sees at all.
"""

import csv
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

import cmgcli
from cmgcli import line
from cmgcli.figures import confusion_of
from cmgcli.images import write_png
from cmgcli.model import MAP_STRANGE
from cmgcli.naming import Namer, Phrase
from tests.benchmarks.encoder import training

KINDS = ("scratch", "stain", "chip", "crack")
PAIRS, GOOD = 12, 240


def pairs() -> list[tuple[str, str]]:
    """Some of the pairs that were held out of the training, the same in every run."""
    held = [(part, material) for part in line.PARTS for material in line.MATERIALS if training().samples.held_out(part, material)]
    return [held[i] for i in np.random.default_rng(0).permutation(len(held))[:PAIRS]]


def main(images: int = 240) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    rng, chosen, drawn = np.random.default_rng(88), pairs(), {}
    with tempfile.TemporaryDirectory() as name:
        folder, bad = Path(name) / "good", Path(name) / "bad"
        folder.mkdir()
        bad.mkdir()
        with (folder / "metadata.csv").open("w", newline="") as file:
            write = csv.writer(file).writerow
            write(("file_name", "text"))
            for i in range(GOOD + images):
                (part, material), defect = chosen[i % PAIRS], "" if i < GOOD else KINDS[i // PAIRS % 4]
                caption = f"a photo of a {material} {part}"
                sample = line.render(rng, size=192, part=part, material=material, defect=defect, caption=caption, design=i % PAIRS)
                path = (bad if defect else folder).resolve() / f"{i}.png"
                write_png(path, sample.image)
                if defect:
                    drawn[path] = (sample, defect)
                else:
                    write((path.name, caption))
        model = cmgcli.fit(folder, folder / "metadata.csv", adapt=False, device="cpu")
        namer = Namer(model.encoder, [Phrase(kind, kind) for kind in KINDS])
        named: dict[str, list[tuple[str, str]]] = {"where the defect was drawn": [], "where the model finds it": []}
        embeddings, kinds = [], []
        captions = {path: sample.caption for path, (sample, _) in drawn.items()}
        for inspection in model.inspect(list(drawn), captions, maps=True):
            sample, kind = drawn[Path(inspection.row.file)]
            everywhere = np.ones_like(inspection.view.keep)
            shown = replace(inspection, anomaly_map=shares(sample.defect_mask, everywhere.shape), view=replace(inspection.view, keep=everywhere))
            for words, seen in zip(named, (shown, inspection), strict=True):
                named[words].append((kind, namer.defects(seen)[0].name))
            embeddings.append(namer.regions(shown)[0].numpy())
            kinds.append(kind)
    for words, given in named.items():
        found = confusion_of(KINDS, given)
        print(f"{words}: top-1 {found.right.value:.3f} [{found.right.low:.3f}, {found.right.high:.3f}] of {len(given)}")
        for kind in KINDS:
            print(f"  {kind}: {dict(Counter(name for label, name in given if label == kind))}")
    probe = cross_val_score(LogisticRegression(max_iter=2000, C=10), np.stack(embeddings), kinds, cv=5).mean()
    print(f"logistic regression over the same embeddings: {probe:.3f}")


def shares(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A map (h, w) float32 that is very strange in the patches that hold most of a mask (H, W) bool."""
    held = cv2.resize(mask.astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
    return np.where(held >= held.max() / 2, MAP_STRANGE + 1, 0).astype(np.float32)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
