"""``python -m cmgcli`` is ``cmg``."""

from cmgcli.cli import app

app(prog_name="cmg")
