"""What was measured of a variant's latency, and how two variants compare.

scipy, and with it the statistics, is imported inside functions: `compress --help` passes by this module.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import MeasurementError

OK = "ok"

# A difference below this share is not called significant, however sure it is. In 20 benchmarks of a file beside itself,
# on a busy machine, the ratio was up to 1.2 % away from 1 (benchmarks/results/steadiness-*.json).
FLOOR = 0.03

_PERCENT = np.arange(101)


@dataclass(frozen=True)
class Timing:
    """Latency of one variant on one provider at one batch size; without numbers where it could not run."""

    provider: str  # ONNX Runtime's name: CPUExecutionProvider
    batch: int  # samples a call
    threads: int  # of one operator
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    p50_interval: dict[str, float] | None = None  # {"low", "high"}: 95 %, from resampling launches and rounds
    p95_interval: dict[str, float] | None = None
    first_call_ms: float | None = None  # the first of a process, before warm-up: the median of the launches
    load_ms: float | None = None  # making the session: the median of the launches
    peak_bytes: int | None = None  # most resident memory of a process with Python, numpy, the runtime and this model
    throughput: float | None = None  # samples a second, one call after the other: batch / mean
    energy_mj: float | None = None  # of the whole processor package (or as codecarbon tells), per sample
    samples: int = 0  # calls that the percentiles are taken from
    status: str = OK  # else why there are no numbers
    settled: bool = True  # False: in half of the launches or more the median still moved at the end of the warm-up
    rounds: int = 0  # samples_ms holds as many samples of each round, one round after the other
    launches: int = 0  # processes that the rounds were shared out among, one after the other, equally
    precision: str | None = None  # the arithmetic of float32 operators, where it could be another than float32
    placement: dict[str, Any] | None = None  # nodes by provider: `compress.measurement.placement.Placement`
    quantiles_ms: tuple[float, ...] = ()  # 101: of 0 %, 1 %, …, 100 % of the samples
    samples_ms: tuple[float, ...] = ()

    def to_dict(self, samples: bool = False) -> dict[str, Any]:
        """Plain values; the raw samples only where they are asked for."""
        stored = {name: getattr(self, name) for name in self.__dataclass_fields__}
        stored["quantiles_ms"] = list(self.quantiles_ms)
        del stored["samples_ms"]
        return {**stored, "samples_ms": list(self.samples_ms)} if samples else stored

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Timing:
        """What `to_dict` made, with its samples."""
        lists = {name: tuple(stored.get(name, ())) for name in ("quantiles_ms", "samples_ms")}
        return cls(**{**stored, **lists})


@dataclass(frozen=True)
class Ratio:
    """A ratio and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    significant: bool  # the interval leaves 1 out, and the difference is above ``FLOOR``


def summary(samples_ms: NDArray[np.float64], *, provider: str, batch: int, threads: int, **found: Any) -> Timing:
    """A timing with all the numbers that follow from its samples.

    Args:
        samples_ms: (launches, rounds, calls).
        provider: ONNX Runtime's name.
        batch: Samples a call.
        threads: Of one operator.
        found: The fields of `Timing` that do not.
    """
    launches, rounds, _ = samples_ms.shape
    samples_ms = samples_ms.round(6)  # a nanosecond is the clock's own step
    p50, p90, p95, p99 = (float(p) for p in np.percentile(samples_ms, (50, 90, 95, 99)))
    mean = float(samples_ms.mean())
    timing = Timing(
        provider=provider,
        batch=batch,
        threads=threads,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=mean,
        throughput=batch * 1000 / mean,
        samples=samples_ms.size,
        rounds=launches * rounds,
        launches=launches,
        quantiles_ms=tuple(float(value) for value in np.percentile(samples_ms, _PERCENT).round(6)),
        samples_ms=tuple(samples_ms.ravel().tolist()),
        **found,
    )
    return replace(timing, p50_interval=_interval(timing, 50, p50), p95_interval=_interval(timing, 95, p95))


def _interval(timing: Timing, percent: float, value: float) -> dict[str, float]:
    from compress.measurement import resampling

    drawn = resampling.percentiles(_by_round(timing), percent, _counts(timing))
    low, high = resampling.interval(drawn, _independent(timing))
    return {"low": min(low, value), "high": max(high, value)}


def speedup(baseline: Timing, variant: Timing) -> Ratio:
    """Baseline p50 / variant p50: the median over the rounds that both took part in, and its 95 % interval.

    Round by round, since what disturbs a round disturbs both: on a busy machine the ratio of a file to itself stayed
    within 1 % of 1 this way, where that of the medians of all samples strayed by 9 %. The interval is of launches and
    rounds drawn again, the same for both. Of a single launch it does not cover what is fixed when a process starts,
    such as where its memory lies.

    Raises:
        MeasurementError: one of them has no numbers, or they were not timed in the same launches and rounds.
    """
    from compress.measurement import resampling

    ours, theirs = _by_round(variant), _by_round(baseline)
    if (baseline.launches, baseline.rounds) != (variant.launches, variant.rounds):
        raise MeasurementError(
            f"a speed-up compares timings of the same rounds: found {baseline.rounds} of the baseline and "
            f"{variant.rounds} of the variant. Measure them in one benchmark."
        )
    ratios = np.median(theirs, axis=1) / np.median(ours, axis=1)  # (rounds,)
    drawn = resampling.percentiles(ratios[:, None], 50, _counts(baseline))
    value = float(np.median(ratios))
    low, high = resampling.interval(drawn, _independent(baseline))
    differs = not low <= 1 <= high and not 1 / (1 + FLOOR) <= value <= 1 + FLOOR
    return Ratio(value, min(low, value), max(high, value), differs)


def _counts(timing: Timing) -> NDArray[np.int64]:
    from compress.measurement import resampling

    launches = max(timing.launches, 1)  # 0: of a record that was written before they were counted
    return resampling.draw(launches, timing.rounds // launches)


def _independent(timing: Timing) -> int:
    """What the draws of a timing rest on: its launches, or the rounds of a single one."""
    return timing.launches if timing.launches > 1 else timing.rounds


def _by_round(timing: Timing) -> NDArray[np.float64]:
    if timing.status != OK or timing.rounds == 0:
        raise MeasurementError(f"no speed-up without latencies: {timing.provider} {timing.status}.")
    return np.array(timing.samples_ms).reshape(timing.rounds, -1)
