"""The trained guided space against the closed form."""

import numpy as np
import pytest
import torch

import cmgcli
from cmgcli.cmle import ResidualMoments, guided_space, shrink, structure_matrix, whitening
from cmgcli.errors import SettingsError
from cmgcli.model import Model
from cmgcli.projection import _Neighbours, guidance_loss, train_projection

DIM, CAPTIONS = 24, 8


class Data:
    """Embeddings whose captions explain some directions well, some a little and most not at all."""

    def __init__(self, count: int = 600) -> None:
        generator = torch.Generator().manual_seed(0)
        self.text = torch.nn.functional.normalize(torch.randn(CAPTIONS, 16, generator=generator), dim=1)
        self.captions = torch.randint(CAPTIONS, (count,), generator=generator)
        language = torch.randn(16, DIM, generator=generator) * torch.linspace(3, 0, DIM)
        mix = torch.randn(DIM, DIM, generator=generator) / DIM**0.5
        self.x = (self.text[self.captions] @ language + torch.randn(count, DIM, generator=generator)) @ mix
        self.structure = structure_matrix(self.text, torch.bincount(self.captions, minlength=CAPTIONS))
        self.moments = ResidualMoments(self.structure, DIM)
        self.moments.add(self.x, self.captions)
        self.whiten = whitening(shrink(self.moments.covariance(), count))

    def train(self, **options):
        return train_projection(self.x, self.captions, self.structure, self.whiten, **options)

    def least(self, latent_dim: int) -> float:
        """The least objective that a linear projection can have."""
        whiten = whitening(self.moments.covariance())
        return float(torch.linalg.eigvalsh(whiten @ (self.moments.residual_second_moment() / len(self.x)) @ whiten.T)[:latent_dim].sum())

    def objective(self, z: torch.Tensor) -> float:
        """``||Z - S Z||^2 / N`` under ``Z^T Z / N = I``, which any invertible map of z leaves as it is."""
        moments = ResidualMoments(self.structure, z.shape[1])
        moments.add(z, self.captions)
        return float(torch.linalg.solve(moments.covariance(), moments.residual_second_moment() / len(z)).trace())


@pytest.fixture(scope="module")
def data():
    return Data()


@pytest.mark.parametrize("latent_dim", [2, 5])
def test_the_trained_linear_projection_reaches_the_objective_of_the_closed_form(data, latent_dim):
    best = data.least(latent_dim)
    assert data.objective(data.x.double() @ guided_space(data.moments, latent_dim=latent_dim).projection.T) < 1.1 * best  # it is shrunk
    latent = data.train(kind="linear", latent_dim=latent_dim)
    assert data.objective(latent(data.x)) < 1.01 * best
    untrained = data.objective(data.train(kind="linear", latent_dim=latent_dim, epochs=0)(data.x))
    assert untrained > 2 * best


def test_the_mlp_obeys_the_captions_better_than_any_matrix(data):
    assert data.objective(data.train(kind="mlp", latent_dim=5)(data.x)) < data.least(5)


def test_the_loss_estimates_the_objective_without_bias(data):
    """Mean over many draws of the neighbours, against the residuals to the exact place."""
    rng = np.random.default_rng(0)
    neighbours, rows = _Neighbours(data.captions, data.structure), torch.arange(len(data.x))
    weights = data.structure.rows.weights[data.captions].float()
    found = []
    for _ in range(300):
        around = (weights.unsqueeze(-1) * data.x[neighbours.draw(rows, rng)]).sum(2)
        residuals = data.x - around
        found.append(float((residuals[0] * residuals[1]).sum(1).mean()))
    exact = float(data.moments.residual_second_moment().trace()) / len(data.x)
    assert np.mean(found) == pytest.approx(exact, abs=4 * np.std(found) / 300**0.5)
    assert guidance_loss(torch.zeros(8, 3), torch.zeros(2, 8, 3)) > 1  # a collapsed space is no solution


def test_neighbours_are_images_of_the_right_captions_and_never_the_image_itself(data):
    rows = torch.arange(len(data.x))
    drawn = _Neighbours(data.captions, data.structure).draw(rows, np.random.default_rng(0))
    sources = data.structure.rows.sources[data.captions]
    assert (data.captions[drawn] == sources).all()
    assert (drawn != rows.view(1, -1, 1)).all()


def test_a_training_broken_off_goes_on_to_the_same_projection(data, tmp_path):
    class Crash(Exception):
        pass

    def crash(epoch, *_):
        if epoch == 4:
            raise Crash

    options = {"kind": "mlp", "latent_dim": 3, "epochs": 6, "snapshot_key": "k"}
    whole = data.train(**options)
    with pytest.raises(Crash):
        data.train(**options, snapshot=tmp_path / "state", progress=crash)
    epochs = []
    again = data.train(**options, snapshot=tmp_path / "state", progress=lambda epoch, total, loss: epochs.append(epoch))
    assert epochs == [5, 6]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_model_with_a_trained_space_scores_the_same_after_save_and_load(small_line, tmp_path, kind):
    stages = []
    model = cmgcli.fit(
        small_line, small_line / "metadata.csv", adapt=False, projection=kind, latent_dim=8, epochs=3, bank_size=64, false_alarm=0.2, device="cpu",
        snapshot=tmp_path / "state", progress=lambda stage, done, total: stages.append(stage),
    )  # fmt: skip
    assert any(stage.startswith("training the guided space (loss ") for stage in stages)
    assert len(list(tmp_path.glob("state.space*"))) == 6  # the final model and five folds
    model.save(tmp_path / "m.cmg")
    again = Model.load(tmp_path / "m.cmg", device="cpu")
    paths = sorted((small_line / "images").glob("test*"))[:4]
    rows = list(model.score(paths))
    assert list(again.score(paths)) == rows and all(np.isfinite(row.image_score) for row in rows)
    assert again.detector.settings.projection == kind and again.detector.language.means.shape[1] == 8


def test_an_unknown_projection_and_an_impossible_dimension_are_named(small_line, data):
    with pytest.raises(SettingsError, match="expected one of closed, linear, mlp, got 'cubic'"):
        cmgcli.fit(small_line, small_line / "metadata.csv", projection="cubic", device="cpu")
    with pytest.raises(SettingsError, match="expected 1 to 24, the embedding size of the encoder, got 99"):
        data.train(kind="linear", latent_dim=99)
