"""Options from a YAML file, and options as such a file. Imports nothing heavy.

A file holds the options of one command by their names (`false_alarm` or `false-alarm`). Its values stand where an option
was not given, and pass the same checks as on the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import typer

from cmgcli.console import reported
from cmgcli.errors import SettingsError

_NOT_IN_A_FILE = frozenset({"config", "print_config", "resume", "quiet", "verbose"})


def adopt(context: typer.Context, path: Optional[Path]) -> Optional[Path]:
    """Make the values of the file the defaults of the command that is being parsed; a wrong file ends the program."""
    if path is not None and not context.resilient_parsing:  # which is shell completion
        with reported():
            context.default_map = _checked(context, path)
    return path


def one_of(context: typer.Context, *names: str) -> list[Any]:
    """The values of options that exclude each other; where one stands on the command line, those of the file give way to it."""
    sources = [context.get_parameter_source(name) for name in names]
    spoken = any(source is not None and source.name == "COMMANDLINE" for source in sources)
    return [None if spoken and source is not None and source.name == "DEFAULT_MAP" else context.params[name] for name, source in zip(names, sources, strict=True)]


def as_yaml(options: Mapping[str, Any]) -> str:
    """The options, one a line, for `--config` to read back; paths become text, None becomes null."""
    import yaml

    plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def read_config(path: Path, allowed: set[str]) -> dict[str, Any]:
    """The values of a YAML mapping by option name; null counts as not given.

    Raises SettingsError for a file that cannot be read or is no mapping, and for a key that is not `allowed`, with the
    nearest right name.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).replace("\n", " ")
        raise SettingsError(f"config {path} cannot be read: {reason}; cmg fit --print-config prints such a file") from error
    if not isinstance(values, dict):
        raise SettingsError(f"config {path}: expected a mapping of option names to values, got {type(values).__name__}")
    options: dict[str, Any] = {}
    for spelled, value in values.items():
        key = str(spelled).replace("-", "_")
        if key in options:
            raise SettingsError(f"config {path}: {key} is given twice: keep one of the two")
        options[key] = value
    for key in options:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            raise SettingsError(f"config {path}: unknown key {key}{f'; did you mean {near[0]}?' if near else ''}")
    return {name: value for name, value in options.items() if value is not None}


def _checked(context: typer.Context, path: Path) -> dict[str, Any]:
    params = {param.name: param for param in context.command.params if param.name not in _NOT_IN_A_FILE}
    values = read_config(path, set(params))
    for name, value in values.items():
        if isinstance(value, list | dict) or isinstance(value, bool) and not params[name].is_flag:
            raise SettingsError(f"config {path}: {name}: expected a text or a number, YAML reads {value!r}; put a text in quotes")
        values[name] = value if isinstance(value, bool) else str(value)  # as the command line would give it
        try:
            params[name].process_value(context, values[name])
        except typer.BadParameter as error:
            raise SettingsError(f"config {path}: {name}: {value!r} cannot be used: {error.message}") from error
    return values
