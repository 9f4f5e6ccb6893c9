"""The process that one variant is timed in: `python -m compress.measurement.worker`, started by `latency`.

It holds Python, numpy, ONNX Runtime and one model, so that its memory and its caches are the model's and nobody else's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from compress.measurement.placement import placement
from compress.measurement.serving import Server, serve
from compress.measurement.sessions import Factory, bind, open_session
from compress.measurement.turns import Call, Clock


class Worker(Server):
    """A model that ONNX Runtime runs.

    Args:
        factory: Makes sessions; ONNX Runtime's own but in tests.
        clock: Nanoseconds, monotonic.
    """

    def __init__(self, factory: Factory = onnxruntime.InferenceSession, clock: Clock = time.perf_counter_ns) -> None:
        super().__init__(clock)
        self._factory = factory
        self._asked: tuple[Path, str, int, Mapping[str, NDArray[Any]]]

    def prepare(self, path: Path, provider: str, threads: int, feeds: Mapping[str, NDArray[Any]]) -> Call:
        """Make the session."""
        self._asked = path, provider, threads, feeds
        return bind(open_session(path, provider, threads, self._factory), provider, feeds)

    def place(self) -> dict[str, Any]:
        """Where the nodes run, from a profiled session beside the timed one."""
        return placement(*self._asked, self._factory).to_dict()


if __name__ == "__main__":
    serve(Worker)
