"""compress compare: two run directories, their answers, and their two files timed together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compress import comparing
from compress.comparing import CompareConfig, compare
from compress.errors import MeasurementError, WorkspaceError
from compress.measurement import BenchmarkConfig
from compress.measurement.latency import measure
from compress.measurement.worker import Worker
from tests.conftest import Call
from tests.reports import SAMPLES, SHIPPED, example_report
from tests.runs import tiny_onnx, write_answers, write_run

QUICK = CompareConfig(benchmark=BenchmarkConfig(seconds=0.02, min_samples=2, rounds=2, launches=1))
UNTIMED = CompareConfig(timing=False)
OTHER = "pruned-sparse-int8-weights"


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs that ship different files."""
    after = {**example_report(), "shipped": OTHER}
    return write_run(tmp_path / "a"), write_run(tmp_path / "b", after, tiny_onnx(width=8))


def test_both_files_are_timed_together_where_both_runs_timed_them(runs: tuple[Path, Path]) -> None:
    comparison = compare(*runs, QUICK, launch=Worker)
    latency = comparison["latency"]
    assert latency["together"]
    assert [(row["provider"], row["batch"], row["threads"]) for row in latency["rows"]] == [
        ("CPUExecutionProvider", 1, 1),
        ("CPUExecutionProvider", 8, 1),
    ]
    for row in latency["rows"]:
        assert row["before"] > 0
        assert row["after"] > 0
        assert row["speedup"]["low"] <= row["speedup"]["value"] <= row["speedup"]["high"]


def test_no_timing_shows_what_was_recorded_and_says_what_it_is_worth(runs: tuple[Path, Path]) -> None:
    latency = compare(*runs, UNTIMED)["latency"]
    assert not latency["together"]
    assert "two moments of this machine" in latency["reason"]
    assert latency["rows"][0]["before"] == pytest.approx(0.0704)


def test_recorded_latencies_of_two_machines_are_called_that(runs: tuple[Path, Path], tmp_path: Path) -> None:
    report = example_report()
    report["environment"] = {**report["environment"], "cpu": "Another CPU"}
    other = write_run(tmp_path / "c", report)
    reason = compare(runs[0], other, UNTIMED)["latency"]["reason"]
    assert "different machines (cpu: " in reason
    assert "Another CPU" in reason


def test_the_same_file_twice_is_not_timed(runs: tuple[Path, Path], tmp_path: Path) -> None:
    def never() -> Any:
        raise AssertionError("started a process")

    latency = compare(runs[0], write_run(tmp_path / "again"), QUICK, launch=never)["latency"]
    assert latency["reason"] == "both runs ship the same model.onnx, byte for byte"


def test_the_same_graph_with_other_weights_beside_it_is_timed(tmp_path: Path) -> None:
    roots = []
    for name, scale in (("a", 1.0), ("b", 2.0)):
        model = onnx.load_from_string(tiny_onnx(width=512, scale=scale))
        path = tmp_path / "made" / name / "model.onnx"
        path.parent.mkdir(parents=True)
        onnx.save_model(model, str(path), save_as_external_data=True, location="model.onnx.data")
        roots.append(write_run(tmp_path / name, model=path.read_bytes()))
        (roots[-1] / "model.onnx.data").write_bytes((path.parent / "model.onnx.data").read_bytes())
    assert (roots[0] / "model.onnx").read_bytes() == (roots[1] / "model.onnx").read_bytes()
    assert compare(roots[0], roots[1], QUICK, launch=Worker)["latency"]["together"]


def test_files_with_other_inputs_are_compared_but_not_timed(runs: tuple[Path, Path], tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    other = write_run(tmp_path / "c", model=model.SerializeToString())
    comparison = compare(runs[0], other, QUICK, launch=Worker)
    assert comparison["latency"]["reason"].startswith("their inputs differ")
    assert comparison["size"]["zip_bytes"]["before"] == 9_927


def test_a_model_that_cannot_be_read_leaves_the_rest_of_the_comparison(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "c", model=b"no graph")
    latency = compare(runs[0], other, QUICK, launch=Worker)["latency"]
    assert not latency["together"]
    assert "model.onnx" in latency["reason"]


def test_answers_to_the_same_samples_are_read_from_both_runs(runs: tuple[Path, Path]) -> None:
    labels = np.arange(SAMPLES) % 10
    worse = np.where(np.arange(SAMPLES) < 60, (labels + 1) % 10, labels)
    write_answers(runs[0], labels, pruned_sparse_int8=labels)
    write_answers(runs[1], labels, pruned_sparse_int8_weights=worse)
    quality = compare(*runs, UNTIMED)["quality"]
    assert quality["paired"]
    assert quality["mcnemar"]["only_before"] == 60
    assert quality["change"]["value"] == pytest.approx(-0.006)
    assert quality["change"]["significant"]


def test_answers_to_other_labels_are_not_paired(runs: tuple[Path, Path]) -> None:
    labels = np.arange(SAMPLES) % 10
    write_answers(runs[0], labels, pruned_sparse_int8=labels)
    write_answers(runs[1], labels[::-1].copy(), pruned_sparse_int8_weights=labels)
    quality = compare(*runs, UNTIMED)["quality"]
    assert not quality["paired"]
    assert quality["reason"] == "the labels of the two runs' test samples differ"
    assert quality["change"]["high"] > 0 > quality["change"]["low"]


def test_a_run_that_kept_no_answers_is_named(runs: tuple[Path, Path]) -> None:
    write_answers(runs[0], np.zeros(SAMPLES, np.int64), pruned_sparse_int8=np.zeros(SAMPLES, np.int64))
    assert compare(*runs, UNTIMED)["quality"]["reason"] == f"{runs[1]} kept no answers.npz"


def test_a_run_whose_model_was_swapped_is_refused(runs: tuple[Path, Path]) -> None:
    (runs[1] / "model.onnx").write_bytes(tiny_onnx(width=2))
    with pytest.raises(MeasurementError, match=r"is not as its run left it: model\.onnx is not the file"):
        compare(*runs, UNTIMED)


def test_what_is_no_run_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="is not there"):
        compare(runs[0], tmp_path / "nothing", UNTIMED)


# The command


def test_the_command_prints_tables_and_sentences_and_writes_both_files(compress: Call, runs: tuple[Path, Path]) -> None:
    told = compress("compare", *runs, "--no-timing", "--md", "out.md", "--html", "out.html")
    assert told.status == 0, told.err
    assert "what ships" in told.out
    assert f"{OTHER} ships in place of {SHIPPED}." in told.out
    assert Path("out.md").read_text().startswith("# Two runs compared")
    assert "<title>Two runs compared</title>" in Path("out.html").read_text()


def test_the_command_prints_one_json_document(compress: Call, runs: tuple[Path, Path]) -> None:
    told = compress("compare", *runs, "--no-timing", "--json")
    assert json.loads(told.out)["runs"][1]["shipped"] == OTHER
    assert told.err == ""


def test_the_command_times_both_files_again(
    compress: Call, runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "measure", lambda *given: measure(*given[:4], launch=Worker))  # without processes
    told = compress("compare", *runs, "--seconds", "0.02", "--quiet")
    assert told.status == 0, told.err
    assert "timed together here" in told.out
    assert told.err == ""
