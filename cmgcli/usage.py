"""Help, printed for a reader who may leave before its end. Imports nothing heavy."""

from __future__ import annotations

import typer
from typer.core import TyperCommand, TyperGroup

from cmgcli.console import reported
from cmgcli.streams import writing_out


class _Help:
    """Prints help as every command prints: a reader who has enough is no failure, a full disk is one line."""

    def get_help(self, ctx: typer.Context) -> str:
        with reported(), writing_out():
            try:
                return super().get_help(ctx)
            except SystemExit:  # how rich takes a closed pipe, with the exit code of a failed gate
                raise typer.Exit from None


class Command(_Help, TyperCommand):
    """A command with such help."""


class Group(_Help, TyperGroup):
    """All commands, with such help."""
