"""A few inputs to try a model on: real ones where there is data, else made up."""

from __future__ import annotations

import torch

from compress.data.splits import Data
from compress.data.synthetic_inputs import synthetic
from compress.errors import DataError
from compress.values import InputSpec

# The rows of EXAMPLES samples that every graph is tried on: batch sizes 1, 2 and 5.
BATCHES = (slice(0, 1), slice(1, 3), slice(3, 8))
EXAMPLES = 8


def examples(inputs: tuple[InputSpec, ...], data: Data | None, count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """``count`` samples of every input, each (count, …): of the calibration split, repeated where it is shorter.

    Raises:
        DataError: the calibration split is empty, or its samples have another number of inputs than the model.
    """
    source = data or synthetic(inputs, seed=seed)
    if len(source.calibration) == 0:
        raise DataError(f"the calibration split of {source.name} is empty; at least one sample is needed.")
    columns, _ = next(source.calibration.take(count).batches(count))
    if len(columns) != len(inputs):
        names = ", ".join(spec.name for spec in inputs)
        raise DataError(
            f"the model takes {len(inputs)} inputs ({names}), a sample of {source.name} has {len(columns)}."
        )
    rows = torch.arange(count) % len(columns[0])
    return tuple(column[rows].to(getattr(torch, spec.dtype)) for column, spec in zip(columns, inputs, strict=True))
