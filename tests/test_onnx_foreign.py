"""ONNX files that other tools wrote: a free length, constants as nodes, initializers as inputs, a fixed batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantization.graph import gather_constants, layers
from tests.conftest import Call

LENGTH = 12


def _text_model(batch: str | int = "N") -> onnx.ModelProto:
    """Token numbers (N, any) to logits (N, 2); opset 13 and IR 7, nodes without names."""
    rng = np.random.default_rng(0)
    embedding, weight = rng.normal(size=(30, 64)).astype(np.float32), rng.normal(size=(64, 2)).astype(np.float32)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("Gather", ["emb", "tokens"], ["words"]),
        helper.make_node("ReduceMean", ["words"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["mean", "w", "b"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, [batch, "L"]),
        helper.make_tensor_value_info("emb", TensorProto.FLOAT, [30, 64]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2])]
    constants = [numpy_helper.from_array(embedding, "emb"), numpy_helper.from_array(np.zeros(2, np.float32), "b")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.onnx"
    path.write_bytes(_text_model().SerializeToString())
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    x = np.random.default_rng(1).integers(0, 30, (120, LENGTH))
    np.savez(tmp_path / "tokens.npz", x=x, y=(x.mean(1) > 14.5).astype(np.int64))
    return tmp_path / "tokens.npz"


def test_constants_become_initializers_that_are_no_inputs() -> None:
    proto = _text_model()
    gather_constants(proto)
    onnx.checker.check_model(proto)
    assert [value.name for value in proto.graph.input] == ["tokens"]
    assert [layer.weight for layer in layers(proto)] == ["w"]
    assert "Constant" not in {node.op_type for node in proto.graph.node}


@pytest.mark.parametrize("samples", ["data", "input"])
def test_a_file_with_a_free_length_is_quantized_and_ships_in_both_formats(
    samples: str, compress: Call, text_file: Path, tokens: Path, tmp_path: Path
) -> None:
    told = ("--data", f"npz:{tokens}") if samples == "data" else ("--input", f"{LENGTH}:int64")
    quick = (
        "--set",
        "benchmark.seconds=0.02",
        "--max-drop",
        "1",
        "--objective",
        "size",
        "--set",
        "quantize.compact=no",
    )
    outcome = compress("pipeline", text_file, *told, "--out", "run", "--ort", *quick)
    assert outcome.status == 0, outcome.err
    names = {variant["name"] for variant in json.loads((tmp_path / "run" / "report.json").read_text())["variants"]}
    assert {"baseline-fp32", "baseline-int8-weights", "baseline-int8-dynamic"} <= names
    for file in ("model.onnx", "model.ort"):
        session = onnxruntime.InferenceSession(tmp_path / "run" / file, providers=["CPUExecutionProvider"])
        assert session.run(None, {"tokens": np.zeros((3, 5), np.int64)})[0].shape == (3, 2)


def test_inspect_takes_the_free_length_from_the_input(compress: Call, text_file: Path) -> None:
    outcome = compress("inspect", text_file, "--input", f"{LENGTH}:int64", "--json")
    assert json.loads(outcome.out)["macs"] == 64 * 2


def test_an_input_of_another_type_is_refused_with_both(compress: Call, text_file: Path) -> None:
    outcome = compress("quantize", text_file, "--input", str(LENGTH))
    assert outcome.status == 1
    assert "takes samples of (12,) int64, but --input tells (12,) float32" in outcome.err


def test_a_fixed_batch_is_refused_with_the_way_out(compress: Call, tmp_path: Path, tokens: Path) -> None:
    (tmp_path / "one.onnx").write_bytes(_text_model(1).SerializeToString())
    outcome = compress("pipeline", "one.onnx", "--data", f"npz:{tokens}")
    assert outcome.status == 1
    assert "runs batches of 1 alone" in outcome.err


def test_quantize_leaves_no_calibration_behind(compress: Call, text_file: Path, tokens: Path, tmp_path: Path) -> None:
    quick = ("--set", "benchmark.seconds=0.02", "--max-drop", "1", "--method", "static")
    outcome = compress("quantize", text_file, "--data", f"npz:{tokens}", "--out", "int8", *quick)
    assert outcome.status == 0, outcome.err
    assert "calibration" in json.loads((tmp_path / "int8" / "quantize.json").read_text())["quantize"]["figures"]
    assert not [file.name for file in (tmp_path / "int8").iterdir() if file.name.startswith(".")]
