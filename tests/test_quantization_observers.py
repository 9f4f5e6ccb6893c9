"""compress.quantization.observers: ranges from a stream, against all values held at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxruntime.quantization.calibrate import HistogramCollector
from scipy.special import rel_entr

from compress.quantization.observers import METHODS, Method, Observer

BATCHES = st.lists(
    hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=6
)


def _observed(batches: list[np.ndarray], bins: int = 256, passes: int = 1) -> Observer:
    observer = Observer.new(bins)
    for batch in batches:
        assert observer.see(batch) if passes == 2 else observer.update(batch)
        observer.close_batch()
    if passes == 2:
        observer.fix_bins()
        for batch in batches:
            observer.count(batch)
    return observer


def _normal(count: int = 40, size: int = 500, outlier: float = 30.0) -> list[np.ndarray]:
    """Batches of normal values and one outlier."""
    batches = [np.random.default_rng(i).standard_normal((size, 1)).astype(np.float32) for i in range(count)]
    batches[count // 2][0] = outlier
    return batches


def _error(values: np.ndarray, low: float, high: float, symmetric: bool = False) -> float:
    """Mean squared error of values rounded to the uint8 grid of a range, or to the int8 grid of a symmetric one."""
    step = high / 127 if symmetric else (high - low) / 255
    zero = 0 if symmetric else round(-low / step)
    limits = (-127, 127) if symmetric else (0, 255)
    levels = np.clip(np.rint(values.astype(np.float64) / step) + zero, *limits) - zero
    return float(np.square(values - levels * step).mean())


@given(batches=BATCHES, method=st.sampled_from(METHODS), symmetric=st.booleans(), passes=st.sampled_from((1, 2)))
@settings(deadline=None, max_examples=80)
def test_zero_is_in_every_range_and_no_range_goes_beyond_the_values(
    batches: list[np.ndarray], method: Method, symmetric: bool, passes: int
) -> None:
    low, high = _observed(batches, passes=passes).range_of(method, symmetric=symmetric)
    values = np.concatenate([*batches, np.zeros(1, np.float32)])
    assert low <= 0 <= high
    if symmetric:
        assert low == -high
        assert high <= np.abs(values).max()
    else:
        assert values.min() <= low
        assert high <= values.max()


@given(batches=BATCHES, seed=st.integers(0, 100))
@settings(deadline=None, max_examples=80)
def test_the_order_of_the_batches_changes_neither_the_extremes_nor_the_histogram(
    batches: list[np.ndarray], seed: int
) -> None:
    shuffled = [batches[i] for i in np.random.default_rng(seed).permutation(len(batches))]
    one, other = _observed(batches), _observed(shuffled)
    assert (one.low, one.high) == (other.low, other.high)
    assert (one.histogram.width, one.histogram.start) == (other.histogram.width, other.histogram.start)
    assert (one.histogram.counts == other.histogram.counts).all()


@given(batches=BATCHES, passes=st.sampled_from((1, 2)))
@settings(deadline=None, max_examples=80)
def test_the_histogram_is_that_of_all_values_at_once(batches: list[np.ndarray], passes: int) -> None:
    histogram = _observed(batches, passes=passes).histogram
    values = np.concatenate(batches).astype(np.float64)
    expected = np.zeros_like(histogram.counts)
    np.add.at(expected, np.floor(values * (1 / histogram.width)).astype(np.int64) - histogram.start, 1)
    assert (histogram.counts == expected).all()
    assert 0.0 in histogram.edges()
    assert histogram.magnitudes().sum() == len(values)


@pytest.mark.parametrize("bins", [256, 8192])
def test_at_least_nearly_half_of_the_bins_are_in_use_after_one_pass_and_nearly_all_after_two(bins: int) -> None:
    batches = [np.float32([-3.1, 1e-9]), np.float32([0, 0.2]), np.float32([11.7])]
    for passes, share in ((1, 0.49), (2, 0.98)):
        filled = np.flatnonzero(_observed(batches, bins, passes).histogram.counts)
        assert filled[-1] - filled[0] >= share * (bins - 1)


@given(batches=BATCHES, percentile=st.floats(50, 100), symmetric=st.booleans())
@settings(deadline=None, max_examples=80)
def test_a_percentile_of_one_pass_is_that_of_two_within_a_bin(
    batches: list[np.ndarray], percentile: float, symmetric: bool
) -> None:
    once, twice = _observed(batches), _observed(batches, passes=2)
    found = once.range_of("percentile", percentile=percentile, symmetric=symmetric)
    width = 1.001 * max(once.histogram.width, twice.histogram.width)  # ends are rounded to float32
    assert found == pytest.approx(twice.range_of("percentile", percentile=percentile, symmetric=symmetric), abs=width)


def test_minmax_is_the_smallest_and_the_largest_value() -> None:
    values = np.concatenate(_normal())
    observer = _observed(_normal())
    assert observer.range_of("minmax") == (values.min(), values.max())
    assert observer.range_of("minmax", symmetric=True) == (-30.0, 30.0)


def test_positive_values_have_ranges_from_zero() -> None:
    observer = _observed([np.float32([2, 3, 4])])
    assert {method: observer.range_of(method)[0] for method in METHODS} == dict.fromkeys(METHODS, 0.0)


def test_the_moving_average_follows_the_batches_in_their_order() -> None:
    batches = _normal(outlier=0.0)
    low, high = batches[0].min().item(), batches[0].max().item()
    for batch in batches[1:]:
        low += 0.01 * (batch.min().item() - low)
        high += 0.01 * (batch.max().item() - high)
    assert _observed(batches).range_of("moving-average") == (np.float32(low), np.float32(high))
    assert _observed(batches[::-1]).range_of("moving-average") != (np.float32(low), np.float32(high))


def test_parts_of_a_batch_move_the_average_once() -> None:
    whole, parts = _observed([np.float32([1, 2, 3]), np.float32([9])]), Observer.new()
    for part in ([1.0], [2.0, 3.0]):
        parts.update(np.float32(part))
    parts.close_batch()
    parts.update(np.float32([9]))
    parts.close_batch()
    assert parts.range_of("moving-average") == whole.range_of("moving-average")


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("percentile", [99.0, 99.9, 50.0])
def test_a_percentile_is_that_of_all_values_within_a_bin(percentile: float, passes: int) -> None:
    values, observer = np.concatenate(_normal()), _observed(_normal(), 2048, passes)
    cut = (100 - percentile) / 2
    low, high = observer.range_of("percentile", percentile=percentile)
    width = observer.histogram.width
    assert low == pytest.approx(np.percentile(values, cut, method="higher"), abs=width)
    assert high == pytest.approx(np.percentile(values, 100 - cut, method="lower"), abs=width)
    limit = observer.range_of("percentile", percentile=percentile, symmetric=True)[1]
    assert limit == pytest.approx(np.percentile(np.abs(values), percentile, method="lower"), abs=width)


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_one_pass_gives_what_two_give_within_a_bin_or_a_candidate(method: Method) -> None:
    batches = _normal()
    once, twice = _observed(batches, 8192), _observed(batches, 8192, passes=2)
    step = {"percentile": once.histogram.width, "mse": 0.0, "entropy": 0.03 * 30}[method]
    for one, other in zip(once.range_of(method), twice.range_of(method), strict=True):
        assert one == pytest.approx(other, abs=step + 1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("outlier", [4.0, 30.0, 1000.0])
def test_the_mse_range_is_as_good_as_the_best_of_a_search_over_all_values(
    outlier: float, relu: bool, symmetric: bool
) -> None:
    batches = [np.maximum(batch, 0) if relu else batch for batch in _normal(outlier=outlier)]
    values = np.concatenate(batches)
    low, high = _observed(batches, 8192).range_of("mse", symmetric=symmetric)
    fractions = np.arange(1, 101) / 100
    lows = [0.0] if relu else values.min() * np.array([0.6, 0.7, 0.8, 0.9, 1.0])
    highs = np.abs(values).max() * fractions
    pairs = [(-b, b) for b in highs] if symmetric else [(a, b) for a in lows for b in highs]
    best = min(_error(values, a, b, symmetric) for a, b in pairs)
    assert _error(values, low, high, symmetric) <= 1.01 * best


def test_mse_clips_a_rare_outlier_and_keeps_a_frequent_one() -> None:
    batches = _normal(100, 10_000, outlier=30.0)
    assert _observed(batches, 8192).range_of("mse")[1] < 15
    for batch in batches:
        batch[:50] = 30.0
    assert _observed(batches, 8192).range_of("mse")[1] == pytest.approx(30, rel=0.02)


def _entropy_by_hand(values: np.ndarray, width: float) -> float:
    """TensorRT's search, level by level, with every eighth of its candidates."""
    counts, edges = np.histogram(values, np.arange(2049) * width)
    counts = np.trim_zeros(counts, "b")
    counts[0] = min(counts[0], counts[1])
    found = {}
    for size in range(len(counts), 127, -8):
        p = counts[:size].astype(float)
        p[-1] += counts[size:].sum()
        q = np.zeros(size)
        for level in range(128):
            part = slice(level * size // 128, (level + 1) * size // 128)
            filled = p[part] > 0
            q[part][filled] = counts[part].sum() / max(filled.sum(), 1)
        found[size] = rel_entr(p / p.sum(), q / q.sum()).sum()
    return float(edges[min(found, key=lambda size: found[size])])


@pytest.mark.parametrize("outlier", [0.0, 12.0])
def test_the_entropy_limit_is_that_of_the_search_written_out(outlier: float) -> None:
    batches = [np.maximum(batch, 0) for batch in _normal(100, outlier=outlier)]
    observer = _observed(batches, 2048, passes=2)
    expected = _entropy_by_hand(np.concatenate(batches), observer.histogram.width)
    assert observer.range_of("entropy")[1] == pytest.approx(min(expected, observer.high), rel=1e-6)
    assert observer.range_of("entropy")[1] < observer.high


def test_the_entropy_limit_is_near_that_of_onnxruntime_where_values_are_symmetric() -> None:
    # Its search has levels for both signs, and spreads its rests otherwise; on one-sided data it has half the levels.
    values = np.random.default_rng(0).laplace(size=200_000).astype(np.float32)
    values = np.concatenate([values, -values])
    collector = HistogramCollector("entropy", False, 1024, 256, None, None)
    largest = np.abs(values).max()
    counts, edges = np.histogram(values, 1024, range=(-largest, largest))
    theirs = collector.get_entropy_threshold((counts, edges.astype(np.float32), values.min(), values.max()), 256)
    ours = _observed([values], 2048).range_of("entropy")[1]
    assert ours == pytest.approx(float(theirs[1]), rel=0.1)
    assert ours < 0.9 * largest


def test_nan_and_infinity_are_refused_and_nothing_of_them_is_taken() -> None:
    observer, expected = _observed([np.float32([1, 2])]), _observed([np.float32([1, 2])])
    for bad in (math.nan, math.inf, -math.inf):
        assert not observer.update(np.float32([-5, bad, 7]))
    observer.close_batch()
    assert (observer.low, observer.high, observer.average) == (0.0, 2.0, expected.average)
    assert (observer.histogram.counts == expected.histogram.counts).all()


@pytest.mark.parametrize("batches", [[np.zeros(4, np.float32)], [np.zeros(0, np.float32)]], ids=["zeros", "nothing"])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_tensor_of_zeros_or_of_nothing_has_the_range_of_zero(batches: list[np.ndarray], passes: int) -> None:
    observer = _observed(batches, passes=passes)
    assert {observer.range_of(method) for method in METHODS} == {(0.0, 0.0)}


def test_values_of_very_different_sizes_are_counted() -> None:
    observer = _observed([np.float32([0, 1e-38]), np.float32([-1e-30]), np.float32([3e38])])
    assert observer.histogram.counts.sum() == 4
    assert observer.histogram.counts[0] == 1  # below zero
    assert observer.range_of("minmax") == (np.float32(-1e-30), np.float32(3e38))


def test_the_state_of_an_observer_is_as_large_after_a_million_values_as_after_one() -> None:
    small, large = _observed([np.float32([1])]), _observed(_normal(100, 10_000))
    assert small.histogram.counts.nbytes == large.histogram.counts.nbytes == 256 * 8
    assert large.histogram.counts.sum() == 1_000_000
