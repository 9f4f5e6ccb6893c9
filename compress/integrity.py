"""Whether the files of a finished run are those that were measured: held against manifest.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import WorkspaceError
from compress.measurement import SHIPPED_NAME
from compress.workspace import MANIFEST

REPORT = "report.json"
RENDERED = (".md", ".html", ".csv")  # made from report.json, which may be done again by another version


@dataclass(frozen=True)
class Files:
    """What was looked at."""

    count: int
    problems: tuple[str, ...]  # one for each file that is not what the manifest says; empty: all are


def check_files(root: Path) -> Files:
    """Compare what ships, and the report on it, with the manifest: model.onnx, its weights beside it, its zip.

    Files in folders (stages/, plots/) and those that are rendered from report.json do not ship and are not looked at.

    Raises:
        WorkspaceError: manifest.json is there and cannot be read.
    """
    path = root / MANIFEST
    if not path.is_file():
        return Files(0, (f"{MANIFEST} is missing, so that nothing says which {SHIPPED_NAME} was measured",))
    wanted = {name: entry for name, entry in _at_top(path).items() if not name.endswith(RENDERED)}
    problems = [f"{name} is not in {MANIFEST}" for name in (SHIPPED_NAME, REPORT) if name not in wanted]
    problems += [told for name, entry in wanted.items() if (told := _problem(root / name, entry["sha256"])) is not None]
    return Files(len(wanted), tuple(problems))


def top_files(root: Path) -> tuple[Path, ...]:
    """What a run wrote at the top of its directory, as its manifest tells: the model, its zip and the reports.

    Raises:
        WorkspaceError: there is no manifest.json that can be read.
    """
    return tuple(root / name for name in _at_top(root / MANIFEST) if (root / name).is_file())


def _at_top(path: Path) -> Mapping[str, Any]:
    try:
        files: Mapping[str, Any] = json.loads(path.read_bytes())["files"]
        if not all(isinstance(entry["sha256"], str) for entry in files.values()):
            raise TypeError("a sha256 is no text")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise WorkspaceError(f"{path} cannot be read as a manifest: {error}. Run the pipeline again.") from error
    return {name: entry for name, entry in files.items() if "/" not in name}


def _problem(path: Path, wanted: str) -> str | None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror or error})"
    return None if found == wanted else f"{path.name} is not the file that was measured (sha256 {found[:8]}…)"
