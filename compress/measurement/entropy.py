"""How few bytes the values of a tensor could take: the order-0 entropy of what is stored (Shannon 1948)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_CHUNK = 1 << 22  # values whose bytes are counted at a time: counting takes 8 bytes of memory for each


def entropy_bits(values: Array) -> float:
    """The order-0 entropy of whole numbers, in bits a value."""
    return _bits(_counts(values.view(np.uint8) if values.dtype.itemsize == 1 else values))


def entropy_bytes(values: Array) -> float:
    """The least bytes that a code without memory spends on the stored values of a tensor.

    Up to 8 bits a value (int8, and int4 one value at a time): the entropy of the values. Wider ones (float32, int32)
    hardly ever come twice, and their entropy alone would leave out what they are. So it is the cheaper of two codes:
    a table of the distinct bit patterns and the entropy of their numbers; or a flag for zero, and each byte of the
    others coded by itself (exponents are few, mantissas are noise).
    """
    if values.dtype.itemsize == 1:
        return values.size * entropy_bits(values) / 8
    if values.size == 0:
        return 0.0
    patterns = np.ascontiguousarray(values).reshape(-1).view(f"u{values.dtype.itemsize}")
    counts = _counts(patterns)
    table = counts.size * patterns.itemsize + patterns.size * _bits(counts) / 8
    return min(table, _planes(patterns))


def _planes(patterns: Array) -> float:
    """Bytes of a flag for zero a value, and of the other values byte by byte."""
    others = patterns[patterns != 0]
    flags = _bits(np.array([patterns.size - others.size, others.size]))
    planes = sum(_bits(counts) for counts in _byte_counts(others))
    return float(patterns.size * flags + others.size * planes) / 8


def _byte_counts(patterns: Array) -> Iterator[NDArray[np.int64]]:
    """How often each value of a byte comes, for the first byte of all patterns, the second, and so on."""
    planes = patterns.view(np.uint8).reshape(-1, patterns.itemsize)
    for number in range(patterns.itemsize):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(planes), _CHUNK):
            counts += np.bincount(planes[start : start + _CHUNK, number], minlength=256)
        yield counts


def _counts(values: Array) -> NDArray[np.int64]:
    """How often each distinct value comes."""
    if values.dtype == np.uint8:
        return sum((np.bincount(part, minlength=256) for part in _parts(values)), np.zeros(256, np.int64))
    ordered = np.sort(values, axis=None)  # np.unique takes ten times as long for many distinct values
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if ordered.size else ordered
    return np.diff(starts, append=ordered.size).astype(np.int64)


def _parts(values: Array) -> Iterator[Array]:
    flat = values.reshape(-1)
    return (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))


def _bits(counts: NDArray[np.int64]) -> float:
    """The entropy of symbols that come this often, in bits a symbol."""
    shares = counts[counts > 0] / max(int(counts.sum()), 1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0
