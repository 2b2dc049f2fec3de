"""Make the picture of the README from the quickstart's output: image, kept patches, anomaly map.

    examples/quickstart.sh && python examples/overview.py demo examples/overview.jpg
"""

import csv
import sys
from pathlib import Path

import cv2
import numpy as np


def main(work: Path, out: Path) -> None:
    with (work / "line" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = {Path(row["file_name"]).stem: row for row in csv.DictReader(file)}
    with (work / "scores.csv").open(encoding="utf-8", newline="") as file:
        scored = sorted(csv.DictReader(file), key=lambda row: -float(row["score"] or 0))
    best: dict[str, str] = {}  # for each kind of defect with a mask the image of the highest score, and one good image
    for row in scored:
        stem = Path(row["file"]).stem
        kind = rows[stem]["defect"] or "good"
        if kind == "good" and row["anomalous"] == "0" or rows[stem]["mask"]:
            best.setdefault(kind, stem)
    strips = []
    for kind, stem in list(best.items())[:6]:
        pictures = (work / "line" / "images" / f"{stem}.png", work / "masks" / f"{stem}_overlay.png", work / "maps" / f"{stem}_map.png")
        strip = np.hstack([cv2.resize(cv2.imread(str(path)), (200, 200), interpolation=cv2.INTER_AREA) for path in pictures])
        cv2.putText(strip, kind, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(strip, kind, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        strips.append(cv2.copyMakeBorder(strip, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    half = len(strips) // 2
    cv2.imwrite(str(out), np.hstack([np.vstack(strips[:half]), np.vstack(strips[half : 2 * half])]), [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
