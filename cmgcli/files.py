"""Files that are whole or not there, and where a path leads."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path


def resolved(path: Path | str) -> Path:
    """Absolute, links followed; a path that leads nowhere (a circle of links, a zero byte) only absolute. Its reader says what is wrong with it."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return Path(os.path.abspath(path))


def identity(path: Path | str) -> tuple[int, int] | None:
    """What is the same of all names of a file, links included; None where there is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def write_whole(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write to a temporary file beside `path`, then rename: a crash leaves the old file or the new one. Raises OSError.

    A pipe or a device (`/dev/stdout`), or a file in a directory in which no other may be made, is written to as it is. `durable` waits for the disk, so that a loss of power
    leaves a whole file too; what is one of many and cheap to make again need not.
    """
    if path.exists() and not path.is_file():  # told by the path as it is: that of /dev/stdout leads to no name where it is a pipe
        path.write_bytes(content)
        return
    if path.is_absolute() and path.parts[1] in ("dev", "proc"):  # a file that standard output goes to: what is there stays
        with path.open("ab") as file:
            file.write(content)
        return
    path = resolved(path)  # a link stays one
    if path.exists() and not os.access(path.parent, os.W_OK):
        path.write_bytes(content)
        return
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:32]}.", suffix=".part", delete=False) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


@functools.cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
