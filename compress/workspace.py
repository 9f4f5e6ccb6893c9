"""The run directory: files appear under their final names only when whole, and a stopped run goes on from them.

OUT/stages/02-sparsify.partial/   while the stage works
OUT/stages/02-sparsify/           once it is whole: record.json and its files, renamed in one step
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compress.errors import WorkspaceError
from compress.files import sync_directory, write_atomically
from compress.reporting.schema import read

logger = logging.getLogger(__name__)

RECORD = "record.json"
MANIFEST = "manifest.json"
REPORT = "report.json"
ANSWERS = "stages/05-benchmark/answers.npz"  # of every variant to the test split: `compress.measurement.answers`
# What a run writes at the top of its directory, and so all that --overwrite may delete.
OWN = (
    REPORT,
    "report.md",
    "report.html",
    "report.csv",
    "model.onnx",
    "model.onnx.zip",
    "model.ort",
    MANIFEST,
    "stages",
    "plots",
    "cache",
)


def to_json(value: object) -> bytes:
    """Indented JSON with a final newline; dataclasses, paths and tuples become plain values."""
    return (json.dumps(value, indent=1, default=_plain, allow_nan=False) + "\n").encode()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(path: Path) -> dict[str, Any]:
    """A file as the manifest tells of it."""
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def fingerprint(**parts: object) -> str:
    """sha256 of what decides a stage's result: its config, its inputs, its seed."""
    return hashlib.sha256(to_json(dict(sorted(parts.items())))).hexdigest()


def read_run(root: Path) -> dict[str, Any]:
    """The report of a finished run: the plain dict of report.json, valid, with every key that this version knows.

    Raises:
        WorkspaceError: ``root`` is no run, or the run is not finished.
        ReportError: its report.json cannot be read.
    """
    try:
        content = (root / REPORT).read_bytes()
    except OSError as error:
        raise WorkspaceError(_no_run(root, error)) from error
    return read(content, root / REPORT)


def _no_run(root: Path, error: OSError) -> str:
    if not root.is_dir():
        return f"{root} is {'a file' if root.exists() else 'not there'}. Give the directory of a run: its --out."
    if (root / REPORT).exists():
        return f"{root / REPORT} cannot be read: {error.strerror or error}."
    if (root / "stages").is_dir():
        return f"{root} has no {REPORT}: the run is not finished. Go on with the same command and --resume."
    return f"{root} is not the directory of a run: it has no {REPORT}. Give what was given as --out."


class Workspace:
    """One run directory, opened for writing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls, root: Path, *, resume: bool = False, overwrite: bool = False) -> Workspace:
        """Make ``root`` ready for a run.

        Raises:
            WorkspaceError: it holds something and neither ``resume`` nor ``overwrite`` was given, or it cannot be
                written.
        """
        if resume and overwrite:
            raise WorkspaceError("--resume keeps what is there and --overwrite deletes it: give one of them.")
        workspace = cls(root)
        try:
            if root.exists() and not root.is_dir():
                raise WorkspaceError(f"--out {root} is a file. Give a directory.")
            if root.exists() and any(root.iterdir()) and not resume:
                if not overwrite:
                    raise WorkspaceError(
                        f"--out {root} is not empty. Give --resume to go on with the run in it, "
                        "--overwrite to replace it, or another directory."
                    )
                workspace.remove(*OWN)
            (root / "stages").mkdir(parents=True, exist_ok=True)
            for partial in (root / "stages").glob("*.partial"):
                shutil.rmtree(partial)
            write_atomically(root / "stages" / ".writable", b"")  # told now, not after an hour of training
            (root / "stages" / ".writable").unlink()
        except OSError as error:
            raise WorkspaceError(f"--out {root} cannot be written: {error.strerror or error}.") from error
        return workspace

    def stage_directory(self, stage: str) -> Path:
        """Where the files of a finished stage are; ``stage`` as in 02-sparsify."""
        return self.root / "stages" / stage

    @property
    def cache(self) -> Path:
        """Where a stage keeps work that it goes on from after it was stopped: calibration. No part of the result."""
        return self.root / "cache"

    def drop_cache(self) -> None:
        """Nothing is left to go on from: the run is whole."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def begin(self, stage: str) -> Path:
        """A fresh directory for the files of a stage that starts; `finish` gives it its final name."""
        partial = self.root / "stages" / f"{stage}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        return partial

    def finish(self, stage: str, record: Mapping[str, Any]) -> None:
        """Write the record beside the files of `begin`, then rename their directory in one step."""
        partial, final = self.root / "stages" / f"{stage}.partial", self.stage_directory(stage)
        write_atomically(partial / RECORD, to_json(record))
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        sync_directory(final.parent)

    def finished(self, stage: str, wanted: str) -> dict[str, Any] | None:
        """The record of a finished stage whose fingerprint is ``wanted``, else None."""
        path = self.stage_directory(stage) / RECORD
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            logger.warning("%s is not valid JSON: stage %s runs again", path, stage)
            return None
        if record.get("fingerprint") != wanted:
            logger.warning("stage %s was made with other options or another model: it runs again", stage)
            return None
        return record

    def write(self, name: str, content: bytes) -> Path:
        """Write a file at the top of the run directory."""
        write_atomically(self.root / name, content)
        return self.root / name

    def write_manifest(self, facts: Mapping[str, Any]) -> None:
        """List every file of the run with its sha256 and size, after ``facts`` (versions, seed, CPU, command)."""
        files = {
            path.relative_to(self.root).as_posix(): _listed(path)
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path != self.root / MANIFEST and self.cache not in path.parents
        }
        self.write(MANIFEST, to_json({**facts, "files": files}))

    def update_manifest(self, names: Iterable[str]) -> None:
        """Tell the manifest of files that were written again after the run; nothing where there is no manifest."""
        path = self.root / MANIFEST
        if not path.is_file():
            return
        try:
            manifest = json.loads(path.read_bytes())
            manifest["files"] |= {name: _listed(self.root / name) for name in names}
        except (ValueError, KeyError, TypeError) as error:
            raise WorkspaceError(f"{path} cannot be read as a manifest: {error}. Run the pipeline again.") from error
        self.write(MANIFEST, to_json(manifest))

    def remove(self, *names: str) -> None:
        """Delete files and folders at the top of the run directory, where they are."""
        for name in names:
            path = self.root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.exists() or path.is_symlink():
                path.unlink()
