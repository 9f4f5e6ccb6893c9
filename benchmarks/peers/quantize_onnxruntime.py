"""onnxruntime's own quantizers, as its documentation tells to use them. Run by `benchmarks.quantization`.

    python -m benchmarks.peers.quantize_onnxruntime float.onnx calibration.npz int8.onnx [--u8s8] [--per-channel]

Without flags `quantize_static` with its defaults: QDQ, min-max, int8 activations and weights, one scale a tensor. With
--u8s8 what its documentation recommends for x86 with VNNI; --per-channel what it adds for accuracy. --dynamic:
`quantize_dynamic` with its defaults, recommended for recurrent nets and transformers. All after `quant_pre_process`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peers.calibration import arguments, feeds, tell_versions


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, samples: Iterable[dict[str, Any]]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._samples, None)


def main() -> None:
    options = arguments(__doc__, "u8s8", "per-channel", "dynamic")
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(options.model, prepared)
        if options.dynamic:
            quantize_dynamic(prepared, options.out)
        else:
            quantize_static(
                prepared,
                options.out,
                Reader(feeds(options.calibration)),
                activation_type=QuantType.QUInt8 if options.u8s8 else QuantType.QInt8,
                per_channel=options.per_channel,
            )
    tell_versions(options.out, "onnxruntime", "onnx")


if __name__ == "__main__":
    main()
