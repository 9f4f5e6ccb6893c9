"""What a pruned model must compute: what the original computes when nothing reads the removed channels.

Removing a channel is exact when every layer that reads it had zero weights for it. So the original, with those weights
set to zero, is the reference. A normalisation over the channels (LayerNorm, RMSNorm) takes its statistics over what is
left: in the reference it does so too.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from compress.pruning.outputs import leaves
from compress.pruning.slicing import blocks_left, tensor_at
from compress.pruning.values import ChannelGroup, Kept
from compress.quiet import quiet

# A leaf that is nearly zero beside the largest one is noise: measured against this share of the largest.
_FLOOR = 1e-6


def reference(module: nn.Module, groups: Sequence[ChannelGroup], kept: Kept, inputs: Sequence[Any]) -> Any:
    """The outputs of ``module`` when the consumers of the removed channels are zero; ``module`` is left as it was.

    Args:
        groups: Of ``module``; tell which entries read the channels (role "in").
        kept: What is left of ``module``'s parameters and buffers.
        inputs: Positional arguments of its forward.
    """
    original = copy.deepcopy(module)
    with torch.no_grad():
        for member in (member for group in groups for member in group.members if member.role == "in"):
            index = kept.get(member.name, {}).get(member.axis)
            if index is not None:
                removed = member.index[~torch.isin(member.index, index.cpu())]
                tensor = tensor_at(original, member.name)
                tensor.index_fill_(member.axis, removed.to(tensor.device), 0.0)
    with _StatisticsOfKept({id(tensor_at(original, name)): axes for name, axes in kept.items()}):
        return evaluate(original, inputs)


def relative_error(
    before: nn.Module, after: nn.Module, groups: Sequence[ChannelGroup], kept: Kept, inputs: Sequence[Any]
) -> float:
    """Largest |reference - pruned| / largest |reference|, over all floating-point outputs; infinite where either is.

    Computed in float64 where both models can (rounding is then far below any bound worth setting), else as they are.

    Args:
        before: The original.
        after: The same with only ``kept`` left.
    """
    try:
        return _relative_error(_double(before), _double(after), groups, kept, [_double(x) for x in inputs])
    except (RuntimeError, TypeError):  # a dtype written into the forward
        return _relative_error(before, after, groups, kept, inputs)


def relative_effect(module: nn.Module, groups: Sequence[ChannelGroup], kept: Kept, inputs: Sequence[Any]) -> float:
    """How far the reference is from the original itself, measured as `relative_error` is.

    An exactness test proves something only where this is far above its bound: the outputs of an untrained network may
    not depend on its features at all (zero heads, activations that vanish on the way).
    """
    return _compare(reference(module, groups, kept, inputs), evaluate(module, inputs))


def evaluate(module: nn.Module, inputs: Sequence[Any]) -> Any:
    """The outputs in eval mode, without gradients and with a fixed seed; the training flags are put back."""
    flags = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), quiet(), fixed_seed(), no_fast_path():
            return module(*copy.deepcopy(tuple(inputs)))  # a forward may write into its inputs
    finally:
        for layer, flag in flags:
            layer.training = flag


def signature(outputs: Any) -> list[str]:
    """What callers rely on: the place, shape and dtype of every output tensor."""
    return [f"output{path} {tuple(tensor.shape)} {tensor.dtype}" for path, tensor in leaves(outputs)]


@contextlib.contextmanager
def fixed_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """Without the fused kernel of TransformerEncoderLayer, in which the single operators cannot be seen."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _relative_error(
    before: nn.Module, after: nn.Module, groups: Sequence[ChannelGroup], kept: Kept, inputs: Sequence[Any]
) -> float:
    return _compare(reference(before, groups, kept, inputs), evaluate(after, inputs))


def _compare(reference_outputs: Any, outputs: Any) -> float:
    expected = [t for _, t in leaves(reference_outputs)]
    found = [t for _, t in leaves(outputs)]
    if not expected or [t.shape for t in expected] != [t.shape for t in found]:
        return torch.inf  # nothing to compare proves nothing
    pairs = [(a, b) for a, b in zip(expected, found, strict=True) if a.numel()]
    if any(not torch.equal(a, b) for a, b in pairs if not a.is_floating_point()):
        return torch.inf
    floats = [(a.double(), b.double()) for a, b in pairs if a.is_floating_point()]
    overall = max((_largest(a) for a, _ in floats), default=0.0)
    errors = [
        _difference(a, b) / max(_largest(a), _FLOOR * overall, torch.finfo(torch.float64).tiny) for a, b in floats
    ]
    return max(errors, default=0.0)


def _largest(values: Tensor) -> float:
    return float(values[values.isfinite()].abs().amax()) if bool(values.isfinite().any()) else 0.0


def _difference(expected: Tensor, found: Tensor) -> float:
    """Largest absolute difference; equal infinities and NaN in the same places count as none."""
    same = (expected == found) | (expected.isnan() & found.isnan())
    difference = (expected - found).abs().masked_fill(same, 0.0).nan_to_num(nan=torch.inf)
    return float(difference.amax())


def _double(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    return tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, value)


class _StatisticsOfKept(TorchFunctionMode):
    """Makes normalisations whose weight lost channels compute over the kept ones; the others come out as zero."""

    def __init__(self, kept: Mapping[int, Mapping[int, Tensor]]) -> None:
        super().__init__()
        self._kept = kept  # id of the weight -> axis -> kept indices

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _NORMALISATIONS:
            named = dict(zip(_NORMALISATIONS[func], args, strict=False)) | dict(kwargs or {})
            axes = self._kept.get(id(named.get("weight")))
            if axes is not None:
                return _normalise_kept(func, named, axes)
        return func(*args, **(kwargs or {}))


_LAYER = ("input", "normalized_shape", "weight", "bias", "eps")
_RMS = ("input", "normalized_shape", "weight", "eps")
_GROUP = ("input", "num_groups", "weight", "bias", "eps")
_NORMALISATIONS: dict[Callable[..., Any], tuple[str, ...]] = {
    F.layer_norm: _LAYER,
    F.rms_norm: _RMS,
    F.group_norm: _GROUP,
    torch.layer_norm: _LAYER,
    torch.rms_norm: _RMS,
    torch.group_norm: _GROUP,
}


def _normalise_kept(func: Callable[..., Any], named: Mapping[str, Any], axes: Mapping[int, Tensor]) -> Tensor:
    values, weight = named["input"], named["weight"]
    first = 1 if "num_groups" in named else values.ndim - weight.ndim  # the axis of the input that the weight starts at
    small = dict(named)
    for axis, index in axes.items():
        small["input"] = small["input"].index_select(first + axis, index)
        small["weight"] = small["weight"].index_select(axis, index)
        if named.get("bias") is not None:
            small["bias"] = small["bias"].index_select(axis, index)
    if "num_groups" in named:
        small["num_groups"] = blocks_left(axes[0], len(weight), named["num_groups"])
    else:
        small["normalized_shape"] = tuple(small["weight"].shape)
    result: Tensor = func(**small)
    for axis, index in axes.items():
        size = (*result.shape[: first + axis], weight.shape[axis], *result.shape[first + axis + 1 :])
        result = result.new_zeros(size).index_copy(first + axis, index, result)
    return result
