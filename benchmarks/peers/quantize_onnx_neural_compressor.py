"""ONNX Neural Compressor 1.0, what became of the ONNX part of Neural Compressor. Run by `benchmarks.quantization`.

    python -m benchmarks.peers.quantize_onnx_neural_compressor float.onnx calibration.npz int8.onnx [--dynamic]

The defaults of its `StaticQuantConfig` (uint8 activations, int8 weights, a scale for each tensor, QOperator), but for
the number of samples: all that there are, where it would take 100. --dynamic: those of its `DynamicQuantConfig`.
--relu-first: the graph becomes an equal one that it does not break, see `pooling`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import config, quantize

from benchmarks.peers.calibration import arguments, feeds, tell_versions
from benchmarks.peers.pooling import relu_first


class Reader(data_reader.CalibrationDataReader):  # type: ignore[misc]  # it has no types
    def __init__(self, calibration: Path) -> None:
        self.samples = feeds(calibration)
        self.rewind()

    def rewind(self) -> None:
        self._left = iter(self.samples)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


def main() -> None:
    options = arguments(__doc__, "dynamic", "relu-first")
    if options.dynamic:
        wanted = config.DynamicQuantConfig()
    else:
        reader = Reader(options.calibration)
        wanted = config.StaticQuantConfig(reader, calibration_sampling_size=len(reader.samples))
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if options.relu_first:
            model = Path(scratch) / "relu-first.onnx"
            onnx.save(relu_first(onnx.load(options.model)), model)
        quantize(str(model), str(options.out), wanted)
    tell_versions(options.out, "onnx-neural-compressor", "onnxruntime", "onnx")


if __name__ == "__main__":
    main()
