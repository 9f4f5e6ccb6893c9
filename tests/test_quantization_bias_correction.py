"""compress.quantization.bias_correction: the mean error of a channel leaves with the bias, and nothing else changes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.outlier_net import plain
from compress.models.onnx_file import Array, serialize
from compress.quantization.bias_correction import _half, _shifted, _shrunk, _Site, correct_bias
from compress.quantization.graph import array, constants, copy_of, replace_constants
from compress.quiet import quiet

Floats = NDArray[np.float32]


def _weight(seed: int, *shape: int) -> Floats:
    return (np.random.default_rng(seed).standard_normal(shape) / 4).astype(np.float32)


def _node(kind: str, taken: list[str], given_: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, taken, [given_], name=given_, **attributes)


def _graph(
    nodes: list[onnx.NodeProto], tensors: dict[str, Floats], shape: tuple[int, ...], rank: int = 2
) -> onnx.ModelProto:
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])
    target = helper.make_tensor_value_info("output", TensorProto.FLOAT, [None] * rank)
    initializers = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "model", [source], [target], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _cnn() -> onnx.ModelProto:
    """Conv, Relu, Conv with Clip and a residual sum, pooling, Gemm: input (3, 8, 8), 5 outputs."""
    nodes = [
        _node("Conv", ["input", "w1", "b1"], "c1", pads=[1, 1, 1, 1]),
        _node("Relu", ["c1"], "r1"),
        _node("Conv", ["r1", "w2", "b2"], "c2", pads=[1, 1, 1, 1]),
        _node("Clip", ["c2", "low", "high"], "k2"),
        _node("Add", ["r1", "k2"], "sum"),
        _node("MaxPool", ["sum"], "p", kernel_shape=[2, 2], strides=[2, 2]),
        _node("Flatten", ["p"], "f"),
        _node("Gemm", ["f", "w3", "b3"], "output", transB=1),
    ]
    tensors = {
        "w1": _weight(1, 6, 3, 3, 3), "b1": _weight(2, 6), "w2": _weight(3, 6, 6, 3, 3), "b2": _weight(4, 6),
        "w3": _weight(5, 5, 96), "b3": _weight(6, 5), "low": np.float32(0), "high": np.float32(6),
    }  # fmt: skip
    return _graph(nodes, tensors, (3, 8, 8))


def _mlp() -> onnx.ModelProto:
    """MatMul and Add, Relu, Gemm: input (12,), 5 outputs."""
    nodes = [
        _node("MatMul", ["input", "w1"], "m1"),
        _node("Add", ["m1", "b1"], "a1"),
        _node("Relu", ["a1"], "r1"),
        _node("Gemm", ["r1", "w2", "b2"], "output", transB=1),
    ]
    tensors = {"w1": _weight(1, 12, 16), "b1": _weight(2, 16), "w2": _weight(3, 5, 16), "b2": _weight(4, 5)}
    return _graph(nodes, tensors, (12,))


def _feeds(*shape: int, batches: int = 4, size: int = 32) -> list[dict[str, Array]]:
    """Mostly positive, as images are, so that weight errors do not cancel."""
    generator = np.random.default_rng(7)
    return [{"input": (generator.standard_normal((size, *shape)) + 0.7).astype(np.float32)} for _ in range(batches)]


def _moved(quantized: onnx.ModelProto, name: str, by: float) -> onnx.ModelProto:
    """A graph with every entry of an int32 bias off by ``by`` in the unit of the output."""
    made = copy_of(quantized)
    known = constants(made)
    bias, scale = array(known[f"{name}_quantized"]), array(known[f"{name}_quantized_scale"])
    replace_constants(made, {f"{name}_quantized": (bias + np.rint(by / scale)).astype(np.int32)})
    return made


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("layer", "bias"), [("c1", "b1"), ("c2", "b2"), ("output", "b3")])
def test_a_bias_that_is_off_comes_back(layer: str, bias: str, per_channel: bool) -> None:
    proto, feeds = _cnn(), _feeds(3, 8, 8)
    quantized = plain(proto, feeds, per_channel)
    wrong = _moved(quantized, bias, 0.5)
    right, told = correct_bias(proto, quantized, feeds)[0], correct_bias(proto, wrong, feeds)[1]
    mended = correct_bias(proto, wrong, feeds)[0]
    assert told.kept
    assert told.after_db > told.before_db + 3
    assert told.shifts[layer] == pytest.approx(0.5, abs=0.1)
    scale = array(constants(quantized)[f"{bias}_quantized_scale"])
    left, ideal = (array(constants(graph)[f"{bias}_quantized"]) * scale for graph in (mended, right))
    np.testing.assert_allclose(left, ideal, atol=0.03)  # each sees other positions, and other noise


def test_quantized_graphs_come_closer_to_the_float_one() -> None:
    proto, feeds = _cnn(), _feeds(3, 8, 8)
    corrected, told = correct_bias(proto, _moved(plain(proto, feeds), "b1", 0.1), feeds)
    assert told.kept
    assert told.after_db > told.before_db
    assert set(told.shifts) == {"c1", "c2", "output"}
    assert told.skipped == ()
    assert onnx.checker.check_model(corrected) is None


def test_only_biases_change_and_the_arguments_do_not() -> None:
    proto, feeds = _cnn(), _feeds(3, 8, 8)
    quantized = _moved(plain(proto, feeds), "b1", 0.1)
    before = serialize(proto), serialize(quantized)
    corrected, told = correct_bias(proto, quantized, feeds)
    assert told.kept
    assert (serialize(proto), serialize(quantized)) == before
    assert [node.SerializeToString() for node in corrected.graph.node] == [
        node.SerializeToString() for node in quantized.graph.node
    ]
    changed = {
        name
        for name, tensor in constants(quantized).items()
        if not np.array_equal(array(tensor), array(constants(corrected)[name]))
    }
    assert changed == {"b1_quantized", "b2_quantized", "b3_quantized"}


def test_equal_inputs_give_equal_bytes() -> None:
    proto, feeds = _cnn(), _feeds(3, 8, 8)
    quantized = plain(proto, feeds)
    first, second = (correct_bias(proto, quantized, feeds) for _ in range(2))
    assert serialize(first[0]) == serialize(second[0])
    assert first[1] == second[1]


def test_a_correction_that_gains_nothing_is_not_kept() -> None:
    proto = _cnn()
    same, told = correct_bias(proto, proto, _feeds(3, 8, 8))
    assert not told.kept
    assert told.before_db == np.inf
    assert serialize(same) == serialize(proto)


def test_an_error_where_the_relu_is_closed_does_not_move_the_bias() -> None:
    nodes = [
        _node("Gemm", ["input", "w1", "b1"], "g"),
        _node("Relu", ["g"], "r"),
        _node("Gemm", ["r", "w2", "b2"], "output"),
    ]
    one = np.ones((1, 1), np.float32)
    tensors = {"w1": np.float32([[1], [0]]), "b1": np.zeros(1, np.float32), "w2": one, "b2": np.zeros(1, np.float32)}
    proto = _graph(nodes, tensors, (2,))
    wrong = copy_of(proto)
    replace_constants(wrong, {"w1": np.float32([[1], [1]]), "b2": np.float32([3])})
    samples = np.float32([[2, 0], [-5, 1]])  # the second input counts where the first has closed the Relu
    corrected, told = correct_bias(proto, wrong, [{"input": np.repeat(samples, 8, axis=0)}])
    assert told.shifts == {"g": 0.0, "output": 3.0}
    assert array(constants(corrected)["b2"]) == 0


def _dynamic(proto: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder, quiet():
        target = Path(folder) / "dynamic.onnx"
        options = {"WeightSymmetric": True, "MatMulConstBOnly": True}
        operators = ["MatMul", "Gemm"]
        quantize_dynamic(
            copy_of(proto), target, op_types_to_quantize=operators, weight_type=QuantType.QInt8, extra_options=options
        )
        return onnx.load(str(target))


@pytest.mark.parametrize("quantize", [lambda proto: plain(proto, _feeds(12)), _dynamic], ids=["static", "dynamic"])
def test_the_constant_added_after_a_matmul_is_corrected(quantize: object) -> None:
    assert callable(quantize)
    proto = _mlp()
    quantized = quantize(proto)
    replace_constants(quantized, {"b1": array(constants(quantized)["b1"]) + np.float32(0.25)})
    corrected, told = correct_bias(proto, quantized, _feeds(12))
    assert told.kept
    assert set(told.shifts) == {"m1", "output"}
    np.testing.assert_allclose(array(constants(corrected)["b1"]), array(constants(proto)["b1"]), atol=0.05)


def test_a_layer_without_a_bias_is_named_and_the_next_takes_up_its_error() -> None:
    nodes = [_node("MatMul", ["input", "w1"], "m1"), _node("Gemm", ["m1", "w2", "b2"], "output", transB=1)]
    tensors = {"w1": _weight(1, 12, 16), "w2": _weight(3, 5, 16), "b2": _weight(4, 5)}
    proto = _graph(nodes, tensors, (12,))
    _, told = correct_bias(proto, plain(proto, _feeds(12)), _feeds(12))
    assert told.skipped == ("m1",)
    assert told.kept
    assert told.after_db > told.before_db


def test_a_bias_that_two_layers_share_is_left_alone() -> None:
    nodes = [_node("Gemm", ["input", "w1", "b"], "g"), _node("Gemm", ["g", "w2", "b"], "output")]
    proto = _graph(nodes, {"w1": _weight(1, 4, 4), "w2": _weight(2, 4, 4), "b": _weight(3, 4)}, (4,))
    _, told = correct_bias(proto, proto, _feeds(4))
    assert told.skipped == ("g", "output")


def test_int32_biases_end_at_their_limits() -> None:
    site = _Site("layer", "x", "x", 1, -np.inf, np.inf, "b", "s")
    known = {
        "b": numpy_helper.from_array(np.int32([2**31 - 5, -(2**31) + 5, 7, 7]), "b"),
        "s": numpy_helper.from_array(np.float32([1e-9, 1e-9, 0.5, 0]), "s"),
    }
    moved = _shifted(site, np.array([1.0, -1.0, 1.0, 1.0]), known)
    assert moved.dtype == np.int32
    assert moved.tolist() == [2**31 - 1, -(2**31) + 1, 9, 7]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 30))
def test_the_two_halves_share_no_sample_and_lose_none(sizes: list[int], samples: int) -> None:
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    halves = [
        [int(n) for feed in _half([{"x": part} for part in rows], first, samples) for n in feed["x"]]
        for first in (0, 1)
    ]
    numbers = list(range(sum(sizes)))
    assert halves == [numbers[0::2][:samples], numbers[1::2][:samples]]


def test_a_mean_that_chance_explains_does_not_move_a_bias() -> None:
    errors = np.random.default_rng(3).standard_normal((64, 200))
    noise = _shrunk(np.full(200, 64.0), errors.sum(axis=0), np.square(errors).sum(axis=0))
    clear = _shrunk(np.full(200, 64.0), (errors + 5).sum(axis=0), np.square(errors + 5).sum(axis=0))
    assert np.square(noise).sum() < np.square(errors.mean(axis=0)).sum() / 2
    np.testing.assert_allclose(clear, (errors + 5).mean(axis=0), rtol=0.01)


def test_progress_ends_with_the_last_depth() -> None:
    proto, feeds = _cnn(), _feeds(3, 8, 8)
    seen: list[tuple[int, int]] = []
    correct_bias(
        proto, plain(proto, feeds), feeds, progress=lambda label, done, total, note="": seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
