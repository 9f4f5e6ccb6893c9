"""Which provider ran the nodes: of real sessions on the CPU, and of profiles as CUDA and others write them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compress.errors import MeasurementError
from compress.measurement.placement import Placement, placement
from tests.test_measurement import FEATURES, write_linear

CPU, CUDA, XNNPACK = "CPUExecutionProvider", "CUDAExecutionProvider", "XnnpackExecutionProvider"
FEEDS = {"x": np.zeros((2, FEATURES), np.float32)}


def event(operator: str, provider: str, index: int, gives: str = "float", name: str | None = None) -> dict[str, Any]:
    """As onnxruntime writes it, without what is not read."""
    arguments = {
        "op_name": operator,
        "provider": provider,
        "node_index": str(index),
        "output_type_shape": [{gives: [2, 4]}],
    }
    return {
        "cat": "Node", "ph": "X", "dur": 3, "ts": index, "name": f"{name or operator.lower()}_kernel_time",
        "args": arguments,
    }  # fmt: skip


class Profiled:
    """A session that ran what ``events`` say, on what it was asked for."""

    def __init__(self, events: Sequence[dict[str, Any]], options: onnxruntime.SessionOptions, names: list[str]) -> None:
        self.events, self.options, self.names = events, options, names
        self.runs = 0

    def get_providers(self) -> list[str]:
        return self.names

    def run(self, outputs: None, feeds: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        self.runs += 1
        return []

    def end_profiling(self) -> str:
        assert self.options.enable_profiling
        assert self.runs == 1
        file = Path(self.options.profile_file_prefix + "_1.json")
        session = {"cat": "Session", "name": "model_run", "args": {}}
        kernel = {"cat": "Kernel", "name": "sgemm_kernel_time", "args": {"op_name": "sgemm", "provider": CUDA}}
        file.write_text(json.dumps([session, kernel, *self.events]), encoding="utf-8")
        return str(file)


def placed(provider: str, *events: dict[str, Any], monkeypatch: pytest.MonkeyPatch | None = None) -> Placement:
    def factory(model: str, options: onnxruntime.SessionOptions, **asked: Any) -> Profiled:
        return Profiled(events, options, [name for name, _ in asked["providers"]])

    if monkeypatch is not None:  # there is no such device here
        monkeypatch.setattr("compress.measurement.placement.bind", lambda session, *_: lambda: session.run(None, {}))
    return placement(Path("model.onnx"), provider, 1, FEEDS, factory)


def test_a_cpu_session_runs_all_of_its_nodes_on_the_cpu(tmp_path: Path) -> None:
    found = placement(write_linear(tmp_path / "m.onnx").path, "cpu", 1, FEEDS)
    assert found == Placement({CPU: 1}, 0, {CPU: {"MatMul": 1}})


def test_the_body_of_a_loop_is_counted_once(tmp_path: Path) -> None:
    state, flag, step = (
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("s", TensorProto.FLOAT, [2, FEATURES]),
            ("c", TensorProto.BOOL, []),
            ("i", TensorProto.INT64, []),
        )
    )
    after = helper.make_tensor_value_info("t", TensorProto.FLOAT, [2, FEATURES])
    going = helper.make_tensor_value_info("d", TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Sigmoid", ["s"], ["t"]), helper.make_node("Not", ["c"], ["e"]),
         helper.make_node("Not", ["e"], ["d"])], "body", [step, flag, state], [going, after],
    )  # fmt: skip
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, FEATURES]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "go", "x"], ["y"], body=body)], "loop", value[:1], value[1:],
        [numpy_helper.from_array(np.array(5), "n"), numpy_helper.from_array(np.array(True), "go")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "loop.onnx"))
    found = placement(tmp_path / "loop.onnx", "cpu", 1, FEEDS)
    assert found.by_operator[CPU]["Sigmoid"] == 1


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    placement(write_linear(tmp_path / "m.onnx").path, "cpu", 1, FEEDS)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx"]


def test_copies_between_host_and_device_are_counted_and_are_no_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = placed(
        "cuda",
        event("MemcpyFromHost", CUDA, 4, name="Memcpy"),
        event("Conv", CUDA, 0, name="first"),
        event("Conv", CUDA, 1, name="second"),
        event("Shape", CPU, 2, gives="int64"),
        event("MemcpyToHost", CUDA, 5, name="Memcpy_token_1"),
        event("Gemm", CUDA, 3),
        monkeypatch=monkeypatch,
    )
    assert found == Placement({CUDA: 3, CPU: 1}, 2, {CUDA: {"Conv": 2, "Gemm": 1}, CPU: {"Shape": 1}})
    assert list(found.nodes) == [CUDA, CPU]
    assert list(found.by_operator[CUDA]) == ["Conv", "Gemm"]


def test_cuda_that_leaves_computation_to_the_cpu_is_refused_with_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event("Conv", CUDA, 0), event("QLinearConv", CPU, 1, gives="uint8"), event("Shape", CPU, 2, "int64")]
    with pytest.raises(MeasurementError, match=r"leaves 1 of 3 nodes to the CPU \(QLinearConv x1\)"):
        placed("cuda", *events, monkeypatch=monkeypatch)


def test_a_provider_that_may_share_shows_what_it_left_to_the_cpu() -> None:
    found = placed("xnnpack", event("Softmax", CPU, 1), event("Conv", XNNPACK, 0))
    assert found.nodes == {XNNPACK: 1, CPU: 1}
    assert list(found.nodes) == [XNNPACK, CPU]


@pytest.mark.parametrize("provider", ["xnnpack", "openvino", "coreml"])
def test_a_provider_that_ran_nothing_is_refused(provider: str) -> None:
    with pytest.raises(MeasurementError, match=r"runs none of this model's nodes \(CPUExecutionProvider 2\)"):
        placed(provider, event("Conv", CPU, 0), event("Gemm", CPU, 1))


def test_subgraphs_that_a_provider_compiled_have_one_name() -> None:
    first, second = (event(f"OpenVINO-EP-subgraph_{n}", "OpenVINOExecutionProvider", n) for n in (2, 14))
    assert placed("openvino", first, second).by_operator == {"OpenVINOExecutionProvider": {"OpenVINO-EP-subgraph": 2}}


def test_a_placement_survives_the_way_through_json() -> None:
    found = placed("xnnpack", event("Softmax", CPU, 1), event("Conv", XNNPACK, 0))
    assert Placement.from_dict(json.loads(json.dumps(found.to_dict()))) == found
