"""A measure of the user's own: ``--metric MODULE:FUNCTION``, or ``./file.py:function``.

    function(outputs, labels) -> float, or an array (N,) with one value a sample, whose mean is the metric

``outputs`` is the model's first output on every sample, (N, C, …) float32; ``labels`` what the data holds for them,
(N, …), or None. Both are read-only. Higher is better, and a drop is in the metric's own unit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import CompressError, MeasurementError
from compress.measurement.intervals import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    bootstrap_interval,
    mean_drop_interval,
    mean_interval,
)

if TYPE_CHECKING:
    from compress.measurement.accuracy import Outputs

Function = Callable[[NDArray[np.float32], NDArray[Any] | None], object]

_SECONDS = 2.0  # of resampling one figure, at most
_FEWEST = 100  # resamples: of fewer, the ends of a 95 % interval are the luck of two or three


@dataclass(frozen=True)
class MetricValue:
    """What a metric says of a model's answers."""

    name: str
    value: float  # in the metric's own unit, higher is better
    low: float | None  # 95 % interval; None: not asked for, one sample, or the function is too slow to resample
    high: float | None
    n: int  # samples
    resamples: int = 0  # times that the function was called for the interval; 0 where it gives a value a sample


@dataclass(frozen=True)
class Rated:
    """A metric's value on some answers, with what intervals are made of."""

    name: str
    value: float
    n: int
    each: NDArray[np.float64] | None = None  # (N,) one value a sample; None: the function gives a single number
    resampled: NDArray[np.float64] | None = None  # (R,) the single number on samples drawn again; NaN: it has none

    def told(self, seed: int | None = None) -> MetricValue:
        """The value; with a ``seed`` of the bootstrap also its interval."""
        if seed is None:
            return MetricValue(self.name, self.value, None, None, self.n)
        if self.each is not None:
            low, high = mean_interval(self.each, seed) or (None, None)
            return MetricValue(self.name, self.value, low, high, self.n)
        interval, count = _interval(self.resampled, self.n)
        low, high = interval or (None, None)
        return MetricValue(self.name, self.value, low, high, self.n, count)

    def drop_interval(self, baseline: Rated, seed: int, confidence: float = CONFIDENCE) -> Interval | None:
        """Of the baseline's value - this one, on the same samples, drawn again together."""
        if self.each is not None and baseline.each is not None:
            return mean_drop_interval(baseline.each, self.each, seed, confidence)
        if self.resampled is None or baseline.resampled is None:
            return None
        count = min(len(self.resampled), len(baseline.resampled))  # the same draws for both, in the same order
        return _interval(baseline.resampled[:count] - self.resampled[:count], self.n, confidence)[0]


@dataclass(frozen=True)
class Metric:
    """A function of the user, ready to be called."""

    spec: str  # as given
    name: str  # the function's
    function: Function

    def rate(self, outputs: Outputs) -> Rated:
        """The function's value on all samples, without an interval.

        Raises:
            MeasurementError: it raises, or returns anything but a finite number or one for each sample.
        """
        try:
            found: Any = np.asarray(self.function(_locked(outputs.values), _locked(outputs.labels)), np.float64)
        except Exception as error:  # the user's own code may raise anything
            cause = "".join(str(error).splitlines()[:1])
            raise MeasurementError(f"--metric {self.spec} failed with {type(error).__name__}: {cause}") from error
        n = len(outputs.values)
        if found.shape not in ((), (n,)):
            raise MeasurementError(
                f"--metric {self.spec} returned an array of shape {found.shape}; allowed are a number, or ({n},): one "
                "value a sample."
            )
        if not np.isfinite(found).all():
            raise MeasurementError(f"--metric {self.spec} returned {_odd(found)}; every value must be finite.")
        return Rated(self.name, float(found.mean()), n, found if found.ndim else None)

    def resample(self, rated: Rated, outputs: Outputs, seed: int) -> Rated:
        """``rated`` with what its interval needs: the function is called again on samples that are drawn again.

        As often as ``RESAMPLES``, or as two seconds allow. The same seed and number of samples give the same draws.
        """
        if rated.each is not None:
            return rated
        generator, until = np.random.default_rng(seed), time.perf_counter() + _SECONDS
        found: list[float] = []
        while len(found) < RESAMPLES and time.perf_counter() < until:
            found.append(self._again(outputs, generator.integers(0, rated.n, rated.n)))
        return replace(rated, resampled=np.array(found))

    def _again(self, outputs: Outputs, drawn: NDArray[np.int64]) -> float:
        labels = None if outputs.labels is None else outputs.labels[drawn]
        try:
            return self.rate(replace(outputs, values=outputs.values[drawn], labels=labels)).value
        except MeasurementError:  # as the area under a curve of samples of a single class
            return float("nan")


def load_metric(spec: str) -> Metric:
    """Import the function that ``spec`` names, as ``package.module:function`` or ``./file.py:function``.

    Raises:
        MeasurementError: it is not there, or cannot be called.
    """
    from compress.models.factory import import_named

    try:
        function = import_named(spec, option="--metric")
    except CompressError as error:
        raise MeasurementError(str(error)) from error
    if not callable(function):
        raise MeasurementError(
            f"--metric {spec} is a {type(function).__name__}; needed is a function (outputs, labels) that returns a "
            "number, or one a sample. Higher is better."
        )
    return Metric(spec, spec.rpartition(":")[2], function)


def _interval(
    resampled: NDArray[np.float64] | None, n: int, confidence: float = CONFIDENCE
) -> tuple[Interval | None, int]:
    """The interval, where enough resamples of ``n`` samples have a value, and how many have."""
    if resampled is None:
        return None, 0
    finite = resampled[np.isfinite(resampled)]
    return (bootstrap_interval(finite, n, confidence) if len(finite) >= _FEWEST else None), len(finite)


def _locked(values: NDArray[Any] | None) -> Any:
    """A view that cannot be written: the next model is measured against these same values."""
    if values is None:
        return None
    view = values.view()
    view.flags.writeable = False
    return view


def _odd(found: NDArray[np.float64]) -> str:
    if not found.ndim:
        return str(found)
    first = int(np.argmin(np.isfinite(found)))
    return f"{found[first]} for sample {first}"
