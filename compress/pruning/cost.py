"""Parameters and multiply-accumulates of a pruned model as a function of its widths, without building it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compress.pruning.values import ChannelGroup, LayerUse

Floats = NDArray[np.float64]
Axis = tuple[str, int]  # state-dict name, axis

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


class AxisLengths:
    """How long axes of the weights are at given widths: each group takes entries in proportion to what it lost."""

    def __init__(self, groups: Sequence[ChannelGroup], axes: Sequence[Axis], full: Sequence[int]) -> None:
        self.names = tuple(group.name for group in groups)  # the order of the columns of ``many``
        self.channels = np.array([group.channels for group in groups], np.float64)  # (G,)
        self._full = np.array(full, np.float64)  # (A,)
        self._entries = np.zeros((len(groups), len(axes)))  # (G, A): entries that leave with one channel
        columns: dict[Axis, list[int]] = {}
        for column, axis in enumerate(axes):
            columns.setdefault(axis, []).append(column)
        for row, group in enumerate(groups):
            for member in group.members:
                for column in columns.get((member.name, member.axis), ()):
                    self._entries[row, column] += len(member.index) / group.channels

    @property
    def touched(self) -> NDArray[np.bool_]:
        """(A,): whether any group takes from the axis."""
        return np.asarray(self._entries.any(axis=0))

    def row(self, widths: Mapping[str, int]) -> Floats:
        """``widths`` as (1, G); a group that is not named is whole."""
        pairs = zip(self.names, self.channels, strict=True)
        return np.array([[widths.get(name, whole) for name, whole in pairs]], np.float64).reshape(1, len(self.names))

    def many(self, widths: Floats) -> Floats:
        """Lengths (B, A) at widths (B, G)."""
        return np.asarray(self._full - (self.channels - widths) @ self._entries)


class CostModel:
    """Size and computation at given widths, in tens of microseconds: allocation asks thousands of times.

    A weight has the product of its axes, each its original length less what its groups lost. The MACs of a call scale
    with the size of its weight (for recurrent layers: of all their weights), which is exact for linear layers and for
    convolutions, depthwise and grouped ones too: the resolution does not change.

    Args:
        groups: Of `channel_groups`; frozen ones are allowed.
        uses: The calls of weighted operators; what has no MACs or an unknown weight is constant.
        shapes: Parameter name -> shape. Buffers do not belong here: they are no parameters.
    """

    def __init__(
        self, groups: Sequence[ChannelGroup], uses: Sequence[LayerUse], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        sizes = {name: shape or (1,) for name, shape in shapes.items()}  # a scalar is one axis of length 1
        axes = [(name, axis) for name, shape in sizes.items() for axis in range(len(shape))]
        self._lengths = AxisLengths(groups, axes, [sizes[name][axis] for name, axis in axes])
        self._starts = np.cumsum([0, *(len(shape) for shape in sizes.values())])[:-1]  # of each parameter in ``axes``
        full = self._elements(self._lengths.channels[None])[0]
        position = {name: number for number, name in enumerate(sizes)}
        self._rates = np.zeros(len(sizes))  # MACs for each element of a parameter
        self._constant = 0.0
        for use in uses:
            weights = [position[name] for name in weights_of(use, sizes)]
            elements = full[weights].sum()
            if elements:
                self._rates[weights] += use.macs / elements
            else:
                self._constant += use.macs

    @property
    def names(self) -> tuple[str, ...]:
        """The groups, in the order of the columns of `macs_of_many`."""
        return self._lengths.names

    def parameters(self, widths: Mapping[str, int]) -> int:
        """Elements of all parameters where each named group keeps that many channels, and all others are whole."""
        return round(float(self._elements(self._lengths.row(widths)).sum()))

    def macs(self, widths: Mapping[str, int]) -> int:
        """Multiply-accumulates for one sample at ``widths``."""
        return round(float(self.macs_of_many(self._lengths.row(widths))[0]))

    def macs_of_many(self, widths: Floats) -> Floats:
        """MACs (B,) at widths (B, G)."""
        return np.asarray(self._elements(widths) @ self._rates + self._constant)

    def _elements(self, widths: Floats) -> Floats:
        """Elements (B, parameters) at widths (B, G)."""
        if not len(self._starts):
            return np.zeros((len(widths), 0))
        return np.asarray(np.multiply.reduceat(self._lengths.many(widths), self._starts, axis=1))


def weights_of(use: LayerUse, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The parameters whose sizes the MACs of a call are proportional to; empty where its weight is no parameter."""
    if use.weight not in shapes:
        return []
    if not use.operator.removesuffix("_cell").startswith(_RECURRENT):
        return [use.weight]
    # weight_ih and weight_hh of all layers and directions, and weight_hr: they are parameters of one module.
    module = use.weight.rpartition(".")[0]
    return [name for name, shape in shapes.items() if name.rpartition(".")[0] == module and len(shape) == 2]
