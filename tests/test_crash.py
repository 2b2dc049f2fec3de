"""Runs that are killed, interrupted or out of space leave no half-written file, and --resume goes on where they ended.

CMG_THOROUGH=1 kills 50 times instead of 8.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from shell import heed_interrupts
from typer.testing import CliRunner

from cmgcli.cli import app
from cmgcli.images import read_image, write_png
from cmgcli.rows import read_scores

KILLS = 50 if os.environ.get("CMG_THOROUGH") else 8
IMAGES = 150
ALONE = os.environ | {"OMP_NUM_THREADS": "1"}  # a fork keeps one thread of its parent, so there must be no other


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A folder of many tiny images, some with names that CSV must quote."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        name = f'{i}, "odd"\nname.png' if i % 10 == 5 else f"{i}.png"
        write_png(folder / name, np.kron(rng.integers(0, 256, (4, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8)))
    return folder


@pytest.fixture(scope="module")
def quick_model(small_line, tiny_folder, tmp_path_factory) -> Path:
    """A model that scores an image in a few milliseconds: this is about files."""
    import cmgcli

    path = tmp_path_factory.mktemp("quick") / "model.cmg"
    options = {"encoder": f"local-dir:{tiny_folder}", "cmer": False, "adapt": False, "device": "cpu"}
    cmgcli.fit(small_line, small_line / "metadata.csv", **options).save(path)
    return path


def score(model: Path, folder: Path, out: Path, *options: str) -> list[str]:
    return ["score", "--model", str(model), "--batch-size", "4", "--device", "cpu", "--out", str(out), *options, str(folder)]


def cmg(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "cmgcli", *arguments], stderr=subprocess.PIPE, env=ALONE, preexec_fn=heed_interrupts, **options)


def wait_for_size(path: Path, size: int) -> None:
    deadline = time.monotonic() + 120
    while not (path.exists() and path.stat().st_size >= size):
        assert time.monotonic() < deadline, f"{path} does not grow to {size} bytes"
        time.sleep(0.001)


@pytest.mark.parametrize("style", ["csv", "jsonl"])
def test_a_killed_run_resumes_to_the_same_bytes(quick_model, many, tmp_path, style):
    """The processes are forked from one that has everything imported; see `kill_and_resume`. With JSON Lines also the maps are compared."""
    command = [sys.executable, __file__, str(quick_model), str(many), str(tmp_path), str(KILLS), style]
    run = subprocess.run(command, capture_output=True, text=True, env=ALONE, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1].startswith(f"{KILLS} kills, ")


def test_an_interrupted_run_says_so_and_resumes(quick_model, many, tmp_path):
    out = tmp_path / "out.csv"
    run = cmg(*score(quick_model, many, out))
    wait_for_size(out, 3000)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 130
    rows = read_scores(out)
    assert err.decode().splitlines() == [f"cmg: {out} has {len(rows)} rows; --resume goes on from there", "cmg: interrupted"]
    assert 0 < len(rows) < IMAGES
    again = cmg(*score(quick_model, many, out, "--resume"))
    assert again.wait() == 0, again.communicate()
    assert read_scores(out)[: len(rows)] == rows and len(read_scores(out)) == IMAGES


@contextmanager
def little_space(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: writing fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("fault", "said"), [("KeyError('x')", "broke down, see above"), ("MemoryError('no room')", "out of memory (no room)")])
def test_a_bug_is_no_failed_gate(quick_model, many, fault, said):
    """Python exits with 1 on an unexpected exception, which a pipeline would take for a bad batch."""
    program = f"""
from cmgcli import __main__, rows

def broken(*_, **__):
    raise {fault}

rows._csv_line = broken
__main__.run("cmg")
"""
    command = [sys.executable, "-c", program, "score", "--model", str(quick_model), "--device", "cpu", "--fail-on-anomaly", str(many)]
    run = subprocess.run(command, capture_output=True, text=True, env=ALONE, check=False)
    assert run.returncode == 70, run.stderr
    assert run.stderr.splitlines()[-1].startswith(f"cmg: {said}")
    assert ("Traceback" in run.stderr) == ("KeyError" in fault)


def refused(arguments: list[object], *words: str) -> None:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("cmg: ") and all(word in line for word in words), result.stderr


def test_a_full_disk_ends_scoring_with_one_line_and_resume_goes_on(quick_model, many, tmp_path):
    refused(score(quick_model, many, Path("/dev/full")), "No space left", "disk full")
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    assert CliRunner().invoke(app, score(quick_model, many, whole)).exit_code == 0
    for size in (50, 3000):  # within the header; within a row
        with little_space(size):
            refused(score(quick_model, many, out), "cannot be written")
        assert CliRunner().invoke(app, score(quick_model, many, out, "--resume")).exit_code == 0
        assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("command", ["demo", "fit", "mask", "maps"])
def test_a_full_disk_leaves_no_half_written_file(small_line, quick_model, many, tmp_path, command):
    out = tmp_path / "out"
    arguments = {
        "demo": ["demo", out, "--train", 1, "--test", 2, "--size", 64],
        "fit": ["fit", "--images", small_line, "--captions", small_line / "metadata.csv", "--no-adapt", "--no-cmer", "--out", out],
        "mask": ["mask", "--images", small_line / "images", "--caption", "a part", "--out", out],
        "maps": [*score(quick_model, small_line, tmp_path / "scores.csv"), "--maps", out],
    }[command]
    with little_space(1000):
        refused(arguments, "written")
    left = [path for path in (tmp_path, *out.rglob("*")) if path.is_file()]
    for path in left:  # complete ones may stay, a part of one may not
        if path.suffix == ".csv":
            assert path.read_bytes()[-1:] in (b"", b"\n")
        else:
            read_image(path)
    assert out.is_dir() or not out.exists()


def kill_and_resume(model: Path, many: Path, work: Path, kills: int, style: str) -> str:
    """Kill scoring `kills` times, each time resume, and compare every file that gets finished with an undisturbed one."""
    whole, out = work / "whole", work / "out"

    def run(to: Path, *options: str, moment: float | tuple[Path, int] | None = None) -> int:
        pictures = ("--maps", str(to.with_suffix(".maps"))) if style == "jsonl" else ()
        return in_child(score(model, many, to, "--format", style, *pictures, *options), moment)

    began = time.monotonic()
    assert run(whole) == 0
    span = time.monotonic() - began
    expected = whole.read_bytes()
    rng, killed, finished, torn = random.Random(0), 0, 0, 0
    while killed < kills or finished == 0:
        again = killed < kills
        size = out.stat().st_size if out.exists() else 0
        moment = None
        if again and rng.random() < 0.5:
            moment = rng.uniform(0, span / 2)
        elif again:  # just as rows are written
            moment = out, min(size + rng.randrange(1, len(expected) // 4), len(expected) - 1)
        code = run(out, "--resume", moment=moment)
        if code == 0:
            assert out.read_bytes() == expected, f"a resumed run gave {first_difference(out.read_bytes(), expected)}"
            assert pictures_of(out) == pictures_of(whole), "a resumed run gave other maps"
            finished += 1
            out.unlink()
            shutil.rmtree(out.with_suffix(".maps"), ignore_errors=True)
            continue
        assert code == -signal.SIGKILL, f"the run ended with {code}"
        killed += 1
        if out.exists() and rng.random() < 0.5:  # what a machine that lost its power leaves of the last rows
            os.truncate(out, max(0, out.stat().st_size - rng.randrange(1, 200)))
            torn += 1
    return f"{killed} kills, {torn} torn files, {finished} finished files equal an undisturbed run"


def first_difference(content: bytes, expected: bytes) -> str:
    """The first line that differs, and what was expected in its place."""
    pairs = zip(content.splitlines(), expected.splitlines())
    return next((f"{line!r} in place of {right!r}" for line, right in pairs if line != right), f"{len(content)} bytes in place of {len(expected)}")


def pictures_of(out: Path) -> dict[str, bytes]:
    """The maps of a run; what a killed one left unfinished has a hidden name and does not count."""
    return {path.name: path.read_bytes() for path in out.with_suffix(".maps").glob("[!.]*")}


def in_child(arguments: list[str], moment: float | tuple[Path, int] | None) -> int:
    """Run a command of the app in a fork; kill it after so many seconds, or when a file has so many bytes. Its exit code."""
    child = os.fork()
    if child == 0:
        run_app(arguments)
    deadline = time.monotonic() + (moment if isinstance(moment, float) else 600)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        grown = isinstance(moment, tuple) and moment[0].exists() and moment[0].stat().st_size >= moment[1]
        if grown or time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.0005)


def run_app(arguments: list[str]) -> None:
    code = 70
    try:
        app(arguments)
    except SystemExit as done:
        code = done.code or 0
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import cmgcli.model

    cmgcli.model.Model.load(sys.argv[1], device="cpu")  # imports all that the children would have to import again
    print(kill_and_resume(*map(Path, sys.argv[1:4]), int(sys.argv[4]), sys.argv[5]))
