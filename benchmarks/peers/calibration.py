"""What the quantizers' scripts share. Imports nothing that a peer's environment may lack."""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSIONS = "versions.json"  # beside the file that a script writes


def arguments(description: str | None, *flags: str) -> argparse.Namespace:
    """The command line of a script: the float model, the calibration inputs, the file to write, and flags."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "calibration", "out"):
        parser.add_argument(name, type=Path)
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args()


def feeds(path: Path) -> list[dict[str, NDArray[Any]]]:
    """The samples of a calibration file one by one, each input (1, …), by input name."""
    with np.load(path) as stored:
        inputs = {name: stored[name] for name in stored.files}
    count = len(next(iter(inputs.values())))
    return [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(count)]


def tell_versions(out: Path, *packages: str) -> None:
    """Write which versions made ``out``."""
    out.with_name(VERSIONS).write_text(json.dumps({name: version(name) for name in packages}))
