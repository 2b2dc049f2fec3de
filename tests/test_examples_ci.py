"""The jobs of examples/ci are YAML, run cmg as it is today, and fail by its gates alone."""

import os
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from shell import cmg_here

FOLDER = Path(__file__).parents[1] / "examples" / "ci"
GATES = {"--fail-on-anomaly", "--max-anomalies", "--min-auroc", "--max-false-alarm", "--max-miss"}


def scripts() -> list[tuple[str, str]]:
    """File and command of each `cmg` line of the jobs."""
    github = yaml.safe_load((FOLDER / "github-actions.yml").read_text(encoding="utf-8"))
    gitlab = yaml.safe_load((FOLDER / "gitlab-ci.yml").read_text(encoding="utf-8"))
    lines = [("github", step["run"]) for job in github["jobs"].values() for step in job["steps"] if "run" in step]
    lines += [("gitlab", line) for job in gitlab.values() for line in (job.get("script", ()) if isinstance(job, dict) else ())]
    return [(system, line) for system, line in lines if line.startswith("cmg ")]


@pytest.fixture(scope="module")
def repository(small_line, model_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(small_line, folder / "line")
    shutil.copy(model_file, folder / "model.cmg")
    return folder


def test_the_jobs_show_every_gate():
    shown = {word for _, line in scripts() for word in shlex.split(line)}
    assert shown >= GATES


@pytest.mark.parametrize(("system", "line"), scripts())
def test_a_job_runs_and_leaves_what_it_uploads(system, line, repository, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "step.md")
    words = [os.path.expandvars(word) for word in shlex.split(line)][1:]
    run = cmg_here(*words)
    assert run.returncode in (0, 1)
    assert (run.returncode == 1) == ("gate failed" in run.err)
    for option in ("--out", "--junit", "--summary", "--report", "--json", "--maps"):
        if option in words:
            assert Path(words[words.index(option) + 1]).exists(), option
