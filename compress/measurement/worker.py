"""The process that one variant is timed in: `python -m compress.measurement.worker`, started by `latency`.

It holds Python, numpy, ONNX Runtime and one model, so that its memory and its caches are the model's and nobody else's.
It takes requests from standard input and answers on what was its standard output, pickled: its parent is the only one
who writes to it. Whatever libraries print goes to standard error.
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
import onnxruntime
from numpy.typing import NDArray

from compress.errors import MeasurementError
from compress.measurement.placement import placement
from compress.measurement.sessions import Factory, bind, first_line, open_session
from compress.measurement.turns import MS, Call, Clock, awake, time_calls, warm_up

_STATUS = Path("/proc/self/status")
_FIRST_TO_GO = Path("/proc/self/oom_score_adj")
_STAT = Path("/proc/self/stat")
_CORE = 36  # the field of the core that the process is on, counted from behind its name


class Worker:
    """One model, opened once and called often.

    Args:
        factory: Makes sessions; ONNX Runtime's own but in tests.
        clock: Nanoseconds, monotonic.
    """

    def __init__(self, factory: Factory = onnxruntime.InferenceSession, clock: Clock = time.perf_counter_ns) -> None:
        self._factory = factory
        self._clock = clock
        self._asked: tuple[Path, str, int, Mapping[str, NDArray[Any]]]
        self._call: Call

    def ask(self, request: str, *arguments: Any, limit_s: float = 0.0) -> Any:
        """Do what the method of that name does; ``limit_s`` is for those who ask another process.

        Raises:
            MeasurementError: it cannot be done; the message is one line.
        """
        methods: dict[str, Callable[..., Any]] = {
            "start": self.start,
            "open": self.open,
            "pin": self.pin,
            "warm": self.warm,
            "block": self.block,
            "peak": self.peak,
            "run_for": self.run_for,
            "place": self.place,
        }
        try:
            return methods[request](*arguments)
        except MeasurementError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise MeasurementError(f"{request} failed: {first_line(error)}") from error

    def start(self) -> None:
        """Answered once everything is imported."""

    def open(self, path: str, provider: str, threads: int, feeds: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
        """Make the session and call it once; return the milliseconds of both."""
        self._asked = Path(path), provider, threads, feeds
        start = self._clock()
        session = open_session(Path(path), provider, threads, self._factory)
        loaded = self._clock()
        self._call = bind(session, provider, feeds)
        return (loaded - start) / MS, float(time_calls(self._call, 1, self._clock)[0]) / MS

    def pin(self, core: int | None) -> int | None:
        """Stay on a core: the one given, or where the system has this process now. None: it cannot be told here."""
        try:
            chosen = int(_STAT.read_text().rpartition(")")[2].split()[_CORE]) if core is None else core
            os.sched_setaffinity(0, {chosen})
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

    def place(self) -> dict[str, Any]:
        """Where the nodes run, from a profiled session beside the timed one."""
        return placement(*self._asked, self._factory).to_dict()

    def close(self) -> None:
        """Nothing is held that the process does not give back when it ends."""


def main() -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    with contextlib.suppress(OSError):  # Linux: where memory runs out this process goes, not the one that tells of it
        _FIRST_TO_GO.write_text("1000")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    gc.disable()
    _serve(sys.stdin.buffer, answers)


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    worker = Worker()
    while True:
        try:
            request, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = True, worker.ask(request, *arguments)
        except MeasurementError as error:
            answer = False, str(error)
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main()
