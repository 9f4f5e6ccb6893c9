"""The benchmark stage, on ONNX files of a single multiplication."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.data.splits import Data
from compress.errors import MeasurementError, RecipeError
from compress.measurement import BenchmarkConfig, Measurement, benchmark, open_session, zip_bytes
from compress.values import Context, OnnxModel, Variant
from tests.test_measurement import CLASSES, FEATURES, INPUTS, split, write_linear

QUICK = BenchmarkConfig(seconds=0.01, min_samples=10, rounds=5, synthetic_samples=64)


def data(labelled: bool = True) -> Data:
    train = split("train", range(100), labelled)
    return Data(
        "made", train, train.take(20), split("validation", range(100, 140), labelled),
        split("test", range(200, 260), labelled), INPUTS, "0" * 64, CLASSES if labelled else None,
    )  # fmt: skip


def variant(name: str, model: OnnxModel) -> Variant:
    return Variant(name, "test", model)


def swapped() -> NDArray[np.float32]:
    """Answers 1 for 0 and 0 for 1: right for half of the samples."""
    return np.eye(FEATURES, dtype=np.float32)[[1, 0, 2, 3]]


def measure(
    tmp_path: Path, given: Data | None, config: BenchmarkConfig = QUICK, **options: Any
) -> tuple[Measurement, ...]:
    variants = (
        variant("baseline-fp32", write_linear(tmp_path / "base.onnx")),
        variant("swapped", write_linear(tmp_path / "swapped.onnx", swapped())),
    )
    measurements, record = benchmark(variants, config, Context(given, tmp_path), **options)
    assert record.stage == "benchmark"
    assert record.skipped is None
    return measurements


def test_every_variant_is_counted_weighed_scored_and_timed(tmp_path: Path) -> None:
    base, swap = measure(tmp_path, data())
    assert (base.counts.parameters, base.counts.nonzero, base.counts.macs) == (16, 4, 16)
    assert base.sparsity == 0.75
    assert base.raw_bytes == (tmp_path / "base.onnx").stat().st_size
    assert base.zip_bytes == zip_bytes(tmp_path / "base.onnx")
    assert base.validation is not None
    assert swap.validation is not None
    assert (base.validation.figure, swap.validation.figure) == (1.0, 0.5)
    assert (base.test.n, swap.test.fidelity) == (60, 0.5)
    (timing,) = swap.latency
    assert (timing.provider, timing.batch, timing.threads, timing.status) == ("CPUExecutionProvider", 1, 1, "ok")
    assert timing.samples >= 10
    assert timing.p50_ms is not None
    assert timing.p50_ms > 0


def test_accuracy_is_against_the_labels_and_fidelity_against_the_first_variant(tmp_path: Path) -> None:
    part = split("test", range(200, 260), wrong=15)
    given = data()
    given = Data(given.name, given.train, given.calibration, given.validation, part, INPUTS, "0" * 64, CLASSES)
    base, _ = measure(tmp_path, given)
    assert base.test.accuracy is not None
    assert base.test.accuracy.value == 0.75
    assert base.test.fidelity == 1.0


def test_unlabelled_data_gives_fidelity_and_no_accuracy(tmp_path: Path) -> None:
    base, swap = measure(tmp_path, data(labelled=False))
    assert base.test.accuracy is None
    assert (base.test.fidelity, swap.test.fidelity) == (1.0, 0.5)


def test_without_data_fidelity_is_measured_on_made_up_inputs(tmp_path: Path) -> None:
    base, swap = measure(tmp_path, None)
    assert base.test.accuracy is None
    assert base.test.n > 0
    assert swap.test.fidelity < 1.0


class Absent:
    """Opens real sessions on the CPU, and none on CUDA."""

    def __call__(self, path: Path, provider: str, threads: int) -> Any:
        if provider == "cuda":
            raise MeasurementError("not available: no such device")
        return open_session(path, provider, threads)


def test_an_absent_provider_has_its_reason_and_no_numbers(tmp_path: Path) -> None:
    config = BenchmarkConfig(providers=("cuda", "cpu"), batches=(1, 3), seconds=0.01, min_samples=10, rounds=2)
    base, _ = measure(tmp_path, data(), config, opener=Absent())
    found = [(t.provider, t.batch, t.status, t.p50_ms is None) for t in base.latency]
    assert found == [
        ("CUDAExecutionProvider", 1, "not available: no such device", True),
        ("CUDAExecutionProvider", 3, "not available: no such device", True),
        ("CPUExecutionProvider", 1, "ok", False),
        ("CPUExecutionProvider", 3, "ok", False),
    ]


def test_the_sessions_that_are_timed_get_real_samples_in_the_batch_asked_for(tmp_path: Path) -> None:
    shapes = set()

    class Recorder:
        def run(self, outputs: None, feeds: dict[str, NDArray[np.float32]]) -> None:
            assert outputs is None
            shapes.add(feeds["x"].shape)
            assert set(np.unique(feeds["x"])) == {0.0, 1.0}

    config = BenchmarkConfig(batches=(3, 200), seconds=0.001, min_samples=2, rounds=2)
    measure(tmp_path, data(), config, opener=lambda path, provider, threads: Recorder())
    assert shapes == {(3, FEATURES), (200, FEATURES)}


def test_a_measurement_survives_the_way_through_json(tmp_path: Path) -> None:
    base, _ = measure(tmp_path, data())
    stored = json.loads(json.dumps(base.to_dict(), allow_nan=False))
    assert Measurement.from_dict(stored, base.variant) == base


def test_a_variant_that_gives_nan_is_named(tmp_path: Path) -> None:
    bad = variant("broken-int8", write_linear(tmp_path / "bad.onnx", np.full((4, 4), np.nan, np.float32)))
    good = variant("baseline-fp32", write_linear(tmp_path / "good.onnx"))
    with pytest.raises(MeasurementError, match="broken-int8: the model's output is not finite"):
        benchmark((good, bad), QUICK, Context(data(), tmp_path))


def test_nothing_to_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="at least one ONNX file"):
        benchmark((), QUICK, Context(None, tmp_path))


def test_every_problem_of_a_config_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as told:
        BenchmarkConfig(providers=("tpu",), batches=(0,), threads=-1, seconds=0.0, rounds=1)  # type: ignore[arg-type]
    for option in ("'tpu'", "batches=", "threads=-1", "seconds=0.0", "rounds=1"):
        assert option in str(told.value)


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    base = variant("baseline-fp32", write_linear(tmp_path / "base.onnx"))
    context = Context(data(), tmp_path, progress=lambda label, done, total, note="": told.append((label, done, total)))
    benchmark((base,), QUICK, context)
    labels = {label for label, _, _ in told}
    assert labels == {"scoring on validation", "scoring on test", "timing cpu, batch 1"}
    assert ("timing cpu, batch 1", 5, 5) in told
