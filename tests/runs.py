"""`write_run`: a run directory around a report.json made by hand, for the tests of what reads finished runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compress.workspace import Workspace, to_json
from tests.reports import example_report

ANSWERS = "stages/05-benchmark/answers.npz"


def write_run(root: Path, report: Mapping[str, Any] | None = None, model: bytes | None = None) -> Path:
    """Write report.json, its renderings in one word each, the model, its zip and the manifest."""
    workspace = Workspace.open(root)
    workspace.write("report.json", to_json(example_report() if report is None else report))
    for name in ("report.md", "report.html", "report.csv"):
        workspace.write(name, b"rendered\n")
    workspace.write("model.onnx", tiny_onnx() if model is None else model)
    workspace.write("model.onnx.zip", b"zipped\n")
    workspace.write_manifest({"command": "compress pipeline model.pt", "seed": 0})
    return root


def write_answers(root: Path, labels: NDArray[np.int64] | None = None, **top1: NDArray[np.int64]) -> None:
    """The answers that a benchmark keeps; names of variants with ``_`` for ``-``."""
    path = root / ANSWERS
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"top1/{name.replace('_', '-')}": answers for name, answers in top1.items()}
    np.savez_compressed(path, **arrays, **({} if labels is None else {"labels": labels}))  # type: ignore[arg-type]


def tiny_onnx(width: int = 4, scale: float = 1.0) -> bytes:
    """A linear layer of 8 inputs."""
    weight = numpy_helper.from_array(np.full((8, width), scale, np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "tiny", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def changed(path: Path, **changes: Any) -> None:
    """Replace what is at the top of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
