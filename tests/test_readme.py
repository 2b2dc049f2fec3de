"""The README's shell lines and its Python run as they stand, and the two set-up scripts are executable."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_set_up_commands_are_scripts_of_the_project():
    commands = [line.split("#")[0].strip() for line in blocks("sh")[0].splitlines()]
    assert commands == ["examples/quickstart.sh", "examples/test.sh"]
    for command in commands:
        assert os.access(ROOT / command, os.X_OK)


def test_every_command_line_and_the_python_run(tmp_path):
    """In the README's order, on a line and with a head that are smaller than the defaults."""
    tool = tmp_path / "bin"
    tool.mkdir()
    small = {"demo": "--train 44 --test 12 --size 64", "fit": "--adapt-steps 2"}
    extra = "\n".join(f'[ "$1" = {command} ] && set -- "$@" {options}' for command, options in small.items())
    (tool / "cmg").write_text(f'#!/usr/bin/env bash\n{extra}\nexec "{sys.executable}" -m cmgcli "$@"\n')
    (tool / "cmg").chmod(0o755)
    environment = os.environ | {"PATH": f"{tool}{os.pathsep}{os.environ['PATH']}"}
    lines = [line for block in blocks("sh")[1:] for line in block.strip().splitlines()]
    assert len(lines) >= 8
    for line in lines:
        run = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        gate = any(option in line for option in ("--fail-on-", "--max-", "--min-"))
        assert run.returncode in ((0, 1) if gate else (0,)), f"{line}\n{run.stderr}"
    run = subprocess.run([sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "test_0000.png" in run.stdout


def test_every_command_is_in_the_readme():
    from cmgcli.cli import app

    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"| `{name}` |" in README


def test_every_link_into_the_project_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) >= 4
    for link in links:
        assert (ROOT / link).exists(), link
