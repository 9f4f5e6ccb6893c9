"""The weights that a layer of an ONNX file computes with, as floats, however they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.models.onnx_file import Array, run, values_of
from compress.models.weighted_layers import WeightedLayer, Wiring, stored_tensor

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Integers:
    """Where an operator that takes integers as they are has their scale and zero point."""

    scale: int | None  # input; None: a Mul after the operator has it
    zero_point: int | None  # input; None: it is 0
    axis: int  # of the channels in the weight, where there is one scale for each


# (operator, input with the weight)
_INTEGERS: dict[tuple[str, int], _Integers] = {
    ("QLinearConv", 3): _Integers(4, 5, 0),
    ("QLinearMatMul", 3): _Integers(4, 5, -1),
    ("MatMulInteger", 1): _Integers(None, 3, -1),
    ("ConvInteger", 1): _Integers(None, 3, 0),
    ("DynamicQuantizeLSTM", 1): _Integers(8, 9, -1),
    ("DynamicQuantizeLSTM", 2): _Integers(10, 11, -1),
}


def restored_weights(
    proto: onnx.ModelProto, layer: WeightedLayer, folder: Path | None = None, wiring: Wiring | None = None
) -> tuple[Floats, ...]:
    """The weights of a layer in one orientation, whatever the operator.

    Args:
        proto: The file's graph.
        layer: Of `weighted_layers` of this graph.
        folder: Where external data lies.
        wiring: Of this graph, where it is at hand.

    Returns:
        Linear layers (out, in), recurrent ones (directions, gates * H, in) twice (input and recurrence), embeddings
        (tokens, features), convolutions as ONNX has them: (out, in / groups, …), transposed (in, out / groups, …).
        Products with more than two axes stay as they are. Empty for normalisations.

    Raises:
        Exception: onnxruntime cannot compute the constants.
    """
    wiring = wiring or Wiring(proto.graph)
    node = wiring.nodes[layer.node]
    return tuple(
        np.ascontiguousarray(_oriented(node, place, _restored(proto, wiring, node, place, folder)), np.float32)
        for place, name in enumerate(node.input)
        if name in layer.weights
    )


def _oriented(node: onnx.NodeProto, place: int, weight: Array) -> Array:
    turned = (
        (node.op_type in ("Gemm", "QGemm") and not _attribute(node, "transB", 0))
        or (node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul") and place != 0 and weight.ndim == 2)
        or node.op_type == "DynamicQuantizeLSTM"
    )
    return weight.swapaxes(-1, -2) if turned else weight


def _restored(proto: onnx.ModelProto, wiring: Wiring, node: onnx.NodeProto, place: int, folder: Path | None) -> Array:
    def given(index: int | None) -> Array | None:
        there = index is not None and index < len(node.input) and node.input[index]
        return constant_value(proto, wiring, node.input[index or 0], folder) if there else None

    weight = given(place)
    assert weight is not None
    if node.op_type == "MatMulNBits":
        return _blocks(node, weight, given(2), given(3))
    if node.op_type == "QGemm":
        axis = 0 if _attribute(node, "transB", 0) else 1
        return _scaled(weight, given(4), given(5), axis)
    form = _INTEGERS.get((node.op_type, place))
    if form is not None:
        scale = given(form.scale) if form.scale is not None else _scale_after(proto, wiring, node, folder)
        return _scaled(weight, scale, given(form.zero_point), form.axis)
    if node.op_type == "Gather" and np.issubdtype(weight.dtype, np.integer):
        return _looked_up(proto, wiring, node, weight, folder)
    return weight


def constant_value(proto: onnx.ModelProto, wiring: Wiring, name: str, folder: Path | None = None) -> Array:
    """The value of a constant: a stored tensor, or what onnxruntime computes from some."""
    tensor = stored_tensor(wiring, name)
    if tensor is not None:
        return values_of(tensor, folder)
    part = onnx.ModelProto()
    part.ir_version = proto.ir_version
    part.opset_import.extend(proto.opset_import)
    part.functions.extend(proto.functions)
    part.graph.name = "constants"
    part.graph.node.extend(wiring.nodes[number] for number in sorted(_makers(wiring, name)))
    roots = dict.fromkeys(wiring.roots(name))
    part.graph.initializer.extend(wiring.tensors[root] for root in roots if root in wiring.tensors)
    part.graph.output.add().name = name
    ((value,),) = run(part.SerializeToString(), [{}], lean=True, folder=folder)
    return value


def _makers(wiring: Wiring, name: str) -> Iterator[int]:
    """The nodes that a constant is computed by, each once."""
    found, waiting = set(), [name]
    while waiting:
        number = wiring.made_by.get(waiting.pop())
        if number is not None and number not in found:
            found.add(number)
            waiting += wiring.nodes[number].input
    yield from found


def _scaled(integers: Array, scale: Array | None, zero_point: Array | None, axis: int) -> Floats:
    def spread(values: Array) -> Array:
        if values.size == 1:
            return values.reshape(())
        if integers.ndim == 3:  # of a recurrent layer: (directions,) or (directions, channels)
            return values.reshape(integers.shape[0], 1, -1)
        return values.reshape([-1 if place == axis % integers.ndim else 1 for place in range(integers.ndim)])

    levels = integers.astype(np.float32)
    if zero_point is not None:
        levels = levels - spread(zero_point.astype(np.float32))
    return np.asarray(levels * spread(scale.astype(np.float32)) if scale is not None else levels, np.float32)


def _scale_after(proto: onnx.ModelProto, wiring: Wiring, node: onnx.NodeProto, folder: Path | None) -> Array | None:
    """The constant among the factors that scale an integer product: Mul(Cast(product), Mul(scale of inputs, it))."""
    name = node.output[0]
    for _ in range(2):  # Cast, Mul
        users = [wiring.nodes[number] for number in wiring.taken_by.get(name, ())]
        following = next((user for user in users if user.op_type in ("Cast", "Mul")), None)
        if following is None:
            return None
        if following.op_type == "Mul":
            factors = [given for given in following.input if given != name]
            inner = wiring.producer(factors[0]) if factors else None
            candidates = [*factors, *(inner.input if inner is not None and inner.op_type == "Mul" else ())]
            constant = next((given for given in candidates if given in wiring.constant), None)
            return None if constant is None else constant_value(proto, wiring, constant, folder)
        name = following.output[0]
    return None


def _looked_up(
    proto: onnx.ModelProto, wiring: Wiring, node: onnx.NodeProto, table: Array, folder: Path | None
) -> Array:
    """An embedding that is restored after the look-up, by DequantizeLinear, or Cast and Mul."""
    users = [wiring.nodes[number] for number in wiring.taken_by.get(node.output[0], ())]
    user = next((each for each in users if each.op_type == "DequantizeLinear"), None)
    if user is None:
        return _scaled(table, _scale_after(proto, wiring, node, folder), None, -1)
    values = [constant_value(proto, wiring, name, folder) for name in user.input[1:] if name]
    return _scaled(table, values[0], values[1] if len(values) > 1 else None, _attribute(user, "axis", 1))


def _blocks(node: onnx.NodeProto, packed: Array, scale: Array | None, zero_point: Array | None) -> Floats:
    """The weight (N, K) of a MatMulNBits."""
    assert scale is not None
    levels = unpacked(node, packed, zero_point)
    per_weight = np.repeat(scale.reshape(len(packed), -1), _attribute(node, "block_size", 32), axis=1)
    return np.asarray(levels * per_weight[:, : levels.shape[1]], np.float32)


def unpacked(node: onnx.NodeProto, packed: Array, zero_point: Array | None = None) -> NDArray[Any]:
    """The levels (N, K) of a MatMulNBits' weight, less its zero points; stored (N, blocks, bytes), low bits first."""
    bits = _attribute(node, "bits", 4)

    def numbers(data: Array) -> Array:
        if data.dtype != np.uint8:  # zero points may be floats, one a number
            return data
        parts = [(data >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        return np.stack(parts, axis=-1).reshape(len(data), -1).astype(np.int16)

    levels = numbers(packed.reshape(len(packed), -1))  # (N, blocks * block_size)
    if zero_point is None:
        levels = levels - 2 ** (bits - 1)
    else:
        points = numbers(zero_point.reshape(len(packed), -1))[:, : packed.shape[1]]
        levels = levels - np.repeat(points, _attribute(node, "block_size", 32), axis=1)
    return np.asarray(levels[:, : _attribute(node, "K", levels.shape[1])])


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
