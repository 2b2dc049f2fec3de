"""The ablation shares what the encoder sees; its results are those of models fitted one by one."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import cmgcli
from cmgcli import looks
from cmgcli.dataset import test_records as records_to_judge
from cmgcli.dataset import training_records
from cmgcli.errors import DatasetError
from cmgcli.evaluation import VARIANTS, ablate, evaluate_records
from cmgcli.pipeline import fit_records, read_records


@pytest.fixture(scope="module")
def model(small_line):
    return cmgcli.fit(small_line, small_line / "metadata.csv", adapt=False, bank_size=64, false_alarm=0.2, device="cpu")


def test_the_ablation_equals_models_fitted_one_by_one_and_looks_at_each_image_twice(model, small_line, monkeypatch):
    read = Counter()
    plain = looks.decoded

    def counted(paths, **options):
        read.update(paths)
        return plain(paths, **options)

    monkeypatch.setattr("cmgcli.looks.decoded", counted)
    table = ablate(model, small_line, small_line / "metadata.csv")
    records = read_records(small_line, small_line / "metadata.csv")
    assert len(read) == len(records) and set(read.values()) == {2}  # whole, and masked by CMER; four variants
    train, test = training_records(records), records_to_judge(records)
    for name, (cmer, cmle) in VARIANTS.items():
        alone = fit_records(train, model.encoder, replace(model.detector.settings, cmer=cmer, cmle=cmle), false_alarm=0.2)
        expected = evaluate_records(alone, test)
        for shared, separate in zip(table[name].cases, expected.cases, strict=True):
            for part in ("score", "image_score", "patch_score", "match", "kept"):
                assert getattr(shared.row, part) == pytest.approx(getattr(separate.row, part), abs=1e-4), (name, part)
        assert table[name].image_auroc == expected.image_auroc
        np.testing.assert_allclose(table[name].pixel_auroc, expected.pixel_auroc, atol=1e-4)


def test_with_the_head_the_threshold_is_split(model, small_line):
    table = ablate(model, small_line, small_line / "metadata.csv", adapt_steps=1)
    assert list(table) == [*VARIANTS, *(f"{name} with head" for name in VARIANTS)]
    assert all(case.row.head_score is not None for case in table["CMG with head"].cases)


def test_images_to_fit_on_are_not_judged(model, small_line, tmp_path):
    lines = (small_line / "metadata.csv").read_text(encoding="utf-8").replace(",train,", ",,").replace(",test,", ",,")
    (tmp_path / "labels.csv").write_text(lines, encoding="utf-8")
    with pytest.raises(DatasetError, match="split"):
        ablate(model, small_line, tmp_path / "labels.csv")
