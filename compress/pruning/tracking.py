"""Which entries of which parameter a tensor of the forward pass holds.

A forward rarely hands a whole parameter to an operator: it transposes, chunks or views it first. Such a view is
followed by doing the same to a tensor of flat positions, so that no rule for any view operator is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Nodes = NDArray[np.int64]  # numbers of slices; NONE where there is none
NONE = -1

# Operators that only move or alias entries. What is not listed makes a parameter "raw": see `compress.pruning.probing`.
VIEWS = frozenset(
    (
        *("t", "T", "mT", "H", "transpose", "permute", "swapaxes", "swapdims", "movedim"),
        *("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "contiguous", "detach", "data"),
        *("chunk", "split", "tensor_split", "unbind", "select", "narrow", "__getitem__", "alias"),
    )
)


@dataclass(frozen=True)
class Slice:
    """One axis of one parameter or buffer; its entries are numbered from ``start``."""

    name: str
    axis: int
    size: int
    start: int


class Parameters:
    """The parameters and floating-point buffers of a module, with a number for every (name, axis, index)."""

    def __init__(self, module: nn.Module) -> None:
        self.names: dict[int, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.slices: list[Slice] = []
        self._starts: dict[tuple[str, int], int] = {}
        self.count = 0
        for name, tensor in _floats(module):
            self.names[id(tensor)] = name
            self.tensors[name] = tensor
            for axis, size in enumerate(tensor.shape):
                self._starts[name, axis] = self.count
                self.slices.append(Slice(name, axis, size, self.count))
                self.count += size

    def nodes(self, name: str, axis: int) -> Nodes:
        """The numbers of all slices of one axis: (size,)."""
        start = self._starts[name, axis]
        return np.arange(start, start + self.tensors[name].shape[axis], dtype=np.int64)


class Tracker:
    """Parameters and their views, as they come by in one forward pass."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self._views: dict[int, tuple[str, Tensor]] = {}
        self._alive: list[Tensor] = []  # an id is only good while its tensor lives

    def name(self, tensor: object) -> str | None:
        """The parameter that a tensor is, or is a view of."""
        if id(tensor) in self.parameters.names:
            return self.parameters.names[id(tensor)]
        return self._views[id(tensor)][0] if id(tensor) in self._views else None

    def nodes(self, tensor: object, axis: int) -> Nodes | None:
        """The slices that one axis of a tracked tensor runs over, in order: (size,); None where no one axis does."""
        name = self.parameters.names.get(id(tensor))
        if name is not None:
            assert isinstance(tensor, Tensor)
            return self.parameters.nodes(name, axis % tensor.ndim)
        if id(tensor) not in self._views:
            return None
        name, index = self._views[id(tensor)]
        shape = tuple(self.parameters.tensors[name].shape)
        lines = index.movedim(axis, 0).reshape(index.shape[axis], -1).numpy()
        for own, coordinate in enumerate(np.unravel_index(lines, shape)):
            if (coordinate == coordinate[:, :1]).all() and len(np.unique(coordinate[:, 0])) == len(coordinate):
                return self.parameters.nodes(name, own)[coordinate[:, 0]]
        return None

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        """Remember that ``result`` is ``func`` of a tracked tensor, by doing the same to its flat positions."""
        source = args[0]
        name = self.name(source)
        if name is None:
            return
        moved = func(self._index(source, name), *args[1:], **kwargs)
        pairs = zip(result, moved, strict=True) if isinstance(result, (tuple, list)) else ((result, moved),)
        for tensor, index in pairs:
            if isinstance(tensor, Tensor) and id(tensor) not in self.parameters.names:
                self._views[id(tensor)] = (name, index)
                self._alive.append(tensor)

    def _index(self, tensor: Tensor, name: str) -> Tensor:
        if id(tensor) in self._views:
            return self._views[id(tensor)][1]
        return torch.arange(tensor.numel()).view(tensor.shape)


def _floats(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor
