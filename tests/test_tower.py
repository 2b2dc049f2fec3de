"""The plain vision transformer against open_clip's own, of every kind that open_clip's plain models are, and in bfloat16."""

import numpy as np
import pytest
import torch

import cmgcli
from cmgcli.clip import _tower
from cmgcli.dataset import caption_lookup, read_dataset
from cmgcli.encoder import Encoder, choose_precision, load_encoder
from cmgcli.errors import EncoderError

KINDS = {
    "class token": {},
    "average": {"pool_type": "avg"},
    "norm after the pool": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "layer scale": {"ls_init_value": 0.3},
}


def their_tower(**options) -> torch.nn.Module:
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    tower = VisionTransformer(image_size=32, patch_size=8, width=24, layers=3, heads=2, mlp_ratio=2.0, output_dim=16, **options)
    for name, weight in tower.named_parameters():  # norms and biases that do nothing would hide a mistake
        torch.nn.init.normal_(weight, 1.0 if "ln" in name and "weight" in name else 0.0, 0.3)
    return tower.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["GELU", "QuickGELU", "tanh"])
def test_it_gives_what_open_clip_gives(kind, activation):
    from open_clip.transformer import QuickGELU

    layer = {"GELU": torch.nn.GELU, "QuickGELU": QuickGELU, "tanh": lambda: torch.nn.GELU(approximate="tanh")}[activation]
    theirs = their_tower(act_layer=layer, **KINDS[kind])
    ours = _tower("a name", theirs)
    pixels = torch.randn(2, 3, 32, 32)
    expected = theirs.forward_intermediates(pixels, indices=[0, 2], output_fmt="NLC")
    found = ours(pixels, layers=(0, 2))
    torch.testing.assert_close(found.embedding, expected["image_features"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(list(found.layers), expected["image_intermediates"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.dense, theirs.ln_post(expected["image_intermediates"][1]) @ theirs.proj, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_that_counts_nothing_is_as_good_as_left_out(kind):
    tower = _tower("a name", their_tower(**KINDS[kind]))
    pixels, left_out = torch.randn(2, 3, 32, 32), [3, 7]
    kept = torch.tensor([[p for p in range(16) if p not in left_out]] * 2)
    weight = torch.zeros(2, 16)
    weight[:, left_out] = -torch.inf
    torch.testing.assert_close(tower(pixels, weight=weight).embedding, tower(pixels, kept).embedding, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tower(pixels, weight=torch.zeros(2, 16)).embedding, tower(pixels).embedding, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_worth_of_a_patch_is_what_counting_it_less_takes_from_the_match(kind):
    encoder = Encoder("a name", _tower("a name", their_tower(**KINDS[kind])), lambda: None, sha256="", sharpness=1, mean=(0,) * 3, std=(1,) * 3, device="cpu", precision="float32")
    pixels, text = torch.randn(2, 3, 32, 32), torch.nn.functional.normalize(torch.randn(2, 16), dim=1)
    features, captions, worth = encoder.encode_with_worth(pixels, lambda found, rows: text[rows], layers=(1,))
    plain = encoder.encode_image(pixels, layers=(1,))
    torch.testing.assert_close((features.embedding, features.dense, features.patches), (plain.embedding, plain.dense, plain.patches), atol=1e-5, rtol=1e-4)
    assert torch.equal(captions, text) and worth.shape == (2, 16)
    counts = torch.linspace(0.3, 1, 16)
    fewer = encoder.encode_with_worth(pixels, lambda found, rows: text[rows], counts=counts)[2]
    for often, found in ((torch.ones(16), worth), (counts, fewer)):
        for patch in (0, 9):
            step = torch.zeros(16)
            step[patch] = 1e-2
            more, less = ((torch.nn.functional.normalize(encoder.tower(pixels, weight=(often + by).log().expand(2, -1)).embedding, dim=1) * text).sum(1) for by in (step, -step))
            torch.testing.assert_close((more - less) / 2e-2, found[:, patch], atol=2e-4, rtol=2e-2)


def test_weights_are_shared_until_their_precision_changes():
    theirs = their_tower()
    ours = _tower("a name", theirs)
    first = theirs.transformer.resblocks[0].mlp.c_fc.weight
    assert ours.blocks[0].rise.weight.data_ptr() == first.data_ptr()
    assert ours.in_bfloat16().blocks[0].rise.weight.dtype == torch.bfloat16 and first.dtype == torch.float32
    assert ours.ln_post.weight.dtype == ours.proj.dtype == torch.float32


def test_two_attention_pools_are_refused():
    with pytest.raises(EncoderError, match="expected a vision transformer of open_clip or timm with one pool"):
        _tower("a name", their_tower(attentional_pool="parallel", attn_pooler_heads=2))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_image_is_encoded_alike_in_every_batch_to_the_last_bit(precision):
    encoder = load_encoder("builtin", device="cpu", precision=precision)
    pixels = torch.randn(9, 3, encoder.image_size, encoder.image_size, generator=torch.Generator().manual_seed(0))
    index = torch.stack([torch.randperm(196, generator=torch.Generator().manual_seed(i))[:70].sort().values for i in range(9)])
    for kept in (None, index):
        whole = encoder.encode_image(pixels, index=kept, layers=(2, 4))
        for size in (1, 2, 7):
            for start in range(0, 9, size):
                rows = slice(start, start + size)
                part = encoder.encode_image(pixels[rows], index=None if kept is None else kept[rows], layers=(2, 4))
                assert torch.equal(part.embedding, whole.embedding[rows]) and torch.equal(part.dense, whole.dense[rows])
                assert all(torch.equal(a, b[rows]) for a, b in zip(part.patches, whole.patches, strict=True))


def test_bfloat16_is_taken_where_the_processor_multiplies_it(monkeypatch):
    for able, expected in (({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({"avx512_f": True}, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert choose_precision("cpu") == expected
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert choose_precision("cuda") == "float32"


def test_scores_in_bfloat16_are_recorded_alike_in_every_batch_and_after_reload(small_line, tmp_path):
    """Also on a processor that is slow at it."""
    metadata = small_line / "metadata.csv"
    captions = caption_lookup(read_dataset(small_line, metadata).records)
    images = sorted((small_line / "images").glob("test*"))
    model = cmgcli.fit(small_line, metadata, adapt=False, device="cpu", precision="bfloat16")
    model.save(tmp_path / "m.cmg")
    again = cmgcli.Model.load(tmp_path / "m.cmg", device="cpu")
    assert again.encoder.precision == again.detector.settings.encoder_precision == "bfloat16"
    rows = list(model.score(images, captions))
    for size in (1, 3, 16):
        assert list(again.score(images, captions, batch_size=size)) == rows
    detector = cmgcli.fit(small_line, metadata, adapt=False, device="cpu", precision="float32").detector
    exact, rounded = (list(cmgcli.Model(detector, load_encoder("builtin", device="cpu", precision=precision)).score(images, captions)) for precision in ("float32", "bfloat16"))
    assert [row.anomalous for row in exact] == [row.anomalous for row in rounded]
    order = [np.argsort(np.argsort([row.score for row in some])) for some in (exact, rounded)]
    assert np.corrcoef(*order)[0, 1] > 0.98  # of 12 images two may change places
    assert isinstance(again.encoder, Encoder)
