"""compress.quantization.judge: what a graph loses, and how sure that is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.data.splits import Data, Split
from compress.measurement.intervals import drop_interval, share_interval
from compress.models.onnx_file import serialize
from compress.quantization.judge import Judge
from compress.values import Context, InputSpec, OnnxModel

INPUTS = (InputSpec("input", (2,)),)


def _linear(weight: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["output"], name="product")],
        "model",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _judge(folder: Path, samples: int, labelled: bool) -> Judge:
    """The identity: its answer is the larger of the two inputs, which is also the label."""
    points = np.random.default_rng(0).standard_normal((samples, 2)).astype(np.float32)
    labels = torch.from_numpy(points.argmax(axis=1)) if labelled else None

    def fetch(indices: np.ndarray) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        return (torch.from_numpy(points[indices]),), None if labels is None else labels[indices]

    split = Split("validation", fetch, np.arange(samples), labelled=labelled)
    path = folder / "model.onnx"
    path.write_bytes(serialize(_linear(np.eye(2))))
    data = Data("made", split, split, split, split, inputs=INPUTS, sha256="", classes=2 if labelled else None)
    return Judge(OnnxModel(path, INPUTS, 18), [{"input": points[:8]}], Context(data, folder))


@pytest.mark.parametrize("labelled", [True, False])
def test_the_bound_is_the_upper_end_of_the_reports_interval_one_sided(tmp_path: Path, labelled: bool) -> None:
    judge = _judge(tmp_path, 1000, labelled)
    found, bound = judge.drop_bound(serialize(_linear(np.array([[1.0, 0.0], [0.2, 1.0]]))))
    assert 0 < found < 0.2
    assert found == judge.drop(serialize(_linear(np.array([[1.0, 0.0], [0.2, 1.0]]))))
    lost = round(1000 * found)  # the original is always right: none is won
    interval = drop_interval(lost, 0, 1000, 0.9) if labelled else share_interval(lost, 1000, 0.9)
    assert bound == pytest.approx(interval[1], abs=1e-8)


def test_fewer_samples_give_a_wider_bound(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    changed = serialize(_linear(np.array([[1.0, 0.0], [0.2, 1.0]])))
    widths = []
    for folder, samples in ((tmp_path / "few", 100), (tmp_path, 10_000)):
        found, bound = _judge(folder, samples, labelled=True).drop_bound(changed)
        widths.append(bound - found)
    assert widths[0] > 5 * widths[1]


def test_a_few_equal_answers_do_not_prove_that_nothing_is_lost(tmp_path: Path) -> None:
    judge = _judge(tmp_path, 50, labelled=True)
    found, bound = judge.drop_bound(serialize(_linear(3 * np.eye(2))))
    assert found == 0
    assert bound == pytest.approx(
        1.645**2 / (50 + 1.645**2), rel=1e-3
    )  # Tango 1998, where no sample tells the two apart
    assert judge.sqnr_db(_linear(np.eye(2))) == float("inf")
    assert not list(tmp_path.glob(".trial*"))
