"""Reading, cleaning and running ONNX graphs: what export, quantization and counting have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from compress.errors import ModelError
from compress.values import InputSpec

Array = NDArray[Any]

_ERRORS_ONLY = 3  # onnxruntime's log severity


def read(path: Path) -> onnx.ModelProto:
    """The graph in ``path``.

    Raises:
        ModelError: the file is missing, or its bytes are no ONNX graph.
    """
    try:
        proto = onnx.load(str(path))
    except Exception as error:  # protobuf has its own error tree in each of its implementations
        raise ModelError(f"{path} cannot be read as ONNX: {first_line(error)}. Export the model again.") from error
    if not proto.graph.node:
        raise ModelError(f"{path} cannot be read as ONNX: it holds no nodes. Export the model again.")
    return proto


def graph_inputs(proto: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The inputs of a graph, without the batch axis.

    Raises:
        ModelError: an input has no batch axis, or a free axis other than it.
    """
    initializers = {tensor.name for tensor in proto.graph.initializer}  # listed as inputs too, before IR 4
    return tuple(_input_spec(value) for value in proto.graph.input if value.name not in initializers)


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    if not dims or None in dims[1:]:
        shape = [dim if dim is not None else "?" for dim in dims]
        raise ModelError(
            f"input {value.name!r} of the ONNX graph has shape {shape}; only axis 0, the batch, may be free. "
            "Fix the other axes (onnxruntime.tools.make_dynamic_shape_fixed) or export the model again."
        )
    shape_of_one = tuple(dim for dim in dims[1:] if dim is not None)
    return InputSpec(value.name, shape_of_one, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name)


def opset(proto: onnx.ModelProto) -> int:
    """The version of the default operator set."""
    return next(int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def strip(proto: onnx.ModelProto) -> None:
    """Remove, in place, all that does not change a result.

    Exporters write stack traces, docstrings and local paths, which for a tiny model are most of the bytes; the shapes
    of intermediate values are inferred again by whoever loads the file.
    """
    proto.producer_name, proto.producer_version = "compress", ""
    proto.doc_string = ""
    del proto.metadata_props[:]
    for function in proto.functions:
        function.doc_string = ""
        _clear(function, "metadata_props")
        del function.value_info[:]
        for node in function.node:
            _strip_node(node)
    _strip_graph(proto.graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    graph.name = "model"
    _clear(graph, "metadata_props")
    del graph.value_info[:]
    del graph.quantization_annotation[:]
    for item in (*graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        _clear(item, "metadata_props")
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: onnx.NodeProto) -> None:
    node.doc_string = ""
    _clear(node, "metadata_props")
    for attribute in node.attribute:
        attribute.doc_string = ""
        if attribute.HasField("t"):
            attribute.t.doc_string = ""
        if attribute.HasField("g"):
            _strip_graph(attribute.g)


def _clear(message: Any, field: str) -> None:
    if field in message.DESCRIPTOR.fields_by_name:  # older onnx has fewer metadata_props
        message.ClearField(field)


def serialize(proto: onnx.ModelProto) -> bytes:
    """The bytes of a graph, the same for equal graphs.

    Raises:
        ModelError: it is over 2 GB, protobuf's limit.
    """
    try:
        data: bytes = proto.SerializeToString(deterministic=True)
    except Exception as error:  # ValueError or EncodeError, by the implementation of protobuf
        raise ModelError(
            f"the ONNX graph cannot be written as one file of at most 2 GB: {first_line(error)}."
        ) from error
    return data


def run(data: bytes, batches: Sequence[dict[str, Array]]) -> Iterator[list[Array]]:
    """Yield the outputs of the graph for each batch of inputs by name: CPU, one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    for batch in batches:
        yield [np.asarray(output) for output in session.run(None, batch)]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none, without a full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
