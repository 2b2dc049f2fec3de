"""The processes that torchrun starts for one fit: which of them this is, and what they tell each other.

Each of these ranks runs the whole program on the same images. What costs is dealt out to them in turn, what is cheap and
deterministic each does by itself, and rank 0 speaks and writes. All that travels goes through main memory (gloo), so that it
is the same with and without GPUs. A program that torchrun has not started, or started once, is rank 0 of 1, and does not
import torch for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from cmgcli.errors import RankError

if TYPE_CHECKING:
    from torch import nn

Value = TypeVar("Value")
Item = TypeVar("Item")

_rank, _size = 0, 1
_store: Any = None  # torchrun's own, which outlives each rank


def started() -> bool:
    """Whether torchrun started this process with others; they are a group only within `joined`."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[None]:
    """Within, the processes that torchrun started are one group, and each has its GPU, where there are any."""
    global _rank, _size, _store
    import torch
    from torch import distributed

    _store, _rank, _size = next(distributed.rendezvous("env://"))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group("gloo", store=_store, rank=_rank, world_size=_size)
    try:
        yield
    finally:
        distributed.destroy_process_group()
        _rank, _size, _store = 0, 1, None


def rank() -> int:
    """The number of this process in the group, from 0."""
    return _rank


def size() -> int:
    """How many there are; 1 outside of `joined`."""
    return _size


def leads() -> bool:
    """Whether this is the rank that speaks and writes."""
    return _rank == 0


def mine(number: int) -> bool:
    """Whether the piece of work with this number, of many that are dealt out in turn, is this rank's."""
    return number % _size == _rank


def first_to_fail() -> bool:
    """Whether no other rank has called this before: torchrun ends them all as soon as one has failed, so that one says why."""
    return _store is None or _store.add("failed", 1) == 1


def broadcast(value: Value | None, sender: int) -> Value:
    """The sender's value, on every rank; what the others give is ignored."""
    if _size == 1:
        return value
    from torch import distributed

    values = [value if _rank == sender else None]
    with _talking():
        distributed.broadcast_object_list(values, src=sender)
    return values[0]


def exchanged(value: Value) -> list[Value]:
    """The values of all ranks in their order, on every rank."""
    if _size == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * _size
    with _talking():
        distributed.all_gather_object(values, value)
    return values


def collected(value: Value) -> list[Value | None]:
    """The values of all ranks in their order, on rank 0; as many times None on the others."""
    if _size == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * _size
    with _talking():
        distributed.gather_object(value, values if leads() else None, dst=0)
    return values


def shared(work: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    """What `work` gives for each item, in their order, on every rank; each does its share of it."""
    done = exchanged([work(item) for item in items[_rank::_size]])
    return [done[i % _size][i // _size] for i in range(len(items))]


def copy_of_first(module: nn.Module) -> None:
    """Give the module on every rank the weights that it has on rank 0."""
    if _size > 1:
        module.load_state_dict(broadcast({name: tensor.cpu() for name, tensor in module.state_dict().items()} if leads() else None, 0))


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # so says gloo that the other end is gone
        raise RankError("another process that torchrun started has ended before the fit was done; torchrun says below which, and how") from error
