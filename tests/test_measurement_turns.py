"""Calls in turns: on a clock that the tests turn themselves, but for one comparison of a real call with itself."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest

from compress.measurement.turns import Samples, awake, interleave

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


def test_the_first_call_stands_apart() -> None:
    machine = Machine()
    (samples,) = measure(machine, machine.call("a", ms=2.0, first_ms=50.0))
    assert samples.first_call_ms == 50.0
    assert samples.p50_ms == 2.0
    assert samples.samples_ms.max() == 2.0
    assert samples.settled


def test_a_call_that_is_three_times_slower_is_found_to_be() -> None:
    machine = Machine()
    base, slow = measure(machine, machine.call("base", ms=1.0), machine.call("slow", ms=3.0))
    assert slow.p50_ms / base.p50_ms == pytest.approx(3)


def test_a_drift_of_the_machine_hits_every_variant_alike() -> None:
    machine = Machine()

    def drifting(ms: float) -> Callable[[], None]:
        def run() -> None:
            machine.now += round(ms * MS * (1 + (machine.now - 10**18) / 1e9))  # twice as slow after each second

        return run

    base, fast = measure(machine, drifting(2.0), drifting(1.0), seconds=0.5)
    assert np.percentile(base.samples_ms, 90) > 1.5 * np.min(base.samples_ms)  # the drift is there
    assert base.p50_ms / fast.p50_ms == pytest.approx(2.0, rel=0.1)


def test_every_round_has_one_block_of_every_call_in_changing_order() -> None:
    machine = Machine()
    measure(machine, machine.call("a", ms=1.0), machine.call("b", ms=1.0), seconds=0.1)
    blocks = 6 + 10  # calls until 5 ms have passed since the switch; then 0.1 s / 1 ms / 10 rounds
    timed = machine.calls[-10 * 2 * blocks :]
    turns = [timed[i : i + blocks] for i in range(0, len(timed), blocks)]
    assert all(len(set(turn)) == 1 for turn in turns)
    orders = [(turns[i][0], turns[i + 1][0]) for i in range(0, len(turns), 2)]
    assert set(orders) == {("a", "b"), ("b", "a")}


def test_a_slow_call_still_gets_the_least_number_of_samples() -> None:
    machine = Machine()
    (samples,) = measure(machine, machine.call("slow", ms=500.0))
    assert samples.samples_ms.size == 20


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


def test_a_slow_call_is_woken_once_and_a_quick_one_twenty_times() -> None:
    machine = Machine()
    awake(machine.call("slow", ms=6.0), machine.clock)
    awake(machine.call("quick", ms=0.01), machine.clock)
    assert machine.calls == ["slow"] + ["quick"] * 20


def test_the_same_work_twice_takes_about_the_same_time() -> None:
    x = np.random.default_rng(0).standard_normal((64, 64))

    def work() -> object:
        return x @ x

    base, same = interleave([work, work], seconds=0.2, min_samples=50, rounds=25, seed=0)
    # Loose: the test machine has neighbours. A comparison in sequence strays further.
    assert 0.7 < base.p50_ms / same.p50_ms < 1.4


def test_what_else_runs_on_the_machine_hardly_moves_the_undisturbed_time() -> None:
    random = np.random.default_rng(0)
    quiet = 2.0 + 0.02 * random.random((10, 100))
    busy = np.where(random.random((10, 100)) < 0.6, quiet * 1.5, quiet)
    samples = [Samples(1.0, True, found) for found in (quiet, busy)]
    assert samples[1].p50_ms > 1.4 * samples[0].p50_ms
    assert samples[1].undisturbed_ms == pytest.approx(samples[0].undisturbed_ms, rel=0.01)
