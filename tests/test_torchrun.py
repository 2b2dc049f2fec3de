"""Two processes that torchrun starts fit the model of one, speak with one voice, and end together."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from shell import cmg_here

from cmgcli.line import write_line


def torchrun(*command: object) -> tuple[int, list[str], str]:
    """Run a command as two processes: torchrun's exit code, what cmg said, and all that came on standard error."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run([*launcher, *map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    return run.returncode, [line for line in run.stderr.splitlines() if line.startswith("cmg: ")], run.stderr


@pytest.fixture
def one_thread():
    """As torchrun has it for each of its processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@pytest.mark.usefixtures("one_thread")
def test_two_processes_fit_the_model_of_one(tmp_path):
    """With tiles, a trained projection and a head; so few images leave none to weigh the parts by, and the mirrored ones are looked at too."""
    metadata = write_line(tmp_path / "line", train=8, test=2, size=64)
    options = ["--images", metadata.parent, "--captions", metadata, "--false-alarm", "0.1", "--adapt-steps", "3", "--device", "cpu"]
    options += ["--tile", "48", "--projection", "linear", "--epochs", "2"]
    alone = cmg_here("fit", *options, "--out", tmp_path / "one.cmg")
    code, said, err = torchrun("-m", "cmgcli", "fit", *options, "--out", tmp_path / "two.cmg")
    assert code == 0, err
    assert said == alone.err.replace("one.cmg", "two.cmg").splitlines()
    one, two = tensors_of(tmp_path / "one.cmg"), tensors_of(tmp_path / "two.cmg")
    assert one.keys() == two.keys() and any(name.startswith("head.") for name in one)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-5, msg=lambda words, name=name: f"{name}: {words}")
    assert {path.name for path in tmp_path.iterdir()} == {"line", "one.cmg", "two.cmg"}


def test_a_broken_image_ends_both_by_name(small_line, tmp_path):
    line = tmp_path / "line"
    shutil.copytree(small_line, line)
    broken = sorted((line / "images").glob("train*"))[20]
    broken.write_bytes(broken.read_bytes()[:500])
    options = ["--images", line, "--captions", line / "metadata.csv", "--batch-size", "4", "--no-adapt"]
    code, said, err = torchrun("-m", "cmgcli", "fit", *options, "--out", tmp_path / "m.cmg")
    assert code == 1 and "exitcode  : 2" in err, err
    assert len(said) == 1 and str(broken) in said[0] and "truncated" in said[0]
    assert {path.name for path in tmp_path.iterdir()} == {"line"}


def test_other_commands_are_not_shared():
    code, said, err = torchrun("--no-python", sys.executable, "-m", "cmgcli", "score", "--model", "m.cmg", "images")
    assert code == 1 and "exitcode  : 2" in err, err
    assert len(said) == 1 and "torchrun shares cmg fit" in said[0] and "cmg score" in said[0]
