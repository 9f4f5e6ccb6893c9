"""compress curve: what it writes and prints, and how it goes on after an interruption."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import pytest

from compress.cli import main
from compress.sparsity.sensitivity import figure_of
from tests.conftest import Call

FILES = {"curve.csv", "curve.json", "curve.png", "curve.svg", "runs.json"}
FAST = (
    "--rates", "0,0.5,0.8", "--seeds", 2, "--epochs", 0.5, "--methods", "random,flat,lamp+finetune",
    "--set", "curve.finetune.batch_size=32", "--set", "curve.samples=100",
)  # fmt: skip


@pytest.fixture
def call(compress: Call, model_file: Path, digits_file: Path) -> Call:
    """Runs compress curve on the tiny model."""
    return partial(compress, "curve", model_file, "--data", f"npz:{digits_file}", *FAST)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def stopped(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a run that was interrupted at its sixth point."""
    points = 0

    def interrupted(*arguments: object, **options: object) -> object:
        nonlocal points
        points += 1
        if points > 4:
            raise KeyboardInterrupt
        return figure_of(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("compress.sparsity.curves.figure_of", interrupted)
        assert call("--out", "stopped").status == 130
    return tmp_path / "stopped"


def test_it_writes_four_files_whose_figures_agree_with_each_other_and_with_what_it_prints(
    call: Call, tmp_path: Path
) -> None:
    outcome = call()
    assert outcome.status == 0, outcome.err
    assert {path.name for path in (tmp_path / "curve").iterdir()} == FILES
    written = json.loads((tmp_path / "curve" / "curve.json").read_text())
    with (tmp_path / "curve" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert next(iter(written)) == "schema"
    assert list(written["auc"]) == ["random", "flat", "lamp+finetune"]
    assert [(r["method"], float(r["rate"]), float(r["accuracy"]), float(r["sparsity"])) for r in rows] == [
        (p["method"], p["rate"], p["value"], p["sparsity"]) for p in written["points"]
    ]
    assert written["n"] == written["points"][0]["n"] > 0
    assert len(written["model"]["sha256"]) == len(written["data"]["sha256"]) == 64
    assert {"torch", "cpu"} <= set(written["environment"])
    for value in written["auc"].values():
        assert f"{value:.4f}" in outcome.out
    assert f"ceiling: {written['ceiling']:.4f}" in outcome.out
    assert "scored on" in outcome.out
    assert "test split" in outcome.out


def test_a_stopped_run_resumes_to_the_same_files_as_a_whole_one(call: Call, stopped: Path, tmp_path: Path) -> None:
    assert set(content(stopped)) == {"runs.json"}
    assert len(json.loads((stopped / "runs.json").read_text())["runs"]) >= 4
    assert call("--out", stopped, "--resume").status == 0
    assert call("--out", "whole").status == 0
    assert content(stopped) == content(tmp_path / "whole")


def test_more_rates_and_methods_are_added_to_what_is_there(call: Call, tmp_path: Path) -> None:
    assert call().status == 0
    before = json.loads((tmp_path / "curve" / "runs.json").read_text())["runs"]
    assert call("--resume", "--rates", "0,0.5,0.7,0.8", "--methods", "flat,layer").status == 0
    after = json.loads((tmp_path / "curve" / "runs.json").read_text())["runs"]
    assert after[: len(before)] == before
    assert [(run["method"], run["rate"]) for run in after[len(before) :]] == [
        ("flat", 0.7), ("layer", 0.0), ("layer", 0.5), ("layer", 0.7), ("layer", 0.8),
    ]  # fmt: skip


def test_runs_of_other_options_are_not_resumed(call: Call, stopped: Path) -> None:
    before = content(stopped)
    outcome = call("--out", stopped, "--resume", "--epochs", 1)
    assert outcome.status == 1
    assert "--resume" in outcome.err
    assert "another model, other data or other options" in outcome.err
    assert content(stopped) == before


def test_a_directory_that_is_in_use_is_refused_and_overwritten_where_asked(call: Call, tmp_path: Path) -> None:
    (tmp_path / "curve").mkdir()
    (tmp_path / "curve" / "mine.txt").write_text("mine")
    refused = call()
    assert refused.status == 1
    assert "not empty" in refused.err
    assert "--overwrite" in refused.err
    assert call("--overwrite").status == 0
    assert set(content(tmp_path / "curve")) == FILES | {"mine.txt"}
    both = call("--overwrite", "--resume")
    assert both.status == 1
    assert "give one of them" in both.err


def test_broken_runs_are_told_and_kept(call: Call, tmp_path: Path) -> None:
    (tmp_path / "curve").mkdir()
    (tmp_path / "curve" / "runs.json").write_text('{"runs": [')
    outcome = call("--resume")
    assert outcome.status == 1
    assert "cannot be read" in outcome.err
    assert content(tmp_path / "curve") == {"runs.json": b'{"runs": ['}


def test_the_dictionary_of_custom_is_given_or_suggested_and_told(call: Call, tmp_path: Path) -> None:
    given = call("--methods", "custom", "--layers", "6=0.9,8=0.5", "--out", "given", "--rates", "0,0.8")
    assert given.status == 0, given.err
    assert "custom: 6 = 0.9000" in given.out
    suggested = call("--methods", "custom", "--out", "suggested", "--rates", "0,0.8")
    assert suggested.status == 0, suggested.err
    written = json.loads((tmp_path / "suggested" / "curve.json").read_text())
    assert set(written["layers"]) == {"0.weight", "6.weight", "8.weight"}
    assert json.loads((tmp_path / "suggested" / "runs.json").read_text())["layers"] == written["layers"]


def test_what_cannot_be_used_is_told_before_anything_is_written(call: Call, tmp_path: Path) -> None:
    for arguments, status, told in (
        (("--methods", "flat,lamb"), 2, "Did you mean 'lamp'?"),
        (("--rates", "0:1:0.1"), 1, "not within 0 <= rate < 1"),
        (("--seeds", 0), 1, "seeds=0"),
        (("--layers", "fc1"), 2, "'fc1' is not a list such as"),
        (("--methods", "custom", "--layers", "nowhere=0.5"), 1, "nowhere"),
        (("--split", "train"), 2, "'train' is not one of"),
    ):
        outcome = call(*arguments)
        assert outcome.status == status, outcome.err
        assert told in outcome.err
    assert not (tmp_path / "curve").exists()


def test_a_file_in_place_of_the_directory_is_refused(call: Call, tmp_path: Path) -> None:
    (tmp_path / "curve").write_text("mine")
    for options in ((), ("--overwrite",), ("--resume",)):
        outcome = call(*options)
        assert outcome.status == 1
        assert "is a file" in outcome.err
    assert (tmp_path / "curve").read_text() == "mine"


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["curve", "--help"])
    assert "compress curve model.pt --data mnist-5k --methods random,layer,flat,lamp" in capsys.readouterr().out
