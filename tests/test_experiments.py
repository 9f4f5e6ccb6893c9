"""Runs in MLflow and TensorBoard, through the libraries themselves and read back with them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.errors import CompressError, RecipeError
from compress.experiments import Trackers, log_run, metrics_of, open_trackers, parameters_of
from tests.conftest import Call
from tests.reports import SHIPPED, example_report
from tests.runs import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "compressed")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An MLflow store on files; its client."""
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


# Both


def test_only_figures_that_were_measured_are_logged() -> None:
    found = metrics_of(example_report()["variants"][0])
    assert found["accuracy"] == pytest.approx(0.8897)
    assert found["p50_ms/CPU-batch1-threads1"] == pytest.approx(0.2815)
    assert "p50_ms/CUDA-batch1-threads1" not in found
    assert "energy_mj/CPU-batch1-threads1" not in found


def test_a_metric_of_the_users_own_is_logged_under_its_name() -> None:
    variant = example_report()["variants"][0]
    variant["metric"] = {"name": "f1", "value": 0.7, "low": None, "high": None, "n": 10, "resamples": 0}
    assert metrics_of(variant)["f1"] == 0.7


def test_every_option_is_a_parameter_under_its_full_name() -> None:
    parameters = parameters_of(example_report())
    assert parameters["objective"] == "balanced"
    assert parameters["data.name"] == "fashion-mnist"
    assert all(len(value) <= 500 for value in parameters.values())


@pytest.mark.parametrize(("library", "given"), [("mlflow", ("compress", None)), ("tensorboard", (None, Path("logs")))])
def test_a_library_that_is_not_there_is_told_with_the_extra_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str, given: tuple[Any, Any]
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(RecipeError, match=rf"--{library} needs .* pip install 'compress-pipeline\[{library}\]'"):
        open_trackers(*given)
    assert not (tmp_path / "logs").exists()


# MLflow


def test_mlflow_has_the_options_the_figures_and_the_files(store: Any, run: Path, tmp_path: Path) -> None:
    (line,) = log_run(open_trackers("release", None), run)
    experiment = store.get_experiment_by_name("release")
    (logged,) = store.search_runs([experiment.experiment_id])
    assert logged.info.run_id in line
    assert logged.info.status == "FINISHED"
    report = example_report()
    assert logged.data.params == parameters_of(report)
    assert logged.data.metrics["shipped/zip_ratio"] == pytest.approx(report["verdict"]["zip_ratio"])
    assert logged.data.metrics[f"{SHIPPED}/accuracy"] == pytest.approx(0.8862)
    assert logged.data.tags["compress.passed"] == "true"
    assert logged.data.tags["mlflow.note.content"].startswith("Passed: ")
    files = {entry.path: entry.file_size for entry in store.list_artifacts(logged.info.run_id)}
    assert set(files) == {path.name for path in run.iterdir() if path.is_file()}
    assert files["model.onnx"] == (run / "model.onnx").stat().st_size


def test_mlflow_takes_a_second_run_into_the_same_experiment(store: Any, run: Path) -> None:
    for _ in range(2):
        log_run(open_trackers("compress", None), run)
    assert len(store.search_runs([store.get_experiment_by_name("compress").experiment_id])) == 2


def test_a_store_that_mlflow_cannot_use_is_told_before_any_work(store: Any, tmp_path: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri("nonsense://nowhere")
    with pytest.raises(CompressError, match=r"--mlflow compress: MLflow says: .*MLFLOW_TRACKING_URI"):
        open_trackers("compress", None)


# TensorBoard


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_has_a_run_for_each_variant_and_the_report_as_text(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    (line,) = log_run(open_trackers(None, tmp_path / "logs"), run)
    target = tmp_path / "logs" / "compressed"
    assert line == f"TensorBoard: {target}"
    top = events(target)
    assert {"report/text_summary", "options/text_summary"} <= set(top.Tags()["tensors"])
    assert top.Scalars("shipped/zip_ratio")[0].value == pytest.approx(76.8, abs=0.1)
    (text,) = top.Tensors("report/text_summary")
    assert SHIPPED in text.tensor_proto.string_val[0].decode()
    shipped = events(target / SHIPPED)
    assert shipped.Scalars("accuracy")[0].value == pytest.approx(0.8862)
    (histogram,) = shipped.Histograms("latency_ms/CPU-batch1-threads1")
    assert histogram.histogram_value.num == 101
    assert {path.name for path in target.iterdir() if path.is_dir()} == {
        variant["name"] for variant in example_report()["variants"]
    }


def test_tensorboard_gets_a_new_folder_for_each_run(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    trackers = open_trackers(None, tmp_path / "logs")
    lines = [*log_run(trackers, run), *log_run(trackers, run)]
    assert lines == [f"TensorBoard: {tmp_path / 'logs' / name}" for name in ("compressed", "compressed-2")]


def test_a_log_directory_that_is_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    (tmp_path / "logs").write_text("")
    with pytest.raises(RecipeError, match=r"--tensorboard .* cannot be written"):
        open_trackers(None, tmp_path / "logs")


# The commands


def test_compress_report_logs_a_finished_run(compress: Call, store: Any, run: Path, tmp_path: Path) -> None:
    told = compress("report", run, "--format", "md", "--mlflow", "--tensorboard", tmp_path / "logs")
    assert told.status == 0, told.err
    assert "MLflow: run " in told.err
    assert "in experiment compress" in told.err
    assert (tmp_path / "logs" / "compressed").is_dir()


def test_compress_pipeline_refuses_a_tracker_that_is_not_there_before_it_reads_the_model(
    compress: Call, store: Any
) -> None:
    import mlflow

    mlflow.set_tracking_uri("nonsense://nowhere")
    told = compress("pipeline", "no-such-model.pt", "--mlflow")
    assert told.status == 1
    assert "--mlflow compress: MLflow says:" in told.err
    assert "no-such-model" not in told.err


def test_nothing_is_logged_unless_asked_for(run: Path) -> None:
    assert log_run(Trackers(), run) == ()
