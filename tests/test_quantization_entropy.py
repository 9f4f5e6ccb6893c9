"""compress.quantization.entropy: fewer bits for the noise that they are worth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compress.errors import QuantizationError
from compress.measurement.entropy import entropy_bits
from compress.models.onnx_file import run, serialize
from compress.quantization.blocks import BlockConfig, quantize_blocks
from compress.quantization.check import check_zeros
from compress.quantization.entropy import STRENGTHS, input_energy, round_for_size, size_figures, strongest
from compress.quantization.graph import array, constants, copy_of, replace_constants, sqnr_db

FLOAT = TensorProto.FLOAT


def _weight(seed: int, *shape: int, zeros: float = 0.3) -> np.ndarray:
    """Normal weights, the smallest of them 0."""
    weight = np.random.default_rng(seed).standard_normal(shape)
    return np.where(np.abs(weight) < np.quantile(np.abs(weight), zeros), 0, weight).astype(np.float32)


def _int8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.float32(max(np.abs(weight).max(), 1e-6) / 127)
    return np.rint(weight / scale).astype(np.int8), scale


def _model(nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], shape: tuple[int, ...], rank: int):
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("input", FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("output", FLOAT, ["batch", *["?"] * (rank - 1)])],
        [numpy_helper.from_array(np.asarray(tensor), name) for name, tensor in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _product(weight: np.ndarray) -> onnx.ModelProto:
    """x · W with W (C_in, C_out) in int8, restored by Cast and Mul."""
    values, scale = _int8(weight)
    nodes = [
        helper.make_node("Cast", ["w_quantized"], ["w_cast"], to=FLOAT),
        helper.make_node("Mul", ["w_cast", "w_scale"], ["w"]),
        helper.make_node("MatMul", ["input", "w"], ["output"], name="m"),
    ]
    return _model(nodes, {"w_quantized": values, "w_scale": scale}, (weight.shape[0],), 2)


def _dequantized_conv(weight: np.ndarray, group: int) -> onnx.ModelProto:
    """A convolution of a QDQ graph, with a scale a channel."""
    scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    values = np.rint(weight / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w_quantized", "w_scale", "w_zero_point"], ["w"], axis=0),
        helper.make_node("Conv", ["input", "w"], ["output"], group=group, name="c"),
    ]
    tensors = {"w_quantized": values, "w_scale": scale, "w_zero_point": np.zeros(len(scale), np.int8)}
    return _model(nodes, tensors, (weight.shape[1] * group, 6, 6), 4)


def _output(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    return next(run(serialize(proto), [feed]))[0]


def _stored(proto: onnx.ModelProto) -> np.ndarray:
    return array(constants(proto)["w_quantized"]).astype(np.int64)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), strength=st.floats(0, 3), zeros=st.floats(0, 1))
def test_entropy_never_rises_zeros_stay_and_no_weight_grows_past_the_largest(
    seed: int, strength: float, zeros: float
) -> None:
    proto = _product(_weight(seed, 24, 16, zeros=zeros))
    made = round_for_size(proto, strength)
    figures = size_figures(proto, made)
    before, after = _stored(proto), _stored(made)
    assert (after[before == 0] == 0).all()
    assert np.abs(after).max() <= np.abs(before).max()
    assert figures.entropy_bytes <= figures.entropy_bytes_before + 1e-6
    assert figures.moved == (before != after).sum()
    assert figures.zeros == (after == 0).sum() >= figures.zeros_before == (before == 0).sum()


def test_strength_0_changes_nothing() -> None:
    proto = _product(_weight(1, 32, 32))
    assert serialize(round_for_size(proto, 0.0)) == serialize(proto)


def test_stronger_rounding_takes_fewer_bytes_and_makes_more_noise() -> None:
    proto = _product(_weight(1, 128, 64))
    feeds = [{"input": np.random.default_rng(0).standard_normal((32, 128)).astype(np.float32)}]
    exact = _output(proto, feeds[0])
    made = [round_for_size(proto, strength) for strength in (0.003, 0.03, 0.3)]
    figures = [size_figures(proto, graph) for graph in made]
    sizes = [found.deflate_bytes for found in figures]
    noise = [sqnr_db(exact, _output(graph, feeds[0])) for graph in made]
    assert figures[0].deflate_bytes_before > sizes[0] > sizes[1] > sizes[2]
    assert noise[0] > noise[1] > noise[2] > 0


def test_the_rate_is_within_a_third_of_a_bit_of_what_theory_allows() -> None:
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    proto = _product(weight)
    made = round_for_size(proto, 0.03)
    before, after, figures = _stored(proto).astype(np.float64), _stored(made), size_figures(proto, made)
    noise = np.square(before - after).mean() / np.square(before).mean()
    bound = -0.5 * np.log2(noise)  # Shannon's rate of a normal source; entropy-coded scalars need 0.25 bits more
    assert bound < 8 * figures.entropy_bytes / figures.weights < bound + 0.33


def test_the_argument_is_not_changed_and_equal_input_gives_equal_bytes() -> None:
    proto = _product(_weight(1, 32, 32))
    before = serialize(proto)
    assert serialize(round_for_size(proto, 0.1)) == serialize(round_for_size(proto, 0.1))
    assert serialize(proto) == before


def test_weights_that_meet_large_inputs_move_less() -> None:
    proto = _product(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32))
    gain = np.where(np.arange(64) < 32, 10, 0.1).astype(np.float32)
    feeds = [{"input": np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32) * gain}]
    made = round_for_size(proto, 0.01, input_energy(proto, feeds))
    moves = np.abs(_stored(made) - _stored(proto)).mean(axis=1)
    assert moves[:32].mean() < 0.3 * moves[32:].mean()


def test_the_energy_aware_noise_at_the_output_is_lower_at_equal_entropy() -> None:
    proto = _product(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32))
    gain = np.geomspace(0.03, 3, 64).astype(np.float32)
    feeds = [{"input": np.random.default_rng(1).standard_normal((256, 64)).astype(np.float32) * gain}]
    exact = _output(proto, feeds[0])

    def measure(strength: float, energy: dict[str, np.ndarray] | None) -> tuple[float, float]:
        made = round_for_size(proto, strength, energy)
        return size_figures(proto, made).entropy_bytes, sqnr_db(exact, _output(made, feeds[0]))

    aware = measure(0.03, input_energy(proto, feeds))
    blind = [measure(strength, None) for strength in np.geomspace(0.001, 0.3, 20)]
    assert aware[1] > max(noise for size, noise in blind if size <= aware[0]) + 1


def test_energy_is_the_mean_square_of_what_each_weight_of_a_grouped_convolution_meets() -> None:
    proto = _dequantized_conv(_weight(1, 6, 2, 3, 3), group=2)  # 4 channels in
    feeds = [{"input": np.random.default_rng(2).standard_normal((3, 4, 6, 6)).astype(np.float32)} for _ in range(2)]
    energy = input_energy(proto, feeds)["w_quantized"]
    channels = sum(np.square(feed["input"]).mean(axis=(0, 2, 3)) for feed in feeds)
    assert energy.shape == (6, 2, 1, 1)
    np.testing.assert_allclose(energy[:, :, 0, 0], [channels[:2]] * 3 + [channels[2:]] * 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("node", "weight", "shape"),
    [
        (helper.make_node("ConvTranspose", ["input", "w"], ["output"]), (4, 3, 2, 2), (4, 1, 1, 1)),
        (helper.make_node("Gemm", ["input", "w"], ["output"], transB=1), (3, 4), (1, 4)),
        (helper.make_node("Gemm", ["input", "w"], ["output"]), (4, 3), (4, 1)),
        (helper.make_node("MatMul", ["input", "w"], ["output"]), (4, 3), (4, 1)),
    ],
    ids=["transposed convolution", "Gemm of W transposed", "Gemm", "MatMul"],
)
def test_energy_broadcasts_to_the_weight(node: onnx.NodeProto, weight: tuple[int, ...], shape: tuple[int, ...]) -> None:
    values, scale = _int8(_weight(0, *weight))
    restore = helper.make_node("DequantizeLinear", ["w_quantized", "w_scale"], ["w"])
    size = (4, 5, 5) if len(weight) == 4 else (4,)
    proto = _model([restore, node], {"w_quantized": values, "w_scale": scale}, size, len(weight))
    inputs = np.random.default_rng(0).standard_normal((8, *size)).astype(np.float32)
    energy = input_energy(proto, [{"input": inputs}])["w_quantized"]
    assert energy.shape == shape
    np.testing.assert_allclose(energy.ravel(), np.square(inputs).mean(axis=(0, 2, 3)[: inputs.ndim - 1]), rtol=1e-5)


def test_a_dynamically_quantized_product_meets_its_float_input() -> None:
    values, scale = _int8(_weight(0, 4, 3))
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["input"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w_quantized", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["output"], to=FLOAT),
    ]
    proto = _model(nodes, {"w_quantized": values, "w_scale": scale}, (4,), 2)
    inputs = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    energy = input_energy(proto, [{"input": inputs}])["w_quantized"]
    np.testing.assert_allclose(energy, np.square(inputs).mean(axis=0)[:, None], rtol=1e-5)


def test_a_channel_of_small_scale_moves_further() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    weight[:4] *= 0.01
    proto = _dequantized_conv(weight, group=1)
    made = round_for_size(proto, 0.01)
    moves = np.abs(_stored(made) - _stored(proto)).reshape(8, -1).mean(axis=1)
    assert moves[:4].min() > 2 * moves[4:].max()


def test_a_sensitive_layer_moves_less() -> None:
    proto = _product(_weight(1, 64, 64))
    plain, careful = (round_for_size(proto, 0.03, sensitivity={"w_quantized": s}) for s in (1, 30))
    assert size_figures(proto, plain).entropy_bytes < size_figures(proto, careful).entropy_bytes


@pytest.mark.parametrize("block", [0, 16])
def test_int4_weights_take_fewer_bytes_too(block: int) -> None:
    nodes = [helper.make_node("MatMul", ["input", "w"], ["output"], name="m")]
    original = _model(nodes, {"w": _weight(1, 64, 64)}, (64,), 2)
    proto = quantize_blocks(original, BlockConfig(block=block))
    made = round_for_size(proto, 0.1, original=original)
    figures = size_figures(proto, made)
    check_zeros(original, made, "int4")
    assert constants(made)["w_quantized"].data_type == TensorProto.INT4
    assert figures.deflate_bytes < figures.deflate_bytes_before
    assert _output(made, {"input": np.ones((2, 64), np.float32)}).shape == (2, 64)


def test_weights_with_a_zero_point_are_left_alone() -> None:
    proto = _product(_weight(1, 16, 16))
    proto.graph.initializer.append(numpy_helper.from_array(np.int8(3), "w_zero_point"))
    with pytest.raises(QuantizationError, match="no symmetric int8 or int4 weight"):
        round_for_size(proto, 0.1)


def test_a_weight_of_zeros_stays_as_it_is() -> None:
    proto = _product(np.zeros((16, 16), np.float32))
    assert serialize(round_for_size(proto, 1.0)) == serialize(proto)


@pytest.mark.parametrize("strength", [-0.1, float("nan")])
def test_a_strength_below_0_is_refused(strength: float) -> None:
    with pytest.raises(QuantizationError, match="allowed are numbers from 0"):
        round_for_size(_product(_weight(1, 16, 16)), strength)


def test_entropy_is_that_of_the_histogram() -> None:
    assert entropy_bits(np.array([1, 1, 2, 3], np.int8)) == 1.5
    assert entropy_bits(np.zeros(5, np.int8)) == 0


def _numbered(strength: float) -> onnx.ModelProto:
    proto = copy_of(_product(_weight(1, 16, 16)))
    replace_constants(proto, {"w_scale": np.asarray(np.float32(strength))})
    return proto


def _up_to(limit: float, seen: list[float]) -> Callable[[onnx.ModelProto], bool]:
    def within(proto: onnx.ModelProto) -> bool:
        seen.append(array(constants(proto)["w_scale"]).item())
        return seen[-1] <= limit * 1.0001  # float32

    return within


@given(index=st.integers(0, len(STRENGTHS) - 1))
@settings(deadline=None, max_examples=15)
def test_the_search_finds_the_strongest_that_holds_in_few_evaluations(index: int) -> None:
    seen: list[float] = []
    found = strongest(_numbered, _up_to(STRENGTHS[index], seen))
    assert found is not None
    assert found[0] == STRENGTHS[index]
    assert serialize(found[1]) == serialize(_numbered(STRENGTHS[index]))
    assert len(seen) <= len(STRENGTHS).bit_length() == 6


@given(index=st.integers(0, len(STRENGTHS) - 1), off=st.integers(-len(STRENGTHS), len(STRENGTHS)))
@settings(deadline=None, max_examples=40)
def test_a_search_that_begins_near_finds_the_same_and_sooner(index: int, off: int) -> None:
    seen: list[float] = []
    near = min(max(index + off, 0), len(STRENGTHS) - 1)
    found = strongest(_numbered, _up_to(STRENGTHS[index], seen), near=STRENGTHS[near])
    assert found is not None
    assert found[0] == STRENGTHS[index]
    assert len(seen) <= {0: 2, 1: 4, 2: 4}.get(abs(near - index), 12)


def test_the_search_finds_nothing_where_even_the_weakest_costs_too_much() -> None:
    seen: list[float] = []
    told: list[int] = []
    assert strongest(_numbered, _up_to(0, seen), progress=lambda label, done, total, note="": told.append(done)) is None
    assert told == list(range(1, len(seen) + 1))
    assert strongest(_numbered, _up_to(0, seen), near=STRENGTHS[9]) is None
