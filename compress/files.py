"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from compress.errors import WorkspaceError


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: at any moment, and after a power cut, the file is the old one or the new one, whole.

    Folders that are missing are made. The temporary file lies beside ``path``, since a rename is atomic only within
    one file system.

    Raises:
        WorkspaceError: the folder cannot be written, or the disk is full. Nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise WorkspaceError(
            f"cannot write {path} ({len(data):,} bytes): {error.strerror or error}. "
            "Free some space, or choose a folder that can be written."
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
