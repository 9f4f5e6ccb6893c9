"""The benchmark stage, on ONNX files of a single multiplication."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from compress.data.splits import Data
from compress.errors import MeasurementError, RecipeError
from compress.measurement import BenchmarkConfig, Measurement, benchmark, zip_bytes
from compress.measurement.answers import load_answers
from compress.measurement.environment import available_threads
from compress.measurement.worker import Worker
from compress.values import Context, OnnxModel, Variant
from tests.test_measurement import CLASSES, FEATURES, INPUTS, split, write_linear

QUICK = BenchmarkConfig(threads=(1,), seconds=0.01, min_samples=10, rounds=5, launches=1, synthetic_samples=64)


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
    given_launch = {"launch": Worker, **options}  # within this process
    measurements, record = benchmark(variants, config, Context(given, tmp_path), **given_launch)
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
    assert (base.validation.score.figure, swap.validation.score.figure) == (1.0, 0.5)
    assert (base.test.score.n, swap.test.score.fidelity) == (60, 0.5)
    (timing,) = swap.latency
    assert (timing.provider, timing.batch, timing.threads, timing.status) == ("CPUExecutionProvider", 1, 1, "ok")
    assert timing.samples >= 10
    assert timing.p50_ms is not None
    assert timing.p50_ms > 0


def test_weighing_tells_how_far_it_is(tmp_path: Path) -> None:
    variants = tuple(variant(name, write_linear(tmp_path / f"{name}.onnx")) for name in ("a", "b", "c"))
    told: list[tuple[str, int, int, str]] = []
    context = Context(data(), tmp_path, progress=lambda *what: told.append(what))
    measurements, _ = benchmark(variants, QUICK, context, launch=Worker)
    assert [what for what in told if what[0] == "weighing"] == [("weighing", n + 1, 3, "abc"[n]) for n in range(3)]
    assert [m.zip_bytes for m in measurements] == [zip_bytes(v.onnx.path) for v in variants]


def test_weighing_that_is_stopped_leaves_what_has_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def stopped(path: Path, original: Path) -> None:
        begun.append(path.name)
        time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr("compress.measurement.size.sizes", stopped)
    monkeypatch.setattr("compress.measurement.stage.available_threads", lambda: 1)
    variants = tuple(variant(f"v{n}", write_linear(tmp_path / f"v{n}.onnx")) for n in range(40))
    with pytest.raises(KeyboardInterrupt):
        benchmark(variants, QUICK, Context(data(), tmp_path), launch=Worker)
    assert len(begun) < len(variants)


def test_accuracy_is_against_the_labels_and_fidelity_against_the_first_variant(tmp_path: Path) -> None:
    part = split("test", range(200, 260), wrong=15)
    given = data()
    given = Data(given.name, given.train, given.calibration, given.validation, part, INPUTS, "0" * 64, CLASSES)
    base, _ = measure(tmp_path, given)
    assert base.test.score.accuracy is not None
    assert base.test.score.accuracy.value == 0.75
    assert base.test.score.fidelity == 1.0


def test_unlabelled_data_gives_fidelity_and_no_accuracy(tmp_path: Path) -> None:
    base, swap = measure(tmp_path, data(labelled=False))
    assert base.test.score.accuracy is None
    assert (base.test.score.fidelity, swap.test.score.fidelity) == (1.0, 0.5)


def test_without_data_fidelity_is_measured_on_made_up_inputs(tmp_path: Path) -> None:
    base, swap = measure(tmp_path, None)
    assert base.test.score.accuracy is None
    assert base.test.score.n > 0
    assert swap.test.score.fidelity < 1.0


class Absent(Worker):
    """Opens real sessions on the CPU, and none on CUDA."""

    def open(self, path: str, provider: str, threads: int, feeds: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
        if provider == "cuda":
            raise MeasurementError("not available: no such device")
        return super().open(path, provider, threads, feeds)


def test_an_absent_provider_has_its_reason_and_no_numbers(tmp_path: Path) -> None:
    config = replace(QUICK, providers=("cuda", "cpu"), batches=(1, 3), rounds=2)
    base, _ = measure(tmp_path, data(), config, launch=Absent)
    found = [(t.provider, t.batch, t.status, t.p50_ms is None) for t in base.latency]
    assert found == [
        ("CUDAExecutionProvider", 1, "not available: no such device", True),
        ("CUDAExecutionProvider", 3, "not available: no such device", True),
        ("CPUExecutionProvider", 1, "ok", False),
        ("CPUExecutionProvider", 3, "ok", False),
    ]
    assert base.limit is not None  # of the first latency on the CPU


def test_where_the_cpu_is_not_measured_there_is_no_limit(tmp_path: Path) -> None:
    base, _ = measure(tmp_path, data(), replace(QUICK, providers=("cuda",)), launch=Absent)
    assert base.limit is None


def test_the_limit_is_of_a_latency_with_as_many_threads_as_the_ceilings(tmp_path: Path) -> None:
    class TwoAtLeast(Worker):
        def open(
            self, path: str, provider: str, threads: int, feeds: Mapping[str, NDArray[Any]]
        ) -> tuple[float, float]:
            if threads == 1:
                raise MeasurementError("no")
            return super().open(path, provider, threads, feeds)

    base, _ = measure(tmp_path, data(), replace(QUICK, threads=(1, 2)), launch=TwoAtLeast)
    assert [timing.status for timing in base.latency] == ["no", "ok"]
    assert base.limit is None


def test_the_sessions_that_are_timed_get_real_samples_in_the_batch_asked_for(tmp_path: Path) -> None:
    shapes = set()

    class Recorder(Worker):
        def open(
            self, path: str, provider: str, threads: int, feeds: Mapping[str, NDArray[Any]]
        ) -> tuple[float, float]:
            shapes.add(feeds["x"].shape)
            assert set(np.unique(feeds["x"])) == {0.0, 1.0}
            return super().open(path, provider, threads, feeds)

    config = replace(QUICK, batches=(3, 200), seconds=0.001, min_samples=2, rounds=2)
    measure(tmp_path, data(), config, launch=Recorder)
    assert shapes == {(3, FEATURES), (200, FEATURES)}


def test_threads_are_a_row_each_in_the_nesting_provider_threads_batch(tmp_path: Path) -> None:
    base, _ = measure(tmp_path, data(), replace(QUICK, threads=(1, 2), batches=(1, 3), rounds=2))
    assert [(t.threads, t.batch) for t in base.latency] == [(1, 1), (1, 3), (2, 1), (2, 3)]


def test_0_threads_are_those_that_may_be_used_and_count_once() -> None:
    here = available_threads()
    assert BenchmarkConfig().thread_counts == (here,)
    assert BenchmarkConfig(threads=(0, here)).thread_counts == (here,)
    assert BenchmarkConfig(threads=(3, 0)).first_threads == 3


def test_the_record_tells_the_machine_and_the_load_it_started_under(tmp_path: Path) -> None:
    base = variant("baseline-fp32", write_linear(tmp_path / "base.onnx"))
    _, record = benchmark((base,), QUICK, Context(data(), tmp_path), launch=Worker)
    assert record.figures["threads"] == [1]
    assert record.figures["machine"]["fp32_gmacs"] > 0
    assert record.figures["load_average"] >= 0


def test_energy_that_cannot_be_read_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.measurement.stage.note", lambda energy: f"{energy}: not readable")
    base = variant("baseline-fp32", write_linear(tmp_path / "base.onnx"))
    _, record = benchmark((base,), replace(QUICK, energy="rapl"), Context(data(), tmp_path), launch=Worker)
    assert "rapl: not readable" in record.notes


def test_the_answers_to_test_are_kept_where_asked(tmp_path: Path) -> None:
    measure(tmp_path, data(), keep=tmp_path / "answers.npz")
    kept = load_answers(tmp_path / "answers.npz")
    assert set(kept.top1) == {"baseline-fp32", "swapped"}
    assert len(kept.top1["swapped"]) == 60


def test_a_measurement_survives_the_way_through_json(tmp_path: Path) -> None:
    base, _ = measure(tmp_path, data())
    stored = json.loads(json.dumps(base.to_dict(), allow_nan=False))
    assert Measurement.from_dict(stored, base.variant) == base


def test_a_variant_that_gives_nan_is_named(tmp_path: Path) -> None:
    bad = variant("broken-int8", write_linear(tmp_path / "bad.onnx", np.full((4, 4), np.nan, np.float32)))
    good = variant("baseline-fp32", write_linear(tmp_path / "good.onnx"))
    with pytest.raises(MeasurementError, match="broken-int8: the model's output is not finite"):
        benchmark((good, bad), QUICK, Context(data(), tmp_path), launch=Worker)


def test_a_variant_that_does_not_run_on_the_samples_is_named(tmp_path: Path) -> None:
    variants = [variant(name, write_linear(tmp_path / f"{name}.onnx")) for name in ("base", "wide")]
    proto = onnx.load(str(tmp_path / "wide.onnx"))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value += 1
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((FEATURES + 1, CLASSES), np.float32), "w"))
    onnx.save(proto, str(tmp_path / "wide.onnx"))
    with pytest.raises(MeasurementError, match=rf"^wide: does not run on samples of x \({FEATURES},\): "):
        benchmark(tuple(variants), QUICK, Context(data(), tmp_path), launch=Worker)


def test_nothing_to_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="at least one ONNX file"):
        benchmark((), QUICK, Context(None, tmp_path))


def test_every_problem_of_a_config_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as told:
        BenchmarkConfig(
            providers=("tpu",), batches=(0, 0), threads=(-1,), seconds=0.0, rounds=1, launches=0, sensitivity_seconds=-1
        )
    wanted = ("'tpu'", "batches=", "names one twice", "threads=(-1,)", "seconds=0.0", "rounds=1", "launches=0")
    for option in (*wanted, "sensitivity_seconds=-1"):
        assert option in str(told.value)


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    base = variant("baseline-fp32", write_linear(tmp_path / "base.onnx"))
    context = Context(data(), tmp_path, progress=lambda label, done, total, note="": told.append((label, done, total)))
    benchmark((base,), QUICK, context, launch=Worker)
    labels = {label for label, _, _ in told}
    assert labels == {"scoring on validation", "scoring on test", "timing cpu, batch 1", "weighing"}
    assert ("timing cpu, batch 1", 5, 5) in told
