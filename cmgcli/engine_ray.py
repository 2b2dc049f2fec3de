"""Scoring on Ray Data: the paths are spread over a cluster, each actor holds the model, the rows come back in input order.

An actor that dies is replaced, and what it had not finished is done again by another. Every machine of the cluster needs
cmgcli, and sees the images (and an encoder's weights on disk) under the same paths; the model file is sent.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmgcli.errors import InputError, SettingsError, check_batch_size
from cmgcli.files import resolved
from cmgcli.loader import BATCH, MOST_IN_A_BATCH
from cmgcli.naming import Phrase
from cmgcli.rows import NamedRow, Row


class Scorer:
    """What each actor runs: loads the model once, then scores batches of paths."""

    def __init__(self, model: bytes, device: str, batch_size: int | str, phrases: Sequence[Phrase] | None, false_alarm: float | None) -> None:
        from cmgcli.model import Model

        with tempfile.NamedTemporaryFile(suffix=".cmg") as file:
            file.write(model)
            file.flush()
            self.model = Model.load(file.name, device=device, false_alarm=false_alarm)
        self.batch_size, self.phrases = self.model.images_at_once(batch_size), phrases

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A column of (file, caption) as JSON to one of rows as JSON, in which any file name and every float is exact."""
        from cmgcli.scoring import score_files

        inputs = [json.loads(text) for text in batch["input"]]
        captions = {resolved(file): caption for file, caption in inputs if caption is not None}
        rows = score_files(self.model, [file for file, _ in inputs], captions, phrases=self.phrases, batch_size=self.batch_size)
        return {"row": [json.dumps(asdict(row)) for row in rows]}


def score_on_ray(
    model: Path,
    files: Iterable[str],
    captions: Mapping[Path, str] | None = None,
    *,
    phrases: Sequence[Phrase] | None = None,
    false_alarm: float | None = None,
    device: str = "auto",
    batch_size: int | str = BATCH,
    address: str | None = None,
) -> Iterator[Row]:
    """The rows of `scoring.score_files`, computed by a cluster. Paths are read to their end before the first is scored.

    Args:
        model: the model file. phrases: as there. false_alarm: see `Model.load`.
        device: auto, cpu or cuda; auto takes the GPUs of the cluster where it has any, an actor each, else its cores.
        address: of a running cluster, as `ray start --head` prints it, or ``auto``; None starts one on this machine.
    Raises:
        SettingsError: the extra is not installed, or the cluster has no GPU that was asked for. InputError: there is no cluster at the address.
    """
    check_batch_size(batch_size)
    ray = _ray()
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None if address else False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--address: no Ray cluster answers at {address} ({str(error).splitlines()[0]}); start one with: ray start --head, "
            "and set RAY_AUTH_MODE and RAY_AUTH_TOKEN as it was started with, where it asks for a token"
        ) from error
    if device == "cuda" and not ray.cluster_resources().get("GPU"):
        ray.shutdown()
        raise SettingsError("--device cuda: the Ray cluster has no GPU; give --device cpu, or auto to take what there is")
    return _rows(ray, model.read_bytes(), files, captions or {}, phrases, false_alarm, device, batch_size)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SettingsError(f"--engine ray needs {error.name}, which is not installed: pip install 'cmgcli[ray]'") from error
    return ray


def _rows(
    ray: Any,
    model: bytes,
    files: Iterable[str],
    captions: Mapping[Path, str],
    phrases: Sequence[Phrase] | None,
    false_alarm: float | None,
    device: str,
    batch_size: int | str,
) -> Iterator[Row]:
    try:
        inputs = [{"input": json.dumps([file, captions.get(resolved(file))])} for file in files]
        if not inputs:
            return
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        found = ray.cluster_resources()
        gpus = int(found.get("GPU", 0)) if device != "cpu" else 0
        most = batch_size if batch_size != "auto" else MOST_IN_A_BATCH if gpus else BATCH
        actors = max(1, min(gpus or int(found.get("CPU", 1)), -(-len(inputs) // most)))
        scored = ray.data.from_items(inputs, override_num_blocks=min(len(inputs), max(actors, -(-len(inputs) // (8 * most))))).map_batches(
            Scorer,
            fn_constructor_args=(model, "cuda" if gpus else "cpu", batch_size, phrases, false_alarm),
            batch_size=most,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=0 if gpus else 1,
            num_gpus=1 if gpus else 0,
        )
        kind = Row if phrases is None else NamedRow
        try:
            for record in scored.iter_rows():
                yield kind(**json.loads(record["row"]))
        except ray.exceptions.RayError as error:
            raise InputError(f"--engine ray: the cluster cannot score these images: {str(error).strip().splitlines()[-1]}") from error
    finally:
        ray.shutdown()
