"""Integer weights that zip smaller: entropy-constrained rounding of a graph that is quantized already.

Deflate spends about -log2 p bits on a weight whose value has the share p in its tensor. A weight moves to another
value where the bits that it saves outweigh the noise that it adds, and the two steps, shares and moves, alternate until
they settle: entropy-constrained scalar quantization (Chou, Lookabaugh, Gray 1989), with the noise weighted by the
curvature that the inputs give (Choi, El-Khamy, Lee 2017).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.errors import QuantizationError
from compress.measurement.entropy import entropy_bits
from compress.models.onnx_file import Array, serialize
from compress.quantization.blocks import pack
from compress.quantization.graph import array, attribute, constants, copy_of, inner_values
from compress.values import Progress, silent

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Int8s = NDArray[np.int8]

STRENGTHS = tuple(
    float(strength) for strength in np.geomspace(1e-4, 30.0, 63)
)  # 6 evaluations find the last that holds

_SUFFIX = "_quantized"
_STORED = (onnx.TensorProto.INT8, onnx.TensorProto.INT4)
_INT8_MAX = 127
_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)  # of the grids to start from: moves alone never leave a fine one
_ROUNDS = 12  # of shares and moves, at most; most settle in fewer than 8
_LEVELS_AN_OCTAVE = 2  # of importance: within 19 % of its value, so that a table of few rows stands for all weights
_DAMPING = 0.01  # of the mean importance, added to all, as GPTQ does: an input that was 0 in calibration may not stay 0


@dataclass(frozen=True)
class SizeFigures:
    """What entropy-aware rounding did to the weights of a graph, and to its bytes."""

    weights: int  # that could move
    moved: int  # of them
    zeros_before: int
    zeros: int
    entropy_bytes_before: float  # order-0 entropy of each tensor, summed: the floor of a code without repeats
    entropy_bytes: float
    deflate_bytes_before: int  # of the whole file, level 9: what the zip takes but for its 122 bytes of names and dates
    deflate_bytes: int


def round_for_size(
    proto: onnx.ModelProto,
    strength: float,
    energy: Mapping[str, Array] | None = None,
    sensitivity: Mapping[str, float] | None = None,
    original: onnx.ModelProto | None = None,
) -> onnx.ModelProto:
    """Move int8 and int4 weights to values that take fewer bits; zeros stay zero, and no weight grows past the largest.

    A layer's noise counts as a share of its output's energy, so that layers compare: ``strength`` 0.01 gives up one
    bit a weight for noise of 0.01 (20 dB below the output) in a layer of average size. A large layer takes more noise
    a weight than a small one.

    Args:
        proto: Holds symmetric weights ``w_quantized`` of two axes or more, with their scales ``w_scale``: QDQ, dynamic
            or weight-only, before its names are shortened.
        strength: 0 changes nothing.
        energy: Of the inputs that each weight meets, from `input_energy`; without it all inputs count alike.
        sensitivity: How much more than others the noise of a layer counts, by the name ``w_quantized``; 1 by default.
        original: The float graph that was quantized: noise is then measured from its weights, and not from their
            rounded values. Worth it at 4 bits; not after learned rounding, which it would undo.

    Raises:
        QuantizationError: the strength is negative, or the graph has no such weights.
    """
    if not strength >= 0:
        raise QuantizationError(f"entropy-aware rounding with strength={strength}: allowed are numbers from 0.")
    weights = _weights(proto)
    if not weights:
        raise QuantizationError(
            "entropy-aware rounding found no symmetric int8 or int4 weight named …_quantized. "
            "Quantize the graph first, and shorten names last."
        )
    energy, sensitivity = energy or {}, sensitivity or {}
    total = sum(values.size for values in weights.values())
    scales = _scales(proto, weights)
    floats = constants(original) if original else {}
    rounded = {}
    for name, values in weights.items():
        importance = _damped(np.asarray(energy.get(name, 1.0), np.float64)) * np.square(scales[name])
        cost = total * sensitivity.get(name, 1.0) * _shares(values, importance)
        tensor = floats.get(name.removesuffix(_SUFFIX))
        exact = values if tensor is None else array(tensor).reshape(values.shape) / scales[name]
        rounded[name] = _round(values, exact, cost, strength)
    return _with_weights(proto, rounded)


def size_figures(before: onnx.ModelProto, after: onnx.ModelProto) -> SizeFigures:
    """What `round_for_size` made of a graph. Deflating both takes longer than rounding: not for every strength."""
    weights, rounded = _weights(before), _weights(after)
    return SizeFigures(
        weights=sum(values.size for values in weights.values()),
        moved=sum(int((values != rounded[name]).sum()) for name, values in weights.items()),
        zeros_before=sum(int((values == 0).sum()) for values in weights.values()),
        zeros=sum(int((values == 0).sum()) for values in rounded.values()),
        entropy_bytes_before=sum(values.size * entropy_bits(values) for values in weights.values()) / 8,
        entropy_bytes=sum(values.size * entropy_bits(values) for values in rounded.values()) / 8,
        deflate_bytes_before=_deflated(before),
        deflate_bytes=_deflated(after),
    )


def input_energy(proto: onnx.ModelProto, feeds: Iterable[dict[str, Array]]) -> dict[str, Array]:
    """The mean square of the inputs that meet each quantized weight: the diagonal of its Hessian, up to a factor.

    Returns:
        Name ``w_quantized`` -> array that broadcasts to the weight; only of convolutions and products.
    """
    uses = _uses(proto)
    names = sorted({value for users in uses.values() for _, value in users})
    sums: dict[str, dict[str, Floats]] = {name: {} for name in uses}
    for values in inner_values(proto, names, feeds):
        for name, users in uses.items():
            for node, value in users:
                square = _mean_square(node, values[value])
                sums[name][value] = sums[name].get(value, np.zeros(())) + square
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    return {
        name: np.asarray(sum(_over_weight(node, shapes[name], sums[name][value]) for node, value in users))
        for name, users in uses.items()
        if users
    }


def strongest(
    build: Callable[[float], onnx.ModelProto],
    within: Callable[[onnx.ModelProto], bool],
    strengths: tuple[float, ...] = STRENGTHS,
    near: float | None = None,
    progress: Progress = silent,
) -> tuple[float, onnx.ModelProto] | None:
    """The largest strength whose graph is within the budget; None where not even the smallest is.

    Args:
        build: Makes the graph of a strength.
        within: Whether a graph keeps to the accuracy budget; taken to hold up to some strength, and not past it.
        strengths: Rising; n of them take log2(n + 1) evaluations, rounded up.
        near: One of them, to look around first: 2 evaluations where it is the one, at most 4 within 2 places.
        progress: Told after every evaluation.
    """
    low, high, done, best = 0, len(strengths), 0, None  # all below low hold, none from high on
    most, stride = len(strengths).bit_length(), 1
    middle = high // 2 if near is None else strengths.index(near)
    while low < high:
        made = build(strengths[middle])
        if within(made):
            low, best = middle + 1, (strengths[middle], made)
        else:
            high = middle
        done += 1
        found = "" if best is None else f"best: strength {best[0]:.2g}, "
        progress("rounding for size", done, max(done, most), f"{found}tried {strengths[middle]:.2g}")
        if near is None or (low > 0 and high < len(strengths)):
            middle = (low + high) // 2
        else:  # away from where it began, in strides that double, until it lies between two
            middle = min(middle + stride, high - 1) if low > 0 else max(middle - stride, 0)
            stride *= 2
    if done < most:
        progress("rounding for size", most, most)
    return best


def _weights(proto: onnx.ModelProto) -> dict[str, Int8s]:
    known = constants(proto)
    found = {}
    for name, tensor in known.items():
        if tensor.data_type in _STORED and len(tensor.dims) >= 2 and name.endswith(_SUFFIX):
            zero_point = known.get(name.removesuffix(_SUFFIX) + "_zero_point")
            if zero_point is None or not array(zero_point).any():
                found[name] = array(tensor).astype(np.int8)
    return found


def _with_weights(proto: onnx.ModelProto, weights: Mapping[str, Int8s]) -> onnx.ModelProto:
    made = copy_of(proto)
    for tensor in made.graph.initializer:
        if tensor.name in weights:
            values = weights[tensor.name]
            data = pack(values.ravel()) if tensor.data_type == onnx.TensorProto.INT4 else values
            stored = onnx.helper.make_tensor(tensor.name, tensor.data_type, values.shape, data.tobytes(), raw=True)
            tensor.CopyFrom(stored)
    return made


def _scales(proto: onnx.ModelProto, weights: Mapping[str, Int8s]) -> dict[str, Floats]:
    """The scale of each weight, broadcastable to it; 1 where scales are not one a tensor, channel or block."""
    known = constants(proto)
    axes = {n.input[0]: attribute(n, "axis", 1) for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    scales = {}
    for name, values in weights.items():
        tensor = known.get(name.removesuffix(_SUFFIX) + "_scale")
        scale = np.ones(()) if tensor is None else array(tensor).astype(np.float64)
        if scale.ndim == 1 and scale.size > 1 and name in axes:
            scale = scale.reshape([-1 if i == axes[name] % values.ndim else 1 for i in range(values.ndim)])
        fits = scale.size == 1 or scale.ndim == values.ndim
        scale = np.where(scale > 0, scale, 1.0) if fits else np.ones(())  # a channel of zeros may have scale 0
        scales[name] = scale.reshape(()) if scale.size == 1 else scale
    return scales


def _damped(energy: Floats) -> Floats:
    damped: Floats = energy + _DAMPING * energy.mean()
    return damped if damped.all() else np.ones_like(damped)


def _shares(values: Int8s, importance: Floats) -> Floats:
    """What a move by 1 adds to the noise, as a share of the layer's energy."""
    spread = np.broadcast_to(importance, values.shape)
    signal = float((spread * np.square(values, dtype=np.float64)).sum())
    return spread / signal if signal > 0 else spread


def _round(values: Int8s, exact: Array, cost: Floats, strength: float) -> Int8s:
    """The values that minimise cost * (exact - value)² + strength * bits, over the whole tensor.

    Where a weight goes depends on its exact value and its cost alone: the search runs on the table of the pairs that
    occur, the first in steps of 1 for int8 and 1/18 for int4, the second in half octaves.
    """
    largest = int(np.abs(values.astype(np.int16)).max(initial=0))
    parts = max(1, _INT8_MAX // max(1, largest))
    place = np.rint(np.clip(exact, -2 * largest, 2 * largest) * parts).astype(np.int64)
    level = np.rint(_LEVELS_AN_OCTAVE * np.log2(cost)).astype(np.int64)
    lowest, width = int(level.min()), 4 * _INT8_MAX + 3
    pairs, inverse, counts = np.unique(
        ((level - lowest) * width + place + width // 2).ravel(), return_inverse=True, return_counts=True
    )
    costs = 2.0 ** ((pairs // width + lowest) / _LEVELS_AN_OCTAVE)
    table = _Table((pairs % width - width // 2) / parts, costs, counts, largest)
    settled = [table.settle(step, strength) for step in _STEPS if step <= max(1, largest)]
    best = min(settled, key=lambda result: result[0])[1]
    return best[inverse.ravel()].reshape(values.shape).astype(np.int8)


@dataclass(frozen=True)
class _Table:
    """The pairs of exact value and cost that occur in a tensor."""

    values: Floats  # (rows,)
    costs: Floats  # (rows,) of a move by 1
    counts: Ints  # (rows,) weights that have both
    largest: int  # no weight goes past it

    def settle(self, step: int, strength: float) -> tuple[float, Ints]:
        """Alternate shares and moves from a grid of ``step``; return the least objective, and where each row goes."""
        end = self.largest // step * step
        near_zero = np.abs(self.values) <= 0.5  # they are zero already, and stay it
        chosen = np.clip(step * np.rint(self.values / step).astype(np.int64), -end, end)
        for _ in range(_ROUNDS):
            levels, bits = self._bits(chosen)
            noise = self.costs[:, None] * np.square(self.values[:, None] - levels)
            moved = levels[(noise + strength * bits).argmin(axis=1)]
            moved[near_zero] = 0
            if np.array_equal(moved, chosen):
                break
            chosen = moved
        return self._objective(chosen, strength), chosen

    def _objective(self, chosen: Ints, strength: float) -> float:
        levels, bits = self._bits(chosen)
        noise = self.costs * np.square(self.values - chosen)
        return float((self.counts * (noise + strength * bits[np.searchsorted(levels, chosen)])).sum())

    def _bits(self, chosen: Ints) -> tuple[Ints, Floats]:
        """The values in use, rising, and the bits that each takes."""
        levels, index = np.unique(chosen, return_inverse=True)
        uses = np.bincount(index.ravel(), weights=self.counts)
        return levels, np.log2(uses.sum() / uses)


def _uses(proto: onnx.ModelProto) -> dict[str, list[tuple[onnx.NodeProto, str]]]:
    """Each quantized weight -> the products and convolutions that take it, each with the float value it multiplies."""
    producers = {name: node for node in proto.graph.node for name in node.output}
    uses: dict[str, list[tuple[onnx.NodeProto, str]]] = {name: [] for name in _weights(proto)}
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger"):
            continue
        weight, value = node.input[1], node.input[0]
        while weight in producers and producers[weight].op_type in ("DequantizeLinear", "Cast", "Mul"):
            weight = producers[weight].input[0]
        if value in producers and producers[value].op_type == "DynamicQuantizeLinear":
            value = producers[value].input[0]
        if weight in uses and not attribute(node, "transA", 0):
            uses[weight].append((node, value))
    return uses


def _mean_square(node: onnx.NodeProto, values: Array) -> Floats:
    """Of each channel that enters: axis 1 of a convolution's input, the last axis of a product's."""
    axis = 1 if "Conv" in node.op_type else values.ndim - 1
    others = tuple(i for i in range(values.ndim) if i != axis)
    mean: Floats = np.square(values, dtype=np.float64).mean(axis=others)
    return mean


def _over_weight(node: onnx.NodeProto, shape: tuple[int, ...], energy: Floats) -> Floats:
    """The energy of the channels that enter, (C_in,), as it broadcasts to the weight."""
    if node.op_type == "Conv":  # (C_out, C_in / groups, …)
        groups = attribute(node, "group", 1)
        by_group = np.repeat(energy.reshape(groups, -1), shape[0] // groups, axis=0)
        return by_group.reshape(*by_group.shape, *[1] * (len(shape) - 2))
    if node.op_type == "ConvTranspose":  # (C_in, C_out / groups, …)
        return energy.reshape(-1, *[1] * (len(shape) - 1))
    if node.op_type == "Gemm" and attribute(node, "transB", 0):  # (C_out, C_in)
        return energy.reshape(1, -1)
    return energy.reshape(-1, 1)  # (…, C_in, C_out)


def _deflated(proto: onnx.ModelProto) -> int:
    return len(zlib.compress(serialize(proto), 9))
