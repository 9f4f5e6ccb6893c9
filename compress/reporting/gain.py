"""What sparsity gained: zipped bytes and latency of a sparse variant, against the same model before it was sparse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.measurement import Measurement, speedup
from compress.measurement.timing import Ratio
from compress.reporting.choice import main_timing
from compress.sparsity.size_model import Stored
from compress.values import StageRecord

_SPARSE = "sparse"  # in the name of a variant: see `compress.values.State.changes`


@dataclass(frozen=True)
class SparsityGain:
    """A sparse variant against its dense twin."""

    twin: str | None  # the variant that differs in sparsity alone; None: it was not made
    dense_zip_bytes: int  # of the twin
    zip_ratio: float  # dense_zip_bytes / the variant's zip bytes
    estimated: bool  # True: dense_zip_bytes was predicted by `compress.sparsity.size_model`, not measured
    latency_ratio: Ratio | None  # the variant's p50 / the twin's, timed in turns; None: there is no twin, or no latency


def sparsity_gains(
    measurements: Sequence[Measurement], records: Sequence[StageRecord] = ()
) -> dict[str, SparsityGain | None]:
    """Variant name -> what sparsity gained; None for those that are not sparse or have nothing to compare with.

    Float variants have a twin among the measurements. Int8 ones would have to be quantized a second time for it: theirs
    is the size that the sparsify stage predicted.

    Args:
        measurements: The first is the baseline, the twin of a model from which no channels left.
        records: Of the stages.
    """
    return {m.variant.name: _gain(m, measurements, records) for m in measurements}


def _gain(
    measurement: Measurement, measurements: Sequence[Measurement], records: Sequence[StageRecord]
) -> SparsityGain | None:
    parts = measurement.variant.name.split("-")
    if _SPARSE not in parts or measurement.sparsity <= 0:
        return None
    parts.remove(_SPARSE)
    name = "-".join(parts)
    baseline = measurements[0]
    twin = next((m for m in measurements if m.variant.name in (name, f"baseline-{name}")), None)
    if twin is not None:
        zip_ratio = twin.zip_bytes / measurement.zip_bytes
        return SparsityGain(
            twin.variant.name, twin.zip_bytes, zip_ratio, False, _latency_ratio(measurement, twin, baseline)
        )
    dense = _predicted(records, stored_as(measurement.variant.name))
    return None if dense is None else SparsityGain(None, dense, dense / measurement.zip_bytes, True, None)


def stored_as(variant: str) -> Stored:
    """How a variant's weights are stored, from its name: see `compress.quantization.candidates.Candidate.name`."""
    parts = variant.split("-")
    if "int8" not in parts:
        return "float32"
    if "channel" in parts:
        return "int8-per-channel"
    if "reduced" in parts:
        return "int8-reduced"
    return "int8-weights" if "weights" in parts else "int8"


def _predicted(records: Sequence[StageRecord], stored: Stored) -> int | None:
    figures = next((record.figures for record in records if record.stage == "sparsify"), {})
    dense = figures.get("predicted_zip_bytes", {}).get("dense", {})
    return int(dense[stored]) if dense.get(stored) else None


def _latency_ratio(measurement: Measurement, twin: Measurement, baseline: Measurement) -> Ratio | None:
    ours, theirs = main_timing(measurement, baseline), main_timing(twin, baseline)
    return None if ours is None or theirs is None else speedup(ours, theirs)
