"""Start-up, scoring, precision and memory of cmg, as ratios taken in one run.

    python -m tests.benchmarks [--json FILE] [--encoders builtin ViT-B-16] [--images 48] [--rounds 3] [--memory 200 800] [start units precision memory]

The defaults take a few minutes on two cores; the sizes of a long run are `--images 500 --memory 500 5000 50000`. Times are
processor seconds, taken in turns, and the least counts, so that ratios hold on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import cmgcli
from cmgcli.line import write_line
from cmgcli.precision import native_bfloat16
from tests.benchmarks.memory import peaks
from tests.benchmarks.speed import precision_agreement, random_vit, scoring_units


def machine() -> dict[str, object]:
    """What the figures were taken on, and how busy it was."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "processor": capabilities.get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "threads of torch": torch.get_num_threads(),
        "native bfloat16": native_bfloat16(),
        "GPU": gpu,
        "load average at the start": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def start_up(line: Path, folder: Path, rounds: int) -> dict[str, float]:
    """Processor seconds of whole processes, least of the rounds, beside the import of torch alone."""
    model = folder / "start.cmg"
    cmgcli.fit(line, line / "metadata.csv", adapt=False, device="cpu").save(model)
    image = str(sorted((line / "images").glob("test*"))[0])
    score = ["-m", "cmgcli", "score", "--model", str(model), "--captions", str(line / "metadata.csv"), image]
    programs = {
        "import torch": ["-c", "import torch"],
        "import open_clip": ["-c", "import open_clip"],
        "cmg --help": ["-m", "cmgcli", "--help"],
        "cmg score, one image": score,
    }
    spent = {name: min(_processor_seconds(program) for _ in range(rounds)) for name, program in programs.items()}
    return {f"{name}, s": used for name, used in spent.items()} | {"cmg score / import torch": spent["cmg score, one image"] / spent["import torch"]}


def _processor_seconds(program: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *program], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def show(figures: dict, indent: str = "  ") -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{name}", flush=True)
            show(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value:.4g}" if isinstance(value, float) else f"{indent}{name}: {value}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["start", "units", "precision", "memory", []], help="all by default")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--encoders", nargs="+", default=["builtin", "ViT-B-16"], help="builtin, or open_clip architectures, which get random weights")
    parser.add_argument("--images", type=int, default=48, help="images that are scored; a twelfth of them with another encoder than builtin")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", nargs="+", type=int, default=[200, 800], help="numbers of small images whose peak memory is compared")
    args = parser.parse_args()
    found: dict[str, object] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line = write_line(folder / "line", train=80, test=max(args.images, 2)).parent
        small = write_line(folder / "small", train=6, test=max(args.images // 12, 2)).parent

        def units() -> dict[str, object]:
            return {
                encoder: scoring_units(line, encoder, images=args.images, rounds=args.rounds)
                if encoder == "builtin"
                else scoring_units(small, random_vit(folder, encoder), images=args.images // 12, rounds=1)
                for encoder in args.encoders
            }

        parts: dict[str, Callable[[], dict]] = {
            "start": lambda: start_up(line, folder, args.rounds),
            "units": units,
            "precision": lambda: precision_agreement(line),
            "memory": lambda: peaks(folder / "many", args.memory),
        }
        print("machine")
        show(found["machine"])
        for part, measure in parts.items():
            if not args.parts or part in args.parts:
                found[part] = measure()
                print(part, flush=True)
                show(found[part])
                if args.json is not None:
                    args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
