"""Binding a module to its data: does it run on it, with any batch, and what does it return?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import DataError, ModelError
from compress.models.diagnosis import explain, shapes, trace
from compress.models.loading import Source
from compress.values import InputSpec, Model

logger = logging.getLogger(__name__)


class FirstOutput(nn.Module):
    """A module that returns several values, reduced to the first tensor among them (depth first)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first tensor of what the module returns for ``inputs``."""
        first = _first_tensor(self.module(*inputs))
        assert first is not None  # bind checked it
        return first


def bind(source: Source | nn.Module, inputs: tuple[InputSpec, ...], example: tuple[Tensor, ...]) -> Model:
    """Check that a module runs on the data, and tell what it computes.

    Args:
        source: a loaded file other than ONNX, or a module, which is put in eval mode.
        inputs: what the data gives, one for each input of the module.
        example: some real samples, one tensor for each input, (N, *shape) with N >= 1.

    Returns:
        The model. Its module returns one tensor: a module that returns several is wrapped in ``FirstOutput``.

    Raises:
        DataError: the data does not fit the model: its layout, channels, size or dtype.
        ModelError: the model fails, drops the batch axis, or returns no tensor, NaN or infinity.
    """
    module = _module_of(source)
    if not example or len(example) != len(inputs) or any(len(tensor) == 0 for tensor in example):
        raise DataError(f"binding needs at least one sample for each of {len(inputs)} inputs, got {shapes(example)}.")
    two = tuple(torch.cat([tensor[:2], tensor[:1]])[:2] for tensor in example)
    returned = _run(module, inputs, two)
    if not isinstance(returned, Tensor):
        if _first_tensor(returned) is None:
            raise ModelError(f"the model returns a {type(returned).__name__} without a tensor; it must return one.")
        logger.info("the model returns a %s: its first tensor is used, the others are dropped", type(returned).__name__)
        module = FirstOutput(module)
    pair = _output(module, inputs, two)
    single = _output(module, inputs, tuple(tensor[:1] for tensor in example))
    if pair.shape[1:] != single.shape[1:]:
        raise ModelError(f"the model's output shape depends on the batch: {shapes([pair])} and {shapes([single])}.")
    scores = pair.ndim == 2 and pair.shape[1] >= 2 and pair.is_floating_point()
    return Model(module, inputs, task="classification" if scores else "other")


def check_labels(model: Model, example: tuple[Tensor, ...], classes: int) -> None:
    """Refuse labels that the model has no output for; a model that does not classify is let through.

    Args:
        example: some samples, one tensor for each input.
        classes: the largest label in the data + 1.
    """
    if model.task != "classification":
        return
    with torch.no_grad():
        outputs = model.module(*example).shape[1]
    if classes > outputs:
        raise DataError(
            f"the labels go up to {classes - 1}, but the model has {outputs} outputs (labels 0 to {outputs - 1}). "
            f"Use the data that the model was trained on, or check its labels."
        )


def _module_of(source: Source | nn.Module) -> nn.Module:
    if isinstance(source, nn.Module):
        return source.eval()
    if source.module is None:
        raise ModelError(f"{source.path} is {source.kind}: it has no torch module to run. It enters at quantize.")
    return source.module


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    inner: Sequence[Any] = ()
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, list | tuple):
        inner = value
    return next((found for item in inner if (found := _first_tensor(item)) is not None), None)


def _output(module: nn.Module, inputs: tuple[InputSpec, ...], batch: tuple[Tensor, ...]) -> Tensor:
    """Run and check: the batch axis kept, all finite."""
    output = _run(module, inputs, batch)
    count = len(batch[0])
    if not isinstance(output, Tensor) or output.ndim == 0 or output.shape[0] != count:
        raise ModelError(
            f"the model does not keep the batch: {shapes(batch)} gives {shapes([output])}, not ({count}, …). A squeeze "
            f"or a view(-1, …) in its forward usually does that, or samples of another size than it was made for."
        )
    if output.is_floating_point() and not bool(output.isfinite().all()):
        bad = int((~output.isfinite()).sum())
        raise ModelError(
            f"the model returns NaN or infinity for real samples ({bad} of {output.numel()} values). Check that the "
            f"data is scaled as in training, and the model's weights."
        )
    return output


def _run(module: nn.Module, inputs: tuple[InputSpec, ...], batch: tuple[Tensor, ...]) -> Any:
    with torch.no_grad(), trace(module) as entered:
        try:
            return module(*batch)
        except Exception as error:
            raise explain(error, module, entered, inputs, batch) from error
