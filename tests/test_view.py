"""What it costs to look at an image through CMER, counted and not estimated."""

import numpy as np
import pytest
import torch

from cmgcli.cmer import FEW_KEEP_SIZES
from cmgcli.encoder import load_encoder
from cmgcli.view import RELEVANCE, choose_relevance, look


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
    assert view.passes == pytest.approx(1 + view.keep.mean()) and view.keep.mean() < 0.7
    (whole,) = looked(builtin, images(1), "fast", None)
    assert whole.passes == 1 and torch.equal(whole.embedding, builtin.encode_image(builtin.preprocess(images(1))).embedding[0])


def test_fast_costs_a_pass_back_and_forth_where_tokens_are_not_averaged(tiny):
    (view,) = looked(tiny, images(1), "fast", 0.1)
    assert view.passes == pytest.approx(2 + view.keep.mean())
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
    kept = 0 if all_kept.keep.all() else all_kept.keep.mean()
    assert all_kept.passes - kept == pytest.approx(few.passes - few.keep.mean() + sum(sizes))
