"""Files to write: checked before any work, never what the command reads, with any name, and of use after Ctrl-C."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from shell import cmg, cmg_here, table, wrong

from cmgcli.files import write_whole
from cmgcli.rows import read_scores


@pytest.fixture
def place(small_line, model_file, tmp_path, monkeypatch) -> Path:
    """A working directory with line/, captions.csv, model.cmg and scores.csv."""
    shutil.copytree(small_line, tmp_path / "line")
    shutil.copy(small_line / "metadata.csv", tmp_path / "captions.csv")
    shutil.copy(model_file, tmp_path / "model.cmg")
    (tmp_path / "scores.csv").write_text("file\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


PLAIN = "score --model model.cmg line/images/test_0000.png"
SCORE = f"{PLAIN} --captions captions.csv"
EVAL = "eval --labels captions.csv"


@pytest.mark.parametrize(
    ("command", "option", "path"),
    [
        (SCORE, "--out", "model.cmg"),
        (SCORE, "--out", "line/../captions.csv"),
        (SCORE, "--junit", "line/images/test_0000.png"),
        (SCORE, "--summary", "model.cmg"),
        (f"{EVAL} --model model.cmg --images line", "--json", "model.cmg"),
        (f"{EVAL} --scores scores.csv", "--report", "scores.csv"),
        (f"{EVAL} --scores scores.csv", "--json", "captions.csv"),
        ("fit --images line --captions captions.csv", "--out", "captions.csv"),
        ("fit --images line --captions captions.csv", "--out", "line/images/train_0000.png"),
        (f"{EVAL} --model model.cmg --images line", "--report", "line/images/../images/train_0000.png"),
        ("mask --images line --captions captions.csv --out masks", "--contact-sheet", "line/images/train_0000.png"),
        ("mask --images line --captions captions.csv --out masks", "--contact-sheet", "captions.csv"),
    ],
)
def test_what_is_read_is_not_overwritten(place, command, option, path):
    before = Path(path).read_bytes()
    wrong(cmg_here(*command.split(), option, path), f"cannot write {path}", "it would be lost", option)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize(
    ("command", "one", "other"),
    [
        (SCORE, "--out", "--junit"),
        (SCORE, "--out", "--summary"),
        (SCORE, "--junit", "--summary"),
        (f"{EVAL} --scores scores.csv", "--json", "--report"),
    ],
)
def test_two_options_do_not_write_one_file(place, command, one, other):
    wrong(cmg_here(*command.split(), one, "new", other, "line/../new"), f"{one} writes it too", f"choose another {other}")
    assert not (place / "new").exists()


def test_a_file_has_a_name_that_says_what_it_is(place):
    wrong(cmg_here(*PLAIN.split(), "--out", "-"), "--out", "standard input")
    wrong(cmg_here(*EVAL.split(), "--scores", "scores.csv", "--json", "-"), "--json", "standard input")
    wrong(cmg_here("mask", "--images", "line", "--captions", "captions.csv", "--out", "masks", "--contact-sheet", "sheet.jpg"), "--contact-sheet", ".png")


def test_a_contact_sheet_does_not_lie_among_the_images_nor_on_the_summary(place):
    masks = "mask", "--images", "line", "--captions", "captions.csv", "--out", "masks", "--contact-sheet"
    wrong(cmg_here(*masks, "line/sheet.png"), "it lies in line", "the next run would read it")
    wrong(cmg_here(*masks, "masks/summary.csv"), "--out writes it too")


@pytest.mark.parametrize(
    ("command", "folder"),
    [("score --model model.cmg line/images --maps", "line/images"), ("mask --images line --caption x --out", "line")],
)
def test_pictures_do_not_go_where_images_are_looked_for(place, command, folder):
    for inside in (folder, f"{folder}/pictures"):
        wrong(cmg_here(*command.split(), inside), f"it lies in {folder}", f"choose another {command.split()[-1]}")
    assert not (place / folder / "pictures").exists()


@pytest.mark.parametrize(
    ("kind", "option"),
    [("--model model.cmg", "--maps"), ("--model model.cmg", "--explain"), ("--zero-shot --caption x", "--maps")],
)
def test_pictures_do_not_go_where_a_listed_image_lies(place, kind, option):
    before = sorted(Path("line/images").iterdir())
    wrong(cmg_here("score", *kind.split(), before[0], option, "line/images"), f"{before[0]} lies there", f"choose another {option}")
    run = cmg("score", *kind.split(), "-", option, "line/images", stdin=f"{before[0]}\n")
    assert run.returncode == 2 and f"{before[0]} lies there" in run.err
    assert sorted(Path("line/images").iterdir()) == before


@pytest.mark.parametrize(
    ("command", "option"),
    [(SCORE, "--out"), (SCORE, "--junit"), (f"{EVAL} --scores scores.csv", "--json"), (f"{EVAL} --scores scores.csv", "--report"), ("fit --images line", "--out")],
)
def test_a_file_that_cannot_be_written_is_said_before_any_work(place, command, option, monkeypatch):
    wrong(cmg_here(*command.split(), option, "none/x"), "the directory none does not exist", option)
    wrong(cmg_here(*command.split(), option, "line"), "it is a directory", f"{option} line/FILE")
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    wrong(cmg_here(*command.split(), option, "new"), "no permission", option)


def test_a_directory_that_cannot_be_written_into_is_said_before_any_work(place, monkeypatch):
    (place / "maps").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    wrong(cmg_here(*PLAIN.split(), "--maps", "maps"), "cannot write into maps", "no permission", "--maps")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission(place):
    (place / "locked").mkdir(mode=0o500)
    wrong(cmg_here(*SCORE.split(), "--out", "locked/s.csv"), "no permission")
    wrong(cmg_here(*PLAIN.split(), "--maps", "locked/maps"), "Permission denied", "--maps")
    wrong(cmg_here(*PLAIN.split(), "--maps", "locked"), "no permission", "--maps")


def test_an_empty_pipe_is_said(place):
    run = cmg("score", "--model", "model.cmg", "-", stdin="\n\n")
    assert run.returncode == 0 and run.out.count("\n") == 1
    assert run.err == "cmg: no path came from standard input; expected one a line\n"


def in_shell(line: str) -> subprocess.CompletedProcess:
    """A line of bash in which $cmg is the program, with the buffers that Python has in a shell."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"cmg": f"{sys.executable} -m cmgcli"}
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def scored(place) -> Path:
    """The same, where scores.csv has the scores of the test images."""
    assert cmg_here("score", "--model", "model.cmg", "--out", "scores.csv", *sorted(Path("line/images").glob("test*"))).returncode == 0
    return place


@pytest.mark.parametrize("command", ["--version", PLAIN, "fit --images line --caption x --print-config", f"{EVAL} --scores scores.csv --images line --allow-missing"])
@pytest.mark.parametrize(("end", "words"), [(">/dev/full", "No space left"), (">&-", "standard output is closed")])
def test_a_standard_output_that_takes_nothing_is_one_line_and_exit_2(scored, command, end, words):
    run = in_shell(f"$cmg {command} {end}")
    lines = [line for line in run.stderr.splitlines() if "left out" not in line]
    assert run.returncode == 2 and len(lines) == 1 and lines[0].startswith("cmg: ") and words in lines[0], run.stderr


def test_a_reader_that_has_enough_changes_no_verdict(scored):
    """What rich does by itself is exit 1, which says that a gate failed, with no figures written."""
    for gate, code in (("--max-miss 1", 0), ("--min-auroc 1", 1)):
        run = in_shell(f"$cmg {EVAL} --scores scores.csv --images line --json e.json {gate} | head -n 1")
        assert run.returncode == code, run.stderr
        assert json.loads(Path("e.json").read_text())["images"] == 12
        Path("e.json").unlink()


def test_names_that_are_long_or_not_unicode_go_all_the_way(small_line, model_file, tmp_path):
    """A scores file, maps, JUnit, summary, and a report from them, of images whose names fill the 255 bytes a file system gives."""
    images = sorted((small_line / "images").glob("test*"))
    parts = tmp_path / "mvtec"
    names = [b"caf\xe9.png", b"x" * 251 + b".png", "ä".encode() * 125 + b".png", b"\xff" * 250 + b".png", b"a\nb,\"c\".png", b"-q.png"]
    for folder in ("train/good", "test/good", "test/scratch"):
        (parts / folder).mkdir(parents=True)
        for name, image in zip(names, images):
            shutil.copy(image, os.path.join(os.fsencode(parts / folder), name))
    out, maps, junit, summary, report = (tmp_path / name for name in ("s.csv", "maps", "j.xml", "s.md", "r.html"))
    run = cmg_here("score", "--model", model_file, "--out", out, "--maps", maps, "--junit", junit, "--summary", summary, parts / "test")
    assert run.returncode == 0, run.err
    assert sorted(os.fsencode(Path(row.file).name) for row in read_scores(out)) == sorted(names * 2)
    assert len(list(maps.iterdir())) == 2 * 2 * len(names)
    suite = ElementTree.parse(junit).getroot()[0]
    assert len(suite) == 2 * len(names) and {case.get("name") for case in suite} >= {r"caf\xe9.png", "x" * 251 + ".png"}
    assert r"\\x" in summary.read_text(encoding="utf-8")  # of the names that are no Unicode at least two are among the ten that it shows
    run = cmg_here("eval", "--scores", out, "--images", parts, "--report", report)
    assert run.returncode == 0, run.err
    assert r"caf\xe9.png" in report.read_text(encoding="utf-8")


def test_ctrl_c_leaves_whole_masks_and_says_so(small_line, tmp_path, monkeypatch):
    from cmgcli import masking, pictures

    written = []

    def write_or_interrupt(*arguments, **options):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(pictures.write_mask_pictures(*arguments, **options))

    monkeypatch.setattr(masking, "write_mask_pictures", write_or_interrupt)
    run = cmg_here("mask", "--images", small_line / "images", "--caption", "a part", "--out", tmp_path / "masks")
    assert run.returncode == 130
    assert run.err == f"cmg: {tmp_path / 'masks' / 'summary.csv'} has a row of each image that was done\ncmg: interrupted\n"
    assert len(table((tmp_path / "masks" / "summary.csv").read_text())) == 3


def test_ctrl_c_in_an_evaluation_says_how_to_do_it_in_steps(small_line, model_file, tmp_path, monkeypatch):
    from cmgcli import audit

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "audit_model", interrupt)
    run = cmg_here("eval", "--model", model_file, "--images", small_line, "--report", tmp_path / "r.html")
    assert run.returncode == 130 and "cmg eval --scores" in run.err and not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_to_an_input_is_no_output(place, link):
    image = place / "line/images/test_0000.png"
    before = image.read_bytes()
    link(image, "rows.csv")
    wrong(cmg_here(*PLAIN.split(), "--out", "rows.csv"), "cannot write rows.csv", "this command reads it")
    assert image.read_bytes() == before


def test_a_file_is_written_whole_through_a_link_and_keeps_its_rights(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x").write_bytes(b"old")
    (tmp_path / "real/x").chmod(0o600)
    (tmp_path / "link").symlink_to("real/x")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/x").read_bytes() == b"new"
    assert (tmp_path / "real/x").stat().st_mode & 0o777 == 0o600
    assert len(list((tmp_path / "real").iterdir())) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_figures_that_cannot_be_written_are_one_line(place):
    command = f"{EVAL} --model model.cmg --images line --json /dev/full"
    run = cmg(*command.split())
    assert run.returncode == 2 and "evaluation" in run.out
    assert run.err == "cmg: /dev/full cannot be written (No space left on device); is the disk full?\n"


def test_a_fit_clears_away_the_state_of_its_trainings_and_nothing_else(place):
    for name in ("m.cmg.training.log", "m.cmg.training", "m.cmg.training.space0"):
        Path(name).write_text("mine")
    Path("m.cmg.training.space1").mkdir()
    assert cmg_here("fit", "--no-adapt", "--images", "line", "--captions", "line/metadata.csv", "--out", "m.cmg").returncode == 0
    assert sorted(path.name for path in place.glob("m.cmg.*")) == ["m.cmg.training.log", "m.cmg.training.space1"]


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_standard_output_takes_a_file_too(place, option):
    command = f'"{sys.executable}" -m cmgcli {EVAL} --model model.cmg --images line {option} /dev/stdout'
    piped = subprocess.run(["bash", "-o", "pipefail", "-c", f"{command} | cat"], capture_output=True, text=True, check=False)
    assert piped.returncode == 0, piped.stderr
    assert "image AUROC" in piped.stdout and ('"image_auroc"' if option == "--json" else "</html>") in piped.stdout
    subprocess.run(["bash", "-c", f"{command} > all.txt"], capture_output=True, check=True)
    assert Path("all.txt").read_text() == piped.stdout or option == "--report"  # which has the time of day
    assert "image AUROC" in Path("all.txt").read_text()
