"""Peers run in environments of their own, one process a model, so that neither their versions nor their faults leak."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

FOLDER = Path("runs/peers/torch-pruning")
REQUIREMENTS = Path(__file__).with_name("requirements-torch-pruning.txt")
SCRIPT = Path(__file__).with_name("torch_pruning_families.py")
TIMEOUT_S = 300
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b")  # the line of a traceback that says what happened


@dataclass(frozen=True)
class Cut:
    """What became of a model; None: not known, for it did not come so far."""

    seconds: float | None = None
    status: str = "ok"  # else what went wrong, in one line
    form: str = "class"  # or "traced"
    parameters: int | None = None
    macs: int | None = None  # for one sample
    error: float | None = None  # relative, against the original with the removed channels' consumers zeroed
    effect: float | None = None  # how far that reference is from the original, in the same measure
    variation: float | None = None  # how far two samples' outputs are apart, in the same measure
    trains: str | None = None  # "yes", or what went wrong


def cut_by_peer(module: nn.Module, size: int, hold: list[str]) -> tuple[Cut, nn.Module | None]:
    """Half of a model's channels cut by Torch-Pruning, and the pruned module where it came so far.

    Args:
        size: Pixels of a side of its input.
        hold: Layers that stay whole: those that make the outputs.
    """
    python = interpreter()
    with tempfile.TemporaryDirectory() as scratch:
        model, pruned = Path(scratch) / "model.pt", Path(scratch) / "pruned.pt"
        torch.save(module, model)
        command = [str(python), str(SCRIPT), str(model), str(pruned), "--size", str(size), "--hold", *hold]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return Cut(seconds=TIMEOUT_S, status=f"not done after {TIMEOUT_S} s"), None
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if _ERROR.match(line)]
            told = errors[-1] if errors else f"ended with status {done.returncode}"
            return Cut(status=told[:200]), None
        result = torch.load(pruned, weights_only=False)  # what our own child wrote
    return Cut(seconds=result["seconds"]), result["module"]


def interpreter() -> Path:
    """The peer's Python; its environment is made from the pinned requirements where it is missing."""
    python = FOLDER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS], check=True)
    return python
