"""The forward pass of a model as a graph that holds no tensors, with torch.export before decomposition.

At that level dropout, batch normalisation, recurrent layers and attention are single operators.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from compress.errors import PruningError
from compress.pruning.exactness import fixed_seed, no_fast_path
from compress.pruning.shrinkage import operator_name
from compress.pruning.traced import Program, Source
from compress.quiet import quiet

# Operators whose behaviour in training is an argument: its position, and the attribute of the layer that decides.
_FLAGS: dict[str, tuple[tuple[int, str], ...]] = {
    "aten::batch_norm": ((5, "training"),),
    "aten::dropout": ((2, "training"),),
    "aten::lstm": ((5, "dropout"), (6, "training")),
    "aten::gru": ((5, "dropout"), (6, "training")),
    "aten::rnn_tanh": ((5, "dropout"), (6, "training")),
    "aten::rnn_relu": ((5, "dropout"), (6, "training")),
}
_FACTORIES = ("aten::zeros", "aten::ones", "aten::full", "aten::rand", "aten::randn")
_RUNNING_MEAN = 3  # position of the argument of batch_norm


def trace(module: nn.Module, inputs: Sequence[Any]) -> tuple[Program, dict[str, Tensor]]:
    """Trace the forward in the mode that ``module`` is in.

    Args:
        inputs: Positional arguments; axis 0 of each tensor is the batch, left free where the forward allows.

    Returns:
        The program, and the tensors that it takes beside parameters, buffers and inputs, by their source.

    Raises:
        PruningError: torch.export refuses the module.
    """
    exported = _export(module, two_samples(inputs))
    sources: list[Source] = []
    constants: dict[str, Tensor] = {}
    inputs_seen = 0
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            sources.append(inputs_seen)
            inputs_seen += 1
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            sources.append(str(spec.target))
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            name = _free_name(module, constants)
            constants[name] = exported.constants[str(spec.target)].detach().clone()
            sources.append(name)
        else:
            raise PruningError(
                f"{type(module).__name__} cannot be traced: its forward holds {spec.target!r}, which is no tensor."
            )
    graph = exported.graph
    _drop_assertions(graph)
    form = exported.call_spec.out_spec
    return Program(graph, tuple(sources), tree_unflatten(range(form.num_leaves), form)), constants


def follow_layers(program: Program, module: nn.Module) -> Program:
    """What the layers of ``module`` decide at run time becomes an input: their training flags, device and dtype.

    A flag that differed from the whole model's when traced (of a batch normalisation that the user's train() keeps
    frozen) stays as it was traced.

    Args:
        program: The forward of ``module`` in the mode that it is in; its graph is changed in place.
    """
    graph, feeds = program.graph, dict(zip(program.graph.find_nodes(op="placeholder"), program.sources, strict=True))
    first = next(node for node in graph.nodes if node.op != "placeholder")
    added: dict[str, fx.Node] = {}

    def feed(path: str) -> fx.Node:
        if path not in added:
            with graph.inserting_before(first):
                added[path] = graph.placeholder("layer_" + path.replace(".", "_"))
        return added[path]

    for node in [node for node in graph.nodes if node.op == "call_function"]:
        path = _layer_of(node, feeds)
        layer = _attribute(module, path)
        for position, attribute in _FLAGS.get(operator_name(node), ()):
            decides = getattr(layer, attribute, None) == node.args[position]
            if decides and getattr(layer, "training", None) == module.training:
                node.update_arg(position, feed(f"{path}.{attribute}" if path else attribute))
        if operator_name(node) in _FACTORIES and node.kwargs.get("dtype") is next(module.parameters()).dtype:
            node.update_kwarg("dtype", feed("current_dtype"))
        if "device" in node.kwargs:
            node.update_kwarg("device", feed("current_device"))
    graph.lint()
    return Program(graph, (*program.sources, *added), program.outputs)


def two_samples(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """A batch of one doubled: torch.export takes an axis of one for a constant, and one sample has no variance."""
    tensors = [x for x in tree_leaves(tuple(inputs)) if isinstance(x, Tensor)]
    if not all(t.ndim and len(t) == 1 for t in tensors):
        return tuple(inputs)
    return tuple(tree_map(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) else x, tuple(inputs)))


def _export(module: nn.Module, inputs: tuple[Any, ...]) -> ExportedProgram:
    free: Any = tree_map(lambda x: {0: torch.export.Dim.AUTO} if isinstance(x, Tensor) and x.ndim else None, inputs)
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:  # *args are one nested tuple
        named = min(kinds.index(inspect.Parameter.VAR_POSITIONAL), len(inputs))
        free = (*free[:named], free[named:])
    # Before torch 2.9 export() itself decomposed batch normalisation.
    export = getattr(torch.export, "export_for_training", torch.export.export)
    try:
        with quiet(), fixed_seed(), no_fast_path():
            exported: ExportedProgram = export(module, inputs, strict=False, dynamic_shapes=free)
    except Exception as error:  # torch raises errors of a dozen unrelated types here
        mode = "training" if module.training else "eval"
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PruningError(f"{type(module).__name__} cannot be traced in {mode} mode: {said}") from error
    kinds_out = {spec.kind for spec in exported.graph_signature.output_specs}
    if kinds_out != {OutputKind.USER_OUTPUT}:
        raise PruningError(f"{type(module).__name__} cannot be traced: its forward replaces buffers or inputs.")
    return exported


def _free_name(module: nn.Module, taken: Mapping[str, Tensor]) -> str:
    mode = "training" if module.training else "evaluating"
    number = 0
    while hasattr(module, name := f"_{mode}_constant_{number}") or name in taken:
        number += 1
    return name


def _drop_assertions(graph: fx.Graph) -> None:
    """Without the checks of sizes and dtypes as traced, and without what else is only about the tracing."""
    for node in reversed(list(graph.nodes)):
        if operator_name(node).startswith(("aten::_assert", "aten::sym_constrain")) and not node.users:
            graph.erase_node(node)
    for node in graph.nodes:
        node.meta = {key: node.meta[key] for key in ("stack_trace", "nn_module_stack") if key in node.meta}


def _layer_of(node: fx.Node, feeds: Mapping[fx.Node, Source]) -> str:
    """Path of the layer whose forward called the operator."""
    if operator_name(node) == "aten::batch_norm" and isinstance(mean := node.args[_RUNNING_MEAN], fx.Node):
        return str(feeds.get(mean, "")).rpartition(".")[0]
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split(".") if path else ():
        found = getattr(found, part, None)
    return found
