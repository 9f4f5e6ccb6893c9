"""What the parts of this package need to know of an ONNX graph: its weighted layers, and the values inside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from compress.models.onnx_file import Array, serialize

_ERRORS_ONLY = 3  # onnxruntime's log severity
_FIRST_IR = 4  # in which an initializer need not be an input
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A weighted operator of a float graph whose weight is a constant."""

    name: str  # of the node, unique
    operator: str  # Conv, ConvTranspose, Gemm, MatMul
    weight: str  # the initializer: Conv (C_out, C_in / g, …), MatMul (C_in, C_out), Gemm either way
    bias: str | None  # the initializer, (C_out,); None: there is none, or it is no constant
    input: str
    output: str
    channel_axis: int  # of the weight: its output channels


def copy_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def name_nodes(proto: onnx.ModelProto) -> None:
    """Give every node without a name of its own, in place, one that no other has: options and figures name layers."""
    taken: set[str] = set()
    for number, node in enumerate(proto.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)


def gather_constants(proto: onnx.ModelProto) -> None:
    """Make every constant of the main graph, in place, an initializer and nothing else.

    Other tools write Constant nodes, and before IR 4 initializers had to be listed as inputs too.
    """
    known, outputs = constants(proto), {value.name for value in proto.graph.output}
    for value in [value for value in proto.graph.input if value.name in known]:
        proto.graph.input.remove(value)
    for node in [node for node in proto.graph.node if node.op_type == "Constant"]:
        if node.attribute[0].name == "value" and node.output[0] not in outputs:
            proto.graph.initializer.add().CopyFrom(node.attribute[0].t)
            proto.graph.initializer[-1].name = node.output[0]
            proto.graph.node.remove(node)
    proto.ir_version = max(proto.ir_version, _FIRST_IR)


def constants(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def layers(proto: onnx.ModelProto) -> tuple[Layer, ...]:
    """The weighted layers of a float graph, in the order in which they run."""
    known = constants(proto)
    found = []
    for node in proto.graph.node:
        weight = known.get(node.input[1]) if node.op_type in _WEIGHTED else None
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        bias = node.input[2] if len(node.input) > 2 and node.input[2] in known else None
        axis = channel_axis(node, 1, len(weight.dims))
        found.append(Layer(node.name, node.op_type, weight.name, bias, node.input[0], node.output[0], axis))
    return tuple(found)


def channel_axis(node: onnx.NodeProto, index: int, rank: int) -> int:
    """The axis of the output channels of the weight of ``rank`` axes at input ``index`` of a node."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    if node.op_type == "MatMul":
        return rank - 1 if index == 1 else rank - 2
    if node.op_type in ("ConvTranspose", "LSTM", "GRU", "RNN"):  # (C_in, C_out / g, …), (directions, gates * H, …)
        return 1
    return 0  # Conv (C_out, C_in / g, …), an embedding (tokens, features)


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """A whole-number attribute of a node."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def array(tensor: onnx.TensorProto) -> Array:
    return np.array(numpy_helper.to_array(tensor))  # a copy that may be written to


def replace_constants(proto: onnx.ModelProto, values: dict[str, Array]) -> None:
    """Give initializers, found by their names, other values, in place."""
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values[tensor.name], order="C"), tensor.name))


def inner_values(
    proto: onnx.ModelProto, names: Sequence[str], batches: Iterable[dict[str, Array]], threads: int = 1
) -> Iterator[dict[str, Array]]:
    """Run a graph batch by batch; yield the named values, inputs, inner ones or outputs, of each.

    The graph runs as it is written, without fusions: each named value is what its node gives.
    """
    probe = copy_of(proto)
    inputs = {value.name for value in probe.graph.input}
    wanted = [name for name in dict.fromkeys(names) if name not in inputs]
    known = {value.name for value in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(serialize(probe), options, providers=["CPUExecutionProvider"])
    for batch in batches:
        values = session.run(wanted, batch) if wanted else []
        yield {name: batch[name] for name in names if name in inputs} | dict(zip(wanted, values, strict=True))


def sqnr_db(reference: Array, approximation: Array) -> float:
    """Signal to quantization noise, in dB: 10 log10 of the energy of ``reference`` over that of the difference."""
    noise = float(np.square(reference - approximation, dtype=np.float64).sum())
    signal = float(np.square(reference, dtype=np.float64).sum())
    if not np.isfinite(noise):
        return -float("inf")
    return 10 * float(np.log10(signal / noise)) if noise > 0 and signal > 0 else float("inf")
