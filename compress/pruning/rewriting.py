"""A smaller model whose forward had the old sizes written into it: traced, with those sizes rewritten."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from compress.errors import PruningError
from compress.pruning.exactness import fixed_seed
from compress.pruning.literals import cannot_follow, rewrite_sizes
from compress.pruning.shrinkage import shrinkage
from compress.pruning.slicing import slice_module, tensor_at
from compress.pruning.traced import Program, Source, TracedModule
from compress.pruning.tracing import follow_layers, trace, two_samples
from compress.pruning.values import Kept

# Train mode or not -> what `trace` found. Tracing is slow and does not depend on what is kept.
Traces = dict[bool, tuple[Program, dict[str, Tensor]]]


def rewrite(module: nn.Module, kept: Kept, inputs: Sequence[Any], traces: Traces | None = None) -> TracedModule:
    """The forward of ``module`` over what is kept of its parameters, with the sizes in it rewritten.

    Args:
        module: The original; left as it was.
        inputs: Positional arguments to trace with.
        traces: Of the same module, from an earlier call; filled by this one.

    Returns:
        A trainable module with the state-dict names of the original.

    Raises:
        PruningError: the forward cannot be traced, or a size in it cannot follow; names the operator.
    """
    traces = {} if traces is None else traces
    programs: dict[bool, Program] = {}
    constants: dict[str, Tensor] = {}
    for training in (True, False):
        traced = copy.deepcopy(module).train(training)
        if training not in traces:
            traces[training] = trace(traced, inputs)
        program, held = traces[training]
        program = replace(program, graph=copy.deepcopy(program.graph))
        shrunk = shrinkage(program.graph, _with_holes(traced, kept, program.sources, held, two_samples(inputs)))
        rewrite_sizes(program.graph, shrunk)
        programs[training] = follow_layers(program, traced)
        constants |= held
    result = TracedModule(slice_module(module, kept), programs[True], programs[False], constants)
    for training in (True, False):
        _try(copy.deepcopy(result).train(training), inputs)
    return result


def _with_holes(
    module: nn.Module, kept: Kept, sources: Sequence[Source], constants: Mapping[str, Tensor], inputs: Sequence[Any]
) -> list[Any]:
    """A value for each placeholder: copies of the original tensors, with NaN where entries are removed."""
    given = tree_leaves(tuple(inputs))
    axes_of = {id(tensor_at(module, name)): (name, axes) for name, axes in kept.items()}  # a tied one has several names
    values: list[Any] = []
    for source in sources:
        if isinstance(source, int):
            value = given[source]
            values.append(value.clone() if isinstance(value, Tensor) else value)
            continue
        tensor = constants[source] if source in constants else tensor_at(module, source)
        value = tensor.detach().clone()
        name, axes = axes_of.get(id(tensor), ("", {}))
        if axes and not value.is_floating_point():
            raise PruningError(f"{name!r} is {value.dtype}: a traced forward follows floating-point tensors only.")
        for axis, index in axes.items():
            removed = torch.ones(value.shape[axis], dtype=torch.bool)
            removed[index.cpu()] = False
            value.index_fill_(axis, removed.nonzero().flatten().to(value.device), torch.nan)
        values.append(value)
    return values


def _try(module: TracedModule, inputs: Sequence[Any]) -> None:
    """Run one mode, so that what does not fit is told by its operator."""
    run = _Located(module.graph)
    try:
        with torch.no_grad(), fixed_seed():
            run.run(*module.arguments(copy.deepcopy(tuple(inputs))))
    except Exception as error:  # any operator, any error
        assert run.node is not None
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise cannot_follow(run.node, said) from error


class _Located(fx.Interpreter):
    """Remembers which node it is at."""

    node: fx.Node | None = None

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False

    def run_node(self, node: fx.Node) -> Any:
        self.node = node
        return super().run_node(node)
