"""The settings that `fit` would use without the head, and the demo line's records, for benchmarks that call its parts."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

from cmgcli.dataset import Record, read_dataset
from cmgcli.detector import Settings
from cmgcli.encoder import Encoder
from cmgcli.line import write_line
from cmgcli.pipeline import fit


def settings_of(encoder: Encoder, **changes: Any) -> Settings:
    """The defaults of `fit` for the built-in encoder, without the head; each image tells by itself whether it shows a ground."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(fit).parameters.items()}
    values = {field.name: defaults[field.name] for field in fields(Settings) if field.name in defaults}
    fixed = {
        "encoder_sha256": encoder.sha256, "layers": encoder.feature_layers, "ground": "by image", "relevance": "fast", "adapt_steps": 0, "calibration": "cross",
        "encoder_precision": encoder.precision, "precision": "float32",
    }  # fmt: skip
    return Settings(**values | fixed | changes)


def line_records(folder: Path, *, train: int, test: int = 2, size: int = 192) -> tuple[Record, ...]:
    """The records of a demo line written to the folder."""
    file = write_line(folder, train=train, test=test, size=size)
    return read_dataset(file.parent, file).records
