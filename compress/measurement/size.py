"""Bytes on disk and bytes as downloaded."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import onnx

from compress.errors import MeasurementError
from compress.files import opened_atomically

SHIPPED_NAME = "model.onnx"  # of the graph in the zip, whatever the variant's file is called
_PERMISSIONS = 0o100644 << 16  # a regular file, rw-r--r--
_UNIX = 3
_ZIP64_ABOVE = 1 << 30  # bytes of a file whose sizes may not fit the older format
_CHUNK = 1 << 20
_IN_MEMORY = 64 << 20  # bytes of a zip that is only weighed; a larger one is put on disk


def raw_bytes(path: Path) -> int:
    """Bytes of an ONNX file and of the external data that it names."""
    return sum(file.stat().st_size for file in members(path).values())


def zip_bytes(path: Path) -> int:
    """Bytes of the zip that would ship: see `write_zip`."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        return _zip(members(path), file)


def write_zip(path: Path, target: Path) -> int:
    """Zip an ONNX file, as model.onnx, and its external data into ``target``: the same input gives the same bytes.

    Returns:
        Bytes of the zip.

    Raises:
        WorkspaceError: the target cannot be written.
    """
    with opened_atomically(target) as file:
        return _zip(members(path), file)


def _zip(files: Mapping[str, Path], target: IO[bytes]) -> int:
    """Zip files (deflate level 9), by their name in it, a chunk at a time; when and where they were made is left out.

    Returns:
        Bytes of the zip.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            large = files[name].stat().st_size > _ZIP64_ABOVE
            with files[name].open("rb") as source, archive.open(name, "w", force_zip64=large) as packed:
                shutil.copyfileobj(source, packed, _CHUNK)
            info = archive.getinfo(name)  # dated 1980, as every file that is opened by its name
            info.create_system, info.external_attr = _UNIX, _PERMISSIONS
    return target.tell()


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
