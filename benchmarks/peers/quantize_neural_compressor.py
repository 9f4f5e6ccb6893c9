"""Neural Compressor 2.6, the last that takes ONNX. Run by `benchmarks.quantization`, in its environment.

    python -m benchmarks.peers.quantize_neural_compressor float.onnx calibration.npz int8.onnx [--qdq]

Releases 3.x have no ONNX any more (3.10: torch, tensorflow and jax). Its defaults (uint8 activations, int8 weights, a
scale for each channel, QOperator), but for the number of samples: all that there are, where it would take 100. No
accuracy is given to it, so that it makes one model and does not search. --qdq: the format that onnxruntime prefers;
--dynamic: ranges taken at run time; --relu-first: the graph becomes an equal one that it does not break, see `pooling`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from neural_compressor import PostTrainingQuantConfig, quantization

from benchmarks.peers.calibration import arguments, feeds, tell_versions
from benchmarks.peers.pooling import relu_first


class Loader:
    """Samples as (inputs, label), without labels."""

    batch_size = 1

    def __init__(self, calibration: Path) -> None:
        self.samples = feeds(calibration)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for sample in self.samples:
            yield sample, 0


def main() -> None:
    options = arguments(__doc__, "qdq", "dynamic", "relu-first")
    loader = Loader(options.calibration)
    config = PostTrainingQuantConfig(
        approach="dynamic" if options.dynamic else "static",
        quant_format="QDQ" if options.qdq else "default",
        calibration_sampling_size=[len(loader.samples)],
    )
    model = onnx.load(options.model)
    model = relu_first(model) if options.relu_first else model
    quantized = quantization.fit(model, config, calib_dataloader=loader)
    if quantized is None:  # it logs what went wrong, and raises nothing
        raise RuntimeError("Neural Compressor made no model")
    quantized.save(str(options.out))
    tell_versions(options.out, "neural-compressor", "onnxruntime", "onnx")


if __name__ == "__main__":
    main()
