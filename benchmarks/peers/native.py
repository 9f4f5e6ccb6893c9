"""A process that times the dense model in a runtime of its own. Imports nothing that a peer's environment may lack.

`benchmarks.compare.measured` starts it beside the processes of ONNX Runtime and asks it for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.measurement.serving import Server

Feeds = Mapping[str, NDArray[Any]]


class Native(Server):
    """A model in another runtime, compiled for one sample a call."""

    package = ""  # the runtime's distribution

    def call_on(self, feeds: Feeds) -> Callable[[], Any]:
        """One inference of the opened model, which returns its first output."""
        raise NotImplementedError

    def requests(self) -> dict[str, Callable[..., Any]]:
        return {**super().requests(), "answers": self.answers, "versions": self.versions}

    def answers(self, inputs: Feeds) -> NDArray[np.float32]:
        """The first output for each sample, (N, …), each called alone: by the very program that is timed."""
        count = len(next(iter(inputs.values())))
        feeds = ({name: array[i : i + 1] for name, array in inputs.items()} for i in range(count))
        return np.concatenate([np.array(self.call_on(one)(), np.float32) for one in feeds])

    def versions(self) -> dict[str, str]:
        """Of the runtime."""
        return {self.package: version(self.package)}
