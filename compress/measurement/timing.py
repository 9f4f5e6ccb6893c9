"""Latency of several variants, side by side.

Machines drift: clocks change, neighbours come and go. Variants that are timed one after the other are compared across
that drift; here they take turns in many short rounds, in a fresh random order each, so that it hits all of them alike.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import MeasurementError

logger = logging.getLogger(__name__)

Call = Callable[[], object]  # one inference
Clock = Callable[[], int]  # nanoseconds, monotonic

OK = "ok"
_MS = 1e6  # nanoseconds

_MAX_CALLS = 200  # of one variant in one round: 5,000 samples in 25 rounds tell p99 well enough
_WARM_NS = 20e6  # a warm-up block lasts this long, and
_WARM_CALLS = 3  # has at least this many calls
_SETTLED = 0.05  # two warm-up blocks whose medians differ by less than this share: settled

_RESAMPLES = 500
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Timing:
    """Latency of one variant on one provider at one batch size; without numbers where it could not run."""

    provider: str  # ONNX Runtime's name: CPUExecutionProvider
    batch: int  # samples a call
    threads: int  # of one operator
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    first_call_ms: float | None = None  # the first of all, before warm-up
    samples: int = 0  # calls that the percentiles are taken from
    status: str = OK  # else why there are no numbers
    settled: bool = True  # False: the median still moved at the end of warm-up
    rounds: int = 0  # samples_ms holds as many samples of each round, one round after the other
    samples_ms: tuple[float, ...] = ()

    def to_dict(self, samples: bool = False) -> dict[str, Any]:
        """Plain values; the raw samples only where they are asked for."""
        stored = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del stored["samples_ms"]
        return {**stored, "samples_ms": list(self.samples_ms)} if samples else stored

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Timing:
        return cls(**{**stored, "samples_ms": tuple(stored["samples_ms"])})


@dataclass(frozen=True)
class Samples:
    """The raw result of `interleave` for one variant."""

    first_call_ms: float
    settled: bool
    samples_ms: NDArray[np.float64]  # (rounds, calls)

    def timing(self, provider: str, batch: int, threads: int) -> Timing:
        p50, p90, p99 = (float(p) for p in np.percentile(self.samples_ms, (50, 90, 99)))
        return Timing(
            provider=provider,
            batch=batch,
            threads=threads,
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            mean_ms=float(self.samples_ms.mean()),
            first_call_ms=self.first_call_ms,
            samples=self.samples_ms.size,
            settled=self.settled,
            rounds=len(self.samples_ms),
            samples_ms=tuple(round(float(sample), 6) for sample in self.samples_ms.ravel()),
        )


@dataclass(frozen=True)
class Ratio:
    """A ratio and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def interleave(
    calls: Sequence[Call],
    *,
    seconds: float,
    min_samples: int,
    rounds: int,
    seed: int,
    clock: Clock = time.perf_counter_ns,
    after_round: Callable[[int], None] = lambda done: None,
) -> tuple[Samples, ...]:
    """Time several calls in turns.

    Each is first warmed up until its median settles (for at most ``seconds``). Then come the rounds: in each, every
    call has one block of consecutive runs, in a random order of the calls. Blocks are as long as makes a call's blocks
    fill ``seconds`` together, within ``min_samples`` and 200 runs a block. The garbage collector is off meanwhile.

    Args:
        calls: One inference each.
        seconds: Time for each call.
        min_samples: Samples of each call at least, however slow it is.
        rounds: At least 1.
        seed: Of the order.
        clock: Nanoseconds.
        after_round: Told how many rounds are done.
    """
    generator = np.random.default_rng(seed)
    with _no_garbage_collection():
        warm = [_warm_up(call, seconds, clock) for call in calls]
        blocks = [_block_length(state.median_ns, seconds, min_samples, rounds) for state in warm]
        samples: list[list[NDArray[np.float64]]] = [[] for _ in calls]
        for done in range(rounds):
            for number in generator.permutation(len(calls)):
                calls[number]()  # the others have used the caches since: not a sample
                samples[number].append(_time(calls[number], blocks[number], clock))
            after_round(done + 1)
    return tuple(
        Samples(state.first_ns / _MS, state.settled, np.stack(taken) / _MS)
        for state, taken in zip(warm, samples, strict=True)
    )


def speedup(baseline: Timing, variant: Timing) -> Ratio:
    """Baseline p50 / variant p50, with an interval from resampling the rounds that both took part in.

    Samples of one round are not independent of each other, rounds nearly are: whole rounds are drawn, the same for
    both, since they share what disturbed them (a paired block bootstrap). The interval does not cover what is fixed
    when a session is made, such as where its memory lies: a file beside itself differs by up to 0.3 %.

    Raises:
        MeasurementError: one of them has no numbers, or they were not timed in the same rounds.
    """
    ours, theirs = _by_round(variant), _by_round(baseline)
    if len(ours) != len(theirs):
        raise MeasurementError(
            f"a speed-up compares timings of the same rounds: found {len(theirs)} of the baseline and {len(ours)} "
            "of the variant. Measure them in one benchmark."
        )
    value = float(np.median(theirs) / np.median(ours))
    draws = np.random.default_rng(0).integers(len(ours), size=(_RESAMPLES, len(ours)))
    ratios = [np.median(theirs[draw]) / np.median(ours[draw]) for draw in draws]
    low, high = np.quantile(ratios, ((1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2))
    return Ratio(value, float(low), float(high))


def _by_round(timing: Timing) -> NDArray[np.float64]:
    if timing.status != OK or timing.rounds == 0:
        raise MeasurementError(f"no speed-up without latencies: {timing.provider} {timing.status}.")
    return np.array(timing.samples_ms).reshape(timing.rounds, -1)


@dataclass(frozen=True)
class _Warm:
    first_ns: float
    median_ns: float
    settled: bool


def _warm_up(call: Call, seconds: float, clock: Clock) -> _Warm:
    started = clock()
    first = float(_time(call, 1, clock)[0])
    before, median = _warm_block(call, clock), _warm_block(call, clock)
    while abs(median - before) > _SETTLED * median and clock() - started < seconds * 1e9:
        before, median = median, _warm_block(call, clock)
    return _Warm(first, median, settled=abs(median - before) <= _SETTLED * median)


def _warm_block(call: Call, clock: Clock) -> float:
    """Run for a moment; return the median."""
    samples: list[float] = []
    while len(samples) < _WARM_CALLS or (sum(samples) < _WARM_NS and len(samples) < _MAX_CALLS):
        samples.append(float(_time(call, 1, clock)[0]))
    return float(np.median(samples))


def _block_length(median_ns: float, seconds: float, min_samples: int, rounds: int) -> int:
    wanted = seconds * 1e9 / max(median_ns, 1.0)
    return max(ceil(min_samples / rounds), min(_MAX_CALLS, int(wanted / rounds)), 1)


def _time(call: Call, count: int, clock: Clock) -> NDArray[np.float64]:
    """Nanoseconds of ``count`` calls, one by one."""
    ticks = np.empty((count, 2), np.int64)  # of a clock that may count for years: too long for a float
    for i in range(count):
        start = clock()
        call()
        ticks[i] = start, clock()
    return (ticks[:, 1] - ticks[:, 0]).astype(np.float64)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
