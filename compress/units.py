"""Durations and sizes as people write them: 5ms, 800us, 1.5MB, 64KiB; and signs. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite

MILLISECONDS: Mapping[str, float] = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4}
BYTES: Mapping[str, float] = {
    "b": 1,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-zµμ]*)\s*", re.IGNORECASE)


def milliseconds(value: object) -> float:
    """A duration in milliseconds; a number without a unit is milliseconds already.

    Raises:
        ValueError: it is no duration, or below 0.
    """
    return _read(value, MILLISECONDS, "a duration", "5ms, 800us or 1.2s (a bare number is milliseconds)")


def whole_bytes(value: object) -> int:
    """A size in bytes; MB is 10^6, MiB is 2^20, a number without a unit is bytes already.

    Raises:
        ValueError: it is no size, or below 0.
    """
    return round(_read(value, BYTES, "a size", "1MB (10^6), 1MiB (2^20) or 800KB (a bare number is bytes)"))


def signed(number: float, form: str = ".4f") -> str:
    """A change, with its sign: +0.0012, −0.0012 (the true minus, U+2212); what rounds to nothing has none: 0.0000."""
    text = format(abs(number), form)
    sign = "" if not any(digit in text for digit in "123456789") else "−" if number < 0 else "+"
    return f"{sign}{text}"


def _read(value: object, units: Mapping[str, float], what: str, such_as: str) -> float:
    """A bare number has the unit whose factor is 1."""
    found = _NUMBER.fullmatch(str(value))
    unit = found[2].lower() if found else ""
    if found is None or (unit and unit not in units):
        problem = f"has the unit {found[2]!r}" if found else "is not a number with a unit"
        raise ValueError(f"{str(value)!r} is not {what}: it {problem}. Write {such_as}.")
    result = float(found[1]) * (units[unit] if unit else 1)
    if not isfinite(result) or result < 0:
        raise ValueError(f"{str(value)!r} is not {what}: it must be finite and not below 0. Write {such_as}.")
    return result
