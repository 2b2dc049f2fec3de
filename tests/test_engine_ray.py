"""Ray's rows are the local engine's to the byte, also when an actor is killed and an image is broken."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from shell import cmg, cmg_here, wrong

import cmgcli


def test_what_ray_cannot_do_is_said(model_file, small_line, tmp_path, monkeypatch):
    image = sorted((small_line / "images").glob("test*"))[0]
    command = ("score", "--model", model_file, image)
    wrong(cmg_here(*command, "--engine", "ray", "--maps", tmp_path / "maps"), "--engine ray", "--maps")
    wrong(cmg_here(*command, "--engine", "ray", "--explain", tmp_path / "why"), "--engine ray", "--explain")
    wrong(cmg_here(*command, "--address", "auto"), "--address", "--engine ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "scores.csv").write_text("from another run", encoding="utf-8")
    run = cmg_here(*command, "--engine", "ray", "--out", tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_text(encoding="utf-8") == "from another run"
    assert run.returncode == 2 and run.err == "cmg: --engine ray needs ray, which is not installed: pip install 'cmgcli[ray]'\n"


@pytest.fixture(scope="module")
def inputs(small_line, tmp_path_factory) -> tuple[Path, Path]:
    """A model that scores fast, and a folder of 120 images, one of them broken."""
    pytest.importorskip("ray.data", reason="the extra cmgcli[ray] is not installed")
    folder = tmp_path_factory.mktemp("ray")
    cmgcli.fit(small_line, small_line / "metadata.csv", adapt=False, device="cpu").save(folder / "m.cmg")
    (folder / "images").mkdir()
    sources = sorted((small_line / "images").glob("*.png"))
    for i in range(120):
        shutil.copy(sources[i % len(sources)], folder / "images" / f"{i}.png")
    (folder / "images" / "7.png").write_bytes(b"no image")
    return folder / "m.cmg", folder / "images"


def children(parent: int) -> list[int]:
    """The numbers of all processes below one, that run now."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    below, new = set(), {parent}
    while new:
        below |= new
        new = {pid for pid, above in parents.items() if above in below} - below
    return sorted(below - {parent})


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_rows_are_equal_to_the_byte_and_an_actor_may_die(inputs, tmp_path):
    model, images = inputs
    command = ["score", "--model", str(model), "--batch-size", "4", "--out"]
    assert cmg(*command, tmp_path / "local.csv", images).returncode == 3
    killed = []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([sys.executable, "-m", "cmgcli", *command, str(tmp_path / "ray.csv"), "--engine", "ray", str(images)], stderr=subprocess.PIPE, env=environment)

    def kill_one() -> None:
        while run.poll() is None and not killed:
            written = tmp_path / "ray.csv"
            if written.exists() and written.read_text().count("\n") > 4:
                actors = [pid for pid in children(run.pid) if "ray::MapWorker" in name_of(pid) or "ray::Scorer" in name_of(pid) or "MapBatches" in name_of(pid)]
                if actors:
                    os.kill(actors[0], signal.SIGKILL)
                    killed.append(actors[0])
            time.sleep(0.02)

    watcher = threading.Thread(target=kill_one)
    watcher.start()
    _, words = run.communicate(timeout=400)
    watcher.join()
    assert run.returncode == 3, words.decode()
    assert words.decode().splitlines()[-1] == "cmg: 1 input could not be read; see the column error"
    assert killed, "the run was over before an actor could be killed"
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()


def test_a_cluster_by_its_address(inputs, tmp_path, monkeypatch):
    model, images = inputs
    tool = Path(sys.executable).with_name("ray")
    port = 20000 + os.getpid() % 20000
    start = [tool, "start", "--head", "--num-cpus", "1", "--include-dashboard", "false", "--port", str(port), "--temp-dir", "/tmp/" + tmp_path.name + str(port)]
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # of this cluster alone
    head = subprocess.Popen([*map(str, start), "--block"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        few = sorted(images.iterdir())[:6]
        deadline = time.monotonic() + 200
        while True:
            run = cmg("score", "--model", model, "--false-alarm", 0.3, "--engine", "ray", "--address", f"127.0.0.1:{port}", *few)
            if run.returncode in (0, 3) or time.monotonic() > deadline:
                break
            time.sleep(2)
        assert run.returncode in (0, 3), run.err
        assert run.out == cmg("score", "--model", model, "--false-alarm", 0.3, *few).out
    finally:
        for pid in children(head.pid):
            os.kill(pid, signal.SIGTERM)
        head.terminate()
        head.wait(60)
