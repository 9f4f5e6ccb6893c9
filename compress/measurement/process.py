"""A worker in a process of its own, and what to say of one that does not answer."""

from __future__ import annotations

import contextlib
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import compress
from compress.errors import MeasurementError

PATIENCE_S = 600.0  # for one answer, beyond what it should take: an engine may be built at the first call
_COMMAND = (sys.executable, "-m", "compress.measurement.worker")


class Process:
    """Passes requests on to a `compress.measurement.serving.Server` in a process that was started for it.

    The process ends when this is closed, and, should this one be killed, when its standard input does.

    Args:
        command: Starts a process that calls `compress.measurement.serving.serve`.

    Raises:
        MeasurementError: it cannot be started.
    """

    def __init__(self, command: tuple[str, ...] = _COMMAND) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._late = threading.Event()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                cwd=Path(compress.__file__).parents[1],  # where this very package lies, and no file of the user's
            )
        except OSError as error:
            self._said.close()
            raise MeasurementError(f"no process could be started to time in: {error}") from error

    def ask(self, request: str, *arguments: Any, limit_s: float = PATIENCE_S) -> Any:
        """What the worker answers.

        Raises:
            MeasurementError: it says that it cannot, or its process ended, or took longer than ``limit_s`` and was
                ended. The message is one line.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(limit_s, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            pickle.dump((request, arguments), self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            done, answer = pickle.load(self._process.stdout)
        except Exception as error:  # pickle may raise anything on bytes that are none of its own
            raise MeasurementError(self._end(request, limit_s)) from error
        finally:
            timer.cancel()
        if not done:
            raise MeasurementError(answer)
        return answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not sent to a process that had ended
                    stream.close()

    def _give_up(self) -> None:
        self._late.set()
        self._process.kill()

    def _end(self, request: str, limit_s: float) -> str:
        """Why there is no answer."""
        if self._late.is_set():
            return f"gave no answer to {request!r} within {limit_s:.0f} s; its process was ended"
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that talks nonsense, and lives
            self._process.wait(1.0)
        status = self._process.poll()
        return f"{_ending(status)} during {request!r}{self._last_words()}"

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def _ending(status: int | None) -> str:
    if status is None:
        return "its process answered what cannot be read"
    if status >= 0:
        return f"its process ended with status {status}"
    known = {one.value: one.name for one in signal.Signals}
    name = known.get(-status, f"signal {-status}")
    why = " (the system does so where memory runs out)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{why}"
