"""Loading weights, and encoding with tokens removed, against a forward pass written out here."""

import shutil
import weakref

import numpy as np
import pytest
import torch

from cmgcli import builtin as built_in
from cmgcli.encoder import load_encoder
from cmgcli.errors import EncoderError, SettingsError
from cmgcli.loader import BATCH
from cmgcli.view import images_at_once


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load_encoder(f"local-dir:{tiny_folder}", device="cpu")


@pytest.fixture(scope="module")
def builtin():
    return load_encoder("builtin", device="cpu")


def images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + 7 * i, 50, 3), dtype=np.uint8) for i in range(count)]


@pytest.fixture(scope="module")
def theirs(tiny_folder):
    """open_clip's own towers of the same weights."""
    import open_clip

    return {"tiny": open_clip.create_model(f"local-dir:{tiny_folder}").visual.eval(), "builtin": built_in.trained_builtin_model().visual.eval()}


def slow_embedding(tower, pixels: torch.Tensor, index: list[int]) -> torch.Tensor:
    """One image through an open_clip tower, token by token removed before the blocks."""
    tokens = tower.conv1(pixels[None]).flatten(2).transpose(1, 2)[0] + tower.positional_embedding[1:]
    first = tower.class_embedding + tower.positional_embedding[0]
    x = tower.ln_pre(torch.stack([first, *[tokens[i] for i in index]]))[None]
    for block in tower.transformer.resblocks:
        x = block(x)
    x = tower.ln_post(x)[0]
    pooled = (x[1:].mean(0) if tower.pool_type == "avg" else x[0]) @ tower.proj
    return pooled / pooled.norm()


@pytest.mark.parametrize("name", ["tiny", "builtin"])
@torch.inference_mode()
def test_removed_tokens_are_never_computed(name, theirs, request):
    encoder = request.getfixturevalue(name)
    pixels = encoder.preprocess(images(2))
    index = torch.tensor([[0, 3, 5, 9], [1, 2, 14, 15]])
    features = encoder.encode_image(pixels, index=index, layers=encoder.feature_layers)
    for row in range(2):
        torch.testing.assert_close(features.embedding[row], slow_embedding(theirs[name], pixels[row], index[row].tolist()), atol=1e-5, rtol=0)
    assert features.patches[0].shape == (2, 4, encoder.tower.width)


@pytest.mark.parametrize("name", ["tiny", "builtin"])
@torch.inference_mode()
def test_keeping_every_token_is_the_whole_image(name, theirs, request):
    encoder = request.getfixturevalue(name)
    pixels = encoder.preprocess(images(1))
    everything = torch.arange(encoder.patch_count)[None]
    whole = encoder.encode_image(pixels).embedding
    torch.testing.assert_close(encoder.encode_image(pixels, index=everything).embedding, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(whole, torch.nn.functional.normalize(theirs[name](pixels), dim=1), atol=1e-6, rtol=0)


def test_the_builtin_embedding_is_the_mean_of_its_dense_tokens(builtin):
    features = builtin.encode_image(builtin.preprocess(images(2)))
    mean = torch.nn.functional.normalize(features.dense.mean(1), dim=1)
    torch.testing.assert_close(features.embedding, mean, atol=1e-5, rtol=0)
    assert builtin.averages


def test_images_are_squashed_never_cropped(tiny):
    image = np.zeros((20, 400, 3), np.uint8)
    image[:, :40] = 255
    image[:, 360:] = 255
    pixels = tiny.preprocess([image])[0]
    assert pixels.shape == (3, 32, 32)
    assert pixels[0, :, 0].min() > pixels[0, :, 16].max()
    assert pixels[0, :, -1].min() > pixels[0, :, 16].max()


def test_text_features_have_unit_norm_and_ignore_the_batch(tiny):
    texts = [f"part number {i}" for i in range(300)]
    together = tiny.encode_text(texts)
    assert together.shape == (300, 16)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(300))
    torch.testing.assert_close(tiny.encode_text(texts[299:]), together[299:], atol=1e-6, rtol=0)


def test_weights_from_a_file(tiny, tiny_folder):
    again = load_encoder(f"tiny-vit@{tiny_folder / 'open_clip_model.safetensors'}", device="cpu")
    assert again.sha256 == tiny.sha256
    assert load_encoder("builtin", device="cpu").sha256 != tiny.sha256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bultin", "expected builtin, NAME/TAG, NAME@FILE or local-dir:DIR"),
        ("ViT-B16/openai", "did you mean ViT-B-16"),
        ("ViT-B-16/openia", "no weights named openia; ViT-B-16 has openai"),
        ("ViT-B-16@missing.safetensors", "no weight file missing.safetensors"),
        ("local-dir:missing", "no such directory"),
    ],
)
def test_names_that_cannot_be_loaded_say_what_can(name, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder(name, device="cpu")


@pytest.fixture
def offline_cache(monkeypatch, tmp_path):
    """An empty Hugging Face cache and no network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def fill_cache(cache, repository: str, source) -> None:
    """Lay the files of a folder into the cache as a download would."""
    home = cache / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    shutil.copytree(source, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)


def test_pretrained_weights_come_from_the_hugging_face_cache(offline_cache, tiny, tiny_folder, monkeypatch):
    """Under a tag, as NAME/TAG, and as a repository of their own; the hub is never asked."""
    import open_clip.pretrained

    fill_cache(offline_cache, "plant/tiny", tiny_folder)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", {"good_parts": {"hf_hub": "plant/tiny/"}})
    assert load_encoder("tiny-vit/good_parts", device="cpu").sha256 == tiny.sha256
    assert load_encoder("hf-hub:plant/tiny", device="cpu").sha256 == tiny.sha256


def test_weights_trained_with_quick_gelu_get_it(offline_cache, tiny_folder, monkeypatch):
    import open_clip.pretrained

    fill_cache(offline_cache, "plant/tiny", tiny_folder)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", {"quick": {"hf_hub": "plant/tiny/", "quick_gelu": True}})
    encoder = load_encoder("tiny-vit/quick", device="cpu")
    assert encoder.tower.shape.activation == "quick_gelu"


def test_missing_pretrained_weights_are_an_error_never_random(offline_cache):
    with pytest.raises(EncoderError, match="Hugging Face cache"):
        load_encoder("ViT-B-32/laion2b_s34b_b79k", device="cpu")


def test_weights_of_another_shape_are_an_error(tiny_folder):
    with pytest.raises(EncoderError, match="could not be loaded"):
        load_encoder(f"ViT-B-32@{tiny_folder / 'open_clip_model.safetensors'}", device="cpu")


def test_damaged_builtin_weights_name_the_checksum(monkeypatch, tmp_path):
    shutil.copytree(built_in.WEIGHTS, tmp_path / "weights")
    path = tmp_path / "weights" / "cmg-builtin.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF
    path.write_bytes(content)
    monkeypatch.setattr(built_in, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(EncoderError, match="expected checksum [0-9a-f]{16}, got [0-9a-f]{16}"):
        load_encoder("builtin", device="cpu")
    path.unlink()
    with pytest.raises(EncoderError, match="missing or damaged"):
        load_encoder("builtin", device="cpu")


def test_a_thing_without_a_name_is_what_its_caption_says(monkeypatch, tmp_path):
    encoder = load_encoder("builtin", device="cpu")
    said, other, unknown = encoder.encode_text([built_in.UNNAMED, "a photo of a brass gear", "a photo of a 弁座"])
    torch.testing.assert_close(encoder.unnamed, said, atol=1e-5, rtol=0)
    assert said @ unknown > 0.9 > said @ other  # as any word that training never saw
    shutil.copytree(built_in.WEIGHTS, tmp_path / "weights")
    path = tmp_path / "weights" / "cmg-builtin.unnamed.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF
    path.write_bytes(content)
    monkeypatch.setattr(built_in, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(EncoderError, match="unnamed.safetensors is damaged: its checksum is wrong"):
        load_encoder("builtin", device="cpu")
    path.write_bytes(b"")
    with pytest.raises(EncoderError, match="unnamed.safetensors is missing or damaged"):
        load_encoder("builtin", device="cpu")


def test_other_encoders_know_no_thing_without_a_name(tiny_folder):
    assert load_encoder(f"local-dir:{tiny_folder}", device="cpu").unnamed is None


def test_a_gpu_that_is_absent_is_an_error():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EncoderError, match="no GPU"):
        load_encoder("builtin", device="cuda")


# ---- too little memory


class Memory:
    """Stands before a tower's first block: more than `room` patch tokens at once raise `error`, as an allocation would."""

    def __init__(self, encoder, monkeypatch, room: int, error: BaseException) -> None:
        self.room, self.error, self.sizes = room, error, []
        monkeypatch.setattr(encoder, "at_once", None)  # as on a GPU
        monkeypatch.setattr(encoder, "_found_to_fit", {})
        block = encoder.tower.blocks[0]
        real = block.forward

        def forward(tokens, *args, **options):
            batch, length, _ = tokens.shape
            self.sizes.append(batch)
            if batch * (length - 1) > self.room:
                raise self.error
            return real(tokens, *args, **options)

        monkeypatch.setattr(block, "forward", forward)


def allocation_error() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return caught.value


NO_MEMORY = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "older cuda": lambda: RuntimeError("CUDA error: out of memory"),
    "cpu": allocation_error,
    "oneDNN": lambda: RuntimeError("could not create a primitive"),  # so it was seen with 400 MB of address space left
    "python": MemoryError,
}


@pytest.mark.parametrize("kind", NO_MEMORY)
@pytest.mark.parametrize("kept", [None, 5])
def test_a_batch_too_large_for_memory_goes_in_halves_from_then_on(tiny, monkeypatch, kind, kept):
    pixels = tiny.preprocess(images(7))
    index = None if kept is None else torch.stack([torch.randperm(16)[:kept].sort().values for _ in range(7)])
    whole = tiny.encode_image(pixels, index=index, layers=(0, 2))
    memory = Memory(tiny, monkeypatch, 2 * (kept or 16), NO_MEMORY[kind]())
    halves = tiny.encode_image(pixels, index=index, layers=(0, 2))
    assert memory.sizes == [7, 4, 2, 2, 2, 1]
    torch.testing.assert_close(halves.embedding, whole.embedding, atol=1e-6, rtol=0)
    torch.testing.assert_close(halves.dense, whole.dense, atol=1e-5, rtol=0)
    torch.testing.assert_close(halves.patches, whole.patches, atol=1e-5, rtol=0)
    memory.sizes.clear()
    tiny.encode_image(pixels[:5], index=None if kept is None else index[:5])
    assert memory.sizes == [2, 2, 1]  # it is not tried again


@pytest.mark.parametrize("kind", NO_MEMORY)
@pytest.mark.parametrize(("room", "expected"), [(16 * 64, 64), (16 * 64 - 1, 32), (16 * 9, 8), (16, 1), (3, 1)])
def test_a_batch_is_found_that_fits_into_memory(tiny, monkeypatch, kind, room, expected):
    memory = Memory(tiny, monkeypatch, room, NO_MEMORY[kind]())
    assert images_at_once(tiny, "auto") == expected
    tried = [64, 32, 16, 8, 4, 2]
    assert memory.sizes == tried[: 1 + tried.index(max(2, expected))] and tiny.at_once is None  # one image is not tried: the run itself says that it does not fit


def test_the_batch_that_is_found_fits_with_the_way_back(tiny, monkeypatch):
    """The derivative takes more memory than the pass; it is what such an encoder is asked for at scoring."""
    monkeypatch.setattr(tiny, "at_once", None)
    monkeypatch.setattr(tiny, "_found_to_fit", {})
    asked = []
    monkeypatch.setattr(tiny, "_forward_and_back", lambda pixels, *_: asked.append(len(pixels)))
    assert images_at_once(tiny, "auto") == images_at_once(tiny, "auto") == 64 and asked == [64]  # and it is tried once


def test_how_many_images_are_taken_at_once(tiny, monkeypatch):
    assert images_at_once(tiny, "auto") == BATCH  # a processor takes them one by one
    assert images_at_once(tiny, 5) == 5 and images_at_once(tiny, 5, tile=64) == images_at_once(tiny, "auto", tile=64) == 1
    for wrong in ("Auto", "7", 0, 2.0, None, True):
        with pytest.raises(SettingsError, match="batch size: expected"):
            images_at_once(tiny, wrong)
    memory = Memory(tiny, monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        images_at_once(tiny, "auto")
    assert memory.sizes == [64]


def test_one_image_too_large_for_memory_is_an_error_with_the_remedy(tiny, monkeypatch):
    Memory(tiny, monkeypatch, 15, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(EncoderError, match="encoder local-dir:.*not enough memory on cpu for one image .CUDA out of memory.; choose a smaller encoder"):
        tiny.encode_image(tiny.preprocess(images(2)))


def test_another_error_is_not_taken_for_want_of_memory(tiny, monkeypatch):
    memory = Memory(tiny, monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        tiny.encode_image(tiny.preprocess(images(4)))
    assert memory.sizes == [4]


def test_halves_are_said_once(tiny, monkeypatch, caplog):
    Memory(tiny, monkeypatch, 32, MemoryError())
    with caplog.at_level("WARNING", logger="cmgcli"):
        for _ in range(2):
            tiny.encode_image(tiny.preprocess(images(4)))
    assert [record.message for record in caplog.records] == ["4 images at once did not fit into memory; from now on 2 go through the encoder at once"]


def test_what_a_failed_batch_held_is_free_before_its_halves(tiny, monkeypatch):
    """A traceback holds the tensors of the pass that failed; on a full device the halves would fail as well."""
    monkeypatch.setattr(tiny, "at_once", None)
    block = tiny.tower.blocks[0]
    real, passes, alive = block.forward, [], []

    def forward(tokens, *args, **options):
        alive.append([passed() is not None for passed in passes])
        passes.append(weakref.ref(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(tokens, *args, **options)

    monkeypatch.setattr(block, "forward", forward)
    tiny.encode_image(tiny.preprocess(images(4)))
    assert alive == [[], [False], [False, False]]


def test_worth_is_the_same_one_by_one_together_and_in_halves(tiny_folder, monkeypatch):
    tiny = load_encoder(f"local-dir:{tiny_folder}", device="cpu")
    pixels, captions = tiny.preprocess(images(5)), tiny.encode_text([f"part {i}" for i in range(5)])

    def worth():
        return tiny.encode_with_worth(pixels, lambda seen, rows: captions[rows], layers=(0, 2))

    monkeypatch.setattr(tiny, "at_once", 1)
    alone, own, single = worth()
    monkeypatch.setattr(tiny, "at_once", None)
    together, _, several = worth()
    memory = Memory(tiny, monkeypatch, 3 * 16, torch.OutOfMemoryError("CUDA out of memory"))
    halves, _, few = worth()
    assert memory.sizes == [5, 3, 2]
    torch.testing.assert_close(own, captions)
    for found, more in ((together, several), (halves, few)):
        torch.testing.assert_close(more, single, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(found.embedding, alone.embedding, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.patches, alone.patches, atol=1e-5, rtol=0)
