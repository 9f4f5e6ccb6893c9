"""What a quantized file really computes in int8: read off onnxruntime's profile, after all its fusions."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from compress.errors import QuantizationError
from compress.models.counts import RECURRENT
from compress.models.onnx_file import Array, first_line
from compress.quantization.graph import attribute

_ERRORS_ONLY = 3  # onnxruntime's log severity
_RUNS = 8  # the first, in which buffers are made, is left out of the times
_BLOCKED = ("NchwcTransformer",)  # pads float convolutions with channels that are no part of the model
_KERNEL = "_kernel_time"  # what the profile puts behind a node's name

# Operator -> its input with the weight.
_INT8 = {
    "QLinearConv": 3, "ConvInteger": 1, "QGemm": 3, "QLinearMatMul": 3, "MatMulInteger": 1, "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1, "DynamicQuantizeLSTM": 1, "QAttention": 1,
}  # fmt: skip
_FLOAT = {
    "Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvTranspose": 1, "Gemm": 1, "FusedGemm": 1, "MatMul": 1,
    "FusedMatMul": 1, "TransposeMatMul": 1, "MatMulNBits": 1, "LSTM": 1, "GRU": 1, "RNN": 1, "Attention": 1,
}  # fmt: skip
_WEIGHT = {**_INT8, **_FLOAT}


@dataclass(frozen=True)
class Float:
    """A weighted operator that runs in float."""

    name: str  # of the node after fusion: of the file's own where it was not fused
    operator: str
    macs: int
    reason: str


@dataclass(frozen=True)
class Share:
    """How much of a file runs in int8 kernels on this machine."""

    macs: float  # fraction 0..1 of the multiply-accumulates
    time: float  # fraction 0..1 of the time in all nodes
    in_float: tuple[Float, ...]  # the most multiply-accumulates first


@dataclass(frozen=True)
class _Event:
    """One node of the profile."""

    name: str
    operator: str
    microseconds: float  # the median of all runs but the first
    inputs: tuple[tuple[int, ...], ...]  # shapes; those of packed weights are missing
    output: tuple[int, ...]


def int8_share(model: Path | bytes, inputs: Mapping[str, Array], threads: int = 1) -> Share:
    """Run a file a few times, and tell what share of it ran in int8 kernels. The file is not changed.

    Args:
        model: An ONNX file, or its bytes.
        inputs: One batch by input name; batch 1 tells of single samples.
        threads: Of onnxruntime's operators.

    Raises:
        QuantizationError: onnxruntime cannot run the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            timed, _ = _profile(model, inputs, threads, Path(folder), ())
            events, proto = _profile(model, inputs, threads, Path(folder), _BLOCKED)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise QuantizationError(
                f"the int8 kernels cannot be counted: onnxruntime cannot run the file: {first_line(error)}. "
                "Check that the inputs fit it."
            ) from error
    nodes = _nodes(events, proto)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    events = [event for event in events if event.name in nodes]
    macs = {event.name: _macs(event, nodes[event.name], shapes) for event in events if event.operator in _WEIGHT}
    in_int8 = sum(macs[event.name] for event in events if event.operator in _INT8)
    time_in_int8 = sum(event.microseconds for event in timed if event.operator in _INT8)
    dequantized = {name for node in proto.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    in_float = [
        Float(event.name, event.operator, macs[event.name], _reason(nodes[event.name], shapes, dequantized))
        for event in events
        if event.operator in _FLOAT
    ]
    return Share(
        macs=_ratio(in_int8, sum(macs.values())),
        time=_ratio(time_in_int8, sum(event.microseconds for event in timed)),
        in_float=tuple(sorted(in_float, key=lambda each: (-each.macs, each.name))),
    )


def _profile(
    model: Path | bytes, inputs: Mapping[str, Array], threads: int, folder: Path, without: Sequence[str]
) -> tuple[list[_Event], onnx.ModelProto]:
    """The nodes that ran, and the graph after onnxruntime's optimisation ``without`` some of its steps."""
    optimized = folder / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(optimized)
    source = str(model) if isinstance(model, Path) else model
    session = onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
    )
    try:
        for _ in range(_RUNS):
            session.run(None, dict(inputs))
    finally:
        profile = Path(session.end_profiling())
    return _events(json.loads(profile.read_text())), onnx.load(str(optimized), load_external_data=False)


def _events(profile: list[dict[str, Any]]) -> list[_Event]:
    runs: dict[str, list[dict[str, Any]]] = {}
    for entry in profile:
        if entry.get("cat") == "Node" and entry["name"].endswith(_KERNEL):
            runs.setdefault(entry["name"].removesuffix(_KERNEL), []).append(entry)
    return [
        _Event(
            name=name,
            operator=entries[0]["args"]["op_name"],
            microseconds=float(statistics.median(entry["dur"] for entry in entries[1:])),
            inputs=_shapes(entries[0]["args"]["input_type_shape"]),
            output=next(iter(_shapes(entries[0]["args"]["output_type_shape"])), ()),
        )
        for name, entries in runs.items()
    ]


def _nodes(events: list[_Event], proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node of each event in the main graph, by the event's name.

    Nodes without a name get one in the profile; both lists are in the order of execution.
    """
    named = {node.name: node for node in proto.graph.node if node.name}
    unnamed: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        if not node.name:
            unnamed.setdefault(node.op_type, []).append(node)
    found = {}
    for event in events:
        left = unnamed.get(event.operator, [])
        if event.name in named or left:
            found[event.name] = named.get(event.name) or left.pop(0)
    return found


def _shapes(entries: list[dict[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for entry in entries for shape in entry.values())


def _macs(event: _Event, node: onnx.NodeProto, weights: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of a node as it ran."""
    data, index = event.inputs[0], _WEIGHT[event.operator]
    # The profile leaves packed weights out; what is no initializer was computed, and is in it.
    weight = weights.get(node.input[index]) or event.inputs[index]
    if event.operator in (*RECURRENT, "DynamicQuantizeLSTM"):  # data (T, N, D), weights of all directions
        return data[0] * data[1] * (prod(weight) + prod(weights.get(node.input[2], ())))
    if event.operator == "ConvTranspose":  # weight (C_in, C_out / groups, kH, kW)
        return prod(data) * prod(weight[1:])
    if "Conv" in event.operator:  # weight (C_out, C_in / groups, kH, kW)
        return prod(event.output) * prod(weight[1:])
    if "Attention" in event.operator:  # the three projections, weight (D, 3 H); the products of them are left out
        return prod(data[:-1]) * prod(weight)
    return prod(event.output) * data[0 if attribute(node, "transA", 0) else -1]


def _reason(node: onnx.NodeProto, weights: Mapping[str, tuple[int, ...]], dequantized: set[str]) -> str:
    """Why a weighted operator is in float, as far as the graph tells."""
    weight = node.input[_FLOAT[node.op_type]]
    if node.op_type == "MatMulNBits":
        return "4-bit weights compute in float"
    if weight in dequantized:
        return "its weight is int8, but the conversions around it were not fused: no int8 kernel takes it"
    if weight not in weights:
        return "a product of two activations"
    return "float in the file"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
