"""compress.quantization.rounding: up or down, by what it does to the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compress.errors import QuantizationError, RecipeError
from compress.models.onnx_file import serialize
from compress.quantization.candidates import Candidate
from compress.quantization.graph import array, constants, inner_values, layers, sqnr_db
from compress.quantization.integer import quantize_dynamic_range, quantize_static_qdq
from compress.quantization.rounding import RoundingConfig, learn_rounding

Array = NDArray[Any]
Feeds = list[dict[str, Array]]

QUICK = RoundingConfig(steps=150, batch_size=64, rows=2048)
ONE_STEP = RoundingConfig(steps=1, batch_size=8, rows=64)


def _model(
    nodes: Sequence[onnx.NodeProto], weights: dict[str, Array], shape: Sequence[int | str], rank: int
) -> onnx.ModelProto:
    """A graph from "input" (batch, *shape) to "output" with ``rank`` axes."""
    tensors = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", *[None] * (rank - 1)])]
    graph = helper.make_graph(list(nodes), "model", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))


def _smooth(seed: int, samples: int, *shape: int) -> Feeds:
    """Two batches of inputs in which neighbours are alike, as pixels are: rounding errors add up over them."""
    values = np.random.default_rng(seed).standard_normal((samples, *shape))
    for axis in range(1, values.ndim):
        values = values + np.roll(values, 1, axis) + np.roll(values, 2, axis)
    values = np.abs(values).astype(np.float32)
    return [{"input": values[: samples // 2]}, {"input": values[samples // 2 :]}]


def _stored(proto: onnx.ModelProto, bits: int, per_channel: bool = True) -> onnx.ModelProto:
    """The graph with its weights as integers, restored by DequantizeLinear; activations stay float."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    limit = 2 ** (bits - 1) - 1
    for layer in layers(proto):
        tensor = constants(made)[layer.weight]
        weight = array(tensor)
        axes = tuple(a for a in range(weight.ndim) if a != layer.channel_axis) if per_channel else None
        scale = np.abs(weight).max(axis=axes, keepdims=True).astype(np.float32) / limit
        integers = np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8)
        scale = scale.reshape(-1) if per_channel else scale.reshape(())
        made.graph.initializer.remove(tensor)
        names = [f"{layer.weight}_quantized", f"{layer.weight}_scale", f"{layer.weight}_zero_point"]
        for name, values in zip(names, (integers, scale, np.zeros_like(scale, np.int8)), strict=True):
            made.graph.initializer.append(numpy_helper.from_array(values, name))
        node = helper.make_node("DequantizeLinear", names, [layer.weight], axis=layer.channel_axis)
        made.graph.node.insert(0, node)
    return made


def _cnn(zeros: float = 0.0, outlier: float = 0.0) -> onnx.ModelProto:
    """Conv, Relu, depthwise Conv, Relu, Gemm: input (2, 8, 8), 5 outputs. An outlier makes the others' steps coarse."""
    nodes = [
        helper.make_node("Conv", ["input", "a", "a.bias"], ["c1"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "b", "b.bias"], ["c2"], name="depthwise", group=8, strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("Flatten", ["r2"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "c", "c.bias"], ["output"], name="fc", transB=1),
    ]
    weights = {
        "a": _normal(1, 8, 2, 3, 3), "a.bias": _normal(2, 8), "b": _normal(3, 8, 1, 3, 3), "b.bias": _normal(4, 8),
        "c": _normal(5, 5, 72), "c.bias": _normal(6, 5),
    }  # fmt: skip
    for name in ("a", "b", "c"):
        weights[name][np.abs(weights[name]) < np.quantile(np.abs(weights[name]), zeros)] = 0
        weights[name].reshape(-1)[0] += outlier
    return _model(nodes, weights, (2, 8, 8), 2)


def _conv() -> onnx.ModelProto:
    """One Conv: input (4, 8, 8), output (16, 6, 6)."""
    node = helper.make_node("Conv", ["input", "w", "w.bias"], ["output"], name="conv")
    return _model([node], {"w": _normal(1, 16, 4, 3, 3), "w.bias": _normal(2, 16)}, (4, 8, 8), 4)


def _qdq(proto: onnx.ModelProto, feeds: Feeds, per_channel: bool = False) -> onnx.ModelProto:
    """The graph with ranges from ``feeds``."""
    known = {tensor.name for tensor in proto.graph.initializer}
    names = [name for node in proto.graph.node for name in (*node.input, *node.output) if name not in known]
    ranges: dict[str, tuple[float, float]] = dict.fromkeys(names, (0.0, 0.0))
    for values in inner_values(proto, names, feeds):
        for name, value in values.items():
            low, high = ranges[name]
            ranges[name] = min(low, float(value.min())), max(high, float(value.max()))
    return quantize_static_qdq(proto, Candidate("static", "yes" if per_channel else "no", False), ranges)


def _output(proto: onnx.ModelProto, feeds: Feeds) -> Array:
    return np.concatenate([values["output"] for values in inner_values(proto, ["output"], feeds)])


def _integers(proto: onnx.ModelProto) -> dict[str, Array]:
    return {name: array(t) for name, t in constants(proto).items() if name.endswith("_quantized") and len(t.dims) > 1}


def test_a_layer_of_4_bits_gains_2_db_over_rounding_to_nearest() -> None:
    proto = _conv()
    _, figures = learn_rounding(proto, _stored(proto, 4), _smooth(0, 64, 4, 8, 8), QUICK)
    assert figures["conv"].kept
    assert figures["conv"].learned_db >= figures["conv"].nearest_db + 2


def test_outputs_of_new_samples_are_closer_to_float() -> None:
    proto, feeds, new = _cnn(), _smooth(0, 64, 2, 8, 8), _smooth(1, 64, 2, 8, 8)
    quantized, reference = _stored(proto, 4), _output(proto, new)
    learned, _ = learn_rounding(proto, quantized, feeds, QUICK)
    assert sqnr_db(reference, _output(learned, new)) > sqnr_db(reference, _output(quantized, new)) + 1


def test_a_static_graph_whose_weights_are_its_weak_spot_gains_too() -> None:
    proto = _conv()
    constant = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    weight = array(constant)
    weight[0, 0, 0, 0] = 4  # makes the steps of all others coarse
    constant.CopyFrom(numpy_helper.from_array(weight, "w"))
    feeds, new = _smooth(0, 64, 4, 8, 8), _smooth(1, 64, 4, 8, 8)
    quantized, reference = _qdq(proto, feeds), _output(proto, new)
    learned, figures = learn_rounding(proto, quantized, feeds, QUICK)
    assert figures["conv"].kept
    assert sqnr_db(reference, _output(learned, new)) > sqnr_db(reference, _output(quantized, new)) + 0.5


def test_zeros_stay_zero_after_rounding() -> None:
    proto, feeds = _cnn(zeros=0.6), _smooth(0, 32, 2, 8, 8)
    quantized = _qdq(proto, feeds)
    learned, figures = learn_rounding(proto, quantized, feeds, QUICK)
    assert any(figure.kept for figure in figures.values())
    integers = _integers(learned)
    for layer in layers(proto):
        assert not integers[f"{layer.weight}_quantized"][array(constants(proto)[layer.weight]) == 0].any()


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_every_integer_is_one_of_the_two_beside_its_float_value_and_in_the_range_of_before(bits: int) -> None:
    proto = _cnn()
    quantized = _stored(proto, bits)
    learned, figures = learn_rounding(proto, quantized, _smooth(0, 32, 2, 8, 8), QUICK)
    assert sum(figure.moved for figure in figures.values()) > 0
    limit = 2 ** (bits - 1) - 1
    for name, values in _integers(learned).items():
        weight = array(constants(proto)[name.removesuffix("_quantized")])
        scale = array(constants(quantized)[name.replace("_quantized", "_scale")])
        exact = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
        assert np.abs(values - exact).max() < 1 + 1e-4
        assert np.abs(values).max() <= limit


def test_only_integer_weights_change_and_the_arguments_do_not() -> None:
    proto, feeds = _cnn(), _smooth(0, 32, 2, 8, 8)
    quantized = _qdq(proto, feeds, per_channel=True)
    before = serialize(proto), serialize(quantized)
    learned, _ = learn_rounding(proto, quantized, feeds, QUICK)
    assert (serialize(proto), serialize(quantized)) == before
    assert list(learned.graph.node) == list(quantized.graph.node)
    old, new = constants(quantized), constants(learned)
    assert {name for name in old if old[name] != new[name]} <= set(_integers(quantized))


def test_equal_arguments_give_equal_bytes_and_equal_figures() -> None:
    proto, feeds = _cnn(), _smooth(0, 32, 2, 8, 8)
    first, second = (learn_rounding(proto, _stored(proto, 4), feeds, QUICK, seed=3) for _ in range(2))
    assert serialize(first[0]) == serialize(second[0])
    assert first[1] == second[1]


def test_a_graph_that_learning_makes_worse_comes_back_as_it_was() -> None:
    proto = _conv()
    quantized = _stored(proto, 4)
    wild = RoundingConfig(steps=1, batch_size=1, rows=64, learning_rate=1000)  # one position decides, in one step
    learned, figures = learn_rounding(proto, quantized, _smooth(0, 32, 4, 8, 8), wild)
    assert all(figure.moved > 0 and figure.learned_db < figure.nearest_db for figure in figures.values())
    assert not any(figure.kept for figure in figures.values())
    assert serialize(learned) == serialize(quantized)


@pytest.mark.parametrize(
    ("shape", "weight", "options"),
    [
        ((4, 19), (6, 4, 5), {"strides": [2], "pads": [3, 1]}),
        ((4, 19), (6, 2, 3), {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2]}),
        ((4, 9, 8), (6, 4, 3, 2), {"pads": [1, 0, 2, 1], "dilations": [2, 1], "strides": [1, 2]}),
        ((4, 9, 8), (8, 1, 3, 4), {"group": 4, "auto_pad": "SAME_LOWER", "strides": [2, 3]}),
        ((4, 9, 8), (6, 4, 3, 3), {"auto_pad": "VALID"}),
        ((2, 5, 6, 4), (4, 1, 2, 3, 1), {"group": 2, "strides": [1, 2, 3], "pads": [0, 1, 0, 1, 0, 0]}),
    ],
)
def test_a_convolution_of_any_geometry_is_the_product_that_learning_takes_it_for(
    shape: tuple[int, ...], weight: tuple[int, ...], options: dict[str, Any]
) -> None:
    node = helper.make_node("Conv", ["input", "w", "w.bias"], ["output"], name="conv", **options)
    proto = _model([node], {"w": _normal(1, *weight), "w.bias": _normal(2, weight[0])}, shape, len(weight))
    _, figures = learn_rounding(proto, _stored(proto, 4), _smooth(0, 8, *shape), ONE_STEP)
    assert figures["conv"].float_db > 100  # with float weights nothing but float32's own rounding is left


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_is_learned_either_way_round(transposed: int) -> None:
    weight = _normal(1, 6, 12)
    node = helper.make_node("Gemm", ["input", "w"], ["output"], name="fc", transB=transposed)
    proto = _model([node], {"w": weight if transposed else weight.T}, (12,), 2)
    learned, figures = learn_rounding(proto, _stored(proto, 4), _smooth(0, 64, 12), QUICK)
    assert figures["fc"].float_db > 100
    assert figures["fc"].kept
    assert _integers(learned)["w_quantized"].shape == ((6, 12) if transposed else (12, 6))


def test_matmul_over_tokens_is_learned_in_static_and_in_dynamic_graphs() -> None:
    node = helper.make_node("MatMul", ["input", "w"], ["output"], name="projection")
    proto, feeds = _model([node], {"w": _normal(1, 16, 8)}, (7, 16), 3), _smooth(0, 32, 7, 16)
    for quantized in (
        _stored(proto, 4, per_channel=False),
        quantize_dynamic_range(proto, Candidate("dynamic", "no", False)),
    ):
        learned, figures = learn_rounding(proto, quantized, feeds, QUICK)
        assert figures["projection"].kept
        assert sqnr_db(_output(proto, feeds), _output(learned, feeds)) > sqnr_db(
            _output(proto, feeds), _output(quantized, feeds)
        )


def test_an_activation_that_the_quantizer_dropped_is_part_of_what_is_learned() -> None:
    proto, feeds = _cnn(), _smooth(0, 32, 2, 8, 8)
    quantized = _qdq(proto, feeds)
    assert "Relu" not in {node.op_type for node in quantized.graph.node}
    _, figures = learn_rounding(proto, quantized, feeds, ONE_STEP)
    assert figures["conv"].float_db > 40  # against the values after Relu; against those before it, below 10


def test_a_weight_of_two_layers_is_left_alone() -> None:
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w"], ["output"], name="second"),
    ]
    proto = _model(nodes, {"w": _normal(1, 8, 8)}, (8,), 2)
    quantized = quantize_dynamic_range(proto, Candidate("dynamic", "no", False))
    learned, figures = learn_rounding(proto, quantized, _smooth(0, 16, 8), ONE_STEP)
    assert figures == {}
    assert serialize(learned) == serialize(quantized)


def test_progress_names_each_layer() -> None:
    proto, told = _cnn(), list[tuple[int, int, str]]()

    def progress(label: str, done: int, total: int, note: str = "") -> None:
        told.append((done, total, note.split()[0]))

    learn_rounding(proto, _stored(proto, 4), _smooth(0, 8, 2, 8, 8), ONE_STEP, progress=progress)
    assert told == [(1, 3, "conv"), (2, 3, "depthwise"), (3, 3, "fc")]


def test_too_few_samples_are_refused_with_their_number() -> None:
    proto = _cnn()
    with pytest.raises(QuantizationError, match="given 4 calibration samples; it needs 8"):
        learn_rounding(proto, _stored(proto, 4), _smooth(0, 4, 2, 8, 8), QUICK)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 0, "rows": -1}, "rounding.steps=0, rounding.rows=-1"),
        ({"learning_rate": 0.0}, "rounding.learning_rate=0.0"),
        ({"warm_up": 1.0}, "rounding.warm_up=1.0"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        RoundingConfig(**options)


@pytest.mark.parametrize("factor", [2.0**-12, 2.0**12])
def test_the_scale_of_a_model_does_not_change_what_is_learned(factor: float) -> None:
    node = helper.make_node("Gemm", ["input", "w"], ["output"], name="fc", transB=1)
    learned = []
    for scale in (1.0, factor):
        proto = _model([node], {"w": _normal(1, 6, 12) * scale}, (12,), 2)
        learned.append(learn_rounding(proto, _stored(proto, 4), _smooth(0, 64, 12), QUICK)[0])
    first, second = (_integers(proto)["w_quantized"] for proto in learned)
    np.testing.assert_array_equal(first, second)
