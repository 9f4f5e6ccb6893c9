"""NNCF's `nncf.quantize` on its ONNX backend, its settings searched. Run in NNCF's environment.

    python -m benchmarks.peers.finish_nncf INPUTS SOURCE OUT [--transformer]

Both presets and both bias corrections, and of its advanced parameters those that a processor with VNNI can go without:
the first layer's 7 bits, and a scale for each channel. All calibration samples. Where nothing keeps the accuracy, what
its documentation advises next: `quantize_with_accuracy_control`, which takes layers back to float. The graph becomes an
equal one first, its ReLU before the pooling, see `pooling`: else the convolution stays float, four times slower on the
fine-grained CNN. --transformer: `model_type=TRANSFORMER`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nncf
import onnx
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix, QuantizationParameters

from benchmarks.peers.finishing import Feed, Search, accuracy, arguments, finish, session
from benchmarks.peers.pooling import relu_first

PRESETS = (nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED)
PER_TENSOR = QuantizationParameters(per_channel=False)
ADVANCED = {
    "": AdvancedQuantizationParameters(),
    ", no overflow_fix": AdvancedQuantizationParameters(overflow_fix=OverflowFix.DISABLE),
    ", weights per tensor": AdvancedQuantizationParameters(weights_quantization_params=PER_TENSOR),
}


def controlled(search: Search, calibration: nncf.Dataset, shared: dict[str, Any]) -> onnx.ModelProto:
    """What `quantize_with_accuracy_control` makes within the drop that is left."""
    task = search.task

    def score(model: onnx.ModelProto, samples: Iterable[tuple[Feed, int]]) -> tuple[float, list[float]]:
        opened = session(model.SerializeToString())
        right = [float(opened.run(None, feed)[0].argmax() == label) for feed, label in samples]
        return sum(right) / len(right), right

    validation = list(zip(task.validation.feeds(), task.validation.labels, strict=True))
    return nncf.quantize_with_accuracy_control(
        relu_first(onnx.load(search.source)),
        calibration,
        nncf.Dataset(validation, lambda sample: sample[0]),
        validation_fn=score,
        max_drop=accuracy(search.source, task.validation) - (task.baseline - task.max_drop),
        drop_type=nncf.DropType.ABSOLUTE,
        **shared,
    )


def main() -> None:
    task, flags = arguments(__doc__, "transformer")
    feeds = task.calibration.feeds()
    calibration = nncf.Dataset(feeds)
    kind = nncf.ModelType.TRANSFORMER if flags.transformer else None
    shared: dict[str, Any] = {"subset_size": len(feeds), "model_type": kind}

    def quantize(search: Search) -> None:
        for preset in PRESETS:
            for fast in (True, False):
                for name, advanced in ADVANCED.items():
                    options = {"preset": preset, "fast_bias_correction": fast, "advanced_parameters": advanced}

                    def write(path: Path, options: dict[str, Any] = options) -> None:
                        onnx.save(
                            nncf.quantize(relu_first(onnx.load(search.source)), calibration, **options, **shared), path
                        )

                    search.add(f"nncf.quantize {preset.name}, fast_bias_correction={fast}{name}", write)
        if not search.within:
            search.add(
                "nncf.quantize_with_accuracy_control",
                lambda path: onnx.save(controlled(search, calibration, shared), path),
            )

    finish(task, quantize, "nncf", "onnxruntime", "onnx")


if __name__ == "__main__":
    main()
