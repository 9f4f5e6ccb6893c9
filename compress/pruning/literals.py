"""Rewriting the sizes that are written into a traced forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from compress.errors import PruningError
from compress.pruning.shrinkage import KeptAxes, operator_name
from compress.pruning.slicing import blocks_left

Shrunk = Mapping[fx.Node, Sequence[KeptAxes | None]]


def rewrite_sizes(graph: fx.Graph, shrunk: Shrunk) -> None:
    """Replace, in place, every literal size, position and group count of ``graph`` that no longer holds.

    Args:
        shrunk: What is left of every node's outputs.

    Raises:
        PruningError: a node's sizes cannot follow; names the node and the user's line.
    """
    for node in graph.nodes:
        rewrite = _REWRITES.get(operator_name(node)) if node.op == "call_function" else None
        if rewrite is not None:
            rewrite(node, shrunk)


def cannot_follow(node: fx.Node, reason: str) -> PruningError:
    """The error for a node whose sizes cannot be rewritten."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace", "")).splitlines() if line.strip()]
    written = f", `{lines[-1]}`" if lines else ""
    return PruningError(
        f"{node.name} ({node.target}{written}) cannot follow the removed channels: {reason}.\n"
        "Keep the layers before it whole (prune.keep)."
    )


def _axes(node: fx.Node, shrunk: Shrunk, what: fx.Node, output: int = 0) -> KeptAxes:
    axes = shrunk[what][output] if output < len(shrunk[what]) else None
    if axes is None:
        raise cannot_follow(node, "in it, removed and kept channels are mixed, or nothing would be left")
    return axes


def _sizes(position: int) -> Callable[[fx.Node, Shrunk], None]:
    """For operators with the sizes of their result as argument number ``position``."""

    def rewrite(node: fx.Node, shrunk: Shrunk) -> None:
        sizes = list(node.args[position])  # type: ignore[arg-type]
        node.update_arg(position, _smaller(node, sizes, _axes(node, shrunk, node)))

    return rewrite


def _unflatten(node: fx.Node, shrunk: Shrunk) -> None:
    axes, sizes = _axes(node, shrunk, node), list(node.args[2])  # type: ignore[arg-type]
    dim = _dim(node, 1, len(axes) - len(sizes) + 1)
    node.update_arg(2, _smaller(node, sizes, axes[dim : dim + len(sizes)]))


def _smaller(node: fx.Node, sizes: list[Any], axes: Sequence[torch.Tensor]) -> list[Any]:
    for number, kept in enumerate(axes):
        if bool(kept.all()) or (isinstance(sizes[number], int) and sizes[number] == -1):
            continue
        if isinstance(sizes[number], int):
            sizes[number] = int(kept.sum())
        elif -1 in sizes:
            raise cannot_follow(node, "two of its sizes depend on the batch")
        else:
            sizes[number] = -1  # computed from the batch: what the others leave
    return sizes


def _dim(node: fx.Node, position: int, ndim: int) -> int:
    dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    assert isinstance(dim, int)
    return dim % ndim


def _lost_along(node: fx.Node, shrunk: Shrunk, position: int) -> torch.Tensor | None:
    """(size,) bool: what is left of the input along the node's ``dim``; None where that is everything."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axes = _axes(node, shrunk, source)
    kept = axes[_dim(node, position, len(axes))]
    return None if bool(kept.all()) else kept


def _slice(node: fx.Node, shrunk: Shrunk) -> None:
    kept = _lost_along(node, shrunk, 1)
    if kept is None:
        return
    dim, start, end, step = (node.args[i] if len(node.args) > i else d for i, d in enumerate((0, None, None, 1), 1))
    if step != 1 or isinstance(start, fx.Node) or isinstance(end, fx.Node):
        raise cannot_follow(node, "it takes every n-th channel, or a number of them that depends on the inputs")
    first, last, _ = slice(start, end).indices(len(kept))
    node.args = (node.args[0], dim, int(kept[:first].sum()), int(kept[:last].sum()))


def _select(node: fx.Node, shrunk: Shrunk) -> None:
    kept = _lost_along(node, shrunk, 1)
    if kept is not None:
        index = node.args[2]
        if not isinstance(index, int) or not bool(kept[index]):
            raise cannot_follow(node, "the one channel that it reads would be removed")
        node.update_arg(2, int(kept[: index % len(kept)].sum()))


def _narrow(node: fx.Node, shrunk: Shrunk) -> None:
    kept = _lost_along(node, shrunk, 1)
    if kept is not None:
        start, length = node.args[2], node.args[3]
        if not isinstance(start, int) or not isinstance(length, int):
            raise cannot_follow(node, "it reads a range of channels that depends on the inputs")
        start %= len(kept)
        node.args = (*node.args[:2], int(kept[:start].sum()), int(kept[start : start + length].sum()))


def _split(node: fx.Node, shrunk: Shrunk) -> None:
    """chunk and split: each piece gets the size that is left of it."""
    if _lost_along(node, shrunk, 2) is None:
        return
    pieces = [_axes(node, shrunk, node, number) for number in range(len(shrunk[node]))]
    dim = _dim(node, 2, len(pieces[0]))
    node.target = torch.ops.aten.split_with_sizes.default
    node.args = (node.args[0], [int(axes[dim].sum()) for axes in pieces], dim)
    node.kwargs = {}


def _unbind(node: fx.Node, shrunk: Shrunk) -> None:
    if _lost_along(node, shrunk, 1) is not None:
        raise cannot_follow(node, "it makes one tensor of each channel")


def _convolution_groups(node: fx.Node, shrunk: Shrunk) -> None:
    groups = node.args[6] if len(node.args) > 6 else 1
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    if isinstance(groups, int) and groups > 1:
        node.update_arg(6, _groups_left(_axes(node, shrunk, weight)[0], groups))


def _group_norm(node: fx.Node, shrunk: Shrunk) -> None:
    source, groups = node.args[:2]
    assert isinstance(source, fx.Node)
    assert isinstance(groups, int)
    node.update_arg(1, _groups_left(_axes(node, shrunk, source)[1], groups))


def _groups_left(kept: torch.Tensor, groups: int) -> int:
    return blocks_left(kept.nonzero().flatten(), len(kept), groups)


def _normalized_shape(node: fx.Node, shrunk: Shrunk) -> None:
    shape = list(node.args[1])  # type: ignore[arg-type]
    node.update_arg(1, _smaller(node, shape, _axes(node, shrunk, node)[-len(shape) :]))


def _initial_state(node: fx.Node, shrunk: Shrunk) -> None:
    """Zeros that a recurrent layer starts from have the width of its state."""
    states = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
    for number, state in enumerate(states, start=1):
        if isinstance(state, fx.Node) and operator_name(state) in ("aten::zeros", "aten::new_zeros"):
            position = 1 if operator_name(state) == "aten::new_zeros" else 0
            sizes = list(state.args[position])  # type: ignore[arg-type]
            state.update_arg(position, _smaller(state, sizes, _axes(node, shrunk, node, number)))


_REWRITES: dict[str, Callable[[fx.Node, Shrunk], None]] = {
    "aten::view": _sizes(1),
    "aten::reshape": _sizes(1),
    "aten::_unsafe_view": _sizes(1),
    "aten::expand": _sizes(1),
    "aten::broadcast_to": _sizes(1),
    "aten::unflatten": _unflatten,
    "aten::slice": _slice,
    "aten::select": _select,
    "aten::narrow": _narrow,
    "aten::split": _split,
    "aten::split_with_sizes": _split,
    "aten::chunk": _split,
    "aten::unbind": _unbind,
    "aten::conv1d": _convolution_groups,
    "aten::conv2d": _convolution_groups,
    "aten::conv3d": _convolution_groups,
    "aten::conv_transpose1d": _convolution_groups,
    "aten::conv_transpose2d": _convolution_groups,
    "aten::conv_transpose3d": _convolution_groups,
    "aten::group_norm": _group_norm,
    "aten::layer_norm": _normalized_shape,
    "aten::rms_norm": _normalized_shape,
    "aten::lstm": _initial_state,
    "aten::gru": _initial_state,
    "aten::rnn_tanh": _initial_state,
    "aten::rnn_relu": _initial_state,
}
