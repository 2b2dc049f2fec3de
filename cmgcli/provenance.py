"""What it takes to repeat an evaluation: the files by their hashes, the settings, the versions, the command line."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cmgcli.errors import InputError
from cmgcli.words import installed_version

if TYPE_CHECKING:
    from cmgcli.detector import Detector

PACKAGES = ("cmgcli", "torch", "open_clip_torch", "numpy", "opencv-python", "scikit-learn", "matplotlib", "jinja2")

Facts = dict[str, str]


def of_file(path: Path) -> Facts:
    """Name, size and sha256 of a file; of a pipe, which can be read only once, the name. Raises InputError where it cannot be read."""
    if path.is_fifo() or path.is_char_device():
        return {"file": path.name, "size": "not known of a pipe"}
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"file": path.name, "size": f"{path.stat().st_size:,} bytes", "sha256": digest}
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def of_model(path: Path, detector: Detector) -> Facts:
    """The model file, all of its settings, and what its threshold rests on."""
    from cmgcli.detector import PARTS

    calibration = detector.calibration
    facts = of_file(path) | {name.replace("_", " "): _said(value) for name, value in asdict(detector.settings).items()}
    facts |= {
        "defect head": "none" if detector.head is None else f"{detector.head.width} channels, dilations {_said(detector.head.dilations)}",
        "weights of the parts": ", ".join(f"{name} {weight:.3f}" for name, weight in zip(PARTS, detector.blend.weight, strict=True)),
        "weights far out": ", ".join(f"{name} {far:.3f}" for name, far in zip(PARTS, detector.blend.far, strict=True)),
        "images fitted": str(detector.fit_images),
        "captions": str(len(detector.language.captions)),
        "calibration images": str(len(calibration.scores)),
        "false-alarm rate asked for": f"{calibration.false_alarm:g}",
        "promise": calibration.sentence,
        "threshold": f"{calibration.threshold():.6g}",
    }
    facts |= {f"threshold of {detector.language.captions[group]!r}": f"{calibration.threshold(group):.6g}" for group in calibration.own}
    return facts | {"fitted with": _fitted_with(path)}


def of_run(arguments: Sequence[str]) -> Facts:
    """The command line, as a shell takes it, and what it ran on."""
    return {
        "command": shlex.join(["cmg", *arguments]),
        "packages": ", ".join(f"{package} {installed_version(package)}" for package in PACKAGES),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not set"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _fitted_with(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        versions = json.loads(file.metadata()["cmg"]).get("versions", {})
    return ", ".join(f"{package} {number}" for package, number in versions.items())
