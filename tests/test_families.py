"""Encoders of other kinds than the plain vision transformer, tiny and random: against open_clip's own, and against slow twins."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import cmgcli
from cmgcli.clip import load_clip
from cmgcli.convolutional import MapTower
from cmgcli.dataset import caption_lookup, read_dataset
from cmgcli.encoder import ImageFeatures, load_encoder
from cmgcli.errors import EncoderError, SettingsError
from cmgcli.line import write_line
from cmgcli.view import Meter, choose_relevance

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
Config = Callable[[Path], dict]
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


def written(path: Path, content: dict) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def of_timm(architecture: str, arguments: dict, pool: str, proj: str | None, size: int = 32, dim: int = 16, **pretrained) -> Config:
    """The vision side of a net of timm with arguments of its own, which timm reads from a folder."""

    def config(folder: Path) -> dict:
        pretrained_cfg = {"input_size": [3, size, size], "classifier": "head.fc", **pretrained}
        folder.mkdir()
        written(folder / "config.json", {"architecture": architecture, "model_args": arguments, "pretrained_cfg": pretrained_cfg})
        vision = {"image_size": size, "timm_model_name": f"local-dir:{folder}", "timm_pool": pool, "timm_proj": proj}
        return {"embed_dim": dim, "vision_cfg": vision, "text_cfg": TEXT}

    return config


def of_clip(vision: dict, **others) -> Config:
    return lambda _: {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT} | others


CLIP_VIT = {"image_size": 32, "layers": 3, "width": 24, "head_width": 12, "patch_size": 8}
COCA_TEXT = TEXT | {"context_length": 15, "embed_cls": True, "output_tokens": True}
COCA = {"text_cfg": COCA_TEXT, "multimodal_cfg": COCA_TEXT | {"attn_pooler_heads": 2}, "custom_text": True}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2]}

TOKENS = {
    "SigLIP": of_timm("vit_base_patch16_siglip_224", VIT, "map", "none", dim=24),
    "registers": of_timm("vit_tiny_patch16_224", VIT | {"reg_tokens": 2, "no_embed_class": True}, "token", "mlp"),
    "average": of_timm("vit_medium_patch16_gap_256", VIT, "avg", "linear"),
    "average before the norm": of_timm("vit_tiny_patch16_224", VIT | {"fc_norm": True}, "avg", "linear"),
    "EVA-02": of_timm("eva02_base_patch16_clip_224", VIT, "token", None),
    "a turn for each block": of_timm("vit_small_patch16_rope_mixed_224", VIT, "avg", "linear"),
    "PE-Core": of_timm("vit_pe_core_tiny_patch16_384", VIT, "map", None),
    "CoCa": of_clip(CLIP_VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 5, "output_tokens": True}, **COCA),
    "blocks with norms": of_clip(CLIP_VIT | {"qk_norm": True, "scale_heads": True, "scale_fc": True, "pool_type": "avg"}),
}
MAPS = {
    "ResNet": of_clip({"image_size": 128, "layers": [1, 2, 1, 1], "width": 4, "head_width": 64}),
    "ConvNeXt": of_timm("convnext_tiny", CONVNEXT, "", "mlp", size=128, pool_size=[4, 4]),
    "Swin": of_timm("swin_tiny_patch4_window7_224", SWIN, "", "linear", pool_size=[4, 4]),
}
FAMILIES = TOKENS | MAPS
AVERAGES = {"average", "a turn for each block", "blocks with norms"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family's encoder, by its name in a folder, and open_clip's own model of the same weights."""
    import open_clip
    from safetensors.torch import save_file

    root, known = tmp_path_factory.mktemp("families"), {}

    def make(family: str):
        if family not in known:
            folder = root / family.replace(" ", "_")
            folder.mkdir()
            config = FAMILIES[family](folder / "trunk")
            open_clip.add_model_config(written(folder / f"tiny {family}.json", config))
            torch.manual_seed(0)
            model = open_clip.create_model(f"tiny {family}", pretrained_image=False).eval().requires_grad_(False)
            for weight in model.visual.parameters():  # what does nothing when it is new would hide a mistake
                weight += 0.1 * torch.randn_like(weight)
            save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, folder / "open_clip_model.safetensors")
            written(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}})
            known[family] = load_encoder(f"local-dir:{folder}", device="cpu"), model
        return known[family]

    return make


def pixels_of(encoder, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, encoder.image_size, encoder.image_size, generator=torch.Generator().manual_seed(1))


def some(encoder, count: int = 2) -> torch.Tensor:
    """5 patches in each row."""
    return torch.stack([torch.randperm(encoder.patch_count, generator=torch.Generator().manual_seed(i))[:5].sort().values for i in range(count)])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_image_is_encoded_as_open_clip_does(family, made):
    encoder, theirs = made(family)
    pixels = pixels_of(encoder)
    found = encoder.encode_image(pixels, layers=(0, 1))
    torch.testing.assert_close(found.embedding, theirs.encode_image(pixels, normalize=True), atol=1e-5, rtol=0)
    everything = torch.arange(encoder.patch_count).expand(2, -1)
    torch.testing.assert_close(encoder.encode_image(pixels, index=everything).embedding, found.embedding, atol=1e-5, rtol=0)
    stages = [1, 2] if family == "ResNet" else [0, 1]  # open_clip counts the stem
    maps = theirs.visual.forward_intermediates(pixels, indices=stages, intermediates_only=True)["image_intermediates"]
    for layer, expected in zip(found.patches, maps, strict=True):
        cells = F.adaptive_avg_pool2d(expected, encoder.grid).flatten(2).transpose(1, 2)
        torch.testing.assert_close(layer, cells, atol=1e-4, rtol=1e-4)
    assert encoder.averages == (family in AVERAGES) and choose_relevance(encoder, None) == ("fast" if family in TOKENS else "occlusion" if min(encoder.grid) > 3 else "sampled")
    if encoder.averages:
        torch.testing.assert_close(F.normalize(found.dense.mean(1), dim=1), found.embedding, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", TOKENS)
def test_rows_that_keep_differently_many_patches_go_together(family, made, monkeypatch):
    encoder, _ = made(family)
    monkeypatch.setattr(encoder, "at_once", None)  # as on a GPU
    pixels, keep = pixels_of(encoder, 3), torch.zeros(3, encoder.patch_count, dtype=torch.bool)
    for row, kept in enumerate(([1, 2, 5, 7, 11], [0, 3, 15], [4, 6, 8, 9, 10, 12, 13])):
        keep[row, kept] = True
    together = Meter(encoder, pixels).encode(keep, layers=(0, 1), room=10)
    for row, count in enumerate(keep.sum(1).tolist()):
        index = keep[row].nonzero().T
        alone = encoder.encode_image(pixels[row : row + 1], index=index, layers=(0, 1))
        torch.testing.assert_close(together.embedding[row], alone.embedding[0], atol=1e-5, rtol=0)
        for found, expected in zip(together.patches, alone.patches, strict=True):
            torch.testing.assert_close(found[row, :count], expected[0], atol=1e-4, rtol=1e-4)


def slow_tokens(visual, pixels: torch.Tensor, index: list[int]) -> torch.Tensor:
    """One image through a vision transformer, the tokens of the patches put together one by one: (D,), and its last tokens."""
    if not hasattr(visual, "trunk"):
        patches, places = visual.conv1(pixels[None])[0].flatten(1).T, visual.positional_embedding
        x = [visual.class_embedding + places[0], *(patches[i] + places[1 + i] for i in index)]
        x = visual.ln_pre(torch.stack(x)[None])
        for block in visual.transformer.resblocks:
            x = block(x)
        return visual._pool(x)[0][0] @ visual.proj
    trunk = visual.trunk
    patches = trunk.patch_embed(pixels[None])[0]
    first = [token[0] for token in (trunk.cls_token, trunk.reg_token) if token is not None]
    first = torch.cat(first) if first else patches[:0]
    places = torch.zeros(len(first) + len(patches), patches.shape[1])
    if trunk.pos_embed is not None:
        places[len(first) if trunk.no_embed_class else 0 :] = trunk.pos_embed[0]
    x = [*(first + places[: len(first)]), *(patches[i] + places[len(first) + i] for i in index)]
    x = trunk.norm_pre(torch.stack(x)[None])
    rope = getattr(trunk, "rope", None)
    for number, block in enumerate(trunk.blocks):
        if rope is None:
            x = block(x)
        else:
            turns = rope.get_embed()[number] if trunk.rope_mixed else rope.get_embed()
            x = block(x, rope=torch.stack([turns[..., i, :] for i in index], dim=-2))
    return visual.head(trunk.forward_head(trunk.norm(x)))[0]


@pytest.mark.parametrize("family", TOKENS)
def test_removed_tokens_are_never_seen(family, made):
    encoder, theirs = made(family)
    pixels, index = pixels_of(encoder), some(encoder)
    found = encoder.encode_image(pixels, index=index, layers=encoder.feature_layers)
    slow = torch.stack([slow_tokens(theirs.visual, *row) for row in zip(pixels, index.tolist(), strict=True)])
    torch.testing.assert_close(found.embedding, F.normalize(slow, dim=1), atol=1e-5, rtol=0)
    assert found.dense.shape == (2, 5, encoder.dim) and [layer.shape for layer in found.patches] == [(2, 5, 24)] * 2
    assert not torch.allclose(found.embedding, encoder.encode_image(pixels).embedding, atol=1e-3)


@pytest.mark.parametrize("family", TOKENS)
def test_a_patch_that_counts_nothing_is_as_good_as_left_out(family, made):
    """So that relevance to first order can be had."""
    encoder, _ = made(family)
    pixels, index = pixels_of(encoder), some(encoder)
    weight = torch.full((2, encoder.patch_count), -1e4).scatter(1, index, 0.0)
    torch.testing.assert_close(encoder.tower(pixels, weight=weight).embedding, encoder.tower(pixels, index).embedding, atol=1e-5, rtol=1e-4)
    _, _, worth = encoder.encode_with_worth(pixels, lambda found, _: F.normalize(torch.ones_like(found), dim=1))
    assert worth.shape == weight.shape and worth.isfinite().all() and (worth.std(1) > 0).all()


@pytest.mark.parametrize("family", MAPS)
def test_patches_left_out_of_a_convolutional_net_are_painted(family, made):
    encoder, theirs = made(family)
    pixels, index = pixels_of(encoder), some(encoder)
    painted, side = pixels.clone(), encoder.image_size // 4
    for row, kept in enumerate(index.tolist()):
        for cell in set(range(16)) - set(kept):
            painted[row, :, cell // 4 * side : (cell // 4 + 1) * side, cell % 4 * side : (cell % 4 + 1) * side] = 0
    found = encoder.encode_image(pixels, index=index, layers=encoder.feature_layers)
    torch.testing.assert_close(found.embedding, theirs.encode_image(painted, normalize=True), atol=1e-5, rtol=0)
    whole = encoder.encode_image(painted, layers=encoder.feature_layers)
    for row in range(2):
        for layer, expected in zip((found.dense, *found.patches), (whole.dense, *whole.patches), strict=True):
            torch.testing.assert_close(layer[row], expected[row, index[row]], atol=1e-5, rtol=0)
    assert isinstance(encoder.tower, MapTower) and encoder.grid == (4, 4)
    with pytest.raises(SettingsError, match="relevance fast needs an encoder with tokens"):
        choose_relevance(encoder, "fast")
    meter = Meter(encoder, pixels)
    meter.encode(torch.arange(16).expand(2, -1) < 5)
    assert meter.passes.tolist() == [1, 1]  # painting saves nothing


@pytest.mark.parametrize("family", ["SigLIP", "PE-Core", "CoCa"])
def test_a_dense_token_is_what_the_pool_gives_for_it_alone(family, made):
    encoder, theirs = made(family)
    pixels, visual = pixels_of(encoder, 1), theirs.visual
    found = encoder.encode_image(pixels, layers=[2])
    for place in (0, 7):
        token = found.patches[0][:, place : place + 1]
        alone = visual._pool(token)[0] @ visual.proj if family == "CoCa" else visual.head(visual.trunk.forward_head(visual.trunk.norm(token)))
        torch.testing.assert_close(found.dense[:, place], alone, atol=1e-5, rtol=0)


def tensors(features: ImageFeatures) -> list[torch.Tensor]:
    return [features.embedding, features.dense, *features.patches]


@pytest.mark.parametrize("family", FAMILIES)
def test_images_that_share_a_pass_are_encoded_alike_and_bfloat16_is_near(family, made, monkeypatch):
    encoder, _ = made(family)
    pixels, index = pixels_of(encoder, 4), some(encoder, 4)
    alone = tensors(encoder.encode_image(pixels, index=index, layers=encoder.feature_layers))
    monkeypatch.setattr(encoder, "at_once", None)  # as on a GPU
    for one, other in zip(alone, tensors(encoder.encode_image(pixels, index=index, layers=encoder.feature_layers)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(encoder, "tower", deepcopy(encoder.tower).in_bfloat16())
    for one, rough in zip(alone, tensors(encoder.encode_image(pixels, index=index, layers=encoder.feature_layers)), strict=True):
        assert rough.dtype == torch.float32 and not torch.equal(one, rough)
        assert F.cosine_similarity(one, rough, dim=-1).min() > 0.99


@pytest.fixture(scope="module")
def short_line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short") / "line"
    return write_line(folder, train=8, test=4, size=64).parent


@pytest.mark.parametrize("family", ["SigLIP", "EVA-02", "CoCa", "ResNet", "ConvNeXt"])
def test_a_model_of_each_family_scores_alike_after_reload_in_every_batch(family, made, short_line, tmp_path):
    metadata = short_line / "metadata.csv"
    captions = caption_lookup(read_dataset(short_line, metadata).records)
    images = sorted((short_line / "images").glob("test*"))
    options = {"adapt": False, "keep": 0.5, "false_alarm": 0.2, "device": "cpu", "precision": "float32"}
    model = cmgcli.fit(short_line, metadata, encoder=made(family)[0].name, **options)
    model.save(tmp_path / "m.cmg")
    rows = list(model.score(images, captions))
    assert not any(row.error for row in rows) and len({row.score for row in rows}) == 4
    again = cmgcli.Model.load(tmp_path / "m.cmg", device="cpu")
    for size in (1, 4):
        assert list(again.score(images, captions, batch_size=size)) == rows


def test_what_is_no_such_net_says_which_are(tmp_path):
    import open_clip

    config = of_timm("vit_relpos_medium_patch16_cls_224", VIT, "", "linear")(tmp_path / "trunk")
    open_clip.add_model_config(written(tmp_path / "relative.json", config))
    torch.save(open_clip.create_model("relative", pretrained_image=False).state_dict(), tmp_path / "relative.pt")
    with pytest.raises(EncoderError, match="expected a vision transformer .*, got VisionTransformerRelPos; choose one such as ViT-B-16"):
        load_clip(f"relative@{tmp_path / 'relative.pt'}")


def test_only_a_plain_transformer_is_exported(made, short_line, tmp_path):
    from cmgcli.export import Inspector

    encoder, _ = made("ResNet")
    model = cmgcli.fit(short_line, short_line / "metadata.csv", encoder=encoder.name, adapt=False, cmer=False, device="cpu", false_alarm=0.2)
    with pytest.raises(SettingsError, match="no plain vision transformer"):
        Inspector(model, (64, 64))
