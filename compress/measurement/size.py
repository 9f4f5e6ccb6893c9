"""Bytes on disk and bytes as downloaded, of which layer and of what kind."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import zstandard
from numpy.typing import NDArray
from onnx import numpy_helper

from compress.errors import MeasurementError
from compress.files import opened_atomically
from compress.measurement.entropy import entropy_bytes
from compress.models.layer_matching import Layers, match
from compress.models.onnx_file import first_line, strip, whole

logger = logging.getLogger(__name__)

SHIPPED_NAME = "model.onnx"  # of the graph in the zip, whatever the variant's file is called
_PERMISSIONS = 0o100644 << 16  # a regular file, rw-r--r--
_UNIX = 3
_ZIP64_ABOVE = 1 << 30  # bytes of a file whose sizes may not fit the older format
_CHUNK = 1 << 20
_IN_MEMORY = 64 << 20  # bytes of a zip that is only weighed; a larger one is put on disk
_GZIP = 18  # bytes of a gzip header without a name, and of its checksum and length, around the zip's deflate stream
_LEVEL = 9
_SMALL = 1 << 20  # bytes of a file whose layers, and whose zstd, get the level that takes longest
_LAYER_LEVELS, _ZSTD_LEVELS = (_LEVEL, 6), (19, 12)
_OTHER = "other"
_DATA = (  # the fields of a tensor that hold its values
    "raw_data", "float_data", "int32_data", "int64_data", "uint64_data", "double_data", "string_data",
)  # fmt: skip


@dataclass(frozen=True)
class LayerBytes:
    """What is stored for one layer."""

    name: str
    kind: str  # operator of the float form; "other" for what belongs to no layer
    bytes: int  # of its tensors as they lie in the file: weights, biases, scales, zero points
    # Deflated alone, without headers: level 9 in files up to 1 MiB, 6 above, where 9 takes ten times as long to make
    # sparse int8 weights 8 % smaller.
    zip_bytes: int
    entropy_bytes: int  # see `Sizes`; of the tensors alone


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model, with its external data, in the forms in which it is kept and sent.

    ``entropy_bytes`` is a floor, but not of every coder: it is what an order-0 coder needs, which codes each value
    without regard to those around it (Huffman, arithmetic, ANS). Deflate and zstd can go below, where values repeat in
    runs or patterns; trained weights hardly do. It is the sum over the stored tensors of
    `compress.measurement.entropy.entropy_bytes`, which tells what counts as one value, and of the deflated rest of the
    file.
    """

    raw_bytes: int
    zip_bytes: int  # as it ships: see `write_zip`
    gzip_bytes: int  # level 9, no name, no date: what a server sends; with external data, of each file by itself
    # Level 19 for files up to 1 MiB, 12 above, where 19 takes a second a MiB: on the int8 weights of a ResNet-18 it
    # took thirteen times as long for a result 1.5 % larger. With external data, of each file by itself.
    zstd_bytes: int
    entropy_bytes: int
    by_kind: Mapping[str, int]  # raw bytes: "weights", "graph", "metadata" (what no result needs); they add up
    by_layer: tuple[LayerBytes, ...]  # in the order in which they run; their bytes add up to the weights

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"by_kind": dict(self.by_kind), "by_layer": [asdict(layer) for layer in self.by_layer]}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Sizes:
        """What `to_dict` made."""
        return cls(**{**stored, "by_layer": tuple(LayerBytes(**layer) for layer in stored["by_layer"])})


def sizes(path: Path, original: Path | None = None) -> Sizes:
    """Weigh an ONNX file in every form.

    Args:
        path: The file.
        original: A file of the same model that still has names, as the baseline: a file that ships has none.

    Raises:
        MeasurementError: the file is no ONNX graph, or its external data is not there.
    """
    files = members(path)
    raw = sum(file.stat().st_size for file in files.values())
    zipped, gzipped = _deflated(files)
    file = Layers(path)
    level = _LAYER_LEVELS[raw > _SMALL]
    layers = tuple(_by_layer(file, None if original == path else original, level))
    weights = sum(layer.bytes for layer in layers)
    bare, metadata = _bare(file.proto)
    return Sizes(
        raw_bytes=raw,
        zip_bytes=zipped,
        gzip_bytes=gzipped,
        zstd_bytes=sum(_zstd(file) for file in files.values()),
        entropy_bytes=sum(layer.entropy_bytes for layer in layers) + _deflate([bare]),
        by_kind={"weights": weights, "graph": raw - weights - metadata, "metadata": metadata},
        by_layer=layers,
    )


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
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        for name in sorted(files):
            large = files[name].stat().st_size > _ZIP64_ABOVE
            with files[name].open("rb") as source, archive.open(name, "w", force_zip64=large) as packed:
                shutil.copyfileobj(source, packed, _CHUNK)
            info = archive.getinfo(name)  # dated 1980, as every file that is opened by its name
            info.create_system, info.external_attr = _UNIX, _PERMISSIONS
    return target.tell()


def _deflated(files: Mapping[str, Path]) -> tuple[int, int]:
    """Bytes of the zip, and of a gzip file of each member: both hold the same deflate stream."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        zipped = _zip(files, file)
        with zipfile.ZipFile(file) as archive:
            return zipped, sum(info.compress_size + _GZIP for info in archive.infolist())


def _zstd(path: Path) -> int:
    bytes_in = path.stat().st_size
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVELS[bytes_in > _SMALL])
    with path.open("rb") as file:
        return sum(len(chunk) for chunk in compressor.read_to_iter(file, size=bytes_in))


def _deflate(parts: Iterable[bytes]) -> int:
    """Bytes of the parts, one after the other, deflated without headers."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return sum(len(packer.compress(part)) for part in parts) + len(packer.flush())


def _by_layer(file: Layers, original: Path | None, level: int) -> Iterator[LayerBytes]:
    owners = {name: number for number, layer in enumerate(file.all) for name in layer.tensors}
    tensors: dict[int, list[onnx.TensorProto]] = {}
    for name, tensor in _tensors(file.proto.graph):
        tensors.setdefault(owners.get(name, len(file.all)), []).append(tensor)
    labels = [*zip(_names(file, original), (layer.operator for layer in file.all), strict=True), (_OTHER, _OTHER)]
    for number, stored in sorted(tensors.items()):
        yield _layer_bytes(*labels[number], stored, file.folder, level)


def _names(file: Layers, original: Path | None) -> list[str]:
    """The names of the layers, those of the original file where it has them."""
    names = [layer.name for layer in file.all]
    if original is None:
        return names
    try:
        before, after = Layers(original).forms(), file.forms()
    except Exception as error:  # onnxruntime's errors have no common base of their own
        logger.warning("%s keeps its own names of layers: %s.", original.name, first_line(error))
        return names
    for form, place in zip(before, match(before, after), strict=True):
        if place is not None:
            names[place] = form.name
    return names


def _layer_bytes(name: str, kind: str, tensors: list[onnx.TensorProto], folder: Path, level: int) -> LayerBytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    zipped, entropy = 0, 0.0
    for tensor in tensors:  # one at a time: all together may not fit in memory
        data = whole(tensor, folder)
        values = _values(data)
        zipped += len(packer.compress(data.raw_data or values.tobytes()))
        entropy += entropy_bytes(values)
    zipped += len(packer.flush())
    return LayerBytes(name, kind, sum(stored_bytes(t, folder) for t in tensors), zipped, math.ceil(entropy))


def _values(tensor: onnx.TensorProto) -> NDArray[Any]:
    if tensor.data_type == onnx.TensorProto.STRING:
        return np.frombuffer(b"".join(tensor.string_data), np.uint8)
    return np.asarray(numpy_helper.to_array(tensor))


def stored_bytes(tensor: onnx.TensorProto, folder: Path) -> int:
    """Bytes of a tensor's values as they lie in the file, or in the external data in ``folder``."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        told = {entry.key: entry.value for entry in tensor.external_data}
        offset = int(told.get("offset", 0))
        return int(told["length"]) if "length" in told else (folder / told["location"]).stat().st_size - offset
    if tensor.raw_data:
        return len(tensor.raw_data)
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    for field, _ in tensor.ListFields():
        if field.name in _DATA:
            copy.ClearField(field.name)
    return int(tensor.ByteSize() - copy.ByteSize())


def _bare(proto: onnx.ModelProto) -> tuple[bytes, int]:
    """A graph without the values of its tensors; and how many bytes of it no result needs: names, notes, metadata."""
    for _, tensor in _tensors(proto.graph):
        for field in _DATA:
            tensor.ClearField(field)
    bare = proto.SerializeToString(deterministic=True)
    strip(proto)
    proto.ClearField("producer_name")  # which `strip` writes
    proto.graph.ClearField("name")
    for node in _nodes(proto.graph):
        node.ClearField("name")
    return bare, max(0, len(bare) - proto.ByteSize())  # what `strip` writes can be longer than what a short file has


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
    for location in {_location(tensor) for _, tensor in _tensors(graph)} - {None}:
        assert location is not None
        file = path.parent / location
        # A file from elsewhere may name any path of this machine; it must not end up in what ships.
        if not file.resolve().is_relative_to(path.parent.resolve()) or not file.is_file():
            raise MeasurementError(
                f"{path} keeps weights in {location!r}, which is not a file in its folder. Put it beside the model."
            )
        found[location] = file
    return found


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every tensor of a graph, with the name of the value that it is; "" in attributes and in subgraphs."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        name = node.output[0] if node.op_type == "Constant" else ""
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield name, attribute.t
            yield from (("", tensor) for tensor in attribute.tensors)
            for inner in _subgraphs(attribute):
                yield from (("", tensor) for _, tensor in _tensors(inner))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in _subgraphs(attribute):
                yield from _nodes(inner)


def _subgraphs(attribute: onnx.AttributeProto) -> tuple[onnx.GraphProto, ...]:
    return (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs)


def _location(tensor: onnx.TensorProto) -> str | None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
