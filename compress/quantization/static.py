"""Static quantization, from the float graph to the graph that is calibrated, rounded and corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx

from compress.data.splits import Split
from compress.quantization.bias_correction import correct_bias
from compress.quantization.calibration import Calibration, calibrate
from compress.quantization.candidates import Candidate
from compress.quantization.cpu import repair_overrides, saturating_layers
from compress.quantization.equalization import equalize
from compress.quantization.integer import quantize_static_qdq
from compress.quantization.observers import Range
from compress.quantization.source import without_failing
from compress.quantization.workbench import Workbench

_GAIN_DB = 0.5  # what equalization must gain to be worth a graph with other weights than the model's


@dataclass(frozen=True)
class Calibrated:
    """A float graph, and the ranges of its activations."""

    proto: onnx.ModelProto
    ranges: dict[str, Range]
    figures: dict[str, Any]


def prepare(bench: Workbench, base: Candidate) -> Calibrated:
    """Calibrate the source, equalized where that gains, and take ranges in the way that serves ``base`` best.

    Raises:
        QuantizationError: the data is not finite, or ``base`` cannot be built.
    """
    assert bench.judge is not None
    assert bench.context.data is not None
    config = bench.config
    proto, pairs = _equalized(bench, base)
    split = bench.context.data.calibration
    if config.calibration_samples:
        split = split.take(config.calibration_samples)
    found = _calibrated(bench, proto, split)
    decibels = {
        method: bench.judge.sqnr_db(_built(bench, proto, base, found.ranges(method))) for method in config.methods()
    }
    best = max(decibels, key=lambda method: decibels[method])
    figures = {
        "samples": found.samples,
        "sha256": found.sha256,
        "method": best,
        "sqnr_db": {method: round(value, 2) for method, value in decibels.items()},
        "equalized_pairs": pairs,
    }
    return Calibrated(proto, found.ranges(best), figures)


def build(
    proto: onnx.ModelProto, candidate: Candidate, ranges: Mapping[str, Range], exclude: Sequence[str] = ()
) -> onnx.ModelProto:
    """The QDQ graph of a candidate; of a repaired one, the weights that can saturate have larger scales."""
    made = quantize_static_qdq(proto, candidate, ranges, exclude)
    if not candidate.repaired:
        return made
    risky = [found.weight for found in saturating_layers(made)]
    overrides = repair_overrides(proto, risky, candidate.per_channel == "yes")
    return quantize_static_qdq(proto, candidate, ranges, exclude, overrides) if overrides else made


def corrected(bench: Workbench, calibrated: Calibrated, quantized: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its biases corrected, where that gains."""
    if bench.config.bias_correction == "no":
        return quantized
    return correct_bias(calibrated.proto, quantized, bench.probe)[0]


def _calibrated(bench: Workbench, proto: onnx.ModelProto, split: Split) -> Calibration:
    config, context = bench.config, bench.context
    assert context.data is not None
    return calibrate(
        proto,
        split,
        bench.source.model.inputs,
        exclude=config.exclude,
        batch_size=config.batch_size,
        passes=config.passes,
        data_sha256=context.data.sha256,
        progress=context.progress,
        cache=None if context.cache is None else context.cache / "calibration.npz",
    )


def _equalized(bench: Workbench, base: Candidate) -> tuple[onnx.ModelProto, int]:
    """The source, or its equalized form where the base candidate gains from it; and how many pairs were evened out."""
    assert bench.judge is not None
    proto = bench.source.proto
    if bench.config.equalize == "no":
        return proto, 0
    equal, pairs = equalize(proto)
    if not pairs:
        return proto, 0
    if bench.config.equalize == "auto" and _glance_db(bench, equal, base) < _glance_db(bench, proto, base) + _GAIN_DB:
        return proto, 0
    return equal, len(pairs)


def _glance_db(bench: Workbench, proto: onnx.ModelProto, base: Candidate) -> float:
    """What the base candidate reaches with ranges of the probe alone."""
    assert bench.judge is not None
    assert bench.context.data is not None
    seen = calibrate(proto, bench.probe.split, bench.source.model.inputs, exclude=bench.config.exclude)
    return bench.judge.sqnr_db(_built(bench, proto, base, seen.ranges("minmax")))


def _built(bench: Workbench, proto: onnx.ModelProto, base: Candidate, ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """The base candidate, with those layers in float that cannot be quantized."""
    return without_failing(bench.source, partial(build, proto, base, ranges), bench.config.exclude)[0]
