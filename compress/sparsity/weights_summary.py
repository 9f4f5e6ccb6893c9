"""How large the weights of each layer are and how many are left: plain values for tables, bars and histograms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compress.errors import SparsityError
from compress.sparsity.masks import sparsifiable
from compress.sparsity.sensitivity import layer_names

BINS = 60  # of a histogram
EVERYTHING = "all layers"  # the name of the summary over all of them


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer before and after. Histograms count weights that are not zero."""

    name: str
    weights: int  # before
    nonzero: int  # after
    edges: tuple[float, ...]  # bins + 1, rising; the same for both histograms
    counts_before: tuple[int, ...]  # one a bin
    counts_after: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> LayerWeights:
        sequences = {key: tuple(stored[key]) for key in ("edges", "counts_before", "counts_after")}
        return cls(**{**stored, **sequences})


def summarise(before: nn.Module, after: nn.Module, keep: tuple[str, ...] = ()) -> tuple[LayerWeights, ...]:
    """One summary for each sparsifiable parameter of ``before``, in its order; see `layer_names` for their names.

    ``after`` has parameters of the same names; with fewer channels they may be smaller.

    Raises:
        SparsityError: ``after`` lacks one of them.
    """
    pairs = _pairs(before, after, keep)
    names = layer_names(tuple(pairs))
    return tuple(_summary(names[name], [theirs], [ours]) for name, (theirs, ours) in pairs.items())


def summarise_all(before: nn.Module, after: nn.Module, keep: tuple[str, ...] = ()) -> LayerWeights:
    """All the weights of `summarise` in one summary."""
    pairs = _pairs(before, after, keep).values()
    return _summary(EVERYTHING, [theirs for theirs, _ in pairs], [ours for _, ours in pairs])


def _pairs(
    before: nn.Module, after: nn.Module, keep: tuple[str, ...]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    theirs, ours = sparsifiable(before, keep), dict(after.named_parameters())
    missing = [name for name in theirs if name not in ours]
    if missing:
        raise SparsityError(
            f"{len(missing)} of {len(theirs)} weights are not in the model they are compared with, {missing[0]} among "
            "them. Compare a model with what was made of it."
        )
    return {name: (_flat(parameter), _flat(ours[name])) for name, parameter in theirs.items()}


def _flat(parameter: nn.Parameter) -> NDArray[np.float32]:
    values: NDArray[np.float32] = parameter.detach().float().cpu().numpy().ravel()
    return values


def _summary(name: str, before: Sequence[NDArray[np.float32]], after: Sequence[NDArray[np.float32]]) -> LayerWeights:
    largest = max((float(np.abs(part).max()) for part in (*before, *after) if part.size), default=0.0)
    edges = np.linspace(-largest, largest, BINS + 1) if largest > 0 else np.linspace(-1.0, 1.0, BINS + 1)
    return LayerWeights(
        name=name,
        weights=sum(part.size for part in before),
        nonzero=sum(int(np.count_nonzero(part)) for part in after),
        edges=tuple(float(edge) for edge in edges),
        counts_before=_counts(before, edges),
        counts_after=_counts(after, edges),
    )


def _counts(parts: Sequence[NDArray[np.float32]], edges: NDArray[np.float64]) -> tuple[int, ...]:
    total = np.zeros(len(edges) - 1, np.int64)
    for part in parts:
        total += np.histogram(part[part != 0], bins=edges)[0]
    return tuple(int(count) for count in total)
