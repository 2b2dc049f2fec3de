"""`Detector` to and from one safetensors file with a JSON header; no pickle, no half-written file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from cmgcli.album import Album
from cmgcli.bank import PatchBank
from cmgcli.calibrate import Calibration
from cmgcli.cmle import GuidedSpace
from cmgcli.detector import Blend, Detector, Language, Settings, States
from cmgcli.errors import CheckpointError, OutputError
from cmgcli.files import write_whole
from cmgcli.head import DefectHead
from cmgcli.projection import Latent
from cmgcli.words import installed_version

Module = TypeVar("Module", bound=nn.Module)

FORMAT = 16
PACKAGES = ("cmgcli", "torch", "open_clip_torch", "numpy")


def save(detector: Detector, path: Path) -> None:
    """Write the model to a temporary file beside ``path``, then rename it.

    Raises:
        OutputError: the file cannot be written; an older model of that name is left as it was.
    """
    from safetensors.torch import save as to_bytes

    language, calibration = detector.language, detector.calibration
    tensors = {
        "language.text": language.text,
        "language.means": language.means,
        "language.groups": language.groups,
        "space.projection": language.space.projection,
        "space.unexplained": language.space.unexplained,
        "bank.features": detector.bank.features,
        "bank.groups": detector.bank.groups,
        "bank.origins": detector.bank.origins.int(),
        "album.sheet": detector.album.sheet,
        **{f"blend.{part.name}": torch.from_numpy(getattr(detector.blend, part.name)) for part in fields(Blend)},
        "map_reference": torch.from_numpy(detector.map_reference),
        "calibration.scores": torch.from_numpy(calibration.scores),
        "calibration.groups": torch.from_numpy(calibration.groups),
        "calibration.fitted": torch.from_numpy(calibration.fitted),
    }
    header = {
        "format": FORMAT,
        "settings": asdict(detector.settings),
        "captions": language.captions,
        "album": detector.album.names,
        "false_alarm": calibration.false_alarm,
        "threshold": calibration.threshold() if len(calibration.scores) else None,
        "fit_images": detector.fit_images,
        "versions": {package: installed_version(package) for package in PACKAGES},
    }
    if detector.head is not None:
        head = detector.head
        header["head"] = {"width": head.width, "dilations": head.dilations}
        tensors |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    if language.states is not None:
        tensors |= {f"states.{part.name}": getattr(language.states, part.name) for part in fields(States)}
    if language.latent is not None:
        latent = language.latent
        header["latent"] = {"kind": latent.kind, "dim": latent.dim, "latent_dim": latent.latent_dim}
        tensors |= {f"latent.{name}": tensor for name, tensor in latent.state_dict().items()}
    # safetensors refuses two tensors that share memory, and the ones from a GPU are stored as they come
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        signed = header | {"sha256": _digest(header, owned)}  # one entry only: safetensors writes several in any order, and the same model is the same file
        write_whole(Path(path), to_bytes(owned, metadata={"cmg": json.dumps(signed)}))
    except OSError as error:
        raise OutputError(f"the model could not be written to {path} ({error.strerror}); choose another --out") from error


def load(path: Path) -> Detector:
    """Read a model.

    Raises:
        CheckpointError: the file is missing, is not a cmg model, is damaged, or has a format this program does not know.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # a copy is aligned like any tensor; a view into the file is not, and sums differ in their last bit
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except FileNotFoundError as error:
        raise CheckpointError(f"no model {path}; make one with: cmg fit --images DIR --captions FILE --out {path}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a cmg model, or is damaged ({error}); make one with: cmg fit") from error
    if "cmg" not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but not a cmg model; make one with: cmg fit")
    try:
        header = json.loads(metadata["cmg"])
        if header["format"] != FORMAT:
            raise CheckpointError(f"{path} has model format {header['format']}, this program reads {FORMAT}; fit it again")
        if header.pop("sha256") != _digest(header, tensors):
            raise CheckpointError(f"{path} is damaged (its content is not what its checksum says); fit the model again, or copy it again from where it is sound")
        return _detector(header, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}); fit the model again") from error


def _digest(header: dict, tensors: dict[str, torch.Tensor]) -> str:
    """What tells that a file was copied whole and kept well; an array that lost a bit would else give other scores, and nobody would know."""
    sha = hashlib.sha256(json.dumps(header).encode())
    for name in sorted(tensors):
        sha.update(f"{name}{tuple(tensors[name].shape)}".encode())
        sha.update(tensors[name].numpy().tobytes())
    return sha.hexdigest()


def _detector(header: dict, tensors: dict[str, torch.Tensor]) -> Detector:
    settings = Settings(**{**header["settings"], "layers": tuple(header["settings"]["layers"])})
    space = GuidedSpace(tensors["space.projection"], tensors["space.unexplained"])
    latent = None
    if "latent" in header:
        latent = _weighted(Latent(**header["latent"]), "latent.", tensors)
    language = Language(
        tuple(header["captions"]),
        tensors["language.text"],
        tensors["language.means"],
        tensors["language.groups"],
        space,
        settings.cmle,
        settings.neighbours,
        settings.ridge,
        latent,
        States(**{part.name: tensors[f"states.{part.name}"] for part in fields(States)}) if settings.cmer else None,
    )
    bank = PatchBank(tensors["bank.features"], tensors["bank.groups"], tensors["bank.origins"].long())
    if bank.origins.shape != (len(bank.features), 5):
        raise ValueError(f"expected an image and a box for each patch, got origins {tuple(bank.origins.shape)}")
    if int(bank.origins[:, 0].max()) >= len(header["album"]):
        raise ValueError("a patch comes from an image that has no name")
    head = None
    if "head" in header:
        head = _weighted(DefectHead(**header["head"]), "head.", tensors)
    held_out = (tensors[f"calibration.{name}"].numpy() for name in ("scores", "groups", "fitted"))
    return Detector(
        settings,
        language,
        bank,
        Album(tuple(header["album"]), tensors["album.sheet"]),
        head,
        Blend(**{part.name: tensors[f"blend.{part.name}"].numpy() for part in fields(Blend)}),
        tensors["map_reference"].numpy(),
        Calibration(header["false_alarm"], *held_out, settings.calibration),
        header["fit_images"],
    )


def _weighted(module: Module, prefix: str, tensors: dict[str, torch.Tensor]) -> Module:
    module.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    return module.eval().requires_grad_(False)
