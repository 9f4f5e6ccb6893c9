"""Dropout while a sparse model is retrained: the fewer connections are left, the less of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

# What nn.Dropout and its kin call as well: one place sees modules and plain calls alike.
DROPOUTS = frozenset((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout))


@contextmanager
def lowered_dropout(
    module: nn.Module, density: Mapping[str, float], example_inputs: Sequence[Tensor]
) -> Iterator[None]:
    """Within it, each dropout of ``module`` has its p times √(share of connections left) in the layer it feeds.

    D_r = D_o √(C_ir / C_io): Han et al. 2015, "Learning both Weights and Connections", section 3.2. Covers dropout
    modules, calls of ``F.dropout`` with a p written in the code, and dropout between recurrent layers. Which layers a
    dropout feeds is seen in one forward pass of a copy; calls are told apart by their order in the forward pass. A
    dropout that feeds no weight keeps its p, and so does the one inside attention. Do not copy or save ``module``
    within it.

    Args:
        density: Parameter name -> share 0..1 of its weights that stay; those not named are whole.
        example_inputs: A batch of at least 2, on the device of ``module``: normalisation needs it in training mode.
    """
    layers = _recurrent(module, density)
    mode = _Lowered(_factors(module, density, example_inputs))
    # The mode costs every torch call a detour through Python: it is on for this module's forward pass alone.
    handles = (
        module.register_forward_pre_hook(lambda *_: mode.begin()),
        module.register_forward_hook(lambda *_: mode.end(), always_call=True),
    )
    before = [layer.dropout for layer, _ in layers]
    for layer, factor in layers:
        layer.dropout *= factor
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for (layer, _), p in zip(layers, before, strict=True):
            layer.dropout = p


class _Lowered(TorchFunctionMode):
    """Multiplies p of the i-th dropout of a forward pass by the i-th factor."""

    def __init__(self, factors: Sequence[float]) -> None:
        super().__init__()
        self._factors = factors
        self._calls = 0

    def begin(self) -> None:
        self._calls = 0
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in DROPOUTS:
            factor = self._factors[self._calls] if self._calls < len(self._factors) else 1.0
            self._calls += 1
            options["p"] *= factor
        return func(*args, **options)


class _Trace(TorchFunctionMode):
    """Follows what each dropout puts out, through functions without weights, to the weights that it meets."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names  # id of a weight -> its name
        self._marks: dict[int, tuple[Tensor, frozenset[int]]] = {}  # holds the tensors, so that no id is used again
        self.fed: list[set[str]] = []  # a dropout, in order of calls: the weights that it feeds

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        tensors = [x for x in tree_iter((args, dict(kwargs or {}))) if isinstance(x, Tensor)]
        marks = frozenset[int]().union(*(self._marks[id(t)][1] for t in tensors if id(t) in self._marks))
        weights = {self._names[id(t)] for t in tensors if id(t) in self._names}
        result = func(*args, **(kwargs or {}))
        if weights:
            for dropout in marks:
                self.fed[dropout] |= weights
            marks = frozenset()
        if func in DROPOUTS:
            marks |= {len(self.fed)}
            self.fed.append(set())
        for out in tree_iter(result):
            if isinstance(out, Tensor) and id(out) not in self._names:
                self._marks[id(out)] = out, marks
        return result


def _factors(module: nn.Module, density: Mapping[str, float], example_inputs: Sequence[Tensor]) -> list[float]:
    """One a dropout call of the forward pass, in order."""
    trial = copy.deepcopy(module).train()
    weights = {name: p for name, p in trial.named_parameters() if p.ndim >= 2}
    with torch.random.fork_rng(), torch.no_grad(), _Trace({id(p): name for name, p in weights.items()}) as trace:
        trial(*example_inputs)
    return [_lowered([(density.get(name, 1.0), weights[name].numel()) for name in names]) for names in trace.fed]


def _recurrent(module: nn.Module, density: Mapping[str, float]) -> list[tuple[nn.RNNBase, float]]:
    """The recurrent layers that drop between their own layers, with the factor of their p."""
    found = []
    for path, layer in module.named_modules():
        if isinstance(layer, nn.RNNBase) and layer.dropout > 0:
            inner = [
                (density.get(f"{path}.{name}" if path else name, 1.0), p.numel())
                for name, p in layer.named_parameters()
                if name.startswith("weight_ih") and not name.startswith("weight_ih_l0")
            ]
            found.append((layer, _lowered(inner)))
    return found


def _lowered(weights: Sequence[tuple[float, int]]) -> float:
    """√(connections left / connections) of weights given as (share left, number); 1 where there are none."""
    connections = sum(count for _, count in weights)
    return math.sqrt(sum(share * count for share, count in weights) / connections) if connections else 1.0
