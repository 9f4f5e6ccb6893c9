"""The same quantized graph in fewer zipped bytes."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator

import onnx
from onnx import numpy_helper

from compress.models.counts import stored_weights


def compact(proto: onnx.ModelProto) -> None:
    """Share equal scales and zero points, and give every inner value a short name, in place.

    A quantizer writes names like ``encoder.layers.0.mlp.0.weight_scale_quantized``: in a small sparse network they are
    several percent of the zip. Names of inputs and outputs are kept. A graph with subgraphs is left as it is, since
    those take outer values by name.
    """
    if any(attribute.HasField("g") or attribute.graphs for node in proto.graph.node for attribute in node.attribute):
        return
    _share_constants(proto)
    _shorten_names(proto)


def _share_constants(proto: onnx.ModelProto) -> None:
    """Keep one of the equal constants; weights and biases are all kept, so that their number stays the model's."""
    graph = proto.graph
    weights = stored_weights(proto)
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed, kept = {}, []
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        if tensor.name not in weights and first.setdefault(key, tensor.name) != tensor.name:
            renamed[tensor.name] = first[key]
        else:
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _shorten_names(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    fixed = {value.name for value in (*graph.input, *graph.output)}
    short = (name for name in _short_names() if name not in fixed)
    names: dict[str, str] = {"": ""} | {name: name for name in fixed}

    def rename(name: str) -> str:
        if name not in names:
            names[name] = next(short)
        return names[name]

    for node in graph.node:
        node.name = ""
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), rename(tensor.name)))


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_letters, repeat=length))
