"""``python -m cmgcli`` is ``cmg``."""

from cmgcli.console import crashing, mend_stderr


def run(name: str | None = None) -> None:
    """The program; name: what it is called in its own messages, None: as the shell calls it."""
    mend_stderr()
    with crashing():
        from cmgcli.cli import app

        app(prog_name=name)


if __name__ == "__main__":
    run("cmg")
