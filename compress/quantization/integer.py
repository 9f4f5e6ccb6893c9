"""Int8 arithmetic through onnxruntime's quantizers: static (QDQ) and dynamic."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

from compress.errors import CompressError, QuantizationError
from compress.models.onnx_file import first_line, opset
from compress.quantization.calibration import SplitReader
from compress.quantization.candidates import Candidate
from compress.quiet import quiet

# Relu and Clip are taken along with the weighted operators: the quantizer then drops them, since the range of their
# output clips as they do. Left float, each costs a pair of conversions and the half of the range that it cuts off
# (mobilenet_v2 at 32², 1 thread: 0.230 ms and 21.5 dB without them, 0.178 ms and 23.5 dB with).
STATIC_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip")
DYNAMIC_OPERATORS = ("MatMul", "Gemm", "LSTM", "Gather")  # never Conv: ConvInteger is many times slower than float

_INTEGER_OPERATORS = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM",
    "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "QGemm",
}  # fmt: skip
_OLDEST_OPSET = 13  # the first with one scale a channel


def quantize_static_qdq(
    proto: onnx.ModelProto, candidate: Candidate, reader: SplitReader, exclude: tuple[str, ...]
) -> onnx.ModelProto:
    """Uint8 activations (ranges: minimum and maximum over the calibration data), symmetric int8 weights, QDQ format.

    U8S8 is the pair of types with the fastest x86 kernels.

    Raises:
        QuantizationError: the data is not finite, or the quantizer refuses the graph.
    """
    source = _copy(proto)
    _relu_before_pool(source)

    def quantizer(target: Path) -> None:
        quantize_static(
            source,
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(STATIC_OPERATORS),
            nodes_to_exclude=list(exclude),
            per_channel=candidate.per_channel == "yes",
            reduce_range=candidate.reduce_range,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )

    return _quantized(source, candidate, quantizer)


def quantize_dynamic_range(proto: onnx.ModelProto, candidate: Candidate, exclude: tuple[str, ...]) -> onnx.ModelProto:
    """Symmetric int8 weights for Linear, LSTM and embeddings; the ranges of activations are taken at run time.

    Raises:
        QuantizationError: the quantizer refuses the graph, or finds nothing in it to quantize.
    """
    source = _copy(proto)

    def quantizer(target: Path) -> None:
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

    return _quantized(source, candidate, quantizer)


def _quantized(source: onnx.ModelProto, candidate: Candidate, quantizer: Callable[[Path], None]) -> onnx.ModelProto:
    if opset(source) < _OLDEST_OPSET:
        raise QuantizationError(
            f"{candidate.name}: the graph has opset {opset(source)}, quantizing needs {_OLDEST_OPSET} or later. "
            "Export the model again with opset=18."
        )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "quantized.onnx"
        try:
            with quiet():
                quantizer(target)
        except CompressError:
            raise
        except Exception as error:  # the quantizers raise AssertionError, ValueError, RuntimeError and more
            raise QuantizationError(
                f"{candidate.name}: onnxruntime cannot quantize the graph: {first_line(error)} "
                f"({type(error).__name__}). Exclude the layer with quantize.exclude, or use quantize.method=weights."
            ) from error
        quantized = onnx.load(str(target))
    if not is_quantized(quantized):
        raise QuantizationError(
            f"{candidate.name}: the graph has no layer that it applies to. Use quantize.method=auto or weights."
        )
    return quantized


def is_quantized(proto: onnx.ModelProto) -> bool:
    """Whether a graph holds integer arithmetic already."""
    return any(node.op_type in _INTEGER_OPERATORS for node in proto.graph.node)


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def _relu_before_pool(proto: onnx.ModelProto) -> None:
    """Turn Relu(MaxPool(x)) into MaxPool(Relu(x)), the same function, so that Relu meets its Conv and vanishes in it.

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


def _node(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
