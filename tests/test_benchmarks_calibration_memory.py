"""benchmarks.calibration_memory: it is only run by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.calibration_memory import growth, once, table


def _saved(folder: Path) -> tuple[Path, str]:
    """A graph of one MatMul, and data for it."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["output"], name="head")],
        "model",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.ones((4, 2), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "m.onnx")
    np.savez(folder / "data.npz", x=np.random.default_rng(0).random((70, 4), np.float32))
    return folder / "m.onnx", f"npz:{folder / 'data.npz'}"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("library", "method"), [("compress", "all"), ("onnxruntime", "percentile")])
def test_a_measurement_tells_memory_time_and_what_was_observed(
    library: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)  # it would hold for the other tests too
    measured = once(library, method, *_saved(tmp_path), 32)
    assert (measured["images"], measured["ranges"]) == (32, 2)
    assert measured["peak_bytes"] > measured["extra_bytes"] >= 0
    assert measured["seconds"] >= measured["observing_seconds"] > 0


def test_what_could_not_be_measured_is_told() -> None:
    failed = {"library": "onnxruntime", "method": "entropy", "asked": 512, "failed": "MemoryError"}
    assert "| onnxruntime | entropy | 512 | MemoryError |" in table([failed])


def test_the_growth_is_that_of_our_peaks_from_fewest_to_most_images() -> None:
    results = [
        {"library": library, "method": "all", "asked": images, "peak_bytes": peak}
        for library, images, peak in (("compress", 64, 100), ("compress", 4096, 105), ("onnxruntime", 64, 1))
    ]
    assert growth(results) == 1.05
