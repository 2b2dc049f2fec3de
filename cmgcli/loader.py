"""Decode images ahead of the consumer, in order, with flat memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cmgcli.errors import ImageError
from cmgcli.images import read_image

Decoded = tuple[Path | str, np.ndarray | ImageError]

BATCH = 16
PATIENCE = 0.05


def decoded(paths: Iterable[Path | str], *, batch_size: int = BATCH, live: bool = False) -> Iterator[list[Decoded]]:
    """Batches of (path, image) in the order of the paths; a file that fails gives its error in place of the image.

    Two threads decode ahead, at most two batches.

    Args:
        paths: any iterable, read in a thread of its own; an error it raises is raised here.
        live: the paths come as they are made, as from a camera's pipe: a source that delivers nothing for `PATIENCE`
            seconds is not waited for, what is there goes on as a smaller batch. Otherwise every batch but the last is
            full, whatever the timing.
    """
    pending: queue.Queue[tuple[Path | str, Future] | BaseException | None] = queue.Queue(2 * batch_size)
    stopped = threading.Event()

    def put(item) -> None:
        while not stopped.is_set():
            try:
                return pending.put(item, timeout=0.1)
            except queue.Full:
                continue

    def feed() -> None:
        try:
            for path in paths:
                if stopped.is_set():
                    return
                put((path, pool.submit(_decode, path)))
            put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            put(error)

    pool = ThreadPoolExecutor(2)
    threading.Thread(target=feed, daemon=True).start()
    try:
        yield from _batches(pending, batch_size, PATIENCE if live else None)
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _batches(pending: queue.Queue, batch_size: int, patience: float | None) -> Iterator[list[Decoded]]:
    while True:
        batch, item = [], pending.get()
        while isinstance(item, tuple):
            path, future = item
            batch.append((path, future.result()))
            if len(batch) == batch_size:
                break
            try:
                item = pending.get(timeout=patience)
            except queue.Empty:
                break
        if batch:
            yield batch
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item


def _decode(path: Path | str) -> np.ndarray | ImageError:
    try:
        return read_image(path)
    except ImageError as error:
        return error


class ImageStore:
    """Reads images again and again; holds the first ones in memory up to a fixed budget of bytes."""

    def __init__(self, paths: Sequence[Path], *, budget: int = 400_000_000) -> None:
        self.paths, self.budget = paths, budget
        self.held: dict[int, np.ndarray] = {}

    def __getitem__(self, i: int) -> np.ndarray:
        """The ``i``-th image (H, W, 3) uint8; ImageError where it cannot be read."""
        if i in self.held:
            return self.held[i]
        image = read_image(self.paths[i])
        if image.nbytes <= self.budget:
            self.budget -= image.nbytes
            self.held[i] = image
        return image
