"""Models above 2 GB, protobuf's limit: their weights are stored as int8, read one tensor at a time."""

from __future__ import annotations

import time
from dataclasses import asdict

import onnx

from compress.data.examples import EXAMPLES, examples
from compress.errors import QuantizationError
from compress.files import write_atomically
from compress.models.onnx_file import opset, read, run, serialize, strip
from compress.quantization.candidates import candidates
from compress.quantization.check import batches, check_runs
from compress.quantization.compact import compact
from compress.quantization.graph import gather_constants, name_nodes
from compress.quantization.options import QuantizeConfig
from compress.quantization.weights import quantize_weights
from compress.values import Context, OnnxModel, StageRecord, Variant

LARGE = 2_000_000_000  # bytes of a file and its external data
_NOTE = "the model is above 2 GB: its weights are stored as int8 and computed in float; other forms were not made"


def quantize_large(
    model: OnnxModel, config: QuantizeConfig, context: Context
) -> tuple[tuple[Variant, ...], StageRecord]:
    """Write <name>.onnx with int8 weights. Memory: the int8 file, and one float weight.

    Raises:
        QuantizationError: another method was asked for, the file is above 2 GB with int8 weights too, or it does not
            run.
        WorkspaceError: the file cannot be written.
    """
    started = time.perf_counter()
    if config.method not in ("auto", "weights"):
        raise QuantizationError(
            f"quantize.method={config.method}: {model.path.name} is above 2 GB, onnxruntime's quantizers hold all "
            "of it in one protobuf message of at most 2 GB. Use quantize.method=weights."
        )
    (candidate,) = candidates("weights", config.per_channel, config.reduce_range)
    feeds = batches(model.inputs, examples(model.inputs, context.data, EXAMPLES, context.seed))
    wanted = list(run(model.path, feeds, lean=True))
    proto = read(model.path, weights=False)
    gather_constants(proto)
    name_nodes(proto)
    made = quantize_weights(proto, candidate, config.exclude, model.path.parent)
    data = _bytes(made, config, candidate.name)
    check_runs(data, feeds, wanted, candidate.name, lean=True)
    path = context.directory / f"{candidate.name}.onnx"
    write_atomically(path, data)
    variant = Variant(candidate.name, "quantize", OnnxModel(path, model.inputs, opset(made), model.task))
    file = {"bytes": len(data), "saturating_layers": 0, "int8_mac_share": 0.0, "portability": []}
    seconds = time.perf_counter() - started
    return (variant,), StageRecord("quantize", asdict(config), seconds, {"files": {candidate.name: file}}, (_NOTE,))


def _bytes(proto: onnx.ModelProto, config: QuantizeConfig, name: str) -> bytes:
    strip(proto)
    if config.short_names:
        compact(proto)
    if proto.ByteSize() >= LARGE:
        raise QuantizationError(f"{name}: {proto.ByteSize():,} bytes with int8 weights, 2 GB is protobuf's limit.")
    return serialize(proto)
