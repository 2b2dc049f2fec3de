"""What it costs to look at an image through CMER, counted and not estimated."""

import numpy as np
import pytest
import torch

from cmgcli.cmer import FEW_KEEP_SIZES
from cmgcli.detector import patch_features
from cmgcli.encoder import load_encoder
from cmgcli.view import RELEVANCE, Meter, choose_relevance, keep_index, look


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load_encoder(f"local-dir:{tiny_folder}", device="cpu")


@pytest.fixture(scope="module")
def builtin():
    return load_encoder("builtin", device="cpu")


def images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (30 + 9 * i, 44, 3), dtype=np.uint8) for i in range(count)]


def looked(encoder, pictures, relevance, keep="auto"):
    caption = encoder.encode_text(["a photo of a brass gear"])
    return look(encoder, pictures, list(caption.expand(len(pictures), -1)), layers=encoder.feature_layers, relevance=relevance, keep=keep)


@pytest.mark.parametrize("relevance", RELEVANCE)
@pytest.mark.parametrize("keep", ["auto", 0.1, None])
def test_passes_are_the_patch_tokens_that_went_through_the_tower(tiny, builtin, relevance, keep):
    encoder = builtin if relevance == "fast" else tiny
    tokens = []
    hook = encoder.tower.blocks[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape))
    try:
        views = looked(encoder, images(3), relevance, keep)
    finally:
        hook.remove()
    spent = sum(batch * (length - 1) for batch, length, _ in tokens)
    assert sum(view.passes for view in views) * encoder.patch_count == pytest.approx(spent)


@pytest.mark.parametrize("relevance", ["sampled", "occlusion"])
def test_passes_of_an_image_do_not_depend_on_its_batch(tiny, relevance):
    together = looked(tiny, images(4), relevance)
    for view, image in zip(together, images(4), strict=True):
        (alone,) = looked(tiny, [image], relevance)
        assert alone.passes == pytest.approx(view.passes)
        assert np.array_equal(alone.keep, view.keep)


def test_fast_costs_one_pass_and_what_is_kept(builtin):
    (view,) = looked(builtin, images(1), "fast", 0.1)
    assert view.passes == pytest.approx(1 + seen_again(builtin, view)) and view.keep.mean() < 0.7
    (whole,) = looked(builtin, images(1), "fast", None)
    assert whole.passes == 1 and torch.equal(whole.embedding, builtin.encode_image(builtin.preprocess(images(1))).embedding[0])


def test_fast_costs_a_pass_back_and_forth_where_tokens_are_not_averaged(tiny):
    (view,) = looked(tiny, images(1), "fast", 0.1)
    assert view.passes == pytest.approx(2 + seen_again(tiny, view))
    features = tiny.encode_image(tiny.preprocess(images(1)), layers=tiny.feature_layers)
    torch.testing.assert_close(view.whole, features.embedding[0])
    (sampled,) = looked(tiny, images(1), "sampled", 0.1)
    assert sampled.passes > 8 * view.passes


@pytest.mark.parametrize("relevance", RELEVANCE)
def test_without_cmer_no_pass_is_spent_on_relevance(tiny, relevance):
    (view,) = looked(tiny, images(1), relevance, None)
    assert view.passes == 1 and view.keep.all()


def test_the_default_estimator_is_the_cheap_one(tiny, builtin):
    assert choose_relevance(builtin, None) == choose_relevance(tiny, None) == "fast"


def test_the_match_of_all_patches_takes_no_pass_of_its_own(tiny):
    (few,), (all_kept,) = looked(tiny, images(1), "occlusion", 0.1), looked(tiny, images(1), "occlusion", "auto")
    sizes = [max(1, round(size * tiny.patch_count)) / tiny.patch_count for size in FEW_KEEP_SIZES if size < 1]
    assert all_kept.passes - seen_again(tiny, all_kept) == pytest.approx(few.passes - seen_again(tiny, few) + sum(sizes))


def seen_again(encoder, view) -> float:
    """What the second look costs, in passes: its kept patches, and those that fill the room up."""
    return 0 if view.keep.all() else encoder.room_for(int(view.keep.sum())) / encoder.patch_count


def test_images_that_keep_differently_many_patches_go_together_and_are_seen_as_alone(builtin, monkeypatch):
    pictures = [np.roll(read, 3, axis=0) for read in images(5)]
    monkeypatch.setattr(builtin, "room_for", lambda count: count)
    alone = [looked(builtin, [picture], "fast", keep)[0] for picture, keep in zip(pictures, (0.03, 0.06, 0.1, 0.2, 0.3), strict=True)]
    counts = [int(view.keep.sum()) for view in alone]
    assert len(set(counts)) == 5 and max(counts) < 196
    keeps = torch.from_numpy(np.stack([view.keep.ravel() for view in alone]))
    index, weight = keep_index(keeps, max(counts))
    assert index.shape == weight.shape == (5, max(counts)) and (weight.isfinite().sum(1) == torch.tensor(counts)).all()
    monkeypatch.setattr(builtin, "at_once", None)  # as on a GPU
    seen = Meter(builtin, builtin.preprocess(pictures)).encode(keeps, layers=builtin.feature_layers, room=max(counts))
    for i, view in enumerate(alone):
        torch.testing.assert_close(seen.embedding[i], view.embedding, atol=1e-5, rtol=0)
        torch.testing.assert_close(patch_features(seen.patches)[i, : counts[i]], view.patches, atol=1e-5, rtol=0)


def test_what_is_kept_has_room_in_few_sizes_whatever_the_batch(builtin):
    rooms = [builtin.room_for(count) for count in range(1, 197)]
    assert rooms == sorted(rooms) and all(count <= room <= count + 7 for count, room in enumerate(rooms, 1)) and len(set(rooms)) == 25
    pictures = images(6)
    together = looked(builtin, pictures, "fast", 0.1)
    assert len({int(view.keep.sum()) for view in together}) > 1
    for picture, view in zip(pictures, together, strict=True):
        (alone,) = looked(builtin, [picture], "fast", 0.1)
        assert torch.equal(alone.patches, view.patches) and torch.equal(alone.embedding, view.embedding) and alone.passes == view.passes
        assert len(view.patches) == view.keep.sum() and view.patches.untyped_storage().nbytes() == view.patches.nbytes
