"""Shared small real things: a tiny CLIP on disk, and the option that names real images."""

import json
from pathlib import Path

import pytest

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 24, "head_width": 12, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def pytest_addoption(parser):
    parser.addoption("--real", type=Path, default=None, help="folder with magnetic_tile/ (real images); without it those tests skip")


@pytest.fixture(scope="session")
def real_images(request) -> Path:
    folder = request.config.getoption("--real")
    if folder is None or not (folder / "magnetic_tile" / "metadata.csv").is_file():
        pytest.skip("real images are opt-in: pytest --real DIR, where DIR holds magnetic_tile/metadata.csv")
    return folder / "magnetic_tile"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """An open_clip folder with a randomly initialised ViT of three blocks, 4 x 4 patches, class-token pooling."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny")
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tiny-vit.json").write_text(json.dumps(TINY), encoding="utf-8")
    open_clip.add_model_config(folder / "tiny-vit.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-vit")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def small_line(tmp_path_factory) -> Path:
    """A demo line of 24 good and 12 test images of 96 pixels; the folder that holds metadata.csv."""
    from cmgcli.line import write_line

    folder = tmp_path_factory.mktemp("demo") / "line"
    return write_line(folder, train=24, test=12, size=96).parent


@pytest.fixture(scope="session")
def small_model(small_line):
    """A model of the small line, with a head of 4 steps."""
    import cmgcli

    return cmgcli.fit(small_line, small_line / "metadata.csv", false_alarm=0.1, adapt_steps=4, device="cpu")


@pytest.fixture(scope="session")
def model_file(small_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.cmg"
    small_model.save(path)
    return path
