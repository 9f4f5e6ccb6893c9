"""Why a module does not run on some samples, in a line or two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.errors import CompressError, DataError, ModelError
from compress.values import InputSpec


class Entered(NamedTuple):
    """A module that a forward pass has entered and not left."""

    name: str
    module: nn.Module
    arguments: tuple[Any, ...]


@contextmanager
def trace(module: nn.Module) -> Iterator[list[Entered]]:
    """Watch the forward passes of ``module``: after a failure the last entry of the list is the layer that failed."""
    entered: list[Entered] = []
    handles: list[Any] = []

    def watch(name: str, layer: nn.Module) -> None:
        handles.append(layer.register_forward_pre_hook(lambda m, args: entered.append(Entered(name, m, args))))
        handles.append(layer.register_forward_hook(lambda m, args, output: entered.pop() and None))

    if not isinstance(module, torch.jit.ScriptModule):  # it calls no Python hook
        for name, layer in module.named_modules():
            watch(name, layer)
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def explain(
    error: Exception,
    module: nn.Module,
    entered: list[Entered],
    inputs: tuple[InputSpec, ...],
    batch: tuple[Tensor, ...],
) -> CompressError:
    """The error to raise for ``error`` of a forward pass on ``batch``."""
    layer = entered[-1] if entered else None
    told = _channels_last(module, inputs) or (_layer(layer) if layer else None)
    if told is not None:
        return DataError(told)
    if "to be equal to" in str(error) or "Guard failed" in str(error):
        return ModelError(
            f"the exported program does not take a batch of {shapes(batch)} ({_reason(error)}). Export it again with "
            f"batch 2 or more and dynamic_shapes that leave axis 0 free."
        )
    where = f"in layer {layer.name!r} ({type(layer.module).__name__})" if layer and layer.name else "in its forward"
    return ModelError(
        f"the model fails {where} on inputs of shape {shapes(batch)}: {_reason(error)}. Check that the samples have "
        f"the size, order and number of inputs that the model was made for."
    )


def wanted_channels(module: nn.Module) -> int | None:
    """Input channels of the first convolution that ``module`` registers; None where it has none."""
    for layer in module.modules():
        kind = getattr(layer, "original_name", type(layer).__name__)  # TorchScript keeps the class's name there
        if kind.startswith("Conv") and isinstance(channels := getattr(layer, "in_channels", None), int):
            return channels
    return None


def shapes(tensors: Iterable[Any]) -> str:
    """Shapes for a message: "(2, 1, 28, 28) and (2, 5)"."""
    return " and ".join(
        str(tuple(tensor.shape)) if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}" for tensor in tensors
    )


def _channels_last(module: nn.Module, inputs: tuple[InputSpec, ...]) -> str | None:
    wanted = wanted_channels(module)
    shape = inputs[0].shape
    if wanted is None or len(shape) != 3 or shape[0] == wanted or shape[2] != wanted:
        return None
    return (
        f"{shape} looks channels-last; this model's first convolution wants {wanted} channel{'s' * (wanted > 1)} "
        f"first: transpose the samples to {(shape[2], shape[0], shape[1])}."
    )


def _layer(layer: Entered) -> str | None:
    """What the failing layer wanted, where its kind tells."""
    x = layer.arguments[0] if layer.arguments else None
    if not isinstance(x, Tensor):
        return None
    at = f"layer {layer.name!r} ({type(layer.module).__name__})" if layer.name else type(layer.module).__name__
    if isinstance(layer.module, nn.Embedding):
        return _embedding(layer.module, at, x)
    weight = getattr(layer.module, "weight", None)
    if isinstance(weight, Tensor) and weight.dtype != x.dtype:
        return f"{at} wants {_dtype(weight)} values and got {_dtype(x)}: convert the samples to {_dtype(weight)}."
    if isinstance(layer.module, nn.Linear) and x.shape[-1:] != (layer.module.in_features,):
        got = x.shape[-1] if x.ndim else "a scalar"
        return (
            f"{at} expected {layer.module.in_features} features, got {got}: the samples have another size than the "
            f"model was made for (image size, or number of columns)."
        )
    return _convolution(layer.module, at, x)


def _embedding(module: nn.Embedding, at: str, ids: Tensor) -> str | None:
    if ids.is_floating_point():
        return f"{at} wants integer ids and got {_dtype(ids)}: pass token ids as int64."
    if ids.numel() and (int(ids.max()) >= module.num_embeddings or int(ids.min()) < 0):
        return (
            f"{at} holds {module.num_embeddings} ids (0 to {module.num_embeddings - 1}), the data has ids from "
            f"{int(ids.min())} to {int(ids.max())}: use the vocabulary that the model was trained with."
        )
    return None


def _convolution(module: nn.Module, at: str, x: Tensor) -> str | None:
    wanted = getattr(module, "in_channels", None)
    if not isinstance(wanted, int) or x.ndim < 3 or x.shape[1] == wanted:
        return None
    told = f"{at} wants {wanted} input channels and got {x.shape[1]} (shape {tuple(x.shape)})"
    if x.shape[-1] == wanted:
        return f"{told}: the last axis looks like the channels, which come first, right after the batch: transpose."
    return f"{told}: convert the samples to {wanted} channel{'s' * (wanted > 1)}, right after the batch."


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
