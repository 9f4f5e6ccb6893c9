"""What a quantized graph holds in place of a layer of the float graph: its integers, and its output."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.models.onnx_file import Array
from compress.quantization.graph import Layer, array, constants

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Stored:
    """The integers of a weight. All arrays have the weight's own shape."""

    name: str  # of the initializer
    dtype: np.dtype[Any]
    levels: Floats  # whole numbers, with the zero point at 0
    scale: Floats  # of one level
    zero_point: Floats

    @property
    def values(self) -> Floats:
        """The weight that the quantized graph computes with."""
        return self.levels * self.scale

    def integers(self, levels: Floats) -> Array:
        """Other levels, as the initializer holds them."""
        return np.asarray((levels + self.zero_point).astype(self.dtype))


def stored_weight(layer: Layer, float_proto: onnx.ModelProto, quantized_proto: onnx.ModelProto) -> Stored | None:
    """The integers of a layer's weight ``w``: ``w_quantized``, with ``w_scale`` and ``w_zero_point``.

    One scale a tensor, one a channel, or one a block along an axis. None where the quantized graph has none of ``w``'s
    shape.
    """
    known, shape = constants(quantized_proto), tuple(constants(float_proto)[layer.weight].dims)
    tensor, scale = known.get(f"{layer.weight}_quantized"), known.get(f"{layer.weight}_scale")
    if tensor is None or scale is None or tuple(tensor.dims) != shape:
        return None
    zero = known.get(f"{layer.weight}_zero_point")
    points = _spread(array(zero), shape, layer.channel_axis) if zero is not None else np.zeros(shape, np.float32)
    integers = array(tensor)
    scales = _spread(array(scale), shape, layer.channel_axis)
    return Stored(tensor.name, integers.dtype, integers.astype(np.float32) - points, scales, points)


def _spread(values: Array, shape: tuple[int, ...], channel_axis: int) -> Floats:
    """Values, one a tensor, one a channel, or one a block along an axis, in the shape of the weight."""
    values = values.astype(np.float32)
    if values.size == 1:
        return np.full(shape, values.reshape(()))
    if values.ndim == 1:
        values = values.reshape([-1 if axis == channel_axis else 1 for axis in range(len(shape))])
    for axis, (wanted, found) in enumerate(zip(shape, values.shape, strict=True)):
        values = np.repeat(values, ceil(wanted / found), axis).take(range(wanted), axis)
    return values


def quantized_node(layer: Layer, quantized_proto: onnx.ModelProto) -> onnx.NodeProto | None:
    """The node that computes a layer in the quantized graph; None where an operator of another name does."""
    return next((node for node in quantized_proto.graph.node if node.name == layer.name), None)


def rounding_after(name: str, proto: onnx.ModelProto) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The QuantizeLinear and the DequantizeLinear that a value goes through, if it does."""
    pair = []
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        user = next((n for n in proto.graph.node if n.op_type == operator and n.input[0] == name), None)
        if user is None:
            return None
        pair.append(user)
        name = user.output[0]
    return pair[0], pair[1]


def output_names(layer: Layer, float_proto: onnx.ModelProto, quantized_proto: onnx.ModelProto) -> tuple[str, str]:
    """The value that a layer gives in the float graph, and the one that stands for it in the quantized graph.

    Where the quantized graph rounds the output, it is the value after that; where the quantizer dropped the Relu or
    Clip after the layer, because rounding clips as it does, both are the values after that activation.
    """
    node = quantized_node(layer, quantized_proto)
    made = node.output[0] if node is not None else layer.output
    pair = rounding_after(made, quantized_proto)
    restored = pair[1].output[0] if pair is not None else made
    floats = {name for other in float_proto.graph.node for name in other.output}
    reference = next((name for name in (made, restored) if name in floats), layer.output)
    return reference, restored
