"""compress.quantization.blocks: weights of 4 bits and less."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compress.errors import QuantizationError, RecipeError
from compress.models.counts import macs_by_operator, stored_weights
from compress.models.onnx_file import opset, run, serialize
from compress.quantization.blocks import BlockConfig, narrow, nearest, pack, quantize_blocks
from compress.quantization.check import check_zeros
from compress.quantization.compact import compact
from compress.quantization.graph import array, constants, sqnr_db

FLOAT = TensorProto.FLOAT
CONFIGS = (
    BlockConfig(),
    BlockConfig(bits=3),
    BlockConfig(bits=2),
    BlockConfig(block=16),
    BlockConfig(block=32, kernel=True),
    BlockConfig(block=16, kernel=True, accuracy_level=4),
)


def _normal(seed: int, *shape: int, zeros: float = 0.5) -> np.ndarray:
    weight = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return np.where(np.abs(weight) < np.quantile(np.abs(weight), zeros), 0, weight).astype(np.float32)


def _net() -> onnx.ModelProto:
    """Conv, depthwise Conv, MatMul and Gemm of either order; input (4, 6, 6), 5 outputs."""
    nodes = [
        helper.make_node("Conv", ["input", "conv.w", "conv.b"], ["c"], name="conv"),  # (16, 4, 4)
        helper.make_node("Conv", ["c", "depth.w"], ["d"], name="depth", group=16),  # (16, 2, 2)
        helper.make_node("Flatten", ["d"], ["f"], name="flat"),  # 64
        helper.make_node("MatMul", ["f", "mat.w"], ["m"], name="mat"),
        helper.make_node("Gemm", ["m", "gemm.w", "gemm.b"], ["g"], name="gemm", transB=1),
        helper.make_node("Gemm", ["g", "head.w"], ["output"], name="head"),
    ]
    weights = {
        "conv.w": _normal(1, 16, 4, 3, 3), "conv.b": _normal(2, 16), "depth.w": _normal(3, 16, 1, 3, 3),
        "mat.w": _normal(4, 64, 48), "gemm.w": _normal(5, 40, 48), "gemm.b": _normal(6, 40),
        "head.w": _normal(7, 40, 5),
    }  # fmt: skip
    return _model(nodes, weights, (4, 6, 6), 5)


def _model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: tuple[int, ...], outputs: int):
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("input", FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("output", FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _output(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    return next(run(serialize(proto), [feed]))[0]


def _feeds(batch: int) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(batch).standard_normal((batch, 4, 6, 6)).astype(np.float32)}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name + f"-{config.accuracy_level}")
def test_every_form_runs_at_batches_1_2_and_5_and_stays_close(config: BlockConfig) -> None:
    made = quantize_blocks(_net(), config)
    onnx.checker.check_model(made)
    feeds = [_feeds(batch) for batch in (1, 2, 5)]
    wanted, got = (list(run(serialize(proto), feeds)) for proto in (_net(), made))
    assert [output.shape for (output,) in got] == [(1, 5), (2, 5), (5, 5)]
    # Max 1960: 15, 7 and 3 even levels keep normal values at 20, 14 and 7 dB; the noise of five layers adds up: 7 less.
    assert sqnr_db(wanted[2][0], got[2][0]) > {4: 13, 3: 7, 2: 0}[config.bits]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name + f"-{config.accuracy_level}")
def test_zeros_parameters_and_macs_are_those_of_the_float_graph(config: BlockConfig) -> None:
    made = quantize_blocks(_net(), config)
    check_zeros(_net(), made, config.name)
    before, after = stored_weights(_net()), stored_weights(made)
    assert {name.removesuffix("_quantized"): weight.elements for name, weight in after.items()} == {
        name: weight.elements for name, weight in before.items()
    }
    assert sum(macs_by_operator(made).values()) == sum(macs_by_operator(_net()).values())


def test_equal_input_gives_equal_bytes_and_leaves_the_argument_as_it_was() -> None:
    proto = _net()
    before = serialize(proto)
    assert serialize(quantize_blocks(proto, BlockConfig())) == serialize(quantize_blocks(proto, BlockConfig()))
    assert serialize(proto) == before


def test_onnxruntime_folds_the_weights_at_load(tmp_path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    made = quantize_blocks(_net(), BlockConfig(block=16))
    onnxruntime.InferenceSession(serialize(made), options, providers=["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert not left & {"Cast", "Mul", "Reshape", "DequantizeLinear"}


def test_short_names_keep_what_the_graph_computes() -> None:
    made = quantize_blocks(_net(), BlockConfig(block=16))
    expected = _output(made, _feeds(2))
    compact(made)
    np.testing.assert_array_equal(_output(made, _feeds(2)), expected)


def test_an_excluded_node_keeps_its_weight() -> None:
    made = quantize_blocks(_net(), BlockConfig(block=32, kernel=True), exclude=("mat", "conv"))
    assert {"mat.w", "conv.w", "head.w_quantized"} <= constants(made).keys()
    assert [node.name for node in made.graph.node if node.op_type == "MatMulNBits"] == ["gemm", "head"]


def test_a_weight_that_another_operator_takes_too_is_left_to_cast_and_mul() -> None:
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["m"], name="m"),
        helper.make_node("Transpose", ["w"], ["t"], name="t", perm=[1, 0]),
        helper.make_node("MatMul", ["m", "t"], ["output"], name="tied"),
    ]
    proto = _model(nodes, {"w": _normal(1, 32, 16)}, (32,), 32)
    made = quantize_blocks(proto, BlockConfig(block=16, kernel=True))
    assert "MatMulNBits" not in {node.op_type for node in made.graph.node}
    assert _output(made, {"input": np.ones((2, 32), np.float32)}).shape == (2, 32)


def test_a_graph_of_products_alone_keeps_its_opset_with_kernels() -> None:
    proto = _model(
        [helper.make_node("MatMul", ["input", "w"], ["output"], name="m")], {"w": _normal(1, 40, 16)}, (40,), 16
    )
    assert opset(quantize_blocks(proto, BlockConfig(block=32, kernel=True))) == 18
    assert opset(quantize_blocks(proto, BlockConfig())) == 21


def test_the_layout_is_the_one_of_onnxruntimes_own_quantizer() -> None:
    library = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer", reason="older names differ")
    weight = np.random.default_rng(0).integers(-7, 8, (40, 16)).astype(np.float32)  # (C_in, C_out)
    weight[0], weight[32] = -8, -8  # the library takes the value of largest size to be -8: scale 1
    proto = _model([helper.make_node("MatMul", ["input", "w"], ["output"], name="m")], {"w": weight}, (40,), 16)
    quantizer = library.MatMulNBitsQuantizer(proto, block_size=32, is_symmetric=True, accuracy_level=0)
    quantizer.process()
    theirs = next(array(t) for name, t in constants(quantizer.model.model).items() if name.endswith("_Q4"))
    padded = np.pad(weight.T.astype(np.int8), ((0, 0), (0, 24))).reshape(16, 2, 32)
    ours = pack(padded + np.int8(8)).reshape(16, 32)
    np.testing.assert_array_equal(ours[:, :20], theirs.reshape(16, 32)[:, :20])  # 40 weights; the rest is padding


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), limit=st.sampled_from([1, 3, 7]), sparsity=st.floats(0, 1), size=st.floats(-6, 6))
def test_the_scale_is_no_worse_than_the_one_that_covers_the_range(
    seed: int, limit: int, sparsity: float, size: float
) -> None:
    weight = (_normal(seed, 4, 32, zeros=sparsity) * 10**size).astype(np.float32)
    values, scale = nearest(weight, (1,), limit)
    assert np.abs(values).max(initial=0) <= limit
    assert (values[weight == 0] == 0).all()
    full = np.abs(weight).max(axis=1, keepdims=True) / limit
    full = np.where(full > 0, full, 1)
    covered = np.rint(weight / full) * full
    ours = np.linalg.norm(weight - values * scale, axis=1)
    mantissa = 2.0**-8 * np.linalg.norm(covered, axis=1)  # what rounding the scale to 8 bits moves a weight by, at most
    assert (ours <= 1.0001 * (np.linalg.norm(weight - covered, axis=1) + mantissa)).all()


def test_scales_have_their_last_two_bytes_zero() -> None:
    _, scale = nearest(_normal(3, 64, 32), (1,), 7)
    assert not (scale.view(np.uint32) & 0xFFFF).any()
    assert (scale > 0).all()


def test_few_levels_become_two_to_the_byte_and_the_same_outputs() -> None:
    values = np.random.default_rng(0).integers(-7, 8, (48, 16)).astype(np.int8) * np.int8(18)
    nodes = [
        helper.make_node("Cast", ["w_quantized"], ["w_cast"], to=FLOAT),
        helper.make_node("Mul", ["w_cast", "w_scale"], ["w"]),
        helper.make_node("MatMul", ["input", "w"], ["output"], name="m"),
    ]
    proto = _model(nodes, {"w_quantized": values, "w_scale": np.float32(0.25)}, (48,), 16)
    made = narrow(proto)
    stored = constants(made)["w_quantized"]
    assert stored.data_type == TensorProto.INT4
    assert len(stored.raw_data) == values.size // 2
    feeds = [{"input": np.random.default_rng(1).standard_normal((2, 48)).astype(np.float32)}]
    np.testing.assert_array_equal(*(_output(graph, feeds[0]) for graph in (proto, made)))


def test_many_levels_stay_int8() -> None:
    proto = _model(
        [
            helper.make_node("Cast", ["w_quantized"], ["w_cast"], to=FLOAT),
            helper.make_node("Mul", ["w_cast", "w_scale"], ["w"]),
            helper.make_node("MatMul", ["input", "w"], ["output"], name="m"),
        ],
        {"w_quantized": np.arange(-64, 64, dtype=np.int8).reshape(8, 16), "w_scale": np.float32(1)},
        (8,),
        16,
    )
    assert serialize(narrow(proto)) == serialize(proto)


def test_a_graph_without_large_weights_is_refused() -> None:
    proto = _model([helper.make_node("MatMul", ["input", "w"], ["output"])], {"w": _normal(1, 4, 4)}, (4,), 4)
    with pytest.raises(QuantizationError, match=r"int4-weights: no float32 weight has 128"):
        quantize_blocks(proto, BlockConfig())


def test_a_block_of_another_length_is_refused() -> None:
    with pytest.raises(RecipeError, match="block=24: allowed are 0"):
        BlockConfig(block=24)


def test_kernels_need_a_block() -> None:
    with pytest.raises(RecipeError, match="blocks of 16, 32, 64 or 128"):
        BlockConfig(kernel=True)


def test_the_message_names_the_opset_when_onnx_cannot_convert() -> None:
    proto = _net()
    proto.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(QuantizationError, match=r"opset 18, INT4 needs 21"):
        quantize_blocks(proto, BlockConfig())
