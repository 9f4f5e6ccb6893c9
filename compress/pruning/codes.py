"""Codes that tell, from which probes arrived, who sent them.

A code of constant weight (Freiman and Berger, 1961) gives each of n senders w of m probes. What arrives from one sender
has exactly w of them; what arrives from several has more. So m passes, with m-choose-w >= n, name the sender wherever
there is one, and show where there are several: 18 passes for 40,000 channels.
"""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]
Numbers = NDArray[np.int64]

NOBODY, SEVERAL = -1, -2


def constant_weight(count: int) -> Bits:
    """Codewords for ``count`` senders: (count, m) with the same number of ones each, m the smallest that will do."""
    length = next(m for m in itertools.count(1) if comb(m, m // 2 or 1) >= count)
    words = itertools.islice(itertools.combinations(range(length), length // 2 or 1), count)
    code = np.zeros((count, length), dtype=np.bool_)
    for row, ones in enumerate(words):
        code[row, list(ones)] = True
    return code


def decode(seen: Bits, code: Bits) -> Numbers:
    """Who sent what was seen: (positions, m) and (senders, m) -> (positions,), NOBODY, or SEVERAL."""
    powers = 1 << np.arange(code.shape[1], dtype=np.int64)  # (m,): 24 bits name millions
    words, heard = code @ powers, seen @ powers
    order = np.argsort(words)
    at = order[np.searchsorted(words, heard, sorter=order).clip(max=len(words) - 1)]
    return np.where(words[at] == heard, at, np.where(heard == 0, NOBODY, SEVERAL))


def compatible(seen: Bits, code: Bits) -> Bits:
    """Who may be among the senders: (positions, m) and (senders, m) -> (positions, senders)."""
    missing = (~seen).astype(np.float32) @ code.astype(np.float32).T
    return np.asarray(missing == 0)


def digits(count: int, odd_first: bool) -> tuple[Numbers, ...]:
    """Numbers 0..count-1 in mixed radix, one (count,) array a digit: aligned blocks of numbers share high digits.

    Args:
        odd_first: Whether the odd prime factors are the low digits (blocks of 24, 48, …) or the high ones (32, 64, …).
    """
    factors, rest, prime = [], count, 2
    while rest > 1:
        while rest % prime == 0:
            factors.append(prime)
            rest //= prime
        prime = prime + 1 if prime * prime <= rest else max(rest, 2)
    factors.sort(key=lambda f: (f == 2) == odd_first)
    found, numbers = [], np.arange(count, dtype=np.int64)
    for factor in factors or [1]:
        found.append(numbers % factor)
        numbers = numbers // factor
    return tuple(found)
