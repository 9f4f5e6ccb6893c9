"""Small questions about tensors and calls that the passes ask thousands of times."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

Flags = NDArray[np.bool_]


def nan_like(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    def blank(leaf: Any) -> Any:
        floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return torch.full_like(leaf, float("nan")) if floating else leaf

    blanked: tuple[Any, ...] = tree_map(blank, inputs)
    return blanked


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operator; torch's own tree functions cost more than a pass."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_of(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_of(part)


def in_place(name: str) -> bool:
    augmented = ("__setitem__", "__iadd__", "__imul__", "__isub__", "__itruediv__", "__ipow__", "__iand__", "__ior__")
    return (name.endswith("_") and not name.endswith("__")) or name in augmented


def nan_along(tensor: Tensor, axis: int) -> Flags:
    """At which positions of an axis there is any NaN: (extent,). A sum is one read of the tensor, and NaN stays."""
    if not tensor.is_floating_point():
        return np.zeros(tensor.shape[axis], dtype=np.bool_)
    others = [a for a in range(tensor.ndim) if a != axis % tensor.ndim]
    found: Flags = (tensor.sum(others) if others else tensor).isnan().numpy()
    return found


def operator_name(func: Any) -> str:
    """aten's name of what was called: a builtin, a method, a property's getter or an overload."""
    schema = getattr(func, "_schema", None)
    if schema is not None:
        return str(schema.name).removeprefix("aten::")
    name = str(getattr(func, "__name__", ""))
    if name == "__get__":
        return str(getattr(func.__self__, "__name__", ""))
    return {"__matmul__": "matmul"}.get(name, name)


@functools.cache
def unguarded(func: types.FunctionType) -> Callable[..., Any]:
    """The same function without its own check for modes, which would hand it back to the mode for ever."""
    guards = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    scope = {**func.__globals__, **dict.fromkeys(guards, lambda *_: False)}
    copy = types.FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy
