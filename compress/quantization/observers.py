"""What is kept of an activation while the calibration data streams by, and the ranges that it gives.

One `Observer` a tensor: extremes, moving averages and a histogram of fixed size, whatever the number of values. Every
method takes its range from the same observer, after a single walk over the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

Method = Literal["minmax", "moving-average", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "moving-average", "percentile", "entropy", "mse")
Range = tuple[float, float]  # (low <= 0, high >= 0), float32 values: zero is exact on every grid
Counts = NDArray[np.int64]

BINS = 8192
PERCENTILE = 99.99

_AVERAGING = 0.01  # weight of a batch in the moving average, as in onnxruntime
_CHUNK = 1 << 15  # values binned at once: what the temporaries hold stays in the CPU's cache
_SMALLEST_WIDTH = 2.0**-140
_ENTROPY_BINS = 2048  # of magnitudes, and as many levels: TensorRT's figures
_ENTROPY_LEVELS = 128
_ENTROPY_STRIDE = 8  # bins between candidates: 0.4 to 0.8 % of the largest magnitude, in an eighth of the time
_MSE_STEPS = 100  # candidates for each end of a range
_MSE_ROUNDS = 3  # both ends in turn


@dataclass
class Histogram:
    """Counts of values in bins of one width; bin i holds [(start + i) * width, (start + i + 1) * width).

    Zero is always an edge. A width that grows is a power of two: bins then merge in pairs without any error, and the
    result depends on the values alone, not on their order.
    """

    counts: Counts
    width: float = _SMALLEST_WIDTH
    start: int = 0

    @classmethod
    def empty(cls, bins: int) -> Histogram:
        return cls(np.zeros(bins, np.int64))

    @classmethod
    def spanning(cls, low: float, high: float, bins: int) -> Histogram:
        """Bins of the smallest width for low..high; values outside are not allowed."""
        width = max((high - low) / (bins - 2), _SMALLEST_WIDTH)  # an end may touch one bin more; rounding, another
        return cls(np.zeros(bins, np.int64), width, math.floor(low * (1 / width)))

    def make_room(self, low: float, high: float) -> None:
        """Double the width of the bins, and move the first one, until low..high has a place. low <= 0 <= high."""
        bins, width = len(self.counts), self.width
        if high > low:
            width = max(width, math.ldexp(1.0, math.frexp((high - low) / bins)[1]))
        while math.floor(high / width) - math.floor(low / width) >= bins:
            width *= 2
        start = math.floor(low / width)
        if (width, start) == (self.width, self.start):
            return
        filled = np.flatnonzero(self.counts)
        merged = np.zeros_like(self.counts)
        # Floats: the first doublings from the smallest width are more than the bits of an integer.
        places = np.floor((filled + self.start) * (self.width / width)).astype(np.int64) - start
        np.add.at(merged, places, self.counts[filled])
        self.counts, self.width, self.start = merged, width, start

    def add(self, values: NDArray[Any]) -> None:
        """Count values (n,), all inside the bins."""
        bins, scale = len(self.counts), 1 / self.width
        for first in range(0, len(values), _CHUNK):
            scaled = np.multiply(values[first : first + _CHUNK], scale, dtype=np.float64)
            np.floor(scaled, out=scaled)
            scaled -= self.start
            self.counts += np.bincount(scaled.astype(np.intp), minlength=bins)

    def edges(self) -> NDArray[np.float64]:
        """(bins + 1,)"""
        first = float(self.start)
        return np.arange(first, first + len(self.counts) + 1, dtype=np.float64) * self.width

    def magnitudes(self) -> Counts:
        """Counts of |x| in bins of the same width from zero on, without the empty ones at the end."""
        negative, positive = self.counts[: -self.start][::-1], self.counts[-self.start :]
        folded = np.zeros(max(len(negative), len(positive)), np.int64)
        folded[: len(positive)] += positive
        folded[: len(negative)] += negative
        return np.trim_zeros(folded, "b")


@dataclass
class Observer:
    """What is known of one tensor. Its size does not depend on the number of values seen."""

    histogram: Histogram
    low: float = 0.0  # of all values and zero
    high: float = 0.0
    average: Range | None = None  # moving average of the batches' minima and maxima; None: no batch was closed
    _batch: Range = field(default=(math.inf, -math.inf), repr=False)  # extremes of the open batch

    @classmethod
    def new(cls, bins: int = BINS) -> Observer:
        return cls(Histogram.empty(bins))

    def see(self, values: NDArray[Any]) -> bool:
        """Take the extremes of values of any shape. False, and nothing is taken, where one is NaN or infinite."""
        if values.size == 0:
            return True
        low, high = float(values.min()), float(values.max())  # NaN goes through both
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._batch = min(self._batch[0], low), max(self._batch[1], high)
        return True

    def count(self, values: NDArray[Any]) -> None:
        """Count values that were seen."""
        self.histogram.add(values.reshape(-1))

    def update(self, values: NDArray[Any]) -> bool:
        """See and count in one pass. False, and nothing is taken, where a value is NaN or infinite."""
        if not self.see(values):
            return False
        self.histogram.make_room(self.low, self.high)
        self.count(values)
        return True

    def fix_bins(self) -> None:
        """Between two passes: the finest bins for what was seen."""
        self.histogram = Histogram.spanning(self.low, self.high, len(self.histogram.counts))

    def close_batch(self) -> None:
        """Move the averages by what was seen since the last call."""
        low, high = self._batch
        if low > high:  # nothing was seen
            return
        if self.average is not None:
            before_low, before_high = self.average
            low = before_low + _AVERAGING * (low - before_low)
            high = before_high + _AVERAGING * (high - before_high)
        self.average, self._batch = (low, high), (math.inf, -math.inf)

    def range_of(self, method: Method, *, percentile: float = PERCENTILE, symmetric: bool = False) -> Range:
        """The range of the tensor, zero included and nothing beyond what was seen.

        Args:
            method: "minmax"; "moving-average" of the batches' extremes (Jacob et al. 2018, with onnxruntime's
                constant); "percentile"; "entropy": least Kullback-Leibler divergence (Migacz 2017, TensorRT);
                "mse": least expected squared error of the 8-bit grid (Choukroun et al. 2019, OMSE).
            percentile: Of the values, 0..100, that stay inside; of those cut off, half may be on either side.
            symmetric: low = -high: signed 8-bit integers with zero point 0.
        """
        low, high = self._ends(method, percentile, symmetric)
        low, high = min(max(low, self.low), 0.0), max(min(high, self.high), 0.0)
        if symmetric:
            high = max(-low, high)
            low = -high
        return float(np.float32(low)), float(np.float32(high))

    def _ends(self, method: Method, percentile: float, symmetric: bool) -> Range:
        histogram = self.histogram
        if method == "moving-average" and self.average is not None:
            return self.average
        if method in ("minmax", "moving-average") or self.low == self.high:
            return self.low, self.high
        if method == "percentile" and not symmetric:
            return _percentile_ends(histogram, percentile)
        if method == "mse" and not symmetric:
            return _mse_ends(histogram, self.low, self.high)
        magnitudes, largest = histogram.magnitudes(), max(-self.low, self.high)
        if method == "percentile":
            limit = _percentile_limit(magnitudes, histogram.width, percentile)
        elif method == "mse":
            limit = _mse_limit(magnitudes, histogram.width, largest)
        else:
            limit = _entropy_limit(magnitudes, histogram.width)
        return -limit, limit


def _percentile_ends(histogram: Histogram, percentile: float) -> Range:
    """The outer edges of the bins in which both quantiles lie."""
    below, edges = histogram.counts.cumsum(), histogram.edges()
    cut = _cut_off(int(below[-1]), percentile, 2)
    first = int(np.searchsorted(below, cut, side="right"))
    last = int(np.searchsorted(below, below[-1] - cut, side="left"))
    return float(edges[min(first, last)]), float(edges[last + 1])


def _percentile_limit(magnitudes: Counts, width: float, percentile: float) -> float:
    below = magnitudes.cumsum()
    cut = _cut_off(int(below[-1]), percentile, 1)
    return (int(np.searchsorted(below, below[-1] - cut, side="left")) + 1) * width


def _cut_off(count: int, percentile: float, sides: int) -> int:
    """How many values of ``count`` may lie outside, on each side."""
    return int((100 - percentile) / 100 / sides * count + 1e-6)  # 0.1 % of 20,000 is 20, not 19.99…


def _entropy_limit(magnitudes: Counts, width: float) -> float:
    """The clipping limit that loses least information (Migacz 2017, "8-bit inference with TensorRT").

    The distribution clipped at each candidate limit, what it cuts off piled up in the last bin, is compared with its
    128 levels spread out again.
    """
    factor = -(-len(magnitudes) // _ENTROPY_BINS)
    padded = np.zeros(-(-len(magnitudes) // factor) * factor, np.int64)
    padded[: len(magnitudes)] = magnitudes
    counts = padded.reshape(-1, factor).sum(axis=1).astype(np.float64)
    if len(counts) <= _ENTROPY_LEVELS:
        return len(counts) * factor * width
    # Zero is exact on every grid; after a Relu its spike would hide all other values.
    counts[0] = min(counts[0], counts[1])
    sizes = range(len(counts), _ENTROPY_LEVELS - 1, -_ENTROPY_STRIDE)  # of equal candidates the widest
    divergences = [_divergence(counts, size) for size in sizes]
    return sizes[int(np.argmin(divergences))] * factor * width


def _divergence(counts: NDArray[np.float64], size: int) -> float:
    """Kullback-Leibler divergence of counts (bins,), clipped to the first ``size`` bins, from their 128 levels."""
    kept, starts = counts[:size], np.arange(_ENTROPY_LEVELS) * size // _ENTROPY_LEVELS
    clipped = kept.copy()
    clipped[-1] += counts[size:].sum()
    filled = clipped > 0
    shares = np.add.reduceat(kept, starts) / np.maximum(np.add.reduceat(filled.astype(np.float64), starts), 1)
    spread = np.repeat(shares, np.diff(starts, append=size)) * filled
    total = spread.sum()
    if total == 0:
        return math.inf
    return float(rel_entr(clipped / clipped.sum(), spread / total).sum())


def _mse_ends(histogram: Histogram, low: float, high: float) -> Range:
    """Both ends in turn, each to the best of its candidates while the other stays."""
    filled = np.flatnonzero(histogram.counts)
    values = (histogram.start + filled.astype(np.float64) + 0.5) * histogram.width
    counts = histogram.counts[filled].astype(np.float64)
    fractions = np.arange(1, _MSE_STEPS + 1) / _MSE_STEPS

    def error(ends: Range) -> float:
        step = (ends[1] - ends[0]) / 255
        zero = round(-ends[0] / step)
        return _clipping_error(values, counts, -zero * step, (255 - zero) * step, step, histogram.width)

    ends, before = (low, high), None
    for _ in range(_MSE_ROUNDS):
        if ends == before:
            break
        before = ends
        if high > 0:
            ends = min(((ends[0], float(end)) for end in high * fractions), key=error)
        if low < 0:
            ends = min(((float(end), ends[1]) for end in low * fractions), key=error)
    return ends


def _mse_limit(magnitudes: Counts, width: float, largest: float) -> float:
    filled = np.flatnonzero(magnitudes)
    values = (filled.astype(np.float64) + 0.5) * width
    counts = magnitudes[filled].astype(np.float64)
    limits = largest * np.arange(1, _MSE_STEPS + 1) / _MSE_STEPS
    errors = [_clipping_error(values, counts, -limit, limit, limit / 127, width) for limit in limits]
    return float(limits[int(np.argmin(errors))])


def _clipping_error(
    values: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float, step: float, width: float
) -> float:
    """Sum of squared errors of ``counts`` values each on the grid low, low + step, … high, which holds zero."""
    clipped = np.clip(values, low, high)
    errors = values - clipped
    if step > width:
        errors += clipped - np.rint(clipped / step) * step
        return float(np.square(errors) @ counts)
    # A bin holds several levels: its middle says nothing of where its values lie between them.
    return float((np.square(errors) + step * step / 12) @ counts)
