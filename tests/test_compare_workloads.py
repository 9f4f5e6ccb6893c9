"""The workloads of the comparison, and what every entry of one is given."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import benchmarks.train
from benchmarks import larger, workloads
from benchmarks.compare import inputs as inputs_module
from benchmarks.compare import own
from benchmarks.compare.entries import BY_NAME
from benchmarks.compare.inputs import ROUNDS, Inputs, prepare
from benchmarks.workloads import WORKLOADS, Trained, Workload, data_flags, model_flags
from compress.cli import main as cli
from compress.data import DataOptions, load_data
from compress.errors import DataError
from compress.models.reference import digits_cnn
from compress.recipe import load_recipe

OBJECTIVES = ("size", "latency", "balanced")
HERE = [name for name, one in WORKLOADS.items() if not one.trained.text and one.trained.root is None]


@pytest.mark.parametrize("name", HERE)
def test_a_workload_is_compressed_on_the_splits_that_its_model_was_trained_with(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class EnoughError(Exception):
        pass

    def asked(spec: str, options: DataOptions) -> None:
        trained = WORKLOADS[name].trained
        # A limit leaves validation and test as they are: fewer training samples than the dense model's are allowed.
        limit = options.limit if name != "mlp-4x3000" else trained.options.limit
        assert (spec, replace(options, limit=limit)) == (trained.data, trained.options)
        raise EnoughError

    monkeypatch.setattr(benchmarks.train, "load_data", asked)
    with pytest.raises(EnoughError):
        benchmarks.train.MODELS[name](tmp_path, 0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_budget_of_all_entries_is_the_most_that_our_own_runs_may_spend(objective: str) -> None:
    recipe = load_recipe(None, {"objective": objective})
    stages = {name: getattr(recipe, name).rounds for name in ("prune", "sparsify") if name not in recipe.skip}
    assert sum(stages.values()) <= ROUNDS


@pytest.mark.parametrize("name", WORKLOADS)
def test_our_command_is_one_that_the_command_line_knows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / workloads.VOCABULARY).write_text('{"schema": 1, "max_tokens": 48, "vocabulary": ["a", "b"]}')
    (tmp_path / "model.pt").write_bytes(b"")
    given = Inputs(name, 3, tmp_path / "work", tmp_path, tmp_path, "identity")
    seen: list[Any] = []
    monkeypatch.setattr("compress.pipeline.run", lambda recipe, *rest, **more: seen.append(recipe) or sys.exit(0))
    with pytest.raises(SystemExit):
        cli(own.command(given, BY_NAME["compress-size"], tmp_path / "out")[3:])
    (recipe,) = seen
    wanted = WORKLOADS[name]
    assert (recipe.objective, recipe.max_drop, recipe.seed, recipe.resume) == ("size", 0.01, 3, True)
    for stage in (recipe.prune, recipe.sparsify):
        assert (stage.epochs, stage.min_steps) == (wanted.epochs, wanted.min_steps)
        assert stage.finetune.learning_rate == wanted.learning_rate
        assert stage.finetune.batch_size == wanted.batch_size
    spec, options = workloads.data_of(wanted.trained, tmp_path, tmp_path)
    assert (recipe.data, recipe.preprocess) == (spec, options)


def test_data_that_has_to_be_named_is_asked_for_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--data-root, a folder with cifar-10-batches-py"):
        prepare("resnet18-cifar10", 0, tmp_path, tmp_path)
    assert "--data-root" in data_flags(WORKLOADS["resnet18-cifar10"].trained, tmp_path, tmp_path)
    assert data_flags(WORKLOADS["lstm-imdb"].trained, tmp_path, tmp_path)[1] == f"csv:{tmp_path}/imdb.csv"


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of checkpoints; the workload is called digits."""
    workload = Workload("cnn", Trained("digits", DataOptions(calibration=24)), 0.5, 10, 0.002)
    monkeypatch.setitem(WORKLOADS, "digits", workload)  # type: ignore[arg-type]  # a Mapping to all others
    (tmp_path / "checkpoints" / "digits").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(digits_cnn(), tmp_path / "checkpoints" / "digits" / "model.pt")
    return tmp_path / "checkpoints"


def test_peers_are_given_the_model_the_budget_and_every_split_but_test(digits: Path, tmp_path: Path) -> None:
    found = prepare("digits", 0, digits, tmp_path / "work")
    names = {path.name for path in found.folder.iterdir()}
    assert {"model.pt", "float.onnx", "train.npz", "calibration.npz", "validation.npz", "budget.json"} <= names
    assert "test.npz" not in names
    assert (found.work / "test.npz").exists()
    data = load_data("digits", DataOptions(calibration=24))
    for split in (data.train, data.calibration, data.validation):
        columns, labels = split.fetch(split.indices)
        with np.load(found.folder / f"{split.name}.npz") as stored:
            assert np.array_equal(stored["input"], columns[0].numpy())
            assert labels is not None
            assert np.array_equal(stored["labels"], labels.numpy())
    budget = found.budget()
    assert budget["steps"] == ROUNDS * max(10, round(0.5 * len(data.train) / 128))
    assert 0 < budget["baseline"]["validation"] < 0.5  # it was never trained
    assert isinstance(torch.load(found.folder / "model.pt", weights_only=False), torch.nn.Module)
    before = (found.folder / "float.onnx").stat().st_mtime_ns
    assert prepare("digits", 0, digits, tmp_path / "work") == found
    assert (found.folder / "float.onnx").stat().st_mtime_ns == before


def test_inputs_are_made_again_when_the_model_or_the_budget_changes(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def write(inputs: Inputs, data: object, budget: object) -> None:
        inputs.folder.mkdir(parents=True)
        written.append(inputs.identity)

    monkeypatch.setattr(inputs_module, "_write", write)
    for _ in range(2):
        prepare("digits", 0, digits, tmp_path / "work")
    assert len(written) == 1
    monkeypatch.setitem(WORKLOADS, "digits", replace(WORKLOADS["digits"], epochs=20))  # type: ignore[arg-type]
    prepare("digits", 0, digits, tmp_path / "work")
    torch.save(digits_cnn(), digits / "digits" / "model.pt")
    prepare("digits", 0, digits, tmp_path / "work")
    assert len(set(written)) == 3


def test_a_dense_model_that_is_missing_is_trained_where_its_seed_has_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda command, **options: commands.append(command))
    folder = inputs_module.checkpoint_of("cnn", 2, tmp_path / "checkpoints", None)
    assert folder == tmp_path / "checkpoints-seed2" / "cnn"
    assert commands[0][1:] == [
        "-m", "benchmarks.train", "cnn", "--out", str(tmp_path / "checkpoints-seed2"), "--seed", "2",
    ]  # fmt: skip


def test_a_text_model_tells_its_vocabulary(tmp_path: Path) -> None:
    (tmp_path / workloads.VOCABULARY).write_text('{"schema": 1, "max_tokens": 48, "vocabulary": ["a", "b"]}')
    flags = model_flags(WORKLOADS["lstm"].trained, tmp_path)
    assert flags[-1] == '{"vocabulary": 4}'


def test_every_workload_has_a_script_that_trains_its_model() -> None:
    named = {name for name, one in WORKLOADS.items() if one.trained.root is not None}
    assert set(larger.MODELS) == named
    assert set(WORKLOADS) - named <= set(benchmarks.train.MODELS)


def test_the_larger_lstm_is_trained_on_reviews_and_loads_with_its_vocabulary(tmp_path: Path) -> None:
    feelings = ("positive", "negative")
    rows = [f"a {word} film and its number {i},{feelings[i % 2]}" for i in range(10) for word in ("dull", "bright")]
    (tmp_path / "imdb.csv").write_text("\n".join(["review,sentiment", *rows]) + "\n")
    trained = larger.lstm_imdb(tmp_path, 0, tmp_path)
    assert trained.data.class_names == ("negative", "positive")
    vocabulary = workloads.factory_args(WORKLOADS["lstm-imdb"].trained, tmp_path)["vocabulary"]
    assert trained.module.get_parameter("embedding.weight").shape[0] == vocabulary
    assert trained.data.inputs[0].shape == (larger.WORDS,)


def test_a_model_whose_data_is_not_there_says_which_folder_to_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        larger.resnet18_cifar10(tmp_path, 0, tmp_path)
