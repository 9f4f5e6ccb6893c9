"""Predicted against actual zip bytes: five models, dense to 97.5 % sparse, float32 and every int8 form.

    python -m benchmarks.train cnn mobilenetv2 lstm
    python -m benchmarks.size_model

Weights leave by LAMP, without fine-tuning, from the trained cnn, mobilenetv2 and lstm, from an MLP that is trained here
on scikit-learn's digits, and from a resnet18 with the weights it is initialised with. Writes benchmarks/results/.
"""

from __future__ import annotations

import argparse
import copy
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from compress.data import DataOptions, Tokenizer, load_data, synthetic
from compress.files import write_atomically
from compress.measurement.size import zip_bytes
from compress.models import load
from compress.models.reference import mlp
from compress.models.torchvision_compat import ensure_operators
from compress.onnx_export import export
from compress.onnx_export.stage import ExportConfig
from compress.quantization import quantize
from compress.quantization.stage import QuantizeConfig
from compress.reporting.gain import stored_as
from compress.sparsity.masks import apply_masks, make_masks, sparsifiable
from compress.sparsity.size_model import predict_zip_bytes
from compress.training import FineTuneConfig, finetune
from compress.values import Context, InputSpec, Model
from compress.workspace import to_json

SPARSITIES = (0.0, 0.5, 0.9, 0.975)
RESULTS = Path("benchmarks/results")


@dataclass(frozen=True)
class Row:
    """One file."""

    model: str
    sparsity: float  # zeros / elements of the weights
    variant: str
    actual_bytes: int
    predicted_bytes: int
    error: float  # predicted / actual - 1
    predict_seconds: float  # one thread


def cnn(checkpoints: Path) -> Model:
    module = load(checkpoints / "cnn/model.pt", factory="compress.models.reference:FineGrainedCNN").module
    return _model(module, InputSpec("x", (1, 28, 28)))


def mobilenetv2(checkpoints: Path) -> Model:
    return _model(load(checkpoints / "mobilenetv2/model.pt").module, InputSpec("x", (3, 28, 28)))


def lstm(checkpoints: Path) -> Model:
    words = len(Tokenizer.from_json((checkpoints / "lstm/vocab.json").read_bytes()))
    factory, arguments = "compress.models.reference:LSTMClassifier", {"vocabulary": words}
    module = load(checkpoints / "lstm/model.pt", factory=factory, factory_args=arguments).module
    return _model(module, InputSpec("ids", (32,), "int64"))


def mlp_256(checkpoints: Path) -> Model:
    data = load_data("digits", DataOptions())
    torch.manual_seed(0)
    module = mlp(256, 2, 64)
    finetune(module, None, data.train, FineTuneConfig(batch_size=64), steps=400, seed=0)
    return Model(module.eval(), data.inputs)


def resnet18(checkpoints: Path) -> Model:
    ensure_operators()
    import torchvision

    torch.manual_seed(0)
    return _model(torchvision.models.resnet18(num_classes=10), InputSpec("x", (3, 32, 32)))


MODELS = {"cnn": cnn, "mobilenetv2": mobilenetv2, "lstm": lstm, "mlp": mlp_256, "resnet18": resnet18}


def _model(module: nn.Module | None, spec: InputSpec) -> Model:
    assert module is not None
    return Model(module.eval(), (spec,))


def measure(name: str, dense: Model, sparsity: float) -> list[Row]:
    """Make every variant, and predict each from the module alone."""
    module = copy.deepcopy(dense.module)
    parameters = sparsifiable(module)
    apply_masks(parameters, make_masks(parameters, sparsity))
    with tempfile.TemporaryDirectory() as folder:
        context = Context(data=synthetic(dense.inputs, count=64), directory=Path(folder))
        onnx, _ = export(Model(module, dense.inputs), ExportConfig(), context)
        variants, _ = quantize(onnx, QuantizeConfig(), context)
        sizes = {"fp32": zip_bytes(onnx.path)} | {v.name: zip_bytes(v.onnx.path) for v in variants}
    return [_row(name, sparsity, module, variant, size) for variant, size in sizes.items()]


def _row(name: str, sparsity: float, module: nn.Module, variant: str, actual: int) -> Row:
    started = time.process_time()
    predicted = predict_zip_bytes(module, stored=stored_as(variant))
    seconds = time.process_time() - started
    return Row(name, sparsity, variant, actual, predicted, round(predicted / actual - 1, 4), round(seconds, 3))


def table(rows: list[Row]) -> str:
    lines = ["| model | sparsity | variant | zip bytes | predicted | error |", "|---|--:|---|--:|--:|--:|"]
    lines += [
        f"| {r.model} | {r.sparsity:.1%} | {r.variant} | {r.actual_bytes:,} | {r.predicted_bytes:,} | {r.error:+.1%} |"
        for r in rows
    ]
    worst = max(rows, key=lambda row: abs(row.error))
    mean = sum(abs(row.error) for row in rows) / len(rows)
    told = f"{len(rows)} files: mean |error| {mean:.1%}, worst {worst.error:+.1%} ({worst.model}, {worst.variant})."
    return "\n".join([told, "", *lines]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="model", help=", ".join(MODELS))
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    ensure_operators()
    rows: list[Row] = []
    for name in options.models:
        dense = MODELS[name](options.checkpoints)
        for sparsity in SPARSITIES:
            rows += measure(name, dense, sparsity)
            print(
                f"{name} at {sparsity:.1%}: "
                + ", ".join(f"{r.error:+.1%}" for r in rows if (r.model, r.sparsity) == (name, sparsity))
            )
    facts = {"torch": torch.__version__, "python": platform.python_version(), "seed": 0}
    write_atomically(RESULTS / "size-model-seed0.json", to_json({**facts, "rows": [asdict(row) for row in rows]}))
    write_atomically(RESULTS / "size-model-seed0.md", table(rows).encode())


if __name__ == "__main__":
    main()
