"""What each layer alone is worth, for the report's heat map: its smallest weights gone, or all of them rounded."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compress.data.splits import Split
from compress.errors import MeasurementError
from compress.measurement.accuracy import outputs_of, score
from compress.measurement.metrics import Metric
from compress.quiet import quiet
from compress.sparsity.masks import sparsifiable
from compress.sparsity.sensitivity import figure_of, held, layer_names
from compress.values import Model, Progress, silent

LEAST, MOST = 64, 1024  # samples: with fewer, a point of accuracy is less than one of them


@dataclass(frozen=True)
class SensitivityMap:
    """What the model loses where one layer alone is changed, without retraining."""

    layers: tuple[str, ...]
    columns: tuple[str, ...]  # what was done to the layer
    drops: tuple[tuple[float, ...], ...]  # one row a layer, one number a column, in ``measured_in``
    measured_in: str  # accuracy, fidelity, or a metric's name
    n: int  # samples

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _without_smallest(weight: Tensor, share: float) -> Tensor:
    values = weight.flatten().clone()
    values[values.abs().argsort(stable=True)[: round(share * len(values))]] = 0.0
    return values.view(weight.shape)


def _rounded(weight: Tensor, bits: int) -> Tensor:
    """Symmetric, one scale for the tensor, from its largest value."""
    scale = weight.abs().max() / (2 ** (bits - 1) - 1)
    return weight if scale == 0 else (weight / scale).round() * scale


CHANGES: Mapping[str, Callable[[Tensor], Tensor]] = {
    **{f"{share:.0%}".replace("%", " %"): partial(_without_smallest, share=share) for share in (0.5, 0.8, 0.9, 0.95)},
    **{f"int{bits}": partial(_rounded, bits=bits) for bits in (8, 4)},
}


@torch.no_grad()
def sensitivity_map(
    model: Model,
    split: Split,
    seconds: float,
    *,
    device: str = "cpu",
    metric: Metric | None = None,
    progress: Progress = silent,
) -> SensitivityMap:
    """Score the model with one layer at a time changed in each way of ``CHANGES``.

    Args:
        model: Its module is copied.
        split: As many of its samples, evenly spaced, as ``seconds`` allow by the time of a first pass; 1024 at most.
        seconds: For all of it.
        device: Of torch.
        metric: What drops are measured in; None: accuracy, or fidelity without labels.
        progress: Told after every layer.

    Raises:
        MeasurementError: there is no time for 64 samples, or no layer, or the model cannot be scored.
    """
    with quiet():  # torch warns of itself where the module is an exported program
        model = dataclasses.replace(model, module=copy.deepcopy(model.module).to(device))
    parameters = sparsifiable(model.module, ())
    if not parameters or not len(split):
        raise MeasurementError("there is no layer with weights, or no sample to score it on.")
    samples = held(split, _affordable(model, split, seconds, 1 + len(parameters) * len(CHANGES), device))
    reference = outputs_of(model, samples, device=device)
    whole = score(reference, reference, metric)
    names, drops = layer_names(tuple(parameters)), []
    for number, (name, weight) in enumerate(parameters.items()):
        progress("sensitivity of layers", number, len(names), names[name])
        kept, row = weight.detach().clone(), []
        for change in CHANGES.values():
            weight.copy_(change(kept))
            row.append(whole.figure - figure_of(model, samples, reference, device, metric))
        weight.copy_(kept)
        drops.append(tuple(row))
    progress("sensitivity of layers", len(names), len(names))
    return SensitivityMap(tuple(names.values()), tuple(CHANGES), tuple(drops), whole.measured_in, len(samples))


def _affordable(model: Model, split: Split, seconds: float, passes: int, device: str) -> int:
    """Samples that ``passes`` over them can have."""
    few = held(split, LEAST)
    started = time.perf_counter()
    outputs_of(model, few, device=device)
    taken = time.perf_counter() - started
    count = int(len(few) * seconds / (passes * taken))
    if count < len(few):
        raise MeasurementError(
            f"{passes} passes over {len(few)} samples take {passes * taken:.0f} s or so, of {seconds:g} s allowed: "
            "see benchmark.sensitivity_seconds."
        )
    return min(count, MOST)
