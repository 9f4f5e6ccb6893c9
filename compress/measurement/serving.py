"""What a process that one model is timed in does, whatever runs the model: it answers requests until there are no more.

Requests come on standard input, and answers leave on what was standard output, pickled: the parent is the only one who
writes to the process. Whatever libraries print goes to standard error.

Processes that are timed import this module, so that it imports numpy alone, and no runtime.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from compress.errors import MeasurementError, first_line
from compress.measurement.turns import MS, Call, Clock, awake, time_calls, warm_up

_STATUS = Path("/proc/self/status")
_FIRST_TO_GO = Path("/proc/self/oom_score_adj")
_STAT = Path("/proc/self/stat")
_TASKS = Path("/proc/self/task")
_CORE = 36  # the field of the core that the process is on, counted from behind its name


class Server:
    """One model, opened once and called often; a runtime says how it is opened.

    Args:
        clock: Nanoseconds, monotonic.
    """

    def __init__(self, clock: Clock = time.perf_counter_ns) -> None:
        self._clock = clock
        self._call: Call

    def prepare(self, path: Path, provider: str, threads: int, feeds: Mapping[str, NDArray[Any]]) -> Call:
        """Open the model; return one inference on ``feeds``, as it is to be timed."""
        raise NotImplementedError

    def place(self) -> dict[str, Any] | None:
        """Where the nodes run, as `compress.measurement.placement.Placement` tells; None: not known."""
        return None

    def requests(self) -> dict[str, Callable[..., Any]]:
        """What can be asked for."""
        return {
            "start": self.start,
            "open": self.open,
            "pin": self.pin,
            "warm": self.warm,
            "block": self.block,
            "peak": self.peak,
            "run_for": self.run_for,
            "place": self.place,
        }

    def ask(self, request: str, *arguments: Any, limit_s: float = 0.0) -> Any:
        """Do what is asked for; ``limit_s`` is for those who ask another process.

        Raises:
            MeasurementError: it cannot be done; the message is one line.
        """
        try:
            return self.requests()[request](*arguments)
        except MeasurementError:
            raise
        except Exception as error:  # runtimes' errors have no common base of their own
            raise MeasurementError(f"{request} failed: {first_line(error)}") from error

    def start(self) -> None:
        """Answered once everything is imported."""

    def open(self, path: str, provider: str, threads: int, feeds: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
        """Open the model and call it once; return the milliseconds of both."""
        start = self._clock()
        self._call = self.prepare(Path(path), provider, threads, feeds)
        loaded = self._clock()
        return (loaded - start) / MS, float(time_calls(self._call, 1, self._clock)[0]) / MS

    def pin(self, core: int | None) -> int | None:
        """Stay on a core: the one given, or where the system has this process now. None: it cannot be told here."""
        try:
            chosen = int(_STAT.read_text().rpartition(")")[2].split()[_CORE]) if core is None else core
            os.sched_setaffinity(0, {chosen})
            for task in _TASKS.iterdir():  # a runtime may run the model on a thread that it has started already
                with contextlib.suppress(ProcessLookupError):  # the thread has ended meanwhile
                    os.sched_setaffinity(int(task.name), {chosen})
        except (OSError, AttributeError):  # no Linux, or not allowed
            return None
        return chosen

    def warm(self, seconds: float) -> tuple[float, bool]:
        """Warm up; return the last median in nanoseconds, and whether it had settled."""
        found = warm_up(self._call, seconds, self._clock)
        return found.median_ns, found.settled

    def block(self, count: int) -> NDArray[np.float64]:
        """Nanoseconds of ``count`` calls, once the process is awake and its caches are its own again."""
        awake(self._call, self._clock)
        return time_calls(self._call, count, self._clock)

    def run_for(self, seconds: float) -> int:
        """Call without pause for that long; return how often."""
        end, calls = self._clock() + seconds * 1e9, 0
        while self._clock() < end:
            self._call()
            calls += 1
        return calls

    def peak(self) -> int | None:
        """The most resident memory that this process ever had, in bytes; None where the system does not tell."""
        if _STATUS.exists():  # not getrusage: on Linux it remembers the process that this one was forked from
            line = next((line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")), None)
            return None if line is None else int(line.split()[1]) * 1024
        if sys.platform != "darwin":
            return None
        import resource  # which Windows lacks

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def close(self) -> None:
        """Nothing is held that the process does not give back when it ends."""


def serve(make: Callable[[], Server]) -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    with contextlib.suppress(OSError):  # Linux: where memory runs out this process goes, not the one that tells of it
        _FIRST_TO_GO.write_text("1000")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    gc.disable()
    _answer(make(), sys.stdin.buffer, answers)


def _answer(server: Server, requests: BinaryIO, answers: BinaryIO) -> None:
    while True:
        try:
            request, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = True, server.ask(request, *arguments)
        except MeasurementError as error:
            answer = False, str(error)
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()
