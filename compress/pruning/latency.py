"""The latency of a pruned model at any widths, from its layers measured one by one at some."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from compress.errors import PruningError
from compress.files import write_atomically
from compress.measurement.environment import environment
from compress.pruning.cost import AxisLengths, CostModel, weights_of
from compress.pruning.onnx_layers import MEASURED, Layer, layer_at, time_layer
from compress.pruning.values import ChannelGroup, LayerUse
from compress.values import Progress, silent

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Timer = Callable[[Layer, int], float]  # layer, threads -> milliseconds
Shapes = Mapping[str, tuple[int, ...]]

# Shares of an axis at which a layer is measured. The time between is close to linear in each width (one layer's MACs
# are), so the error comes from the kernels' blocks of 8 or 16 channels: lengths are multiples of it where they can be.
_SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
_FLOOR = _SHARES[0]
_LEAST = 0.25  # of the layers' time is left by any correction
_SAVE_EVERY = 50  # measurements, so that little is lost when a run is stopped


@dataclass(frozen=True)
class LayerTable:
    """One call of a layer, measured at some lengths of the first two axes of its weight."""

    weight: str  # state-dict name
    shape: tuple[int, ...]  # of the whole weight
    lengths: tuple[tuple[int, ...], tuple[int, ...]]  # of axis 0 and of axis 1, ascending; the last is the whole axis
    ms: Floats  # (lengths of axis 0, lengths of axis 1)


class LatencyModel:
    """Milliseconds of one inference at given widths: measured layers, bilinear between the measured lengths.

    Below the shortest measured length a layer is taken to be as slow as there. Other weighted operators cost what
    their MACs cost at the mean rate of the measured layers. What has no weights is not in it, nor what a call costs
    that computes nothing: see `calibrated`.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        tables: Sequence[LayerTable],
        others: Sequence[LayerUse] = (),
        shapes: Shapes = MappingProxyType({}),
        ms_per_mac: float = 0.0,
    ) -> None:
        free = [group for group in groups if group.frozen is None]
        axes = [(table.weight, axis) for axis in (0, 1) for table in tables]
        self._lengths = AxisLengths(free, axes, [t.shape[axis] for axis in (0, 1) for t in tables])
        points = max(2, *(len(axis) for table in tables for axis in table.lengths))
        self._grid = np.stack([_front_padded(t.lengths[axis], points) for axis in (0, 1) for t in tables])  # (2L, P)
        self._ms = np.stack([_square(table.ms, points) for table in tables])  # (L, P, P)
        needed = {name: shapes[name] for use in others for name in weights_of(use, shapes)}
        self._others = CostModel(free, others, needed)
        self._weights = tuple(table.weight for table in tables)
        self._scale, self._rest = 1.0, 0.0
        self._ms_per_mac = ms_per_mac

    @property
    def names(self) -> tuple[str, ...]:
        """The groups that are not frozen, in the order of the columns of `many`."""
        return self._lengths.names

    def milliseconds(self, widths: Mapping[str, int]) -> float:
        """One inference where each named group keeps that many channels, and all others are whole."""
        return float(self.many(self._lengths.row(widths))[0])

    def many(self, widths: Floats) -> Floats:
        """Milliseconds (B,) at widths (B, G)."""
        measured = self._measured(widths).sum(axis=1)
        layers = measured + self._ms_per_mac * self._others.macs_of_many(widths)
        # Far from where it was measured, a negative rest would leave less than nothing.
        return np.asarray(np.maximum(self._scale * layers + self._rest, self._scale * layers * _LEAST))

    def share_of(self, prefix: str) -> float:
        """Share 0..1 of the measured layers' time, all whole, in those whose weights' names begin so."""
        whole = self._ms[:, -1, -1]
        own = np.array([weight.startswith(prefix) for weight in self._weights])
        return float(whole[own].sum() / whole.sum())

    def calibrated(self, whole_ms: float, rest_ms: float = 0.0) -> LatencyModel:
        """The same model, scaled so that the whole, unpruned model takes ``whole_ms``, as measured end to end.

        Args:
            whole_ms: In any unit: that of what the new model tells.
            rest_ms: How much of it does not depend on widths: see `share_of_rest`.
        """
        scaled = copy.copy(self)
        layers = (self.milliseconds({}) - self._rest) / self._scale
        scaled._scale, scaled._rest = (whole_ms - rest_ms) / layers, rest_ms
        return scaled

    def _measured(self, widths: Floats) -> Floats:
        """(B, L) milliseconds of each measured layer."""
        lengths = self._lengths.many(widths)  # (B, 2L): all axes 0, then all axes 1
        at = (lengths[:, :, None] >= self._grid[None, :, 1:-1]).sum(axis=2)  # the cell, 0..P - 2
        row = np.arange(len(self._grid))
        low, high = self._grid[row, at], self._grid[row, at + 1]
        share = np.clip((lengths - low) / np.where(high > low, high - low, 1.0), 0.0, 1.0)
        (i, j), (s, t) = np.split(at, 2, axis=1), np.split(share, 2, axis=1)
        layer = np.arange(len(self._ms))
        near = self._ms[layer, i, j] * (1 - t) + self._ms[layer, i, j + 1] * t
        far = self._ms[layer, i + 1, j] * (1 - t) + self._ms[layer, i + 1, j + 1] * t
        return np.asarray(near * (1 - s) + far * s)


def share_of_rest(layers: Sequence[float], measured: Sequence[float]) -> float:
    """The share of a whole model's latency that no width changes: measured = rest + (1 - rest) layers, least squares.

    What is not a layer adds to it: the call itself, and each node a little. What the profiler adds to each layer is
    taken from it, and in small models that is more. Measured on a CNN of 228,010 parameters, 250 us: a call that does
    nothing takes 4.7 us, a small node 0.4, but in a profile 2.0.

    Args:
        layers: Of narrower models, shares 0..1 of the whole model's milliseconds as the layers alone have it.
        measured: The same shares end to end.

    Returns:
        Negative where the layers' times are too long; no more than the least that was measured; 0 where nothing was.
    """
    predicted, found = np.array(layers, np.float64), np.array(measured, np.float64)
    lost = 1 - predicted
    if not (lost > 0).any():
        return 0.0
    return float(np.clip(((found - predicted) @ lost) / (lost @ lost), -found.min(), found.min()))


def channel_block() -> int:
    """Output channels that ONNX Runtime's convolutions compute at a time on this CPU: MLAS's NCHWc layout.

    A convolution whose *input* is wider than a block, and no multiple of it, is computed without that layout. Measured
    with AVX-512: from 16 input channels to 18, 5x5 on 24x24 takes twice as long, and as long as 32.
    """
    return 16 if "avx512" in environment(1)["isa"] else 8


def measure_latency(
    groups: Sequence[ChannelGroup],
    uses: Sequence[LayerUse],
    shapes: Shapes,
    *,
    threads: int = 1,
    floor: float = _FLOOR,
    block: int = 8,
    cache: Path | None = None,
    timer: Timer = time_layer,
    progress: Progress = silent,
) -> LatencyModel:
    """Time the model's layers in ONNX Runtime on the CPU, at 5 to 8 lengths of each axis that may shrink.

    Identical layers are timed once, and never again while ``cache`` (a JSON file) remembers them: a key is the layer
    with its shapes and arguments, the processor, the version of ONNX Runtime and the threads.

    Args:
        groups: Of `channel_groups`; frozen ones do not shrink.
        uses: The calls of weighted operators; convolutions and matrix products are measured.
        shapes: Parameter name -> shape, as for `CostModel`.
        threads: Of one operator.
        floor: Share 0..1 of an axis below which nothing is measured.
        block: Lengths of this and more are multiples of it, but for the whole; below it they are powers of two.

    Raises:
        PruningError: there is no layer to measure.
        MeasurementError: ONNX Runtime does not run a layer.
    """
    known = [use for use in uses if use.operator in MEASURED and use.macs > 0 and len(use.weight_shape) >= 2]
    if not known:
        found = ", ".join(sorted({use.operator for use in uses})) or "none"
        raise PruningError(
            f"latency is measured on convolutions and matrix products, but the model has {found}. "
            "Give a target in MACs or parameters instead."
        )
    grids = [_Grid.of(use, groups, floor, block) for use in known]
    layers = list(dict.fromkeys(layer for grid in grids for layer in grid.layers.values()))
    ms = _timed(layers, threads, _Cache(cache, threads), timer, progress)
    tables = [grid.table(ms) for grid in grids]
    others = [use for use in uses if use.macs > 0 and use not in known]
    rate = sum(float(table.ms[-1, -1]) for table in tables) / sum(use.macs for use in known)
    return LatencyModel(groups, tables, others, shapes, rate)


@dataclass(frozen=True)
class _Grid:
    """The lengths at which one call is measured, and the layers to measure for it."""

    use: LayerUse
    lengths: tuple[tuple[int, ...], tuple[int, ...]]
    layers: Mapping[tuple[int, int], Layer]

    @classmethod
    def of(cls, use: LayerUse, groups: Sequence[ChannelGroup], floor: float, block: int) -> _Grid:
        members = [m for g in groups if g.frozen is None for m in g.members if m.name == use.weight]
        shrinks = [any(m.axis == axis for m in members) for axis in (0, 1)]
        conv_groups = int(use.arguments.get("groups", 1))
        # As the group finder has it: in a grouped convolution either both axes may shrink, or whole groups leave.
        whole_groups = conv_groups > 1 and all(m.axis == 0 and m.role == "out" for m in members)
        first, second = use.weight_shape[:2]
        # Axis 0 has all groups one after the other; it stays divisible whichever way it shrinks.
        unit = first // conv_groups if whole_groups else conv_groups
        rows = tuple(unit * n for n in _lengths(first // unit, floor, block)) if shrinks[0] else (first,)
        columns = _lengths(second, floor, block) if shrinks[1] else (second,)
        layers = {(a, b): layer_at(use, a, b, whole_groups) for a in rows for b in columns}
        return cls(use, (rows, columns), layers)

    def table(self, ms: Mapping[Layer, float]) -> LayerTable:
        rows, columns = self.lengths
        values = np.array([[ms[self.layers[a, b]] for b in columns] for a in rows])
        return LayerTable(self.use.weight, self.use.weight_shape, self.lengths, values)


def _lengths(full: int, floor: float, block: int) -> tuple[int, ...]:
    """The whole axis, multiples of ``block`` near `_SHARES` of it, and powers of two below them down to ``floor``."""
    blocks = {min(full, max(1, round(share * full / block)) * block) for share in _SHARES}
    least = max(1.0, floor * full)
    powers = {2**k for k in range(full.bit_length()) if least <= 2**k < min(blocks)}
    return tuple(sorted({full, *blocks, *powers}))


def _timed(
    layers: Sequence[Layer], threads: int, cache: _Cache, timer: Timer, progress: Progress
) -> dict[Layer, float]:
    found = {}
    for number, layer in enumerate(layers, start=1):
        remembered = cache.get(layer)
        found[layer] = timer(layer, threads) if remembered is None else remembered
        if remembered is None:
            cache.put(layer, found[layer])
        progress("timing layers", number, len(layers), str(layer))
    cache.save()
    return found


class _Cache:
    """Measured layers in a JSON file: text of machine and layer -> milliseconds."""

    def __init__(self, path: Path | None, threads: int) -> None:
        self._path = path
        self._machine = f"{environment(threads)['cpu']} | onnxruntime {onnxruntime.__version__} | threads {threads} | "
        self._known = self._read()
        self._new = 0

    def get(self, layer: Layer) -> float | None:
        return self._known.get(self._machine + str(layer))

    def put(self, layer: Layer, ms: float) -> None:
        self._known[self._machine + str(layer)] = ms
        self._new += 1
        if self._new % _SAVE_EVERY == 0:
            self.save()

    def save(self) -> None:
        if self._path is not None and self._new:
            merged = {**self._read(), **self._known}  # another process may have written meanwhile
            write_atomically(self._path, json.dumps(merged, indent=0, sort_keys=True).encode())

    def _read(self) -> dict[str, float]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            stored = json.loads(self._path.read_text())
            return {str(key): float(ms) for key, ms in stored.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.warning("the latencies in %s cannot be read, layers are timed again: %s", self._path, error)
            return {}


def _front_padded(values: Sequence[int], length: int) -> Floats:
    return np.pad(np.array(values, np.float64), (length - len(values), 0), mode="edge")


def _square(ms: Floats, points: int) -> Floats:
    return np.pad(ms, [(points - size, 0) for size in ms.shape], mode="edge")
