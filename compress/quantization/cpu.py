"""Which int8 layers lose accuracy on x86 processors without VNNI, and scales that repair them.

There ONNX Runtime multiplies with vpmaddubsw: two neighbouring products of uint8 activations and int8 weights are
added in an int16, and what does not fit saturates. VNNI, AMX and ARM add in 32 bits. The facts were read in ONNX
Runtime's core/mlas/lib (platform.cpp, x86_64/QgemmU8S8KernelAvx2.S, x86_64/ConvSymKernelAvx2.S, convsym.cpp) and
checked bit by bit under an emulated Haswell (benchmarks/other_processors.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.models.onnx_file import Array
from compress.quantization.graph import Layer, array, attribute, constants, layers

_UINT8_MAX = 255
_INT16 = (-32768, 32767)
_LARGEST_PAIR = 128  # 255 * 128 = 32640 fits into an int16, 255 * 129 = 32895 does not
_REPAIRED_PAIR = 126  # learned rounding moves each weight by at most one: no pair can come to saturate by it
_STEP = 1.001  # of a scale that rounding kept from being enough
_FULL = 127  # of symmetric int8 weights

# Operators of ONNX Runtime's integer format -> (input with the weight, where it is one of constant int8).
_INTEGER_WEIGHTS = {
    "MatMulInteger": (1,), "MatMulIntegerToFloat": (1,), "DynamicQuantizeMatMul": (1,), "ConvInteger": (1,),
    "DynamicQuantizeLSTM": (1, 2), "QLinearConv": (3,), "QLinearMatMul": (3,), "QGemm": (3,),
}  # fmt: skip
_QDQ = ("Conv", "Gemm", "MatMul")  # a ConvTranspose between conversions is computed in float
_CONVOLUTIONS = ("Conv", "QLinearConv", "ConvInteger")


@dataclass(frozen=True)
class Saturation:
    """A weight whose products can saturate."""

    node: str  # the operator's name
    weight: str  # the int8 initializer's name
    pairs: int  # of neighbouring weights that are added in 16 bits
    share: float  # of them that saturate when both activations are 255
    worst: int  # the largest |w0 + w1|; from 129 on it saturates


def saturating_layers(proto: onnx.ModelProto) -> tuple[Saturation, ...]:
    """The weights that can saturate on x86 processors without VNNI, in the order of the graph.

    Activations may be uint8 or int8: ONNX Runtime turns int8 ones into uint8 at load (qdq_s8_to_u8.cc), so that S8S8
    saturates on x86 as U8S8 does. They are taken to reach 255, the end of every calibrated range. A layer that is not
    here is exact for every input. Weights of uint8 are always exact: both sides are widened to 16 bits.
    """
    found = []
    for node, name, weight in _int8_weights(proto):
        pairs = pair_sums(node, weight)
        if pairs.size and (worst := int(np.abs(pairs).max())) > _LARGEST_PAIR:
            share = float(np.mean(np.abs(pairs) > _LARGEST_PAIR))
            found.append(Saturation(node.name or node.output[0], name, pairs.size, share, worst))
    return tuple(found)


def repair_overrides(
    proto: onnx.ModelProto, weights: Iterable[str], per_channel: bool
) -> dict[str, list[dict[str, Any]]]:
    """Scales with which the named weights cannot saturate: the TensorQuantOverrides of onnxruntime's QDQ quantizer.

    A scale grows by as little as its worst pair needs, at most to that of 7 bits; per channel, only those of the
    channels that need it. Nothing else of the file changes.

    Args:
        proto: The float graph.
        weights: Names of float initializers, or of the int8 ones that `saturating_layers` gave; others are left out.
        per_channel: One scale for each output channel, as the candidate has it.
    """
    wanted = {name.removesuffix("_quantized") for name in weights}
    nodes = {node.name: node for node in proto.graph.node}
    known = constants(proto)
    scales: dict[str, Array] = {}
    axes = {}
    for layer in layers(proto):
        if layer.weight in wanted:
            safe = _safe_scales(nodes[layer.name], layer, array(known[layer.weight]), per_channel)
            # A weight of two layers: what is safe for one may not be for the other, the larger one is.
            scales[layer.weight] = np.maximum(safe, scales.get(layer.weight, safe))
            axes[layer.weight] = {"axis": layer.channel_axis} if per_channel else {}
    return {name: [_override(scale) | axes[name] for scale in scales[name]] for name in scales}


def _override(scale: np.float32) -> dict[str, Any]:
    return {"scale": np.array(scale, np.float32), "zero_point": np.array(0, np.int8)}


def _safe_scales(node: onnx.NodeProto, layer: Layer, weight: Array, per_channel: bool) -> NDArray[np.float32]:
    """One scale, or one for each output channel, as small as no pair of weights exceeds `_REPAIRED_PAIR`."""
    axis = layer.channel_axis
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others if per_channel else None, initial=0).reshape(-1)
    # Of what is smaller, a scale would be 0.
    largest = np.where(largest > _FULL * np.finfo(np.float32).tiny, largest, 1).astype(np.float32)
    scales: NDArray[np.float32] = (largest / _FULL).astype(np.float32)
    widest = largest / np.float32(_REPAIRED_PAIR // 2)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    while True:
        stored = np.clip(np.rint(weight / scales.reshape(shape)), -_FULL, _FULL).astype(np.int8)
        worst = np.abs(pair_sums(node, stored)).max(axis=1, initial=0)  # of each row, whose channel is its last index
        worst = worst.reshape(-1, weight.shape[axis]).max(axis=0, initial=0) if per_channel else worst.max(initial=0)
        if np.all(worst <= _REPAIRED_PAIR):
            return scales
        grown = np.minimum(scales * np.maximum(worst / _REPAIRED_PAIR, _STEP), widest)
        # In float32, as it is stored: rounded afterwards it could put a weight between two numbers on the larger.
        scales = np.where(worst > _REPAIRED_PAIR, grown, scales).astype(np.float32)


def emulate_saturation(activations: NDArray[np.uint8], rows: NDArray[np.int8]) -> NDArray[np.int32]:
    """The products that vpmaddubsw gives: activations (N, K) with weights (M, K) -> (N, M).

    K is in the order in which the kernel packs it; an odd last column is paired with zero.
    """
    padding = ((0, 0), (0, activations.shape[1] % 2))
    a = np.pad(activations.astype(np.int32), padding)
    w = np.pad(rows.astype(np.int32), padding)
    products = a[:, None, :] * w[None]  # (N, M, K)
    sums: NDArray[np.int32] = np.clip(products[..., 0::2] + products[..., 1::2], *_INT16).sum(-1, dtype=np.int32)
    return sums


def pair_sums(node: onnx.NodeProto, weight: Array) -> NDArray[np.int32]:
    """The sums of the weights that the kernel of ``node`` adds in 16 bits, (rows, pairs); empty where it widens."""
    rows = packed_rows(node, weight).astype(np.int32)
    even = rows[:, : rows.shape[1] // 2 * 2]  # the last of an odd number is paired with zero, and cannot saturate
    return even[:, 0::2] + even[:, 1::2]


def packed_rows(node: onnx.NodeProto, weight: Array) -> Array:
    """The weights as (rows, K), K in the order in which the kernel of ``node`` adds up; (0, 0) where it widens first.

    Convolutions run channels last, whatever the layout of the graph (ReorderFilter of qlinearconv.cc): K is
    (kH, kW, C_in / g). ConvInteger keeps channels first. A depthwise convolution of one output a channel has a kernel
    of its own that widens (qdwconv_avx2.cpp); with more outputs a channel it is a product as all others.
    """
    if node.op_type in _CONVOLUTIONS:  # (C_out, C_in / g, kH, kW)
        if weight.shape[1] == 1 and attribute(node, "group", 1) == len(weight):
            return np.zeros((0, 0), weight.dtype)
        last = weight if node.op_type == "ConvInteger" else np.moveaxis(weight, 1, -1)
        return last.reshape(len(weight), -1)
    if node.op_type in ("Gemm", "QGemm") and attribute(node, "transB", 0):
        return weight
    columns = np.swapaxes(weight, -1, -2)  # MatMul (…, K, M), LSTM (directions, K, 4 H)
    return columns.reshape(-1, columns.shape[-1])


def _int8_weights(proto: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, str, Array]]:
    """(node, name, values) of each constant int8 weight that is multiplied in integers."""
    known = constants(proto)
    dequantized = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    for node in proto.graph.node:
        names = [node.input[i] for i in _INTEGER_WEIGHTS.get(node.op_type, ()) if i < len(node.input)]
        if node.op_type in _QDQ and node.input[0] in dequantized:  # with float activations it is computed in float
            names = [dequantized.get(node.input[1], "")]
        for name in names:
            tensor = known.get(name)
            if tensor is not None and tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) >= 2:
                yield node, name, array(tensor)
