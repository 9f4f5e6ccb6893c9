"""compress.quantization.equalization: the same function, in channels that are as large as each other."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.outlier_net import plain, with_outliers
from compress.errors import QuantizationError
from compress.models.onnx_file import run, serialize
from compress.quantization.equalization import equalize, rescale
from compress.quantization.graph import array, constants

Floats = NDArray[np.float32]

SAME = 1e-4  # relative, of the "exact in float"; rounding leaves 1e-6


def _weight(seed: int, *shape: int) -> Floats:
    return (np.random.default_rng(seed).standard_normal(shape) / 4).astype(np.float32)


def _graph(
    nodes: list[onnx.NodeProto], tensors: dict[str, Floats], shape: tuple[int, ...], rank: int
) -> onnx.ModelProto:
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])
    target = helper.make_tensor_value_info("output", TensorProto.FLOAT, [None] * rank)
    initializers = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "model", [source], [target], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(proto)
    return proto


def _between(*nodes: onnx.NodeProto, **tensors: Floats) -> onnx.ModelProto:
    """Conv, what is given (from "c" to "m"), Conv."""
    first = helper.make_node("Conv", ["input", "w1", "b1"], ["c"], name="first")
    second = helper.make_node("Conv", ["m", "w2", "b2"], ["output"], name="second")
    weights = {"w1": _uneven(1, 6, 3, 3, 3), "b1": _weight(2, 6), "w2": _weight(3, 4, 6, 1, 1), "b2": _weight(4, 4)}
    return _graph([first, *nodes, second], weights | tensors, (3, 8, 8), 4)


def _uneven(seed: int, *shape: int) -> Floats:
    """Output channels (axis 0) from 1/8 to 4 times as large as usual."""
    factors = np.float32(2.0) ** np.linspace(-3, 2, shape[0], dtype=np.float32)
    return np.asarray(_weight(seed, *shape) * factors.reshape(-1, *[1] * (len(shape) - 1)), np.float32)


def _node(kind: str, taken: list[str], given_: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, taken, [given_], name=given_, **attributes)


def _conv_flatten_gemm() -> onnx.ModelProto:
    nodes = [
        _node("Conv", ["input", "w1", "b1"], "c"),
        _node("MaxPool", ["c"], "p", kernel_shape=[2, 2], strides=[2, 2]),
        _node("Relu", ["p"], "r"),
        _node("Reshape", ["r", "shape"], "f"),
        _node("Gemm", ["f", "w2", "b2"], "output", transB=1),
    ]
    tensors = {"w1": _uneven(1, 6, 3, 3, 3), "b1": _weight(2, 6), "w2": _weight(3, 5, 6 * 9), "b2": _weight(4, 5)}
    return _graph(nodes, tensors | {"shape": np.int64([-1, 54])}, (3, 8, 8), 2)


def _depthwise() -> onnx.ModelProto:
    nodes = [
        _node("Conv", ["input", "w1", "b1"], "expand"),
        _node("Relu", ["expand"], "r1"),
        _node("Conv", ["r1", "w2", "b2"], "depthwise", group=8),
        _node("LeakyRelu", ["depthwise"], "r2", alpha=0.1),
        _node("Conv", ["r2", "w3"], "output", group=2),
    ]
    tensors = {
        "w1": _uneven(1, 8, 3, 1, 1), "b1": _weight(2, 8), "w2": _uneven(3, 8, 1, 3, 3), "b2": _weight(4, 8),
        "w3": _weight(5, 6, 4, 1, 1),
    }  # fmt: skip
    return _graph(nodes, tensors, (3, 8, 8), 4)


def _transposed() -> onnx.ModelProto:
    nodes = [
        _node("ConvTranspose", ["input", "w1", "b1"], "up", group=3),
        _node("Relu", ["up"], "r1"),
        _node("ConvTranspose", ["r1", "w2"], "output", group=2),
    ]
    tensors = {"w1": _weight(1, 3, 2, 2, 2), "b1": _weight(2, 6), "w2": _uneven(3, 6, 2, 2, 2)}
    return _graph(nodes, tensors, (3, 5, 5), 4)


def _mean() -> onnx.ModelProto:
    nodes = [
        _node("Conv", ["input", "w1", "b1"], "c"),
        _node("Relu", ["c"], "r"),
        _node("ReduceMean", ["r", "axes"], "mean", keepdims=0),
        _node("Gemm", ["mean", "w2"], "output"),
    ]
    tensors = {"w1": _uneven(1, 6, 3, 3, 3), "b1": _weight(2, 6), "w2": _weight(3, 6, 5), "axes": np.int64([-1, 2])}
    return _graph(nodes, tensors, (3, 8, 8), 2)


def _tokens() -> onnx.ModelProto:
    """MatMul and Add over (batch, tokens, features), with a change of axes between."""
    nodes = [
        _node("MatMul", ["input", "w1"], "m1"),
        _node("Add", ["b1", "m1"], "a1"),
        _node("Relu", ["a1"], "r1"),
        _node("Transpose", ["r1"], "t", perm=[0, 2, 1]),
        _node("Transpose", ["t"], "u", perm=[0, 2, 1]),
        _node("MatMul", ["u", "w2"], "output"),
    ]
    tensors = {"w1": _uneven(1, 8, 4).T.copy(), "b1": _weight(2, 1, 8), "w2": _weight(3, 8, 5)}
    return _graph(nodes, tensors, (7, 4), 3)


GRAPHS = {
    "conv": (lambda: _between(_node("Relu", ["c"], "m")), (3, 8, 8), 1),
    "flatten": (_conv_flatten_gemm, (3, 8, 8), 1),
    "depthwise": (_depthwise, (3, 8, 8), 2),
    "transposed": (_transposed, (3, 5, 5), 1),
    "mean": (_mean, (3, 8, 8), 1),
    "tokens": (_tokens, (7, 4), 1),
}


def _outputs(proto: onnx.ModelProto, shape: tuple[int, ...]) -> Floats:
    images = np.random.default_rng(9).standard_normal((16, *shape)).astype(np.float32)
    return next(run(serialize(proto), [{"input": images}]))[0]


def _same(proto: onnx.ModelProto, other: onnx.ModelProto, shape: tuple[int, ...]) -> bool:
    expected, found = _outputs(proto, shape), _outputs(other, shape)
    return float(np.abs(expected - found).max()) <= SAME * float(np.abs(expected).max())


def _spread(weight: Floats, axis: int = 0) -> float:
    """Largest over smallest range of a channel."""
    ranges = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(axis=1)
    return float(ranges.max() / ranges.min())


@pytest.mark.parametrize("name", GRAPHS)
def test_the_outputs_stay_and_the_argument_too(name: str) -> None:
    build, shape, count = GRAPHS[name]
    proto = build()
    before = serialize(proto)
    equal, pairs = equalize(proto)
    assert serialize(proto) == before
    assert len(pairs) == count
    assert max(pair.largest_scale for pair in pairs) > 1.2
    assert _same(proto, equal, shape)


@pytest.mark.parametrize("name", GRAPHS)
def test_equal_graphs_give_equal_bytes(name: str) -> None:
    build = GRAPHS[name][0]
    assert serialize(equalize(build())[0]) == serialize(equalize(build())[0])


def test_both_sides_of_a_pair_get_the_same_ranges_but_for_one_factor() -> None:
    proto = _between(_node("Relu", ["c"], "m"))
    equal = constants(equalize(proto)[0])
    first = np.abs(array(equal["w1"])).max(axis=(1, 2, 3))
    second = np.abs(array(equal["w2"])).max(axis=(0, 2, 3))
    np.testing.assert_allclose(first / second, (first / second)[0], rtol=1e-2)
    assert _spread(array(equal["w1"])) < _spread(array(constants(proto)["w1"])) / 2


def test_a_chain_settles_so_that_a_second_time_changes_next_to_nothing() -> None:
    once, _ = equalize(_depthwise())
    _, pairs = equalize(once)
    assert all(pair.largest_scale < 1.01 for pair in pairs)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(1e-2, 1e2), min_size=6, max_size=6))
def test_channels_that_were_scaled_and_compensated_end_where_they_would_without(factors: list[float]) -> None:
    proto = _between(_node("Relu", ["c"], "m"), b1=np.zeros(6, np.float32))  # no bias, so that none is limited
    plain = array(constants(equalize(proto)[0])["w1"])
    scaled = array(constants(equalize(rescale(proto, {"first": factors}))[0])["w1"])
    ratio = np.abs(scaled).max(axis=(1, 2, 3)) / np.abs(plain).max(axis=(1, 2, 3))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-2)


def test_zeros_stay_zero_and_nothing_else_becomes_one() -> None:
    proto = _conv_flatten_gemm()
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "w2"):
            values = array(tensor)
            values[np.abs(values) < np.quantile(np.abs(values), 0.8)] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    equal = constants(equalize(proto)[0])
    for name in ("w1", "w2"):
        assert np.array_equal(array(equal[name]) == 0, array(constants(proto)[name]) == 0)


def test_channels_with_weights_on_one_side_only_are_no_longer_the_largest() -> None:
    first, second = _weight(1, 6, 3, 3, 3), _weight(3, 4, 6, 1, 1)
    first[2], second[:, 4], first[5], second[:, 5] = 0, 0, 0, 0
    first[4] *= 100
    second[:, 2] *= 100
    equal, _ = equalize(_between(_node("Relu", ["c"], "m"), w1=first, w2=second, b1=np.zeros(6, np.float32)))
    known = constants(equal)
    given_ = np.abs(array(known["w1"])).max(axis=(1, 2, 3))
    taken = np.abs(array(known["w2"])).max(axis=(0, 2, 3))
    assert given_[4] < given_.max()
    assert taken[2] < taken.max()
    assert given_[[2, 5]].tolist() == taken[[4, 5]].tolist() == [0, 0]


def test_a_channel_that_is_a_constant_does_not_become_the_range_of_all_others() -> None:
    first, bias = _weight(1, 6, 3, 3, 3), np.full(6, 0.5, np.float32)
    first[2] *= 1e-12  # trained away, as weight decay does
    equal, _ = equalize(_between(_node("Relu", ["c"], "m"), w1=first, b1=bias))
    assert float(np.abs(array(constants(equal)["b1"])).max()) <= 8 * 0.5 * 1.001


@pytest.mark.parametrize("kind", ["Clip", "HardSwish", "Sigmoid", "Softplus"])
def test_functions_that_do_not_let_scales_pass_end_the_search(kind: str) -> None:
    taken = ["c", "low", "high"] if kind == "Clip" else ["c"]
    limits = {"low": np.float32(0), "high": np.float32(6)} if kind == "Clip" else {}
    proto = _between(_node(kind, taken, "m"), **limits)
    equal, pairs = equalize(proto)
    assert not pairs
    assert serialize(equal) == serialize(proto)


def test_a_value_with_a_second_use_ends_the_search() -> None:
    residual = [_node("Relu", ["c"], "r"), _node("Sigmoid", ["r"], "s"), _node("Mul", ["r", "s"], "m")]
    assert not equalize(_between(*residual))[1]
    output = _between(_node("Relu", ["c"], "m"))
    output.graph.output.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, None))
    assert not equalize(output)[1]


def test_a_weight_that_two_layers_share_is_left_as_it_is() -> None:
    nodes = [
        _node("Gemm", ["input", "w", "b"], "g1"),
        _node("Relu", ["g1"], "r1"),
        _node("Gemm", ["r1", "w", "b"], "output"),
    ]
    proto = _graph(nodes, {"w": _uneven(1, 4, 4), "b": _weight(2, 4)}, (4,), 2)
    assert not equalize(proto)[1]


def test_a_reshape_that_mixes_channels_ends_the_search() -> None:
    shape = {"shape": np.int64([-1, 6, 6, 6])}
    proto = _between(_node("Transpose", ["c"], "t", perm=[0, 2, 3, 1]), _node("Reshape", ["t", "shape"], "m"), **shape)
    assert not equalize(proto)[1]


def test_scales_that_fit_no_pair_are_refused_by_name() -> None:
    proto = _between(_node("Relu", ["c"], "m"))
    with pytest.raises(QuantizationError, match=r"second \(4\).*Pairs start at \(channels\): first \(6\)"):
        rescale(proto, {"second": [1.0] * 4})
    with pytest.raises(QuantizationError, match=r"first \(5\)"):
        rescale(proto, {"first": [1.0] * 5})


def _digits_net() -> tuple[onnx.ModelProto, Floats, NDArray[np.int64]]:
    """A random layer and one of least squares on the digits: about 0.97 right on the images that it has not seen."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    first, bias = 4 * _weight(1, 256, 64) / np.float32(3), _weight(2, 256)
    hidden = np.maximum(images[:1000] @ first.T + bias, 0).astype(np.float64)
    ridge = np.linalg.solve(hidden.T @ hidden + np.eye(256), hidden.T @ np.eye(10)[labels[:1000]])
    nodes = [
        _node("Gemm", ["input", "w1", "b1"], "hidden", transB=1),
        _node("Relu", ["hidden"], "relu"),
        _node("MatMul", ["relu", "w2"], "output"),
    ]
    return _graph(nodes, {"w1": first, "b1": bias, "w2": ridge.astype(np.float32)}, (64,), 2), images, labels


def test_a_net_with_outlier_channels_that_int8_breaks_is_back_within_a_point_of_float() -> None:
    proto, images, labels = _digits_net()
    calibration, test = [{"input": images[:256]}], [{"input": images[1000:]}]

    def accuracy(graph: onnx.ModelProto) -> float:
        return float((next(run(serialize(graph), test))[0].argmax(axis=1) == labels[1000:]).mean())

    outliers = with_outliers(proto)
    expected = accuracy(proto)
    assert expected > 0.9
    assert accuracy(outliers) == pytest.approx(expected, abs=2e-3)
    assert accuracy(plain(outliers, calibration)) < expected - 0.20  # the figures
    assert accuracy(plain(equalize(outliers)[0], calibration)) > expected - 0.01
