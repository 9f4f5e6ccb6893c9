"""This project's entries: `compress pipeline` with one objective, as a user would type it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import compress
from benchmarks.compare.entries import Entry
from benchmarks.compare.inputs import MODEL, Inputs, flags_of
from benchmarks.compare.made import Made, Point
from benchmarks.peers.apart import Ran
from compress.measurement.environment import environment
from compress.recipe import load_recipe
from compress.workspace import RECORD, fingerprint, read_run

RUN = "run"  # the run directory, in the entry's folder
NOT_MET = 3  # the exit status of `compress pipeline` where no variant kept the accuracy
_MEASURED_AGAIN = ("benchmark.seconds=1", "benchmark.launches=3", "benchmark.sensitivity_seconds=0")
_STAGES = ("prune", "sparsify", "export", "quantize", "benchmark")


def command(inputs: Inputs, entry: Entry, folder: Path) -> list[str]:
    """The command line; a run that is in ``folder`` already is gone on with."""
    workload = inputs.spec
    assert entry.objective is not None
    line = [sys.executable, "-m", "compress", "pipeline", str(inputs.checkpoint.absolute() / MODEL)]
    line += [*flags_of(inputs), "--objective", entry.objective, "--max-drop", f"{entry.max_drop:g}", "--threads", "1"]
    line += ["--seed", str(inputs.seed), "--epochs", f"{workload.epochs:g}"]
    for text in overrides(inputs):
        line += ["--set", text]
    return [*line, "--resume", "--out", str((folder / RUN).absolute())]


def overrides(inputs: Inputs) -> list[str]:
    """The workload's training budget, which all entries have; what is measured here is measured again beside peers."""
    workload = inputs.spec
    budget = {
        "min_steps": workload.min_steps,
        "finetune.learning_rate": workload.learning_rate,
        "finetune.batch_size": workload.batch_size,
    }
    given = [f"{stage}.{name}={value:g}" for stage in ("prune", "sparsify") for name, value in budget.items()]
    return [*given, *workload.overrides, *_MEASURED_AGAIN]


def identity(inputs: Inputs, entry: Entry) -> str:
    """sha256 of the inputs, of the command, and of the defaults that it leaves alone; not of this project's code."""
    defaults = load_recipe(None, {"objective": entry.objective})
    return fingerprint(
        inputs=inputs.identity,
        overrides=[inputs.spec.epochs, *overrides(inputs)],
        objective=entry.objective,
        max_drop=entry.max_drop,
        skip=defaults.skip,
        stages=[dataclasses.asdict(getattr(defaults, stage)) for stage in _STAGES],
    )


def versions() -> dict[str, str]:
    """What makes this project's files; "source" tells apart what is between two versions."""
    known = environment(threads=1)
    digest = hashlib.sha256()
    for path in sorted(Path(compress.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    packages = {package: str(known[package]) for package in ("compress", "torch", "onnxruntime", "onnx")}
    return {**packages, "source": digest.hexdigest()[:12]}


def read(made: Made, entry: Entry, folder: Path, ran: Ran, resumed: bool) -> Made:
    """What a finished run tells of itself.

    Args:
        made: What is known of it before.
        ran: How its process ended.
        resumed: Stages were there before: neither that process's time nor this code made all of the run.
    """
    report, records = read_run(folder / RUN), _records(folder / RUN)
    shipped = next(variant for variant in report["variants"] if variant["name"] == report["shipped"])
    drop = shipped["validation"]["drop"]
    point = Point(f"{RUN}/model.onnx", shipped["name"], drop, within=drop <= entry.max_drop)
    return dataclasses.replace(
        made,
        seconds=round(sum(record["seconds"] for stage, record in records.items() if stage != "benchmark"), 2),
        process_seconds=ran.seconds,
        cpu_seconds=None if resumed else ran.cpu_seconds,
        steps=sum(step["steps"] for record in records.values() for step in record["figures"].get("rounds", ())),
        versions={name: version for name, version in made.versions.items() if name != "source" or not resumed},
        points=(point,),
    )


def _records(run: Path) -> dict[str, dict[str, Any]]:
    """The record of each stage by its name, in their order."""
    paths = sorted((run / "stages").glob(f"*/{RECORD}"))
    records = [json.loads(path.read_text()) for path in paths]
    return {record["stage"]: record for record in records}
