"""What every entry of a workload is given: the dense model, the data but for test, and the budget."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.compare import narrowest
from benchmarks.compare.entries import MAX_DROP
from benchmarks.workloads import (
    VOCABULARY,
    WORKLOADS,
    Workload,
    data_flags,
    data_of,
    factory_args,
    model_flags,
    write_split,
)
from compress import models
from compress.data import Data, load_data
from compress.files import write_atomically
from compress.measurement import outputs_of
from compress.measurement.accuracy import accuracy
from compress.onnx_export import ExportConfig, export
from compress.training import FineTuneConfig, plan_steps
from compress.values import Context, Model

ROUNDS = 8  # of fine-tuning: the most that `compress pipeline` spends with any objective

INPUTS, BUDGET, FLOAT, MODEL, TEST = "inputs", "budget.json", "float.onnx", "model.pt", "test.npz"
_DONE = "prepared.json"


@dataclass(frozen=True)
class Inputs:
    """What was prepared for one workload and seed."""

    workload: str
    seed: int
    work: Path  # test.npz, inputs/, and a folder for each entry
    checkpoint: Path  # folder of the dense model.pt
    root: Path | None  # of the data, where it has to be named
    identity: str  # sha256 of the model, the data and the budget

    @property
    def folder(self) -> Path:
        """What peers are given: all but test.npz."""
        return self.work / INPUTS

    @property
    def spec(self) -> Workload:
        return WORKLOADS[self.workload]

    def budget(self) -> dict[str, Any]:
        """budget.json."""
        budget: dict[str, Any] = json.loads((self.folder / BUDGET).read_text())
        return budget


def checkpoint_of(name: str, seed: int, checkpoints: Path, root: Path | None) -> Path:
    """The folder of a workload's dense model, which is trained where it is missing.

    Seed 0 lies in ``checkpoints``/<name>, seed N in ``checkpoints``-seedN/<name>.
    """
    out = checkpoints if seed == 0 else checkpoints.with_name(f"{checkpoints.name}-seed{seed}")
    if not (out / name / MODEL).exists():
        print(f"{out / name / MODEL} is not there: training it", file=sys.stderr, flush=True)
        module, named = ("train", []) if root is None else ("larger", ["--data-root", str(root)])
        command = [sys.executable, "-m", f"benchmarks.{module}", name, "--out", str(out), "--seed", str(seed), *named]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return out / name


def prepare(name: str, seed: int, checkpoints: Path, work: Path, root: Path | None = None) -> Inputs:
    """Write the inputs of a workload, where they are not there yet or were made of something else.

    Args:
        name: A key of ``WORKLOADS``.
        checkpoints: See `checkpoint_of`.
        work: The folder of all workloads.
        root: The folder of the data, where the workload asks for one.

    Raises:
        SystemExit: the workload asks for a folder.
    """
    workload = WORKLOADS[name]
    if workload.trained.root is not None and root is None:
        raise SystemExit(
            f"{name} needs data that is not here: give --data-root, a folder with {workload.trained.root}."
        )
    root = root if workload.trained.root is not None else None
    checkpoint = checkpoint_of(name, seed, checkpoints, root)
    data = load_data(*data_of(workload.trained, checkpoint, root))
    budget = budget_of(name, seed, data)
    found = Inputs(name, seed, work / f"{name}-seed{seed}", checkpoint, root, _identity(checkpoint, data, budget))
    done = found.folder / _DONE
    if not done.exists() or done.read_text() != found.identity:
        shutil.rmtree(found.folder, ignore_errors=True)
        _write(found, data, budget)
        (found.work / narrowest.FILE).unlink(missing_ok=True)  # of another model
        write_atomically(done, found.identity.encode())
    if not (found.work / narrowest.FILE).exists():
        narrowest.write(*_dense(found, data), found.work)
    return found


def budget_of(name: str, seed: int, data: Data) -> dict[str, Any]:
    """What an entry may spend and lose; ``steps`` counts optimizer steps, those of its search included."""
    workload = WORKLOADS[name]
    config = FineTuneConfig(batch_size=workload.batch_size)
    return {
        "workload": name,
        "seed": seed,
        "steps": ROUNDS * plan_steps(data.train, config, workload.epochs, workload.min_steps),
        "batch_size": workload.batch_size,
        "learning_rate": workload.learning_rate,
        "max_drop": MAX_DROP,
        "input_names": [spec.name for spec in data.inputs],
    }


def _identity(checkpoint: Path, data: Data, budget: Mapping[str, Any]) -> str:
    digest = hashlib.sha256((checkpoint / MODEL).read_bytes())
    vocabulary = checkpoint / VOCABULARY
    digest.update(vocabulary.read_bytes() if vocabulary.exists() else b"")
    digest.update(json.dumps([data.sha256, budget], sort_keys=True).encode())
    return digest.hexdigest()


def _write(inputs: Inputs, data: Data, budget: Mapping[str, Any]) -> None:
    inputs.folder.mkdir(parents=True)
    model, _ = _dense(inputs, data)
    torch.save(model.module, inputs.folder / MODEL)
    for split in (data.train, data.calibration, data.validation):
        write_split(inputs.folder / f"{split.name}.npz", split, data.inputs)
    write_split(inputs.work / TEST, data.test, data.inputs)
    dense, _ = export(model, ExportConfig(), Context(data, inputs.folder), FLOAT)
    baseline = accuracy(outputs_of(dense, data.validation)).value
    content = {**budget, "baseline": {"validation": baseline}}
    (inputs.folder / BUDGET).write_text(json.dumps(content, indent=1))


def _dense(inputs: Inputs, data: Data) -> tuple[Model, tuple[Tensor, ...]]:
    """The dense model, and two samples for it."""
    trained = inputs.spec.trained
    arguments = factory_args(trained, inputs.checkpoint)
    source = models.load(inputs.checkpoint / MODEL, factory=trained.factory, factory_args=arguments)
    assert source.module is not None  # benchmarks.train writes modules and state dicts alone
    example, _ = data.calibration.fetch(data.calibration.indices[:2])
    return models.bind(source, data.inputs, example), example


def flags_of(inputs: Inputs) -> Sequence[str]:
    """Options of `compress` that read the dense model and its data."""
    trained = inputs.spec.trained
    return [*data_flags(trained, inputs.checkpoint, inputs.root), *model_flags(trained, inputs.checkpoint)]
