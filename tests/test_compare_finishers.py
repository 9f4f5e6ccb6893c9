"""What finishes a pruned model: the points it goes on from, what it keeps of its search, and how a fault is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peers import finish_onnxruntime, finishing
from benchmarks.peers.finishing import Candidate, Search, Task, answers, finish, read_task, sources
from benchmarks.peers.points import Point, read_points, write_points

SAMPLES = 300  # more than one batch


def linear(seed: int = 0, width: int = 4, noise: int = 0) -> onnx.ModelProto:
    """A classifier of (N, 8) with 4 classes; ``noise``: weights in the file that change nothing."""
    weight = np.random.default_rng(seed).normal(size=(8, width)).astype(np.float32)
    unused = np.random.default_rng(seed).normal(size=noise).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer", doc_string="where it was made")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(weight, "w"), *([numpy_helper.from_array(unused, "unused")] if noise else [])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=11)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder of inputs whose dense model is always right."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    x = np.random.default_rng(1).normal(size=(SAMPLES, 8)).astype(np.float32)
    labels = (x @ numpy_helper.to_array(linear().graph.initializer[0])).argmax(axis=1)
    for name in ("calibration", "validation"):
        np.savez(folder / f"{name}.npz", x=x, labels=labels)
    budget = {"max_drop": 0.01, "seed": 0, "baseline": {"validation": 1.0}}
    (folder / "budget.json").write_text(json.dumps(budget))
    save(linear(), folder / "float.onnx")
    return folder


def save(proto: onnx.ModelProto, path: Path) -> None:
    proto.ir_version = min(proto.ir_version, 10)
    onnx.save(proto, path)


def task_of(inputs: Path, source: Path | None = None) -> Task:
    out = inputs.parent / "out"
    out.mkdir(exist_ok=True)
    return read_task(inputs, source or inputs, out)


def trained(inputs: Path, **points: bool) -> Path:
    """A trainer's folder; each point is larger than the one before it."""
    folder = inputs.parent / "trainer"
    folder.mkdir()
    for place, name in enumerate(points):
        save(linear(noise=1000 * place), folder / f"{name}.onnx")
    told = [Point(f"{name}.onnx", f"ratio {name}", 0.0, within) for name, within in points.items()]
    write_points(folder, told, 10, "onnx")
    return folder


def test_the_dense_model_is_quantized_where_the_inputs_are_the_source(inputs: Path) -> None:
    assert [(one.path, one.settings) for one in sources(task_of(inputs))] == [(inputs / "float.onnx", "dense")]


def test_the_dense_model_is_quantized_where_a_trainer_kept_no_accuracy(inputs: Path) -> None:
    task = task_of(inputs, trained(inputs, a=False, b=False))
    assert [one.path for one in sources(task)] == [inputs / "float.onnx"]


def test_the_fastest_and_the_smallest_point_that_kept_their_accuracy_go_on(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(inputs, trained(inputs, a=False, b=True, c=True, d=True))
    for fast, expected in (("d", ["d", "b"]), ("b", ["b", "c"])):  # the next in size where one is both
        monkeypatch.setattr(finishing, "fastest", lambda task, given, fast=fast: named(given, fast))
        assert [one.path.stem for one in sources(task)] == expected


def named(given: list[Candidate], stem: str) -> Candidate:
    return next(one for one in given if one.path.stem == stem)


def test_a_search_keeps_the_fastest_the_smallest_and_the_most_accurate_within_the_drop(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops_and_bytes = {
        "wrong": (0.2, 1),
        "fast": (0.005, 9),
        "small": (0.009, 5),
        "right": (0.0, 7),
        "none": (0.008, 8),
    }
    made = [Candidate(Path(name), name, *figures) for name, figures in drops_and_bytes.items()]
    monkeypatch.setattr(finishing, "fastest", lambda task, given: named(given, "fast"))
    search = Search(task_of(inputs), inputs / "float.onnx", inputs, made)
    assert [one.settings for one in search.best()] == ["fast", "small", "right"]
    assert [one.settings for one in Search(search.task, search.source, inputs, made[:1]).best()] == ["wrong"]


def test_a_setting_that_fails_is_told_and_the_search_goes_on(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = Search(task_of(inputs), inputs / "float.onnx", tmp_path)
    search.add("7 bits", lambda path: 1 / 0)
    assert "7 bits: ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match=r"nothing was made of float\.onnx; 7 bits: ZeroDivisionError"):
        search.best()
    search.add("8 bits", lambda path: onnx.save(linear(), path))
    assert [(one.settings, one.drop) for one in search.best()] == [("8 bits", 0.0)]


def test_a_kept_file_tells_nothing_of_how_it_was_made_and_loads_anywhere(inputs: Path) -> None:
    task = task_of(inputs, trained(inputs, a=True))
    finish(task, lambda search: search.add("copied", lambda path: onnx.save(linear(), path)), "onnx")
    assert read_points(task.out) == [Point("p1-1.onnx", "ratio a; copied", 0.0, True)]
    kept = onnx.load(task.out / "p1-1.onnx")
    assert kept.ir_version == 10
    assert b"where it was made" not in kept.SerializeToString()


def test_a_file_outside_of_the_drop_is_written_and_says_so(inputs: Path) -> None:
    task = task_of(inputs)
    finish(task, lambda search: search.add("another", lambda path: onnx.save(linear(seed=5), path)), "onnx")
    (point,) = read_points(task.out)
    assert not point.within
    assert point.validation_drop > 0.5  # another classifier: chance is 0.75 below


def test_a_file_whose_scales_come_from_the_batch_is_scored_one_sample_at_a_time(inputs: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(inputs / "float.onnx", tmp_path / "dynamic.onnx")
    task = task_of(inputs)
    opened = finishing.session(tmp_path / "dynamic.onnx")
    alone = [opened.run(None, feed)[0].argmax() for feed in task.validation.feeds()]
    assert answers(tmp_path / "dynamic.onnx", task.validation).tolist() == alone


@pytest.mark.slow  # every setting of quantize_static is tried
def test_onnxruntime_finishes_a_model_within_the_drop_and_leaves_zeros_alone(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = linear()
    weight = numpy_helper.to_array(pruned.graph.initializer[0]).copy()
    smallest = np.abs(weight) < 0.1
    weight[smallest] = 0
    pruned.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    save(pruned, inputs / "float.onnx")
    budget = json.loads((inputs / "budget.json").read_text()) | {"max_drop": 0.1}
    (inputs / "budget.json").write_text(json.dumps(budget))
    out = inputs.parent / "out"
    monkeypatch.setattr(sys, "argv", ["finish", str(inputs), str(inputs), str(out), "--dynamic"])
    monkeypatch.setattr(finishing, "_ROUND_S", 0.01)
    finish_onnxruntime.main()
    points = read_points(out)
    assert points
    for point in points:
        assert point.within
        assert point.settings.startswith("dense; quantize_")
        assert zeros(onnx.load(out / point.file)) >= smallest.sum()


def zeros(proto: onnx.ModelProto) -> int:
    """Weights equal to their zero point."""
    held: dict[str, Any] = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    weight = next(array for name, array in held.items() if array.shape == (8, 4))
    point = next(array for name, array in held.items() if name.startswith("w_zero_point"))
    return int((weight == point).sum())


@pytest.mark.parametrize("script", ["finish_onnxruntime", "finish_nncf", "finish_olive", "finish_neural_compressor"])
def test_a_finisher_is_no_longer_than_a_user_would_write(script: str) -> None:
    path = Path(finishing.__file__).with_name(f"{script}.py")
    assert len(path.read_text().splitlines()) < 100
