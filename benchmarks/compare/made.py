"""What an entry made of a workload, and the record that is kept of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compress.files import write_atomically

MADE = "made.json"
OK = "ok"


@dataclass(frozen=True)
class Point:
    """One file of an entry, as the entry tells of it."""

    file: str  # in the entry's folder
    settings: str  # what was chosen, in words and numbers
    validation_drop: float | None = None  # fraction 0..1, as the entry measured it; None: it did not
    within: bool = True  # that drop is within the entry's share of what may be lost


@dataclass(frozen=True)
class Made:
    """What an entry made; times, steps and lines are those of its whole chain, what it needs included."""

    name: str  # of the entry
    settings: str  # in words
    needs: str | None  # the entry that it goes on from
    identity: str  # sha256 of all that decides the result
    status: str = OK  # else what went wrong, in one line
    seconds: float | None = None  # wall clock of making it, measurement of this project's own runs left out
    cpu_seconds: float | None = None  # of all cores; None: not known, for a run that was stopped and gone on with
    process_seconds: float | None = None  # wall clock of the entry's last process, with all that it did
    steps: int | None = None  # optimizer steps, those of its search included
    versions: Mapping[str, str] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    lines: int = 1  # that a user has to write
    command: tuple[str, ...] = ()  # native entries: starts the process that times the dense model

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Made:
        """What `to_dict` made."""
        points = tuple(Point(**point) for point in stored["points"])
        return cls(**{**stored, "points": points, "command": tuple(stored["command"])})


def made_before(folder: Path) -> Made | None:
    """The record in an entry's folder; None: there is none, or it is of another version of this benchmark."""
    try:
        return Made.from_dict(json.loads((folder / MADE).read_text()))
    except (FileNotFoundError, TypeError, KeyError):
        return None


def keep(made: Made, folder: Path) -> Made:
    """Write the record of an entry; returns it."""
    write_atomically(folder / MADE, (json.dumps(made.to_dict(), indent=1, ensure_ascii=False) + "\n").encode())
    return made
