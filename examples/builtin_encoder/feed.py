"""Renders samples in worker processes and holds the newest of them where the training wants them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import samples
import torch
from torch import Tensor, multiprocessing

CHUNK = 250  # samples of one seed
AHEAD = 16  # chunks that wait at most
_FRESH = multiprocessing.get_context("spawn")  # a fork of a process in which torch has threads may hang


class Data(NamedTuple):
    """Samples as tensors, with their captions as tokens."""

    images: Tensor  # (N, S, S, 3) uint8
    areas: Tensor  # (N, S, S) uint8: 1 the object, 2 its defect
    numbers: Tensor  # (N, 6) int64: part, front, back, kind, pair, unnamed
    good: Tensor  # (N, L) int64
    bad: Tensor  # (N, L) int64

    def to(self, device: str) -> Data:
        return Data(*(each.to(device) for each in self))


def as_data(found: samples.Samples, tokenizer) -> Data:
    numbers = np.stack([found.part, found.front, found.back, found.kind, found.pair, found.unnamed], axis=1)
    return Data(*map(torch.from_numpy, (found.images, found.areas, numbers)), tokenizer(found.good), tokenizer(found.bad))


def rendered(count: int, seed: int, tokenizer, *photos_and_stuff, held: str, workers: int) -> Data:
    """``count`` held-out samples, a multiple of `CHUNK`, from worker processes; see `samples.render`."""
    jobs = [(CHUNK, seed + i, *photos_and_stuff) for i in range(count // CHUNK)]
    with ProcessPoolExecutor(workers, mp_context=_FRESH) as pool:
        chunks = list(pool.map(partial(_chunk, held), jobs))
    return Data(*(torch.cat(parts) for parts in zip(*(as_data(chunk, tokenizer) for chunk in chunks), strict=True)))


def _chunk(held: str, job: tuple) -> samples.Samples:
    cv2.setNumThreads(1)
    return samples.render(*job, held=held)


class Feed:
    """Worker processes that render until `close`; each chunk of samples has a seed of its own, which no other has."""

    def __init__(self, photos: Sequence[samples.Photo], stuff: Sequence[str], tokenizer, *, workers: int, seed: int, most: int) -> None:
        """most: samples in all."""
        self._chunks = _FRESH.Queue(AHEAD)
        self._left = -(-most // CHUNK)
        self._workers = [
            _FRESH.Process(target=_work, args=(self._chunks, photos, stuff, tokenizer, range(seed + i, seed + self._left, workers)), daemon=True)
            for i in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def next(self) -> Data | None:
        """The next chunk, or None after the last. Raises queue.Empty where none comes in two minutes."""
        if not self._left:
            return None
        chunk = Data(*self._chunks.get(timeout=120))
        self._left -= 1
        return chunk

    def close(self) -> None:
        for worker in self._workers:
            worker.terminate()


def _work(chunks, photos: Sequence[samples.Photo], stuff: Sequence[str], tokenizer, seeds: range) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for seed in seeds:
        chunks.put(tuple(as_data(samples.render(CHUNK, seed, photos, stuff), tokenizer)))
    multiprocessing.parent_process().join()  # what waits in the queue is lost with the process that put it there


class Pool:
    """The newest samples of a feed, at most ``capacity``, on the device of the training; a thread of its own takes them in.

    Attributes:
        held: samples that are there. rendered: samples that came in all. touched: (V,) bool, the tokens that any caption had.
        longest: tokens of the longest caption so far.
    """

    def __init__(self, feed: Feed, capacity: int, vocabulary: int, device: str) -> None:
        self._feed, self._capacity, self._device = feed, capacity // CHUNK * CHUNK, device
        self._ring: Data | None = None
        self._lock, self._error = threading.Lock(), None
        self.held, self.rendered, self.longest = 0, 0, 1
        self.touched = torch.zeros(vocabulary, dtype=torch.bool)
        threading.Thread(target=self._take_in, daemon=True).start()

    def _take_in(self) -> None:
        try:
            while (chunk := self._feed.next()) is not None:
                self._keep(chunk)
        except BaseException as error:  # noqa: BLE001 - raised where the samples are wanted
            self._error = error

    def _keep(self, chunk: Data) -> None:
        """Puts a chunk in the place of the oldest."""
        if self._device != "cpu":  # to read it out of the memory that is shared with the worker takes longer than a step of the training
            chunk = Data(*(each.pin_memory() for each in chunk))
        if self._ring is None:
            self._ring = Data(*(torch.empty((self._capacity, *each.shape[1:]), dtype=each.dtype, device=self._device) for each in chunk))
        start = self.rendered % self._capacity
        with self._lock:
            for held, new in zip(self._ring, chunk, strict=True):
                held[start : start + CHUNK].copy_(new, non_blocking=True)  # the training's steps come after it in the device's own order
        for captions in (chunk.good, chunk.bad):
            self.touched[captions.flatten()] = True
            self.longest = max(self.longest, int((captions != 0).sum(1).max()))
        self.rendered += CHUNK
        self.held = min(self.rendered, self._capacity)

    def wait_for(self, count: int) -> None:
        """Returns when so many samples are held; raises RuntimeError when none come."""
        while self.held < count:
            self._complain()
            time.sleep(0.05)

    def _complain(self) -> None:
        if self._error is not None:
            raise RuntimeError("the worker processes render no samples; what they printed says why") from self._error

    def draw(self, count: int, generator: torch.Generator) -> Data:
        """``count`` samples at random, with replacement, their captions without the empty end; generator: of the pool's device.

        Raises RuntimeError when the feed has failed: a training on ever the same samples would look like one on new ones.
        """
        self._complain()
        rows = torch.randint(self.held, (count,), generator=generator, device=self._device)
        with self._lock:
            data = Data(*(each[rows] for each in self._ring))
        return data._replace(good=data.good[:, : self.longest], bad=data.bad[:, : self.longest])
