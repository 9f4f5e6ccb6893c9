"""What follows from samples: percentiles, intervals, and the ratio of two variants."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.errors import MeasurementError
from compress.measurement.timing import FLOOR, Timing, speedup, summary
from compress.reporting import choice

Samples = NDArray[np.float64]


def timing(samples_ms: Any, batch: int = 1, **found: Any) -> Timing:
    samples = np.asarray(samples_ms, np.float64)
    return summary(samples, provider="CPUExecutionProvider", batch=batch, threads=1, **found)


def noisy(p50_ms: float, seed: int, launches: int = 5, rounds: int = 5, disturbed: Samples | None = None) -> Timing:
    """Samples around a median; rounds and launches can be disturbed from outside."""
    generator = np.random.default_rng(seed)
    samples = p50_ms * (1 + 0.02 * generator.standard_normal((launches, rounds, 20)))
    return timing(samples if disturbed is None else samples * disturbed)


def test_the_figures_are_those_of_all_samples_together() -> None:
    samples = np.random.default_rng(0).random((2, 3, 40))
    found = timing(samples, batch=8)
    assert (found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms) == pytest.approx(
        np.percentile(samples, (50, 90, 95, 99)), abs=1e-6
    )
    assert found.throughput == pytest.approx(8000 / samples.mean(), rel=1e-5)
    assert (found.samples, found.rounds, found.launches, found.status) == (240, 6, 2, "ok")


def test_there_are_101_quantiles_from_the_least_sample_to_the_most() -> None:
    samples = np.random.default_rng(0).random((2, 3, 40))
    quantiles = timing(samples).quantiles_ms
    assert len(quantiles) == 101
    assert (quantiles[0], quantiles[50], quantiles[-1]) == pytest.approx(
        (samples.min(), np.median(samples), samples.max()), abs=1e-6
    )
    assert list(quantiles) == sorted(quantiles)


def test_the_interval_of_a_percentile_holds_it_and_is_wider_where_launches_differ() -> None:
    alike = noisy(1.0, seed=0)
    apart = noisy(1.0, seed=0, disturbed=np.array([1.0, 1.1, 0.9, 1.05, 0.95])[:, None, None])
    for found in (alike, apart):
        for interval, value in ((found.p50_interval, found.p50_ms), (found.p95_interval, found.p95_ms)):
            assert interval is not None
            assert value is not None
            assert interval["low"] <= value <= interval["high"]
    assert alike.p50_interval is not None
    assert apart.p50_interval is not None
    width = [interval["high"] - interval["low"] for interval in (alike.p50_interval, apart.p50_interval)]
    assert width[1] > 5 * width[0]


def test_a_timing_survives_the_way_through_json() -> None:
    found = timing(np.full((1, 2, 3), 0.3333), load_ms=5.0, peak_bytes=1000, placement={"nodes": {"CPU": 3}})
    assert Timing.from_dict(json.loads(json.dumps(found.to_dict(samples=True), allow_nan=False))) == found
    assert "samples_ms" not in found.to_dict()


def test_a_timing_that_an_older_run_wrote_is_read_and_compared() -> None:
    stored = {
        "provider": "CPUExecutionProvider", "batch": 1, "threads": 1, "p50_ms": 1.0, "p90_ms": 1.0, "p99_ms": 1.0,
        "mean_ms": 1.0, "first_call_ms": 2.0, "samples": 6, "status": "ok", "settled": True, "rounds": 3,
        "samples_ms": [1.0] * 6,
    }  # fmt: skip
    found = Timing.from_dict(stored)
    assert (found.launches, found.p95_ms) == (0, None)
    assert speedup(found, found).value == 1.0


def test_a_speedup_is_the_median_of_the_rounds_ratios_and_its_interval_holds_the_true_one() -> None:
    base, fast = noisy(2.0, seed=0), noisy(1.0, seed=1)
    ratio = speedup(base, fast)
    medians = [np.median(np.array(t.samples_ms).reshape(25, 20), axis=1) for t in (base, fast)]
    assert ratio.value == pytest.approx(float(np.median(medians[0] / medians[1])))
    assert ratio.low <= 2.0 <= ratio.high
    assert ratio.low < ratio.value < ratio.high
    assert ratio.significant


def test_rounds_that_are_slow_for_both_do_not_widen_the_interval() -> None:
    disturbed = 1 + np.random.default_rng(0).random((5, 5, 1))
    base, fast = noisy(2.0, seed=0, disturbed=disturbed), noisy(1.0, seed=1, disturbed=disturbed)
    ratio = speedup(base, fast)
    assert ratio.low <= 2.0 <= ratio.high
    assert ratio.high - ratio.low < 0.4
    unrelated = speedup(base, noisy(1.0, seed=1, disturbed=disturbed[::-1, ::-1]))
    assert unrelated.high - unrelated.low > 2 * (ratio.high - ratio.low)


def test_a_difference_below_the_floor_is_not_significant_however_sure_it_is() -> None:
    base = timing(np.full((5, 5, 20), 1.0))
    within, beyond = timing(np.full((5, 5, 20), 1 + FLOOR - 0.002)), timing(np.full((5, 5, 20), 1 + FLOOR + 0.002))
    assert [speedup(base, slow).significant for slow in (within, beyond)] == [False, True]
    assert [speedup(slow, base).significant for slow in (within, beyond)] == [False, True]


def test_a_difference_of_one_launch_of_five_is_not_significant() -> None:
    disturbed = np.array([1.0, 1.0, 1.3, 1.0, 1.0])[:, None, None]
    ratio = speedup(noisy(1.0, seed=0, disturbed=disturbed), noisy(1.0, seed=1))
    assert not ratio.significant
    assert ratio.high > 1.05


def test_what_the_choice_calls_equal_is_what_is_not_significant() -> None:
    assert choice.EQUAL == FLOOR


def test_a_speedup_without_latencies_is_refused_with_the_reason() -> None:
    absent = Timing("CUDAExecutionProvider", 1, 1, status="not available: no GPU")
    with pytest.raises(MeasurementError, match="not available: no GPU"):
        speedup(noisy(1.0, seed=0), absent)


def test_a_speedup_of_two_benchmarks_is_refused() -> None:
    with pytest.raises(MeasurementError, match="found 25 of the baseline and 20"):
        speedup(noisy(1.0, seed=0), noisy(1.0, seed=0, rounds=4))
