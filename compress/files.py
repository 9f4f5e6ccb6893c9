"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from compress.errors import WorkspaceError

_CHUNK = 1 << 20  # bytes copied at once


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: at any moment, and after a power cut, the file is the old one or the new one, whole.

    Folders that are missing are made. The temporary file lies beside ``path``, since a rename is atomic only within
    one file system.

    Raises:
        WorkspaceError: the folder cannot be written, or the disk is full. Nothing is left behind.
    """
    with opened_atomically(path) as file:
        file.write(data)


def copy_atomically(source: Path, target: Path) -> None:
    """`write_atomically` of the content of another file, which is never in memory as a whole."""
    with source.open("rb") as content, opened_atomically(target) as file:
        shutil.copyfileobj(content, file, _CHUNK)


@contextlib.contextmanager
def opened_atomically(path: Path) -> Iterator[IO[bytes]]:
    """`write_atomically` for content that is made bit by bit: ``path`` appears when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise WorkspaceError(
            f"cannot write {path}: {error.strerror or error}. Free some space, or choose a folder that can be written."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_directory(folder: Path) -> None:
    """Make the rename itself survive a power cut; only POSIX systems can open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_directory() -> Path:
    """Where measurements of this machine are kept: ``compress`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "compress"
