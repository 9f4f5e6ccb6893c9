"""Cutting channels out of a model: from chosen channels to a smaller module that was proved right."""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from compress.errors import PruningError
from compress.pruning.exactness import evaluate, fixed_seed, relative_error, signature
from compress.pruning.rewriting import Traces, rewrite
from compress.pruning.slicing import slice_module, tensor_at
from compress.pruning.tracing import two_samples
from compress.pruning.values import ChannelGroup, Kept

logger = logging.getLogger(__name__)

# Relative; in float64, as nearly all models are compared, a right cut is within 1e-12.
TOLERANCE = 1e-4


def kept_of(module: nn.Module, groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]) -> Kept:
    """What is left of each parameter and buffer when only the chosen channels stay.

    Args:
        groups: Of ``module``.
        keep: Name of a group -> (kept,) numbers of its channels; groups that are not named keep all.

    Returns:
        Only what loses something. Where several groups share an axis (concatenation) their losses are combined.

    Raises:
        PruningError: a group is unknown, would keep nothing, or is frozen and would lose channels.
    """
    by_name = {group.name: group for group in groups}
    left: dict[str, dict[int, Tensor]] = {}  # (size,) bool an axis
    for name, channels in keep.items():
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise PruningError(f"there is no channel group {name!r} among the {len(by_name)} of this model.{hint}")
        stays = _stays(by_name[name], channels)
        if bool(stays.all()):
            continue
        for member in by_name[name].members:
            size = tensor_at(module, member.name).shape[member.axis]
            axis = left.setdefault(member.name, {}).setdefault(member.axis, torch.ones(size, dtype=torch.bool))
            axis[member.index[~stays[member.channel]]] = False
    kept = {name: {axis: stays.nonzero().flatten() for axis, stays in axes.items()} for name, axes in left.items()}
    for name, axes in kept.items():
        if any(len(index) == 0 for index in axes.values()):
            raise PruningError(f"nothing would be left of {name!r}: keep a channel in one of the groups that share it.")
    return kept


def cut(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    kept: Kept,
    inputs: Sequence[Any],
    tolerance: float = TOLERANCE,
    traces: Traces | None = None,
) -> nn.Module:
    """The smaller model, checked: same outputs in structure, shape and dtype, and the values of the reference.

    The user's class with smaller parameters where its forward still runs; a traced module where sizes are written
    into the forward (see `compress.pruning.traced`). The given module is left as it was.

    Args:
        groups: Of ``module``, with which ``kept`` was made.
        kept: What stays (see `kept_of`).
        inputs: Positional arguments of the forward, to check with.
        traces: See `compress.pruning.rewriting.rewrite`; for several cuts of one module.
        tolerance: Relative error allowed against `compress.pruning.exactness.reference`.

    Raises:
        PruningError: neither form computes what it must; both reasons are told.
    """
    smaller = slice_module(module, kept)
    reason = _objection(module, smaller, groups, kept, inputs, tolerance)
    if reason is None:
        return smaller
    logger.info("%s is traced, for as a class %s", type(module).__name__, reason)
    try:
        traced = rewrite(module, kept, inputs, traces)
        second = _objection(module, traced, groups, kept, inputs, tolerance)
    except PruningError as error:
        second = str(error)
        if second is not None:
            raise PruningError(_both(module, reason, second)) from error
    if second is not None:
        raise PruningError(_both(module, reason, second))
    return traced


def _stays(group: ChannelGroup, channels: Tensor) -> Tensor:
    """(group.channels,) bool."""
    numbers = torch.as_tensor(sorted(set(channels.tolist())), dtype=torch.int64)
    if len(numbers) == 0 or int(numbers[0]) < 0 or int(numbers[-1]) >= group.channels:
        raise PruningError(
            f"group {group.name!r} was to keep the channels {numbers.tolist()[:8]}: give at least one of "
            f"0..{group.channels - 1}."
        )
    if group.frozen is not None and len(numbers) < group.channels:
        raise PruningError(
            f"group {group.name!r} was to keep {len(numbers)} of {group.channels} channels, but none can leave: "
            f"{group.frozen}. Leave it out."
        )
    stays = torch.zeros(group.channels, dtype=torch.bool)
    stays[numbers] = True
    return stays


def _objection(
    module: nn.Module,
    smaller: nn.Module,
    groups: Sequence[ChannelGroup],
    kept: Kept,
    inputs: Sequence[Any],
    most: float,
) -> str | None:
    """Why ``smaller`` is not what it must be; None where it is."""
    try:
        found = signature(evaluate(smaller, inputs))
    except Exception as error:  # the user's forward can raise anything
        return f"it does not run ({_first_line(error)})"
    expected = signature(evaluate(module, inputs))
    changed = next((f"{b} instead of {a}" for a, b in zip(expected, found, strict=False) if a != b), None)
    if changed is not None or len(expected) != len(found):
        return f"its outputs change ({changed or f'{len(found)} tensors instead of {len(expected)}'})"
    for given in (inputs, *_varied(module, inputs)):
        error_found = relative_error(module, smaller, groups, kept, given)
        if not error_found <= most:
            return f"its outputs are {error_found:.1e} (relative) from the reference, {most:.0e} allowed"
    return _objection_in_training(module, smaller, inputs)


def _varied(module: nn.Module, inputs: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Other inputs like the given ones: a coupling through a comparison can pass on one of them by luck."""
    generator = torch.Generator().manual_seed(0)

    def varied(x: Tensor) -> Tensor:
        if x.is_floating_point():
            return (x + torch.randn(x.shape, generator=generator).to(x) * (x.std(correction=0) + 0.1)).to(x.dtype)
        order = torch.randperm(x.numel(), generator=generator).to(x.device)
        return x.flatten()[order].reshape(x.shape)  # the same values, so that indices stay in range

    for _ in range(2):
        other = tree_map_only(Tensor, varied, tuple(inputs))
        try:
            evaluate(module, other)
        except Exception as error:
            logger.debug("inputs cannot be varied: %s", error)
            return
        yield other


def _objection_in_training(module: nn.Module, smaller: nn.Module, inputs: Sequence[Any]) -> str | None:
    """Training can take a path of its own; it must run where the original's does."""
    for candidate, told in ((module, None), (smaller, "it does not run in train mode ({})")):
        try:
            with torch.no_grad(), fixed_seed():
                copy.deepcopy(candidate).train()(*copy.deepcopy(two_samples(inputs)))
        except Exception as error:
            return told.format(_first_line(error)) if told else None
    return None


def _both(module: nn.Module, as_class: str, traced: str) -> str:
    return f"{type(module).__name__} cannot be cut. As its own class {as_class}. Traced: {traced}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
