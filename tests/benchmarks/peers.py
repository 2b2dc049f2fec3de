"""cmg beside anomalib's PatchCore: start-up, fit, scoring and memory on the same images at the same input size, in one run.

    python -m tests.benchmarks.peers --anomalib VENV [--fit 100] [--score 200] [--memory 200 800] [--json FILE]

VENV is a virtual environment of its own with anomalib (`python -m venv VENV && VENV/bin/pip install anomalib`). Its backbone
gets random weights, so that nothing is downloaded: they cost what trained ones cost. Each figure is that of a process of its
own, from start to end on the wall, the two tools in turn; peak memory is that of the process. One image takes what the fastest of
three runs does: the first after a fit may find none of the libraries' files in memory. The rates in a steady state come from two runs
over a part of the images and over all of them. anomalib's default backbone is heavier than cmg's
encoder, so units are also given: what an image costs in bare forward passes of the tool's own net.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from cmgcli.encoder import load_encoder
from cmgcli.line import write_line
from tests.benchmarks.__main__ import machine

PATCHCORE = '''
import json, sys, time
started = time.time()
import torch
from anomalib.data import Folder, PredictDataset
from anomalib.engine import Engine
from anomalib.models import Patchcore
imported = time.time() - started
job = json.loads(sys.argv[1])
torch.manual_seed(0)
side = (job["side"], job["side"])
model = Patchcore(
    backbone=job["backbone"], pre_trained=False, coreset_sampling_ratio=job["ratio"],
    pre_processor=Patchcore.configure_pre_processor(image_size=side, center_crop_size=side),
)
engine = Engine(accelerator="cpu", devices=1, logger=False, default_root_dir=job["out"], enable_progress_bar=False)
found = {"import": imported}
if job["what"] == "fit":
    data = Folder(name="line", root=job["images"], normal_dir=".", train_batch_size=16, eval_batch_size=16, num_workers=2, test_split_mode="none", val_split_mode="from_train", val_split_ratio=0.02)
    engine.fit(model=model, datamodule=data)
    engine.trainer.save_checkpoint(job["model"])
elif job["what"] == "predict":
    data = PredictDataset(path=job["images"], image_size=side)
    loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=2, collate_fn=data.collate_fn)
    rows = engine.predict(model=model, dataloaders=loader, ckpt_path=job["model"])
    found["rows"] = sum(len(batch.pred_score) for batch in rows)
elif job["what"] == "forward":
    net, pixels = model.model.feature_extractor.eval(), torch.randn(16, 3, *side)
    with torch.inference_mode():
        net(pixels)
        started = time.time()
        for _ in range(3):
            net(pixels)
    found["forward"] = (time.time() - started) / 48
print("FOUND " + json.dumps(found))
'''


@dataclass(frozen=True)
class Timed:
    """A whole process: seconds on the wall, peak MiB, and what it said of itself."""

    seconds: float
    peak: float
    said: dict[str, float]


def timed(command: list[str], *, says: bool = False) -> Timed:
    """Run a command to its end."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.time()
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        _, status, usage = os.wait4(process.pid, 0)
        spent = time.time() - started
        for stream in (output, errors):
            stream.seek(0)
        if status:
            sys.exit(f"{' '.join(command[:4])} failed:\n{errors.read()[-3000:]}")
        return Timed(spent, usage.ru_maxrss / 1024, json.loads(output.read().rpartition("FOUND ")[2]) if says else {})


class Peer:
    """anomalib's PatchCore in its own environment."""

    def __init__(self, environment: Path, folder: Path, side: int) -> None:
        self.python, self.folder, self.side = str(environment / "bin" / "python"), folder, side
        self.script = folder / "patchcore.py"
        self.script.write_text(PATCHCORE)

    def run(self, what: str, images: Path, *, backbone: str = "wide_resnet50_2", ratio: float = 0.1) -> Timed:
        job = {"what": what, "images": str(images), "backbone": backbone, "ratio": ratio, "side": self.side, "out": str(self.folder / "out"), "model": str(self.folder / f"{backbone}.ckpt")}
        return timed([self.python, str(self.script), json.dumps(job)], says=True)


def cmg(*arguments: object) -> Timed:
    return timed([sys.executable, "-m", "cmgcli", *map(str, arguments)])


def linked(files: list[Path], folder: Path) -> Path:
    """A folder with links to these images."""
    folder.mkdir(parents=True)
    for path in files:
        (folder / path.name).symlink_to(path)
    return folder


def forward_seconds(name: str = "builtin") -> float:
    encoder = load_encoder(name, device="cpu")
    pixels = torch.randn(16, 3, encoder.image_size, encoder.image_size)
    encoder.encode_image(pixels, layers=encoder.feature_layers)
    started = time.time()
    for _ in range(10):
        encoder.encode_image(pixels, layers=encoder.feature_layers)
    return (time.time() - started) / 160


def compare(peer: Peer, folder: Path, fit: int, score: int) -> dict[str, dict[str, float]]:
    """Seconds, rates and peaks of both tools; cmg as the paper has it, and with its defect head."""
    line = folder / "line"
    write_line(line, train=fit, test=score, seed=0)
    trained = linked(sorted((line / "images").glob("train*")), folder / "fit")
    tested = sorted((line / "images").glob("test*"))
    whole, part = linked(tested, folder / "score"), linked(tested[: len(tested) // 4], folder / "part")
    one = linked(tested[:1], folder / "one")

    def scored(run: Callable[[Path], Timed]) -> list[Timed]:
        return [min((run(one) for _ in range(3)), key=lambda timed: timed.seconds), run(part), run(whole)]

    found: dict[str, dict[str, float]] = {}
    fitted = peer.run("fit", trained)
    runs = scored(partial(peer.run, "predict"))
    found["anomalib PatchCore"] = _figures(fitted, runs, len(tested), peer.run("forward", one).said["forward"]) | {"import, s": fitted.said["import"]}
    unit = forward_seconds()
    for name, options in {"cmg --no-adapt": ["--no-adapt"], "cmg": []}.items():
        model = folder / f"{len(options)}.cmg"
        fitted = cmg("fit", "--images", trained, "--caption", "a photo of a part", "--out", model, *options)
        runs = scored(partial(cmg, "score", "--model", model, "--out", folder / "scores.csv"))
        found[name] = _figures(fitted, runs, len(tested), unit)
    return found


def _figures(fitted: Timed, runs: list[Timed], count: int, unit: float) -> dict[str, float]:
    one, part, whole = (run.seconds for run in runs)
    steady = (count - count // 4) / max(whole - part, 1e-9)
    return {
        "fit, s": fitted.seconds,
        "one image, start to end, s": one,
        "images per second, start to end": count / whole,
        "images per second, steady": steady,
        "units per image, steady": 1 / steady / unit,
        "peak of scoring, MiB": runs[-1].peak,
    }


def show(tools: dict[str, dict[str, float]]) -> None:
    """Print the figures, each beside its share of anomalib's."""
    theirs = tools["anomalib PatchCore"]
    for name, figures in tools.items():
        print(name)
        for what, value in figures.items():
            ratio = f" ({value / theirs[what]:.2f} of anomalib's)" if figures is not theirs and what in theirs else ""
            print(f"  {what}: {value:.3g}{ratio}", flush=True)


def growth(peer: Peer, folder: Path, counts: list[int]) -> dict[str, dict[str, float]]:
    """Peak MiB of a fit by the number of images; PatchCore with a small backbone and a small coreset, which its peak does not come from."""
    found: dict[str, dict[str, float]] = {"anomalib PatchCore, resnet18": {}, "cmg --no-adapt": {}}
    for count in counts:
        line = folder / f"line{count}"
        write_line(line, train=count, test=1, seed=1)
        images = linked(sorted((line / "images").glob("train*")), folder / f"grown{count}")
        found["anomalib PatchCore, resnet18"][str(count)] = peer.run("fit", images, backbone="resnet18", ratio=0.001).peak
        found["cmg --no-adapt"][str(count)] = cmg("fit", "--images", images, "--caption", "a photo of a part", "--no-adapt", "--out", folder / "grown.cmg").peak
    for peaks in found.values():
        peaks["growth, MiB per 1000 images"] = 1000 * (peaks[str(counts[-1])] - peaks[str(counts[0])]) / (counts[-1] - counts[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anomalib", type=Path, required=True, metavar="VENV")
    parser.add_argument("--fit", type=int, default=100, help="images to fit on; 0: memory only")
    parser.add_argument("--score", type=int, default=200)
    parser.add_argument("--memory", type=int, nargs="*", default=[200, 800])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, object] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(args.anomalib.absolute(), Path(folder), load_encoder("builtin", device="cpu").image_size)
        if args.fit:
            found["tools"] = compare(peer, Path(folder), args.fit, args.score)
            show(found["tools"])
        if args.memory:
            found["peak of fit, MiB"] = growth(peer, Path(folder), args.memory)
            for name, peaks in found["peak of fit, MiB"].items():
                print(f"{name}: peak of fit by images, MiB: {', '.join(f'{n}: {v:.0f}' for n, v in peaks.items())}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
