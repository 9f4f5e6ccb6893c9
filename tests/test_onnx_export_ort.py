"""compress.onnx_export.to_ort: onnxruntime's own format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import ExportError
from compress.models.onnx_file import serialize
from compress.onnx_export import to_ort
from compress.onnx_export.ort_format import onnxruntime as used


@pytest.fixture
def source(tmp_path: Path) -> Path:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("batch", size)) for n, size in (("x", 4), ("y", 2))]
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "m.onnx"
    path.write_bytes(serialize(proto))
    return path


def test_the_ort_file_gives_the_outputs_of_the_onnx_file(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.ort"
    to_ort(source, target)
    x = {"x": np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)}
    ours, theirs = (onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (target, source))
    np.testing.assert_allclose(ours.run(None, x)[0], theirs.run(None, x)[0], rtol=1e-6)
    assert target.read_bytes()[4:8] == b"ORTM"


def test_the_ort_file_holds_no_path(source: Path, tmp_path: Path) -> None:
    """Its bytes differ from one writing to the next: onnxruntime puts its tables in no fixed order."""
    to_ort(source, tmp_path / "model.ort")
    content = (tmp_path / "model.ort").read_bytes()
    assert b"/tmp" not in content
    assert str(tmp_path).encode() not in content


def test_what_onnxruntime_cannot_read_is_refused_with_its_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"<html>")
    with pytest.raises(ExportError, match=r"broken\.onnx cannot be written as \.ort"):
        to_ort(broken, tmp_path / "m.ort")
    assert not (tmp_path / "m.ort").exists()


def test_an_ort_file_that_answers_otherwise_is_not_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxruntime.InferenceSession

    class Wrong:
        """Opens an .ort file as a model that adds one."""

        def __init__(self, path: str, *args: object, **kwargs: object) -> None:
            self.session = real(path, *args, **kwargs)
            self.wrong = path.endswith(".ort")

        def run(self, names: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [output + self.wrong for output in self.session.run(names, feeds)]

    monkeypatch.setattr(used, "InferenceSession", Wrong)
    with pytest.raises(ExportError, match="gives other outputs"):
        to_ort(source, tmp_path / "m.ort")
    assert not (tmp_path / "m.ort").exists()
