"""Weight-only quantization: int8 in the file, float32 in the computation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compress.errors import QuantizationError
from compress.models.counts import RECURRENT
from compress.models.onnx_file import whole
from compress.quantization.candidates import Candidate, Choice
from compress.quantization.graph import channel_axis

Floats = NDArray[np.float32]

_SUFFIX = "_quantized"  # of a stored tensor's name, as onnxruntime's quantizers write it
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", *RECURRENT)
_SMALLEST = 128  # elements: below, the two nodes and the scale cost more bytes than int8 saves
_ENOUGH_DB = 35.0  # signal to quantization noise; int8 of normal weights reaches 40


@dataclass(frozen=True)
class _Quantized:
    values: NDArray[np.int8]
    scale: Floats  # () or broadcastable to the values


def quantize_weights(
    proto: onnx.ModelProto, candidate: Candidate, exclude: tuple[str, ...], folder: Path | None = None
) -> onnx.ModelProto:
    """Store large weights as symmetric int8, restored in the graph by Cast and Mul.

    ONNX Runtime folds the two at load (from the basic optimization level on), so that latency and memory are those of
    the float file. DequantizeLinear would be one node shorter, but is not folded, and dequantizes in every run: 0.401
    against 0.241 ms for a small CNN, 1.9 against 0.26 ms for mobilenet_v2 at 32².

    Args:
        proto: A float graph, whose nodes have names.
        candidate: Scales per tensor or channel, bits.
        exclude: Names of nodes whose weights stay float.
        folder: Of external data, where the graph was read without it: it is read one tensor at a time, and what is left
            of it in float lies in the graph that is returned.

    Raises:
        QuantizationError: no weight is large enough.
    """
    weights = _weights(proto, exclude)
    if not weights:
        raise QuantizationError(
            f"{candidate.name}: no float32 weight has {_SMALLEST} elements or more. Ship the float file."
        )
    return _stored_as_int8(proto, weights, candidate, folder)


def quantize_remaining_weights(
    proto: onnx.ModelProto, candidate: Candidate, exclude: tuple[str, ...]
) -> onnx.ModelProto:
    """Store as int8 what a dynamically quantized graph still holds as float: the Conv of a transformer, a GRU."""
    return _stored_as_int8(proto, _weights(proto, exclude), candidate)


def _stored_as_int8(
    proto: onnx.ModelProto, weights: dict[str, int], candidate: Candidate, folder: Path | None = None
) -> onnx.ModelProto:
    graph = proto.graph
    made, nodes, tensors = onnx.ModelProto(), [], []
    made.CopyFrom(proto)
    for tensor in graph.initializer:
        axis = weights.get(tensor.name)
        if axis is None:
            tensors.append(whole(tensor, folder))
            continue
        weight = numpy_helper.to_array(whole(tensor, folder))
        quantized = _quantize(weight, axis, candidate.per_channel, candidate.reduce_range)
        stored, cast, scale = (tensor.name + suffix for suffix in (_SUFFIX, "_cast", "_scale"))
        tensors += [numpy_helper.from_array(quantized.values, stored), numpy_helper.from_array(quantized.scale, scale)]
        nodes.append(helper.make_node("Cast", [stored], [cast], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [cast, scale], [tensor.name]))
    del made.graph.initializer[:], made.graph.node[:]
    made.graph.initializer.extend(tensors)
    made.graph.node.extend([*nodes, *graph.node])
    return made


def _weights(proto: onnx.ModelProto, exclude: tuple[str, ...]) -> dict[str, int]:
    """Name -> channel axis of the float32 initializers that the weighted operators take."""
    large = {
        tensor.name: len(tensor.dims)
        for tensor in proto.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2 and np.prod(tensor.dims) >= _SMALLEST
    }
    axes = {}
    for node in proto.graph.node:
        if node.op_type in _WEIGHTED and node.name not in exclude:
            for index, name in enumerate(node.input[:3]):
                if name in large:
                    axes[name] = channel_axis(node, index, large[name])
    for node in proto.graph.node:  # a weight shared with an excluded node stays float
        if node.name and node.name in exclude:
            for name in node.input:
                axes.pop(name, None)
    return axes


def _quantize(weight: Floats, axis: int, per_channel: Choice, reduce_range: bool) -> _Quantized:
    """Symmetric, so that zeros stay zeros.

    Per tensor gives the smaller zip: fewer distinct values and no row of scales; so "auto" takes it wherever it is
    precise enough.
    """
    limit = 63 if reduce_range else 127
    if per_channel != "yes":
        quantized = _rounded(weight, np.abs(weight).max(initial=0.0), limit)
        if per_channel == "no" or _signal_to_noise_db(weight, quantized) >= _ENOUGH_DB:
            return quantized
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return _rounded(weight, np.abs(weight).max(axis=others, keepdims=True), limit)


def _rounded(weight: Floats, largest: Floats, limit: int) -> _Quantized:
    scale = (np.where(largest > 0, largest, 1) / limit).astype(np.float32)
    values = np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8)
    return _Quantized(values, scale)


def _signal_to_noise_db(weight: Floats, quantized: _Quantized) -> float:
    noise = float(np.square(weight - quantized.values * quantized.scale, dtype=np.float64).sum())
    signal = float(np.square(weight, dtype=np.float64).sum())
    return 10 * np.log10(signal / noise) if noise > 0 and signal > 0 else np.inf
