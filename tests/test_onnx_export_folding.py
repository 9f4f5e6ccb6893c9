"""compress.onnx_export.folding: BatchNorm and turned weights, on graphs made by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.models.onnx_file import Array, run, serialize
from compress.onnx_export.folding import (
    arrange_gelus,
    batch_norms_left,
    fold_batch_norms,
    fold_transposes,
    foldable_nodes,
    forward_constants,
)
from compress.onnx_export.weights import Traced

CHANNELS = 5
RANDOM = np.random.default_rng(0)
NORM = {
    "scale": RANDOM.uniform(0.5, 2, CHANNELS),
    "shift": RANDOM.normal(size=CHANNELS),
    "mean": RANDOM.normal(size=CHANNELS),
    "variance": RANDOM.uniform(0.5, 2, CHANNELS),
}
LAYERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "Conv": ("Conv", (CHANNELS, 3, 3, 3), (2, 3, 6, 6), {}),
    "grouped Conv": ("Conv", (CHANNELS, 1, 3, 3), (2, CHANNELS, 6, 6), {"group": CHANNELS}),
    "ConvTranspose": ("ConvTranspose", (3, CHANNELS, 3, 3), (2, 3, 6, 6), {}),
    "Gemm": ("Gemm", (3, CHANNELS), (2, 3), {}),
    "turned Gemm": ("Gemm", (CHANNELS, 3), (2, 3), {"transB": 1}),
}


def _graph(nodes: list[onnx.NodeProto], constants: dict[str, Array], outputs: tuple[str, ...] = ("y",)) -> Traced:
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", values, results, tensors)
    return Traced(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def _normed(kind: str, bias: bool, outputs: tuple[str, ...] = ("y",)) -> tuple[Traced, Array]:
    """A layer with BatchNorm after it, and an input."""
    operator, weight, x, attributes = LAYERS[kind]
    constants = {"w.weight": RANDOM.normal(size=weight), **NORM}
    if bias:
        constants["b"] = RANDOM.normal(size=CHANNELS)
    nodes = [
        helper.make_node(operator, ["x", "w.weight", *(["b"] if bias else [])], ["h"], **attributes),
        helper.make_node("BatchNormalization", ["h", *NORM], ["y"], epsilon=1e-3),
    ]
    return _graph(nodes, constants, outputs), RANDOM.normal(size=x).astype(np.float32)


def _outputs(traced: Traced, x: Array) -> list[Array]:
    return next(run(serialize(traced.proto), [{"x": x}]))


def _weights(traced: Traced) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in traced.proto.graph.initializer}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_batch_norm_goes_into_the_layer_before_it(kind: str, bias: bool) -> None:
    traced, x = _normed(kind, bias)
    expected = _outputs(traced, x)[0]
    folded, count = fold_batch_norms(traced)
    assert count == 1
    assert [node.op_type for node in folded.proto.graph.node] == [LAYERS[kind][0]]
    assert len(_weights(folded)) == 2
    np.testing.assert_allclose(_outputs(folded, x)[0], expected, atol=1e-5)


def test_the_graph_that_was_given_is_left_as_it_was() -> None:
    traced, _ = _normed("Conv", bias=True)
    before = serialize(traced.proto)
    fold_batch_norms(traced)
    assert serialize(traced.proto) == before


def test_zero_weights_stay_zero_after_folding() -> None:
    traced, _ = _normed("Conv", bias=False)
    array = _weights(traced)["w.weight"].copy()
    array[:, 0] = 0
    traced.proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w.weight"))
    folded = _weights(fold_batch_norms(traced)[0])["w.weight"]
    assert np.array_equal(folded == 0, array == 0)


def test_a_layer_whose_output_goes_elsewhere_too_keeps_its_batch_norm() -> None:
    traced, x = _normed("Conv", bias=True, outputs=("y", "h"))
    folded, count = fold_batch_norms(traced)
    assert (count, batch_norms_left(folded.proto)) == (0, 1)
    np.testing.assert_array_equal(_outputs(folded, x)[0], _outputs(traced, x)[0])


def test_a_weight_that_two_layers_share_is_left_alone() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *NORM], ["n"]),
        helper.make_node("Gemm", ["n", "w"], ["y"]),
    ]
    folded, count = fold_batch_norms(_graph(nodes, {"w": RANDOM.normal(size=(CHANNELS, CHANNELS)), **NORM}))
    assert (count, batch_norms_left(folded.proto)) == (0, 1)


def test_a_batch_norm_before_its_layer_is_left() -> None:
    nodes = [
        helper.make_node("BatchNormalization", ["x", *NORM], ["h"]),
        helper.make_node("Gemm", ["h", "w"], ["y"]),
    ]
    folded, count = fold_batch_norms(_graph(nodes, {"w": RANDOM.normal(size=(CHANNELS, 2)), **NORM}))
    assert (count, batch_norms_left(folded.proto)) == (0, 1)


def test_a_weight_outside_the_graph_is_folded_when_it_is_asked_for() -> None:
    traced, x = _normed("Conv", bias=True)
    expected = _outputs(traced, x)[0]
    asked = []

    def value() -> Array:
        asked.append("w")
        return _weights(traced)["w.weight"]

    folded, count = fold_batch_norms(Traced(traced.proto, {"w.weight": value}))
    assert (count, asked) == (1, [])
    folded.proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(folded.values["w.weight"](), "w.weight"))
    np.testing.assert_allclose(_outputs(folded, x)[0], expected, atol=1e-5)


def test_a_turned_weight_is_turned_as_it_is_written_unless_something_else_takes_it() -> None:
    shared, own = RANDOM.normal(size=(4, 3)), RANDOM.normal(size=(4, 3))
    nodes = [
        helper.make_node("Transpose", ["own"], ["own_t"], perm=[1, 0]),
        helper.make_node("Transpose", ["shared"], ["shared_t"]),
        helper.make_node("MatMul", ["x", "own_t"], ["a"]),
        helper.make_node("MatMul", ["a", "shared"], ["b"]),
        helper.make_node("MatMul", ["b", "shared_t"], ["y"]),
    ]
    traced = _graph(nodes, {"own": own, "shared": shared})
    values = {"own": partial(np.asarray, own), "shared": partial(np.asarray, shared)}
    turned = fold_transposes(Traced(traced.proto, values))
    assert [node.op_type for node in turned.proto.graph.node] == ["Transpose", "MatMul", "MatMul", "MatMul"]
    assert foldable_nodes(turned.proto) == ("Transpose",)
    np.testing.assert_array_equal(turned.values["own_t"](), own.T)
    assert list(turned.proto.graph.initializer[0].dims) == [3, 4]


def test_operators_on_constants_alone_are_found_through_each_other() -> None:
    nodes = [
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Mul", ["x", "d"], ["y"]),
    ]
    assert foldable_nodes(_graph(nodes, {"a": np.ones(2), "b": np.ones(2)}).proto) == ("Add", "Relu")


def test_copies_of_constants_are_taken_out() -> None:
    nodes = [
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Mul", ["x", "a"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["y"]),
    ]
    traced, x = _graph(nodes, {"a": np.arange(2)}), np.float32([[3, 5]])
    expected = _outputs(traced, x)[0]
    forward_constants(traced.proto)
    assert [node.op_type for node in traced.proto.graph.node] == ["Mul", "Add"]
    np.testing.assert_array_equal(_outputs(traced, x)[0], expected)


@pytest.mark.parametrize("shared", [False, True])
def test_a_gelu_is_arranged_and_gives_the_same_and_what_is_used_elsewhere_stays(shared: bool) -> None:
    nodes = [
        helper.make_node("Div", ["x", "root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["sum"]),
        helper.make_node("Mul", ["half", "sum"], ["halved"]),
        helper.make_node("Mul", ["x", "halved"], ["y"]),
    ]
    constants = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    traced = _graph(nodes, constants, ("y", "halved") if shared else ("y",))
    before, feed = serialize(traced.proto), {"x": RANDOM.normal(size=(2, 3)).astype(np.float32)}
    arrange_gelus(traced.proto)
    assert (serialize(traced.proto) == before) is shared
    assert ("x" in traced.proto.graph.node[3].input) is not shared
    for ours, theirs in zip(next(run(serialize(traced.proto), [feed])), next(run(before, [feed])), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
