"""torch.compile runs the dense model. Started by `benchmarks.compare.measured`.

    python -m benchmarks.peers.native_torch_compile default|max-autotune

As torch's documentation advises for inference on a CPU: inference mode, and weights that are frozen, so that they are
packed once and normalisation is folded into them. default: Inductor's kernels; max-autotune: it also tries its
templates for each matrix product and convolution, and calls the kernels from C++.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config

from benchmarks.peers.native import Feeds, Native
from compress.measurement.serving import serve
from compress.models.torchvision_compat import ensure_operators

WARM_CALLS = 3  # what is compiled at the second call, if anything, is not the first call's


class TorchCompile(Native):
    """The module that lies as model.pt beside the ONNX file, compiled for the shapes of its first call."""

    package = "torch"

    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode

    def prepare(self, path: Path, provider: str, threads: int, feeds: Feeds) -> Callable[[], Any]:
        torch.set_num_threads(threads)
        ensure_operators()  # a pickled module of torchvision imports it
        with torch.inference_mode(False):
            module = torch.load(path.with_name("model.pt"), weights_only=False).eval()
        config.compile_threads = 1  # others would stay, beside what is timed
        config.freezing = True
        config.cpp_wrapper = self._mode == "max-autotune"
        mode = "max-autotune-no-cudagraphs" if self._mode == "max-autotune" else None
        self._compiled = torch.compile(module, mode=mode)
        call = self.call_on(feeds)
        for _ in range(WARM_CALLS):
            call()
        return call

    def call_on(self, feeds: Feeds) -> Callable[[], Any]:
        return partial(self._compiled, *(torch.from_numpy(array) for array in feeds.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("default", "max-autotune"))
    options = parser.parse_args()
    with torch.inference_mode():
        serve(partial(TorchCompile, options.mode))


if __name__ == "__main__":
    main()
