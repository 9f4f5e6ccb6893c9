"""compress reduce: what it writes and prints, and how it ends."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import Call

FILES = {"weights.safetensors", "kept.json", "history.json", "history.csv", "history.svg", "history.png"}
FAST = (
    "--step", 0.25, "--probes", 1, "--rounds", 2, "--epochs", 0.1,
    "--set", "reduce.min_steps=40", "--set", "reduce.finetune.learning_rate=0.005",
)  # fmt: skip


@pytest.fixture
def call(compress: Call, model_file: Path, digits_file: Path) -> Call:
    """Runs compress reduce on the tiny model."""
    return partial(compress, "reduce", model_file, "--data", f"npz:{digits_file}", *FAST)


def test_it_writes_the_smaller_model_and_its_history_and_nothing_else(call: Call, tmp_path: Path) -> None:
    outcome = call("--accuracy-threshold", 0.2, "--loss-threshold", 1)
    assert outcome.status == 0, outcome.err
    assert {path.name for path in (tmp_path / "reduced").iterdir()} == FILES
    history = json.loads((tmp_path / "reduced" / "history.json").read_text())
    last = history["rounds"][-1]
    weights = load_file(tmp_path / "reduced" / "weights.safetensors")
    parameters = sum(value.numel() for name, value in weights.items() if "running" not in name and "num" not in name)
    assert parameters == last["parameters"] < history["rounds"][0]["parameters"]
    kept = json.loads((tmp_path / "reduced" / "kept.json").read_text())
    assert "6.weight" in json.dumps(kept)


def test_it_prints_widths_capacity_and_test_accuracy_before_and_after(call: Call) -> None:
    outcome = call("--accuracy-threshold", 0.2, "--loss-threshold", 1)
    assert "6: 32 -> " in outcome.out
    assert "capacity: " in outcome.out
    assert "bits (" in outcome.out
    assert "test, original: accuracy 0." in outcome.out
    assert "test, reduced: accuracy 0." in outcome.out
    assert "candidate 1" in outcome.err


def test_without_a_candidate_within_the_thresholds_only_the_history_is_written(call: Call, tmp_path: Path) -> None:
    outcome = call(
        "--accuracy-threshold", 0, "--loss-threshold", 0, "--step", 0.5, "--fresh", "--set", "reduce.min_steps=1"
    )
    assert outcome.status == 3, outcome
    assert "no candidate" in outcome.out
    assert {path.name for path in (tmp_path / "reduced").iterdir()} == FILES - {"weights.safetensors", "kept.json"}


def test_a_directory_that_is_not_empty_is_replaced_only_when_asked(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "reduced"
    folder.mkdir()
    (folder / "kept.json").write_text("old")
    assert call().status == 2
    call("--overwrite", "--rounds", 0)
    assert not (folder / "kept.json").exists()


def test_a_threshold_out_of_range_is_refused_before_any_work(call: Call, tmp_path: Path) -> None:
    outcome = call("--accuracy-threshold", 2)
    assert outcome.status == 1
    assert "accuracy_threshold=2.0" in outcome.err
    assert not (tmp_path / "reduced").exists()
