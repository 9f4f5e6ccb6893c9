"""How every tensor inside a traced forward pass shrinks when parameters lose entries.

The graph runs once with NaN in the removed entries of its parameters. Operators that sum over channels skip NaN (the
removed channels leave the sum), normalisations compute on the rest; all others carry NaN by themselves, so that there
is no rule for reshaping, concatenating, gating or activating. Where a tensor ends up all NaN, it shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

KeptAxes = tuple[Tensor, ...]  # one (size,) bool an axis: True where something is left


def shrinkage(graph: fx.Graph, arguments: Sequence[Any]) -> dict[fx.Node, list[KeptAxes | None]]:
    """What is left of each node's outputs, with one entry an output tensor; None where it is no set of whole slices.

    Args:
        graph: Of torch.export, before decomposition; its parameters are placeholders.
        arguments: One value a placeholder, NaN where an entry is removed. They may be written to.
    """
    tracker = _Tracker(fx.GraphModule(nn.Module(), graph))
    with torch.no_grad():
        tracker.run(*arguments)
    return tracker.kept


def operator_name(node: fx.Node) -> str:
    """aten's name of what a node calls, without overload and without the underscore of in-place forms: "aten::add"."""
    return _name(node.target)


def _name(target: Any) -> str:
    return str(target._schema.name).rstrip("_") if isinstance(target, torch._ops.OpOverload) else ""


class _Tracker(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.kept: dict[fx.Node, list[KeptAxes | None]] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        outputs = value if isinstance(value, list | tuple) else [value]
        self.kept[node] = [_kept_axes(output) for output in outputs if isinstance(output, Tensor)]
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = _name(target)
        if name in _ADDED_TERM:
            return _contraction(target, args, kwargs)
        rule = _RULES.get(name)
        if rule is not None:
            return rule(target, args, kwargs)
        return super().call_function(target, args, kwargs)


def _kept_axes(value: Tensor) -> KeptAxes | None:
    lost = value.isnan()
    if not bool(lost.any()):
        return tuple(torch.ones(size, dtype=torch.bool) for size in value.shape)
    whole = [lost.transpose(0, axis).flatten(1).all(1) if lost.ndim > 1 else lost for axis in range(lost.ndim)]
    explained = torch.zeros_like(lost)
    for axis, slices in enumerate(whole):
        explained |= slices.reshape([-1 if a == axis else 1 for a in range(lost.ndim)])
    if bool(lost.all()) or not torch.equal(explained, lost):
        return None
    return tuple(~slices.cpu() for slices in whole)


def _clean(value: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.nan_to_num() if t.is_floating_point() else t, value)


def _present(value: Any) -> Any:
    """One where a float tensor has an entry, zero where it was removed."""
    return tree_map_only(Tensor, lambda t: (~t.isnan()).to(t.dtype) if t.is_floating_point() else t, value)


def _contraction(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Sums of products: an output entry is removed where not one of its products has both factors."""
    result: Tensor = target(*_clean(args), **_clean(kwargs))
    added = _ADDED_TERM[_name(target)]
    ones = list(_present(args))
    if added is not None and len(ones) > added and isinstance(ones[added], Tensor):
        ones[added] = torch.zeros_like(ones[added])
    products = target(*ones, **kwargs)
    if _name(target).startswith("aten::conv"):
        # Whole channels: at the border of a kept one a position may see padding alone.
        channel = 1 if result.ndim == args[1].ndim else 0
        products = products.amax([a for a in range(result.ndim) if a != channel], keepdim=True)
    return result.masked_fill(products == 0, torch.nan)


def _normalisation(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    result: Tensor = target(*_clean(args), **_clean(kwargs))
    return result.masked_fill(args[0].isnan(), torch.nan)


def _overwriting(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Puts constants over some entries: where the tensor had none, the result has none either."""
    result: Tensor = target(*args, **kwargs)
    for value in args:
        if isinstance(value, Tensor) and value.is_floating_point():
            result = result.masked_fill(value.isnan(), torch.nan)
    return result


def _padding(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Constants beside the values: what is lost along the axes that are not padded is lost there too."""
    result: Tensor = target(*args, **kwargs)
    axes = _kept_axes(args[0])
    for axis, kept in enumerate(axes or ()):
        if result.shape[axis] == len(kept):
            result.index_fill_(axis, (~kept).nonzero().flatten().to(result.device), torch.nan)
    return result


def _attention(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Scaled dot-product attention of (…, heads, length, width): heads leave, or columns of the values."""
    query, _, value = args[:3]
    result: Tensor = target(*_clean(args), **_clean(kwargs))
    heads = query.isnan().all(-1, keepdim=True)
    columns = value.isnan().all(-2, keepdim=True)
    if columns.ndim > 2 and columns.shape[-3] != heads.shape[-3]:  # grouped queries: several share one head of values
        columns = columns.repeat_interleave(heads.shape[-3] // columns.shape[-3], dim=-3)
    return result.masked_fill(heads | columns, torch.nan)


def _recurrent(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """nn.LSTM, nn.GRU, nn.RNN: unit j has the same place in all layers and directions."""
    _, _, params, biases, layers, _, _, bidirectional, _ = args
    results: tuple[Tensor, ...] = tuple(target(*_clean(args), **_clean(kwargs)))
    sets = layers * (2 if bidirectional else 1)
    projected = len(params) // sets in (3, 5)
    hidden = _lost_units(params[0], params[1], projected)
    units = params[4 if biases else 2].isnan().all(1) if projected else hidden  # rows of (projection, hidden)
    last = units.repeat(results[0].shape[-1] // len(units))
    return tuple(
        result.masked_fill(lost, torch.nan) for result, lost in zip(results, (last, units, hidden), strict=False)
    )


def _lost_units(weight_ih: Tensor, weight_hh: Tensor, projected: bool) -> Tensor:
    """(hidden,) bool. Weights are (gates * hidden, …)."""
    gates = 4 if projected else len(weight_hh) // weight_hh.shape[1]
    return weight_ih.isnan().all(1)[: len(weight_ih) // gates]


def _recurrent_cell(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    lost = _lost_units(args[2], args[3], False)
    results = target(*_clean(args), **_clean(kwargs))
    return tree_map_only(Tensor, lambda t: t.masked_fill(lost, torch.nan), results)


# Sums of products, with the position of the argument that is added to them.
_ADDED_TERM: dict[str, int | None] = {
    "aten::linear": 2,
    "aten::conv1d": 2,
    "aten::conv2d": 2,
    "aten::conv3d": 2,
    "aten::conv_transpose1d": 2,
    "aten::conv_transpose2d": 2,
    "aten::conv_transpose3d": 2,
    "aten::bilinear": 3,
    "aten::matmul": None,
    "aten::mm": None,
    "aten::bmm": None,
    "aten::mv": None,
    "aten::dot": None,
    "aten::einsum": None,
    "aten::tensordot": None,
    "aten::addmm": 0,
    "aten::addmv": 0,
    "aten::baddbmm": 0,
}


def _each(names: Iterable[str], rule: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {f"aten::{name}": rule for name in names}


_RULES: dict[str, Callable[..., Any]] = {
    **_each(("layer_norm", "rms_norm", "group_norm"), _normalisation),
    **_each(("masked_fill", "where", "tril", "triu"), _overwriting),
    **_each(("pad", "constant_pad_nd"), _padding),
    **_each(("scaled_dot_product_attention",), _attention),
    **_each(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **_each(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _recurrent_cell),
}
