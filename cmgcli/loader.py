"""Decode images ahead of the consumer, in order, with flat memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from cmgcli.errors import ImageError, check_count
from cmgcli.images import read_image

Item = TypeVar("Item")
Decoded = tuple[Path | str, np.ndarray | ImageError]

BATCH = 16
MOST_IN_A_BATCH = 64  # that is chosen, not asked for: the decoded images of two are held
PATIENCE = 0.05
THREADS, AHEAD = 2, 256_000_000  # that decode ahead; bytes of pixels


def decoded(paths: Iterable[Path | str], *, batch_size: int = BATCH, live: bool = False) -> Iterator[list[Decoded]]:
    """Batches of (path, image) in the order of the paths; a file that fails gives its error in place of the image.

    Two threads decode ahead, at most two batches, and no more than about `AHEAD` bytes.

    Args:
        paths: any iterable, read in a thread of its own; an error it raises is raised here.
        live: the paths come as they are made, as from a camera's pipe: a source that delivers nothing for `PATIENCE`
            seconds is not waited for, what is there goes on as a smaller batch. Otherwise every batch but the last is
            full, whatever the timing.
    """
    check_count("batch size", batch_size, 1)
    pending: queue.Queue[tuple[Path | str, Future] | BaseException | None] = queue.Queue(2 * batch_size)
    stopped = threading.Event()
    ahead = _Ahead()

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
                ahead.wait_for_room(stopped)
                put((path, pool.submit(ahead.decode, path)))
            put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            put(error)

    pool = ThreadPoolExecutor(THREADS)
    threading.Thread(target=feed, daemon=True).start()
    try:
        yield from _batches(pending, batch_size, PATIENCE if live else None, ahead)
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)


class _Ahead:
    """What is being decoded, and what is decoded and not yet taken."""

    def __init__(self) -> None:
        self._decoding = self._bytes = 0
        self._changed = threading.Condition()

    def wait_for_room(self, stopped: threading.Event) -> None:
        with self._changed:
            while not stopped.is_set() and (self._decoding >= 2 * THREADS or self._bytes > AHEAD):
                self._changed.wait(0.1)
            self._decoding += 1

    def decode(self, path: Path | str) -> np.ndarray | ImageError:
        image = _decode(path)
        self._change(-1, image)
        return image

    def taken(self, future: Future) -> np.ndarray | ImageError:
        image = future.result()
        self._change(0, image, sign=-1)
        return image

    def _change(self, decoding: int, image: np.ndarray | ImageError, sign: int = 1) -> None:
        with self._changed:
            self._decoding += decoding
            self._bytes += sign * getattr(image, "nbytes", 0)
            self._changed.notify_all()


def _batches(pending: queue.Queue, batch_size: int, patience: float | None, ahead: _Ahead) -> Iterator[list[Decoded]]:
    while True:
        batch, item = [], pending.get()
        while isinstance(item, tuple):
            path, future = item
            batch.append((path, ahead.taken(future)))
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
    except MemoryError:
        return ImageError(f"{str(path)!r}: the image is too large for the memory of this machine")


class ImageStore(Generic[Item]):
    """Images for a training, which needs them again and again, in a fixed budget of memory: those for which there is no room take turns.

    They stand in a random order without end. In each turn those from its place on are there, until the budget is full; so a turn brings
    about one image to read, and which are there depends on the turn alone.
    """

    def __init__(
        self, items: Sequence[Item], *, budget: int = 400_000_000, seed: int = 0, read: Callable[[Item], np.ndarray] = read_image
    ) -> None:
        self.items, self.budget, self.seed, self.read = items, budget, seed, read
        self.held: dict[int, np.ndarray] = {}  # those of the turn asked for last
        self._turn = -1

    def __getitem__(self, i: int) -> np.ndarray:
        """The ``i``-th image (H, W, 3) uint8, of those that are there."""
        return self.held[i]

    def there(self, turn: int) -> list[int]:
        """The numbers of the images that are there in this turn, ascending; ImageError where one cannot be read."""
        if self._turn != turn and len(self.held) < len(self.items):
            held, size = {}, 0
            for i in self._from(turn):
                held[i] = self.held[i] if i in self.held else self.read(self.items[i])
                size += held[i].nbytes
                if size >= self.budget:
                    break
            self.held = dict(sorted(held.items()))
        self._turn = turn
        return list(self.held)

    def _from(self, place: int) -> Iterator[int]:
        """Each image once, in the order in which they stand from a place on."""
        cycle, at = divmod(place, len(self.items))
        seen: set[int] = set()
        while len(seen) < len(self.items):
            for i in np.random.default_rng((self.seed, cycle)).permutation(len(self.items))[at:].tolist():
                if i not in seen:
                    seen.add(i)
                    yield i
            cycle, at = cycle + 1, 0
