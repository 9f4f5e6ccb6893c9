"""A module that runs a traced forward over the layers of the model that it was traced from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

# What feeds a placeholder of a graph: the dotted path of an attribute of the module, or the number of an input leaf.
Source = str | int


@dataclass(frozen=True)
class Program:
    """One traced forward. Its graph holds no tensors: each placeholder is fed from the source at its place."""

    graph: fx.Graph
    sources: tuple[Source, ...]
    outputs: Any  # the structure of the outputs, with the number of a result at each leaf


class TracedModule(nn.Module):
    """Layers, parameters and buffers under their original names, with a traced forward for each mode.

    ``train()`` and ``eval()`` choose between the two; the flags of single layers (a frozen batch normalisation) are
    followed too. Takes positional inputs of the kinds that it was traced with; the batch is free where it was.
    """

    def __init__(
        self, layers: nn.Module, training: Program, evaluating: Program, constants: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        for name, child in layers.named_children():
            self.add_module(name, child)
        for name, parameter in layers._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in layers._buffers.items():
            self.register_buffer(name, buffer, persistent=name not in layers._non_persistent_buffers_set)
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)
        self._training_graph = fx.GraphModule(nn.Module(), _plain(training.graph))
        self._evaluating_graph = fx.GraphModule(nn.Module(), _plain(evaluating.graph))
        self._sources = {True: training.sources, False: evaluating.sources}
        self._outputs = {True: training.outputs, False: evaluating.outputs}
        self.training = layers.training

    @property
    def current_device(self) -> torch.device:
        """Where tensors that the forward makes go."""
        return next(self.parameters()).device

    @property
    def current_dtype(self) -> torch.dtype:
        """What tensors that the forward makes are of, where they were of the parameters' dtype."""
        return next(self.parameters()).dtype

    @property
    def graph(self) -> fx.GraphModule:
        """The traced forward of the current mode."""
        return self._training_graph if self.training else self._evaluating_graph

    def forward(self, *inputs: Any) -> Any:
        results = self.graph(*self.arguments(inputs))
        return tree_map(lambda number: results[number], self._outputs[self.training])

    def arguments(self, inputs: Sequence[Any]) -> list[Any]:
        """What the graph of the current mode is called with."""
        given = tree_leaves(tuple(inputs))
        return [
            given[source] if isinstance(source, int) else reduce(getattr, source.split("."), self)
            for source in self._sources[self.training]
        ]


def _plain(graph: fx.Graph) -> fx.Graph:
    """The graph without the exporter's tracer, which cannot be unpickled."""
    graph._tracer_cls = None
    return graph
