"""NNCF's `nncf.quantize` on its ONNX backend. Run by `benchmarks.quantization`, in NNCF's environment.

    python -m benchmarks.peers.quantize_nncf float.onnx calibration.npz int8.onnx [--bias-correction] [--transformer]

Its defaults, but for the number of samples: all that there are, where NNCF would take the first 300. --bias-correction:
`fast_bias_correction=False`, slower and by its documentation more exact. --transformer: `model_type=TRANSFORMER`.
"""

from __future__ import annotations

import nncf
import onnx

from benchmarks.peers.calibration import arguments, feeds, tell_versions


def main() -> None:
    options = arguments(__doc__, "bias-correction", "transformer")
    samples = feeds(options.calibration)
    quantized = nncf.quantize(
        onnx.load(options.model),
        nncf.Dataset(samples),
        subset_size=len(samples),
        fast_bias_correction=not options.bias_correction,
        model_type=nncf.ModelType.TRANSFORMER if options.transformer else None,
    )
    onnx.save(quantized, options.out)
    tell_versions(options.out, "nncf", "onnxruntime", "onnx")


if __name__ == "__main__":
    main()
