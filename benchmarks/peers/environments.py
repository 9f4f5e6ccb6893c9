"""Peers run in environments of their own, one process a model, so that neither their versions nor their faults leak."""

from __future__ import annotations

import fcntl
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

FOLDER = Path("runs/peers")
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
    python = interpreter("torch-pruning")
    with tempfile.TemporaryDirectory() as scratch:
        model, pruned = Path(scratch) / "model.pt", Path(scratch) / "pruned.pt"
        torch.save(module, model)
        command = [str(python), str(SCRIPT), str(model), str(pruned), "--size", str(size), "--hold", *hold]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return Cut(seconds=TIMEOUT_S, status=f"not done after {TIMEOUT_S} s"), None
        if done.returncode != 0:
            return Cut(status=what_went_wrong(done)), None
        result = torch.load(pruned, weights_only=False)  # what our own child wrote
    return Cut(seconds=result["seconds"]), result["module"]


def what_went_wrong(done: subprocess.CompletedProcess[str]) -> str:
    """The last error that a process told before it ended, else its last words, in one line."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return [f"ended with status {done.returncode}", *lines[-1:], *errors[-1:]][-1][:200]


def interpreter(peer: str, folder: Path = FOLDER) -> Path:
    """A peer's Python, ``folder``/``peer``/bin/python.

    Its environment is made from requirements-<peer>.txt where it is missing, or was made from others.

    Raises:
        subprocess.CalledProcessError: it cannot be made; ``stderr`` says why.
    """
    environment = (folder / peer).absolute()
    python, requirements = environment / "bin" / "python", Path(__file__).with_name(f"requirements-{peer}.txt")
    installed = environment / "requirements.txt"  # written last: an environment that was left half-made has none
    environment.parent.mkdir(parents=True, exist_ok=True)
    with environment.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two comparisons at a time, one makes it and the other waits
        if not installed.exists() or installed.read_text() != requirements.read_text():
            for command in (
                [sys.executable, "-m", "venv", str(environment)],
                [str(python), "-m", "pip", "install", "-r", str(requirements)],
            ):
                subprocess.run(command, check=True, capture_output=True, text=True)
            installed.write_text(requirements.read_text())
    return python
