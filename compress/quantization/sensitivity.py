"""What quantizing each layer costs: the error of its own output, and of the network's when it alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx

from compress.errors import QuantizationError
from compress.models.onnx_file import Array, run, serialize
from compress.quantization import graph
from compress.quantization.graph import Layer, array, channel_axis, constants, inner_values, sqnr_db
from compress.quantization.stored import output_names, stored_weight
from compress.values import Progress, silent

Batches = Iterable[dict[str, Array]]

_SAMPLES = 128  # as many rank layers; more only cost time
_WEIGHTS = {"LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "Gather": (0,)}  # inputs, of layers that are no products


@dataclass(frozen=True)
class LayerSqnr:
    """The error of one layer of a quantized graph, in dB of SQNR."""

    output_db: float  # of its output, the error of its inputs included
    weight_db: float  # of its weight; infinite where that is float


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one layer costs and covers."""

    layer: str
    operator: str
    sqnr_db: float  # of the network's first output with this layer alone quantized
    local_sqnr_db: float  # of this layer's own output, likewise, on the first batch
    macs: int  # of one sample
    weight_bytes: int  # as float32


@dataclass
class _Energy:
    """Sums over batches of the squares of a value and of its error."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Array, approximation: Array) -> None:
        self.signal += float(np.square(reference, dtype=np.float64).sum())
        self.noise += float(np.square(reference - approximation, dtype=np.float64).sum())

    def sqnr_db(self) -> float:
        if not self.noise:
            return float("inf")
        return 10 * float(np.log10(self.signal / self.noise)) if self.signal else float("-inf")


def layer_sqnr(
    float_proto: onnx.ModelProto, quantized_proto: onnx.ModelProto, feeds: Batches, threads: int = 1
) -> dict[str, LayerSqnr]:
    """SQNR of each weighted layer's output and weight in a quantized graph, against the float graph it was made from.

    Where the quantized graph rounds a layer's output, it is taken after that, and after a Relu or Clip that the
    quantizer dropped because the rounding clips as it does. Memory: one batch of all outputs of both graphs.

    Args:
        float_proto: Its nodes have unique names.
        quantized_proto: Its values have the float graph's names, its weights those of onnxruntime's quantizers.
        feeds: Batches by input name; iterated twice.
        threads: Of onnxruntime.

    Returns:
        By layer name, in the order in which the layers run.
    """
    every = graph.layers(float_proto)
    names = {layer.name: output_names(layer, float_proto, quantized_proto) for layer in every}
    energies = _energies(float_proto, quantized_proto, names, feeds, threads)
    return {
        layer.name: LayerSqnr(energies[layer.name].sqnr_db(), _weight_db(layer, float_proto, quantized_proto))
        for layer in every
    }


def _energies(
    float_proto: onnx.ModelProto,
    quantized_proto: onnx.ModelProto,
    names: dict[str, tuple[str, str]],
    feeds: Batches,
    threads: int = 1,
) -> dict[str, _Energy]:
    """Signal and noise of some layers: name -> the value in the float graph, and in the quantized one."""
    energies = {layer: _Energy() for layer in names}
    wanted = inner_values(float_proto, [reference for reference, _ in names.values()], feeds, threads)
    found = inner_values(quantized_proto, [ours for _, ours in names.values()], feeds, threads)
    for reference, ours in zip(wanted, found, strict=True):
        for layer, (first, second) in names.items():
            energies[layer].add(reference[first], ours[second])
    return energies


def weighted_layers(proto: onnx.ModelProto) -> tuple[Layer, ...]:
    """The layers of `compress.quantization.graph.layers`, and recurrent ones and embeddings, in their order."""
    known, products = constants(proto), {layer.name: layer for layer in graph.layers(proto)}
    found = []
    for node in proto.graph.node:
        if node.name in products:
            found.append(products[node.name])
            continue
        names = [node.input[index] for index in _WEIGHTS.get(node.op_type, ())]
        if names and all(name in known and known[name].data_type == onnx.TensorProto.FLOAT for name in names):
            value = node.input[1] if node.op_type == "Gather" else node.input[0]
            output = next(name for name in node.output if name)
            axis = channel_axis(node, 0, len(known[names[0]].dims))
            found.append(Layer(node.name, node.op_type, names[0], None, value, output, axis))
    return tuple(found)


def layer_sensitivity(
    float_proto: onnx.ModelProto,
    build: Callable[[tuple[str, ...]], onnx.ModelProto],
    feeds: Batches,
    layers: Sequence[str],
    *,
    progress: Progress = silent,
) -> tuple[Sensitivity, ...]:
    """Quantize each layer alone; return the layers, the one that costs the output most first.

    Each graph runs as it would be shipped, with onnxruntime's integer kernels, on at most 128 samples.

    Args:
        float_proto: Its nodes have unique names.
        build: Gives the quantized graph with some nodes, by name, left in float: all other layers, those that are not
            asked about too, and their activations. A QuantizationError says that a layer cannot be quantized alone: it
            costs nothing then.
        feeds: Calibration batches by input name.
        layers: Names of those that are asked about; of `weighted_layers`.
        progress: Told after each layer.

    Raises:
        QuantizationError: a name is no such layer's, or there are no feeds.
    """
    batches, every = _few(feeds), weighted_layers(float_proto)
    unknown = sorted(set(layers) - {layer.name for layer in every})
    if unknown:
        known = ", ".join(layer.name for layer in every[:8])
        raise QuantizationError(f"the graph has no weighted layer {', '.join(unknown)}. It has {known}, …")
    asked = [layer for layer in every if layer.name in layers]
    shapes = _shapes(float_proto, asked, batches[0])
    reference = _first_output(float_proto, batches)
    found = []
    for number, layer in enumerate(asked):
        others = _others(float_proto, layer)
        output_db, local_db = _alone(float_proto, build, others, layer, batches, reference)
        weights = [tuple(constants(float_proto)[name].dims) for name in _weights(float_proto, layer)]
        macs = _macs(layer, weights, shapes)
        found.append(Sensitivity(layer.name, layer.operator, output_db, local_db, macs, 4 * sum(map(prod, weights))))
        progress("sensitivity", number + 1, len(asked), f"{layer.name} {output_db:.1f} dB")
    return tuple(sorted(found, key=lambda one: one.sqnr_db))  # stable: equals stay in the order in which they run


def _others(proto: onnx.ModelProto, layer: Layer) -> tuple[str, ...]:
    """All layers but this one, with their activations: a Relu or Clip of a float layer would be quantized by itself."""
    weighted = [other.name for other in weighted_layers(proto) if other.name != layer.name]
    kinds, own = ("Relu", "Clip"), layer.output
    return (*weighted, *(node.name for node in proto.graph.node if node.op_type in kinds and node.input[0] != own))


def _alone(
    float_proto: onnx.ModelProto,
    build: Callable[[tuple[str, ...]], onnx.ModelProto],
    others: tuple[str, ...],
    layer: Layer,
    batches: list[dict[str, Array]],
    reference: Array,
) -> tuple[float, float]:
    """SQNR of the network's output and of the layer's own, with that layer alone quantized."""
    try:
        proto = build(others)
    except QuantizationError:
        return float("inf"), float("inf")
    output_db = sqnr_db(reference, _first_output(proto, batches))
    kept = layer.operator in _WEIGHTS  # its output keeps its name
    names = {layer.name: (layer.output, layer.output) if kept else output_names(layer, float_proto, proto)}
    return output_db, _energies(float_proto, proto, names, batches[:1])[layer.name].sqnr_db()


def _weights(proto: onnx.ModelProto, layer: Layer) -> list[str]:
    indices = _WEIGHTS.get(layer.operator)
    if indices is None:
        return [layer.weight]
    node = next(node for node in proto.graph.node if node.name == layer.name)
    return [node.input[index] for index in indices]


def _few(feeds: Batches) -> list[dict[str, Array]]:
    """The first 128 samples."""
    batches, left = [], _SAMPLES
    for feed in feeds:
        if left <= 0:
            break
        batches.append({name: values[:left] for name, values in feed.items()})
        left -= len(next(iter(feed.values())))
    if not batches:
        raise QuantizationError("sensitivity was given no calibration samples; it needs one batch or more.")
    return batches


def _first_output(proto: onnx.ModelProto, batches: list[dict[str, Array]]) -> Array:
    return np.concatenate([outputs[0] for outputs in run(serialize(proto), batches)])


def _weight_db(layer: Layer, float_proto: onnx.ModelProto, quantized_proto: onnx.ModelProto) -> float:
    stored = stored_weight(layer, float_proto, quantized_proto)
    return float("inf") if stored is None else sqnr_db(array(constants(float_proto)[layer.weight]), stored.values)


def _shapes(proto: onnx.ModelProto, layers: Sequence[Layer], feed: dict[str, Array]) -> dict[str, tuple[int, ...]]:
    """Shapes of the layers' inputs and outputs for one sample."""
    names = [name for layer in layers for name in (layer.input, layer.output)]
    one = {name: values[:1] for name, values in feed.items()}
    return {name: value.shape for name, value in next(inner_values(proto, names, [one])).items()}


def _macs(layer: Layer, weights: Sequence[tuple[int, ...]], shapes: dict[str, tuple[int, ...]]) -> int:
    weight = weights[0]
    if layer.operator == "Gather":
        return 0
    if layer.operator in _WEIGHTS:  # (T, N, D)
        return shapes[layer.input][0] * sum(map(prod, weights))
    if layer.operator == "ConvTranspose":
        return prod(shapes[layer.input]) * prod(weight[1:])
    return prod(shapes[layer.output]) * prod(weight) // weight[layer.channel_axis]
