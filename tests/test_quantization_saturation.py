"""compress.quantization.cpu: layers that saturate without VNNI are found, and scales repair them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from benchmarks.stress_nets import saturating_net
from compress.quantization.candidates import Candidate
from compress.quantization.cpu import (
    emulate_saturation,
    packed_rows,
    pair_sums,
    repair_overrides,
    saturating_layers,
)
from compress.quantization.graph import array, constants
from compress.quantization.integer import quantize_static_qdq

FLOAT = TensorProto.FLOAT
INT8 = st.integers(-127, 127)


def graph_model(nodes: list[onnx.NodeProto], initializers: dict[str, np.ndarray], shape: tuple[int, ...]):
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _qdq(operator: str, weight: np.ndarray, activations: type = np.uint8, **attributes: int):
    """x -> conversions -> one weighted operator with an int8 (or uint8) weight."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wd"]),
        helper.make_node(operator, ["xd", "wd"], ["y"], name="layer", **attributes),
    ]
    return graph_model(nodes, {"scale": np.float32(1), "zero": activations(0), "w": weight}, (4,))


def _float(operator: str, weight: np.ndarray, shape: tuple[int, ...], **attributes: int) -> onnx.ModelProto:
    node = helper.make_node(operator, ["x", "w"], ["y"], name="layer", **attributes)
    return graph_model([node], {"w": weight.astype(np.float32)}, shape)


def _pair(*values: int) -> np.ndarray:
    return np.array([values], np.int8)


@pytest.mark.parametrize(
    ("row", "risky"),
    [
        ((64, 64, 0, 0), False),  # 255 * 128 = 32640 fits into an int16
        ((64, 65, 0, 0), True),
        ((-64, -64, 0, 0), False),
        ((-64, -65, 0, 0), True),
        ((0, 127, 127, 0), False),  # neighbours, but not of one pair
        ((127, -127, 0, 0), False),
        ((0, 0, 0, 0, 127), False),  # the last of an odd number is paired with zero
    ],
)
def test_only_pairs_that_overflow_an_int16_are_a_risk(row: tuple[int, ...], risky: bool) -> None:
    for model in (
        _qdq("Gemm", _pair(*row), transB=1),
        _qdq("Gemm", _pair(*row).T),
        _qdq("MatMul", _pair(*row).T),
        _qdq("MatMul", np.stack([_pair(*row).T] * 2)),
        _qdq("Conv", _pair(*row).reshape(1, -1, 1, 1)),
    ):
        assert bool(saturating_layers(model)) is risky


@given(
    arrays(np.int8, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=INT8),
    st.integers(0, 2**32 - 1),
)
def test_a_layer_that_is_not_flagged_is_exact_for_every_input(rows: np.ndarray, seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = generator.choice(np.array([0, 1, 128, 254, 255], np.uint8), (16, rows.shape[1]))
    images[0] = 255  # the worst that there is
    exact = images.astype(np.int32) @ rows.T.astype(np.int32)
    emulated = emulate_saturation(images, rows)
    if saturating_layers(_qdq("Gemm", rows, transB=1)):
        assert not np.array_equal(emulated[0], exact[0])
    else:
        np.testing.assert_array_equal(emulated, exact)


def test_the_emulation_clips_sums_of_two_products_at_both_ends_of_an_int16() -> None:
    images = np.full((1, 5), 255, np.uint8)
    rows = np.array([[127, 127, 1, 1, 127], [-127, -127, 0, 0, 0]], np.int8)
    np.testing.assert_array_equal(emulate_saturation(images, rows), [[32767 + 510 + 32385, -32768]])


def test_figures_tell_the_share_of_pairs_and_the_worst_sum() -> None:
    (found,) = saturating_layers(_qdq("Gemm", np.array([[100, 100, 1, 1], [-127, -127, 9, 9]], np.int8), transB=1))
    assert (found.node, found.weight, found.pairs, found.share, found.worst) == ("layer", "w", 4, 0.5, 254)


def test_a_convolution_adds_up_channels_last() -> None:
    by_channel = np.zeros((1, 2, 1, 2), np.int8)  # (C_out, C_in, kH, kW)
    by_channel[0, :, 0, 0] = 127
    assert saturating_layers(_qdq("Conv", by_channel))
    by_position = np.zeros((1, 2, 1, 2), np.int8)
    by_position[0, 0, 0, :] = 127
    assert not saturating_layers(_qdq("Conv", by_position))


def test_pairs_of_an_odd_number_of_channels_cross_kernel_positions() -> None:
    weight = np.zeros((1, 3, 1, 2), np.int8)
    weight[0, 2, 0, 0] = weight[0, 0, 0, 1] = 127  # places 2 and 3 of (kH, kW, C)
    assert saturating_layers(_qdq("Conv", weight))


def test_depthwise_convolutions_widen_but_those_with_a_multiplier_do_not() -> None:
    weight = np.full((4, 1, 3, 3), 127, np.int8)
    assert not saturating_layers(_qdq("Conv", weight, group=4))
    assert saturating_layers(_qdq("Conv", weight, group=2))


def test_int8_activations_saturate_as_uint8_ones_do_and_uint8_weights_never() -> None:
    assert saturating_layers(_qdq("Gemm", _pair(127, 127), np.int8, transB=1))
    assert not saturating_layers(_qdq("Gemm", np.array([[255, 255]], np.uint8), transB=1))


def test_an_int8_weight_with_float_activations_is_computed_in_float() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wd"]),
        helper.make_node("Gemm", ["x", "wd"], ["y"], transB=1),
    ]
    model = graph_model(nodes, {"scale": np.float32(1), "w": _pair(127, 127)}, (2,))
    assert saturating_layers(model) == ()


def test_products_of_dynamic_ranges_are_seen() -> None:
    columns = np.full((4, 2), 127, np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="layer")
    (found,) = saturating_layers(graph_model([node], {"w": columns}, (4,)))
    assert found.worst == 254


def test_both_weights_of_a_dynamic_lstm_are_seen() -> None:
    quiet, loud = np.ones((2, 6, 8), np.int8), np.full((2, 2, 8), 100, np.int8)  # (directions, K, 4 H)
    node = helper.make_node("DynamicQuantizeLSTM", ["x", "w", "r"], ["y"], name="lstm", domain="com.microsoft")
    assert [found.weight for found in saturating_layers(graph_model([node], {"w": quiet, "r": loud}, (6,)))] == ["r"]
    across = np.zeros((1, 6, 8), np.int8)
    across[0, 0, :2] = 127  # neighbours along 4 H are of two sums
    assert not saturating_layers(graph_model([node], {"w": across, "r": np.ones((1, 2, 8), np.int8)}, (6,)))


LAYERS = {
    "gemm": ("Gemm", (6, 10), (10,), {"transB": 1}),
    "gemm-plain": ("Gemm", (10, 6), (10,), {}),
    "matmul": ("MatMul", (10, 6), (10,), {}),
    "matmul-rank-3": ("MatMul", (2, 10, 6), (2, 4, 10), {}),
    "conv": ("Conv", (6, 3, 3, 3), (3, 8, 8), {}),
    "conv-grouped": ("Conv", (6, 2, 3, 3), (4, 8, 8), {"group": 2}),
}


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("kind", LAYERS)
def test_onnxruntime_takes_the_repair_and_the_layer_is_exact(kind: str, per_channel: bool) -> None:
    operator, shape, inputs, attributes = LAYERS[kind]
    weight = np.random.default_rng(3).uniform(0.2, 1, shape).astype(np.float32)
    proto = _float(operator, weight, inputs, **attributes)
    candidate = Candidate("static", "yes" if per_channel else "no", reduce_range=False)
    ranges = {"x": (0.0, 1.0), "y": (0.0, 30.0)}
    plain = quantize_static_qdq(proto, candidate, ranges)
    found = saturating_layers(plain)
    assert [each.weight for each in found] == ["w_quantized"]

    overrides = repair_overrides(proto, [each.weight for each in found], per_channel)
    repaired = quantize_static_qdq(proto, candidate, ranges, overrides=overrides)
    assert saturating_layers(repaired) == ()
    stored = array(constants(repaired)["w_quantized"])
    scales = array(constants(repaired)["w_scale"])
    assert scales.size == (6 if per_channel else 1)
    assert stored.dtype == np.int8
    assert np.abs(stored).max() > 62  # of 7 bits at least

    node = next(node for node in repaired.graph.node if node.op_type == operator)
    rows = packed_rows(node, stored)
    images = np.full((1, rows.shape[1]), 255, np.uint8)
    np.testing.assert_array_equal(emulate_saturation(images, rows), images.astype(np.int32) @ rows.T.astype(np.int32))


def test_the_repair_of_one_channel_leaves_the_others_as_they_are() -> None:
    weight = np.array([[1, 1, 0, 0], [1, -1, 1, -1], [0.5, 0.1, 0.2, 0.2]], np.float32)
    overrides = repair_overrides(_float("Gemm", weight, (4,), transB=1), ["w"], per_channel=True)
    scales = [float(entry["scale"]) for entry in overrides["w"]]
    assert scales == pytest.approx([1 / 63, 1 / 127, 0.5 / 105], rel=1e-2)
    assert all(entry["axis"] == 0 for entry in overrides["w"])


def test_a_repair_takes_no_more_than_the_worst_pair_needs() -> None:
    weight = np.array([[1.0, 0.3]], np.float32)  # 127 + 38 = 165: one bit less for all would be too much
    (entry,) = repair_overrides(_float("Gemm", weight, (2,), transB=1), ["w_quantized"], per_channel=False)["w"]
    assert 1 / 127 < float(entry["scale"]) < 1 / 63
    assert np.rint(weight / entry["scale"]).sum() <= 126


@given(arrays(np.float32, (5, 7), elements=st.floats(-1, 1, width=32)), st.booleans())
@example(np.where(np.arange(35) == 0, 0.98828125, 0.9765625).astype(np.float32).reshape(5, 7), False)
@example(np.full((5, 7), 1e-45, np.float32), False)
def test_repaired_weights_stay_exact_when_each_is_rounded_the_other_way(weight: np.ndarray, per_channel: bool) -> None:
    proto = _float("Gemm", weight, (7,), transB=1)
    overrides = repair_overrides(proto, ["w"], per_channel)["w"]
    scales = np.array([entry["scale"] for entry in overrides], np.float32).reshape(-1, 1)
    stored = np.rint(weight / scales)
    away = np.clip(stored + np.sign(weight), -127, 127).astype(np.int8)
    assert np.abs(pair_sums(proto.graph.node[0], away)).max(initial=0) <= 128


def test_a_weight_of_zeros_keeps_a_scale_that_can_be_divided_by() -> None:
    overrides = repair_overrides(_float("Gemm", np.zeros((2, 4)), (4,), transB=1), ["w"], per_channel=True)
    assert all(entry["scale"] > 0 for entry in overrides["w"])


def test_weights_that_are_not_named_are_not_repaired() -> None:
    assert repair_overrides(_float("Gemm", np.ones((2, 4)), (4,), transB=1), ["other"], per_channel=False) == {}


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Bars on black: ten classes of 8 x 8 images with noise, as bright as they can be."""
    generator = np.random.default_rng(5)
    labels = np.arange(400) % 10
    shapes = generator.uniform(size=(10, 1, 8, 8)) < 0.25
    flips = generator.uniform(size=(400, 1, 8, 8)) < 0.05
    return (shapes[labels] ^ flips).astype(np.float32), labels


def test_a_net_built_to_saturate_is_caught_and_repaired_within_one_point() -> None:
    images, labels = _digits()
    proto = saturating_net(images[:200], labels[:200], units=64)
    known = {name: array(tensor) for name, tensor in constants(proto).items()}
    ranges = {
        "inverted": (0.0, 1.0),
        "paper": (0.0, 1.0),
        "sums": (-9.0, 9.0),
        "features": (0.0, 9.0),
        "scores": (-1.0, 2.0),
    }
    candidate = Candidate("static", "no", reduce_range=False)
    plain = quantize_static_qdq(proto, candidate, ranges)
    found = saturating_layers(plain)
    assert "first.weight_quantized" in [each.weight for each in found]
    overrides = repair_overrides(proto, [each.weight for each in found], per_channel=False)
    repaired = quantize_static_qdq(proto, candidate, ranges, overrides=overrides)

    def accuracy(quantized: onnx.ModelProto) -> float:
        stored = {name: array(tensor) for name, tensor in constants(quantized).items()}
        paper = np.rint(255 * (1 - images[200:].reshape(200, -1))).astype(np.uint8)
        sums = emulate_saturation(paper, stored["first.weight_quantized"]) * stored["first.weight_scale"] / 255
        scores = np.maximum(sums + known["first.bias"], 0) @ known["last.weight"].T + known["last.bias"]
        return float((scores.argmax(1) == labels[200:]).mean())

    paper = 1 - images[200:].reshape(200, -1)
    scores = np.maximum(paper @ known["first.weight"].T + known["first.bias"], 0) @ known["last.weight"].T
    exact = float(((scores + known["last.bias"]).argmax(1) == labels[200:]).mean())
    assert exact > 0.9
    assert accuracy(plain) < exact - 0.2
    assert accuracy(repaired) >= exact - 0.01
