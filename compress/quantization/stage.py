"""`quantize`: candidates, each built, made compact, checked and written."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import onnx

from compress.data.examples import EXAMPLES, examples
from compress.errors import QuantizationError, RecipeError
from compress.files import write_atomically
from compress.measurement.environment import saturates
from compress.models.onnx_file import Array, first_line, opset, read, run, serialize, strip
from compress.quantization.calibration import SplitReader
from compress.quantization.candidates import Candidate, Choice, Form, candidates, forms
from compress.quantization.check import Batches, batches, check_runs, check_zeros
from compress.quantization.compact import compact
from compress.quantization.cpu import saturating_layers
from compress.quantization.integer import is_quantized, quantize_dynamic_range, quantize_static_qdq
from compress.quantization.weights import quantize_remaining_weights, quantize_weights
from compress.values import Context, OnnxModel, StageRecord, Variant

logger = logging.getLogger(__name__)

_NEWEST_IR = 10  # onnxruntime 1.20 reads no later one
_NO_DATA = "static quantization was skipped: its ranges need calibration data; give --data"


@dataclass(frozen=True)
class QuantizeConfig:
    """Which int8 files are made. "auto" makes the candidates that are worth measuring; which one ships is measured.

    The methods: "static" computes in int8 with ranges from calibration data (convolutional nets), "dynamic" with
    ranges taken at run time (Linear and LSTM nets), "weights" stores int8 and computes in float (all nets).
    """

    method: Literal["auto", "static", "dynamic", "weights"] = "auto"
    per_channel: Choice = "auto"  # a scale for each output channel, not one a tensor: more exact, more bytes
    reduce_range: Choice = "auto"  # weights of 7 bits: exact on CPUs without VNNI too, and fewer zipped bytes
    batch_size: int = 32  # samples in a calibration batch, 1 or more
    exclude: tuple[str, ...] = ()  # names of nodes of the float graph that stay float
    short_names: bool = True  # inner values get short names, for a smaller zip

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise RecipeError(f"quantize.batch_size={self.batch_size}: allowed are whole numbers from 1.")


@dataclass(frozen=True)
class _Source:
    """The float file, and what it gives."""

    model: OnnxModel
    proto: onnx.ModelProto
    feeds: Batches
    outputs: list[list[Array]]


def quantize(model: OnnxModel, config: QuantizeConfig, context: Context) -> tuple[tuple[Variant, ...], StageRecord]:
    """Write int8 candidates of a float ONNX file, each as <name>.onnx; equal input gives equal bytes.

    Every candidate is run at batch sizes 1, 2 and 5, keeps the output shapes, and keeps every zero weight. With
    ``method="auto"`` a candidate that cannot be made is a note of the record.

    Raises:
        QuantizationError: the data is not finite, a node to exclude does not exist, the method asked for does not
            suit the graph, or no candidate can be made.
        WorkspaceError: a file cannot be written.
    """
    started = time.perf_counter()
    source = _open(model, config, context)
    if is_quantized(source.proto):
        seconds = time.perf_counter() - started
        return (), StageRecord("quantize", asdict(config), seconds, skipped="the model is quantized already")
    plan, notes = _plan(source.proto, config, context)
    variants: list[Variant] = []
    figures: dict[str, dict[str, int]] = {}
    for done, candidate in enumerate(plan):
        context.progress("quantize", done, len(plan), candidate.name)
        try:
            variant, figures[candidate.name] = _make(source, candidate, config, context)
            variants.append(variant)
        except QuantizationError as error:
            if config.method != "auto" or (done == len(plan) - 1 and not variants):
                raise
            logger.warning("%s", error)
            notes.append(str(error))
    context.progress("quantize", len(plan), len(plan))
    notes += _portability(figures)
    seconds = time.perf_counter() - started
    skipped = None if plan else _NO_DATA
    return tuple(variants), StageRecord("quantize", asdict(config), seconds, figures, tuple(notes), skipped)


def _plan(proto: onnx.ModelProto, config: QuantizeConfig, context: Context) -> tuple[list[Candidate], list[str]]:
    """The candidates to make, and what is left out."""
    wanted: tuple[Form, ...] = forms(proto) if config.method == "auto" else (config.method,)
    made = [form for form in wanted if form != "static" or context.data is not None]
    notes = [_NO_DATA] if made and len(made) < len(wanted) else []
    plan = [c for form in made for c in candidates(form, config.per_channel, config.reduce_range, saturates())]
    return plan, notes


def _open(model: OnnxModel, config: QuantizeConfig, context: Context) -> _Source:
    proto = read(model.path)
    names = {node.name for node in proto.graph.node}
    unknown = [name for name in config.exclude if name not in names]
    if unknown:
        some = ", ".join(sorted(names)[:8])
        raise QuantizationError(
            f"quantize.exclude names {', '.join(unknown)}, which {model.path.name} does not have. It has {some}, …"
        )
    feeds = batches(model.inputs, examples(model.inputs, context.data, EXAMPLES, context.seed))
    try:
        outputs = list(run(serialize(proto), feeds))
    except Exception as error:  # onnxruntime's errors have no common base of their own
        raise QuantizationError(
            f"onnxruntime cannot run {model.path.name}, so it cannot be quantized: {first_line(error)}. "
            "Check that the inputs fit it and that axis 0 of each is the batch."
        ) from error
    return _Source(model, proto, feeds, outputs)


def _make(
    source: _Source, candidate: Candidate, config: QuantizeConfig, context: Context
) -> tuple[Variant, dict[str, int]]:
    """Build, check and write one candidate; return it and its figures."""
    proto = _build(source, candidate, config, context)
    saturating = len(saturating_layers(proto)) if candidate.form == "static" else 0
    data = _finish(source, proto, candidate, config)
    path = context.directory / f"{candidate.name}.onnx"
    write_atomically(path, data)
    onnx_model = OnnxModel(path, source.model.inputs, opset(proto), source.model.task)
    figures = {"bytes": len(data), "saturating_layers": saturating}
    return Variant(candidate.name, "quantize", onnx_model), figures


def _build(source: _Source, candidate: Candidate, config: QuantizeConfig, context: Context) -> onnx.ModelProto:
    if candidate.form == "weights":
        return quantize_weights(source.proto, candidate, config.exclude)
    if candidate.form == "dynamic":
        quantized = quantize_dynamic_range(source.proto, candidate, config.exclude)
        return quantize_remaining_weights(quantized, candidate, config.exclude)
    assert context.data is not None
    reader = SplitReader(context.data.calibration, source.model.inputs, config.batch_size)
    return quantize_static_qdq(source.proto, candidate, reader, config.exclude)


def _finish(source: _Source, proto: onnx.ModelProto, candidate: Candidate, config: QuantizeConfig) -> bytes:
    """The bytes of a built graph, once it is checked."""
    check_zeros(source.proto, proto, candidate.name)
    strip(proto)
    if config.short_names:
        compact(proto)
    proto.ir_version = min(source.proto.ir_version, _NEWEST_IR)
    if opset(proto) != opset(source.proto):
        raise QuantizationError(
            f"{candidate.name}: onnxruntime changed the opset from {opset(source.proto)} to {opset(proto)}. "
            "Export the model again with opset=18."
        )
    data = serialize(proto)
    check_runs(data, source.feeds, source.outputs, candidate.name)
    return data


def _portability(figures: Mapping[str, Mapping[str, int]]) -> list[str]:
    risky = [f"{name} ({f['saturating_layers']} layers)" for name, f in figures.items() if f["saturating_layers"]]
    if not risky:
        return []
    return [f"can saturate on x86 CPUs without VNNI, and lose accuracy there: {', '.join(risky)}"]
