"""The float file that a run of the quantize stage starts from, and what leaves it: checked bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from compress.data.examples import EXAMPLES, examples
from compress.errors import QuantizationError
from compress.models.onnx_file import Array, first_line, read, run, serialize, strip
from compress.quantization.check import Batches, batches, check_runs, check_zeros
from compress.quantization.compact import compact
from compress.quantization.graph import copy_of, gather_constants, layers, name_nodes
from compress.quantization.integer import relu_before_pool
from compress.quantization.options import QuantizeConfig
from compress.values import Context, OnnxModel

_NEWEST_IR = 10  # onnxruntime 1.20 reads no later one


@dataclass(frozen=True)
class Source:
    """The float file, ready to be quantized, and what it gives."""

    model: OnnxModel
    proto: onnx.ModelProto  # every node has a name, Relu stands before MaxPool
    feeds: Batches  # of 1, 2 and 5 samples
    outputs: list[list[Array]]


def open_source(model: OnnxModel, config: QuantizeConfig, context: Context) -> Source:
    """Read and run the float file.

    Raises:
        QuantizationError: it cannot run, or has no node that ``exclude`` names.
    """
    proto = copy_of(read(model.path))
    gather_constants(proto)
    name_nodes(proto)
    names = {node.name for node in proto.graph.node}
    unknown = [name for name in config.exclude if name not in names]
    if unknown:
        some = ", ".join(sorted(names)[:8])
        raise QuantizationError(
            f"quantize.exclude names {', '.join(unknown)}, which {model.path.name} does not have. It has {some}, …"
        )
    relu_before_pool(proto)
    feeds = batches(model.inputs, examples(model.inputs, context.data, EXAMPLES, context.seed))
    try:
        outputs = list(run(serialize(proto), feeds))
    except Exception as error:  # onnxruntime's errors have no common base of their own
        raise QuantizationError(
            f"onnxruntime cannot run {model.path.name}, so it cannot be quantized: {first_line(error)}. "
            "Check that the inputs fit it and that axis 0 of each is the batch."
        ) from error
    return Source(model, proto, feeds, outputs)


def finish(source: Source, proto: onnx.ModelProto, name: str, config: QuantizeConfig) -> bytes:
    """The bytes of a built graph, once it is checked: zeros, versions, shapes, batches of 1, 2 and 5.

    Raises:
        QuantizationError: a check failed; the message names the candidate.
    """
    check_zeros(source.proto, proto, name)
    proto = copy_of(proto)
    strip(proto)
    if config.short_names:
        compact(proto)
    proto.ir_version = min(max(source.proto.ir_version, proto.ir_version), _NEWEST_IR)
    data = serialize(proto)
    check_runs(data, source.feeds, source.outputs, name)
    return data


def without_failing(
    source: Source, build: Callable[[tuple[str, ...]], onnx.ModelProto], exclude: Sequence[str]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Build a graph; where that fails, leave those layers in float that cannot be quantized even alone.

    Args:
        source: The float file.
        build: Makes and checks the graph, with some layers in float.
        exclude: Layers that stay float anyway.

    Returns:
        The graph, and the layers that failed, each with the reason.

    Raises:
        QuantizationError: no single layer is the cause.
    """
    try:
        return build(tuple(exclude)), {}
    except QuantizationError as error:
        names = [layer.name for layer in layers(source.proto) if layer.name not in exclude]
        failed = {}
        for name in names:
            try:
                build((*exclude, *(other for other in names if other != name)))
            except QuantizationError as alone:
                failed[name] = str(alone)
        if not 0 < len(failed) < len(names):
            raise error
        return build((*exclude, *failed)), failed
