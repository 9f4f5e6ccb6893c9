"""Initializers whose values lie outside the graph: a model of any size is written one tensor at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from compress.errors import WorkspaceError
from compress.models.onnx_file import Array, values_of

Value = Callable[[], Array]

INLINE = 1024  # bytes of a tensor that stays in the graph
_PAGE = 4096  # bytes: what is mapped into memory begins at a page


@dataclass(frozen=True)
class Traced:
    """A graph, and the values of those of its initializers that are not in it."""

    proto: onnx.ModelProto
    values: Mapping[str, Value] = field(default_factory=dict)  # empty: the graph is whole

    def value(self, name: str) -> Value | None:
        """How to get the values of a constant of the main graph; None where there is no such constant."""
        if name in self.values:
            return self.values[name]
        found = next((tensor for tensor in self.proto.graph.initializer if tensor.name == name), None)
        return None if found is None else partial(numpy_helper.to_array, found)


def from_file(path: Path) -> Traced:
    """A graph on disk, its external tensors read one at a time as they are asked for."""
    proto = onnx.load(str(path), load_external_data=False)
    values: dict[str, Value] = {}
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            values[tensor.name] = partial(values_of, _copy(tensor), path.parent)
        elif len(tensor.raw_data) > INLINE:
            values[tensor.name] = partial(numpy_helper.to_array, _copy(tensor))
            tensor.ClearField("raw_data")
    return Traced(proto, values)


def _copy(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return copy


def write_external(traced: Traced, path: Path) -> int:
    """Write a graph as ``path`` and its values as ``path``.data, in the order of the graph; return bytes of both.

    No more than one tensor is copied at a time. Equal graphs give equal bytes.

    Raises:
        WorkspaceError: a file cannot be written.
    """
    data = data_file(path)
    proto = onnx.ModelProto()
    proto.CopyFrom(traced.proto)
    try:
        with data.open("wb") as file:
            for tensor in proto.graph.initializer:
                if tensor.name in traced.values:
                    file.seek(-(-file.tell() // _PAGE) * _PAGE)
                    array = np.ascontiguousarray(traced.values[tensor.name]())
                    _point(tensor, data.name, file.tell(), array.nbytes)
                    file.write(array.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        content: bytes = proto.SerializeToString(deterministic=True)
        path.write_bytes(content)
    except OSError as error:
        raise WorkspaceError(
            f"cannot write {data}: {error.strerror or error}. Free some space, or choose a folder that can be written."
        ) from error
    return size + len(content)


def data_file(path: Path) -> Path:
    """Where the values of a graph in ``path`` lie."""
    return path.with_name(f"{path.name}.data")


def _point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
