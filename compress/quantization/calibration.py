"""Calibration data, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnxruntime.quantization import CalibrationDataReader

from compress.data.splits import Split
from compress.errors import QuantizationError
from compress.models.onnx_file import Array
from compress.values import InputSpec


class SplitReader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds a split to onnxruntime's calibrator, which keeps two numbers a tensor and batch."""

    def __init__(self, split: Split, inputs: tuple[InputSpec, ...], batch_size: int) -> None:
        self._batches = _feeds(split, inputs, batch_size)

    def get_next(self) -> dict[str, Array] | None:
        """The next batch of inputs by name; None after the last."""
        return next(self._batches, None)


def _feeds(split: Split, inputs: tuple[InputSpec, ...], batch_size: int) -> Iterator[dict[str, Array]]:
    first = 0
    for columns, _ in split.batches(batch_size):
        arrays = [column.numpy().astype(spec.dtype) for column, spec in zip(columns, inputs, strict=True)]
        for array, spec in zip(arrays, inputs, strict=True):
            _refuse_nonfinite(array, spec, split, first)
        first += len(arrays[0])
        yield {spec.name: array for spec, array in zip(inputs, arrays, strict=True)}


def _refuse_nonfinite(array: Array, spec: InputSpec, split: Split, first: int) -> None:
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if bad.any():
        position = first + int(bad.argmax())
        raise QuantizationError(
            f"input {spec.name!r} of sample {split.indices[position]} (number {position} of the {split.name} split) "
            "holds NaN or infinity; ranges cannot be taken from it. Clean the data, or leave that sample out."
        )
