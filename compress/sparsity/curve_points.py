"""The points of compression curves: means with their bands, areas, and both as JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scipy import integrate, stats

CONFIDENCE = 0.95
Band = Literal["t", "wilson", "none"]
SHARES = ("accuracy", "fidelity")  # what lies within 0..1; a metric of the user's own may lie anywhere


@dataclass(frozen=True)
class Run:
    """One masked copy of the model, scored once."""

    method: str  # flat, lamp+finetune, …
    rate: float  # asked for: share 0 <= rate < 1 of the weights removed
    seed: int
    value: float  # accuracy 0..1 (fidelity without labels, or the user's own metric)
    zeros: Mapping[str, int]  # parameter name -> weights that are zero


@dataclass(frozen=True)
class Point:
    """One method at one rate."""

    method: str
    rate: float  # asked for
    sparsity: float  # achieved: zeros / weights; of the seed with the fewest zeros
    nonzero: int  # weights that are left, of the same seed
    value: float  # mean over the seeds, 0..1
    low: float  # of the 95 % band
    high: float
    band: Band  # t: of the mean over seeds; wilson: of one model over the samples; none: one seed of a metric
    n: int  # samples
    seeds: tuple[int, ...]
    values: tuple[float, ...]  # one a seed
    layers: Mapping[str, float]  # parameter name -> zeros / weights, mean over the seeds


@dataclass(frozen=True)
class Area:
    """The area under one curve by the trapezoid rule, over the rates as asked for."""

    method: str
    value: float  # mean over the seeds
    low: float | None  # of the 95 % band over seeds (t); None: one seed
    high: float | None
    values: tuple[float, ...]  # one a seed


@dataclass(frozen=True)
class Curves:
    """Curves of one model, side by side."""

    dense: float  # what the model scores as it is, 0..1
    ceiling: float  # dense * (last rate - first rate): the area of a curve that loses nothing
    measured_in: str  # accuracy, fidelity, or the metric's name
    split: str  # that the points are scored on
    n: int  # samples of it
    sizes: Mapping[str, int]  # parameter name -> weights, of all that could be removed
    layers: Mapping[str, float]  # the dictionary of custom; empty without it
    points: tuple[Point, ...]  # by method, then by rate
    areas: tuple[Area, ...]  # one a method

    @property
    def rates(self) -> tuple[float, ...]:
        return tuple(point.rate for point in self.of(self.areas[0].method))

    @property
    def sparser(self) -> tuple[Point, ...]:
        """Points with more zeros than rounding explains: the model came with zeros, and these stay."""
        slack = len(self.sizes) / sum(self.sizes.values())  # each layer rounds to whole weights
        return tuple(point for point in self.points if point.sparsity - point.rate > slack)

    @property
    def rounding(self) -> float:
        """The largest distance between a rate and what was achieved, `sparser` points aside: weights are whole."""
        return max((abs(point.sparsity - point.rate) for point in self.points if point not in self.sparser), default=0)

    def of(self, method: str) -> tuple[Point, ...]:
        """The curve of one method."""
        return tuple(point for point in self.points if point.method == method)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to curve.json; ``auc`` first."""
        plain = asdict(self)
        areas = plain.pop("areas")
        return {"auc": {area["method"]: area["value"] for area in areas}, "auc_bands": areas, **plain}

    def to_csv(self) -> str:
        """One line a point; ``values`` are separated by blanks, one a seed."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        columns = ("method", "rate", "sparsity", "nonzero", self.measured_in, "low", "high", "band", "n")
        writer.writerow([*columns, "seeds", "values"])
        for p in self.points:
            figures = (p.method, p.rate, p.sparsity, p.nonzero, p.value, p.low, p.high, p.band, p.n)
            writer.writerow([*figures, " ".join(map(str, p.seeds)), " ".join(map(str, p.values))])
        return table.getvalue()


def summarise_runs(
    runs: Sequence[Run],
    *,
    dense: float,
    sizes: Mapping[str, int],
    samples: int,
    split: str,
    measured_in: str,
    layers: Mapping[str, float],
) -> Curves:
    """Points and areas of ``runs``: the same two or more rates for every method."""
    curves: dict[str, dict[float, list[Run]]] = {}
    for run in runs:
        curves.setdefault(run.method, {}).setdefault(run.rate, []).append(run)
    rates, share = sorted({run.rate for run in runs}), measured_in in SHARES
    return Curves(
        dense=dense,
        ceiling=dense * (rates[-1] - rates[0]),
        measured_in=measured_in,
        split=split,
        n=samples,
        sizes=sizes,
        layers=layers,
        points=tuple(_point(curve[rate], sizes, samples, share) for curve in curves.values() for rate in rates),
        areas=tuple(_area(method, rates, [curve[rate] for rate in rates], share) for method, curve in curves.items()),
    )


def _point(runs: Sequence[Run], sizes: Mapping[str, int], samples: int, share: bool) -> Point:
    """The runs of one method at one rate, one a seed."""
    values = tuple(run.value for run in runs)
    mean = statistics.fmean(values)
    low, high, band = _band(values, samples, share)
    weights = sum(sizes.values())
    zeros = min(sum(run.zeros.values()) for run in runs)
    return Point(
        method=runs[0].method,
        rate=runs[0].rate,
        sparsity=zeros / weights,
        nonzero=weights - zeros,
        value=mean,
        low=low,
        high=high,
        band=band,
        n=samples,
        seeds=tuple(run.seed for run in runs),
        values=values,
        layers={name: statistics.fmean(run.zeros[name] for run in runs) / size for name, size in sizes.items()},
    )


def _band(values: Sequence[float], samples: int, share: bool) -> tuple[float, float, Band]:
    if len(values) > 1:
        return *t_band(values, share), "t"
    return (*wilson_band(values[0], samples), "wilson") if share else (values[0], values[0], "none")


def _area(method: str, rates: Sequence[float], points: Sequence[Sequence[Run]], share: bool) -> Area:
    """One area a seed: a point that was run once, since nothing in it is random, is part of every seed's curve."""
    seeds = max(len(runs) for runs in points)
    values = tuple(
        float(integrate.trapezoid([runs[min(seed, len(runs) - 1)].value for runs in points], rates))
        for seed in range(seeds)
    )
    low, high = t_band(values, share) if seeds > 1 else (None, None)
    return Area(method, statistics.fmean(values), low, high, values)


def t_band(values: Sequence[float], share: bool = True) -> tuple[float, float]:
    """95 % band of the mean of two or more values by Student's t; of a ``share`` within 0..1."""
    mean = statistics.fmean(values)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return (max(0.0, mean - half), min(1.0, mean + half)) if share else (mean - half, mean + half)


def wilson_band(share: float, n: int) -> tuple[float, float]:
    """95 % Wilson interval of ``share`` of ``n`` samples."""
    interval = stats.binomtest(round(share * n), n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
