"""Bytes on disk and bytes as downloaded."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from compress.errors import MeasurementError
from compress.files import write_atomically

SHIPPED_NAME = "model.onnx"  # of the graph in the zip, whatever the variant's file is called
_DATE = (1980, 1, 1, 0, 0, 0)  # the oldest that the format knows: the same content gives the same bytes
_PERMISSIONS = 0o100644 << 16  # a regular file, rw-r--r--
_UNIX = 3


def raw_bytes(path: Path) -> int:
    """Bytes of an ONNX file and of the external data that it names."""
    return sum(file.stat().st_size for file in members(path).values())


def zip_bytes(path: Path) -> int:
    """Bytes of the zip that would ship: see `write_zip`."""
    return len(zip_to_bytes(members(path)))


def write_zip(path: Path, target: Path) -> None:
    """Zip an ONNX file, as model.onnx, and its external data into ``target``: the same input gives the same bytes.

    Raises:
        WorkspaceError: the target cannot be written.
    """
    write_atomically(target, zip_to_bytes(members(path)))


def zip_to_bytes(members: Mapping[str, Path]) -> bytes:
    """A zip (deflate level 9) of the files, by their name in it; nothing in it depends on when or where it is made."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = _UNIX
            info.external_attr = _PERMISSIONS
            archive.writestr(info, members[name].read_bytes(), compresslevel=9)
    return buffer.getvalue()


def members(path: Path) -> dict[str, Path]:
    """The files that make up a model, by their name in its zip.

    Raises:
        MeasurementError: the file is no ONNX graph, or names external data that is not there or outside its folder.
    """
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf has its own error tree in each of its implementations
        raise MeasurementError(f"{path} cannot be read as ONNX: {error}. Export the model again.") from error
    found = {SHIPPED_NAME: path}
    for location in {_location(tensor) for tensor in _tensors(graph)} - {None}:
        assert location is not None
        file = path.parent / location
        # A file from elsewhere may name any path of this machine; it must not end up in what ships.
        if not file.resolve().is_relative_to(path.parent.resolve()) or not file.is_file():
            raise MeasurementError(
                f"{path} keeps weights in {location!r}, which is not a file in its folder. Put it beside the model."
            )
        found[location] = file
    return found


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _location(tensor: onnx.TensorProto) -> str | None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
