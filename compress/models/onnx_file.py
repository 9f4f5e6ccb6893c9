"""Reading, cleaning and running ONNX graphs: what export, quantization and counting have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from compress.errors import ModelError
from compress.values import InputSpec

Array = NDArray[Any]

_ERRORS_ONLY = 3  # onnxruntime's log severity
_PROVENANCE = "compress"  # key of the metadata entry
_USUAL = re.compile(r"sample (\d+(?:x\d+)*)")  # an input's docstring: sizes of a sample, where some of them are free


def read(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """The graph in ``path``.

    Args:
        weights: Read external data too; without it the graph of a file of any size is small.

    Raises:
        ModelError: the file is missing, or its bytes are no ONNX graph.
    """
    try:
        proto = onnx.load(str(path), load_external_data=weights)
    except Exception as error:  # protobuf has its own error tree in each of its implementations
        raise ModelError(f"{path} cannot be read as ONNX: {first_line(error)}. Export the model again.") from error
    if not proto.graph.node:
        raise ModelError(f"{path} cannot be read as ONNX: it holds no nodes. Export the model again.")
    return proto


def graph_inputs(
    proto: onnx.ModelProto, like: Sequence[InputSpec] = (), *, strict: bool = True
) -> tuple[InputSpec, ...]:
    """The inputs of a graph, without the batch axis.

    Args:
        like: What the data or the user gives, an input each: the sizes of free axes. Without it they are those that
            the export wrote down, see `write_sizes`.
        strict: Refuse an axis whose size nobody tells; else it is 0, to be found in the data later.

    Raises:
        ModelError: an input has no batch axis, or an axis whose size nobody tells.
    """
    initializers = {tensor.name for tensor in proto.graph.initializer}  # listed as inputs too, before IR 4
    values = [value for value in proto.graph.input if value.name not in initializers]
    told = [spec.shape for spec in like] if len(like) == len(values) else [_usual_sizes(value) for value in values]
    return tuple(_input_spec(value, sizes, strict) for value, sizes in zip(values, told, strict=True))


def _input_spec(value: onnx.ValueInfoProto, sizes: tuple[int, ...], strict: bool) -> InputSpec:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    free = tuple(axis for axis, dim in enumerate(dims[1:]) if dim is None)
    if len(sizes) != len(dims) - 1 and not strict:
        sizes = (0,) * (len(dims) - 1)
    if not dims or (free and len(sizes) != len(dims) - 1):
        shape = [dim if dim is not None else "?" for dim in dims]
        raise ModelError(
            f"input {value.name!r} of the ONNX graph has shape {shape}; only axis 0, the batch, may be free where "
            "nothing tells the size of the others. Fix them (onnxruntime.tools.make_dynamic_shape_fixed) or export the "
            "model again."
        )
    shape_of_one = tuple(sizes[axis] if dim is None else dim for axis, dim in enumerate(dims[1:]))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return InputSpec(value.name, shape_of_one, dtype, free)


def write_sizes(proto: onnx.ModelProto, inputs: Sequence[InputSpec]) -> None:
    """Note, in place, the usual sizes of inputs with free axes: counts and latencies of the file need some size."""
    usual = {spec.name: spec.shape for spec in inputs if spec.free}
    for value in proto.graph.input:
        if value.name in usual:
            value.doc_string = f"sample {'x'.join(map(str, usual[value.name]))}"


def _usual_sizes(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    found = _USUAL.fullmatch(value.doc_string)
    return tuple(int(size) for size in found[1].split("x")) if found else ()


def whole(tensor: onnx.TensorProto, folder: Path | None = None) -> onnx.TensorProto:
    """The tensor with its values, read from ``folder`` where they lie beside the graph: then it is a new one."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return tensor
    read_in = onnx.TensorProto()
    read_in.CopyFrom(tensor)
    load_external_data_for_tensor(read_in, str(folder or ""))
    read_in.data_location = onnx.TensorProto.DEFAULT
    del read_in.external_data[:]
    return read_in


def values_of(tensor: onnx.TensorProto, folder: Path | None = None) -> Array:
    """The values of a constant, see `whole`."""
    return np.asarray(numpy_helper.to_array(whole(tensor, folder)))


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
        if not _USUAL.fullmatch(item.doc_string):
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


def stamp(path: Path, facts: Mapping[str, Any]) -> bytes:
    """The file with its provenance: what `provenance` gives back; external data is neither read nor moved.

    Args:
        path: A file without external data, or the graph of one that has it.
        facts: JSON values; none of them a path. One compact entry, since each byte counts in a small file.
    """
    proto = read(path, weights=False)
    others = [entry for entry in proto.metadata_props if entry.key != _PROVENANCE]
    kept = [(entry.key, entry.value) for entry in others]
    told = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    onnx.helper.set_model_props(proto, dict([*kept, (_PROVENANCE, told)]))
    return serialize(proto)


def provenance(path: Path) -> dict[str, Any]:
    """What `stamp` wrote; empty where a file says nothing of where it comes from."""
    entries = {entry.key: entry.value for entry in read(path, weights=False).metadata_props}
    try:
        facts = json.loads(entries.get(_PROVENANCE, "{}"))
    except ValueError:  # another tool's entry of that name
        return {}
    return facts if isinstance(facts, dict) else {}


def run(
    data: bytes | Path, batches: Sequence[dict[str, Array]], *, lean: bool = False, folder: Path | None = None
) -> Iterator[list[Array]]:
    """Yield the outputs of the graph for each batch of inputs by name: CPU, one thread.

    Args:
        data: The graph, or its file, whose external data is then mapped into memory.
        batches: Inputs by name.
        lean: Optimise nothing and repack no weight: the memory needed is that of the file.
        folder: Where the external data of a graph given as bytes lies.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = 1
    if lean:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    source = data if isinstance(data, bytes) else str(data)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    for batch in batches:
        yield [np.asarray(output) for output in session.run(None, batch)]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none, without a full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
