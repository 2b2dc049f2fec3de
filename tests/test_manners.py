"""Help, suggestions, completion, colours, how much is said, and what the start costs."""

import os
import pty
import re
import subprocess
import sys

import pytest
import typer
from shell import cmg, cmg_here, wrong

from cmgcli.cli import app

COMMANDS = ("demo", "fit", "score", "mask", "export", "eval")
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


def test_help_names_every_command():
    run = cmg("--help")
    assert run.returncode == 0 and run.err == ""
    for command in COMMANDS:
        assert command in run.out


@pytest.mark.parametrize("arguments", [("--help",), ("score", "-h"), ()])
def test_help_ends_quietly_where_nobody_reads_it(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        run = subprocess.run([sys.executable, "-m", "cmgcli", *arguments], stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (run.returncode, run.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_help_that_cannot_be_written_is_one_line():
    with open("/dev/full", "wb") as full:
        run = subprocess.run([sys.executable, "-m", "cmgcli", "--help"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert run.returncode == 2
    assert re.fullmatch(rb"cmg: standard output cannot be written \(.*\); is the disk full\?\n", run.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_parses(command):
    run = cmg_here(command, "-h")
    assert run.returncode == 0
    (example,) = re.findall(r"Example: .*?cmg (.*)", run.out)
    name, *arguments = example.split()
    assert name == command
    typer.main.get_command(app).commands[name].make_context(name, arguments)  # a wrong option raises


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help_and_no_option_stands_in_two_ways(command):
    params = typer.main.get_command(app).commands[command].params
    assert all(param.help for param in params)
    spelled = [name for param in params for name in (*param.opts, *param.secondary_opts)]
    assert len(spelled) == len(set(spelled))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_word(command):
    """Square brackets, which the help takes for markup, would be gone."""
    shown = re.sub(r"[\s│]+", "", cmg_here(command, "--help").out)
    for param in typer.main.get_command(app).commands[command].params:
        assert re.sub(r"\s+", "", param.help) in shown, param.name


def test_options_stand_in_panels():
    panels = {"fit": ("Input", "Output", "Method", "Compute", "Messages"), "score": ("Input", "Output", "Gates", "Compute", "Messages")}
    for command, names in panels.items():
        out = cmg_here(command, "--help").out
        assert [name for name in re.findall(r"╭─ (\w+) ─", out) if name in names] == list(names)


def test_a_near_miss_is_named():
    for arguments, near in ((("scor",), "score"), (("fit", "--capions", "x"), "--captions"), (("score", "--resum", "x"), "--resume")):
        run = cmg_here(*arguments)
        assert run.returncode == 2 and run.out == ""
        assert near in run.err
    wrong(cmg_here("fit"), "--images DIR")


def test_usage_errors_exit_with_2():
    for arguments in (("score",), ("fit", "--imges", "x"), ("fly",), ("score", "--format", "xml", "--model", "m", "x")):
        run = cmg_here(*arguments)
        assert run.returncode == 2 and run.out == "" and run.err


@pytest.mark.parametrize(
    ("encoder", "near"),
    [("ViT-B-61/openai", "ViT-B-16"), ("ViT-B-61", "ViT-B-16"), ("builtn", "builtin"), ("ViT-B-16/laion2b_s34b_b88", "laion2b_s34b_b88k")],
)
def test_a_wrong_encoder_is_named_with_the_nearest(small_line, encoder, near):
    wrong(cmg_here("fit", "--images", small_line, "--caption", "x", "--encoder", encoder), f"did you mean {near}?")


def test_version_names_what_a_result_depends_on():
    run = cmg("--version")
    assert run.returncode == 0
    assert re.fullmatch(r"cmgcli \S+ torch \S+ open_clip_torch \S+ numpy \S+ opencv-python \S+ python 3\.\d+\.\d+\n", run.out)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_and_completes(shell):
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    program = [sys.executable, "-c", "from cmgcli.cli import app; app(prog_name='cmg')"]
    script = subprocess.run([*program, "--show-completion", shell], capture_output=True, text=True, env=environment, check=True)
    assert "_CMG_COMPLETE" in script.stdout
    asked = {"_CMG_COMPLETE": "complete_bash", "COMP_WORDS": "cmg score --max", "COMP_CWORD": "2"}
    answer = subprocess.run(program, capture_output=True, text=True, env=os.environ | asked, check=True)
    assert answer.stdout.split() == ["--max-anomalies"]


def on_a_terminal(*arguments: str, **environment: str) -> bytes:
    """What cmg writes to a terminal of its own."""
    terminal, end = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS")}
    command = [sys.executable, "-m", "cmgcli", *arguments]
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=kept | {"TERM": "xterm-256color"} | environment) as run:
        os.close(end)
        seen = b""
        try:
            while chunk := os.read(terminal, 65536):
                seen += chunk
        except OSError:  # how the other end of a terminal says that it is closed
            pass
    os.close(terminal)
    assert run.returncode in (0, 2)
    return seen


@pytest.mark.parametrize("arguments", [("--help",), ("scor",)])
def test_no_color_is_honoured(arguments):
    assert COLOUR.search(on_a_terminal(*arguments))
    assert not COLOUR.search(on_a_terminal(*arguments, NO_COLOR="1"))


def test_how_much_is_said(small_line, model_file, tmp_path):
    image = sorted((small_line / "images").glob("test*"))[0]
    plain = cmg_here("score", "--model", model_file, image)
    assert plain.err == ""
    for arguments in (("-v", "score"), ("score", "-v"), ("score", "--verbose")):
        told = cmg_here(*arguments, "--model", model_file, image)
        assert told.out == plain.out
        assert "cmg: encoder builtin on cpu\n" in told.err
        assert re.search(r"cmg: scoring: \d+\.\d\d s\n", told.err)
    (tmp_path / "demo").mkdir()
    for number, arguments in enumerate((("-q", "demo"), ("demo", "-q"))):
        quiet = cmg_here(*arguments, tmp_path / f"line{number}", "--train", 1, "--test", 2, "--size", 32)
        assert (quiet.returncode, quiet.out, quiet.err) == (0, "", "")
    failed = cmg_here("-q", "score", "--model", model_file, image, tmp_path / "none.png")
    assert failed.err == "cmg: 1 input could not be read; see the column error\n"
    wrong(cmg_here("-q", "score", "--model", tmp_path / "none.cmg", image), "no model")


def test_a_fit_tells_its_stages(small_line, tmp_path):
    run = cmg_here("-v", "fit", "--images", small_line, "--captions", small_line / "metadata.csv", "--no-adapt", "--out", tmp_path / "m.cmg")
    assert run.returncode == 0
    for words in ("learning from captions and images: ", "calibrating the threshold: ", "fitting in all: ", "encoder builtin on "):
        assert words in run.err


def test_no_input_is_said(model_file, tmp_path):
    run = cmg_here("score", "--model", model_file, tmp_path)
    assert run.returncode == 0
    assert run.out.count("\n") == 1 and f"no image in {tmp_path}" in run.err
    gate = cmg_here("score", "--model", model_file, "--fail-on-anomaly", tmp_path)
    assert gate.returncode == 1 and "no image could be judged, which --fail-on-anomaly asks for" in gate.err


@pytest.mark.parametrize("end", ["2>&1 | true", "2>&-", "2>/dev/full"])
@pytest.mark.parametrize(("arguments", "code"), [("score --model none.cmg x.png", 2), ("score --bogus", 2), ("score --model {model} --fail-on-anomaly none.png", 1), ("score --model {model} --out /dev/null none.png", 3)])
def test_the_exit_code_is_the_same_where_standard_error_is_closed_or_broken(model_file, end, arguments, code):
    command = f"{sys.executable} -m cmgcli {arguments.format(model=model_file)} {end}; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert run.returncode == code
    assert "cmg: " not in run.stdout and run.stderr == ""


def test_where_standard_error_is_closed_a_fit_and_an_evaluation_go_on(small_line, model_file, tmp_path):
    fit = f"fit --no-adapt -q --images {small_line} --captions {small_line}/metadata.csv --out {tmp_path}/m.cmg"
    evaluate = f"eval --model {model_file} --images {small_line} --labels {small_line}/metadata.csv"
    for command in (fit, evaluate):
        run = subprocess.run(["bash", "-c", f"{sys.executable} -m cmgcli {command} 2>&-"], capture_output=True, text=True, check=False)
        assert run.returncode == 0 and "cmg: " not in run.stdout
    assert (tmp_path / "m.cmg").is_file()
