"""Calls timed one by one: warm-up, blocks, and several calls in turns within this process.

Machines drift: clocks change, neighbours come and go. What is timed one after the other is compared across that drift;
here it takes turns in many short rounds, in a fresh random order each, so that the drift hits all alike.

Processes that are timed import this module, so that it imports numpy alone.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]  # one inference
Clock = Callable[[], int]  # nanoseconds, monotonic

MS = 1e6  # nanoseconds

_MAX_CALLS = 200  # of one variant in one round: 5,000 samples in 25 rounds tell p99 well enough
_WARM_NS = 20e6  # a warm-up block lasts this long, and
_WARM_CALLS = 3  # has at least this many calls
_AWAKE_NS = 5e6  # before a block there is one call at least, and more for this long, up to
_AWAKE_CALLS = 20
_FASTEST = 0.25  # of all times: what `undisturbed` goes by
_SETTLED = 0.05  # two warm-up blocks whose medians differ by less than this share: settled


def undisturbed(times: NDArray[np.float64]) -> float:
    """Mean of the fastest quarter: what else runs on the machine can only add time.

    Measured beside busy neighbours on two cores: of twelve repeats of one layer medians varied by 38 % and this by
    2.4 %; medians of equal nets of 30 us lay between 28 and 50 us.
    """
    fastest = np.sort(times, axis=None)
    return float(fastest[: ceil(_FASTEST * len(fastest))].mean())


@dataclass(frozen=True)
class Samples:
    """The raw result of `interleave` for one call."""

    first_call_ms: float
    settled: bool
    samples_ms: NDArray[np.float64]  # (rounds, calls)

    @property
    def p50_ms(self) -> float:
        return float(np.median(self.samples_ms))

    @property
    def undisturbed_ms(self) -> float:
        """For searches, which need the order of their candidates right, not what a user will see."""
        return undisturbed(self.samples_ms)


@dataclass(frozen=True)
class Warm:
    """How a call's warm-up ended."""

    median_ns: float  # of its last block
    settled: bool  # False: the median still moved


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
    """Time several calls in turns, all in this process: for searches, which compare many candidates quickly.

    Each is first warmed up until its median settles (for at most ``seconds``). Then come the rounds: in each, every
    call has one block of consecutive runs, in a random order of the calls. Blocks are as long as makes a call's blocks
    fill ``seconds`` together, within ``min_samples`` and 200 runs a block. The garbage collector is off meanwhile.

    Where a session's memory lies is fixed when it is made, and moves its latency: what is reported is timed by
    `compress.measurement.latency`, which starts processes of their own, several times.

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
    with no_garbage_collection():
        firsts = [float(time_calls(call, 1, clock)[0]) for call in calls]
        warm = [warm_up(call, seconds, clock) for call in calls]
        blocks = [block_length(state.median_ns, seconds, min_samples, rounds) for state in warm]
        samples: list[list[NDArray[np.float64]]] = [[] for _ in calls]
        for done in range(rounds):
            for number in generator.permutation(len(calls)):
                awake(calls[number], clock)
                samples[number].append(time_calls(calls[number], blocks[number], clock))
            after_round(done + 1)
    return tuple(
        Samples(first / MS, state.settled, np.stack(taken) / MS)
        for first, state, taken in zip(firsts, warm, samples, strict=True)
    )


def warm_up(call: Call, seconds: float, clock: Clock) -> Warm:
    """Run until the medians of two blocks in a row are within 5 %, for about ``seconds`` at most."""
    started = clock()
    before, median = _warm_block(call, clock), _warm_block(call, clock)
    while abs(median - before) > _SETTLED * median and clock() - started < seconds * 1e9:
        before, median = median, _warm_block(call, clock)
    return Warm(median, settled=abs(median - before) <= _SETTLED * median)


def _warm_block(call: Call, clock: Clock) -> float:
    """Run for a moment; return the median."""
    samples: list[float] = []
    while len(samples) < _WARM_CALLS or (sum(samples) < _WARM_NS and len(samples) < _MAX_CALLS):
        samples.append(float(time_calls(call, 1, clock)[0]))
    return float(np.median(samples))


def awake(call: Call, clock: Clock) -> None:
    """Call a little before samples are taken: others have used the core and its caches since.

    Measured where processes take turns: of a CNN of 0.26 ms the first call took 8 % more than the rest, the second 4 %,
    the third 1 %; of a MobileNetV2 of 0.3 ms, whose weights do not fit a core's own cache, 35 %, 19 %, 8 %, and nothing
    after 3 ms.
    """
    started = clock()
    for done in range(_AWAKE_CALLS):
        if done and clock() - started > _AWAKE_NS:
            return
        call()


def block_length(median_ns: float, seconds: float, min_samples: int, rounds: int) -> int:
    """Calls in one of ``rounds`` blocks that together fill ``seconds``, and hold ``min_samples`` at least."""
    wanted = seconds * 1e9 / max(median_ns, 1.0)
    return max(ceil(min_samples / rounds), min(_MAX_CALLS, int(wanted / rounds)), 1)


def time_calls(call: Call, count: int, clock: Clock) -> NDArray[np.float64]:
    """Nanoseconds of ``count`` calls, one by one."""
    ticks = np.empty((count, 2), np.int64)  # of a clock that may count for years: too long for a float
    for i in range(count):
        start = clock()
        call()
        ticks[i] = start, clock()
    return (ticks[:, 1] - ticks[:, 0]).astype(np.float64)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's collector stays off meanwhile: its pauses are not the model's."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
