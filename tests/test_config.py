"""Options from a file: the same checks as on the command line, and what is printed is what is read back."""

import pytest
import yaml
from shell import cmg_here, wrong

from cmgcli.config import as_yaml, read_config
from cmgcli.errors import SettingsError


def printed(*arguments) -> str:
    run = cmg_here("fit", "--print-config", *arguments)
    assert run.returncode == 0, run.err
    assert run.err == ""
    return run.out


def test_the_defaults_of_the_engine_are_printed():
    options = yaml.safe_load(printed())
    assert options["encoder"] == "builtin" and options["adapt_steps"] == 1500 and options["out"] == "model.cmg"
    assert options["images"] is None and options["relevance"] is None and options["cmer"] is True


def test_what_is_printed_reads_back_to_the_very_same_options(tmp_path):
    config = tmp_path / "cmg.yaml"
    given = ("--images", "grün/line", "--captions", "c.csv", "--keep", 0.4, "--no-adapt", "--ridge", 1e-7, "--relevance", "sampled", "--allow-missing", "--seed", 3)
    config.write_text(printed(*given, "--false-alarm", 0.02, "--device", "cpu", "--out", tmp_path / "m.cmg"), encoding="utf-8")
    assert printed("--config", config) == config.read_text(encoding="utf-8")
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    assert options["adapt"] is False and options["keep"] == 0.4 and options["allow_missing"] is True and options["ridge"] == 1e-7


def test_a_file_may_name_options_that_do_nothing(tmp_path):
    config = tmp_path / "cmg.yaml"
    config.write_text(printed("--no-cmer", "--no-cmle"), encoding="utf-8")
    assert "overlap: 0.25" in config.read_text(encoding="utf-8")
    assert printed("--config", config) == config.read_text(encoding="utf-8")
    assert yaml.safe_load(printed("--config", config, "--cmer", "--keep", 0.4))["keep"] == 0.4
    wrong(cmg_here("fit", "--config", config, "--keep", 0.4), "--keep", "--no-cmer")


def test_the_command_line_wins_over_the_file(tmp_path):
    config = tmp_path / "cmg.yaml"
    config.write_text("false-alarm: 0.2\nadapt: false\nlatent_dim: null\n")
    options = yaml.safe_load(printed("--config", config, "--adapt", "--batch-size", 2))
    assert (options["false_alarm"], options["adapt"], options["batch_size"], options["latent_dim"]) == (0.2, True, 2, None)


def test_captions_of_the_file_give_way_to_a_caption_on_the_command_line(tmp_path):
    config = tmp_path / "cmg.yaml"
    config.write_text("captions: c.csv\n")
    options = yaml.safe_load(printed("--config", config, "--caption", "a nut"))
    assert (options["captions"], options["caption"]) == (None, "a nut")
    config.write_text("caption: a nut\n")
    options = yaml.safe_load(printed("--config", config, "--captions", "c.csv"))
    assert (options["captions"], options["caption"]) == ("c.csv", None)


def test_a_fit_obeys_the_file(small_line, tmp_path):
    config = tmp_path / "cmg.yaml"
    config.write_text(f"images: {small_line}\ncaptions: {small_line / 'metadata.csv'}\nfalse-alarm: 0.2\nadapt: false\ncmle: false\n")
    run = cmg_here("fit", "--config", config, "--out", tmp_path / "m.cmg")
    assert run.returncode == 0, run.err
    assert "about 0.2 of good images" in run.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("false_alrm: 0.2", ("unknown key false_alrm; did you mean false_alarm?",)),
        ("caption: no", ("caption: expected a text or a number", "False", "quotes")),
        ("images: {a: b}", ("images: expected a text", "quotes")),
        ("false-alarm: 0.1\nfalse_alarm: 0.2", ("false_alarm is given twice",)),
        ("print_config: true", ("unknown key print_config",)),
        ("false_alarm: lots", ("false_alarm: 'lots' cannot be used", "number")),
        ("adapt_steps: 0", ("adapt_steps: 0 cannot be used", "1")),
        ("device: tpu", ("device: 'tpu' cannot be used", "cuda")),
        ("cmer: perhaps", ("cmer: 'perhaps' cannot be used",)),
        ("[1, 2]", ("expected a mapping of option names to values, got list",)),
        ("a: [", ("cannot be read",)),
    ],
)
def test_a_wrong_file_is_one_line_with_its_name(tmp_path, text, words):
    config = tmp_path / "cmg.yaml"
    config.write_text(text)
    wrong(cmg_here("fit", "--images", tmp_path, "--config", config), "cmg.yaml", *words)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        read_config(tmp_path / "none.yaml", {"keep"})


def test_yaml_of_paths_and_nothing(tmp_path):
    assert as_yaml({"out": tmp_path / "m", "caption": None, "keep": "auto"}) == f"out: {tmp_path / 'm'}\ncaption: null\nkeep: auto\n"
