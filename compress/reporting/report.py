"""The report of a run: what was measured, what ships, and whether it passed. report.json is `Report.to_dict()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.measurement import Measurement, Timing, drop, speedup
from compress.measurement.answers import Answers
from compress.measurement.layers import LayerChange
from compress.measurement.timing import Ratio
from compress.reporting.choice import TOLERANCE, Choice, Objective, choose, main_timing, validation_drop
from compress.reporting.gain import SparsityGain, sparsity_gains
from compress.reporting.schema import SCHEMA
from compress.values import StageRecord

if TYPE_CHECKING:
    from compress.data.splits import Data

_FLOAT = "fp32"  # ends the names of the float files; what is before it begins the names of what is made from them
_OF_THE_REPORT = ("machine", "sensitivity")  # figures of the benchmark stage that have a place at the top
Interval = dict[str, float]  # {"low", "high"}, 95 %


@dataclass(frozen=True)
class Verdict:
    """Whether what ships keeps its accuracy, on samples that steered nothing."""

    max_drop: float  # fraction 0..1 that was allowed
    drop: float  # on test, against the original model
    passed: bool
    zip_ratio: float  # baseline raw bytes / shipped zip bytes
    speedup: float | None  # baseline p50 / shipped p50; None: no latency
    drop_interval: Interval | None  # of the paired difference; None: the baseline ships, or it cannot be told
    speedup_interval: Interval | None
    speedup_significant: bool | None  # whether the speed-up is more than chance and noise


@dataclass(frozen=True)
class Report:
    """A finished run."""

    command: str
    seed: int
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    measurements: tuple[Measurement, ...]  # the first is the baseline
    records: tuple[StageRecord, ...]
    objective: Objective
    max_drop: float
    choice: Choice
    root: Path  # the run directory, which files are named relative to
    notes: tuple[str, ...] = ()
    model: Mapping[str, Any] | None = None  # the file that was compressed: its path as given, its sha256
    shipped_zip_bytes: int | None = None  # of the zip as written, with the file's provenance; None: not written yet
    layers: tuple[LayerChange, ...] = ()  # of the baseline's file, against what ships
    changed: Sequence[Mapping[str, Any]] = field(default=())  # of `compress.measurement.changes.most_changed`

    @property
    def baseline(self) -> Measurement:
        return self.measurements[0]

    @property
    def shipped(self) -> Measurement:
        return next(m for m in self.measurements if m.variant.name == self.choice.shipped)

    @property
    def verdict(self) -> Verdict:
        lost = drop(self.shipped.test.score, self.baseline.test.score)
        ours, theirs = main_timing(self.shipped, self.baseline), main_timing(self.baseline, self.baseline)
        gain = None if ours is None or theirs is None else _speedup(theirs, ours)
        return Verdict(
            max_drop=self.max_drop,
            drop=lost,
            passed=self.choice.met and lost <= self.max_drop + TOLERANCE,
            zip_ratio=self.baseline.raw_bytes / (self.shipped_zip_bytes or self.shipped.zip_bytes),
            speedup=None if gain is None else gain.value,
            drop_interval=_interval(self.shipped.test),
            speedup_interval=None if gain is None else {"low": gain.low, "high": gain.high},
            speedup_significant=None if gain is None else gain.significant,
        )

    @property
    def journey(self) -> tuple[Measurement, ...]:
        """The files between the original and what ships, both among them, each made from the one before."""
        shipped = self.choice.shipped
        return tuple(
            m
            for m in self.measurements
            if m is self.baseline
            or m.variant.name == shipped
            or (m.variant.name.endswith(_FLOAT) and shipped.startswith(m.variant.name.removesuffix(_FLOAT)))
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json: plain values, no raw samples."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "seed": self.seed,
            "objective": self.objective,
            "environment": dict(self.environment),
            "model": None if self.model is None else dict(self.model),
            "data": dict(self.data),
            "variants": variant_entries(self.measurements, self.root, self.choice, self.records),
            "shipped": self.choice.shipped,
            "verdict": {
                **asdict(self.verdict),
                "met": self.choice.met,
                "measured_in": self.baseline.test.score.measured_in,
            },
            "shipped_zip_bytes": self.shipped_zip_bytes,
            "journey": [_step(measurement, self.baseline) for measurement in self.journey],
            "machine": self._figure("machine"),
            "layers": [layer.to_dict() for layer in self.layers],
            "changed": [dict(example) for example in self.changed],
            "sensitivity": self._figure("sensitivity"),
            "stages": [_stage_entry(record) for record in self.records],
            "notes": list(self.notes),
        }

    def _figure(self, name: str) -> Any:
        """What the benchmark stage found besides the measurements."""
        return next((r.figures.get(name) for r in self.records if r.stage == "benchmark"), None)


def build_report(
    measurements: tuple[Measurement, ...],
    records: tuple[StageRecord, ...],
    *,
    environment: Mapping[str, Any],
    data: Data | None,
    objective: Objective,
    max_drop: float,
    seed: int,
    command: str,
    root: Path,
    model: Mapping[str, Any] | None = None,
    notes: tuple[str, ...] = (),
) -> Report:
    """Choose what ships and put the report together.

    Args:
        measurements: The first is the baseline.
        records: What the stages did, in their order.
        environment: Of `compress.measurement.environment.environment`.
        data: None where the inputs were made up.
        root: The run directory.
        model: The file that was compressed: its path as given, its sha256.
        notes: On the run as a whole, one line each; those of the data follow them.
    """
    choice = choose(measurements, objective, max_drop)
    return Report(
        command=command,
        seed=seed,
        environment=environment,
        data=_made_up(measurements[0]) if data is None else _data_entry(data),
        measurements=measurements,
        records=records,
        objective=objective,
        max_drop=max_drop,
        choice=choice,
        root=root,
        model=model,
        notes=(*notes, *(data.notes if data is not None else ())),
    )


def variant_entries(
    measurements: Sequence[Measurement],
    root: Path,
    choice: Choice | None = None,
    records: Sequence[StageRecord] = (),
) -> list[dict[str, Any]]:
    """The ``variants`` of report.json; the first measurement is the baseline."""
    baseline = measurements[0]
    reasons = choice.reasons if choice is not None else {}
    gains = sparsity_gains(measurements, records)
    return [
        {
            **_variant_entry(m, baseline, root),
            "sparsity_gain": _gain_entry(gains[m.variant.name]),
            "not_shipped": reasons.get(m.variant.name),
        }
        for m in measurements
    ]


def _variant_entry(measurement: Measurement, baseline: Measurement, root: Path) -> dict[str, Any]:
    test, validation = measurement.test, measurement.validation
    return {
        "name": measurement.variant.name,
        "stage": measurement.variant.stage,
        "file": _relative(measurement.variant.onnx.path, root),
        **asdict(measurement.counts),
        "sparsity": measurement.sparsity,
        "raw_bytes": measurement.raw_bytes,
        "zip_bytes": measurement.zip_bytes,
        "zip_ratio": baseline.raw_bytes / measurement.zip_bytes,
        "sizes": measurement.sizes.to_dict(),
        **_answers_entry(test),
        "drop": drop(test.score, baseline.test.score),
        "validation": None
        if validation is None
        else {**validation.score.to_dict(), "drop": validation_drop(measurement, baseline)},
        "limit": None if measurement.limit is None else measurement.limit.to_dict(),
        "latency": [
            {**ours.to_dict(), "speedup": _plain(_speedup(theirs, ours))}
            for ours, theirs in zip(measurement.latency, baseline.latency, strict=True)
        ],
    }


def _answers_entry(test: Answers) -> dict[str, Any]:
    """What a variant answers on test."""
    told, score = test.to_dict(), test.score.to_dict()
    return {
        **{name: score[name] for name in ("accuracy", "top5", "metric", "fidelity")},
        "logit_sqnr_db": score["sqnr_db"],
        "drop_interval": _interval(test),
        "mcnemar": told["mcnemar"],
        "classes": told["classes"],
    }


def _interval(test: Answers) -> Interval | None:
    """Of the drop."""
    if test.drop_low is None or test.drop_high is None:
        return None
    return {"low": test.drop_low, "high": test.drop_high}


def _step(measurement: Measurement, baseline: Measurement) -> dict[str, Any]:
    """A file on the way to what ships, by the stage that earned its figures: export only writes what sparsify made."""
    timing, stage = main_timing(measurement, baseline), measurement.variant.stage
    return {
        "stage": "sparsify" if stage == "export" else stage,
        "variant": measurement.variant.name,
        "zip_bytes": measurement.zip_bytes,
        "p50_ms": None if timing is None else timing.p50_ms,
        "figure": measurement.test.score.figure,
    }


def _gain_entry(gain: SparsityGain | None) -> dict[str, Any] | None:
    return None if gain is None else asdict(gain)


def _stage_entry(record: StageRecord) -> dict[str, Any]:
    return {
        "stage": record.stage,
        "seconds": record.seconds,
        "skipped": record.skipped,
        "notes": list(record.notes),
        "figures": {name: figure for name, figure in record.figures.items() if name not in _OF_THE_REPORT},
        "config": dict(record.config),
    }


def _data_entry(data: Data) -> dict[str, Any]:
    return {
        "name": data.name,
        "train": len(data.train),
        "calibration": len(data.calibration),
        "validation": len(data.validation),
        "test": len(data.test),
        "sha256": data.sha256,
        "classes": data.classes,
        "class_names": list(data.class_names) or None,
    }


def _made_up(baseline: Measurement) -> dict[str, Any]:
    validation = 0 if baseline.validation is None else baseline.validation.score.n
    sizes = {"train": 0, "calibration": 0, "validation": validation, "test": baseline.test.score.n}
    return {"name": "synthetic", **sizes, "sha256": None, "classes": None, "class_names": None}


def _relative(path: Path, root: Path) -> str:
    """As seen from the run directory; a file that lies elsewhere keeps the path that the user gave."""
    full = path.resolve()
    return full.relative_to(root.resolve()).as_posix() if full.is_relative_to(root.resolve()) else path.as_posix()


def _speedup(baseline: Timing, variant: Timing) -> Ratio | None:
    return None if baseline.p50_ms is None or variant.p50_ms is None else speedup(baseline, variant)


def _plain(ratio: Ratio | None) -> dict[str, float] | None:
    return None if ratio is None else asdict(ratio)
