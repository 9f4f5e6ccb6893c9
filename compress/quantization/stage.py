"""`quantize`: candidates, each built, improved, checked and written; layers return to float where the budget asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import onnx

from compress.measurement import raw_bytes
from compress.quantization.candidates import Candidate, Form, Types, candidates, forms
from compress.quantization.fast import add_fast_file
from compress.quantization.float16 import has_cuda, to_float16
from compress.quantization.graph import layers
from compress.quantization.integer import gemms_as_products, is_quantized, quantize_dynamic_range
from compress.quantization.isa import target
from compress.quantization.large import LARGE, quantize_large
from compress.quantization.options import QuantizeConfig
from compress.quantization.recovery import recover
from compress.quantization.sensitivity import weighted_layers
from compress.quantization.small import add_small_files
from compress.quantization.source import open_source
from compress.quantization.static import build, corrected, prepare
from compress.quantization.weights import quantize_remaining_weights, quantize_weights
from compress.quantization.workbench import Workbench
from compress.values import Context, OnnxModel, StageRecord, Variant

MakeCandidate = Callable[[Candidate, tuple[str, ...]], onnx.ModelProto]

_NO_DATA = "static quantization was skipped: its ranges need calibration data; give --data"


def quantize(model: OnnxModel, config: QuantizeConfig, context: Context) -> tuple[tuple[Variant, ...], StageRecord]:
    """Write quantized candidates of a float ONNX file, each as <name>.onnx; equal input gives equal bytes.

    Every candidate is run at batch sizes 1, 2 and 5, keeps the output shapes, and keeps every zero weight. Where the
    plainest candidate of a form loses more than ``context.max_drop`` on validation, its rounding is learned, and then
    layers return to float until it does not. Which layers of <name>-fast are in float goes by what is timed here, and
    so whether there is such a file. Of files above 2 GB the weights alone are quantized. What cannot be made is a note
    of the record; of the method asked for, it is an error.

    Raises:
        QuantizationError: the data is not finite, a node to exclude does not exist, the method asked for does not
            suit the graph, or no candidate can be made.
        WorkspaceError: a file cannot be written.
    """
    started = time.perf_counter()
    if raw_bytes(model.path) > LARGE:
        return quantize_large(model, config, context)
    source = open_source(model, config, context)
    if is_quantized(source.proto):
        seconds = time.perf_counter() - started
        return (), StageRecord("quantize", asdict(config), seconds, skipped="the model is quantized already")
    bench = Workbench(source, config, context)
    for form in _wanted(bench):
        bench.attempt((form,), partial(_ADD[form], bench), required=config.method == form)
    if config.float16 == "yes" or (config.float16 == "auto" and has_cuda()):
        bench.attempt(("float16",), lambda: bench.add("float16", to_float16(source.proto, config.exclude)))
    if config.compact == "yes" or (config.compact == "auto" and context.objective == "size"):
        add_small_files(bench)
    context.progress("quantize", 1, 1)
    seconds = time.perf_counter() - started
    skipped = _NO_DATA if not bench.variants and bench.notes == [_NO_DATA] else None
    notes = tuple(bench.notes)
    return tuple(bench.variants), StageRecord("quantize", asdict(config), seconds, bench.all_figures(), notes, skipped)


def _wanted(bench: Workbench) -> tuple[Form, ...]:
    """The forms to make; what needs data where there is none is left out with a note."""
    method = bench.config.method
    wanted = forms(bench.source.proto, bench.source.model.inputs) if method == "auto" else (method,)
    made = tuple(form for form in wanted if form != "static" or bench.judge is not None)
    if len(made) < len(wanted):
        bench.notes.append(_NO_DATA)
    return made


def _plan(form: Form, config: QuantizeConfig) -> tuple[Candidate, ...]:
    processor = target(config.target_isa)
    here = processor == target()
    return candidates(
        form, config.per_channel, config.reduce_range, _types(config, here), processor.saturates, measurable=here
    )


def _types(config: QuantizeConfig, here: bool) -> tuple[Types, ...]:
    """The pairs of types to make, those that should be fastest first; what can be measured here is not left out."""
    if config.types != "auto":
        return (config.types,)
    fast = target(config.target_isa).fast
    return tuple(dict.fromkeys((*fast, "u8s8", "s8s8", "u8u8"))) if here else fast


def _add_each(bench: Workbench, plan: tuple[Candidate, ...], make: MakeCandidate) -> None:
    """Add every candidate that can be made; the first must be."""
    for done, candidate in enumerate(plan):
        bench.context.progress("quantize", done, len(plan), candidate.name)

        def add(candidate: Candidate = candidate) -> onnx.ModelProto:
            made = bench.build(candidate.name, partial(make, candidate))
            bench.add(candidate.name, made)
            return made

        if done == 0:
            bench.bases[candidate.name] = add()
        else:
            bench.attempt((candidate.name,), add)


def _add_static(bench: Workbench) -> None:
    """Ranges from calibration data, the same for every candidate."""
    plan = _plan("static", bench.config)
    calibrated = prepare(bench, plan[0])
    bench.figures["calibration"] = calibrated.figures

    def make(candidate: Candidate, float_layers: tuple[str, ...]) -> onnx.ModelProto:
        return corrected(bench, calibrated, build(calibrated.proto, candidate, calibrated.ranges, float_layers))

    def uncorrected(float_layers: tuple[str, ...]) -> onnx.ModelProto:
        return build(calibrated.proto, plan[0], calibrated.ranges, float_layers)

    _add_each(bench, plan, make)
    add_fast_file(bench, plan[0].name, partial(make, plan[0]), uncorrected, layers(calibrated.proto))
    recover(bench, plan[0].name, calibrated.proto, partial(make, plan[0]), layers(calibrated.proto))


def _add_dynamic(bench: Workbench) -> None:
    """Ranges at run time; what the quantizer leaves in float is stored as int8."""
    proto = gemms_as_products(bench.source.proto)

    def make(candidate: Candidate, float_layers: tuple[str, ...]) -> onnx.ModelProto:
        quantized = quantize_dynamic_range(proto, candidate, float_layers)
        return quantize_remaining_weights(quantized, candidate, float_layers)

    plan = _plan("dynamic", bench.config)
    _add_each(bench, plan, make)
    if bench.judge is not None:
        recover(bench, plan[0].name, proto, partial(make, plan[0]), weighted_layers(proto))


def _add_weights(bench: Workbench) -> None:
    """Int8 in the file, float in the computation."""

    def make(candidate: Candidate, float_layers: tuple[str, ...]) -> onnx.ModelProto:
        return quantize_weights(bench.source.proto, candidate, float_layers)

    _add_each(bench, _plan("weights", bench.config), make)


_ADD = {"static": _add_static, "dynamic": _add_dynamic, "weights": _add_weights}
