"""Durations and sizes as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.units import BYTES, MILLISECONDS, milliseconds, signed, whole_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5ms", 5.0),
        ("800us", 0.8),
        ("800µs", 0.8),  # the micro sign of keyboards
        ("800μs", 0.8),  # the Greek letter of others
        ("1.2s", 1200.0),
        ("1.2 S", 1200.0),
        (".5ms", 0.5),
        ("250ns", 0.00025),
        ("1min", 60_000.0),
        ("3", 3.0),
        (3, 3.0),
        (2.5, 2.5),
        ("1e3us", 1.0),
        ("0", 0.0),
    ],
)
def test_a_duration_is_read_in_milliseconds(text: object, expected: float) -> None:
    assert milliseconds(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1MB", 1_000_000),
        ("1MiB", 1_048_576),
        ("1mib", 1_048_576),
        ("800 kB", 800_000),
        ("1.5KB", 1_500),
        ("2GB", 2_000_000_000),
        ("512", 512),
        (512, 512),
        ("512B", 512),
    ],
)
def test_a_size_is_read_in_bytes(text: object, expected: int) -> None:
    assert whole_bytes(text) == expected


@pytest.mark.parametrize("text", ["5 parsecs", "ms", "", "five", "5ms5", "-1ms", "1e999s", "nan", "inf", True, None])
def test_what_is_no_duration_is_refused_with_what_is(text: object) -> None:
    with pytest.raises(ValueError, match=r"is not a duration: .* Write 5ms, 800us or 1\.2s"):
        milliseconds(text)


def test_the_unit_of_the_other_kind_is_named_in_the_refusal() -> None:
    with pytest.raises(ValueError, match="'5ms' is not a size: it has the unit 'ms'"):
        whole_bytes("5ms")
    with pytest.raises(ValueError, match="'1MB' is not a duration: it has the unit 'MB'"):
        milliseconds("1MB")


@given(st.floats(0, 1e6), st.sampled_from(sorted(MILLISECONDS)))
def test_a_number_and_its_unit_multiply(value: float, unit: str) -> None:
    assert math.isclose(milliseconds(f"{value!r}{unit}"), value * MILLISECONDS[unit], rel_tol=1e-12)


@given(st.integers(0, 10**9), st.sampled_from(sorted(BYTES)))
def test_whole_sizes_are_exact(value: int, unit: str) -> None:
    assert whole_bytes(f"{value}{unit}") == value * BYTES[unit]


@pytest.mark.parametrize(
    ("number", "form", "expected"),
    [
        (0.0012, ".4f", "+0.0012"),
        (-0.0012, ".4f", "−0.0012"),
        (-0.00001, ".4f", "0.0000"),
        (0.0, ".4f", "0.0000"),
        (-12_345, ",", "−12,345"),
    ],
)
def test_a_change_has_the_true_minus_and_nothing_has_no_sign(number: float, form: str, expected: str) -> None:
    assert signed(number, form) == expected
