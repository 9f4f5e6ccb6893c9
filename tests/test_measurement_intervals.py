"""Intervals of shares, drops and means: against scipy, against published values, and by how often they hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from compress.measurement.intervals import (
    Interval,
    bootstrap_interval,
    drop_interval,
    expanded_interval,
    mean_drop_interval,
    mean_interval,
    normal_reach,
    share_interval,
)

Z = 1.959964
Ends = Callable[[int, int, int], tuple[float, float]]

counts = st.integers(1, 400).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.just(n)).flatmap(
        lambda pair: st.tuples(st.just(pair[0]), st.integers(0, pair[1] - pair[0]), st.just(pair[1]))
    )
)  # lost, won, n


@given(st.integers(0, 300), st.integers(1, 300))
def test_a_share_has_the_wilson_interval_of_its_formula(count: int, n: int) -> None:
    assume(count <= n)
    low, high = share_interval(count, n)
    p = count / n
    center = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n * n))
    assert (low, high) == pytest.approx((center - half, center + half), abs=1e-6)
    assert 0 <= low <= p <= high <= 1


@given(counts)
def test_the_drop_lies_within_its_interval_and_swapping_the_models_turns_it_round(given: tuple[int, int, int]) -> None:
    lost, won, n = given
    low, high = drop_interval(lost, won, n)
    assert -1 <= low <= (lost - won) / n <= high <= 1
    assert drop_interval(won, lost, n) == pytest.approx((-high, -low), abs=1e-9)


@given(counts)
def test_more_confidence_and_fewer_samples_make_the_interval_wider(given: tuple[int, int, int]) -> None:
    lost, won, n = given
    low, high = drop_interval(lost, won, n)
    surer = drop_interval(lost, won, n, 0.99)
    assert surer[0] <= low
    assert surer[1] >= high
    more = drop_interval(3 * lost, 3 * won, 3 * n)
    assert more[1] - more[0] <= high - low + 1e-9


@given(counts)
def test_the_interval_ends_where_the_score_test_rejects(given: tuple[int, int, int]) -> None:
    """With the share of won samples that is most likely found by search, and not by the formula."""
    from scipy.optimize import minimize_scalar

    lost, won, n = given
    low, high = drop_interval(lost, won, n)
    for end in (low, high):
        if min(abs(abs(end) - edge) for edge in (0, 1)) < 1e-6:
            continue

        def cost(share: float, end: float = end) -> float:
            cells = (share + end, share, 1 - 2 * share - end)
            seen = (lost, won, n - lost - won)
            return -sum(k * math.log(max(p, 1e-300)) for k, p in zip(seen, cells, strict=True) if k)

        edges = (max(0.0, -end) + 1e-12, (1 - end) / 2 - 1e-12)
        share = minimize_scalar(cost, bounds=edges, method="bounded", options={"xatol": 1e-12}).x
        deviation = math.sqrt(n * (2 * share + end * (1 - end)))
        assert abs(lost - won - n * end) / deviation == pytest.approx(Z, rel=2e-3)


def test_a_drop_has_the_interval_of_the_textbook() -> None:
    # Fagerland, Lydersen and Laake 2017, chapter 8, complete response before and after consolidation therapy: the
    # Tango interval as R's contingencytables gives it.
    assert drop_interval(6, 16, 161) == pytest.approx((-0.1240, -0.0054), abs=5e-5)
    # Where no sample tells the two apart both ends are z² / (n + z²).
    assert drop_interval(0, 0, 100)[1] == pytest.approx(Z**2 / (100 + Z**2), rel=1e-4)


def _agresti_min(lost: int, won: int, n: int) -> tuple[float, float]:
    center = (lost - won) / (n + 2)
    half = Z * math.sqrt(lost + won + 1 - (n + 2) * center**2) / (n + 2)
    return center - half, center + half


def _coverage(ends: Ends, n: int, losing: float, winning: float) -> tuple[float, float]:
    """How often the interval holds the drop of all samples there are, and how often its upper end does: exactly."""
    pairs = [(lost, won) for lost in range(41) for won in range(41)]  # what lies beyond has a weight below 1e-6
    weights = stats.multinomial.pmf(
        [(lost, won, n - lost - won) for lost, won in pairs], n, [losing, winning, 1 - losing - winning]
    )
    drop, both, upper = losing - winning, 0.0, 0.0
    for weight, (lost, won) in zip(weights, pairs, strict=True):
        if weight > 1e-9:
            low, high = ends(lost, won, n)
            upper += weight * (high >= drop - 1e-12)
            both += weight * (low <= drop + 1e-12 and high >= drop - 1e-12)
    return both, upper


SMALL = [(50, 0.02, 0.0), (50, 0.04, 0.02), (200, 0.01, 0.0), (200, 0.02, 0.02), (200, 0.02, 0.005), (300, 0.02, 0.01)]


def test_the_upper_end_holds_on_small_splits_where_half_a_sample_in_each_cell_falls_short() -> None:
    ours = [_coverage(drop_interval, *case) for case in SMALL]
    theirs = [_coverage(_agresti_min, *case) for case in SMALL]
    assert min(upper for _, upper in ours) > 0.972  # 0.975 is meant
    assert min(both for both, _ in ours) > 0.93
    assert np.mean([both for both, _ in ours]) > 0.95
    assert min(upper for _, upper in theirs) < 0.90


@settings(max_examples=15, deadline=None)
@given(st.integers(10, 80), st.integers(0, 99))
def test_the_bootstrap_of_a_mean_is_that_of_scipy(n: int, seed: int) -> None:
    sample = np.random.default_rng(seed).gamma(2, size=n)
    low, high = mean_interval(sample, seed) or (np.nan, np.nan)
    level = 1 - 2 * stats.norm.cdf(-normal_reach(len(sample)))  # of scipy's own percentiles, which are not moved out
    theirs = stats.bootstrap(
        (sample,), np.mean, n_resamples=2000, method="percentile", confidence_level=level
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.15 * width)
    assert mean_interval(sample, seed) == (low, high)


def test_a_bootstrap_in_chunks_draws_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.measurement.intervals._CHUNK", 1000)
    low, high = mean_interval(np.arange(400.0), 0) or (np.nan, np.nan)
    half = Z * np.arange(400.0).std() / 20
    assert (low, high) == pytest.approx((199.5 - half, 199.5 + half), abs=0.1 * half)


def test_values_of_0_and_1_are_answers_right_or_wrong() -> None:
    right = np.repeat([1.0, 0.0], [90, 10])
    assert mean_interval(right, 0) == share_interval(90, 100)
    assert mean_drop_interval(right, np.ones(100), 0) == drop_interval(0, 10, 100)


def test_a_paired_interval_is_narrower_than_the_spread_of_the_samples() -> None:
    values = np.random.default_rng(0).normal(10, 5, 500)
    low, high = mean_drop_interval(values, values - 0.1 + 0.01 * np.sin(np.arange(500)), 0) or (np.nan, np.nan)
    assert 0.098 < low < high < 0.102


def test_of_many_samples_an_interval_leaves_half_of_the_rest_on_each_side() -> None:
    assert bootstrap_interval(np.arange(1001.0), 10**6) == pytest.approx((25.0, 975.0), abs=0.1)
    assert bootstrap_interval(np.arange(1001.0), 10**6, 0.9) == pytest.approx((50.0, 950.0), abs=0.1)


def _means_held(ends: Callable[[NDArray[np.float64], int], Interval | None], n: int, trials: int = 400) -> float:
    """How often the interval of the mean of n normal values holds it."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(trials):
        values = generator.normal(size=n)
        low, high = ends(values[generator.integers(0, n, (400, n))].mean(axis=1), n) or (np.nan, np.nan)
        held += low <= 0 <= high
    return held / trials


@pytest.mark.parametrize("n", [2, 3, 5, 9, 10, 20])
def test_a_bootstrap_of_few_samples_holds_the_mean_as_often_as_it_says(n: int) -> None:
    assert _means_held(bootstrap_interval, n) >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 400)


def test_percentiles_alone_would_not() -> None:
    assert _means_held(lambda found, n: (np.quantile(found, 0.025), np.quantile(found, 0.975)), 5) < 0.87
    assert _means_held(expanded_interval, 3) < 0.80


def test_one_sample_has_no_interval() -> None:
    assert mean_interval(np.array([0.7]), 0) is None
    assert mean_drop_interval(np.array([0.7]), np.array([0.2]), 0) is None
