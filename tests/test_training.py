"""What the built-in encoder is trained on, and that it learns from it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cmgcli import line
from tests.benchmarks.encoder import training


@pytest.fixture(scope="module")
def photos():
    """Two made-up photographs in place of real ones."""
    rng = np.random.default_rng(0)
    shades = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(2)]
    return [training().samples.Photo(shade, name) for shade, name in zip(shades, ("bricks", "cork"), strict=True)]


@pytest.fixture(scope="module")
def drawn(photos):
    samples = training().samples
    return samples.render(250, 3, photos, samples.stuff_of(photos))


def test_held_out_pairs_are_not_trained_on(drawn, photos):
    samples = training().samples
    stuff = samples.stuff_of(photos)
    of_line = drawn.part >= 0
    assert 0.3 < of_line.mean() < 0.7
    pairs = [(line.PARTS[part], stuff[front]) for part, front in zip(drawn.part[of_line], drawn.front[of_line], strict=True)]
    assert not any(samples.held_out(*pair) for pair in pairs)
    held = samples.render(60, 4, (), samples.stuff_of(()), held="flawless")
    assert all(samples.held_out(line.PARTS[part], stuff[front]) for part, front in zip(held.part, held.front, strict=True))
    assert (held.areas < 2).all() and (held.kind == -1).all()


def test_each_patch_knows_its_defect(drawn):
    defective = drawn.kind >= 0
    assert 0.3 < defective.mean() < 0.6
    assert np.array_equal((drawn.areas == 2).any(axis=(1, 2)), defective)
    shown, flaw = training().coverage(torch.from_numpy(drawn.areas), 14)
    assert np.array_equal((flaw > 0).any(1), defective)
    assert (flaw[defective] > 0).float().mean() < 0.3
    assert (flaw <= shown).all()  # a defect lies on the object


def test_the_areas_of_a_turned_image_move_along(drawn):
    """A white object on black, and its defect in grey: after all turns, zooms and lights, what is bright is still what the areas say."""
    areas = torch.from_numpy(drawn.areas[:40])
    images = (areas[..., None].expand(-1, -1, -1, 3) > 0).to(torch.uint8) * 255
    pixels, moved = training().augment(images, areas, 168, torch.Generator().manual_seed(1))
    assert pixels.shape[2:] == moved.shape[1:] == (168, 168) and set(moved.unique().tolist()) == {0, 1, 2}
    for pixel, area in zip(pixels.mean(1), moved, strict=True):
        if 0.05 < (area > 0).float().mean() < 0.95:
            bright = pixel > (pixel[area > 0].mean() + pixel[area == 0].mean()) / 2
            assert (bright == (area > 0)).float().mean() > 0.97


def test_captions_of_any_length_are_encoded_as_open_clip_does():
    train = training()
    config = train.architecture("168")
    net = train.Net(train.random_model(config).eval(), config)
    tokens = train.builtin_tokenizer()(["a nut", "a photo of a brass gear with a deep scratch on a wooden table", "x", "steel", "a cracked tile"])
    torch.testing.assert_close(net.texts(tokens[:, :24]), net.model.encode_text(tokens, normalize=True))


def test_a_pool_holds_the_newest_samples_of_its_feed(photos):
    train = training()
    feed = sys.modules["feed"]
    tokenizer, stuff = train.builtin_tokenizer(), train.samples.stuff_of(photos)
    source = train.Feed(photos, stuff, tokenizer, workers=2, seed=11, most=3 * feed.CHUNK)
    pool = train.Pool(source, 2 * feed.CHUNK, 49408, "cpu")
    pool.wait_for(2 * feed.CHUNK)
    deadline = time.monotonic() + 60
    while pool.rendered < 3 * feed.CHUNK and time.monotonic() < deadline:
        time.sleep(0.05)
    source.close()
    assert (pool.held, pool.rendered) == (2 * feed.CHUNK, 3 * feed.CHUNK)
    data = pool.draw(64, torch.Generator().manual_seed(0))
    assert data.images.shape == (64, train.samples.SIZE, train.samples.SIZE, 3) and data.good.shape[1] == data.bad.shape[1] == pool.longest < 32
    assert pool.touched[data.good.flatten()].all() and pool.touched[data.bad.flatten()].all() and pool.touched.sum() < 2000
    expected = train.as_data(train.samples.render(feed.CHUNK, 12, photos, stuff), tokenizer)  # the chunk of a seed is always the same
    assert any(torch.equal(image, expected.images[0]) for image in pool._ring.images)


def test_a_feed_that_fails_is_an_error():
    class Broken:
        def next(self):
            raise OSError("no memory")

    pool = training().Pool(Broken(), 500, 49408, "cpu")
    for ask in (lambda: pool.wait_for(1), lambda: pool.draw(1, torch.Generator())):
        with pytest.raises(RuntimeError, match="render no samples"):
            ask()


def test_captions_say_the_state(drawn):
    words = {word for things, names in [*training().samples.KINDS.values(), training().samples.ANY_DEFECT] for word in (*things, *names)}
    assert all(any(word in caption for word in words) for caption in drawn.bad)
    assert 0.3 < np.mean([any(word in caption for word in training().samples.FLAWLESS_WORDS) for caption in drawn.good]) < 0.7


@pytest.mark.parametrize(
    ("caption", "word", "expected"),
    [
        ("a photo of a brass gear", "scratched", "a photo of a scratched brass gear"),
        ("an aluminium key", "broken", "a broken aluminium key"),
        ("a steel bolt on a wooden table", "uneven", "an uneven steel bolt on a wooden table"),
        ("gear, brass", "dented", "dented gear, brass"),
    ],
)
def test_a_property_stands_before_what_the_caption_names(caption, word, expected):
    assert training().samples._with_word(caption, word) == expected


def test_hidden_patches_follow_the_defect_and_the_object():
    generator = torch.Generator().manual_seed(0)
    shown, flaw = torch.zeros(400, 196), torch.zeros(400, 196)
    shown[:, :80], flaw[:, 5] = 1, 1
    kept = training().choose(shown, flaw, 56, generator)
    assert kept.shape == (400, 56) and all(len(row.unique()) == 56 for row in kept)
    assert 0.5 < (kept == 5).any(1).float().mean() < 0.95
    share = (kept < 80).float().mean(1)
    assert share.min() < 0.2 and share.max() > 0.8
    assert training().choose(shown, flaw, 196, generator) is None


def test_every_loss_falls_in_a_few_steps(drawn, photos):
    train = training()
    torch.manual_seed(0)
    tokenizer, stuff = train.builtin_tokenizer(), train.samples.stuff_of(photos)
    phrases, config = train.Phrases(stuff, tokenizer), train.architecture("168")
    data = train.Data(*(each[:48] for each in train.as_data(drawn, tokenizer)))
    net, history = train.Net(train.random_model(config).train(), config), []
    optimizer = torch.optim.AdamW(net.trained(), lr=2e-3)
    for step in range(25):
        generator = torch.Generator().manual_seed(step % 2)
        torch.manual_seed(step % 2)
        found = train.losses(net, data, *train.augment(data.images, data.areas, net.size, generator), 0.285, phrases, generator)
        optimizer.zero_grad(set_to_none=True)
        sum(found.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in found.items()})
    first, last = ({name: np.mean([each[name] for each in some]) for name in history[0]} for some in (history[:4], history[-4:]))
    assert all(np.isfinite(value) for value in last.values())
    assert all(last[name] < first[name] for name in first), (first, last)


def test_a_training_goes_on_where_it_was_broken_off_and_leaves_weights_to_ship(tmp_path):
    """The command itself, on scenes of the line alone, for as short as it can be."""
    command = [sys.executable, str(Path(training().__file__)), "--out", str(tmp_path), "--designs", "168", "--first", "250", "--samples", "250", "--pool", "250"]
    command += ["--batch", "8", "--every", "0.01", "--device", "cpu", "--checked", "250", "--minutes"]
    first = subprocess.run([*command, "0.02"], capture_output=True, text=True, check=True)
    assert "retrieval among 256" in first.stdout
    seen = int((tmp_path / "168.csv").read_text().splitlines()[-1].split(",")[2])
    subprocess.run([*command, "0.04"], capture_output=True, text=True, check=True)
    assert int((tmp_path / "168.csv").read_text().splitlines()[-1].split(",")[2]) > seen
    assert (tmp_path / "168.safetensors").stat().st_size < 16e6
    assert json.loads((tmp_path / "168.json").read_text())["vision_cfg"]["image_size"] == 168
