"""What it costs to look at an image through CMER, counted and not estimated."""

import cv2
import numpy as np
import pytest
import torch

from cmgcli import cmer, line
from cmgcli.detector import patch_features
from cmgcli.encoder import load_encoder
from cmgcli.view import GROUNDS, RELEVANCE, Meter, choose_relevance, keep_index, look, relevance_of, show_ground


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
def test_passes_are_the_patch_tokens_that_went_through_the_tower_and_back(tiny, builtin, relevance, keep):
    encoder = builtin if relevance == "fast" else tiny
    tokens = []
    hook = encoder.tower.blocks[0].register_forward_pre_hook(lambda _, args: tokens.append((1 + torch.is_grad_enabled(), *args[0].shape)))
    try:
        with torch.no_grad():
            views = looked(encoder, images(3), relevance, keep)
    finally:
        hook.remove()
    spent = sum(ways * batch * (length - 1) for ways, batch, length, _ in tokens)
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
    assert sampled.passes > 4 * view.passes


@pytest.mark.parametrize("relevance", RELEVANCE)
def test_without_cmer_no_pass_is_spent_on_relevance(tiny, relevance):
    (view,) = looked(tiny, images(1), relevance, None)
    assert view.passes == 1 and view.keep.all()


def test_the_default_estimator_is_the_cheap_one(tiny, builtin):
    assert choose_relevance(builtin, None) == choose_relevance(tiny, None) == "fast"


def test_the_match_of_all_patches_takes_no_pass_of_its_own(tiny):
    (few,), (all_kept,) = looked(tiny, images(1), "occlusion", 0.1), looked(tiny, images(1), "occlusion", "auto")
    sizes = [max(1, round(size * tiny.patch_count)) / tiny.patch_count for size in cmer.FEW_KEEP_SIZES if size < 1]
    assert all_kept.passes - seen_again(tiny, all_kept) == pytest.approx(few.passes - seen_again(tiny, few) + sum(sizes))


@pytest.fixture(scope="module")
def scenes():
    """Parts before their ground, and surfaces that fill the frame, each with the caption that is right."""
    rng, parts, surfaces = np.random.default_rng(41), [], []
    while len(parts) < 12 or len(surfaces) < 12:
        scene = line.render(rng, size=168)
        (surfaces if scene.object_mask.all() else parts).append(scene)
    return parts[:12], surfaces[:12]


def looked_at(encoder, found, captions, **options):
    texts = list(encoder.encode_text(captions))
    options = {"relevance": "fast", "keep": "auto"} | options
    return look(encoder, [scene.image for scene in found], texts, layers=encoder.feature_layers, **options)


def shares_kept(views, found) -> tuple[float, float]:
    """Of the objects, and of the grounds."""
    covers = [cv2.resize(scene.object_mask.astype(np.float32), (14, 14), interpolation=cv2.INTER_AREA) for scene in found]
    of_object = np.mean([view.keep[cover > 0.3].mean() for view, cover in zip(views, covers, strict=True)])
    return of_object, np.mean([view.keep[cover == 0].mean() for view, cover in zip(views, covers, strict=True)])


WRONG = "a photo of a circuit board"


@pytest.mark.parametrize("caption", ["a photo of a 弁座", WRONG])
def test_a_caption_that_fits_nothing_does_not_keep_cmer_from_finding_what_lies_on_the_ground(builtin, scenes, caption):
    parts, _ = scenes
    views = looked_at(builtin, parts, [caption] * len(parts))
    if caption == WRONG:  # unknown words point at what lies on the ground by themselves
        assert not any(view.named for view in views)
    of_object, of_ground = shares_kept(views, parts)
    assert of_object > 0.95 and of_ground < 0.4
    for view in views:  # how well the image matches is still told by its own caption
        torch.testing.assert_close(view.text, builtin.encode_text([caption])[0])
        assert view.match == pytest.approx(float(view.embedding @ view.text), abs=1e-6)


def test_a_right_caption_guides_by_itself(builtin, scenes):
    parts, _ = scenes
    views = looked_at(builtin, parts, [f"a photo of a {scene.material} {scene.part}" for scene in parts])
    assert sum(view.named for view in views) >= 11
    of_object, of_ground = shares_kept(views, parts)
    assert of_object > 0.95 and of_ground < 0.3


@pytest.mark.parametrize("known", [True, False])
def test_a_surface_that_fills_the_frame_is_kept(builtin, scenes, known):
    _, surfaces = scenes
    views = looked_at(builtin, surfaces, [f"a photo of a {scene.material} {scene.part}" if known else "a photo of a 弁座" for scene in surfaces])
    assert np.mean([view.keep.mean() for view in views]) > 0.9


@pytest.mark.parametrize("relevance", ["sampled", "occlusion"])
def test_every_estimator_is_guided_alike(builtin, scenes, relevance):
    parts = scenes[0][:3]
    captions = [WRONG, WRONG, f"a photo of a {parts[2].material} {parts[2].part}"]
    fast, other = (looked_at(builtin, parts, captions, relevance=name) for name in ("fast", relevance))
    assert [view.named for view in fast] == [view.named for view in other] == [False, False, True]
    meter = Meter(builtin, builtin.preprocess([scene.image for scene in parts]))
    expected = relevance_of(meter, relevance, meter.encode(), torch.stack([builtin.unnamed, builtin.unnamed, fast[2].text]))
    for view, scores in zip(other, expected, strict=True):
        np.testing.assert_allclose(view.relevance.ravel(), scores.numpy(), atol=1e-6)


@pytest.mark.parametrize("relevance", ["sampled", "occlusion"])
def test_whether_there_is_a_ground_does_not_depend_on_the_estimator(builtin, scenes, relevance):
    for shown in (scenes[0][:4], scenes[1][:4]):
        captions = [f"a photo of a {scene.material} {scene.part}" for scene in shown]
        told = show_ground(builtin, [scene.image for scene in shown], builtin.encode_text(captions))
        views = looked_at(builtin, shown, captions, relevance=relevance)
        assert all(view.keep.all() for view, ground in zip(views, told, strict=True) if not ground)
        discarded = [view.keep.mean() < 1 for view, ground in zip(views, told, strict=True) if ground]
        assert sum(discarded) >= 0.5 * len(discarded)


@pytest.mark.parametrize("which", ["parts", "surfaces"])
def test_what_is_known_of_the_ground_decides_for_images_that_are_in_doubt(builtin, scenes, which):
    shown = scenes[which == "surfaces"]
    captions = ["a photo of a 弁座"] * len(shown)
    kept = {ground: np.array([view.keep.mean() for view in looked_at(builtin, shown, captions, ground=ground)]) for ground in GROUNDS}
    assert (kept["no"] == 1).all() and (kept["yes"] <= kept["by image"]).all()
    told = show_ground(builtin, [scene.image for scene in shown], builtin.encode_text(captions))
    assert np.array_equal(told, kept["by image"] < 1)
    assert told.mean() > 0.8 if which == "parts" else told.mean() < 0.2
    blank = [np.full((50, 60, 3), 128, np.uint8)]
    (view,) = look(builtin, blank, list(builtin.encode_text(captions[:1])), layers=builtin.feature_layers, relevance="fast", keep="auto", ground="yes")
    assert view.keep.all()


def test_a_caption_that_names_the_ground_too_does_not_hide_it(builtin, scenes):
    """The whole image matches it about as well as the part does; a thing without a name does not."""
    parts, _ = scenes
    captions = builtin.encode_text([f"a photo of a {scene.material} {scene.part} on {scene.background}" for scene in parts])
    assert show_ground(builtin, [scene.image for scene in parts], captions).all()
    dense, counts = builtin.encode_image(builtin.preprocess([scene.image for scene in parts])).dense, cmer.counts_of(cmer.KEEP_SIZES, builtin.patch_count)
    matches = cmer.nested_means(dense, captions, cmer.fast(dense, captions))(counts)
    by_thing = cmer.nested_means(dense, builtin.unnamed.expand_as(captions), cmer.fast(dense, builtin.unnamed.expand_as(captions)))(counts)
    assert ((matches.amax(1) - matches[:, -1]) < by_thing.amax(1) - by_thing[:, -1]).float().mean() > 0.7


def test_a_share_that_is_asked_for_is_kept_whatever_the_ground(builtin, scenes):
    shares = [looked_at(builtin, scenes[1][:1], ["a photo of steel"], keep=0.2, ground=ground)[0].keep.mean() for ground in GROUNDS]
    assert shares[0] == shares[1] == shares[2] < 0.9


def test_without_cmer_no_caption_is_judged(builtin, scenes):
    assert all(view.named for view in looked_at(builtin, scenes[0][:2], [WRONG] * 2, keep=None))


def seen_again(encoder, view) -> float:
    """What the second look costs, in passes: its kept patches, a rim around them where the embedding is a mean, and those that fill the room up."""
    shown = int(seen_with(encoder, view).sum())
    return 0 if shown == encoder.patch_count else encoder.room_for(shown) / encoder.patch_count


def seen_with(encoder, view) -> np.ndarray:
    """The patches (h, w) bool that go through the tower for those a view keeps."""
    if not encoder.averages:
        return view.keep
    padded = np.pad(view.keep, 1)
    return padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def test_what_is_kept_is_judged_in_its_surroundings_and_these_are_not_judged(builtin):
    """The slow way: one image, one pass over the tokens of the kept patches and their rim, and the mean of the kept ones."""
    pictures = images(4)
    for picture, view in zip(pictures, looked(builtin, pictures, "fast", 0.1), strict=True):
        shown = np.flatnonzero(seen_with(builtin, view))
        assert view.keep.sum() < len(shown) < builtin.patch_count
        features = builtin.encode_image(builtin.preprocess([picture]), index=torch.from_numpy(shown)[None], layers=builtin.feature_layers)
        kept = np.flatnonzero(view.keep.ravel()[shown])
        torch.testing.assert_close(view.patches, patch_features(features.patches)[0, kept], atol=1e-5, rtol=0)
        torch.testing.assert_close(view.dense, torch.nn.functional.normalize(features.dense[0, kept], dim=-1), atol=1e-5, rtol=0)
        torch.testing.assert_close(view.embedding, torch.nn.functional.normalize(features.dense[0, kept].mean(0), dim=0), atol=1e-5, rtol=0)


def test_a_tower_whose_embedding_is_no_mean_sees_what_is_kept_alone(tiny):
    (picture,) = images(1)
    (view,) = looked(tiny, [picture], "fast", 0.1)
    features = tiny.encode_image(tiny.preprocess([picture]), index=torch.from_numpy(np.flatnonzero(view.keep))[None], layers=tiny.feature_layers)
    torch.testing.assert_close(view.embedding, features.embedding[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(view.patches, patch_features(features.patches)[0], atol=1e-5, rtol=0)


def test_images_that_keep_differently_many_patches_go_together_and_are_seen_as_alone(builtin, monkeypatch):
    monkeypatch.setattr(builtin, "at_once", None)  # as on a GPU
    pictures = [np.roll(read, 3, axis=0) for read in images(5)]
    keeps = torch.from_numpy(np.stack([looked(builtin, [picture], "fast", keep)[0].keep.ravel() for picture, keep in zip(pictures, (0.03, 0.06, 0.1, 0.2, 0.3), strict=True)]))
    counts = keeps.sum(1).tolist()
    assert len(set(counts)) == 5 and max(counts) < 196
    index, weight = keep_index(keeps, max(counts))
    assert index.shape == weight.shape == (5, max(counts)) and (weight.isfinite().sum(1) == torch.tensor(counts)).all()
    meter = Meter(builtin, builtin.preprocess(pictures))
    seen = meter.encode(keeps, layers=builtin.feature_layers, room=max(counts))
    for i, count in enumerate(counts):
        alone = meter.encode(keeps[i : i + 1], rows=torch.tensor([i]), layers=builtin.feature_layers, room=count)
        torch.testing.assert_close(seen.embedding[i], alone.embedding[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(patch_features(seen.patches)[i, :count], patch_features(alone.patches)[0], atol=1e-5, rtol=0)


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
