"""Parameters, non-zero parameters and multiply-accumulates of an ONNX file, float or quantized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.errors import ModelError
from compress.models.onnx_file import first_line, graph_inputs, read, run, values_of
from compress.models.restored_weights import unpacked
from compress.values import InputSpec

Array = NDArray[Any]
Shape = tuple[int, ...]

RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")

# (operator, input) that takes integer weights -> the input with their zero point, None where it is always 0
_INTEGER_WEIGHTS: dict[tuple[str, int], int | None] = {
    ("DequantizeLinear", 0): 2,
    ("MatMulInteger", 1): 3,
    ("ConvInteger", 1): 3,
    ("DynamicQuantizeLSTM", 1): 9,
    ("DynamicQuantizeLSTM", 2): 11,
    ("QLinearConv", 3): 5,
    ("QLinearConv", 8): None,
    ("QLinearMatMul", 3): 5,
    ("QGemm", 3): 5,
    ("QGemm", 6): None,
    ("MatMulNBits", 1): None,  # once unpacked: see `_unpacked`
    ("Cast", 0): None,  # weights stored as integers, restored by Cast and Mul
}

# (operator, input) that takes the scale of a quantized value: no parameter of the model
_SCALES = {
    ("DequantizeLinear", 1), ("QuantizeLinear", 1),
    ("DynamicQuantizeLSTM", 8), ("DynamicQuantizeLSTM", 10),
    ("QLinearConv", 1), ("QLinearConv", 4), ("QLinearConv", 6),
    ("QLinearMatMul", 1), ("QLinearMatMul", 4), ("QLinearMatMul", 6),
    ("QGemm", 1), ("QGemm", 4), ("QGemm", 7),
    ("MatMulNBits", 2),
}  # fmt: skip

# operator -> the input that holds its weights
_WEIGHT_INPUT = {
    "Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1,
    "Gemm": 1, "QGemm": 3, "MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "MatMulNBits": 1,
    "LSTM": 1, "GRU": 1, "RNN": 1, "DynamicQuantizeLSTM": 1,
}  # fmt: skip

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
_INTEGERS = (
    onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32, onnx.TensorProto.INT4, onnx.TensorProto.UINT4
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """The size of the computation in an ONNX file."""

    parameters: int  # elements of weights and biases, without scales, zero points and shapes
    nonzero: int  # of them, those that are not zero (for integers: that differ from the zero point)
    macs: int  # multiply-accumulates of the weighted operators and products, for one sample


@dataclass(frozen=True)
class Weight:
    """A weight or bias tensor, as it is stored."""

    shape: Shape
    nonzero: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


def count(path: Path, inputs: Sequence[InputSpec] = ()) -> Counts:
    """Count an ONNX file. A quantized file has the parameters and the MACs of its float form.

    Args:
        path: The file.
        inputs: The sizes of free axes, where the file does not tell the usual ones itself.
    """
    proto = read(path, weights=False)  # external data is read one tensor at a time
    weights = list(stored_weights(proto, path.parent).values())
    return Counts(
        parameters=sum(weight.elements for weight in weights),
        nonzero=sum(weight.nonzero for weight in weights),
        macs=sum(macs_by_operator(proto, inputs, path.parent).values()),
    )


def count_weights(path: Path) -> dict[str, tuple[int, int]]:
    """Elements and non-zero elements of each weight tensor (two axes or more) of an ONNX file, by name."""
    weights = stored_weights(read(path, weights=False), path.parent)
    return {name: (weight.elements, weight.nonzero) for name, weight in weights.items() if len(weight.shape) >= 2}


def weight_zeros(path: Path) -> dict[str, NDArray[np.bool_]]:
    """Where each weight tensor (two axes or more) of an ONNX file is zero, by name and in the shape of the weight."""
    proto = read(path, weights=False)
    return {name: ~nonzero for name, nonzero in _nonzero(proto, path.parent) if nonzero.ndim >= 2}


def stored_weights(proto: onnx.ModelProto, folder: Path | None = None) -> dict[str, Weight]:
    """Every weight and bias of the graph, by the name it is stored under; ``folder`` is where external data lies."""
    return {name: Weight(nonzero.shape, int(np.count_nonzero(nonzero))) for name, nonzero in _nonzero(proto, folder)}


def _nonzero(proto: onnx.ModelProto, folder: Path | None) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Where each weight and bias of the graph is not zero, by the name it is stored under."""
    graph = _Graph(proto, folder)
    shared = _shared_weights(graph)
    for name, tensor in graph.constants.items():
        if any(_looked_up(graph, node) for node, index in graph.users(name) if index == 0):
            continue  # a codebook: its values are counted where they are looked up
        zero_point = _zero_point(graph, name, tensor) if name not in shared else None
        if name in shared:
            yield name, shared[name] != 0
        elif zero_point is not None:
            block = next(
                (node for node, index in graph.users(name) if (node.op_type, index) == ("MatMulNBits", 1)), None
            )
            values = values_of(tensor, folder)
            yield name, _differs(values if block is None else _unpacked(graph, block, values), zero_point)


class _Graph:
    """Who makes and who takes each value of a graph, whose external data lies in ``folder``."""

    def __init__(self, proto: onnx.ModelProto, folder: Path | None) -> None:
        self.folder = folder
        self.nodes = list(proto.graph.node)
        self.constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = node.attribute[0].t
            self.producers.update(dict.fromkeys(node.output, node))
            for index, name in enumerate(node.input):
                self.consumers.setdefault(name, []).append((node, index))

    def users(self, name: str) -> list[tuple[onnx.NodeProto, int]]:
        return self.consumers.get(name, [])

    def array(self, node: onnx.NodeProto, index: int | None) -> Array:
        """The constant at an input of a node; 0 where there is none."""
        if index is None or index >= len(node.input) or not node.input[index]:
            return np.zeros((), np.int64)
        tensor = self.constants.get(node.input[index])
        return np.zeros((), np.int64) if tensor is None else values_of(tensor, self.folder)


def _unpacked(graph: _Graph, node: onnx.NodeProto, packed: Array) -> Array:
    given = len(node.input) > 3 and node.input[3]
    return unpacked(node, packed, graph.array(node, 3) if given else None)


def _shared_weights(graph: _Graph) -> dict[str, Array]:
    """The weights stored as numbers of a codebook's values, Gather(codebook, Cast(numbers)), by the numbers' name.

    Up to 16 values there may be two numbers in a byte: (numbers / [1, 16]) mod 16 then comes before Gather, and Reshape
    after it.
    """
    found = {}
    for node in graph.nodes:
        name = _looked_up(graph, node)
        if name is None:
            continue
        numbers = values_of(graph.constants[name], graph.folder)
        shape = numbers.shape
        if graph.producers[node.input[1]].op_type == "Mod":
            numbers = np.stack([numbers & 15, numbers >> 4], axis=-1)
            shape = next((tuple(graph.array(user, 1)) for user, _ in graph.users(node.output[0])), shape)
        found[name] = graph.array(node, 0)[numbers].reshape(shape)
    return found


def _looked_up(graph: _Graph, node: onnx.NodeProto) -> str | None:
    """The constant numbers that a node looks up in a codebook; None where it does no such thing."""
    if node.op_type != "Gather" or node.input[0] not in graph.constants:
        return None
    name = str(node.input[1])
    for operator in ("Mod", "Div", "Cast"):
        producer = graph.producers.get(name)
        if producer is not None and producer.op_type == operator:
            name = str(producer.input[0])
    numbers = graph.constants.get(name)
    return name if numbers is not None and numbers.data_type == onnx.TensorProto.UINT8 else None


def _zero_point(graph: _Graph, name: str, tensor: onnx.TensorProto) -> Array | None:
    """What stands for zero in this tensor; None where it is no weight."""
    users = graph.users(name)
    if tensor.data_type in _FLOATS:
        return np.zeros(()) if _is_float_weight(graph, users, tensor) else None
    if tensor.data_type not in _INTEGERS:
        return None
    for node, index in users:
        if node.op_type == "Gather" and index == 0:  # an embedding: dequantized after the look-up
            return next((graph.array(user, 2) for user, at in graph.users(node.output[0]) if at == 0), None)
        if (node.op_type, index) in _INTEGER_WEIGHTS:
            return graph.array(node, _INTEGER_WEIGHTS[node.op_type, index])
    return None


def _is_float_weight(graph: _Graph, users: list[tuple[onnx.NodeProto, int]], tensor: onnx.TensorProto) -> bool:
    if any((node.op_type, index) in _SCALES or _restores(graph, node, index) for node, index in users):
        return False
    # A single number is a constant of the formula (the 0.5 of GELU) unless a weighted operator takes it.
    return prod(tensor.dims) > 1 or (len(tensor.dims) > 0 and any(node.op_type in _WEIGHT_INPUT for node, _ in users))


def _restores(graph: _Graph, node: onnx.NodeProto, index: int) -> bool:
    """Whether a constant at this input scales weights back: Mul of a Cast constant, a look-up or a dynamic scale."""
    if node.op_type != "Mul":
        return False
    other = graph.producers.get(node.input[1 - index])
    if other is not None and other.op_type == "Reshape":
        other = graph.producers.get(other.input[0])
    if other is None:
        return False
    if other.op_type == "Cast":
        tensor = graph.constants.get(other.input[0])
        return tensor is not None and tensor.data_type in _INTEGERS
    return str(other.op_type) == "DynamicQuantizeLinear" or _looked_up(graph, other) is not None


def _differs(array: Array, zero_point: Array) -> NDArray[np.bool_]:
    if zero_point.size == 1:
        return np.asarray(array != zero_point.reshape(()))
    if zero_point.ndim == 2:  # of a recurrent layer's (directions, channels, gates): (directions, gates)
        return np.asarray(array != np.expand_dims(zero_point, 1))
    axis = next(i for i, size in enumerate(array.shape) if size == zero_point.size)
    return np.asarray(array != zero_point.reshape([-1 if i == axis else 1 for i in range(array.ndim)]))


def macs_by_operator(
    proto: onnx.ModelProto, inputs: Sequence[InputSpec] = (), folder: Path | None = None
) -> dict[str, int]:
    """Multiply-accumulates for one sample, by operator type; ``folder`` is where external data lies.

    The shapes are those of a real run with batch 1: shape inference of onnx stops at operators of onnxruntime's own
    domain, and at shapes that are computed from shapes.

    Raises:
        ModelError: onnxruntime cannot run the graph with one sample.
    """
    nodes = [node for node in proto.graph.node if node.op_type in _WEIGHT_INPUT]
    shapes = _shapes(proto, {name for node in nodes for name in _measured(node)}, inputs, folder)
    macs: dict[str, int] = {}
    for node in nodes:
        macs[node.op_type] = macs.get(node.op_type, 0) + _macs(node, shapes)
    return macs


def _measured(node: onnx.NodeProto) -> Iterator[str]:
    yield from (node.input[0], node.input[_WEIGHT_INPUT[node.op_type]])
    if node.op_type in RECURRENT:
        yield node.input[2]
    else:  # a recurrent layer may leave its first output out
        yield node.output[0]


def _macs(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    data, weight = shapes[node.input[0]], shapes[node.input[_WEIGHT_INPUT[node.op_type]]]
    if node.op_type in RECURRENT:  # data (T, N, D), weight (directions, gates * H, D), recurrence the same with H
        return data[0] * data[1] * (prod(weight) + prod(shapes[node.input[2]]))
    if node.op_type == "ConvTranspose":  # weight (C_in, C_out / groups, kH, kW)
        return prod(data) * prod(weight[1:])
    out = prod(shapes[node.output[0]])
    if "Conv" in node.op_type:  # weight (C_out, C_in / groups, kH, kW)
        return out * prod(weight[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return out * data[0 if transposed else -1]


def _shapes(
    proto: onnx.ModelProto, names: set[str], like: Sequence[InputSpec], folder: Path | None
) -> dict[str, Shape]:
    """The shapes of the named values for one sample."""
    graph = _Graph(proto, folder)
    shapes = {name: tuple(graph.constants[name].dims) for name in names if name in graph.constants}
    inputs = graph_inputs(proto, like)
    shapes |= {spec.name: (1, *spec.shape) for spec in inputs}
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    known = shapes.keys() | {value.name for value in proto.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - known))
    zeros = {spec.name: np.zeros((1, *spec.shape), spec.dtype) for spec in inputs}
    try:
        (values,) = run(probe.SerializeToString(), [zeros], lean=True, folder=folder)
    except Exception as error:  # onnxruntime's errors have no common base of their own
        raise ModelError(f"onnxruntime cannot run the ONNX graph with one sample: {first_line(error)}.") from error
    return shapes | {output.name: value.shape for output, value in zip(probe.graph.output, values, strict=True)}
