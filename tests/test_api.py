"""The Python API and the commands are the same thing: names, defaults, docstrings, types."""

import ast
import inspect
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from typer.models import OptionInfo

import cmgcli
from cmgcli import cli, evaluation, model, pipeline
from cmgcli.errors import SettingsError

PACKAGE = Path(cmgcli.__file__).parent
ASIDE = {"context", "quiet", "verbose"}  # what every command may have
ENGINES = {
    # command: its engine, the options only the command has, the parameters only the engine has
    cli.fit: (pipeline.fit, {"config", "print_config", "out", "resume"}, {"snapshot", "progress"}),
    cli.mask: (pipeline.mask, {"out", "contact_sheet"}, set()),
    cli.evaluate: (
        evaluation.evaluate,
        {"scores", "device", "false_alarm", "min_auroc", "max_false_alarm", "max_miss", "ablate", "adapt_steps", "stress", "stress_images", "defects", "json_file", "report_file"},
        {"exhibits", "phrases", "progress"},
    ),
    cli.score: (
        model.Model.inspect,
        {"model", "zero_shot", "caption", "encoder", "images", "null", "out", "style", "resume", "explain", "explain_all", "defects", "junit", "summary", "fail_on_anomaly", "max_anomalies", "watch_drift", "fail_on_drift", "engine", "address", "device", "false_alarm"},
        {"self", "live"},
    ),
}


@pytest.mark.parametrize("command", ENGINES, ids=lambda command: command.__name__)
def test_options_are_the_parameters_of_the_engine(command):
    engine, only_command, only_engine = ENGINES[command]
    options = set(inspect.signature(command).parameters) - ASIDE
    parameters = set(inspect.signature(engine).parameters)
    assert only_command <= options and only_engine <= parameters
    assert options - only_command == parameters - only_engine


@pytest.mark.parametrize("command", ENGINES, ids=lambda command: command.__name__)
def test_the_help_shows_the_defaults_of_the_engine(command):
    engine, only_command, _ = ENGINES[command]
    parameters = inspect.signature(engine).parameters
    for name, hint in get_type_hints(command, include_extras=True).items():
        if name in only_command | ASIDE | {"return"}:
            continue
        option = next(part for part in get_args(hint)[1:])
        default = parameters[name].default
        if not isinstance(option, OptionInfo) or not isinstance(option.show_default, str) or default is None:
            continue  # what None stands for is told in words
        if isinstance(default, bool):
            assert option.show_default == (name if default else f"no-{name}").replace("_", "-")
        else:
            assert option.show_default == str(default), name


def test_the_three_lines_of_the_docstring(small_line, small_model):
    assert cmgcli.fit is pipeline.fit and cmgcli.mask is pipeline.mask and cmgcli.evaluate is evaluation.evaluate
    assert isinstance(small_model, cmgcli.Model)
    image = sorted((small_line / "images").glob("test*"))[0]
    (row,) = small_model.score([image])
    assert row.file == str(image) and row.score is not None and row.anomalous in (0, 1)


def test_every_public_name_has_a_docstring():
    for name in cmgcli.__all__:
        assert inspect.getdoc(getattr(cmgcli, name)), name


def public_definitions() -> list[tuple[str, str | None]]:
    """Name and docstring of each public function, class and method of the package (nested functions are not public)."""
    found = []
    for path in sorted(PACKAGE.glob("*.py")):
        nodes = [(path.stem, node) for node in ast.parse(path.read_text(encoding="utf-8")).body]
        while nodes:
            where, node = nodes.pop()
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                found.append((f"{where}.{node.name}", ast.get_docstring(node)))
                if isinstance(node, ast.ClassDef):
                    nodes += [(f"{where}.{node.name}", inner) for inner in node.body]
    return found


def test_every_module_and_every_public_function_and_class_has_a_docstring():
    for path in PACKAGE.glob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path.name
    assert [name for name, text in public_definitions() if not text] == []


def test_the_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["cmgcli"]


def test_no_module_is_long():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 375} == {}


@pytest.mark.parametrize(
    ("name", "value"), [("bank_size", 0), ("epochs", 0), ("neighbours", -1), ("neighbours", 1.5), ("adapt_steps", -5), ("batch_size", "4"), ("seed", 2**63)]
)
def test_a_setting_that_is_no_count_is_refused(small_line, name, value):
    with pytest.raises(SettingsError, match=f"{name.replace('_', ' ')}: expected (auto or )?a whole number from"):
        cmgcli.fit(small_line, small_line / "metadata.csv", **{name: value})


def test_captions_are_known_by_any_path_and_from_a_file(small_line, small_model, monkeypatch):
    monkeypatch.chdir(small_line)
    path, caption = "images/test_0000.png", "a photo of a copper flange"
    (expected,) = small_model.score([path], {(small_line / path).resolve(): caption})
    assert expected.caption == caption
    for name in (path, Path(path), small_line / "images/../images/test_0000.png"):
        assert list(small_model.score(path, {name: caption})) == [expected]
    assert [row.caption for row in small_model.score([path], "metadata.csv")] == ["a photo of a brass gear"]
