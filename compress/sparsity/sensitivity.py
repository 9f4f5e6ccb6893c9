"""Sensitivity: how much accuracy each layer's weights are worth, and the sparsity of each layer that follows from it.

Each layer alone loses its smallest weights, without retraining, as in Han et al. 2015, "Learning both Weights and
Connections for Efficient Neural Networks", figure 6.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.data.splits import Batch, Split
from compress.errors import MeasurementError, SparsityError
from compress.measurement.accuracy import Outputs, outputs_of, score
from compress.measurement.metrics import Metric
from compress.sparsity.masks import apply_masks, make_masks, sparsifiable
from compress.units import signed
from compress.values import Model, Progress, silent

logger = logging.getLogger(__name__)

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
HALVINGS = 10  # of the search for a suggestion: a thousandth of the budget
RAISES = 4  # halvings for each layer after it: a sixteenth of what is open
STEPS = 1000  # suggested sparsities are whole thousandths, rounded down


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer alone at each rate."""

    name: str  # as a recipe names it: the layer, or the parameter where the layer has several
    parameter: str
    weights: int
    accuracy: tuple[float, ...]  # one a rate, 0..1


@dataclass(frozen=True)
class Sensitivity:
    """A whole scan."""

    rates: tuple[float, ...]  # sparsity 0..1, rising
    layers: tuple[LayerSensitivity, ...]  # in the order of the model's parameters
    baseline: float  # 0..1, on the same samples with every weight in place
    n: int  # samples
    measured_in: str  # accuracy; fidelity where the samples have no labels; or the name of the user's own metric

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Sensitivity:
        layers = tuple(LayerSensitivity(**{**v, "accuracy": tuple(v["accuracy"])}) for v in stored["layers"])
        return cls(**{**stored, "rates": tuple(stored["rates"]), "layers": layers})


@dataclass(frozen=True)
class Suggestion:
    """A sparsity for each layer, and what all of them together cost before any retraining."""

    layers: Mapping[str, float]  # layer name -> sparsity, as `compress.sparsity.masks.resolve_layers` takes it
    sparsity: float  # of all the layers' weights together
    drop: float  # measured on the samples of the scan, with every layer at its sparsity
    budget: float  # the drop that was allowed

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "layers": dict(self.layers)}


def to_csv(sensitivity: Sensitivity) -> str:
    """One line for each layer and rate."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("layer", "parameter", "weights", "sparsity", sensitivity.measured_in, "drop"))
    for layer in sensitivity.layers:
        for rate, accuracy in zip(sensitivity.rates, layer.accuracy, strict=True):
            drop = f"{sensitivity.baseline - accuracy:.6f}"
            writer.writerow((layer.name, layer.parameter, layer.weights, f"{rate:g}", f"{accuracy:.6f}", drop))
    return table.getvalue()


def scan(
    model: Model,
    split: Split,
    rates: Sequence[float] = RATES,
    *,
    keep: tuple[str, ...] = (),
    samples: int = 1000,
    device: str = "cpu",
    progress: Progress = silent,
    metric: Metric | None = None,
) -> Sensitivity:
    """Score the model with one layer at a time at each sparsity of ``rates``, its smallest weights gone.

    ``samples`` of the split, evenly spaced, are fetched once and held in memory. The given module is never changed.

    Raises:
        SparsityError: a rate outside 0 <= rate < 1, no samples, or no weight to remove.
    """
    rates = _checked(rates, samples)
    bench = _Bench(model, split, samples, keep, device, metric)
    names = layer_names(tuple(bench.parameters))
    layers = []
    for number, (parameter, weight) in enumerate(bench.parameters.items()):
        progress("sensitivity", number, len(names), names[parameter])
        layers.append(LayerSensitivity(names[parameter], parameter, weight.numel(), bench.curve(weight, rates)))
        logger.info("sensitivity of %s: %s", names[parameter], layers[-1].accuracy)
    progress("sensitivity", len(names), len(names))
    return Sensitivity(rates, tuple(layers), bench.baseline, bench.n, bench.measured_in)


def suggest(
    model: Model,
    split: Split,
    sensitivity: Sensitivity,
    budget: float,
    *,
    device: str = "cpu",
    progress: Progress = silent,
    metric: Metric | None = None,
) -> Suggestion:
    """The sparsity of each layer whose joint drop, measured on the samples of the scan, is within ``budget``.

    Every layer gets the highest sparsity whose own drop is at most d, between two rates by interpolation; d is the
    largest up to ``budget`` for which all layers together stay within it, found by bisection. Where even layers that
    lose nothing alone lose too much together, all their sparsities are scaled down by one factor. Then each layer, the
    largest first, is raised on its own as far as the budget still allows: one d for all of them leaves the large ones
    too dense, since near the budget the curves are mostly noise.

    Raises:
        SparsityError: a budget outside 0..1, or a scan of another model.
    """
    if not 0 <= budget <= 1:
        raise SparsityError(f"a drop budget of {budget} is not a fraction within 0..1 (one point is 0.01).")
    bench = _Bench(model, split, sensitivity.n, (), device, metric)
    found = {layer.parameter: layer.weights for layer in sensitivity.layers}
    if any(name not in bench.parameters or bench.parameters[name].numel() != n for name, n in found.items()):
        raise SparsityError("the scan is of another model: its layers are not those of this one. Scan this model.")
    trials = _Trials(bench, sensitivity, budget, progress)
    trials.search_drop()
    for layer in sorted(sensitivity.layers, key=lambda layer: layer.weights, reverse=True):
        trials.raise_one(layer)
    progress("suggested sparsity", trials.most, trials.most)
    named = {layer.name: trials.chosen[layer.parameter] for layer in sensitivity.layers}
    return Suggestion(named, trials.removed, trials.drop, budget)


class _Trials:
    """The best dictionary so far (parameter name -> sparsity): only one measured to be within the budget gets here."""

    def __init__(self, bench: _Bench, sensitivity: Sensitivity, budget: float, progress: Progress) -> None:
        self._bench, self._sensitivity, self._budget, self._progress = bench, sensitivity, budget, progress
        self._done, self.most = 0, 1 + HALVINGS + (1 + RAISES) * len(sensitivity.layers)
        self.chosen = _candidate(sensitivity, 0.0, budget)  # nothing is removed, and nothing lost
        self.drop = 0.0

    def search_drop(self) -> None:
        """The furthest position of `_candidate` within the budget: most often not the last, which is tried first."""
        low, position, high = 0.0, 2.0, 2.0
        for _ in range(1 + HALVINGS):
            if self._within(_candidate(self._sensitivity, position, self._budget)):
                low = position
            else:
                high = position
            if low == high:
                return
            position = (low + high) / 2

    def raise_one(self, layer: LayerSensitivity) -> None:
        """Give one layer what is left of the budget: up to the sparsity at which it would take all of it alone."""
        low = self.chosen[layer.parameter]
        high = highest(self._sensitivity.rates, [self._sensitivity.baseline - a for a in layer.accuracy], self._budget)
        for number in range(1 + RAISES):
            share = _rounded(high if number == 0 else (low + high) / 2)
            if share <= self.chosen[layer.parameter]:
                return
            if self._within({**self.chosen, layer.parameter: share}):
                low = share
            else:
                high = share

    def _within(self, layers: dict[str, float]) -> bool:
        drop = self._bench.drop(layers)
        self._done += 1
        within = drop <= self._budget + 1e-9
        if within:
            self.chosen, self.drop = layers, drop
        best = f"best: {self.removed:.1%} zeros, {signed(self.drop)} of {self._budget:.4f} lost"
        self._progress("suggested sparsity", min(self._done, self.most), self.most, best)
        return within

    @property
    def removed(self) -> float:
        """The share of all weights that the best dictionary takes."""
        layers = self._sensitivity.layers
        return sum(self.chosen[one.parameter] * one.weights for one in layers) / sum(one.weights for one in layers)


def sparse_copy(module: nn.Module, layers: Mapping[str, float]) -> nn.Module:
    """A copy of ``module`` whose parameters have lost their smallest weights: parameter name -> sparsity."""
    smaller = copy.deepcopy(module)
    _cut(dict(smaller.named_parameters()), layers)
    return smaller


def _cut(parameters: Mapping[str, nn.Parameter], layers: Mapping[str, float]) -> None:
    named = {name: parameters[name] for name in layers}
    apply_masks(named, make_masks(named, layers, "magnitude"))


def layer_names(parameters: Sequence[str]) -> dict[str, str]:
    """Parameter name -> the shortest name that means it alone: conv1 for conv1.weight, lstm.weight_ih_l0 as it is."""
    owners = [name.rpartition(".")[0] for name in parameters]
    return {
        name: owner if owner and name.endswith(".weight") and owners.count(owner) == 1 else name
        for name, owner in zip(parameters, owners, strict=True)
    }


def highest(rates: Sequence[float], drops: Sequence[float], allowed: float) -> float:
    """The highest sparsity whose drop is at most ``allowed``, on straight lines between the scanned points.

    With a higher ``allowed`` it never falls, curves that go up and down included. Sparsity 0 costs nothing.
    """
    points = [(0.0, 0.0), *zip(rates, drops, strict=True)]
    last = max((i for i, (_, drop) in enumerate(points) if drop <= allowed), default=0)
    rate, drop = points[last]
    if last == len(points) - 1 or drop > allowed:
        return rate
    beyond, too_much = points[last + 1]
    return rate + (beyond - rate) * (allowed - drop) / (too_much - drop)


def _candidate(sensitivity: Sensitivity, position: float, budget: float) -> dict[str, float]:
    """Parameter name -> sparsity at a position 0..2: up to 1 a factor of what costs nothing, from 1 to 2 more drop."""
    allowed, factor = budget * max(0.0, position - 1), min(1.0, position)
    shares = {
        layer.parameter: factor
        * highest(sensitivity.rates, [sensitivity.baseline - a for a in layer.accuracy], allowed)
        for layer in sensitivity.layers
    }
    return {name: _rounded(share) for name, share in shares.items()}


def _rounded(share: float) -> float:
    return math.floor(share * STEPS + 1e-6) / STEPS


def _checked(rates: Sequence[float], samples: int) -> tuple[float, ...]:
    if not rates or any(not 0 <= rate < 1 for rate in rates):
        given = ", ".join(f"{rate:g}" for rate in rates) or "none"
        raise SparsityError(f"rates {given}: each must be within 0 <= rate < 1, such as 0:0.9:0.1,0.95.")
    if samples < 1:
        raise SparsityError(f"samples={samples} must be at least 1.")
    return tuple(sorted(set(rates)))


class _Bench:
    """One copy of the model and the samples that every candidate answers."""

    def __init__(
        self, model: Model, split: Split, samples: int, keep: tuple[str, ...], device: str, metric: Metric | None
    ) -> None:
        self._model = dataclasses.replace(model, module=copy.deepcopy(model.module).to(device).eval())
        self._split = held(split, samples)
        self._device, self._metric = device, metric
        self.parameters = sparsifiable(self._model.module, keep)
        if not self.parameters:
            raise SparsityError("the model has no weight with two or more axes: there is nothing to scan.")
        self._reference = outputs_of(self._model, self._split, device=device)
        whole = score(self._reference, self._reference, metric)
        self.n, self.baseline, self.measured_in = len(self._split), whole.figure, whole.measured_in

    @torch.no_grad()
    def curve(self, weight: nn.Parameter, rates: Sequence[float]) -> tuple[float, ...]:
        """Accuracy at each of the rising rates. One sort: what a rate removes, every higher rate removes too."""
        whole = weight.detach().clone()
        values = whole.clone().flatten()  # (weights,)
        order = values.abs().argsort(stable=True)
        accuracy, gone, found = self.baseline, 0, []
        for rate in rates:
            count = round(rate * len(values))
            fresh = order[gone:count]
            if values[fresh].any():  # zeros already: the same model, the same answers
                values[fresh] = 0.0
                weight.copy_(values.view(whole.shape))
                accuracy = self._accuracy()
            gone = count
            found.append(accuracy)
        weight.copy_(whole)
        return tuple(found)

    @torch.no_grad()
    def drop(self, layers: Mapping[str, float]) -> float:
        """What the model loses with every layer at its sparsity."""
        whole: dict[str, Tensor] = {name: self.parameters[name].detach().clone() for name in layers}
        _cut(self.parameters, layers)
        accuracy = self._accuracy()
        for name, weight in whole.items():
            self.parameters[name].copy_(weight)
        return self.baseline - accuracy

    def _accuracy(self) -> float:
        return figure_of(self._model, self._split, self._reference, self._device, self._metric)


def figure_of(
    model: Model, split: Split, reference: Outputs, device: str = "cpu", metric: Metric | None = None
) -> float:
    """Accuracy 0..1 (fidelity without labels, or the metric) of a model whose weights became zero.

    Where an answer is not finite it is 0; a metric is told that all of the outputs are 0.

    Args:
        reference: Answers of the model with its weights in place.
    """
    try:
        outputs = outputs_of(model, split, device=device)
    except MeasurementError as error:
        # The whole model could be scored, so the zeros did it: an answer that is not finite is a wrong one.
        logger.info("counted as all wrong: %s", error)
        if metric is None:
            return 0.0
        outputs = dataclasses.replace(reference, values=np.zeros_like(reference.values))
    return score(outputs, reference, metric).figure


def held(split: Split, samples: int) -> Split:
    """Evenly spaced samples, since a split may be sorted by class, fetched once and held in memory."""
    if not len(split):
        raise SparsityError(f"the {split.name} split is empty; at least one sample is needed.")
    count = min(samples, len(split))
    chosen = split.indices[np.arange(count) * len(split) // count]
    batches = [split.fetch(chosen[start : start + 256]) for start in range(0, count, 256)]
    inputs = tuple(torch.cat(parts) for parts in zip(*(batch[0] for batch in batches), strict=True))
    labels = [batch[1] for batch in batches if batch[1] is not None]
    targets = torch.cat(labels) if labels else None

    def fetch(numbers: NDArray[np.int64]) -> Batch:
        rows = torch.from_numpy(numbers)
        return tuple(x[rows] for x in inputs), None if targets is None else targets[rows]

    return Split(split.name, fetch, np.arange(count), split.labelled)
