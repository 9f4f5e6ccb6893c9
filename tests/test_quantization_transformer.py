"""Static quantization of a transformer's block: products with weights in int8, all that lies between them in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from torch import from_numpy

from compress.data.splits import Batch, Data, Split
from compress.quantization import QuantizeConfig, quantize
from compress.values import Context, InputSpec, OnnxModel
from tests.test_quantization import _graph, _normal

WIDTH, TOKENS = 16, 6
INPUTS = (InputSpec("input", (TOKENS, WIDTH)),)


def block() -> onnx.ModelProto:
    """Normalise, attend (a product of two activations), project, add, feed forward, head."""
    nodes = [
        helper.make_node("LayerNormalization", ["input", "g", "b"], ["norm"], axis=-1),
        helper.make_node("MatMul", ["norm", "query"], ["q"], name="query"),
        helper.make_node("MatMul", ["norm", "value"], ["v"], name="value"),
        helper.make_node("Transpose", ["v"], ["keys"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "keys"], ["scores"], name="attention"),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"], name="mixing"),
        helper.make_node("MatMul", ["mixed", "project"], ["projected"], name="project"),
        helper.make_node("Add", ["projected", "input"], ["residual"], name="residual"),
        helper.make_node("MatMul", ["residual", "forward"], ["hidden"], name="forward"),
        helper.make_node("ReduceMean", ["hidden", "axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["output"], name="head"),
    ]
    constants = {
        "g": np.ones(WIDTH, np.float32), "b": np.zeros(WIDTH, np.float32), "axis": np.int64([1]),
        "query": _normal(1, WIDTH, WIDTH), "value": _normal(5, WIDTH, WIDTH), "project": _normal(2, WIDTH, WIDTH),
        "forward": _normal(3, WIDTH, 32), "head": _normal(4, 32, 3),
    }  # fmt: skip
    return _graph(nodes, constants, (TOKENS, WIDTH))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("transformer")
    path = folder / "model.onnx"
    path.write_bytes(block().SerializeToString())
    samples = np.random.default_rng(0).standard_normal((64, TOKENS, WIDTH)).astype(np.float32)

    def fetch(indices: np.ndarray) -> Batch:
        return (from_numpy(samples[indices]),), None

    parts = [Split(name, fetch, np.arange(64), False) for name in ("train", "calibration", "validation", "test")]
    context = Context(data=Data("made", *parts, inputs=INPUTS, sha256=""), directory=folder / "q", max_drop=1.0)
    variants, _ = quantize(OnnxModel(path, INPUTS, 18), QuantizeConfig(), context)
    return {variant.name: variant.onnx.path for variant in variants}


def test_products_with_weights_are_int8_and_the_rest_is_float(quantized: dict[str, Path]) -> None:
    graph = onnx.load(str(quantized["int8"])).graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    fed = {
        kind: [{*node.input} & dequantized for node in graph.node if node.op_type == kind]
        for kind in ("MatMul", "Softmax", "LayerNormalization", "Add", "ReduceMean")
    }
    assert sorted(len(inputs) for inputs in fed.pop("MatMul")) == [0, 0, 2, 2, 2, 2, 2]  # attention and mixing: float
    assert not any(inputs for kinds in fed.values() for inputs in kinds)


def test_static_and_dynamic_candidates_are_both_made(quantized: dict[str, Path]) -> None:
    assert {"int8", "int8-per-channel", "int8-dynamic", "int8-dynamic-per-channel", "int8-weights"} <= set(quantized)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_candidate_runs_at_every_batch_close_to_float(quantized: dict[str, Path], batch: int) -> None:
    x = np.random.default_rng(1).standard_normal((batch, TOKENS, WIDTH)).astype(np.float32)
    wanted = onnxruntime.InferenceSession(block().SerializeToString(), providers=["CPUExecutionProvider"])
    reference = wanted.run(None, {"input": x})[0]
    for name, path in quantized.items():
        found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]
        assert found.shape == (batch, 3), name
        noise = np.square(found - reference).sum() / np.square(reference).sum()
        assert noise < 0.1, name  # 10 dB, of a tiny net on inputs that it was not calibrated on
