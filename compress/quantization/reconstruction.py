"""A quantized layer as rows times a matrix: what goes in, in the quantized graph, and what should come out, in float.

Convolutions in any number of dimensions become products too, of the windows at some of their output positions; so what
is held in memory does not grow with the size of the images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import onnx
import torch
from torch import Tensor

from compress.models.onnx_file import Array
from compress.quantization.graph import Layer, array, constants, copy_of, inner_values, layers, sqnr_db
from compress.quantization.stored import Floats, Stored, output_names, quantized_node, rounding_after, stored_weight

Batches = Iterable[dict[str, Array]]

HELD_OUT = 4  # one sample in so many judges, and is not learned from
_MOST_BYTES = 128 * 2**20  # of the inputs of one layer that are held at a time


@dataclass(frozen=True)
class Problem:
    """A layer as a grouped matrix product: clamp(inputs @ weight + bias, low, high)."""

    layer: Layer
    node: onnx.NodeProto  # of the float graph
    groups: int
    stored: Stored
    weight: Floats  # the float weight, in levels of the integers; in its own shape
    bias: Floats  # (C_out,), as the quantized graph adds it
    input: str  # in the quantized graph
    output: str  # in the float graph
    low: float  # range of the rounded output: it does the work of a Relu or Clip that the quantizer dropped
    high: float

    def grouped(self, values: Array) -> Tensor:
        """Values of the weight's shape as (G, C_out / G, K)."""
        rows = values if self.layer.channel_axis == 0 else values.T
        tensor = torch.from_numpy(np.ascontiguousarray(rows, np.float32))
        return tensor.reshape(self.groups, len(self.bias) // self.groups, -1)

    def ungrouped(self, values: Tensor) -> Floats:
        """The reverse of `grouped`."""
        shape = self.weight.shape
        plain: Floats = values.numpy()
        return plain.reshape(shape) if self.layer.channel_axis == 0 else plain.reshape(shape[::-1]).T

    def outputs(self, weight: Tensor, inputs: Tensor) -> Tensor:
        """(R, G, C_out / G) from weights (G, C_out / G, K) and inputs (R, G, K)."""
        bias = torch.from_numpy(self.bias).reshape(self.groups, 1, -1)
        return self.clamp(torch.baddbmm(bias, inputs.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1))

    def clamp(self, outputs: Tensor) -> Tensor:
        return outputs.clamp(self.low, self.high)


@dataclass(frozen=True)
class Rows:
    """A layer's inputs in the quantized graph and its outputs in the float graph, at some positions."""

    inputs: Tensor  # (R, G, K)
    targets: Tensor  # (R, G, C_out / G)


def problems(float_proto: onnx.ModelProto, quantized_proto: onnx.ModelProto) -> list[Problem]:
    """The quantized Conv, Gemm and MatMul with a weight of their own, in the order in which they run."""
    nodes = {node.name: node for node in float_proto.graph.node}
    every = layers(float_proto)
    users = [layer.weight for layer in every]
    found = [
        _problem(layer, nodes[layer.name], float_proto, quantized_proto)
        for layer in every
        if users.count(layer.weight) == 1 and _is_product(layer, nodes[layer.name])
    ]
    return [problem for problem in found if problem is not None]


def _is_product(layer: Layer, node: onnx.NodeProto) -> bool:
    scaled = any(a.name in ("alpha", "beta") and a.f != 1 for a in node.attribute)
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    biased = len(node.input) < 3 or layer.bias is not None or not node.input[2]
    return layer.operator in ("Conv", "Gemm", "MatMul") and biased and not scaled and not turned


def _problem(
    layer: Layer, node: onnx.NodeProto, float_proto: onnx.ModelProto, quantized_proto: onnx.ModelProto
) -> Problem | None:
    stored = stored_weight(layer, float_proto, quantized_proto)
    if stored is None:
        return None
    weight = array(constants(float_proto)[layer.weight])
    quantized = quantized_node(layer, quantized_proto)
    low, high = (-np.inf, np.inf) if quantized is None else _range(quantized.output[0], quantized_proto)
    return Problem(
        layer=layer,
        node=node,
        groups=next((int(a.i) for a in node.attribute if a.name == "group"), 1),
        stored=stored,
        weight=np.divide(weight, stored.scale, out=np.zeros_like(weight), where=stored.scale > 0),
        bias=_bias(layer, constants(quantized_proto), weight.shape[layer.channel_axis]),
        input=layer.input if quantized is None else str(quantized.input[0]),
        output=output_names(layer, float_proto, quantized_proto)[0],
        low=low,
        high=high,
    )


def _bias(layer: Layer, known: dict[str, onnx.TensorProto], channels: int) -> Floats:
    bias = np.zeros(1, np.float32)
    if layer.bias is not None and f"{layer.bias}_quantized" in known:
        bias = array(known[f"{layer.bias}_quantized"]) * array(known[f"{layer.bias}_quantized_scale"])
    elif layer.bias is not None:
        bias = array(known[layer.bias])
    return np.array(np.broadcast_to(bias.reshape(-1), channels), np.float32)


def _range(name: str, proto: onnx.ModelProto) -> tuple[float, float]:
    """The smallest and the largest number that is left of a value after rounding."""
    pair = rounding_after(name, proto)
    if pair is None:
        return -np.inf, np.inf
    known = constants(proto)
    scale, zero_point = (array(known[source]) for source in pair[0].input[1:3])
    limits = np.iinfo(zero_point.dtype)
    return (limits.min - int(zero_point)) * float(scale), (limits.max - int(zero_point)) * float(scale)


def positions(problem: Problem, rows: int, samples: int) -> int:
    """How many positions of every sample to draw for about ``rows`` rows within the memory that may be used."""
    row_bytes = 4 * problem.groups * problem.weight.size // len(problem.bias)
    return max(1, min(ceil(rows / samples), _MOST_BYTES // (row_bytes * samples)))


def draw(
    problem: Problem,
    float_proto: onnx.ModelProto,
    quantized_proto: onnx.ModelProto,
    feeds: Batches,
    each: int,
    rng: np.random.Generator,
) -> tuple[Rows, Rows]:
    """Rows to learn from, and rows of other samples to judge by: at most ``each`` positions of every sample."""
    inputs = inner_values(_upto(quantized_proto, problem.input), [problem.input], feeds)
    targets = inner_values(_upto(float_proto, problem.output), [problem.output], feeds)
    parts: tuple[list[Rows], list[Rows]] = ([], [])
    first = 0
    for x, y in zip(inputs, targets, strict=True):
        rows, owner = _drawn(problem, x[problem.input], y[problem.output], each, rng)
        judges = torch.from_numpy(is_held_out(first + owner))
        for part, mask in zip(parts, (~judges, judges), strict=True):
            part.append(Rows(rows.inputs[mask], rows.targets[mask]))
        first += len(x[problem.input])
    train, held_out = (
        Rows(torch.cat([p.inputs for p in part]), torch.cat([p.targets for p in part])) for part in parts
    )
    return train, held_out


def is_held_out(numbers: Array) -> Array:
    """Which samples, by their number, judge."""
    return np.asarray(numbers % HELD_OUT == HELD_OUT - 1)


def _upto(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The part of a graph that gives a value; all of it where its nodes alone do not tell."""
    if any(a.HasField("g") or a.graphs for node in proto.graph.node for a in node.attribute):
        return proto
    producers = {output: node for node in proto.graph.node for output in node.output}
    wanted, waiting = {name}, [name]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None:
            waiting += [source for source in node.input if source not in wanted]
            wanted.update(node.input)
    nodes = [node for node in proto.graph.node if wanted.intersection(node.output)]
    if not nodes:
        return proto
    part = copy_of(proto)
    del part.graph.node[:], part.graph.output[:], part.graph.initializer[:]
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in wanted)
    return part


def _drawn(problem: Problem, x: Array, y: Array, each: int, rng: np.random.Generator) -> tuple[Rows, Array]:
    """Rows at random positions of a batch, and the number of the sample that each is from."""
    outputs = torch.from_numpy(y)  # (N, …, C_out)
    windows = torch.from_numpy(x)  # (N, …, K)
    if problem.layer.operator == "Conv":
        rank = x.ndim - 2
        windows = _windows(windows, problem.node, problem.weight.shape[2:])  # (N, C, L1, …, k1, …)
        windows = windows.movedim(1, 1 + rank)  # (N, L1, …, C, k1, …)
        outputs = outputs.movedim(1, -1)
    shape = outputs.shape[:-1]
    count = min(each, prod(shape[1:]))
    chosen = rng.permuted(np.tile(np.arange(prod(shape[1:])), (shape[0], 1)), axis=1)[:, :count]
    owner = np.repeat(np.arange(shape[0]), count)
    inner = np.unravel_index(chosen.reshape(-1), shape[1:]) if len(shape) > 1 else ()
    at = tuple(torch.from_numpy(axis) for axis in (owner, *inner))
    inputs, targets = (part[at].reshape(len(owner), problem.groups, -1) for part in (windows, outputs))
    return Rows(inputs, targets), owner


def _windows(x: Tensor, node: onnx.NodeProto, kernel: tuple[int, ...]) -> Tensor:
    """The inputs of every output position of a convolution, as a view: (N, C, L1, …, k1, …)."""
    given = {a.name: list(a.ints) for a in node.attribute if a.ints}
    rank = len(kernel)
    strides, dilations = given.get("strides", [1] * rank), given.get("dilations", [1] * rank)
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    auto = next((a.s.decode() for a in node.attribute if a.name == "auto_pad"), "NOTSET")
    pads = given.get("pads", [0] * 2 * rank)
    if auto.startswith("SAME"):
        pads = _same_pads(tuple(x.shape[2:]), strides, spans, upper=auto == "SAME_UPPER")
    x = torch.nn.functional.pad(x, [p for axis in reversed(range(rank)) for p in (pads[axis], pads[rank + axis])])
    for axis in range(rank):
        x = x.unfold(2 + axis, spans[axis], strides[axis])[..., :: dilations[axis]]
    return x


def _same_pads(sizes: tuple[int, ...], strides: list[int], spans: list[int], *, upper: bool) -> list[int]:
    """What auto_pad adds before each axis, then after each axis."""
    axes = zip(sizes, strides, spans, strict=True)
    total = [max(0, (ceil(size / stride) - 1) * stride + span - size) for size, stride, span in axes]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return [*small, *large] if upper else [*large, *small]


def rows_sqnr_db(problem: Problem, levels: Tensor, rows: Rows) -> float:
    """SQNR of the layer's outputs with these levels, (G, C_out / G, K)."""
    outputs = problem.outputs(levels * problem.grouped(problem.stored.scale), rows.inputs)
    return sqnr_db(problem.clamp(rows.targets).numpy(), outputs.numpy())
