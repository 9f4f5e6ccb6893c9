"""A finished run in the tracker that a team has: MLflow or TensorBoard, each through its own library.

Both are extras. They are looked for, and the MLflow server is asked, before the work starts and not after it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import RecipeError, WorkspaceError
from compress.integrity import top_files
from compress.reporting import render_markdown, verdict_sentences
from compress.reporting.run_comparison import options_of
from compress.workspace import MANIFEST, read_run

EXPERIMENT = "compress"  # of MLflow, where no other is named
_BATCH = 100  # parameters that MLflow takes at once
_LONGEST = 500  # characters of a parameter that every MLflow server takes
_COUNTS = ("parameters", "nonzero", "macs", "sparsity", "raw_bytes", "zip_bytes", "zip_ratio", "fidelity", "drop")
_TIMES = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "first_call_ms", "load_ms", "peak_bytes", "throughput", "energy_mj")


@dataclass(frozen=True)
class Trackers:
    """Where a run is logged."""

    mlflow: str | None = None  # the experiment's name; the server is that of MLFLOW_TRACKING_URI
    tensorboard: Path | None = None  # the log directory: each run gets a folder in it


def open_trackers(mlflow: str | None, tensorboard: Path | None) -> Trackers:
    """Make sure that a run can be logged: the libraries are there, MLflow's store answers, the folder can be made.

    Raises:
        RecipeError: one of them cannot be used; the message names the extra to install, or what MLflow said.
    """
    if mlflow is not None:
        _open_experiment(mlflow)
    if tensorboard is not None:
        _library("torch.utils.tensorboard", "tensorboard")
        try:
            tensorboard.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"--tensorboard {tensorboard} cannot be written: {error.strerror or error}.") from error
    return Trackers(mlflow, tensorboard)


def log_run(trackers: Trackers, root: Path) -> tuple[str, ...]:
    """Log the finished run in ``root``.

    Returns:
        One line for each tracker: what was written where.

    Raises:
        WorkspaceError, ReportError: there is no finished run.
        RecipeError: MLflow refused; the run itself is kept.
    """
    report = read_run(root)
    told = []
    if trackers.mlflow is not None:
        told.append(_log_to_mlflow(report, root, trackers.mlflow))
    if trackers.tensorboard is not None:
        told.append(_log_to_tensorboard(report, root, trackers.tensorboard))
    return tuple(told)


def metrics_of(variant: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one variant, those that were measured."""
    found: dict[str, float | None] = {name: variant[name] for name in _COUNTS}
    for name in ("accuracy", "top5"):
        found[name] = None if variant[name] is None else variant[name]["value"]
    if variant["metric"] is not None:
        found[variant["metric"]["name"]] = variant["metric"]["value"]
    for timing in variant["latency"]:
        place = place_of(timing)
        found |= {f"{name}/{place}": timing[name] for name in _TIMES}
        found[f"speedup/{place}"] = None if timing["speedup"] is None else timing["speedup"]["value"]
    return {name: float(value) for name, value in found.items() if value is not None}


def place_of(timing: Mapping[str, Any]) -> str:
    """Where a latency was measured, in letters that every tracker takes: CPU-batch1-threads1."""
    provider = timing["provider"].replace("ExecutionProvider", "").replace(" (TF32)", "-TF32")
    return f"{provider}-batch{timing['batch']}-threads{timing['threads']}"


def parameters_of(report: Mapping[str, Any]) -> dict[str, str]:
    """Every option that decided the run, as text."""
    return {name: str(value)[:_LONGEST] for name, value in options_of(report).items() if value is not None}


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RecipeError(
            f"--{extra} needs a library that is not here ({error}): pip install 'compress-pipeline[{extra}]'."
        ) from error


def _open_experiment(name: str) -> tuple[Any, str]:
    """A client of MLflow's store, and the number of the experiment, which is made where it is not there."""
    mlflow = _library("mlflow", "mlflow")
    try:
        client = mlflow.MlflowClient()
        found = client.get_experiment_by_name(name)
        return client, str(client.create_experiment(name) if found is None else found.experiment_id)
    except Exception as error:  # of the store: a database, a file system, HTTP
        raise _refused(name, error) from error


def _refused(experiment: str, error: Exception) -> RecipeError:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return RecipeError(f"--mlflow {experiment}: MLflow says: {first} Set MLFLOW_TRACKING_URI to a store that answers.")


def _log_to_mlflow(report: Mapping[str, Any], root: Path, experiment: str) -> str:
    from mlflow.entities import Metric, Param, RunTag

    client, number = _open_experiment(experiment)
    try:
        run = client.create_run(number, run_name=root.resolve().name)
        key, now = run.info.run_id, run.info.start_time
        parameters = [Param(*pair) for pair in parameters_of(report).items()]
        for start in range(0, len(parameters), _BATCH):
            client.log_batch(key, params=parameters[start : start + _BATCH])
        tags = [RunTag(*pair) for pair in _tags(report)]
        client.log_batch(key, tags=tags, metrics=[Metric(*pair, now, 0) for pair in _verdict(report).items()])
        for step, variant in enumerate(report["variants"]):
            figures = {f"{variant['name']}/{name}": value for name, value in metrics_of(variant).items()}
            client.log_batch(key, metrics=[Metric(*pair, now, step) for pair in figures.items()])
        for path in (*top_files(root), root / MANIFEST):
            client.log_artifact(key, str(path))
        client.set_terminated(key)
    except Exception as error:
        raise WorkspaceError(
            f"{_refused(experiment, error)} The run is whole; log it with `compress report {root} --mlflow`."
        ) from error
    return f"MLflow: run {key} in experiment {experiment}"


def _tags(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "compress.passed", str(report["verdict"]["passed"]).lower()
    yield "compress.shipped", report["shipped"]
    yield "compress.command", report["command"]
    yield "mlflow.note.content", "\n\n".join(verdict_sentences(report))  # MLflow shows it as the run's description
    for name, value in report["environment"].items():
        yield f"environment.{name}", ", ".join(value) if isinstance(value, list) else str(value)


def _verdict(report: Mapping[str, Any]) -> dict[str, float]:
    verdict = report["verdict"]
    figures = {name: verdict[name] for name in ("drop", "zip_ratio", "speedup")}
    figures["zip_bytes"] = report["shipped_zip_bytes"]
    return {f"shipped/{name}": float(value) for name, value in figures.items() if value is not None}


def _log_to_tensorboard(report: Mapping[str, Any], root: Path, directory: Path) -> str:
    """A folder a variant, so that TensorBoard shows each as a run; the report and what ships in the one above."""
    from torch.utils.tensorboard import SummaryWriter

    target = _unused(directory / root.resolve().name)
    with SummaryWriter(str(target)) as writer:
        writer.add_text("report", render_markdown(report))
        rows = "".join(f"| {name} | {value} |\n" for name, value in parameters_of(report).items())
        writer.add_text("options", f"| option | value |\n|---|---|\n{rows}")
        for name, value in _verdict(report).items():
            writer.add_scalar(name, value)
    given = {"objective": report["objective"], "max_drop": report["verdict"]["max_drop"], "seed": report["seed"]}
    for variant in report["variants"]:
        figures = metrics_of(variant)
        told = {"variant": variant["name"], "stage": variant["stage"], **given}
        with SummaryWriter(str(target / variant["name"])) as writer:
            writer.add_hparams(told, figures, run_name=".")
            for timing in variant["latency"]:
                if timing["quantiles_ms"]:  # of the samples, 101 evenly spaced: their histogram is that of all
                    writer.add_histogram(f"latency_ms/{place_of(timing)}", np.array(timing["quantiles_ms"]))
    return f"TensorBoard: {target}"


def _unused(path: Path) -> Path:
    """The path, or with a number after it where an earlier run was logged there."""
    number = 2
    found = path
    while found.exists():
        found, number = path.with_name(f"{path.name}-{number}"), number + 1
    return found
