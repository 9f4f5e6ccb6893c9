"""What the comparison measures: every file beside the dense one, errors in their rows, nothing done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from benchmarks.compare import call, measured, narrowest
from benchmarks.compare.entries import ENTRIES
from benchmarks.compare.frontier import best_peer
from benchmarks.compare.made import Made, Point
from benchmarks.compare.measured import measure
from benchmarks.compare.row import Row
from benchmarks.peers import native
from benchmarks.peers.opened import TestSet, answer
from compress.measurement.latency import Job, time_together
from compress.measurement.timing import Timing
from compress.models.torchvision_compat import ensure_operators
from compress.values import InputSpec, Model

SCRIPTS = Path(native.__file__).parent
COUNT = 40
WEIGHT = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
# A runtime of its own: numpy, in a process that speaks the protocol.
NUMPY = """
import numpy as np
from benchmarks.peers.native import Native
from compress.measurement.serving import serve

class Numpy(Native):
    package = "numpy"
    def prepare(self, path, provider, threads, feeds):
        self.weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
        return self.call_on(feeds)
    def call_on(self, feeds):
        assert feeds["x"].shape == (1, 8)
        return lambda: feeds["x"] @ self.weight

serve(Numpy)
"""


def linear(weight: NDArray[np.float32], batch: int | str = "batch", ir_version: int = 10) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(*given) for given in (("x", 1, [batch, 8]), ("y", 1, [batch, 4])))
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    graph = helper.make_graph([node], "linear", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=ir_version)


def samples(seed: int) -> dict[str, NDArray[Any]]:
    """Which the dense model answers rightly, but for the first."""
    x = np.random.default_rng(seed).normal(size=(COUNT, 8)).astype(np.float32)
    labels = (x @ WEIGHT).argmax(axis=1)
    labels[0] = (labels[0] + 1) % 4
    return {"x": x, "labels": labels}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    onnx.save(linear(WEIGHT), inputs / "float.onnx")
    np.savez(inputs / "validation.npz", **samples(1))
    np.savez(tmp_path / "test.npz", **samples(2))
    (inputs / "budget.json").write_text(json.dumps({"max_drop": 0.01}))
    return tmp_path


def made(work: Path, name: str, *models: onnx.ModelProto, **fields: Any) -> Made:
    """What an entry would leave that wrote ``models``."""
    (work / name).mkdir(exist_ok=True)
    for number, model in enumerate(models):
        onnx.save(model, work / name / f"p{number}.onnx")
    points = tuple(Point(f"p{number}.onnx", f"point {number}") for number in range(len(models)))
    return Made(name, "in words", None, "identity", points=points, **fields)


def run(work: Path, *all_made: Made) -> list[Row]:
    """The rows of files."""
    return measure("cnn", 0, work, all_made, seconds=0.02, launches=1)[:-1]


def test_beside_every_file_a_call_is_timed_that_computes_nothing(work: Path) -> None:
    wide = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    *_, alone = measure("cnn", 0, work, [made(work, "torch-prune", linear(wide))], seconds=0.02, launches=1)
    assert (alone.entry, alone.kind, alone.status, alone.eligible) == (call.NAME, "limit", "ok", False)
    assert (alone.file, alone.zip_bytes, alone.validation) == (None, None, None)
    assert alone.p50_ms is not None
    copied = onnxruntime.InferenceSession(work / call.FILE, providers=["CPUExecutionProvider"])
    given = samples(3)["x"]
    np.testing.assert_array_equal(copied.run(None, {"x": given})[0], given)
    assert best_peer([alone], "p50") is None


def test_the_net_one_channel_wide_is_timed_where_it_was_written(work: Path) -> None:
    module = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    narrowest.write(Model(module, (InputSpec("x", (8,)),)), (torch.rand(2, 8),), work)
    weights = {tuple(tensor.dims) for tensor in onnx.load(work / narrowest.FILE).graph.initializer}
    assert any(1 in shape for shape in weights)
    assert not any(64 in shape for shape in weights)
    dense, _, narrow, alone = measure("cnn", 0, work, [made(work, "torch-prune", linear(WEIGHT))], 0.02, launches=1)
    assert (narrow.entry, narrow.kind, narrow.eligible) == (narrowest.NAME, "limit", False)
    assert narrow.p50_ms is not None
    assert (dense.entry, alone.entry) == ("dense", call.NAME)
    assert best_peer([narrow, alone], "p50") is None


def test_no_file_is_written_of_a_net_that_no_channel_can_leave(work: Path) -> None:
    narrowest.write(Model(nn.Linear(8, 4).eval(), (InputSpec("x", (8,)),)), (torch.rand(2, 8),), work)
    assert not (work / narrowest.FILE).exists()


def test_every_file_has_a_row_beside_the_dense_one_with_its_size_accuracy_and_latency(work: Path) -> None:
    sparse = WEIGHT * (np.abs(WEIGHT) > 0.5)
    dense, same, other = run(work, made(work, "torch-prune", linear(WEIGHT), linear(sparse), steps=7, lines=30))
    assert (dense.entry, dense.kind, dense.eligible, dense.drop_interval) == ("dense", "dense", True, None)
    assert dense.test is not None
    assert (dense.test.value, dense.test.n) == ((COUNT - 1) / COUNT, COUNT)
    assert (same.entry, same.kind, same.file, same.settings) == ("torch-prune", "peer", "p0.onnx", "point 0")
    assert (same.steps, same.lines, same.validation_drop, same.eligible) == (7, 30, 0.0, True)
    assert (other.parameters, other.nonzero) == (32, np.count_nonzero(sparse))
    assert other.zip_bytes is not None
    assert dense.zip_bytes is not None
    assert other.zip_bytes < dense.zip_bytes
    assert all(row.status == "ok" and row.p50_ms is not None for row in (dense, same, other))
    assert same.speedup is not None
    assert same.p50_interval is not None
    assert same.right is not None
    assert same.right.sum() == COUNT - 1


def test_what_loses_more_on_validation_than_is_allowed_is_not_eligible(work: Path) -> None:
    _, lost = run(work, made(work, "torch-prune", linear(-WEIGHT)))
    assert lost.validation_drop is not None
    assert lost.validation_drop > 0.01
    assert not lost.eligible
    assert lost.test_drop is not None
    assert lost.drop_interval is not None
    assert lost.drop_interval[0] <= lost.test_drop <= lost.drop_interval[1]


def test_an_entry_that_failed_and_a_file_that_cannot_be_opened_are_rows_with_their_errors(work: Path) -> None:
    broken = made(work, "torch-prune", linear(WEIGHT[:5]))
    failed = Made("torch-pruning", "in words", None, "identity", status="ImportError: no such thing")
    nothing = Made("torch-prune-ort", "in words", None, "identity")
    rows = run(work, broken, failed, nothing)
    assert [row.status == "ok" for row in rows] == [True, False, False, False]
    assert "p0.onnx" in rows[1].status
    assert str(work) not in rows[1].status
    assert [row.status for row in rows[2:]] == ["ImportError: no such thing", "made no file"]
    assert all(row.p50_ms is None and not row.eligible for row in rows[1:])


def test_a_file_of_a_newer_ir_version_is_stamped_and_says_so(work: Path) -> None:
    _, row = run(work, made(work, "torch-prune", linear(WEIGHT, ir_version=14)))
    assert row.status == "ok"
    assert "IR version 14, stamped 10" in row.notes


def test_another_runtime_is_scored_and_timed_in_its_own_process(work: Path) -> None:
    _, row = run(work, made(work, "dense-openvino", command=(sys.executable, "-c", NUMPY)))
    assert (row.status, row.file, row.kind, row.zip_bytes) == ("ok", None, "dense", None)
    assert (row.validation_drop, row.test_drop, row.eligible) == (0.0, 0.0, True)
    assert row.versions == {"numpy": np.__version__}
    assert row.p50_ms is not None


def test_what_was_measured_before_is_not_measured_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def counted(jobs: list[Job], plan: Any) -> list[Timing]:
        timed.append(len(jobs))
        return time_together(jobs, plan)

    monkeypatch.setattr(measured, "time_together", counted)
    first = made(work, "torch-prune", linear(WEIGHT))
    before = run(work, first)
    assert run(work, first) == before
    assert timed == [3]  # the dense file, this one, and a call alone
    second = made(work, "torch-pruning", linear(-WEIGHT))
    dates = {path: path.stat().st_mtime_ns for path in (work / "scored").iterdir()}
    rows = run(work, first, second)
    assert timed == [3, 4]  # all in one run
    assert len(rows) == 3
    assert all(path.stat().st_mtime_ns == date for path, date in dates.items())
    assert (len(dates), len(list((work / "scored").iterdir()))) == (1, 2)  # the first is the dense file, byte by byte


def test_new_answers_are_asked_for_where_a_file_changed_under_its_name(work: Path) -> None:
    before = run(work, made(work, "torch-prune", linear(WEIGHT)))[1]
    after = run(work, made(work, "torch-prune", linear(-WEIGHT)))[1]
    assert (before.eligible, after.eligible) == (True, False)


def test_a_file_of_fixed_batch_size_is_called_with_that_many_samples(tmp_path: Path) -> None:
    given = samples(1)
    labels = given.pop("labels")
    for batch in (1, 4, "batch"):
        onnx.save(linear(WEIGHT, batch), tmp_path / "model.onnx")
        found = answer(tmp_path / "model.onnx", TestSet(given, labels))
        assert found.batch == (256 if batch == "batch" else batch)
        assert found.right().sum() == COUNT - 1


def test_answers_that_are_not_one_a_label_are_an_error(work: Path) -> None:
    model = linear(WEIGHT)
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, []))
    _, row = run(work, made(work, "torch-prune", model))
    assert row.status != "ok"
    assert row.test is None


def test_every_native_entry_has_a_script_that_takes_its_flags_and_pins_what_it_needs() -> None:
    entries = [entry for entry in ENTRIES if entry.native]
    assert {entry.script for entry in entries} == {"native_openvino", "native_torch_compile"}
    for entry in entries:
        text = (SCRIPTS / f"{entry.script}.py").read_text()
        assert len(text.splitlines()) < 100
        assert all(f'"{flag}"' in text for flag in entry.flags)
        if entry.environment is not None:
            pins = (SCRIPTS / f"requirements-{entry.environment}.txt").read_text().split()
            assert all("==" in pin for pin in pins)


def test_torch_compile_takes_a_pickled_module_of_torchvision(tmp_path: Path) -> None:
    # In a process of its own, as it is started: here torchvision may have been imported already.
    code = f"""
import numpy as np, torch
from pathlib import Path
from benchmarks.peers.native_torch_compile import TorchCompile
torch.compile = lambda module, mode: module
path = Path({str(tmp_path / "model.onnx")!r})
with torch.inference_mode():
    TorchCompile("default").prepare(path, "cpu", 1, {{"input": np.zeros((1, 3, 32, 32), np.float32)}})
"""
    ensure_operators()
    from torchvision.models import mobilenet_v3_small

    torch.save(mobilenet_v3_small(num_classes=4), tmp_path / "model.pt")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_timings_that_failed_leave_size_and_accuracy(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_fails(jobs: list[Job], plan: Any) -> list[Timing]:
        found = time_together(jobs, plan)
        lost = replace(found[1], p50_ms=None, p50_interval=None, status="gone", samples_ms=(), rounds=0)
        return [found[0], lost, *found[2:]]

    monkeypatch.setattr(measured, "time_together", one_fails)
    _, row = run(work, made(work, "torch-prune", linear(WEIGHT)))
    assert (row.status, row.p50_ms, row.speedup) == ("not timed: gone", None, None)
    assert row.test is not None
    assert row.zip_bytes is not None
