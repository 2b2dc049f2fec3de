"""What the built-in encoder is trained on, and that it learns from it."""

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
    return samples.render(samples.CHUNK, 3, photos, samples.stuff_of(photos))


def test_held_out_pairs_are_not_trained_on(drawn, photos):
    samples = training().samples
    stuff = samples.stuff_of(photos)
    of_line = drawn.part >= 0
    assert 0.3 < of_line.mean() < 0.7
    pairs = [(line.PARTS[part], stuff[front]) for part, front in zip(drawn.part[of_line], drawn.front[of_line], strict=True)]
    assert not any(samples.held_out(*pair) for pair in pairs)
    held = samples.render(samples.CHUNK, 4, (), samples.stuff_of(()), held="flawless")
    assert all(samples.held_out(line.PARTS[part], stuff[front]) for part, front in zip(held.part, held.front, strict=True))
    assert not held.flaw.any() and (held.kind == -1).all()


def test_each_patch_knows_its_defect(drawn):
    defective = drawn.kind >= 0
    assert 0.3 < defective.mean() < 0.6
    assert np.array_equal(drawn.flaw.any(axis=1), defective)
    assert (drawn.flaw[defective] > 0).mean() < 0.3
    assert not (drawn.flaw.astype(int) > drawn.shown.astype(int) + 1).any()  # a defect lies on the object


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
    data, phrases = train.as_data(drawn, tokenizer), train.Phrases(stuff, tokenizer)
    shape = train.TowerShape(image_size=train.samples.SIZE, heads=4, averages=True, norm_after_pool=False, activation="gelu")
    net = train.Net(train.builtin_model().train(), shape)
    optimizer = torch.optim.AdamW(net.trained(), lr=2e-3)
    rows, history = torch.arange(48), []
    for step in range(25):
        found = train.losses(net, data, rows, 56, phrases, torch.Generator().manual_seed(step % 2), "cpu")
        optimizer.zero_grad(set_to_none=True)
        sum(found.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in found.items()})
    first, last = (
        {name: np.mean([each[name] for each in some]) for name in history[0]} for some in (history[:4], history[-4:])
    )
    assert all(np.isfinite(value) for value in last.values())
    assert all(last[name] < first[name] for name in first), (first, last)
