"""A per-layer dictionary of sparsities at another total: how many weights of each layer go."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from compress.errors import SparsityError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def at_total(layers: Mapping[str, float], sizes: Mapping[str, int], rate: float) -> dict[str, float]:
    """The dictionary ``layers`` scaled so that all weights together have exactly the sparsity ``rate``.

    The density of each layer (1 - sparsity) is raised to one common power a: a layer loses 1 - (1 - s)^a of its
    weights. a = 1 is the dictionary itself, a = 0 the dense model, and of two layers the same one is the sparser at
    every total. The power is found by Brent's method; counts are rounded down, and the weights still missing go where
    rounding took most.

    Args:
        layers: Parameter name -> sparsity, 0 <= s < 1. Parameters that are not named, or named with 0, stay whole.
        sizes: Parameter name -> weights, of every parameter that counts for the total.
        rate: Sparsity of all of them together, 0 <= rate < 1.

    Returns:
        Parameter name -> sparsity for each parameter in ``layers``: a whole number of weights over its size. Together
        they are ``round(rate * weights)`` weights; each layer that is not whole keeps at least one.

    Raises:
        SparsityError: the layers that may lose weights do not have as many.
    """
    names = [name for name in layers if layers[name] > 0]
    counts = np.array([sizes[name] for name in names], dtype=np.int64)  # (L,)
    log_density = np.log1p(-np.array([layers[name] for name in names], dtype=np.float64))  # (L,)
    weights = sum(sizes.values())
    target, most = round(rate * weights), int((counts - 1).sum())
    if target > most:
        raise SparsityError(
            f"custom: a rate of {rate} takes {target:,} of {weights:,} weights, but the layers with a sparsity above 0 "
            f"({', '.join(names) or 'none'}) can lose {most:,}. Name more layers, or end the rates at "
            f"{math.floor(most / weights * 1e3) / 1e3:g}."
        )
    removed = _whole(_removed(_power(log_density, counts, target), log_density, counts), counts - 1, target)
    found = dict.fromkeys(layers, 0.0)
    found.update({name: int(gone) / sizes[name] for name, gone in zip(names, removed, strict=True)})
    return found


def _removed(power: float, log_density: Floats, counts: Counts) -> Floats:
    """Weights (L,) that go at ``power``, not yet whole; one of each layer stays."""
    removed: Floats = np.minimum(counts * -np.expm1(power * log_density), counts - 1)
    return removed


def _power(log_density: Floats, counts: Counts, target: int) -> float:
    if target == 0:
        return 0.0

    def excess(power: float) -> float:
        return float(_removed(power, log_density, counts).sum()) - target

    high = 1.0
    while excess(high) < 0:
        high *= 2
    return float(optimize.brentq(excess, 0.0, high))


def _whole(exact: Floats, most: Counts, target: int) -> Counts:
    """Whole numbers (L,) next to ``exact`` that add up to ``target``: largest remainders first, none above ``most``."""
    whole: Counts = np.minimum(np.floor(exact).astype(np.int64), most)
    order = [int(i) for i in np.argsort(whole - exact, kind="stable") if whole[i] < most[i]]
    whole[order[: target - int(whole.sum())]] += 1
    return whole
