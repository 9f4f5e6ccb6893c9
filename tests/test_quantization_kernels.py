"""compress.quantization.kernels: what of a file runs in int8, from onnxruntime's profile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import QuantizationError
from compress.quantization.candidates import Candidate
from compress.quantization.integer import quantize_dynamic_range, quantize_static_qdq
from compress.quantization.kernels import Share, int8_share
from tests.test_quantization_saturation import graph_model

FLOAT = TensorProto.FLOAT
U8S8 = Candidate("static", "no", reduce_range=False)
CONV_MACS, GEMM_MACS = 8 * 4 * 4 * 2 * 9, 3 * 128  # of _cnn()


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def _cnn() -> onnx.ModelProto:
    """Conv, Flatten, Gemm: input (2, 6, 6), 3 outputs."""
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"], name="conv"),
        helper.make_node("Flatten", ["c"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1, name="fc"),
    ]
    constants = {"conv.weight": _weights(8, 2, 3, 3), "fc.weight": _weights(3, 128), "fc.bias": _weights(3)}
    return graph_model(nodes, constants, (2, 6, 6))


RANGES = {"x": (-1.0, 1.0), "c": (-9.0, 9.0), "f": (-9.0, 9.0), "y": (-99.0, 99.0)}
IMAGE = {"x": _weights(1, 2, 6, 6)}


def _share(proto: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> Share:
    return int8_share(proto.SerializeToString(), inputs)


def test_a_float_file_runs_nothing_in_int8() -> None:
    share = _share(_cnn(), IMAGE)
    assert (share.macs, share.time) == (0.0, 0.0)
    assert [(each.operator, each.macs) for each in share.in_float] == [("Conv", CONV_MACS), ("Gemm", GEMM_MACS)]
    assert {each.reason for each in share.in_float} == {"float in the file"}


def test_a_static_file_runs_all_of_its_layers_in_int8() -> None:
    share = _share(quantize_static_qdq(_cnn(), U8S8, RANGES), IMAGE)
    assert share.macs == 1.0
    assert 0 < share.time < 1
    assert share.in_float == ()


def test_a_layer_that_stayed_float_is_named_with_its_share() -> None:
    share = _share(quantize_static_qdq(_cnn(), U8S8, RANGES, exclude=["fc"]), IMAGE)
    assert share.macs == pytest.approx(CONV_MACS / (CONV_MACS + GEMM_MACS))
    assert [(each.name, each.macs) for each in share.in_float] == [("fc", GEMM_MACS)]


def test_nodes_without_names_are_counted_too() -> None:
    proto = quantize_static_qdq(_cnn(), U8S8, RANGES, exclude=["fc"])
    for node in proto.graph.node:
        node.name = ""
    share = _share(proto, IMAGE)
    assert share.macs == pytest.approx(CONV_MACS / (CONV_MACS + GEMM_MACS))


def test_conversions_that_are_not_fused_leave_their_layer_in_float() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up")
    proto = graph_model([node], {"w": _weights(2, 4, 3, 3)}, (2, 6, 6))
    share = _share(quantize_static_qdq(proto, U8S8, {"x": (-1.0, 1.0), "y": (-9.0, 9.0)}), IMAGE)
    assert share.macs == 0
    (found,) = share.in_float
    assert found.operator == "ConvTranspose"
    assert found.macs == 2 * 6 * 6 * 4 * 9
    assert found.reason.startswith("its weight is int8")


def test_a_product_of_two_activations_is_told_as_such() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1], name="turn"),
        helper.make_node("Softmax", ["t"], ["s"], name="soft"),
        helper.make_node("MatMul", ["x", "s"], ["y"], name="scores"),
    ]
    (found,) = _share(graph_model(nodes, {}, (5, 7)), {"x": _weights(1, 5, 7)}).in_float
    assert (found.macs, found.reason) == (5 * 5 * 7, "a product of two activations")


def test_dynamic_layers_count_as_int8() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    proto = graph_model([node], {"w": _weights(32, 16)}, (32,))
    dynamic = quantize_dynamic_range(proto, Candidate("dynamic", "no", reduce_range=False))
    assert _share(dynamic, {"x": _weights(1, 32)}).macs == 1.0


def test_a_recurrent_layer_counts_each_step_of_both_weights() -> None:
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4, name="lstm")]
    proto = graph_model(nodes, {"w": _weights(1, 16, 6), "r": _weights(1, 16, 4)}, (1, 6))
    (found,) = _share(proto, {"x": _weights(5, 1, 6)}).in_float
    assert found.macs == 5 * (16 * 6 + 16 * 4)
    dynamic = quantize_dynamic_range(proto, Candidate("dynamic", "no", reduce_range=False))
    share = _share(dynamic, {"x": _weights(5, 1, 6)})
    assert (share.macs, share.in_float) == (1.0, ())


def test_a_path_gives_what_its_bytes_give_and_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(_cnn().SerializeToString())
    before = file.read_bytes()
    assert int8_share(file, IMAGE).in_float == _share(_cnn(), IMAGE).in_float
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(QuantizationError, match="cannot be counted"):
        _share(_cnn(), {"x": _weights(1, 3, 6, 6)})


def test_nodes_of_inner_graphs_are_left_out() -> None:
    """The profile tells of them too, the main graph does not have them."""
    branches = {
        name: helper.make_graph(
            [helper.make_node("MatMul", ["a", "w"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name in ("then_branch", "else_branch")
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("ReduceSum", ["a"], ["sum"], keepdims=0, name="sum"),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], name="positive"),
        helper.make_node("If", ["positive"], ["y"], name="if", **branches),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(_weights(4, 4), "w"), numpy_helper.from_array(np.float32(0), "zero")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert [each.name for each in _share(proto, {"x": np.ones((1, 4), np.float32)}).in_float] == ["first"]
