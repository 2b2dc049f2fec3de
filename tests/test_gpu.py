"""What a GPU must do as a processor does; skipped where there is none."""

import numpy as np
import pytest
import torch
from shell import cmg_here, table

import cmgcli
from cmgcli.encoder import load_encoder
from cmgcli.model import Model
from cmgcli.view import RELEVANCE, Meter, relevance_of
from cmgcli.zeroshot import zero_shot

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


@pytest.fixture(scope="module")
def files(small_line):
    return sorted((small_line / "images").glob("test*"))


@pytest.fixture(scope="module")
def fitted(small_line, tmp_path_factory):
    """A model in float32, made on the GPU."""
    path = tmp_path_factory.mktemp("gpu") / "model.cmg"
    cmgcli.fit(small_line, small_line / "metadata.csv", false_alarm=0.1, adapt_steps=4, device="cuda", precision="float32").save(path)
    return path


def scores(model, files, **options):
    rows = list(model.score(files, **options))
    assert not any(row.error for row in rows)
    return np.array([[row.score, row.image_score, row.patch_score, row.head_score, row.match, row.kept] for row in rows])


def test_a_model_scores_alike_on_a_gpu_and_on_a_processor(fitted, files):
    one, other = (scores(Model.load(fitted, device=device), files) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
    assert one[:, 0].std() > 0.01


@pytest.mark.parametrize("batch_size", [1, 5, "auto"])
def test_scores_on_a_gpu_do_not_depend_on_the_batch(fitted, files, batch_size):
    model = Model.load(fitted, device="cuda")
    np.testing.assert_allclose(scores(model, files, batch_size=batch_size), scores(model, files), rtol=1e-4, atol=1e-4)


def test_the_default_model_scores_alike_in_every_batch_and_twice(small_line, files):
    one, two = (cmgcli.fit(small_line, small_line / "metadata.csv", false_alarm=0.1, adapt_steps=4, device="cuda") for _ in range(2))
    assert one.encoder.precision == "float32" and one.detector.settings.precision == "bfloat16"
    assert (scores(one, files) == scores(two, files)).all()
    np.testing.assert_allclose(scores(one, files, batch_size=3), scores(one, files), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["builtin", "tiny"])
@pytest.mark.parametrize("estimator", RELEVANCE)
def test_relevance_on_a_gpu_is_that_of_a_processor(name, estimator, tiny_folder):
    if name == "tiny" and estimator == "fast":
        pytest.skip("fast of such a tower is the first order, and has a test of its own below")
    name, found = "builtin" if name == "builtin" else f"local-dir:{tiny_folder}", []
    pictures = np.random.default_rng(0).integers(0, 255, (3, 90, 70, 3), dtype=np.uint8)
    for device in ("cpu", "cuda"):
        encoder = load_encoder(name, device=device)
        text = torch.nn.functional.normalize(torch.randn(3, encoder.dim, generator=torch.Generator().manual_seed(1)), dim=1).to(device)
        meter = Meter(encoder, encoder.preprocess(pictures))
        found.append(relevance_of(meter, estimator, meter.encode(), text).cpu())
    torch.testing.assert_close(found[1], found[0], atol=3e-5, rtol=1e-3)


def test_first_order_worth_on_a_gpu_is_that_of_a_processor(tiny_folder):
    pictures, found = np.random.default_rng(0).integers(0, 255, (3, 90, 70, 3), dtype=np.uint8), []
    for device in ("cpu", "cuda"):
        encoder = load_encoder(f"local-dir:{tiny_folder}", device=device)
        found.append(encoder.encode_with_worth(encoder.preprocess(pictures), lambda seen, _: seen.flip(1))[2].cpu())
    torch.testing.assert_close(found[1], found[0], atol=3e-5, rtol=1e-3)


@pytest.mark.parametrize("back", [False, True])
def test_a_batch_too_large_for_a_real_gpu_goes_in_halves(back, caplog):
    encoder = load_encoder("builtin", device="cuda")
    pixels = encoder.preprocess(np.random.default_rng(0).integers(0, 255, (400, 48, 48, 3), dtype=np.uint8))
    whole = encoder.encode_image(pixels[:8])
    torch.cuda.empty_cache()
    total, used = torch.cuda.get_device_properties(0).total_memory, torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction((used + 400e6) / total)
    try:
        halves = encoder.encode_with_worth(pixels, lambda seen, _: seen)[0] if back else encoder.encode_image(pixels, layers=encoder.feature_layers)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert encoder.at_once is not None and encoder.at_once < 400 and "did not fit into memory" in caplog.text
    torch.testing.assert_close(halves.embedding[:8], whole.embedding, atol=1e-5, rtol=1e-4)


def test_a_trained_projection_learns_on_a_gpu(small_line, files):
    model = cmgcli.fit(small_line, small_line / "metadata.csv", false_alarm=0.1, adapt=False, projection="mlp", epochs=5, device="cuda")
    assert np.isfinite([row.score for row in model.score(files)]).all()


def test_zero_shot_on_a_gpu_ranks_as_on_a_processor(files):
    one, other = ([found.row.score for found in zero_shot(files, caption="a photo of a part", device=device).inspect(files)] for device in ("cuda", "cpu"))
    np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-2)


def test_the_commands_take_a_gpu(fitted, small_line, files, tmp_path):
    ran = cmg_here("score", "-v", "--model", fitted, "--device", "cuda", "--maps", tmp_path / "maps", "--out", tmp_path / "s.csv", *files)
    assert ran.returncode == 0 and "on cuda" in ran.err and len(table((tmp_path / "s.csv").read_text())) == len(files)
    assert len(list((tmp_path / "maps").iterdir())) == 2 * len(files)
    ran = cmg_here("mask", "--images", small_line, "--captions", small_line / "metadata.csv", "--out", tmp_path / "mask", "--device", "cuda")
    assert ran.returncode == 0
