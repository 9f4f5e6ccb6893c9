"""Weights of 2 to 4 bits: two to the byte in the file, float32 in the computation.

What was measured with ONNX Runtime 1.31 (1 thread, batch 1) decides the form. Cast(INT4) and Mul fold at load, so that
latency is that of the float file; DequantizeLinear does not fold and runs in every call: 2.6 times slower on the
small CNN, 30 times on mobilenet_v2. Two values to the byte zip 11 to 13 % smaller than one: deflate then sees pairs,
and no longer mistakes short chance repeats of a small alphabet for something worth a match.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from compress.errors import QuantizationError, RecipeError
from compress.models.onnx_file import Array, first_line, opset
from compress.quantization.graph import Layer, array, attribute, channel_axis, constants, copy_of, layers

Floats = NDArray[np.float32]
Int8s = NDArray[np.int8]

_OPSET = 21  # the first whose Cast takes INT4; onnxruntime 1.18 runs it
_BLOCKS = (16, 32, 64, 128)
_SMALLEST = 128  # elements: below, the nodes and the scales cost more bytes than the weights save
_FRACTIONS = np.linspace(0.3, 1.0, 36)  # of the range that covers every weight: few levels want clipping
_WEIGHT_INPUTS = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (0, 1), "Gather": (0,),
    "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
}  # fmt: skip


@dataclass(frozen=True)
class BlockConfig:
    """How few bits a weight gets, and which weights share a scale."""

    bits: Literal[2, 3, 4] = 4  # 3, 7 or 15 levels around 0; fewer bits are stored in 4, and show in the zip alone
    block: int = 0  # weights of an output channel that share a scale: 16, 32, 64 or 128; 0: all of it
    kernel: bool = False  # MatMul and Gemm compute from 4 bits (MatMulNBits), with less memory; else from float32
    accuracy_level: Literal[0, 1, 2, 3, 4] = 0  # of MatMulNBits: 0 or 1 computes in float32, 4 in int8

    def __post_init__(self) -> None:
        if self.block not in (0, *_BLOCKS):
            raise RecipeError(f"block={self.block}: allowed are 0 (a scale a channel), {', '.join(map(str, _BLOCKS))}.")
        if self.kernel and not self.block:
            raise RecipeError("kernel=True with block=0: MatMulNBits takes blocks of 16, 32, 64 or 128 weights.")

    @property
    def name(self) -> str:
        return f"int{self.bits}-weights" + (f"-block{self.block}" if self.block else "") + "-kernel" * self.kernel


def quantize_blocks(proto: onnx.ModelProto, config: BlockConfig, exclude: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Store large weights in 4 bits, symmetric, so that zeros stay zeros; each scale is the one of least squared error.

    The int values of weight ``w`` are the initializer ``w_quantized`` and its scales ``w_scale``. Where a channel is no
    whole number of blocks, the channel has one scale. Scales keep 8 bits of mantissa, as bfloat16 does: the other 16
    bits are zeros, which the zip leaves out.

    Args:
        proto: A float graph.
        config: The bits and the blocks.
        exclude: Names of nodes that stay float.

    Returns:
        A graph of opset 21 at least, for Cast of INT4, unless every weight is in a MatMulNBits.

    Raises:
        QuantizationError: no weight is large enough, or the graph cannot be brought to opset 21.
    """
    axes = _weights(proto, exclude)
    if not axes:
        raise QuantizationError(
            f"{config.name}: no float32 weight has {_SMALLEST} elements or more. Ship the float file."
        )
    kernels = _kernel_layers(proto, axes) if config.kernel else {}
    inside = {layer.weight for layer in kernels.values()}
    folded = {name: axis for name, axis in axes.items() if name not in inside}
    made = _at_opset(proto, _OPSET, config.name) if folded else copy_of(proto)
    made = _folded(made, folded, config)
    return _with_kernels(made, kernels, config) if kernels else made


def narrow(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Store as INT4 the int8 weights whose values are at most 7 multiples of a step away from 0: the same weights.

    Of a weight-only graph (`quantize_weights`) that entropy-aware rounding has left few values. Two of them to the
    byte zip smaller than one. The graph comes back as it is where no weight has so few values.

    Raises:
        QuantizationError: the graph cannot be brought to opset 21.
    """
    scales = {node.input[0]: node.input[1] for node in proto.graph.node if node.op_type == "Mul"}
    casts = {node.input[0]: node.output[0] for node in proto.graph.node if node.op_type == "Cast"}
    known = constants(proto)
    values: dict[str, Array] = {}
    for name, tensor in known.items():
        if tensor.data_type == TensorProto.INT8 and scales.get(casts.get(name, "")) in known:
            weight = array(tensor).astype(np.int64)
            step = max(1, int(np.gcd.reduce(weight, axis=None)))
            if np.abs(weight).max(initial=0) <= 7 * step:
                scale = scales[casts[name]]
                values[name] = (weight // step).astype(np.int8)
                values[scale] = (array(known[scale]) * step).astype(np.float32)
    if not values:
        return copy_of(proto)
    made = _at_opset(proto, _OPSET, "int4")
    tensors = [_stored(values[t.name], t.name) if t.name in values else t for t in made.graph.initializer]
    return _with(made, list(made.graph.node), tensors)


def _stored(values: Array, name: str) -> onnx.TensorProto:
    return _int4(values, name) if values.dtype == np.int8 else numpy_helper.from_array(values, name)


def nearest(blocks: Floats, axes: tuple[int, ...], limit: int) -> tuple[Int8s, Floats]:
    """Round to whole numbers of scales, each scale the one of least squared error of those tried.

    Args:
        blocks: Weights.
        axes: Along these, weights share a scale.
        limit: The largest absolute value, 1 to 127.

    Returns:
        The values, shaped as ``blocks``, and the scales, with ``axes`` kept as 1.
    """
    largest = np.abs(blocks).max(axis=axes, keepdims=True)
    largest = np.where(largest > 0, largest, 1).astype(np.float32)
    scale = _short((largest / limit).astype(np.float32))
    least = np.full(largest.shape, np.inf)
    for fraction in _FRACTIONS:
        tried = _short((largest * fraction / limit).astype(np.float32))
        error = np.square(blocks - _values(blocks, tried, limit) * tried, dtype=np.float32)
        total = error.sum(axis=axes, keepdims=True, dtype=np.float64)
        scale = np.where(total < least, tried, scale)
        least = np.minimum(total, least)
    return _values(blocks, scale, limit), scale


def _values(blocks: Floats, scale: Floats, limit: int) -> Int8s:
    values: Int8s = np.clip(np.rint(blocks / scale), -limit, limit).astype(np.int8)
    return values


def _short(scale: Floats) -> Floats:
    """Rounded to 8 bits of mantissa, never to 0 or infinity."""
    inside = np.clip(scale, np.float32(1e-30), np.float32(1e38)).astype(np.float32)
    return ((inside.view(np.uint32) + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def _weights(proto: onnx.ModelProto, exclude: tuple[str, ...]) -> dict[str, int]:
    """Name -> axis of the output channels, of the large float32 initializers that weighted operators take."""
    large = {
        tensor.name: len(tensor.dims)
        for tensor in proto.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2 and np.prod(tensor.dims) >= _SMALLEST
    }
    axes, kept = {}, set()
    for node in proto.graph.node:
        if node.name and node.name in exclude:
            kept.update(node.input)  # a weight that is shared with an excluded node stays float
        for index in _WEIGHT_INPUTS.get(node.op_type, ()):
            name = node.input[index]
            if name in large:
                axes[name] = channel_axis(node, index, large[name])
    return {name: axis for name, axis in axes.items() if name not in kept}


def _folded(proto: onnx.ModelProto, axes: dict[str, int], config: BlockConfig) -> onnx.ModelProto:
    """The graph with weights as INT4, restored by Cast, Mul and, of blocks, Reshape: all constant, so done at load."""
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    for tensor in proto.graph.initializer:
        axis = axes.get(tensor.name)
        if axis is None:
            tensors.append(tensor)
            continue
        weight = array(tensor)
        blocks, shared = _split(weight, axis, config.block)
        values, scale = nearest(blocks, shared, _limit(config))
        name = tensor.name
        tensors += [_int4(values, f"{name}_quantized"), numpy_helper.from_array(scale, f"{name}_scale")]
        nodes.append(helper.make_node("Cast", [f"{name}_quantized"], [f"{name}_cast"], to=TensorProto.FLOAT))
        if blocks.shape == weight.shape:
            nodes.append(helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name]))
        else:
            nodes.append(helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [f"{name}_blocks"]))
            nodes.append(helper.make_node("Reshape", [f"{name}_blocks", f"{name}_shape"], [name]))
            tensors.append(numpy_helper.from_array(np.array(weight.shape, np.int64), f"{name}_shape"))
    return _with(proto, [*nodes, *proto.graph.node], tensors)


def _split(weight: Floats, axis: int, block: int) -> tuple[Floats, tuple[int, ...]]:
    """A weight in blocks, and the axes along which a scale is shared: of the channel where blocks do not fit."""
    channels = weight.shape[axis]
    length = weight.size // channels
    if block and length % block == 0 and length > block:
        if axis == 0:
            return weight.reshape(channels, -1, block), (2,)
        if axis == 1 and weight.ndim == 2:
            return weight.reshape(-1, block, channels), (1,)
    return weight, tuple(other for other in range(weight.ndim) if other != axis)


def _limit(config: BlockConfig) -> int:
    return int(2 ** (config.bits - 1) - 1)


def _int4(values: Int8s, name: str) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.INT4, values.shape, pack(values.ravel()).tobytes(), raw=True)


def pack(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two values along the last axis to the byte, the first in the low bits; an odd last one has 0 beside it."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    halves = values.astype(np.uint8) & 0xF
    packed: NDArray[np.uint8] = (halves[..., ::2] | halves[..., 1::2] * np.uint8(16)).astype(np.uint8)
    return packed


def _kernel_layers(proto: onnx.ModelProto, axes: dict[str, int]) -> dict[str, Layer]:
    """Node name -> layer, of the products that MatMulNBits computes, where it takes every use of their weight."""
    shapes = {name: tensor.dims for name, tensor in constants(proto).items()}
    nodes = {node.name: node for node in proto.graph.node}
    uses = [name for node in proto.graph.node for name in node.input]
    found = {
        layer.name: layer
        for layer in layers(proto)
        if layer.weight in axes and len(shapes[layer.weight]) == 2 and _is_product(nodes[layer.name])
    }
    taken = [layer.weight for layer in found.values()]
    return {name: layer for name, layer in found.items() if taken.count(layer.weight) == uses.count(layer.weight)}


def _is_product(node: onnx.NodeProto) -> bool:
    """Whether the node is x · W, or x · W + b."""
    if node.op_type == "MatMul":
        return True
    plain = all(a.f == 1.0 for a in node.attribute if a.name in ("alpha", "beta"))
    return node.op_type == "Gemm" and plain and not attribute(node, "transA", 0)


def _with_kernels(proto: onnx.ModelProto, kernels: dict[str, Layer], config: BlockConfig) -> onnx.ModelProto:
    weights = {layer.weight: layer.channel_axis for layer in kernels.values()}
    tensors: list[onnx.TensorProto] = []
    lengths: dict[str, tuple[int, int]] = {}
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            weight = np.moveaxis(array(tensor), weights[tensor.name], 0)  # (C_out, C_in)
            lengths[tensor.name] = weight.shape
            tensors += _kernel_tensors(weight, tensor.name, config)
        else:
            tensors.append(tensor)
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        layer = kernels.get(node.name)
        nodes += [node] if layer is None else _kernel_nodes(node, layer, lengths[layer.weight], config)
    made = _with(proto, nodes, tensors)
    if all(entry.domain != "com.microsoft" for entry in made.opset_import):
        made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return made


def _kernel_tensors(weight: Floats, name: str, config: BlockConfig) -> Iterator[onnx.TensorProto]:
    """Weight (C_out, C_in) in MatMulNBits' layout: (C_out, blocks, block / 2) bytes, 8 standing for 0."""
    channels, length = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -length % config.block)))
    blocks = padded.reshape(channels, -1, config.block)
    values, scale = nearest(blocks, (2,), _limit(config))
    yield numpy_helper.from_array(pack(values + np.int8(8)), f"{name}_quantized")
    yield numpy_helper.from_array(scale[..., 0], f"{name}_scale")  # (C_out, blocks)


def _kernel_nodes(
    node: onnx.NodeProto, layer: Layer, shape: tuple[int, int], config: BlockConfig
) -> Iterator[onnx.NodeProto]:
    # A bias is an Add of its own: onnxruntime before 1.22 has no kernel that takes it as an input.
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    product = f"{layer.output}_product" if bias else layer.output
    level = {"accuracy_level": config.accuracy_level} if config.accuracy_level else {}
    yield helper.make_node(
        "MatMulNBits",
        [layer.input, f"{layer.weight}_quantized", f"{layer.weight}_scale"],
        [product],
        name=node.name,
        domain="com.microsoft",
        **{"N": shape[0], "K": shape[1], "bits": 4, "block_size": config.block, **level},
    )
    if bias:
        yield helper.make_node("Add", [product, bias], [layer.output], name=f"{node.name}_bias")


def _with(proto: onnx.ModelProto, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]) -> onnx.ModelProto:
    made = copy_of(proto)
    del made.graph.initializer[:], made.graph.node[:]
    made.graph.initializer.extend(tensors)
    made.graph.node.extend(nodes)
    return made


def _at_opset(proto: onnx.ModelProto, wanted: int, name: str) -> onnx.ModelProto:
    if opset(proto) >= wanted:
        return copy_of(proto)
    try:
        made: onnx.ModelProto = version_converter.convert_version(proto, wanted)
    except Exception as error:  # RuntimeError, ValueError, protobuf's own, by what it met
        raise QuantizationError(
            f"{name}: the graph has opset {opset(proto)}, INT4 needs {wanted}, and onnx cannot convert it: "
            f"{first_line(error)}. Export the model again with opset={wanted}."
        ) from error
    del made.metadata_props[:]
    made.metadata_props.extend(proto.metadata_props)
    return made
