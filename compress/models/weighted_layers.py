"""The layers of an ONNX file, float or quantized, and the constants that are theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import onnx

_CODES = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
_VALUES = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BFLOAT16,
    *_CODES,
)

# Operator -> the float operator that it is a form of, and its inputs that may hold weights.
_WEIGHTED: dict[str, tuple[str, tuple[int, ...]]] = {
    "Conv": ("Conv", (1,)), "ConvInteger": ("Conv", (1,)), "QLinearConv": ("Conv", (3,)),
    "ConvTranspose": ("ConvTranspose", (1,)),
    "Gemm": ("Gemm", (1,)), "QGemm": ("Gemm", (3,)),
    "MatMul": ("MatMul", (0, 1)), "MatMulInteger": ("MatMul", (1,)), "QLinearMatMul": ("MatMul", (3,)),
    "MatMulNBits": ("MatMul", (1,)),
    "LSTM": ("LSTM", (1, 2)), "GRU": ("GRU", (1, 2)), "RNN": ("RNN", (1, 2)), "DynamicQuantizeLSTM": ("LSTM", (1, 2)),
    "Gather": ("Gather", (0,)),
}  # fmt: skip

# What has constants of its own and no weights in the sense above.
_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "PRelu")

# An element-wise operator with a constant belongs to the layer that it follows: its bias, or its output's scale.
_FOLLOWERS = ("Add", "Sub", "Mul", "Div", "Cast", "Relu", "Clip", "QuantizeLinear", "DequantizeLinear", "Reshape")

# What exporters call values that have no name in the model: val_14, onnx::MatMul_27; and short names, as of `compact`.
_NAMELESS = re.compile(r"(val|onnx::\w*?|t|tensor)_?\d*|\w{1,2}")
_PART = re.compile(r"[._/](weight|bias|W|R|B|weight_ih|kernel|gamma|beta)(_l\d+)?$|_bias$|_weight$")
_STORED = re.compile(r"_(quantized|numbers|shared|scale|zero_point|codebook)$")


@dataclass(frozen=True)
class WeightedLayer:
    """An operator with constants of its own."""

    name: str  # as near to the model's own as the file tells, unique in the file
    operator: str  # of the float form: Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU, RNN, Gather, LayerNormalization, …
    node: int  # its place among the graph's nodes
    weights: tuple[str, ...]  # the values that it takes as weights: initializers, or computed from them; () for norms
    tensors: tuple[str, ...]  # the constants that are its own: weights, biases, scales, zero points; no other has them


class Wiring:
    """Who makes and who takes each value of a graph, and which values are constant."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.made_by: dict[str, int] = {}
        self.taken_by: dict[str, list[int]] = {}
        self.constant = set(self.tensors)
        for number, node in enumerate(self.nodes):  # in the order in which they run: producers first
            self.made_by.update(dict.fromkeys(node.output, number))
            for name in node.input:
                self.taken_by.setdefault(name, []).append(number)
            if _repeats(node) and all(name in self.constant for name in node.input if name):
                self.constant.update(node.output)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a value; None for inputs and initializers."""
        number = self.made_by.get(name)
        return None if number is None else self.nodes[number]

    def roots(self, name: str) -> Iterator[str]:
        """The stored tensors that a constant value is computed from: initializers, and outputs of Constant."""
        node = self.producer(name)
        if name in self.tensors or (node is not None and node.op_type == "Constant"):
            yield name
        elif node is not None:
            for given in node.input:
                yield from self.roots(given)


def _repeats(node: onnx.NodeProto) -> bool:
    """Whether a node gives the same for the same inputs: subgraphs take values that are no inputs."""
    inner = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
    return not inner and not node.op_type.startswith("Random")


def weighted_layers(graph: onnx.GraphProto) -> tuple[WeightedLayer, ...]:
    """The layers of a graph in the order in which they run; subgraphs are left out.

    A weight that several layers share belongs to the first of them.
    """
    wiring = Wiring(graph)
    places = {
        number: weights for number in range(len(wiring.nodes)) if (weights := _weights(wiring, number)) is not None
    }
    owned = _owned(wiring, set(places))
    names = _unique([_name(wiring, number, owned.get(number, ())) for number in places])
    return tuple(
        WeightedLayer(name, _operator(wiring.nodes[number]), number, weights, tuple(owned.get(number, ())))
        for (number, weights), name in zip(places.items(), names, strict=True)
    )


def _operator(node: onnx.NodeProto) -> str:
    return _WEIGHTED[node.op_type][0] if node.op_type in _WEIGHTED else str(node.op_type)


def _weights(wiring: Wiring, number: int) -> tuple[str, ...] | None:
    """The values that a node takes as weights; None where it is no layer."""
    node = wiring.nodes[number]
    if all(name in wiring.constant for name in node.output):
        return None  # part of what restores a weight
    if node.op_type in _NORMS:
        return () if any(name in wiring.constant for name in node.input if name) else None
    _, places = _WEIGHTED.get(node.op_type, ("", ()))
    given = [node.input[place] for place in places if place < len(node.input)]
    weights = tuple(name for name in given if name in wiring.constant and _holds_weights(wiring, name))
    return weights or None


def _holds_weights(wiring: Wiring, name: str) -> bool:
    """Whether a constant could be a weight: numbers of a weight's type with two axes or more, as far as is known."""
    tensors = [tensor for root in wiring.roots(name) if (tensor := stored_tensor(wiring, root)) is not None]
    return any(tensor.data_type in _VALUES and len(tensor.dims) >= 2 and prod(tensor.dims) > 1 for tensor in tensors)


def stored_tensor(wiring: Wiring, name: str) -> onnx.TensorProto | None:
    """The tensor behind an initializer, or behind the output of a Constant; None where that holds no tensor."""
    if name in wiring.tensors:
        return wiring.tensors[name]
    node = wiring.producer(name)
    if node is None or node.op_type != "Constant":
        return None
    return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)


def _owned(wiring: Wiring, layers: set[int]) -> dict[int, list[str]]:
    """Layer -> the stored tensors that are its own, in the order of its inputs."""
    owned: dict[int, list[str]] = {}
    taken: set[str] = set()
    for number, node in enumerate(wiring.nodes):
        if all(name in wiring.constant for name in node.output):
            continue
        owner = number if number in layers else _followed(wiring, number, layers)
        if owner is None:
            continue
        for name in node.input:
            for root in wiring.roots(name) if name in wiring.constant else ():
                if root not in taken:
                    taken.add(root)
                    owned.setdefault(owner, []).append(root)
    return owned


def _followed(wiring: Wiring, number: int, layers: set[int]) -> int | None:
    """The layer that a node follows element-wise, or whose result is multiplied with what it makes."""
    if wiring.nodes[number].op_type == "Reshape":
        return None  # it may stand between a layer and its bias, but a shape is no part of a layer
    waiting = [number]
    if wiring.nodes[number].op_type == "Mul":  # the scale of an integer product: Mul(Cast(product), Mul(…, scale))
        users = wiring.taken_by.get(wiring.nodes[number].output[0], ())
        waiting += [user for user in users if wiring.nodes[user].op_type == "Mul"]
    while waiting:
        node = wiring.nodes[waiting.pop(0)]
        varying = [name for name in node.input if name and name not in wiring.constant]
        if node.op_type not in _FOLLOWERS or (len(varying) > 1 and node.op_type != "Mul"):
            continue  # among them sums of two branches
        makers = [wiring.made_by[name] for name in varying if name in wiring.made_by]
        found = next((maker for maker in makers if maker in layers), None)
        if found is not None:
            return found
        waiting += makers
    return None


def _name(wiring: Wiring, number: int, tensors: tuple[str, ...] | list[str]) -> str:
    """From the names of the layer's constants, else its node's, else its operator."""
    for tensor in tensors:
        name = _STORED.sub("", _STORED.sub("", tensor))
        short = _PART.sub("", name)
        if not _NAMELESS.fullmatch(name) and short != name:
            return short
    node = wiring.nodes[number]
    return node.name.removeprefix("node_") if node.name else _operator(node)


def _unique(names: list[str]) -> list[str]:
    """Names that come twice get a number: conv, conv.2, …"""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return found
