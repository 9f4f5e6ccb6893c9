"""compress.measurement.entropy: the floor of what a tensor takes."""

from __future__ import annotations

import zlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy as scipy_entropy

from compress.measurement.entropy import entropy_bits, entropy_bytes

int8s = arrays(np.int8, st.integers(1, 300), elements=st.integers(-128, 127))


@given(int8s)
def test_the_entropy_is_that_of_scipy(values: np.ndarray) -> None:
    counts = np.unique(values, return_counts=True)[1]
    assert entropy_bits(values) == pytest.approx(scipy_entropy(counts, base=2), abs=1e-9)


@given(int8s)
def test_the_entropy_is_at_most_the_logarithm_of_how_many_values_there_are(values: np.ndarray) -> None:
    assert 0 <= entropy_bits(values) <= np.log2(len(np.unique(values))) + 1e-9


@given(arrays(np.int32, st.integers(1, 300), elements=st.integers(-5, 5)))
def test_wide_integers_have_the_entropy_of_narrow_ones(values: np.ndarray) -> None:
    assert entropy_bits(values) == pytest.approx(entropy_bits(values.astype(np.int8)))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.float32, np.float16, ml_dtypes.int4])
def test_a_constant_tensor_takes_nothing_but_its_value(dtype: type) -> None:
    values = np.full(1000, 3, dtype)
    assert entropy_bits(np.full(1000, 3, np.int8)) == 0
    assert entropy_bytes(values) <= values.itemsize


@given(arrays(np.float32, st.integers(0, 200), elements=st.floats(-2, 2, width=32)))
def test_floats_never_take_more_than_they_do_as_they_are_and_a_flag_each(values: np.ndarray) -> None:
    assert 0 <= entropy_bytes(values) <= values.nbytes + values.size / 8 + 1e-6


def test_sparse_floats_are_coded_as_flags_and_values() -> None:
    values = np.zeros(100_000, np.float32)
    values[::10] = np.random.default_rng(0).standard_normal(10_000)
    flags = 100_000 * (0.1 * np.log2(10) + 0.9 * np.log2(1 / 0.9)) / 8
    assert flags + 10_000 * 3 < entropy_bytes(values) < flags + 10_000 * 4


def test_few_distinct_floats_are_a_table_and_numbers() -> None:
    table = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    values = np.tile(table, 1000)
    assert entropy_bytes(values) == pytest.approx(16 * 4 + 16_000 * 4 / 8)


def test_two_values_of_four_bits_are_two_symbols() -> None:
    assert entropy_bytes(np.array([0, 1] * 400, ml_dtypes.int4)) == pytest.approx(800 / 8)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(0.05, 4.0))
def test_deflate_hardly_beats_the_entropy_of_independent_values(seed: int, scale: float) -> None:
    values = np.rint(np.random.default_rng(seed).standard_normal(20_000) * scale).astype(np.int8)
    assert len(zlib.compress(values.tobytes(), 9)) > 0.99 * entropy_bytes(values)
