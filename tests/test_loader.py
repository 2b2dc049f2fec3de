"""Decoding ahead: order, full batches, live sources, errors of the source."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cmgcli import loader
from cmgcli.errors import ImageError, SettingsError
from cmgcli.images import read_image, write_png
from cmgcli.loader import ImageStore, decoded


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for i, path in enumerate(paths):
        write_png(path, np.full((4, 5, 3), i, np.uint8))
    return paths


def test_batches_are_full_and_in_order(files):
    batches = list(decoded(iter(files), batch_size=3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    for i, (path, image) in enumerate(sum(batches, [])):
        assert path == files[i] and (image == i).all()


def test_a_bad_file_gives_its_error_in_place(files):
    files[1].write_bytes(b"no image")
    images = [image for batch in decoded(files) for _, image in batch]
    assert [isinstance(image, ImageError) for image in images] == [False, True] + [False] * 5


def test_a_live_source_is_not_waited_for(files):
    more = threading.Event()

    def camera():
        yield from files[:2]
        assert more.wait(10)
        yield files[2]

    batches = decoded(camera(), batch_size=16, live=True)
    seen = [path for path, _ in next(batches)]
    while len(seen) < 2:
        seen += [path for path, _ in next(batches)]
    assert seen == files[:2]
    more.set()
    assert [path for path, _ in next(batches)] == [files[2]]
    assert list(batches) == []


def test_an_error_of_the_source_reaches_the_consumer(files):
    def broken():
        yield files[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(decoded(broken()))


def test_leaving_early_stops_the_source(files):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield files[0]

    batches = decoded(endless(), batch_size=2)
    next(batches)
    batches.close()
    assert len(taken) < 50


def test_images_for_which_there_is_no_room_take_turns(files):
    reads = []
    store = ImageStore(files, budget=130, read=lambda path: reads.append(path) or read_image(path))  # full with three images of 60 bytes
    turns = []
    for turn in range(21):
        turns.append(store.there(turn))
        assert store.there(turn) == turns[-1] == sorted(turns[-1])
        assert all((store[i] == i).all() for i in turns[-1])
    assert len(reads) <= 3 + 21, "about one image a turn is read"
    assert set(map(len, turns)) == {3} and set(sum(turns, [])) == set(range(7))
    assert ImageStore(files, budget=130).there(17) == turns[17], "a training that goes on finds what was there"


def test_where_all_images_fit_all_are_there_and_read_once(files):
    reads = []
    store = ImageStore(files, read=lambda path: reads.append(path) or read_image(path))
    assert [store.there(turn) for turn in (0, 1, 9)] == [list(range(7))] * 3
    assert len(reads) == 7


def test_large_images_are_not_decoded_far_ahead(files, monkeypatch):
    monkeypatch.setattr(loader, "AHEAD", 130)  # two images of 60 bytes
    reads = []
    monkeypatch.setattr(loader, "read_image", lambda path: reads.append(path) or read_image(path))
    batches = decoded(files * 6, batch_size=8)
    seen = 0
    for batch in batches:
        seen += len(batch)
        assert all(not isinstance(image, ImageError) for _, image in batch)
        time.sleep(0.3)
        assert len(reads) <= seen + 3 + 4, "what was begun is read to its end"
    assert seen == 42


def test_a_batch_size_that_is_none_is_refused(files):
    for size in (0, -1, "4", True):
        with pytest.raises(SettingsError, match="batch size: expected a whole number from 1 up"):
            next(decoded(files, batch_size=size))
