"""Scores without a model: prompts, how alike images are, and what the command refuses and says."""

import csv
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from shell import cmg_here, table, wrong

from cmgcli import unfitted, zeroshot
from cmgcli.images import write_png
from cmgcli.prompts import DEFECTIVE, FLAWLESS, SHOWN, prompts, thing_of
from cmgcli.rows import COLUMNS
from cmgcli.zeroshot import References, zero_shot

CAPTION = "a photo of a steel nut"


@pytest.mark.parametrize(
    ("caption", "thing"),
    [
        ("a photo of a steel nut", "steel nut"),
        ("A good photo of the blue plastic connector.", "blue plastic connector"),
        ("an aluminium bracket", "aluminium bracket"),
        ("magnetic tile surface, bright", "magnetic tile surface, bright"),
        ("photo of", "photo of"),
        ("a {thing} in braces", "{thing} in braces"),
    ],
)
def test_prompts_are_made_of_what_the_caption_names(caption, thing):
    assert thing_of(caption) == thing
    for states in (FLAWLESS, DEFECTIVE):
        made = prompts(caption, states)
        assert len(made) == len(set(made)) == len(states) * len(SHOWN)
        assert all(thing in prompt for prompt in made)


def test_articles_fit():
    assert "a photo of an aluminium bracket with a flaw" in prompts("a photo of an aluminium bracket", DEFECTIVE)
    assert "a steel nut without any defect" in prompts(CAPTION, FLAWLESS)


def test_distances_are_the_mean_of_the_nearest_in_the_images_that_look_most_alike(tmp_path):
    rng = np.random.default_rng(0)
    patches = [torch.from_numpy(rng.normal(size=(count, 5))).float() for count in (4, 7, 3, 6, 5)]
    names = tuple(tmp_path / f"{i}.png" for i in range(5))
    owners = torch.cat([torch.full((len(found),), i) for i, found in enumerate(patches)])
    references = References(torch.cat(patches), owners, names)
    for own in (names[1], tmp_path / "another.png"):
        others = [found for found, name in zip(patches, names, strict=True) if name != own]
        nearest = torch.stack([torch.stack([(patch - found).norm(dim=1).min() for found in others]) for patch in patches[1]])
        count = max(1, round(0.3 * len(others)))
        slow = nearest.sort(dim=1).values[:, :count].mean(1)
        assert torch.allclose(references.distances(patches[1], own), slow, atol=1e-5)
    assert References(patches[0], torch.zeros(4, dtype=torch.int64), names[:1]).distances(patches[0], names[0]) is None


def nut(seed: int) -> np.ndarray:
    """A bright disc with grain on grey, (96, 96, 3) uint8."""
    rng = np.random.default_rng(seed)
    picture = np.full((96, 96, 3), 90, np.uint8)
    cv2.circle(picture, (48, 48), 34, (170, 170, 170), -1, cv2.LINE_AA)
    return np.clip(picture + rng.normal(0, 4, (96, 96, 1)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Ten alike, one of which, 7.png, has a dark gash."""
    folder = tmp_path_factory.mktemp("batch")
    for i in range(10):
        picture = nut(i)
        if i == 7:
            cv2.line(picture, (30, 40), (66, 58), (20, 20, 20), 4)
        write_png(folder / f"{i}.png", picture)
    return folder


@pytest.fixture(scope="module")
def run(batch, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return cmg_here("score", "--zero-shot", "--caption", CAPTION, "--maps", out / "maps", "--out", out / "s.csv", batch), out


def test_the_one_that_differs_comes_first_and_nothing_is_promised(run):
    ran, out = run
    assert ran.returncode == 0 and "no false-alarm promise" in ran.err
    text = (out / "s.csv").read_text()
    rows = table(text)
    assert text.splitlines()[0] == ",".join(COLUMNS) and len(rows) == 10
    assert max(rows, key=lambda row: float(row["score"]))["file"].endswith("7.png")
    assert max(rows, key=lambda row: float(row["patch_score"]))["file"].endswith("7.png")
    for row in rows:
        assert row["anomalous"] == row["p_value"] == row["error"] == "" and row["caption"] == CAPTION
        assert all(row[name] for name in ("score", "image_score", "patch_score", "head_score", "match", "kept"))
    assert len(list((out / "maps").iterdir())) == 20


def test_scores_of_a_run_are_refused_by_eval_and_told_why(run, batch, tmp_path):
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "text", "label"))
        writer.writerows((batch / f"{i}.png", CAPTION, int(i == 7)) for i in range(10))
    wrong(cmg_here("eval", "--scores", run[1] / "s.csv", "--labels", labels, "--images", batch), "--zero-shot", "threshold")


@pytest.mark.parametrize("done", [0, 3, 4, 6, 10])
def test_a_broken_run_goes_on_with_the_batches_of_an_undisturbed_one(batch, tmp_path, monkeypatch, done):
    """So it gives its rows to the last digit, which may depend on what shares a batch."""
    batches, decoded = [], zeroshot.decoded
    monkeypatch.setattr(zeroshot, "decoded", lambda *given, **options: (batches.append([name for name, _ in some]) or some for some in decoded(*given, **options)))
    out, command = tmp_path / "s.csv", ("score", "--zero-shot", "--caption", CAPTION, "--batch-size", 4, "--out", tmp_path / "s.csv")
    assert cmg_here(*command, batch).returncode == 0
    whole, last = out.read_text(), batches[-3:]
    out.write_text("".join(whole.splitlines(keepends=True)[: done + 1]))
    batches.clear()
    assert cmg_here(*command, "--resume", batch).returncode == 0
    assert out.read_text() == whole
    assert [some for some in batches if some in last] == last[max(0, done - 1) // 4 :]


def test_a_run_is_not_gone_on_with_by_other_means(batch, model_file, tmp_path):
    out, images = tmp_path / "s.csv", sorted(batch.iterdir())
    begun, fitted = ("score", "--zero-shot", "--caption", CAPTION, "--out", out), ("score", "--model", model_file, "--out", out)
    assert cmg_here(*begun, *images[:8]).returncode == 0
    wrong(cmg_here(*fitted, "--resume", *images), "was scored by --zero-shot", "another --out")
    wrong(cmg_here(*begun, "-q", "--resume", *images), "in the file and", "another --out")  # compared with other images
    out.unlink()
    assert cmg_here(*fitted, *images[:8]).returncode == 0
    wrong(cmg_here(*begun, "--resume", *images), "was judged by a model", "another --out")


def test_ctrl_c_says_what_there_is_and_how_to_go_on(batch, tmp_path, monkeypatch):
    rows = unfitted._rows

    def broken_off(*given):
        yield from islice(rows(*given), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(unfitted, "_rows", broken_off)
    out = tmp_path / "s.csv"
    ran = cmg_here("score", "--zero-shot", "--caption", CAPTION, "--out", out, batch)
    assert ran.returncode == 130
    assert ran.err.endswith(f"cmg: {out} has a row of each image that was done; --resume goes on after them\ncmg: interrupted\n")
    assert len(table(out.read_text())) == 3


def test_an_unreadable_image_has_a_row(batch, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    ran = cmg_here("score", "--zero-shot", "--caption", CAPTION, batch / "0.png", tmp_path / "bad.png", batch / "1.png")
    assert ran.returncode == 3 and "1 input could not be scored" in ran.err and "can be told from 3 images" in ran.err
    assert [bool(row["error"]) for row in table(ran.out)] == [False, True, False]


def test_a_single_image_is_scored_by_its_caption_and_the_head(batch):
    (row,) = table(cmg_here("score", "--zero-shot", "--caption", CAPTION, batch / "0.png").out)
    assert row["score"] and row["patch_score"] == "" and row["head_score"]


def test_a_caption_file_serves_and_what_it_does_not_name_is_said(batch, tmp_path):
    (tmp_path / "c.csv").write_text("file_name,text\n" + "".join(f"{i}.png,a photo of a {'steel nut' if i % 2 else 'brass gear'}\n" for i in range(9)))
    ran = cmg_here("score", "--zero-shot", "--captions", tmp_path / "c.csv", "--images", batch, batch)
    rows = table(ran.out)
    assert ran.returncode == 3 and "no caption" in rows[9]["error"] and {row["caption"] for row in rows[:9]} == {CAPTION, "a photo of a brass gear"}


def test_the_sample_has_a_bound(batch):
    paths = sorted(batch.iterdir())
    scorer = zero_shot(paths, caption=CAPTION, device="cpu", references=4)
    assert len(scorer.references[CAPTION].names) == 4
    assert all(np.isfinite(inspection.row.score) for inspection in scorer.inspect(paths))


@pytest.mark.parametrize(("captions", "held"), [(10, 0), (5, 4), (1, 4)])
def test_the_bound_holds_for_many_captions_too(batch, captions, held):
    """An image with a caption of its own has nothing to be compared with, so nothing is held of it."""
    paths = sorted(batch.iterdir())
    scorer = zero_shot(paths, {path.resolve(): f"a photo of part {i % captions}" for i, path in enumerate(paths)}, device="cpu", references=4)
    assert sum(len(found.names) for found in scorer.references.values()) == held
    rows = [inspection.row for inspection in scorer.inspect(paths)]
    assert all(np.isfinite(row.score) for row in rows)
    assert all((row.patch_score is None) is (captions == 10) for row in rows if held == 0 or captions == 1)
    assert scorer.blend.location[0] != 0  # the parts are standardised, whatever is held


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--zero-shot", "--caption", CAPTION, "--model", "m.cmg"], ["give one of the two"]),
        ([], ["--model FILE", "--zero-shot"]),
        (["--zero-shot"], ["--caption TEXT"]),
        (["--zero-shot", "--caption", "  "], ["empty"]),
        (["--zero-shot", "--caption", CAPTION, "--fail-on-anomaly"], ["--fail-on-anomaly", "cmg fit"]),
        (["--zero-shot", "--caption", CAPTION, "--max-anomalies", "2%"], ["--max-anomalies", "cmg fit"]),
        (["--zero-shot", "--caption", CAPTION, "--watch-drift"], ["--watch-drift", "cmg fit"]),
        (["--zero-shot", "--caption", CAPTION, "--junit", "j.xml"], ["--junit", "cmg fit"]),
        (["--zero-shot", "--caption", CAPTION, "--explain", "why"], ["--explain", "cmg fit"]),
        (["--zero-shot", "--caption", CAPTION, "--defects", "names.txt"], ["--defects", "cmg fit"]),
        (["--zero-shot", "--caption", CAPTION, "--engine", "ray"], ["--engine ray", "cmg fit"]),
        (["--model", "m.cmg", "--caption", CAPTION], ["--caption is for --zero-shot"]),
        (["--model", "m.cmg", "--encoder", "builtin"], ["--encoder is for --zero-shot"]),
        (["--zero-shot", "--caption", CAPTION, "--encoder", "nothing"], ["encoder nothing"]),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, words, batch):
    wrong(cmg_here("score", *arguments, batch), *words)
