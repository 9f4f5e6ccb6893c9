"""The same quantized graph in fewer zipped bytes."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from compress.models.counts import stored_weights
from compress.models.onnx_file import Array

_BITS = 8  # of a rounded constant: relative errors of 2⁻⁹ at most, far below those of int8 weights
_SINGLE = 4  # constants of so few values are no bytes worth an error
_WINDOWED = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool", "LpPool")
_EACH_AXIS = {"strides": 1, "dilations": 1, "pads": 0}  # of these operators, where they are left out


def compact(proto: onnx.ModelProto) -> None:
    """Share equal scales and zero points, drop attributes that say what holds without them, shorten names; in place.

    A quantizer writes names like ``encoder.layers.0.mlp.0.weight_scale_quantized``: in a small sparse network they are
    several percent of the zip. Names of inputs and outputs are kept. A graph with subgraphs is left as it is, since
    those take outer values by name.
    """
    if any(attribute.HasField("g") or attribute.graphs for node in proto.graph.node for attribute in node.attribute):
        return
    _share_constants(proto)
    _drop_defaults(proto)
    _shorten_names(proto)


def round_constants(proto: onnx.ModelProto) -> None:
    """Keep 8 significant bits of the float constants of a graph that computes in float, as bfloat16 does, in place.

    Of a small net whose weights are 4 or 8 bits, float scales and biases are a fifth of the zip; so half of their bytes
    are zeros. A graph with int8 operators is left as it is: there a bias has the scale of what it is added to.
    """
    if any(
        "Quantize" in node.op_type or "Integer" in node.op_type or "QLinear" in node.op_type
        for node in proto.graph.node
    ):
        return
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > _SINGLE:
            tensor.CopyFrom(numpy_helper.from_array(_rounded(numpy_helper.to_array(tensor)), tensor.name))


def _rounded(values: Array) -> Array:
    mantissa, exponent = np.frexp(values)
    # The largest numbers would become infinite: masks of attention hold them.
    with np.errstate(over="ignore"):
        rounded = np.ldexp(np.round(np.ldexp(mantissa, _BITS)), exponent - _BITS)
    return np.where(np.isfinite(rounded), rounded, values).astype(values.dtype)


def _drop_defaults(proto: onnx.ModelProto) -> None:
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx"):
            known = onnx.defs.get_schema(node.op_type, versions.get(node.domain, 1)).attributes
            needed = [attribute for attribute in node.attribute if not _is_default(attribute, node.op_type, known)]
            del node.attribute[:]
            node.attribute.extend(needed)


def _is_default(attribute: onnx.AttributeProto, operator: str, known: dict[str, onnx.defs.OpSchema.Attribute]) -> bool:
    value = onnx.helper.get_attribute_value(attribute)
    if operator in _WINDOWED and attribute.name in _EACH_AXIS:
        return all(item == _EACH_AXIS[attribute.name] for item in value)
    default = known[attribute.name].default_value if attribute.name in known else onnx.AttributeProto()
    return default.type == attribute.type and bool(onnx.helper.get_attribute_value(default) == value)


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
