"""Shared by the tests: a tiny trained model, its data, and a recipe that compresses it in seconds."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from compress.cli import main
from compress.data import DataOptions, load_data
from compress.opening import open_inputs
from compress.pipeline import run
from compress.recipe import Recipe, load_recipe
from compress.reporting.schema import read
from compress.training import FineTuneConfig, finetune
from compress.values import Context, Model, silent
from compress.workspace import MANIFEST, REPORT

# The models are tiny: threads that wait for each other would take longer than the work.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for commands that the tests start
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # timings of layers stay out of the user's cache

# Small enough for seconds, real enough that accuracy means something: 900 of the digits, 8x8 pixels.
SAMPLES = 900
QUICK: dict[str, Any] = {
    "prune": {
        "macs": 0.7,
        "rounds": 1,
        "epochs": 1.0,
        "min_steps": 80,
        "round_to": 1,
        "finetune": {"batch_size": 32, "learning_rate": 0.005},
    },
    "sparsify": {
        "sparsity": 0.6,
        "rounds": 1,
        "epochs": 1.0,
        "min_steps": 80,
        "finetune": {"batch_size": 32, "learning_rate": 0.005},
    },
    "quantize": {"compact": "no", "types": "u8s8"},  # the others have tests of their own
    "benchmark": {"seconds": 0.05, "launches": 1, "threads": 1},
    "preprocess": {"calibration": 64},
    "max_drop": 0.1,
    "objective": "size",
}


def tiny_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def compress(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs the command line, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Outcome(int(left.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(autouse=True)
def hold_reports_against_their_schema(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every report.json that a run of the test wrote is valid, and has every key that the schema knows."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    for path in folder.rglob(REPORT) if folder is not None else ():
        manifest, content = path.parent / MANIFEST, path.read_bytes()
        if manifest.is_file() and hashlib.sha256(content).hexdigest() in manifest.read_text():  # else made by hand
            assert read(content, path) == json.loads(content)


@pytest.fixture(scope="session")
def digits_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """npz with x (900, 1, 8, 8) float32 in 0..1 and y (900,)."""
    digits = load_digits()
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    x = (digits.images[:SAMPLES, None] / 16).astype(np.float32)
    np.savez(path, x=x, y=digits.target[:SAMPLES])
    return path


@pytest.fixture(scope="session")
def model_file(digits_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny CNN, trained on the training split of `digits_file` and pickled whole."""
    data = load_data(f"npz:{digits_file}", DataOptions(calibration=64))
    torch.manual_seed(0)
    module = tiny_cnn()
    finetune(module, None, data.train, FineTuneConfig(batch_size=32, learning_rate=0.01), steps=200, seed=0)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.save(module, path)
    return path


@pytest.fixture(scope="session")
def finished(model_file: Path, digits_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one uninterrupted run, which no test changes."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run(load_recipe(model_file, {"data": f"npz:{digits_file}", "out": out, **QUICK}))
    return out


@pytest.fixture
def quick(model_file: Path, digits_file: Path, tmp_path: Path) -> Any:
    """Makes recipes for the tiny model: quick(out=…, seed=…)."""

    def make(**options: Any) -> Recipe:
        given = {"data": f"npz:{digits_file}", "out": tmp_path / "run", **QUICK, **options}
        return load_recipe(options.pop("model", model_file), {k: v for k, v in given.items() if k != "model"})

    return make


@pytest.fixture
def opened(quick: Callable[..., Recipe], tmp_path: Path) -> tuple[Model, Context]:
    """The tiny model, and what its stages are given."""
    recipe = quick()
    opened = open_inputs(recipe, silent)
    assert opened.original is not None
    return opened.original, opened.context(tmp_path, recipe, silent)
