"""Bias correction: the mean error that quantization leaves in each channel is taken out of the layer's bias.

After section 4.2 of "Data-Free Quantization Through Weight Equalization and Bias Correction" (Nagel et al. 2019), with
the means of real samples in place of those that BatchNorm tells.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.models.onnx_file import Array
from compress.quantization.graph import (
    Layer,
    array,
    constants,
    copy_of,
    inner_values,
    layers,
    replace_constants,
)
from compress.values import Progress, silent

logger = logging.getLogger(__name__)

Feeds = Iterable[dict[str, Array]]
Floats = NDArray[np.float64]

_MOST_SAMPLES = 128  # for the means, and as many for the check: a mean needs no more
_FEWEST_SAMPLES = 32
_FORWARDS = 2048  # samples times runs: deep graphs have many runs, and many positions in a sample
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class BiasCorrection:
    """What correcting the biases did."""

    kept: bool  # False: the outputs were no better, and the graph is as it was
    before_db: float  # signal to quantization noise of the outputs, on samples that the correction did not see
    after_db: float
    shifts: Mapping[str, float]  # layer -> the largest shift of a channel's mean, in the unit of its output
    skipped: tuple[str, ...]  # layers without a bias of their own to correct


@dataclass(frozen=True)
class _Site:
    """A layer of the float graph whose output, in the quantized graph, ends with the addition of a constant."""

    layer: str
    reference: str  # the value in the float graph, after Relu, Clip and MaxPool where they follow
    measured: str  # the same in the quantized graph, before it is quantized
    axis: int  # of its channels
    low: float  # an error counts where the reference is between the two: elsewhere the activation hides it
    high: float
    bias: str  # the constant of the quantized graph: float32, or int32 with a scale
    scale: str | None  # of an int32 bias, () or (C_out,)


def correct_bias(
    float_proto: onnx.ModelProto, quantized_proto: onnx.ModelProto, feeds: Feeds, *, progress: Progress = silent
) -> tuple[onnx.ModelProto, BiasCorrection]:
    """Shift the biases of a quantized graph so that each channel has the mean that it has in the float graph.

    From the input to the output, one run for all layers of one depth: each layer is measured with those before it
    corrected, so that what a layer without a bias leaves is taken up by the next that has one. The error is that of the
    weights and of the input; that of the output's own rounding is not the bias's to mend.

    Every other sample gives the means; the correction is kept only where the outputs of the others come closer to those
    of the float graph. Weights are not touched.

    Args:
        float_proto: Its nodes have names of their own.
        quantized_proto: Made of it by onnxruntime's static or dynamic quantizer, which keep those names, or with
            weights alone quantized. Neither graph is changed.
        feeds: Batches of inputs by name, axis 0 the samples; walked over once for each depth.
        progress: Told after each depth.

    Returns:
        The corrected graph, or a copy of the quantized one, and what was done.
    """
    sites = _sites(float_proto, quantized_proto)
    corrected = copy_of(quantized_proto)
    depths = _by_depth(quantized_proto, sites)
    samples = max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, _FORWARDS // max(1, len(depths))))
    shifts: dict[str, float] = {}
    for done, level in enumerate(depths, 1):
        known = constants(corrected)
        for site, shift in zip(level, _shifts(float_proto, corrected, level, _half(feeds, 0, samples)), strict=True):
            replace_constants(corrected, {site.bias: _shifted(site, shift, known)})
            shifts[site.layer] = float(np.abs(shift).max())
        progress("bias correction", done, len(depths))
    before, after = (_output_db(float_proto, proto, feeds) for proto in (quantized_proto, corrected))
    kept = after > before
    logger.debug("bias correction: %.2f dB -> %.2f dB, kept: %s", before, after, kept)
    skipped = tuple(layer.name for layer in layers(float_proto) if layer.name not in shifts)
    return corrected if kept else copy_of(quantized_proto), BiasCorrection(kept, before, after, shifts, skipped)


def _shifted(site: _Site, shift: Floats, known: Mapping[str, onnx.TensorProto]) -> Array:
    """The bias moved by ``shift`` (C_out,), in its own units."""
    bias = array(known[site.bias])
    if site.scale is None:
        moved: Array = (bias + shift.reshape(bias.shape)).astype(bias.dtype)
        return moved
    scale = array(known[site.scale]).astype(np.float64)
    steps = np.divide(shift, scale, out=np.zeros_like(shift), where=scale > 0)
    limited: Array = np.clip(bias + np.rint(steps), -_INT32_MAX, _INT32_MAX).astype(np.int32)
    return limited


def _half(feeds: Feeds, first: int, samples: int) -> Iterator[dict[str, Array]]:
    """Every other sample, from the sample of number ``first``: at most ``samples`` of them."""
    seen, left = 0, samples
    for feed in feeds:
        rows = slice((first - seen) % 2, None, 2)
        part = {name: value[rows][:left] for name, value in feed.items()}
        seen += len(next(iter(feed.values())))
        taken = len(next(iter(part.values())))
        left -= taken
        if taken:
            yield part
        if not left:
            return


def _shifts(
    float_proto: onnx.ModelProto, quantized: onnx.ModelProto, sites: Sequence[_Site], feeds: Feeds
) -> list[Floats]:
    """For each site, by how much each of its channels is too low in the quantized graph: (C_out,)."""
    for_float, for_quantized = tee(feeds)
    references = inner_values(*_part(float_proto, [site.reference for site in sites]), for_float)
    measured = inner_values(*_part(quantized, [site.measured for site in sites]), for_quantized)
    totals: list[Floats | float] = [0.0] * len(sites)  # (3, C_out): counts, sums, sums of squares
    for exact, found in zip(references, measured, strict=True):
        for index, site in enumerate(sites):
            wanted, got = (_rows(v, site.axis) for v in (exact[site.reference], found[site.measured]))
            passed = (wanted > site.low) & (wanted < site.high)
            error = np.where(passed, wanted - got, 0).astype(np.float64)
            totals[index] += np.stack([passed.sum(axis=0), error.sum(axis=0), np.square(error).sum(axis=0)])
    return [_shrunk(*np.asarray(total)) for total in totals]


def _shrunk(counts: Floats, sums: Floats, squares: Floats) -> Floats:
    """Means, less what chance alone makes of them (James & Stein 1961, the positive part): each (C_out,).

    A few samples of a wide error would else move the bias by their own noise.
    """
    n = np.maximum(counts, 1)
    mean = sums / n
    chance = np.maximum(squares / n - mean**2, 0) / n  # variance of the mean
    kept = np.divide(chance, mean**2, out=np.ones_like(mean), where=mean != 0)
    return np.asarray(mean * np.maximum(1 - kept, 0))


def _rows(value: Array, axis: int) -> Array:
    """(samples and positions, C)."""
    moved: Array = np.moveaxis(value, axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def _part(proto: onnx.ModelProto, names: Sequence[str]) -> tuple[onnx.ModelProto, Sequence[str]]:
    """The part of a graph that gives the named values, and the names."""
    needed, nodes = set(names), []
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    part = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    part.graph.name = proto.graph.name
    part.graph.node.extend(reversed(nodes))
    part.graph.input.extend(proto.graph.input)
    part.graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in needed)
    return part, names


def _output_db(float_proto: onnx.ModelProto, quantized: onnx.ModelProto, feeds: Feeds) -> float:
    """Signal to noise of the outputs on the half of the samples that gave no means: the mean over outputs.

    As the graphs are written, without fusions, so that it does not depend on the processor; nor on the batches.
    """
    names = [value.name for value in float_proto.graph.output]
    totals = np.zeros((2, len(names)))  # energies of signal and noise
    with np.errstate(invalid="ignore"):
        pairs = zip(
            *(inner_values(proto, names, _half(feeds, 1, _MOST_SAMPLES)) for proto in (float_proto, quantized)),
            strict=True,
        )
        for reference, approximation in pairs:
            noise = [reference[name] - approximation[name] for name in names]
            for row, values in enumerate(([reference[name] for name in names], noise)):
                totals[row] += [np.square(value, dtype=np.float64).sum() for value in values]
    return float(np.mean([_decibels(signal, noise) for signal, noise in totals.T]))


def _decibels(signal: float, noise: float) -> float:
    if not np.isfinite(noise):
        return float("-inf")
    return 10 * float(np.log10(signal / noise)) if noise > 0 and signal > 0 else float("inf")


def _by_depth(quantized: onnx.ModelProto, sites: Sequence[_Site]) -> list[list[_Site]]:
    """Sites by how many others come before them at most."""
    by_value = {site.measured: site for site in sites}
    depth: dict[str, int] = {}
    levels: dict[int, list[_Site]] = {}
    for node in quantized.graph.node:
        below = max((depth.get(name, 0) for name in node.input), default=0)
        site = by_value.get(node.output[0])
        if site is not None:
            levels.setdefault(below, []).append(site)
        depth.update(dict.fromkeys(node.output, below + (site is not None)))
    return [levels[below] for below in sorted(levels)]


def _sites(float_proto: onnx.ModelProto, quantized: onnx.ModelProto) -> tuple[_Site, ...]:
    graph, followed = _Quantized(quantized), _Followed(float_proto)
    sites = []
    for layer in layers(float_proto):
        addition = followed.addition(layer.output)
        node = graph.last_node(layer, addition)
        stored = None if node is None else graph.stored_bias(node)
        if node is None or stored is None:
            continue
        axis = 1 if "Conv" in layer.operator else -1
        value = layer.output if addition is None else addition.output[0]
        passed, low, high = followed.activation(value)
        if passed in graph.producers:
            sites.append(_Site(layer.name, passed, passed, axis, low, high, *stored))
        else:
            sites.append(_Site(layer.name, value, node.output[0], axis, -np.inf, np.inf, *stored))
    return tuple(sites)


def _uses(proto: onnx.ModelProto) -> Counter[str]:
    outputs = [value.name for value in proto.graph.output]
    return Counter([*outputs, *(name for node in proto.graph.node for name in node.input)])


class _Followed:
    """What follows a layer in the float graph."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._known = constants(proto)
        uses = _uses(proto)
        self._users = {name: node for node in proto.graph.node for name in node.input if uses[name] == 1}

    def addition(self, value: str) -> onnx.NodeProto | None:
        """The Add of a constant that alone takes a value."""
        node = self._users.get(value)
        added = node is not None and node.op_type == "Add" and any(name in self._known for name in node.input)
        return node if added else None

    def activation(self, value: str) -> tuple[str, float, float]:
        """The value after Relu, Clip and MaxPool, and the two bounds between which it moves with the layer's bias."""
        low, high = -np.inf, np.inf
        while (node := self._users.get(value)) is not None and node.op_type in ("Relu", "Clip", "MaxPool"):
            if node.op_type == "Relu":
                low = max(low, 0.0)
            elif node.op_type == "Clip":
                low = max(low, self._bound(node, 1, -np.inf))
                high = min(high, self._bound(node, 2, np.inf))
            value = node.output[0]
        return value, low, high

    def _bound(self, node: onnx.NodeProto, index: int, default: float) -> float:
        tensor = self._known.get(node.input[index]) if len(node.input) > index else None
        return default if tensor is None else float(array(tensor).item())


class _Quantized:
    """What the search for biases asks of a quantized graph."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.producers = {name: node for node in proto.graph.node for name in node.output}
        self._by_name = {node.name: node for node in proto.graph.node}
        self._known = constants(proto)
        self._uses = _uses(proto)

    def last_node(self, layer: Layer, addition: onnx.NodeProto | None) -> onnx.NodeProto | None:
        """The node that adds the bias: the Conv or Gemm, or the Add that follows a MatMul or what was a Gemm."""
        node = self._by_name.get(layer.name)
        if node is not None and node.op_type == layer.operator and len(node.input) > 2:
            return node
        node = self._by_name.get(addition.name) if addition is not None else self.producers.get(layer.output)
        return node if node is not None and node.op_type == "Add" and "Conv" not in layer.operator else None

    def stored_bias(self, node: onnx.NodeProto) -> tuple[str, str | None] | None:
        """The constant behind the bias of a node, and its scale where it is int32; None: it is not the node's alone."""
        taken = node.input if node.op_type == "Add" else node.input[2:3]
        names = taken if len(taken) == 1 else [name for name in taken if name in self._known]
        if len(names) != 1 or self._uses[names[0]] != 1:
            return None
        if self._type_of(names[0]) == onnx.TensorProto.FLOAT:
            return names[0], None
        restored = self.producers.get(names[0])
        if restored is None or restored.op_type != "DequantizeLinear":
            return None
        stored, scale = restored.input[0], restored.input[1]
        own = self._uses[stored] == 1 and scale in self._known and self._type_of(stored) == onnx.TensorProto.INT32
        return (stored, scale) if own else None

    def _type_of(self, name: str) -> int | None:
        return self._known[name].data_type if name in self._known else None
