"""Options that do something only beside another one: given without it they are refused, so that none is ignored. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from cmgcli.errors import SettingsError


@dataclass(frozen=True)
class Need:
    """What one option of a command needs."""

    option: str  # its name in Python
    met: Callable[[Mapping[str, Any]], bool]  # of the values of all options, whether it does something
    sentence: str  # what it is for, and the other option


FIT = (
    Need("adapt_steps", lambda o: o["adapt"] is not False, "--adapt-steps trains the defect head, which --no-adapt leaves out; give one of the two"),
    Need("known_defects", lambda o: o["adapt"] is not False or not o["known_defects"], "--known-defects teaches the defect head, which --no-adapt leaves out; give one of the two"),
    Need("relevance", lambda o: o["cmer"] is not False, "--relevance is an estimator of CMER, which --no-cmer leaves out; give one of the two"),
    Need("keep", lambda o: o["cmer"] is not False, "--keep is the share that CMER keeps, and --no-cmer keeps all; give one of the two"),
    Need("neighbours", lambda o: o["cmle"] is not False, "--neighbours is about what the captions say, which --no-cmle does not ask; give one of the two"),
    Need("ridge", lambda o: o["cmle"] is not False, "--ridge is about what the captions say, which --no-cmle does not ask; give one of the two"),
    Need("overlap", lambda o: o["tile"] is not None, "--overlap says how much of a tile its neighbours see too; give it with --tile"),
    Need("epochs", lambda o: o["projection"] in ("linear", "mlp"), "--epochs is for a projection that is trained; give it with --projection linear or mlp"),
)
SCORE = (
    Need("resume", lambda o: o["out"] is not None, "--resume goes on in a file; give it with --out"),
    Need("explain_all", lambda o: o["explain"] is not None, "--explain-all says which images --explain takes; give --explain DIR too"),
    Need(
        "images",
        lambda o: o["captions"] is not None,
        "--images says where the paths of a caption file begin; give it with --captions, and what to score without an option",
    ),
    Need("null", lambda o: list(o["paths"]) == ["-"], "-0 says how paths end on standard input; give - as the only path"),
    Need("address", lambda o: o["engine"] == "ray", "--address is where the cluster of --engine ray is; give both or neither"),
)
EVAL = (
    Need("stress_images", lambda o: o["stress"], "--stress-images says how many images --stress takes; give --stress too"),
    Need("adapt_steps", lambda o: o["ablate"], "--adapt-steps is for the models that --ablate fits; give it with --ablate"),
    Need("ablate", lambda o: o["model"] is not None, "--ablate fits models of its own; give --model instead of --scores"),
    Need("defects", lambda o: o["model"] is not None, "--defects looks at the images; give --model instead of --scores"),
    Need("false_alarm", lambda o: o["model"] is not None, "--false-alarm asks a model for another threshold; give --model instead of --scores"),
    Need("stress", lambda o: o["model"] is not None, "--stress scores changed images; give --model instead of --scores"),
    Need("device", lambda o: o["model"] is not None, "--device is where a model computes; give --model instead of --scores"),
    Need("batch_size", lambda o: o["model"] is not None, "--batch-size is how many images a model takes at once; give --model instead of --scores"),
)


def check_needs(context: typer.Context, needs: Sequence[Need]) -> None:
    """Raise SettingsError for an option that stands on the command line and would do nothing; a file may name all options."""
    for need in needs:
        source = context.get_parameter_source(need.option)
        if source is not None and source.name == "COMMANDLINE" and not need.met(context.params):
            raise SettingsError(need.sentence)
