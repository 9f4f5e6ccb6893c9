"""Int8 arithmetic through onnxruntime's quantizers: static (QDQ) and dynamic."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

from compress.errors import CompressError, QuantizationError
from compress.models.onnx_file import first_line, opset
from compress.quantization.candidates import Candidate
from compress.quantization.graph import array, attribute, constants, copy_of
from compress.quiet import quiet

# Relu and Clip are taken along with the weighted operators: the quantizer then drops them, since the range of their
# output clips as they do. Left float, each costs a pair of conversions and the half of the range that it cuts off
# (mobilenet_v2 at 32², 1 thread: 0.230 ms and 21.5 dB without them, 0.178 ms and 23.5 dB with).
STATIC_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip")
DYNAMIC_OPERATORS = ("MatMul", "Gemm", "LSTM", "Gather")  # never Conv: ConvInteger is many times slower than float

# Their products leave as float: what comes next in a transformer (bias, residual sum, normalisation) is float, and so
# is the last layer's answer. Measured on 2,000 images: a ViT .367 ms and 27.4 dB with float outputs, .431 ms and
# 27.0 dB with uint8 ones; mobilenet_v2 28.4 against 27.9 dB at equal latency.
_FLOAT_OUTPUTS = ("Gemm", "MatMul")

_TYPES = {
    "u8s8": (QuantType.QUInt8, QuantType.QInt8),
    "s8s8": (QuantType.QInt8, QuantType.QInt8),
    "u8u8": (QuantType.QUInt8, QuantType.QUInt8),
}
_INTEGER_OPERATORS = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM",
    "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "QGemm", "MatMulNBits",
}  # fmt: skip
_OLDEST_OPSET = 13  # the first with one scale a channel

Ranges = Mapping[str, tuple[float, float]]
Overrides = Mapping[str, Sequence[Mapping[str, Any]]]


def quantize_static_qdq(
    proto: onnx.ModelProto,
    candidate: Candidate,
    ranges: Ranges,
    exclude: Sequence[str] = (),
    overrides: Overrides | None = None,
) -> onnx.ModelProto:
    """Int8 weights and activations in QDQ format: the graph is rewritten by onnxruntime's quantizer, with our ranges.

    Args:
        proto: A float graph whose nodes have names.
        candidate: Types, scales per tensor or channel, bits.
        ranges: Lowest and highest value of every activation to quantize: see `compress.quantization.calibration`.
        exclude: Names of nodes that stay float.
        overrides: Of weights, as onnxruntime's TensorQuantOverrides.

    Raises:
        QuantizationError: the quantizer refuses the graph.
    """
    activation, weight = _TYPES[candidate.types]
    known = constants(proto)
    products = [n.name for n in proto.graph.node if n.op_type == "MatMul" and n.input[1] not in known]

    def quantizer(source: onnx.ModelProto) -> onnx.ModelProto:
        rewriter = QDQQuantizer(
            save_and_reload_model_with_shape_infer(source),
            candidate.per_channel == "yes",
            candidate.reduce_range,
            weight,
            activation,
            _as_tensors_data(ranges),
            [],
            [*exclude, *products],  # a product of two activations: attention
            list(STATIC_OPERATORS),
            {
                "WeightSymmetric": True,
                "ActivationSymmetric": False,
                "QDQOpTypePerChannelSupportToAxis": {"MatMul": -1},  # the columns, of weights of three axes too
                "OpTypesToExcludeOutputQuantization": list(_FLOAT_OUTPUTS),
                "TensorQuantOverrides": {name: [dict(o) for o in each] for name, each in (overrides or {}).items()},
            },
        )
        rewriter.quantize_model()
        rewriter.model.topological_sort()
        made: onnx.ModelProto = rewriter.model.model
        return made

    return _quantized(proto, candidate, quantizer)


def _as_tensors_data(ranges: Ranges) -> TensorsData:
    limits = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()
    }
    return TensorsData(CalibrationMethod.MinMax, limits)


def quantize_dynamic_range(
    proto: onnx.ModelProto, candidate: Candidate, exclude: Sequence[str] = ()
) -> onnx.ModelProto:
    """Symmetric int8 weights for Linear, LSTM and embeddings; the ranges of activations are taken at run time.

    Args:
        proto: A float graph, after `gemms_as_products`.
        candidate: Scales per tensor or channel, bits.
        exclude: Names of nodes that stay float.

    Raises:
        QuantizationError: the quantizer refuses the graph, or finds nothing in it to quantize.
    """

    def quantizer(source: onnx.ModelProto) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:  # this quantizer writes files only
            target = Path(folder) / "quantized.onnx"
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=list(DYNAMIC_OPERATORS),
                nodes_to_exclude=list(exclude),
                per_channel=candidate.per_channel == "yes",
                reduce_range=candidate.reduce_range,
                weight_type=QuantType.QInt8,
                extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
            )
            return onnx.load(str(target))

    return _quantized(proto, candidate, quantizer)


def _quantized(
    proto: onnx.ModelProto, candidate: Candidate, quantizer: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> onnx.ModelProto:
    if opset(proto) < _OLDEST_OPSET:
        raise QuantizationError(
            f"{candidate.name}: the graph has opset {opset(proto)}, quantizing needs {_OLDEST_OPSET} or later. "
            "Export the model again with opset=18."
        )
    try:
        with quiet():
            quantized = quantizer(copy_of(proto))
    except CompressError:
        raise
    except Exception as error:  # the quantizers raise AssertionError, ValueError, RuntimeError and more
        raise QuantizationError(
            f"{candidate.name}: onnxruntime cannot quantize the graph: {first_line(error)} "
            f"({type(error).__name__}). Exclude the layer with quantize.exclude, or use quantize.method=weights."
        ) from error
    if not is_quantized(quantized):
        raise QuantizationError(
            f"{candidate.name}: the graph has no layer that it applies to. Use quantize.method=auto or weights."
        )
    return quantized


def is_quantized(proto: onnx.ModelProto) -> bool:
    """Whether a graph holds integer arithmetic already."""
    return any(node.op_type in _INTEGER_OPERATORS for node in proto.graph.node)


def relu_before_pool(proto: onnx.ModelProto) -> None:
    """Turn Relu(MaxPool(x)) into MaxPool(Relu(x)), the same function, in place: Relu then meets its Conv, and vanishes.

    Else the pooling stands between two ranges and every Conv is followed by a pair of conversions.
    """
    users: dict[str, int] = {}
    for node in proto.graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    outputs = {value.name for value in proto.graph.output}
    pools = {node.output[0]: node for node in proto.graph.node if node.op_type == "MaxPool" and len(node.output) == 1}
    for relu in [node for node in proto.graph.node if node.op_type == "Relu"]:
        pool = pools.get(relu.input[0])
        if pool is None or users[pool.output[0]] != 1 or pool.output[0] in outputs:
            continue
        before, between, after = pool.input[0], pool.output[0], relu.output[0]
        first, second = _node(relu), _node(pool)
        first.input[0], first.output[0] = before, between
        second.input[0], second.output[0] = between, after
        pool.CopyFrom(first)
        relu.CopyFrom(second)
        del pools[between]


def gemms_as_products(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with each Gemm of a constant weight as a MatMul, which keeps its name, and an Add.

    Else onnxruntime's dynamic quantizer does it, under names of its own: a Gemm to exclude is then not found, and a
    weight that several take is transposed once for each.
    """
    made, known = copy_of(proto), constants(proto)
    gemms = {node.name for node in proto.graph.node if _is_product(node, known)}
    uses = Counter(name for node in proto.graph.node for name in node.input)
    turned = Counter(n.input[1] for n in proto.graph.node if n.name in gemms and attribute(n, "transB", 0))
    names = {weight: weight if uses[weight] == number else f"{weight}_turned" for weight, number in turned.items()}
    new = [numpy_helper.from_array(np.ascontiguousarray(array(known[old]).T), name) for old, name in names.items()]
    kept = [tensor for tensor in proto.graph.initializer if names.get(tensor.name) != tensor.name]
    nodes = [each for n in proto.graph.node for each in (_product(n, names) if n.name in gemms else [n])]
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend([*kept, *new])
    return made


def _is_product(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether the node is x · W + b with a constant W."""
    scaled = any(a.f != 1 for a in node.attribute if a.name in ("alpha", "beta"))
    return node.op_type == "Gemm" and node.input[1] in known and not scaled and not attribute(node, "transA", 0)


def _product(gemm: onnx.NodeProto, turned: Mapping[str, str]) -> list[onnx.NodeProto]:
    value, weight, output = gemm.input[0], gemm.input[1], gemm.output[0]
    if attribute(gemm, "transB", 0):
        weight = turned[weight]
    if len(gemm.input) < 3 or not gemm.input[2]:
        return [helper.make_node("MatMul", [value, weight], [output], name=gemm.name)]
    product = f"{output}_product"
    return [
        helper.make_node("MatMul", [value, weight], [product], name=gemm.name),
        helper.make_node("Add", [product, gemm.input[2]], [output], name=f"{gemm.name}_bias"),
    ]


def _node(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
