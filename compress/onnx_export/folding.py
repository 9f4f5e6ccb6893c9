"""What can be computed before the file is written is: BatchNorm goes into the layer before it, constants into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import numpy_helper

from compress.models.onnx_file import Array
from compress.onnx_export.weights import Traced, Value

_EPSILON = 1e-5  # of BatchNormalization where the node does not say

# Never computed ahead: a constant in its shortest form, or another value at every run.
_KEPT = (
    "Constant", "ConstantOfShape", "DequantizeLinear",
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
)  # fmt: skip


@dataclass(frozen=True)
class _Norm:
    """A BatchNormalization, and the layer whose output it alone takes."""

    node: onnx.NodeProto
    layer: onnx.NodeProto
    factor: Array  # (C_out,), of the layer's output
    shift: Array  # (C_out,), added after it
    axis: int  # of the layer's weight: its output channels


def forward_constants(proto: onnx.ModelProto) -> None:
    """Take out, in place, each Identity of a constant: the old exporter writes equal tensors once, and copies."""
    constants, outputs = {tensor.name for tensor in proto.graph.initializer}, {o.name for o in proto.graph.output}
    source = {
        node.output[0]: node.input[0]
        for node in proto.graph.node
        if node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in outputs
    }
    for node in list(proto.graph.node):
        if node.output[0] in source:
            proto.graph.node.remove(node)
    for graph in _graphs(proto):
        for node in graph.node:
            node.input[:] = [source.get(name, name) for name in node.input]


def arrange_gelus(proto: onnx.ModelProto) -> None:
    """Turn x · (0.5 · (1 + erf(x/√2))), in place, into (x · (1 + erf(x/√2))) · 0.5: the order that ONNX Runtime knows.

    torch writes the first, of which its CPU provider (1.31) runs all five nodes; the second it fuses into one.
    """
    uses, constants = _uses(proto), _constants(proto)
    maker = {output: node for node in proto.graph.node for output in node.output}
    taker = {name: node for node in proto.graph.node for name in node.input if uses[name] == 1}
    for erf in proto.graph.node:
        scaled = maker.get(erf.input[0]) if erf.op_type == "Erf" else None
        add = taker.get(erf.output[0])
        half = None if add is None else taker.get(add.output[0])
        last = None if half is None else taker.get(half.output[0])
        if scaled is None or add is None or half is None or last is None:
            continue
        if [node.op_type for node in (add, half, last)] != ["Add", "Mul", "Mul"]:
            continue
        (factor,) = (name for name in half.input if name != add.output[0])
        (x,) = (name for name in last.input if name != half.output[0])
        if factor in constants and x == scaled.input[0]:
            half.input[:], last.input[:] = [x, add.output[0]], [half.output[0], factor]


def fold_batch_norms(traced: Traced) -> tuple[Traced, int]:
    """Fold each BatchNormalization that directly follows a Conv, ConvTranspose or Gemm into its weight and bias.

    y = s (W x + b - m) / sqrt(v + e) + t is a layer of its own, with W s / sqrt(v + e): zeros of W stay zero. What is
    used elsewhere too is left alone.

    Returns:
        The new graph and how many were folded; the same graph where there are none.
    """
    if not any(node.op_type == "BatchNormalization" for node in traced.proto.graph.node):
        return traced, 0
    proto = onnx.ModelProto()
    proto.CopyFrom(traced.proto)
    made, folded = Traced(proto, dict(traced.values)), 0
    for node in list(proto.graph.node):
        norm = _foldable(made, node) if node.op_type == "BatchNormalization" else None
        if norm is not None:
            made, folded = _folded(made, norm), folded + 1
    return _without_unused(made), folded


def fold_transposes(traced: Traced) -> Traced:
    """Turn each Transpose of a weight that nothing else takes into the turned weight, computed as it is written."""
    proto = onnx.ModelProto()
    proto.CopyFrom(traced.proto)
    values, uses = dict(traced.values), _uses(proto)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in list(proto.graph.node):
        name = node.input[0] if node.op_type == "Transpose" else ""
        if name not in values or uses[name] > 1:
            continue
        tensor = tensors[name]
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [*range(len(tensor.dims))][::-1])
        values[node.output[0]] = partial(_turned, values.pop(name), order)
        tensor.name, tensor.dims[:] = node.output[0], [tensor.dims[axis] for axis in order]
        proto.graph.node.remove(node)
    return Traced(proto, values)


def batch_norms_left(proto: onnx.ModelProto) -> int:
    return sum(node.op_type == "BatchNormalization" for node in proto.graph.node)


def foldable_nodes(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Operators of the main graph all of whose inputs are constants: folding leaves none of them."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        if node.op_type == "Constant":
            constants.update(node.output)
        inputs = [name for name in node.input if name]
        inner = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        if inputs and node.op_type not in _KEPT and not inner and constants.issuperset(inputs):
            found.append(node.op_type)
            constants.update(node.output)
    return tuple(found)


def _foldable(traced: Traced, node: onnx.NodeProto) -> _Norm | None:
    proto = traced.proto
    layer = next((n for n in proto.graph.node if node.input[0] in n.output), None)
    uses = _uses(proto)
    if layer is None or uses[layer.output[0]] != 1 or len(node.output) > 1:
        return None
    axis = _output_axis(layer)
    weights = [traced.value(name) for name in (*node.input[1:5], *layer.input[1:])]
    if axis is None or None in weights or any(uses[name] != 1 for name in layer.input[1:]):
        return None
    scale, shift, mean, variance = (v().astype(np.float64) for v in weights[:4] if v is not None)
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), _EPSILON)
    factor = scale / np.sqrt(variance + epsilon)
    bias = weights[5]() if len(weights) > 5 and weights[5] is not None else np.zeros(1)
    if not np.isfinite(factor).all() or bias.size not in (1, factor.size):
        return None
    return _Norm(node, layer, factor, (bias.reshape(-1) - mean) * factor + shift, axis)


def _output_axis(layer: onnx.NodeProto) -> int | None:
    """The axis of the output channels in a layer's weight; None where it is no layer that can take a BatchNorm."""
    numbers = {a.name: a.f if a.type == onnx.AttributeProto.FLOAT else a.i for a in layer.attribute}
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "ConvTranspose" and numbers.get("group", 1) == 1:
        return 1
    if layer.op_type == "Gemm" and numbers.get("alpha", 1.0) == numbers.get("beta", 1.0) == 1.0:
        return 0 if numbers.get("transB", 0) else 1
    return None


def _folded(traced: Traced, norm: _Norm) -> Traced:
    """The graph with one BatchNormalization less."""
    proto, values = traced.proto, dict(traced.values)
    weight = norm.layer.input[1]
    value = traced.value(weight)
    assert value is not None
    scaled = partial(_scaled, value, norm.factor, norm.axis)
    if weight in values:
        values[weight] = scaled
    else:
        _put(proto, weight, scaled())
    if len(norm.layer.input) < 3:
        norm.layer.input.append(_free_name(proto, weight.removesuffix("weight") + "bias"))
    _put(proto, norm.layer.input[2], norm.shift.astype(np.float32))
    values.pop(norm.layer.input[2], None)
    norm.layer.output[0] = norm.node.output[0]
    proto.graph.node.remove(norm.node)
    return Traced(proto, values)


def _scaled(value: Value, factor: Array, axis: int) -> Array:
    weight = value()
    by_channel = factor.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    return np.asarray((weight * by_channel).astype(weight.dtype))


def _turned(value: Value, order: list[int]) -> Array:
    return np.ascontiguousarray(value().transpose(order))


def _put(proto: onnx.ModelProto, name: str, array: Array) -> None:
    made = numpy_helper.from_array(np.ascontiguousarray(array), name)
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(made)
            return
    proto.graph.initializer.append(made)


def _constants(proto: onnx.ModelProto) -> set[str]:
    constant = (output for node in proto.graph.node if node.op_type == "Constant" for output in node.output)
    return {tensor.name for tensor in proto.graph.initializer} | set(constant)


def _free_name(proto: onnx.ModelProto, name: str) -> str:
    taken = {tensor.name for tensor in proto.graph.initializer} | {o for node in proto.graph.node for o in node.output}
    while name in taken:
        name += "_"
    return name


def _uses(proto: onnx.ModelProto) -> Counter[str]:
    """How often each value is taken: by a node, by one in an inner graph, or as an output."""
    uses = Counter(value.name for value in proto.graph.output)
    for graph in _graphs(proto):
        for node in graph.node:
            uses.update(node.input)
    return uses


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph, and those inside its nodes."""
    left = [proto.graph]
    while left:
        graph = left.pop()
        yield graph
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            left += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _without_unused(traced: Traced) -> Traced:
    """The graph, in place, without initializers that nothing takes."""
    uses = _uses(traced.proto)
    for tensor in [tensor for tensor in traced.proto.graph.initializer if not uses[tensor.name]]:
        traced.proto.graph.initializer.remove(tensor)
    kept: Mapping[str, Value] = {name: value for name, value in traced.values.items() if uses[name]}
    return Traced(traced.proto, kept)
