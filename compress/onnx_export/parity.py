"""Parity: does the ONNX graph give what the torch module gives?"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils import _pytree

from compress.data.examples import BATCHES, EXAMPLES
from compress.errors import ExportError
from compress.models.onnx_file import Array, first_line, run
from compress.values import InputSpec, Model

_PROBES = 24  # more samples, one at a time, where branches may have been frozen
SAMPLES = EXAMPLES + _PROBES


@dataclass(frozen=True)
class Case:
    """One batch and what torch makes of it."""

    inputs: dict[str, Array]  # each (N, …)
    outputs: tuple[Array, ...]

    @property
    def batch(self) -> int:
        return len(next(iter(self.inputs.values())))


def torch_cases(model: Model, samples: Sequence[torch.Tensor]) -> tuple[Case, ...]:
    """Run the module at batch sizes 1, 2 and 5.

    Raises:
        ExportError: the module cannot run, or its outputs are not finite.
    """
    return tuple(_case(model, tuple(column[rows] for column in samples)) for rows in BATCHES)


def probe_cases(model: Model, samples: Sequence[torch.Tensor]) -> tuple[Case, ...]:
    """Run the module on what takes its other branches: the old exporter freezes those that depend on the data.

    24 more samples, one at a time, then their negatives, ten times each and all zeros; whole numbers reversed
    instead. Inputs that torch itself cannot run, or answers with NaN or infinity, prove nothing and are left out.
    """
    singles = [tuple(column[i : i + 1] for column in samples) for i in range(EXAMPLES, SAMPLES)]
    others = [
        *(tuple(-x if x.is_floating_point() else x.flip(-1) for x in single) for single in singles),
        *(tuple(x * 10 if x.is_floating_point() else x for x in single) for single in singles),
        tuple(torch.zeros_like(x) for x in singles[0]),
    ]
    cases = []
    for batch in (*singles, *others):
        with contextlib.suppress(ExportError):
            cases.append(_case(model, batch))
    return tuple(cases)


def length_cases(model: Model, inputs: Sequence[InputSpec], samples: Sequence[torch.Tensor]) -> tuple[Case, ...]:
    """Run the module on shorter and longer inputs, along their free axes, at batch sizes 1, 2 and 5.

    Raises:
        ExportError: the module cannot run at another length.
    """
    cases: list[Case] = []
    for longer in (False, True):
        resized = [_resized(column, spec.free, longer) for column, spec in zip(samples, inputs, strict=True)]
        cases += torch_cases(model, resized)
    return tuple(cases)


def _resized(column: torch.Tensor, axes: tuple[int, ...], longer: bool) -> torch.Tensor:
    """Samples (N, …) with a third of their length, or one and a half of it and one more, repeated from the start."""
    for axis in axes:
        size = column.shape[axis + 1]
        wanted = size + size // 2 + 1 if longer else max(1, size // 3)
        column = torch.cat([column, column], axis + 1).narrow(axis + 1, 0, wanted)
    return column.contiguous()


def _case(model: Model, batch: tuple[torch.Tensor, ...]) -> Case:
    inputs = {spec.name: tensor.numpy() for spec, tensor in zip(model.inputs, batch, strict=True)}
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in batch)
    try:
        with torch.inference_mode():
            result = model.module(*batch)
    except Exception as error:  # whatever the user's forward() raises
        raise ExportError(
            f"the model cannot run a batch of {len(batch[0])} (inputs {shapes}): {first_line(error)}. {_advice(model)}"
        ) from error
    outputs = tuple(leaf.numpy() for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor))
    if not outputs:
        raise ExportError(f"the model returns {type(result).__name__} without a tensor in it; return tensors.")
    if not all(np.isfinite(output).all() for output in outputs):
        raise ExportError(f"the outputs of the model are not finite on inputs {shapes}. Look for NaN in its weights.")
    return Case(inputs, outputs)


def _advice(model: Model) -> str:
    if isinstance(model.module, torch.fx.GraphModule):
        return (
            "A .pt2 program takes any batch if it was saved with dynamic_shapes: torch.export.Dim.DYNAMIC for axis 0."
        )
    return "Axis 0 of every input and output must be the batch, of any size."


def compare(data: bytes | Path, cases: Sequence[Case], tolerance: float) -> float:
    """Run the graph, or its file, on every case; return the largest absolute difference from torch.

    Raises:
        ExportError: the graph does not run, gives other shapes, or differs by more than ``tolerance`` times the
            largest magnitude of an output.
    """
    largest = 0.0
    results = run(data, [case.inputs for case in cases], lean=isinstance(data, Path))
    for case in cases:
        try:
            outputs = next(results)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise ExportError(
                f"onnxruntime cannot run the ONNX graph with a batch of {case.batch}: {first_line(error)}. "
                "Axis 0 must be the batch in every operation of forward(): write x.view(-1, …), not a fixed size."
            ) from error
        largest = max(largest, _difference(case, outputs, tolerance))
    return largest


def _difference(case: Case, outputs: list[Array], tolerance: float) -> float:
    shapes, expected = [o.shape for o in outputs], [o.shape for o in case.outputs]
    if shapes != expected:
        raise ExportError(
            f"with a batch of {case.batch} the ONNX graph gives outputs of shapes {shapes}, torch {expected}. "
            "The exporter has frozen something that depends on the batch or on the data; make forward() free of it."
        )
    largest = 0.0
    for mine, torchs in zip(outputs, case.outputs, strict=True):
        scale = float(np.abs(torchs.astype(np.float64)).max(initial=0.0))
        difference = float(np.abs(mine.astype(np.float64) - torchs.astype(np.float64)).max(initial=0.0))
        if not difference <= tolerance * scale:  # not <=: a NaN is over every tolerance
            raise ExportError(
                f"with a batch of {case.batch} the ONNX graph differs from torch by {difference:.3g} "
                f"(outputs reach {scale:.3g}, allowed {tolerance * scale:.3g}). A branch of forward() that depends on "
                "the data cannot be exported; if this is only rounding, raise export.tolerance."
            )
        largest = max(largest, difference)
    return largest
