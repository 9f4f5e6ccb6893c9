"""compress.quantization.sensitivity: which layers quantization hurts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compress.errors import QuantizationError
from compress.models.counts import macs_by_operator
from compress.quantization.candidates import Candidate
from compress.quantization.graph import inner_values, layers, sqnr_db
from compress.quantization.integer import quantize_static_qdq
from compress.quantization.sensitivity import LayerSqnr, layer_sensitivity, layer_sqnr

Array = NDArray[Any]
Feeds = list[dict[str, Array]]
Build = Callable[[tuple[str, ...]], onnx.ModelProto]

NAMES = ("first", "second", "third", "fc")


def _net(poisoned: str | None = None, seed: int = 0) -> onnx.ModelProto:
    """Three Conv with Relu and a Gemm: input (2, 6, 6), 4 outputs. One weight of the poisoned layer dwarfs the rest."""
    nodes, weights, source = [], dict[str, Array](), "input"
    rng = np.random.default_rng(seed)
    for number, (name, width) in enumerate(zip(NAMES[:3], (2, 6, 6), strict=True)):
        weights[f"{name}.w"] = rng.standard_normal((6, width, 3, 3)) / (3 * np.sqrt(width))
        conv = helper.make_node("Conv", [source, f"{name}.w"], [f"c{number}"], name=name, pads=[1, 1, 1, 1])
        relu = helper.make_node("Relu", [f"c{number}"], [f"r{number}"], name=f"relu{number}")
        nodes, source = [*nodes, conv, relu], f"r{number}"
    nodes.append(helper.make_node("Flatten", [source], ["f"], name="flatten"))
    nodes.append(helper.make_node("Gemm", ["f", "fc.w"], ["output"], name="fc", transB=1))
    weights["fc.w"] = rng.standard_normal((4, 216)) / 15
    if poisoned is not None:
        weights[f"{poisoned}.w"].reshape(-1)[0] = 60
    tensors = [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2, 6, 6])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 4])]
    graph = helper.make_graph(nodes, "model", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _feeds(samples: int = 32, poisoned: bool = False) -> Feeds:
    values = np.random.default_rng(7).standard_normal((samples, 2, 6, 6)).astype(np.float32)
    if poisoned:
        values[:, 0] *= 0.01  # what the large weight of the first layer is multiplied with
    return [{"input": values[at : at + 16]} for at in range(0, samples, 16)]


def _build(proto: onnx.ModelProto, feeds: Feeds) -> Build:
    names = ["input", *(name for node in proto.graph.node for name in node.output)]
    ranges: dict[str, tuple[float, float]] = dict.fromkeys(names, (0.0, 0.0))
    for values in inner_values(proto, names, feeds):
        for name, value in values.items():
            ranges[name] = min(ranges[name][0], float(value.min())), max(ranges[name][1], float(value.max()))
    return lambda exclude: quantize_static_qdq(proto, Candidate("static", "no", False), ranges, exclude)


def _output_db(proto: onnx.ModelProto, quantized: onnx.ModelProto, feeds: Feeds) -> float:
    pairs = zip(inner_values(proto, ["output"], feeds), inner_values(quantized, ["output"], feeds), strict=True)
    ours, theirs = zip(*((a["output"], b["output"]) for a, b in pairs), strict=True)
    return sqnr_db(np.concatenate(ours), np.concatenate(theirs))


def test_the_poisoned_layer_is_the_worst() -> None:
    proto, feeds = _net("first"), _feeds(poisoned=True)
    ranked = layer_sensitivity(proto, _build(proto, feeds), feeds, NAMES)
    assert sorted(one.layer for one in ranked) == sorted(NAMES)
    assert ranked[0].layer == "first"
    assert ranked[0].sqnr_db < ranked[1].sqnr_db - 6
    assert ranked[0].local_sqnr_db < min(one.local_sqnr_db for one in ranked[1:])


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_worst_layer_back_in_float_first_never_lowers_sqnr(seed: int) -> None:
    proto, feeds = _net("first", seed), _feeds(poisoned=True)
    build = _build(proto, feeds)
    worst = layer_sensitivity(proto, build, feeds, NAMES)[0].layer
    assert _output_db(proto, build((worst,)), feeds) >= _output_db(proto, build(()), feeds)


def test_equal_arguments_give_equal_sensitivities() -> None:
    proto, feeds = _net(), _feeds()
    build = _build(proto, feeds)
    assert layer_sensitivity(proto, build, feeds, NAMES) == layer_sensitivity(proto, build, feeds, NAMES)


def test_macs_and_bytes_are_those_of_the_graph() -> None:
    proto, feeds = _net(), _feeds(16)
    ranked = layer_sensitivity(proto, _build(proto, feeds), feeds, NAMES)
    assert sum(one.macs for one in ranked) == sum(macs_by_operator(proto).values())
    assert {one.layer: one.weight_bytes for one in ranked} == {
        "first": 4 * 108, "second": 4 * 324, "third": 4 * 324, "fc": 4 * 864,
    }  # fmt: skip
    assert {one.layer: one.operator for one in ranked}["fc"] == "Gemm"


def test_each_layer_is_built_with_all_others_and_their_activations_in_float() -> None:
    proto, feeds = _net(), _feeds(16)
    build, asked, told = _build(proto, feeds), list[set[str]](), list[int]()

    def spied(exclude: tuple[str, ...]) -> onnx.ModelProto:
        asked.append(set(exclude))
        return build(exclude)

    layer_sensitivity(proto, spied, feeds, NAMES[:2], progress=lambda label, done, total, note="": told.append(done))
    assert asked == [
        {"second", "third", "fc", "relu1", "relu2"},
        {"first", "third", "fc", "relu0", "relu2"},
    ]
    assert told == [1, 2]


def test_a_layer_that_cannot_be_quantized_alone_costs_nothing_and_comes_last() -> None:
    proto, feeds = _net(), _feeds(16)
    build = _build(proto, feeds)

    def refusing(exclude: tuple[str, ...]) -> onnx.ModelProto:
        if "second" not in exclude:
            raise QuantizationError("no")
        return build(exclude)

    last = layer_sensitivity(proto, refusing, feeds, NAMES)[-1]
    assert (last.layer, last.sqnr_db) == ("second", np.inf)


def test_no_more_than_128_samples_are_used() -> None:
    proto = _net()
    build = _build(proto, _feeds(16))
    many = _feeds(160)
    assert layer_sensitivity(proto, build, many, NAMES[:1]) == layer_sensitivity(proto, build, many[:8], NAMES[:1])


def test_a_name_that_is_no_layer_is_refused() -> None:
    proto, feeds = _net(), _feeds(16)
    with pytest.raises(QuantizationError, match=r"no weighted layer fifth\. It has first, second"):
        layer_sensitivity(proto, _build(proto, feeds), feeds, ("first", "fifth"))


def test_no_samples_are_refused() -> None:
    with pytest.raises(QuantizationError, match="no calibration samples"):
        layer_sensitivity(_net(), lambda exclude: _net(), [], NAMES)


def test_layer_sqnr_equals_a_reference_over_all_samples_at_once() -> None:
    proto, feeds = _net(), _feeds(48)
    quantized = _build(proto, feeds)(())
    found = layer_sqnr(proto, quantized, feeds)
    (ours,) = inner_values(proto, ["r1"], [{"input": np.concatenate([feed["input"] for feed in feeds])}])
    name = next(n.output[0] for n in quantized.graph.node if n.name == "second")
    quantize = next(n for n in quantized.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == name)
    restored = next(n.output[0] for n in quantized.graph.node if n.input[0] == quantize.output[0])
    theirs = np.concatenate([values[restored] for values in inner_values(quantized, [restored], feeds)])
    assert list(found) == list(NAMES)
    assert found["second"].output_db == pytest.approx(sqnr_db(ours["r1"], theirs), abs=1e-6)


def test_weight_sqnr_is_that_of_rounding_and_infinite_in_float() -> None:
    proto, feeds = _net(), _feeds(16)
    found = layer_sqnr(proto, _build(proto, feeds)(("third",)), feeds)
    weight = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "first.w"))
    scale = np.abs(weight).max() / np.float32(127)
    assert found["first"].weight_db == pytest.approx(sqnr_db(weight, np.rint(weight / scale) * scale), abs=0.01)
    assert found["third"].weight_db == np.inf


def test_the_float_graph_against_itself_has_no_error() -> None:
    proto = _net()
    found = layer_sqnr(proto, proto, _feeds(16))
    assert found == dict.fromkeys([layer.name for layer in layers(proto)], LayerSqnr(np.inf, np.inf))
