"""Which layers the int8 kernels of some CPUs can hurt."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

_INT16_MAX = 32767
_UINT8_MAX = 255


def saturating_layers(proto: onnx.ModelProto) -> tuple[str, ...]:
    """The weights of a QDQ graph that can saturate on x86 CPUs without VNNI, by name.

    vpmaddubsw adds two neighbouring products of uint8 activations and int8 weights in an int16: it saturates where
    255 * |w0 + w1| > 32767.
    """
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    dequantized = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for node in proto.graph.node:
        name = dequantized.get(node.input[1]) if len(node.input) > 1 else None
        tensor = tensors.get(name or "")
        if tensor is None or tensor.data_type != onnx.TensorProto.INT8 or len(tensor.dims) < 2:
            continue
        rows = _reduction_rows(node, onnx.numpy_helper.to_array(tensor))
        if rows is not None and _overflows(rows):
            found.append(tensor.name)
    return tuple(found)


def _reduction_rows(node: onnx.NodeProto, weight: NDArray[np.int8]) -> NDArray[np.int16] | None:
    """The weights as (M, K), with K in the order in which the kernel adds up; None where it adds in 32 bits."""
    if node.op_type == "Conv":  # (C_out, C_in / groups, kH, kW) runs as NHWC
        if weight.shape[1] == 1:  # the depthwise kernel widens before it multiplies
            return None
        return np.moveaxis(weight, 1, -1).reshape(len(weight), -1).astype(np.int16)
    if node.op_type not in ("Gemm", "MatMul") or weight.ndim != 2:
        return None
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return (weight if transposed else weight.T).astype(np.int16)


def _overflows(rows: NDArray[np.int16]) -> bool:
    pairs = rows[:, : rows.shape[1] // 2 * 2]
    return bool((_UINT8_MAX * np.abs(pairs[:, 0::2] + pairs[:, 1::2]).astype(np.int32)).max(initial=0) > _INT16_MAX)
