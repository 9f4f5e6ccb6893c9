"""Axes that a reshape or a chunk cuts into several: what is left of them must still come out even."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Split:
    """An axis that a reshape or a chunk cuts into ``factors``: channels must leave along one of them."""

    size: int
    axis: int
    factors: tuple[int, ...]
    equal: bool  # chunk: the pieces stay of one length, so the same place leaves each of them


def splits_of(before: tuple[int, ...], output: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Split]:
    """The axes of a tensor that a reshape or a chunk cuts up, from its shape before and what came of it."""
    if not isinstance(output, Tensor):
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0) % len(before)
        pieces = [t.shape[dim] for t in output]
        equal = len(pieces) > 1 and len(set(pieces)) == 1
        return [Split(before[dim], dim, (len(pieces), pieces[0]), equal=True)] if equal else []
    return [Split(before[axis], axis, factors, equal=False) for axis, factors in _factored(before, tuple(output.shape))]


def _factored(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Axes of ``before`` that a reshape to ``after`` cuts into several: (axis, factors larger than one)."""
    if 0 in before or prod(before) != prod(after):  # empty, or a view as another dtype
        return
    i = j = 0
    while i < len(before) and j < len(after):
        first, made = i, [after[j]]
        left, right = before[i], after[j]
        while left != right:
            if left < right:
                i += 1
                left *= before[i]
            else:
                j += 1
                right *= after[j]
                made.append(after[j])
        wide = [axis for axis in range(first, i + 1) if before[axis] > 1]
        factors = tuple(size for size in made if size > 1)
        if len(wide) == 1 and len(factors) > 1:
            yield wide[0], factors
        i, j = i + 1, j + 1
