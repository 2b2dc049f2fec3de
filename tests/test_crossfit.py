"""Cross-fitting and the shared views, against slow twins."""

from dataclasses import replace

import numpy as np
import pytest

import cmgcli
from cmgcli.calibrate import folds
from cmgcli.crossfit import MADE_UP, cross_fit
from cmgcli.dataset import Record, training_records
from cmgcli.encoder import load_encoder
from cmgcli.errors import ImageError
from cmgcli.heldout import gather, joined
from cmgcli.images import write_png
from cmgcli.learn import learn
from cmgcli.looks import Looks, spread
from cmgcli.model import Model
from cmgcli.pipeline import fit_records, read_records, records_to_fit
from tests.benchmarks.setting import settings_of


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("builtin", device="cpu")


@pytest.fixture(scope="module")
def records(small_line):
    return training_records(read_records(small_line, small_line / "metadata.csv"))


def quiet(*_) -> None:
    pass


def test_every_image_is_scored_by_a_model_that_has_not_seen_it(encoder, records):
    """The slow twin fits each fold's model by itself, from the same views: another batch may round otherwise, which moves a rank, and with it the bank."""
    settings = settings_of(encoder, bank_size=64)
    looks = Looks(records, encoder, settings)
    model = cross_fit(looks, false_alarm=0.1, report=quiet)
    evidence = []
    for number, fold in enumerate(folds(len(records))):
        (learner,) = learn(looks, [sorted(set(range(len(records))) - set(fold))], quiet)
        evidence.append(gather(learner.draft(false_alarm=0.1, report=quiet), looks, fold, fold=number, made_up=-(-MADE_UP // 5), report=quiet))
    scores = [joined(evidence[:k] + evidence[k + 1 :]).blend()(evidence[k].normal) for k in range(5)]
    np.testing.assert_allclose(model.detector.calibration.scores, np.sort(np.concatenate(scores)), rtol=1e-6)
    assert model.detector.fit_images == len(records)


def test_an_odd_training_image_does_not_judge_itself(encoder, records, tmp_path):
    write_png(tmp_path / "odd.png", np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8))
    odd = Record(path=tmp_path / "odd.png", file_name="odd.png", text=records[0].text)
    model = fit_records([*records, odd], encoder, settings_of(encoder, bank_size=64), false_alarm=0.1)
    (row,) = model.score([odd.path], {odd.path.resolve(): odd.text})
    assert model.detector.calibration.scores[-1] > 2 * row.score


def test_views_are_the_same_held_or_made_again(encoder, records):
    settings = settings_of(encoder)
    held, again = (Looks(records, encoder, settings, budget=budget) for budget in (10**9, 500_000))
    numbers = [5, 0, 7, 3, 20]
    for _ in range(2):
        for (a, some), (b, others) in zip(held.of(numbers), again.of(numbers), strict=True):
            assert a == b == numbers
            for one, other in zip(some, others, strict=True):
                np.testing.assert_array_equal(one.image, other.image)
                np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-5)
    assert 0 < len(again.held.views) < len(numbers) == len(held.held.views)


def test_an_unreadable_image_is_an_error_in_its_place(encoder, records, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    bad = Record(path=tmp_path / "bad.png", file_name="bad.png", text=records[0].text)
    looks = Looks([records[0], bad, records[1]], encoder, settings_of(encoder))
    ((_, views),) = looks.of([0, 1, 2])
    assert [isinstance(view, ImageError) for view in views] == [False, True, False]
    with pytest.raises(ImageError, match="bad.png.*mend or remove it"):
        list(looks.sound([0, 1, 2]))


@pytest.mark.parametrize("options", [{"adapt": False, "calibration": "split"}, {"adapt_steps": 4}])
def test_few_images_tell_how_good_ones_score(small_line, options):
    """With too few to spare some for it, each fold of those that are fitted is judged by a model of the others: the bank knows its own by heart."""
    model = cmgcli.fit(small_line, small_line / "metadata.csv", false_alarm=0.1, device="cpu", **options)
    usual = float(model.detector.blend(model.detector.blend.location[None])[0])
    assert usual / 3 < np.median(model.detector.calibration.scores) < 3 * usual


def test_made_up_images_come_from_all_of_a_fold(encoder, records):
    """Records come sorted by caption more often than not."""
    assert spread(range(10), 3) == [0, 4, 9] and spread([7, 8], 5) == [7, 8] and spread(range(9), 1) == [0] and spread([], 3) == []
    looks = Looks(records, encoder, settings_of(encoder, bank_size=64))
    (learner,) = learn(looks, [range(len(records))], quiet)
    found = gather(learner.draft(false_alarm=0.1, report=quiet), looks, range(len(records)), made_up=4, report=quiet)
    assert len(found.normal) == len(records) and len(found.drawn) == 2 * len(found.wrong) == 8


def test_a_cross_fitted_model_is_stored_with_its_promise(small_line, tmp_path):
    model = cmgcli.fit(small_line, small_line / "metadata.csv", adapt=False, false_alarm=0.1, bank_size=64, device="cpu")
    model.save(tmp_path / "m.cmg")
    again = Model.load(tmp_path / "m.cmg", device="cpu")
    assert again.detector.settings.calibration == "cross" and len(again.detector.calibration.scores) == 24
    assert again.detector.calibration.sentence == model.detector.calibration.sentence
    assert "cross-fitted on 24 images" in again.detector.calibration.sentence


def test_captions_that_mean_the_same_to_the_encoder_fit(small_line):
    """Words that the encoder does not know embed alike: then no caption is a wrong one."""
    paths = sorted((small_line / "images").glob("train*"))[:8]
    records = [Record(path=path, file_name=path.name, text="a photo of a " + ("螺母", "齿轮")[i % 2]) for i, path in enumerate(paths)]
    encoder = load_encoder("builtin", device="cpu")
    assert (encoder.encode_text([records[0].text]) == encoder.encode_text([records[1].text])).all()
    model = fit_records(records, encoder, settings_of(encoder, bank_size=64), false_alarm=0.2)
    assert np.isfinite(model.detector.calibration.scores).all()


def test_the_bank_keeps_its_budget_past_its_number_of_captions(encoder, records):
    """Of 24 captions and a budget of 100 patches three groups can be filled."""
    many = [replace(record, text=f"{record.text} number {i}") for i, record in enumerate(records)]
    model = fit_records(many, encoder, settings_of(encoder, bank_size=100), false_alarm=0.2)
    assert len(model.detector.bank.features) <= 100 and int(model.detector.bank.groups.max()) == 2
    assert np.isfinite(next(model.score([many[0].path])).score)


def test_a_map_that_finds_no_place_gets_no_weight():
    from cmgcli.heldout import Evidence

    none = np.empty((0, 4))
    evidence = Evidence(np.zeros((4, 4)), np.array([[1.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), none, np.array([[0.5, 0.9, 0.6], [0.4, 0.7, 0.6]]), none)
    np.testing.assert_allclose(evidence._map_weights(), [0, 0.9, 0.1])
    blind = Evidence(np.zeros((4, 4)), np.array([[1.0, np.nan, np.nan]]), none, np.full((2, 3), 0.5), none)
    np.testing.assert_allclose(blind._map_weights(), [1, 0, 0])


def test_looks_serve_only_settings_that_see_the_same(encoder, records):
    looks = Looks(records, encoder, settings_of(encoder))
    assert looks.under(settings_of(encoder, cmle=False)).held is looks.held
    with pytest.raises(ValueError, match="cmer True cannot serve"):
        looks.under(settings_of(encoder, cmer=False))


def test_copies_of_an_image_fit_once(records, small_line, tmp_path, caplog):
    """A copy in another fold, or on the other side of the split, would let a model judge an image that it has seen."""
    copies = []
    for record in records:
        copy = tmp_path / record.path.name
        copy.write_bytes(record.path.read_bytes())
        copies.append(replace(record, path=copy))
    assert records_to_fit([*records, *copies]) == tuple(records)
    assert "left out: 24 files with the content" in caplog.text
    other = replace(copies[3], text="something else")
    caplog.clear()
    assert records_to_fit([*records[:5], other]) == (*records[:5], other)
    assert caplog.messages == [
        "1 file with the content of another training image under another caption: the false-alarm promise is weaker for it; keep one of the two"
    ]
