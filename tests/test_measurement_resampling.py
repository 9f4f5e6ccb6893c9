"""The bootstrap of launches and rounds: against numpy, scipy, and truths that were drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from compress.measurement.resampling import draw, interval, percentiles

sizes = st.integers(1, 5)


@given(sizes, sizes, st.integers(0, 100))
def test_every_resample_has_as_many_rounds_as_there_are(launches: int, rounds: int, seed: int) -> None:
    counts = draw(launches, rounds, seed, resamples=20)
    assert counts.shape == (20, launches * rounds)
    assert (counts.sum(axis=1) == launches * rounds).all()
    assert (counts.reshape(20, launches, rounds).sum(axis=2) % rounds == 0).all()  # whole launches


@given(sizes, sizes, sizes, st.floats(0, 100), st.integers(0, 100))
def test_a_percentile_of_a_resample_is_numpys_of_its_samples(
    launches: int, rounds: int, calls: int, percent: float, seed: int
) -> None:
    samples = np.random.default_rng(seed).integers(0, 9, (launches * rounds, calls)) / 7  # with ties
    counts = draw(launches, rounds, seed, resamples=10)
    expected = [np.percentile(np.repeat(samples, row, axis=0), percent) for row in counts]
    assert percentiles(samples, percent, counts) == pytest.approx(expected, rel=1e-12)


def test_with_one_sample_a_round_the_resamples_are_scipys_bootstrap() -> None:
    samples = np.random.default_rng(0).gamma(4, size=(200, 1))
    found = percentiles(samples, 50, draw(1, 200, resamples=4000))
    theirs = stats.bootstrap((samples[:, 0],), np.median, n_resamples=4000, method="percentile", rng=1)
    low, high = np.quantile(found, (0.025, 0.975))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.1 * width)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.1 * width)
    assert found.std() == pytest.approx(theirs.standard_error, rel=0.1)


def test_of_many_launches_the_interval_is_the_percentile_interval_and_of_few_a_wider_one() -> None:
    found = np.random.default_rng(0).normal(size=20_000)
    assert interval(found, 10_000) == pytest.approx((-1.96, 1.96), abs=0.05)
    low, high = interval(found, 5)  # t of 4 degrees of freedom, 2.776, times the root of 5 / 4
    assert (low, high) == pytest.approx((-3.10, 3.10), abs=0.3)


def covered(launches: int, launch_spread: float, runs: int = 200) -> float:
    """How often the interval of the ratio of two equal variants holds 1, where each launch has a speed of its own."""
    generator, hits = np.random.default_rng(0), 0
    for run in range(runs):
        shared = generator.normal(0, 0.05, (launches, 5, 1))

        def samples(shared: NDArray[np.float64] = shared) -> NDArray[np.float64]:
            own = generator.normal(0, launch_spread, (launches, 1, 1)) + generator.normal(0, 0.02, (launches, 5, 1))
            noise = np.abs(generator.normal(0, 0.05, (launches, 5, 10)))
            return np.asarray(np.exp(shared + own + noise)).reshape(launches * 5, 10)

        counts = draw(launches, 5, seed=run, resamples=500)
        ratios = percentiles(samples(), 50, counts) / percentiles(samples(), 50, counts)
        low, high = interval(ratios, launches)
        hits += low <= 1 <= high
    return hits / runs


@pytest.mark.parametrize("launch_spread", [0.0, 0.02, 0.05])
def test_intervals_hold_the_truth_as_often_as_they_say_where_launches_differ(launch_spread: float) -> None:
    # 0.95 less two standard errors of 200 runs; it is more where launches do not differ, which they are drawn for
    assert covered(5, launch_spread) >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / 200)


@pytest.mark.parametrize("launches", [2, 3, 4])
def test_intervals_of_few_launches_hold_it_too(launches: int) -> None:
    assert covered(launches, 0.05) >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / 200)


def test_rounds_alone_would_not_hold_it() -> None:
    generator, hits = np.random.default_rng(0), 0
    for run in range(100):
        own = generator.normal(0, 0.05, (2, 5, 1, 1))
        samples = np.exp(own + generator.normal(0, 0.02, (2, 5, 5, 10))).reshape(2, 25, 10)
        counts = draw(1, 25, seed=run, resamples=300)
        ratios = percentiles(samples[0], 50, counts) / percentiles(samples[1], 50, counts)
        low, high = interval(ratios, 25)
        hits += low <= 1 <= high
    assert hits < 70
