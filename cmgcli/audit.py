"""An evaluation with all that its report page says of how it was made: what `cmg eval` runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cmgcli import provenance
from cmgcli.page import Page


def audit_scores(scores: Path, images: Path | None, labels: Path | None, options: Mapping[str, Any], *, command: Sequence[str]) -> Page:
    """Evaluate a scores file.

    Args:
        options: those given of `scored.evaluate_scores`.
        command: the arguments of the command line, to be named on the page.
    """
    from cmgcli.scored import evaluate_scores

    result = evaluate_scores(scores, labels, images, **options)
    facts = {"Scores": provenance.of_file(scores), **_data_and_run(labels, command)}
    return Page(f"Inspection report of {scores.name}", result, datetime.now().astimezone(), facts=facts)


def audit_model(
    model: Path,
    images: Path,
    labels: Path | None,
    options: Mapping[str, Any],
    *,
    command: Sequence[str],
    ablate: int | None = None,
    stress: bool = False,
    stress_images: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    device: str = "auto",
    false_alarm: float | None = None,
    judged: str = "",
) -> Page:
    """Evaluate a model file.

    Args:
        options: those given of `evaluation.evaluate`.
        command: the arguments of the command line, to be named on the page.
        ablate: also compare the method with its parts left out, with heads of so many steps; None: do not.
        stress: also try the changes of a shop floor, on at most ``stress_images`` of the images.
        false_alarm: see `Model.load`.
        judged: the option of a gate on what the threshold rejects, for which the model must have one.
    """
    from cmgcli import evaluation, stressing
    from cmgcli.model import Model

    fitted = Model.load(model, device=device, false_alarm=false_alarm)
    if judged:
        fitted.detector.calibration.demand(judged)
    common = {name: options[name] for name in ("allow_missing", "batch_size") if name in options} | {"progress": progress}
    table = {} if ablate is None else evaluation.ablate(fitted, images, labels, adapt_steps=ablate, **common)
    result = evaluation.evaluate(fitted, images, labels, **options | common)
    stressed = stressing.stress(fitted, images, labels, most=stress_images, **common) if stress else None
    return Page(
        title=f"Inspection report of {model.name}",
        result=result,
        date=datetime.now().astimezone(),
        ablation=table,
        paper_gain=evaluation.PAPER_GAIN,
        stress=stressed,
        facts={"Model": provenance.of_model(model, fitted.detector), **_data_and_run(labels, command)},
    )


def _data_and_run(labels: Path | None, command: Sequence[str]) -> dict[str, provenance.Facts]:
    run = {"Run": provenance.of_run(command)}
    return run if labels is None else {"Labels": provenance.of_file(labels)} | run
