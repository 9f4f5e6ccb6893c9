"""LAMP (Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning"), without sorting the layers.

The score of a weight is its square over the sum of the squares of all at least as large in its layer: comparable across
layers, and 1 for the largest of each, so that no layer empties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Sizes = NDArray[np.float32] | NDArray[np.float64]

CHUNK = 1 << 20  # weights at a time
MANTISSA = 9  # bits of it that tell bins apart: weights of a bin are within 1/512 of each other
SLACK = 1e-9  # of bounds of scores: sums in another order differ by less


@dataclass(frozen=True)
class _Bins:
    """The nonzero magnitudes of a layer in bins of nearly equal ones; only bins that hold some, ascending."""

    number: NDArray[np.int64]  # (bins,) of the bin: the bits of its largest magnitude, shifted
    count: NDArray[np.int64]  # (bins,)
    above: Floats  # (bins,) sum of the squares in all higher bins
    lowest: Floats  # (bins,) no score in the bin is lower, …
    highest: Floats  # … or higher; both ascend from bin to bin


def smallest_by_layer(weights: Sequence[Tensor], k: int) -> tuple[int, ...] | None:
    """How many weights of each layer are among the ``k`` of all that have the smallest LAMP scores.

    Equal scores go to earlier layers first, zeros before all others. Two passes (8 times faster than
    sorting 5.6 million weights, 1 thread): one puts magnitudes into bins, whose
    counts and sums of squares bound the scores in them; one takes the few weights whose bin may hold the k-th, and
    ranks them exactly.

    Returns:
        One a layer; None where a weight is infinite or NaN.
    """
    flat = [_magnitudes(weight) for weight in weights]
    zeros = [len(sizes) - int(np.count_nonzero(sizes)) for sizes in flat]
    if k <= sum(zeros):
        return _in_order(zeros, k)
    if not all(np.isfinite(sizes.max()) for sizes in flat if len(sizes)):
        return None
    bins = [_binned(sizes) for sizes in flat]
    k -= sum(zeros)
    low, high = _bracket(bins, k)
    certain = [int(b.count[b.highest < low].sum()) for b in bins]
    scores = [_exact(sizes, b, low, high) for sizes, b in zip(flat, bins, strict=True)]
    layer = np.repeat(np.arange(len(flat)), [len(s) for s in scores])
    smallest = np.argsort(np.concatenate(scores), kind="stable")[: k - sum(certain)]
    taken = np.bincount(layer[smallest], minlength=len(flat))
    return tuple(z + c + int(t) for z, c, t in zip(zeros, certain, taken, strict=True))


def _magnitudes(weight: Tensor) -> Sizes:
    """(weights,) float32, or float64 where the weights are."""
    flat = weight.detach().reshape(-1).abs().cpu()
    return (flat if flat.dtype == torch.float64 else flat.float()).numpy()


def _in_order(counts: Sequence[int], k: int) -> tuple[int, ...]:
    taken = []
    for count in counts:
        taken.append(min(count, k))
        k -= taken[-1]
    return tuple(taken)


def _bits(sizes: Sizes) -> tuple[NDArray[np.signedinteger[Any]], int]:
    """Magnitudes as the bits of their floats, which order as they do, and by how much a bin's number shifts them."""
    double = sizes.dtype == np.float64
    return sizes.view(np.int64 if double else np.int32), (52 if double else 23) - MANTISSA


def _chunks(sizes: Sizes) -> Iterator[Sizes]:
    return (sizes[start : start + CHUNK] for start in range(0, len(sizes), CHUNK))


def _numbers(sizes: Sizes) -> NDArray[np.int64]:
    """Of the bins: 0 for zeros, and each other bin up to and with the magnitude whose bits are its number, shifted."""
    bits, shift = _bits(sizes)
    return -(-bits >> shift).astype(np.int64)


def _binned(sizes: Sizes) -> _Bins:
    nonzero = sizes.max(initial=0.0) > 0
    first = int(_numbers(sizes[sizes > 0].min(keepdims=True))[0]) if nonzero else 1
    last = int(_numbers(sizes.max(keepdims=True))[0]) if nonzero else 1
    counts, squares = np.zeros(last - first + 1, np.int64), np.zeros(last - first + 1)
    for chunk in _chunks(sizes):
        # Zeros go to a place of their own, 0, before the bins.
        places = np.maximum(_numbers(chunk) - (first - 1), 0)
        counts += np.bincount(places, minlength=len(counts) + 1)[1:]
        squares += np.bincount(places, chunk.astype(np.float64) ** 2, minlength=len(counts) + 1)[1:]
    held = counts.nonzero()[0]
    number, count, inside = held + first, counts[held], squares[held]
    from_here = np.cumsum(inside[::-1])[::-1]
    above = np.append(from_here[1:], 0.0)
    kind = np.int64 if sizes.dtype == np.float64 else np.int32
    shift = _bits(sizes)[1]
    largest = (number << shift).astype(kind).view(sizes.dtype).astype(np.float64) ** 2
    least = (((number - 1) << shift) + 1).astype(kind).view(sizes.dtype).astype(np.float64) ** 2
    tiny = np.finfo(np.float64).tiny
    lowest = least / np.maximum(above + inside, tiny) * (1 - SLACK)
    return _Bins(number, count, above, lowest, largest / np.maximum(above + largest, tiny) * (1 + SLACK))


def _bracket(bins: Sequence[_Bins], k: int) -> tuple[float, float]:
    """Scores between which the ``k``-th smallest lies."""
    count = np.concatenate([b.count for b in bins])
    ends = []
    for bound in (np.concatenate([b.lowest for b in bins]), np.concatenate([b.highest for b in bins])):
        order = np.argsort(bound, kind="stable")
        ends.append(float(bound[order][np.searchsorted(np.cumsum(count[order]), k)]))
    return ends[0], ends[1]


def _exact(sizes: Sizes, bins: _Bins, low: float, high: float) -> Floats:
    """Scores of the weights in the bins that reach into low..high, which are neighbours: (weights,)."""
    chosen = np.nonzero((bins.highest >= low) & (bins.lowest <= high))[0]
    if not len(chosen):
        return np.zeros(0)
    shift = _bits(sizes)[1]
    first, last = (int(bins.number[chosen[0]]) - 1 << shift) + 1, int(bins.number[chosen[-1]]) << shift
    parts = []
    for chunk in _chunks(sizes):
        bits = _bits(chunk)[0]
        parts.append(chunk[(bits >= first) & (bits <= last)])
    squares = np.sort(np.concatenate(parts))[::-1].astype(np.float64) ** 2
    scores: Floats = squares / np.maximum(bins.above[chosen[-1]] + np.cumsum(squares), np.finfo(np.float64).tiny)
    return scores
