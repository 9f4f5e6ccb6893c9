"""Neural Compressor 2.6, the last that takes ONNX, with its accuracy-aware tuning. Run in its environment.

    python -m benchmarks.peers.finish_neural_compressor INPUTS SOURCE OUT [--dynamic]

Static, with each of the SETTINGS and all calibration samples: it quantizes, scores the model on the validation samples,
and takes operators back to float until the drop is tolerable or MAX_TRIALS are over. --dynamic: ranges taken at run
time too. The graph becomes an equal one first that it does not break, see `pooling`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import onnx
from neural_compressor import PostTrainingQuantConfig, quantization
from neural_compressor.config import AccuracyCriterion, TuningCriterion

from benchmarks.peers.finishing import Feed, Search, accuracy, arguments, finish
from benchmarks.peers.pooling import relu_first

MAX_TRIALS = 20
PER_TENSOR = {kind: {"weight": {"granularity": ["per_tensor"]}} for kind in ("Conv", "Gemm", "MatMul")}
SETTINGS = {
    "static QOperator": {},
    "static QDQ": {"quant_format": "QDQ"},
    "static QDQ, reduce_range": {"quant_format": "QDQ", "reduce_range": True},
    "static QDQ, per tensor": {"quant_format": "QDQ", "op_type_dict": PER_TENSOR},
    "static QDQ, per tensor, reduce_range": {"quant_format": "QDQ", "op_type_dict": PER_TENSOR, "reduce_range": True},
}
DYNAMIC = {"dynamic": {"approach": "dynamic"}}


class Loader:
    """Samples as (inputs, label), without labels."""

    batch_size = 1

    def __init__(self, samples: list[Feed]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[Feed, int]]:
        for sample in self.samples:
            yield sample, 0


def tuned(search: Search, loader: Loader, options: dict[str, object], path: Path) -> None:
    """Write the first model of its search whose loss is tolerable."""
    task = search.task
    left = accuracy(search.source, task.validation) - (task.baseline - task.max_drop)
    config = PostTrainingQuantConfig(
        calibration_sampling_size=[len(loader.samples)],
        accuracy_criterion=AccuracyCriterion(criterion="absolute", tolerable_loss=left),
        tuning_criterion=TuningCriterion(max_trials=MAX_TRIALS),
        **options,
    )
    quantized = quantization.fit(
        relu_first(onnx.load(search.source)),
        config,
        calib_dataloader=loader,
        eval_func=lambda model: accuracy(model.SerializeToString(), task.validation),
    )
    if quantized is None:  # it logs what went wrong, and raises nothing
        raise RuntimeError(f"Neural Compressor found nothing that loses at most {left:.4f}")
    quantized.save(str(path))


def main() -> None:
    task, flags = arguments(__doc__, "dynamic")
    loader = Loader(task.calibration.feeds())

    def quantize(search: Search) -> None:
        for name, options in {**SETTINGS, **(DYNAMIC if flags.dynamic else {})}.items():
            search.add(f"Neural Compressor {name}, tuned", partial(tuned, search, loader, options))

    finish(task, quantize, "neural-compressor", "onnxruntime", "onnx")


if __name__ == "__main__":
    main()
