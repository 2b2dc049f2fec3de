"""The state of a training that may be broken off: weights, optimizer and course in one safetensors file, no pickle."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from cmgcli import ranks
from cmgcli.errors import OutputError
from cmgcli.files import write_whole

logger = logging.getLogger(__name__)

SMOOTHING = 0.05


@dataclass(frozen=True)
class Course:
    """How far a training is."""

    decay_from: int  # step at which the learning rate begins its descent
    step: int = 0  # steps done
    loss: float = float("nan")  # exponential mean over about 20 steps
    curve: tuple[float, ...] = ()  # AUROC at each check

    def after(self, loss: float) -> Course:
        """One step further."""
        mean = loss if self.step == 0 else (1 - SMOOTHING) * self.loss + SMOOTHING * loss
        return replace(self, step=self.step + 1, loss=mean)

    def seen(self, auroc: float) -> Course:
        """One more point of the curve."""
        return replace(self, curve=(*self.curve, auroc))

    def descend(self) -> Course:
        """The descent begins now, where it has not begun yet."""
        return replace(self, decay_from=min(self.decay_from, self.step))


def save_snapshot(path: Path, key: str, module: nn.Module, optimizer: torch.optim.Optimizer, course: Course) -> None:
    """Write the state, whole or not at all; of several ranks the first does. Raises OutputError where the file cannot be written."""
    from safetensors.torch import save

    if not ranks.leads():
        return
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in state.items()}
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        write_whole(path, save(owned, metadata={"key": key, "course": json.dumps(asdict(course))}))
    except OSError as error:
        raise OutputError(f"the state of the training could not be written to {path} ({error.strerror}); choose another --out") from error


def load_snapshot(path: Path, key: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> Course | None:
    """Bring module and optimizer to the stored state and say how far it was; None where there is none of this key.

    A file of another key, or a damaged one, is left out with a warning: the training then starts anew.
    Raises OutputError where several ranks do not see the same file.
    """
    course = _load(path, key, module, optimizer)
    if len({None if found is None else found.step for found in ranks.exchanged(course)}) > 1:
        raise OutputError(f"the processes that torchrun started do not see the same {path}; choose an --out on a disk that all of them share")
    return course


def _load(path: Path, key: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> Course | None:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except (OSError, SafetensorError) as error:
        logger.warning("%s is damaged (%s); the training starts anew", path, error)
        return None
    if metadata.get("key") != key:
        logger.warning("%s belongs to a fit of other images or settings; the training starts anew", path)
        return None
    try:
        module.load_state_dict({name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")})
    except RuntimeError:
        logger.warning("%s was written by another version of cmg; the training starts anew", path)
        return None
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, field = name.split(".")
            state.setdefault(int(i), {})[field] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    course = json.loads(metadata["course"])
    return Course(**{**course, "curve": tuple(course["curve"])})
