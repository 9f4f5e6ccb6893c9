"""What every quantized graph must hold to before it becomes a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch

from compress.data.examples import BATCHES
from compress.errors import QuantizationError
from compress.models.counts import stored_weights
from compress.models.onnx_file import Array, first_line, run
from compress.values import InputSpec

Batches = list[dict[str, Array]]


def batches(inputs: tuple[InputSpec, ...], samples: Sequence[torch.Tensor]) -> Batches:
    """Batches of 1, 2 and 5 of the samples, each input (N, …), by input name."""
    return [{spec.name: column[rows].numpy() for spec, column in zip(inputs, samples, strict=True)} for rows in BATCHES]


def check_zeros(before: onnx.ModelProto, after: onnx.ModelProto, name: str) -> None:
    """Refuse a graph in which a weight tensor, found by its name, has fewer zeros than before.

    Raises:
        QuantizationError: names the tensor.
    """
    quantized = stored_weights(after)
    for weight_name, weight in stored_weights(before).items():
        stored = quantized.get(f"{weight_name}_quantized", weight)
        if stored.nonzero > weight.nonzero:
            raise QuantizationError(
                f"{name}: {weight_name} has {stored.nonzero:,} nonzero weights of {stored.elements:,}, the float file "
                f"{weight.nonzero:,}: zeros were not kept. Please report this model."
            )


def check_runs(data: bytes, feeds: Batches, expected: Sequence[list[Array]], name: str, *, lean: bool = False) -> None:
    """Refuse a graph that onnxruntime cannot run, or whose outputs are not finite or have other shapes than expected.

    Args:
        lean: Restore weights that are stored as integers one at a time, and not all of them at load.

    Raises:
        QuantizationError: names the batch size.
    """
    results = run(data, feeds, lean=lean)
    for feed, wanted in zip(feeds, expected, strict=True):
        size = len(next(iter(feed.values())))
        try:
            outputs = next(results)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise QuantizationError(
                f"{name}: onnxruntime cannot run it with a batch of {size}: {first_line(error)}."
            ) from error
        shapes = [output.shape for output in outputs], [output.shape for output in wanted]
        if shapes[0] != shapes[1]:
            raise QuantizationError(f"{name}: a batch of {size} gives outputs {shapes[0]}, the float file {shapes[1]}.")
        if not all(np.isfinite(output).all() for output in outputs):
            raise QuantizationError(f"{name}: the outputs are not finite with a batch of {size}. Ship the float file.")
