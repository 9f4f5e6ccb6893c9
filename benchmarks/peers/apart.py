"""A command in a process of its own: its time, its log, and its failure in one line."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.environments import what_went_wrong

ROOT = Path(__file__).parents[2]
LOG = "log.txt"


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    status: str  # "ok", else what went wrong, in one line
    seconds: float  # of the whole process: imports, work, and whatever it measures
    cpu_seconds: float  # of all its cores and of the processes that it waited for: what a busy machine changes least


def run_apart(command: list[str], folder: Path, timeout_s: float, fine: tuple[int, ...] = (0,)) -> Ran:
    """Run a command that writes into ``folder``, and its output into ``folder``/log.txt.

    Args:
        timeout_s: After so many seconds it is ended, with all that it has started.
        fine: Exit statuses of success.
    """
    started, cpu = time.perf_counter(), _cpu_seconds()
    with tempfile.TemporaryDirectory() as scratch, (folder / LOG).open("wb") as log:
        # Peers leave logs where they run, and counts for their statistics at home; CI=true: they send none.
        apart = {"PYTHONPATH": str(ROOT), "HOME": scratch, "CI": "true"}
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=scratch,
            env={**os.environ, **apart},
            start_new_session=True,  # so that what it started can be ended with it
        )
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
    seconds, cpu = round(time.perf_counter() - started, 2), round(_cpu_seconds() - cpu, 2)
    if status is None:
        return Ran(f"not done after {timeout_s:g} s", seconds, cpu)
    if status in fine:
        return Ran("ok", seconds, cpu)
    told = subprocess.CompletedProcess(command, status, stderr=(folder / LOG).read_text(errors="replace"))
    return Ran(what_went_wrong(told).replace(f"{folder.absolute()}/", ""), seconds, cpu)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started and left behind."""
    with contextlib.suppress(ProcessLookupError):  # nothing is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _cpu_seconds() -> float:
    """Of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
