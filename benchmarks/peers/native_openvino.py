"""OpenVINO runs the dense float ONNX file. Started by `benchmarks.compare.measured` in its own environment.

    python -m benchmarks.peers.native_openvino f32|default

As its documentation advises for the latency of one sample: the LATENCY hint, a fixed shape, and inputs that already lie
in the request's tensors. f32: the arithmetic of the file; default: what OpenVINO chooses, which is bfloat16 where the
processor has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import openvino

from benchmarks.peers.native import Feeds, Native
from compress.measurement.serving import serve


class OpenVino(Native):
    """One infer request of a model that is compiled for the CPU."""

    package = "openvino"

    def __init__(self, precision: str) -> None:
        super().__init__()
        self._hints = {"INFERENCE_PRECISION_HINT": precision} if precision != "default" else {}

    def prepare(self, path: Path, provider: str, threads: int, feeds: Feeds) -> Callable[[], Any]:
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape({name: openvino.PartialShape(list(array.shape)) for name, array in feeds.items()})
        # Where the process runs is for the benchmark to say: the threads of all that are timed share a core.
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        self._request = core.compile_model(model, "CPU", {**settings, **self._hints}).create_infer_request()
        return self.call_on(feeds)

    def call_on(self, feeds: Feeds) -> Callable[[], Any]:
        request = self._request
        for name, array in feeds.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        output = request.get_output_tensor(0).data

        def call() -> Any:
            request.infer(share_outputs=True)
            return output

        return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precision", choices=("f32", "default"))
    serve(partial(OpenVino, parser.parse_args().precision))


if __name__ == "__main__":
    main()
