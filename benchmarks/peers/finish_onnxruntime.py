"""onnxruntime's own quantizers, their types and calibration searched as its documentation tells to.

    python -m benchmarks.peers.finish_onnxruntime INPUTS SOURCE OUT [--dynamic]

After `quant_pre_process`, `quantize_static` with each pair of types, in QDQ format with min-max ranges. The fastest,
the smallest and the most accurate of these then get each of the VARIANTS. Weights are symmetric always, so that a
pruned one stays zero. --dynamic: `quantize_dynamic` too, which is recommended for recurrent nets and transformers.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peers.finishing import Feed, Search, arguments, finish

HISTOGRAM_SAMPLES = 128  # the histogram calibrators keep every activation of every sample

U8S8 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
S8S8 = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
U8U8 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8}
CHANNEL, REDUCE = {"per_channel": True}, {"reduce_range": True}  # 7 bits: without VNNI, sums of 16 bits overflow
TYPES: dict[str, dict[str, Any]] = {
    "S8S8 per tensor": S8S8,
    "U8S8 per tensor": U8S8,
    "U8S8 per tensor, reduce_range": U8S8 | REDUCE,
    "U8S8 per channel": U8S8 | CHANNEL,
    "U8S8 per channel, reduce_range": U8S8 | CHANNEL | REDUCE,
    "U8U8 per tensor": U8U8,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "Entropy": {"calibrate_method": CalibrationMethod.Entropy},
    "Percentile": {"calibrate_method": CalibrationMethod.Percentile},
    "QOperator": {"quant_format": QuantFormat.QOperator},
    "layers with weights alone": {"op_types_to_quantize": ["Conv", "Gemm", "MatMul"]},
}


class Reader(CalibrationDataReader):
    def __init__(self, samples: list[Feed]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> Feed | None:
        return next(self._samples, None)


def static(prepared: Path, samples: list[Feed], options: dict[str, Any], path: Path) -> None:
    used = samples[:HISTOGRAM_SAMPLES] if "calibrate_method" in options else samples
    quantize_static(prepared, path, Reader(used), extra_options={"WeightSymmetric": True}, **options)


def main() -> None:
    task, flags = arguments(__doc__, "dynamic")
    samples = task.calibration.feeds()

    def quantize(search: Search) -> None:
        prepared = search.folder / "prepared.onnx"
        quant_pre_process(search.source, prepared)
        for types, options in TYPES.items():
            search.add(f"quantize_static {types}", partial(static, prepared, samples, options))
        best = [one.settings for one in search.best()] if search.made else []
        for types, options in TYPES.items():
            for variant, more in VARIANTS.items() if f"quantize_static {types}" in best else ():
                write = partial(static, prepared, samples, options | more)
                search.add(f"quantize_static {types}, {variant}", write)
        for per_channel in (False, True) if flags.dynamic else ():
            write = partial(quantize_dynamic, prepared, per_channel=per_channel)
            search.add(f"quantize_dynamic S8, per {'channel' if per_channel else 'tensor'}", write)

    finish(task, quantize, "onnxruntime", "onnx")


if __name__ == "__main__":
    main()
