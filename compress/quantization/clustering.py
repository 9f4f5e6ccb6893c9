"""Clustering on a line: the few values that stand for a layer's weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.models.onnx_file import Array

Floats = NDArray[np.float32]

_BINS = 512  # of the histogram that the exact clustering starts from
_ROUNDS = 100  # of Lloyd's algorithm after it, at most


@dataclass(frozen=True)
class Codebook:
    """A weight tensor as numbers of values."""

    values: Floats | NDArray[np.int8]  # (K,)
    indices: NDArray[np.uint8]  # the weight's shape
    scale: Floats | None = None  # of the output channels, broadcastable to the weight; None: 1

    @property
    def weight(self) -> Floats | NDArray[np.int8]:
        found = self.values[self.indices]
        return found if self.scale is None else np.asarray(found * self.scale, np.float32)


def cluster(weight: Floats, values: int, axis: int | None = None) -> Codebook:
    """The codebook with the least squared error that the optimum of a fine histogram leads to.

    Args:
        weight: Of any shape.
        values: How many distinct values are left, at most. Exact zeros are a cluster of their own.
        axis: Of the channels, each of which is divided by its largest absolute weight first; None: one for all.
    """
    scale: Floats | None = None
    if axis is not None:
        others = tuple(i for i in range(weight.ndim) if i != axis)
        largest = np.abs(weight).max(axis=others, keepdims=True)
        scale = np.where(largest > 0, largest, 1).astype(np.float32)
    unit = weight if scale is None else weight / scale
    importance = np.ones_like(unit, np.float64) if scale is None else np.broadcast_to(np.square(scale), unit.shape)
    levels = levels_of(unit, importance, values).astype(np.float32)
    return Codebook(levels, nearest_of(unit, levels).astype(np.uint8), scale)


def levels_of(points: Array, importance: Array, count: int) -> NDArray[np.float64]:
    """At most ``count`` values, ascending, with the least weighted squared error; 0 is one where a point is 0."""
    live = points != 0
    zeros = [] if live.all() else [0.0]
    if not live.any():
        return np.zeros(1)
    means = _kmeans(points[live].astype(np.float64), importance[live], count - len(zeros))
    return np.unique(np.concatenate([means, zeros]))


def _kmeans(points: NDArray[np.float64], importance: Array, count: int) -> NDArray[np.float64]:
    """The means of at most ``count`` clusters on a line, ascending.

    Exact for up to `_BINS` distinct points; for more, the exact means of a histogram, moved by Lloyd's algorithm.
    Libraries have k-means for any number of axes, where neither the optimum nor the order can be used.
    """
    order = np.argsort(points, kind="stable")
    points, importance = points[order], importance[order]
    distinct = np.unique(points)
    edges = distinct if len(distinct) <= _BINS else np.linspace(points[0], points[-1], _BINS, endpoint=False)
    sums = _Sums(points, importance)
    starts = np.unique(np.searchsorted(points, edges))
    means = sums.means(_exact(sums, np.append(starts, len(points)), count))
    for _ in range(_ROUNDS):
        bounds = np.searchsorted(points, (means[1:] + means[:-1]) / 2)
        moved = sums.means(np.unique(np.concatenate([[0], bounds, [len(points)]])))
        if np.array_equal(moved, means):
            break
        means = moved
    return means


class _Sums:
    """Running sums over ascending points, from which every interval's mean and error follow."""

    def __init__(self, points: NDArray[np.float64], importance: Array) -> None:
        def running(values: Array) -> NDArray[np.float64]:
            return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])

        self.weight, self.first, self.second = (running(importance * points**power) for power in range(3))

    def means(self, bounds: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of the intervals between ``bounds``, none of which is empty."""
        return np.asarray(np.diff(self.first[bounds]) / np.diff(self.weight[bounds]))

    def errors(self, bounds: NDArray[np.int64]) -> NDArray[np.float64]:
        """(B, B): the weighted squared error of bounds i to j around their mean; infinite for j <= i."""
        weight, first, second = (
            s[bounds][None, :] - s[bounds][:, None] for s in (self.weight, self.first, self.second)
        )
        real = np.triu(np.ones(weight.shape, bool), 1)
        return np.where(real, second - np.square(first) / np.where(real, weight, 1), np.inf)


def _exact(sums: _Sums, bounds: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Those of ``bounds`` that part at most ``count`` clusters at the least error (Wang & Song 2011, Ckmeans.1d.dp)."""
    errors = sums.errors(bounds)
    best, steps = errors[0], []  # best[j]: of bounds 0..j in as many clusters as there were steps, plus one
    for _ in range(min(count, len(bounds) - 1) - 1):
        total = best[:, None] + errors
        steps.append(total.argmin(axis=0))
        best = total.min(axis=0)
    last = len(bounds) - 1
    chosen = [last]
    for step in reversed(steps):
        last = int(step[last])
        chosen.append(last)
    return np.asarray(bounds[np.unique([0, *chosen])])


def nearest_of(points: Array, levels: Array) -> NDArray[np.int64]:
    """The number of the nearest of ascending ``levels`` for each point."""
    return np.asarray(np.searchsorted((levels[1:] + levels[:-1]) / 2, points))
