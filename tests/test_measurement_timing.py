"""Timing: on a clock that the tests turn themselves, but for one comparison of a real call with itself."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest

from compress.errors import MeasurementError
from compress.measurement.timing import Samples, Timing, interleave, speedup

MS = 1_000_000  # nanoseconds


class Machine:
    """A clock, and calls that take as long as they are told; it remembers who was called."""

    def __init__(self) -> None:
        self.now = 10**18  # a clock that has run for 30 years: floats would lose its last digits
        self.calls: list[str] = []

    def clock(self) -> int:
        return self.now

    def call(self, name: str, *, ms: float, first_ms: float | None = None) -> Callable[[], None]:
        def run() -> None:
            slow = first_ms is not None and name not in self.calls
            self.now += round((first_ms if slow and first_ms is not None else ms) * MS)
            self.calls.append(name)

        return run


def measure(machine: Machine, *calls: Callable[[], object], seconds: float = 0.1) -> tuple[Samples, ...]:
    return interleave(calls, seconds=seconds, min_samples=20, rounds=10, seed=0, clock=machine.clock)


def timing(samples: Samples) -> Timing:
    return samples.timing("CPUExecutionProvider", batch=1, threads=1)


def test_the_percentiles_are_those_of_the_call_and_the_first_call_stands_apart() -> None:
    machine = Machine()
    (samples,) = measure(machine, machine.call("a", ms=2.0, first_ms=50.0))
    found = timing(samples)
    assert found.first_call_ms == 50.0
    assert (found.p50_ms, found.p90_ms, found.p99_ms, found.mean_ms) == (2.0, 2.0, 2.0, 2.0)
    assert found.status == "ok"
    assert found.settled


def test_a_call_that_is_three_times_slower_is_found_to_be() -> None:
    machine = Machine()
    base, slow = measure(machine, machine.call("base", ms=1.0), machine.call("slow", ms=3.0))
    ratio = speedup(timing(base), timing(slow))
    assert ratio.value == pytest.approx(1 / 3)
    assert ratio.low == pytest.approx(ratio.high)


def test_a_drift_of_the_machine_hits_every_variant_alike() -> None:
    machine = Machine()

    def drifting(ms: float) -> Callable[[], None]:
        def run() -> None:
            machine.now += round(ms * MS * (1 + (machine.now - 10**18) / 1e9))  # twice as slow after each second

        return run

    base, fast = measure(machine, drifting(2.0), drifting(1.0), seconds=0.5)
    assert timing(base).p90_ms > 1.5 * np.min(base.samples_ms)  # type: ignore[operator]  # the drift is there
    assert speedup(timing(base), timing(fast)).value == pytest.approx(2.0, rel=0.1)


def test_every_round_has_one_block_of_every_call_in_changing_order() -> None:
    machine = Machine()
    measure(machine, machine.call("a", ms=1.0), machine.call("b", ms=1.0), seconds=0.1)
    blocks = 1 + 10  # one call after the switch, then 0.1 s / 1 ms / 10 rounds
    timed = machine.calls[-10 * 2 * blocks :]
    turns = [timed[i : i + blocks] for i in range(0, len(timed), blocks)]
    assert all(len(set(turn)) == 1 for turn in turns)
    orders = [(turns[i][0], turns[i + 1][0]) for i in range(0, len(turns), 2)]
    assert set(orders) == {("a", "b"), ("b", "a")}


def test_a_slow_call_still_gets_the_least_number_of_samples() -> None:
    machine = Machine()
    (samples,) = measure(machine, machine.call("slow", ms=500.0))
    assert timing(samples).samples == 20


def test_a_call_that_never_settles_is_said_not_to_have() -> None:
    machine = Machine()

    def growing() -> None:
        machine.now += (machine.now - 10**18) // 4 + MS

    state = interleave([growing], seconds=0.01, min_samples=1, rounds=2, seed=0, clock=machine.clock)
    assert not state[0].settled


def test_the_garbage_collector_is_off_while_timing_and_on_again_after_an_error() -> None:
    machine, seen = Machine(), []

    def look() -> None:
        machine.now += MS
        seen.append(gc.isenabled())
        if len(seen) > 5:
            raise RuntimeError("enough")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="enough"):
        measure(machine, look)
    assert not any(seen)
    assert gc.isenabled()


def test_a_timing_survives_the_way_through_plain_values() -> None:
    machine = Machine()
    found = timing(measure(machine, machine.call("a", ms=0.3333))[0])
    assert Timing.from_dict(found.to_dict(samples=True)) == found
    assert "samples_ms" not in found.to_dict()


def test_a_speedup_without_latencies_is_refused_with_the_reason() -> None:
    machine = Machine()
    found = timing(measure(machine, machine.call("a", ms=1.0))[0])
    absent = Timing("CUDAExecutionProvider", 1, 1, status="not available: no GPU")
    with pytest.raises(MeasurementError, match="not available: no GPU"):
        speedup(found, absent)


def test_a_speedup_of_two_benchmarks_is_refused() -> None:
    machine = Machine()
    call = machine.call("a", ms=1.0)
    ten = timing(measure(machine, call)[0])
    five = timing(interleave([call], seconds=0.1, min_samples=20, rounds=5, seed=0, clock=machine.clock)[0])
    with pytest.raises(MeasurementError, match="found 10 of the baseline and 5"):
        speedup(ten, five)


def test_the_interval_of_a_noisy_speedup_holds_the_true_one() -> None:
    generator = np.random.default_rng(0)
    disturbed = 1 + generator.random((25, 1))  # whole rounds are slow, for both
    base = Samples(1.0, True, 2.0 * disturbed * (1 + 0.1 * generator.random((25, 40))))
    fast = Samples(1.0, True, 1.0 * disturbed * (1 + 0.1 * generator.random((25, 80))))
    ratio = speedup(timing(base), timing(fast))
    assert ratio.low <= 2.0 <= ratio.high
    assert ratio.low < ratio.value < ratio.high
    assert ratio.high - ratio.low < 0.5  # unpaired, the disturbed rounds alone would make it wider


def test_the_same_work_twice_has_a_speedup_near_one() -> None:
    x = np.random.default_rng(0).standard_normal((64, 64))

    def work() -> object:
        return x @ x

    base, same = interleave([work, work], seconds=0.2, min_samples=50, rounds=25, seed=0)
    # Loose: the test machine has neighbours. A comparison in sequence strays further.
    assert 0.7 < speedup(timing(base), timing(same)).value < 1.4
