"""The gate and the choice: which variant ships, and why the others do not.

Only validation scores decide. The test split is scored for the report, and would no longer be one if it steered this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from compress.errors import MeasurementError
from compress.measurement import Measurement, Timing, drop
from compress.measurement.timing import FLOOR
from compress.reporting import format as fmt

Objective = Literal["size", "latency", "balanced"]

TOLERANCE = 1e-9  # of drops, which are differences of floats
EQUAL = FLOOR  # latencies closer than this share are equal
SIMILAR = 0.3  # of files that are equally fast, zips closer than this share are equal: accuracy then decides
ALIKE = 1.05  # and so are balances closer than this factor


@dataclass(frozen=True)
class Choice:
    """What ships, and why the others do not."""

    shipped: str  # a variant's name
    met: bool  # a variant other than the baseline kept its accuracy
    reasons: Mapping[str, str]  # every other variant's name -> one line


def choose(measurements: Sequence[Measurement], objective: Objective, max_drop: float) -> Choice:
    """Choose among the variants whose drop on validation is within ``max_drop``.

    size: the smallest zip. latency: the smallest p50 of the first provider and batch size that ran; those within 3 % of
    the fastest count as equal, and the smallest zip among them wins; of zips within 30 % of it, the most accurate.
    balanced: the largest geometric mean of zip ratio and speed-up among those that are no slower than the baseline; of
    those within 5 % of it, the most accurate.
    Where latency was not measured, size decides alone.

    Args:
        measurements: The first is the baseline, which is always within the budget.
        objective: What "best" means.
        max_drop: Fraction 0..1.

    Raises:
        MeasurementError: there is nothing to choose from.
    """
    if not measurements:
        raise MeasurementError("there is no measured variant to choose from.")
    baseline = measurements[0]
    within = [m for m in measurements if m is baseline or _is_within(m, baseline, max_drop)]
    best = _best(within, baseline, objective)
    reasons = {
        m.variant.name: _why_not(m, best, baseline, objective, max_drop, m in within)
        for m in measurements
        if m is not best
    }
    return Choice(best.variant.name, len(within) > 1, reasons)


def main_timing(measurement: Measurement, baseline: Measurement) -> Timing | None:
    """A variant's latency on the first provider and batch size that the baseline ran on; None where it did not run."""
    pairs = zip(baseline.latency, measurement.latency, strict=True)
    timing = next((ours for theirs, ours in pairs if theirs.p50_ms is not None), None)
    return None if timing is None or timing.p50_ms is None else timing


def _is_within(measurement: Measurement, baseline: Measurement, max_drop: float) -> bool:
    lost = validation_drop(measurement, baseline)
    return lost is not None and lost <= max_drop + TOLERANCE


def validation_drop(measurement: Measurement, baseline: Measurement) -> float | None:
    """What a variant loses on the split that decides; None where it was not scored."""
    if measurement.validation is None or baseline.validation is None:
        return None
    return drop(measurement.validation.score, baseline.validation.score)


def _best(within: Sequence[Measurement], baseline: Measurement, objective: Objective) -> Measurement:
    timed = [(m, t.p50_ms) for m in within if (t := main_timing(m, baseline)) is not None and t.p50_ms is not None]
    if objective == "size" or not timed:
        return min(within, key=lambda m: m.zip_bytes)
    if objective == "latency":
        fastest = min(p50 for _, p50 in timed)
        equal = [m for m, p50 in timed if p50 <= fastest * (1 + EQUAL)]
        smallest = min(m.zip_bytes for m in equal)
        return max((m for m in equal if m.zip_bytes <= smallest * (1 + SIMILAR)), key=_accuracy)
    able = [m for m in within if not _is_slower(m, baseline)]
    best = max(able, key=lambda m: _balance(m, baseline))
    alike = [m for m in able if m is not baseline and _alike(m, best, baseline)]
    return best if best is baseline else max(alike, key=_accuracy)


def _alike(measurement: Measurement, best: Measurement, baseline: Measurement) -> bool:
    """Whether two are so near in zip and speed together that accuracy decides."""
    return _balance(measurement, baseline) * ALIKE >= _balance(best, baseline)


def _accuracy(measurement: Measurement) -> tuple[float, float, int]:
    """What ranks equally fast and similarly small files; those that were not scored are the baseline alone."""
    found = None if measurement.validation is None else measurement.validation.score
    return (1.0, 1.0, 0) if found is None else (found.figure, found.fidelity, -measurement.zip_bytes)


def _is_slower(measurement: Measurement, baseline: Measurement) -> bool:
    """Whether a variant takes longer than the original: no zip ratio makes up for that, but with objective "size"."""
    ours, theirs = main_timing(measurement, baseline), main_timing(baseline, baseline)
    if ours is None or theirs is None or ours.p50_ms is None or theirs.p50_ms is None:
        return False
    return ours.p50_ms > theirs.p50_ms * (1 + EQUAL)


def _balance(measurement: Measurement, baseline: Measurement) -> float:
    """Geometric mean of zip ratio and speed-up; 0 for a variant that does not run where the baseline does."""
    ours, theirs = main_timing(measurement, baseline), main_timing(baseline, baseline)
    if ours is None or theirs is None or ours.p50_ms is None or theirs.p50_ms is None:
        return 0.0
    return sqrt(baseline.raw_bytes / measurement.zip_bytes * theirs.p50_ms / ours.p50_ms)


def _why_not(
    measurement: Measurement, best: Measurement, baseline: Measurement, objective: Objective, limit: float, within: bool
) -> str:
    lost = validation_drop(measurement, baseline)
    if not within:
        if lost is None:
            return "not scored on validation: there are no samples"
        return f"drop {fmt.fraction(lost)} on validation, {fmt.fraction(limit)} allowed"
    ours, theirs = main_timing(measurement, baseline), main_timing(best, baseline)
    reference = main_timing(baseline, baseline)
    if ours is None and reference is not None and objective != "size":
        return f"does not run on {reference.provider}"
    sizes = f"{fmt.size(measurement.zip_bytes)} zipped, {fmt.size(best.zip_bytes)} for what ships"
    if objective == "size" or ours is None or theirs is None:
        return f"not smaller: {sizes}"
    speeds = f"p50 {fmt.duration(ours.p50_ms)}, {fmt.duration(theirs.p50_ms)} for what ships"
    if objective == "balanced" and _is_slower(measurement, baseline):
        return f"slower than the original: {speeds}; {sizes}"
    if objective == "latency":
        return f"not faster: {speeds}; {sizes}"
    if _balance(measurement, baseline) >= _balance(best, baseline):
        return f"less accurate, and hardly better balanced: {speeds}; {sizes}"
    return f"less balanced ({_balance(measurement, baseline):.2f}, {_balance(best, baseline):.2f}): {speeds}; {sizes}"
