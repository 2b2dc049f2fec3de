"""How far towards the defective state of what its caption names an image goes, against a slow twin."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import cmgcli
from cmgcli import defects, line
from cmgcli.dataset import training_records
from cmgcli.detector import PARTS, top_mean
from cmgcli.images import read_image
from cmgcli.model import judge, look_by, look_with
from cmgcli.pipeline import read_records
from cmgcli.prompts import DEFECTIVE, FLAWLESS, prompts
from cmgcli.states import flawless_and_defective
from cmgcli.view import look

STATE = PARTS.index("state_score")


def seen(model, record, image=None):
    caption = model.detector.language.captions.index(record.text)
    (view,) = look_with(model, [read_image(record.path) if image is None else image], [model.detector.language.text[caption]])
    return view


@pytest.fixture(scope="module")
def records(small_line):
    return training_records(read_records(small_line, small_line / "metadata.csv"))


def unit(x):
    return x / np.linalg.norm(x)


def peak(model, view, caption):
    """Of the tokens that are kept the mean of the two that lie furthest along the way between the states, written anew."""
    flawless, defective = (unit(model.encoder.encode_text(prompts(caption, states)).numpy().mean(0)) for states in (FLAWLESS, DEFECTIVE))
    height, width = view.keep.shape
    beside = [(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)]  # a rim is looked at with what is kept
    shown = sorted({(y + dy) * width + x + dx for y, x in np.argwhere(view.keep).tolist() for dy, dx in beside if 0 <= y + dy < height and 0 <= x + dx < width})
    tokens = model.encoder.encode_image(model.encoder.preprocess([view.image]), index=torch.tensor(shown)[None]).dense[0].numpy()
    kept = [token for number, token in zip(shown, tokens, strict=True) if view.keep.flat[number]]
    return np.mean(sorted(float(unit(token) @ (defective - flawless)) for token in kept)[-2:])


def test_the_state_score_is_what_a_slow_twin_finds(small_model, records):
    """Each caption that writes the image's own says how far its images go, and by how much this one goes further."""
    language = small_model.detector.language
    fitted = [record for record in records if record.text in language.captions]
    views = [seen(small_model, record) for record in fitted]
    record, view = fitted[0], views[0]
    caption = language.weights_of(language.text[language.captions.index(record.text)])
    expected = 0.0
    for source, weight in zip(caption.sources.tolist(), caption.weights.tolist(), strict=True):
        expected += weight * (peak(small_model, view, language.captions[source]) - float(language.states.means[source]))
    parts = judge(small_model.detector, view, caption)
    assert parts.values[STATE] == pytest.approx(expected, abs=2e-3)  # a pass alone rounds otherwise than one in a batch
    way = sum(w * language.states.ways[language.states.way[s]] for s, w in zip(caption.sources.tolist(), caption.weights.tolist(), strict=True))
    np.testing.assert_allclose(parts.state_map[view.keep], view.dense @ way.float(), atol=1e-6)
    assert (parts.state_map[~view.keep] == parts.state_map[view.keep].min()).all()


def test_the_means_are_those_of_the_images_of_the_fit(small_line):
    model = cmgcli.fit(small_line, small_line / "metadata.csv", adapt=False, device="cpu")
    language = model.detector.language
    for number, caption in enumerate(language.captions):
        own = [record for record in training_records(read_records(small_line, small_line / "metadata.csv")) if record.text == caption]
        assert float(language.states.means[number]) == pytest.approx(np.mean([peak(model, seen(model, record), caption) for record in own]), abs=2e-3)


def test_a_gross_defect_goes_further(small_model):
    """On parts of the line that no fit has seen."""
    rng, encoder, normal, broken = np.random.default_rng(3), small_model.encoder, [], []
    for _ in range(40):
        scene = line.render(rng, size=168)
        flawless, defective = flawless_and_defective(encoder, [scene.caption])
        drawn = defects.draw(scene.image, rng, allowed=scene.object_mask, strength=1.0)
        views = look(encoder, [scene.image, drawn.image], list(encoder.encode_text([scene.caption] * 2)), layers=encoder.feature_layers, relevance="fast", keep="auto")
        for view, values in zip(views, (normal, broken), strict=True):
            values.append(top_mean((view.dense @ (defective - flawless)[0]).cpu(), view.keep.size))
    assert np.mean(np.array(broken) > normal) > 0.7
    assert np.mean([b > n for b in broken for n in normal]) > 0.6


def test_without_cmer_there_is_no_state(small_line):
    model = cmgcli.fit(small_line, small_line / "metadata.csv", cmer=False, adapt=False, device="cpu")
    assert model.detector.language.states is None and model.detector.blend.weight[STATE] == 0
    record = training_records(read_records(small_line, small_line / "metadata.csv"))[0]
    view = seen(model, record)
    parts = judge(model.detector, view, model.detector.language.weights_of(view.text.cpu()))
    assert np.isnan(parts.values[STATE]) and parts.state_map is None and model.detector.map_reference[2, 2] == 0


def test_of_an_encoder_whose_patches_have_no_embeddings_the_image_speaks(small_model, records):
    """Its view holds the one embedding, and there is no map."""
    view = seen(small_model, records[0])
    language = small_model.detector.language
    caption = language.weights_of(language.text[0])
    alone = replace(view, dense=None)
    parts = judge(small_model.detector, alone, caption)
    expected = sum(w * (float(view.embedding @ language.states.ways[language.states.way[s]]) - float(language.states.means[s])) for s, w in zip(caption.sources.tolist(), caption.weights.tolist(), strict=True))
    assert parts.values[STATE] == pytest.approx(expected, abs=1e-5) and parts.state_map is None


def test_a_tile_that_keeps_one_patch_has_no_map_either(small_model, records, monkeypatch):
    """Of an encoder whose patches have no embeddings: one patch and one embedding of all are not the same."""
    encoder = small_model.encoder
    monkeypatch.setattr(encoder, "averages", False)
    monkeypatch.setattr(encoder, "unnamed", None)
    language = small_model.detector.language
    tiled = replace(small_model.detector, settings=replace(small_model.detector.settings, tile=48, overlap=0.0, ground="by image"))
    text = language.text[language.captions.index(records[0].text)]
    (view,) = look_by(encoder, tiled.settings, [read_image(records[0].path)], [text])
    first, *others = view.tiles
    keep = np.zeros_like(first.keep)
    keep.flat[np.flatnonzero(first.keep)[0]] = True
    alone = replace(first, keep=keep, patches=first.patches[:1])
    parts = judge(tiled, replace(view, tiles=(alone, *others)), language.weights_of(text))
    assert others and parts.state_map is None and np.isfinite(parts.values[STATE])
