"""What a peer's script writes: ONNX files, and points.json that says how each was made. Imports no package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

POINTS = "points.json"


@dataclass(frozen=True)
class Point:
    """One file, chosen by validation alone."""

    file: str  # beside points.json
    settings: str  # what was chosen, in words and numbers
    validation_drop: float  # fraction 0..1 below the dense float file, as the script measured it
    within: bool  # the drop is within the script's share: what a finisher may go on with


def write_points(out: Path, points: Sequence[Point], steps: int, *packages: str) -> None:
    """Write points.json: the points, the optimizer steps that they cost, and the versions of ``packages``."""
    versions = {name: version(name) for name in packages}
    content = {"points": [asdict(point) for point in points], "steps": steps, "versions": versions}
    (out / POINTS).write_text(json.dumps(content, indent=1))


def read_points(folder: Path) -> list[Point]:
    """The points of a script that has run, in its order."""
    return [Point(**point) for point in json.loads((folder / POINTS).read_text())["points"]]
