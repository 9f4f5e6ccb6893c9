"""compress.models.counts: what an ONNX file holds and computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import ModelError
from compress.models import counts as counts_module
from compress.models.counts import count, count_weights, weight_zeros
from compress.models.onnx_file import graph_inputs, read
from compress.values import InputSpec

FLOAT = TensorProto.FLOAT


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, object],
    shape: tuple[int | str, ...],
    element: int = FLOAT,
) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("x", element, ["batch", *shape])]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")], tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, None))
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def _ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_a_grouped_convolution_counts_the_weights_it_has(tmp_path: Path) -> None:
    conv = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=2)
    path = _save(tmp_path / "m.onnx", [conv], {"w": _ones(8, 2, 3, 3), "b": np.zeros(8, np.float32)}, (4, 6, 6))
    counts = count(path)
    assert counts.parameters == 8 * 2 * 9 + 8
    assert counts.nonzero == 8 * 2 * 9
    assert counts.macs == 8 * 4 * 4 * 2 * 9  # output elements × one filter


def test_a_transposed_convolution_spreads_every_input(tmp_path: Path) -> None:
    conv = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    path = _save(tmp_path / "m.onnx", [conv], {"w": _ones(3, 5, 2, 2)}, (3, 4, 4))
    assert count(path).macs == 3 * 4 * 4 * 5 * 2 * 2


def test_a_product_of_two_activations_has_macs_and_no_parameters(tmp_path: Path) -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    counts = count(_save(tmp_path / "m.onnx", nodes, {}, (3, 7)))
    assert (counts.parameters, counts.macs) == (0, 3 * 3 * 7)


def test_a_recurrent_layer_counts_every_step(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r", "b"], ["y"], hidden_size=4),
    ]
    constants = {"w": _ones(1, 16, 3), "r": _ones(1, 16, 4), "b": _ones(1, 32)}
    counts = count(_save(tmp_path / "m.onnx", nodes, constants, (5, 3)))
    assert counts.macs == 5 * (16 * 3 + 16 * 4)
    assert counts.parameters == 16 * 3 + 16 * 4 + 32


def test_constants_of_a_formula_and_shapes_are_no_parameters(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "half"], ["h"]),
        helper.make_node("Reshape", ["h", "shape"], ["r"]),
        helper.make_node("Gemm", ["r", "w", "b"], ["y"], transB=1),
    ]
    constants = {"half": np.float32([0.5]), "shape": np.int64([-1, 6]), "w": _ones(1, 6), "b": _ones(1)}
    counts = count(_save(tmp_path / "m.onnx", nodes, constants, (2, 3)))
    assert counts.parameters == 6 + 1
    assert counts.macs == 6


def test_dequantized_weights_count_against_their_zero_point(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["qb", "sb"], ["b"]),
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
    ]
    quantized = np.int8([[0, 3, 3], [5, 5, 0]])
    constants = {
        "q": quantized, "s": np.float32([1, 2]), "z": np.int8([3, 5]),
        "qb": np.int32([0, 9]), "sb": np.float32(1),
    }  # fmt: skip
    path = _save(tmp_path / "m.onnx", nodes, constants, (3,))
    counts = count(path)
    assert (counts.parameters, counts.nonzero, counts.macs) == (6 + 2, 2 + 1, 6)
    assert count_weights(path) == {"q": (6, 2)}


def test_integer_products_count_as_their_float_form(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["xs", "s"], ["scale"]),
        helper.make_node("Mul", ["f", "scale"], ["y"]),
    ]
    constants = {"w": np.int8([[1, 0], [0, 0], [2, 3]]), "z": np.int8(0), "s": np.float32([1, 2])}
    counts = count(_save(tmp_path / "m.onnx", nodes, constants, (3,)))
    assert (counts.parameters, counts.nonzero, counts.macs) == (6, 3, 6)


def test_weights_restored_by_cast_and_mul_count_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["q"], ["c"], to=FLOAT),
        helper.make_node("Mul", ["c", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    constants = {"q": np.int8([[1, 0], [0, 4]]), "s": np.float32([[1, 2]])}
    counts = count(_save(tmp_path / "m.onnx", nodes, constants, (2,)))
    assert (counts.parameters, counts.nonzero, counts.macs) == (4, 2, 4)


def test_a_quantized_embedding_counts_against_the_zero_point_after_the_look_up(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["q", "x"], ["g"]),
        helper.make_node("DequantizeLinear", ["g", "s", "z"], ["y"]),
    ]
    constants = {"q": np.uint8([[128, 7], [128, 128]]), "s": np.float32(1), "z": np.uint8(128)}
    counts = count(_save(tmp_path / "m.onnx", nodes, constants, (4,), TensorProto.INT64))
    assert (counts.parameters, counts.nonzero, counts.macs) == (4, 1, 0)


def test_the_inputs_of_a_file_are_read_without_the_batch(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, (3, 4))
    assert graph_inputs(read(path)) == (InputSpec("x", (3, 4), "float32"),)


def test_a_second_free_axis_is_refused_with_the_input_name(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, (3, "width"))
    with pytest.raises(ModelError, match=r"input 'x'.*only axis 0"):
        graph_inputs(read(path))


def test_an_initializer_listed_as_input_is_no_input() -> None:
    value = [helper.make_tensor_value_info(name, FLOAT, ["n", 2]) for name in ("x", "w")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", value, [], [numpy_helper.from_array(_ones(2), "w")]
    )
    assert [spec.name for spec in graph_inputs(helper.make_model(graph))] == ["x"]


@pytest.mark.parametrize("content", [b"", b"<html>no model</html>"])
def test_a_file_that_is_no_onnx_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.onnx cannot be read as ONNX"):
        count(path)


def test_a_product_of_4_bit_blocks_counts_its_weights_and_not_their_bytes_or_padding(tmp_path: Path) -> None:
    packed = np.full((3, 2, 8), 0x88, np.uint8)  # 2 blocks of 16, 20 weights in use; 8 stands for 0
    packed[0, 0, 0], packed[1, 1, 1], packed[2, 1, 7] = 0x98, 0x12, 0x11  # 1 and 2 weights; padding
    node = helper.make_node(
        "MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", K=20, N=3, bits=4, block_size=16
    )
    path = _save(tmp_path / "m.onnx", [node], {"q": packed, "s": _ones(3, 2)}, (20,))
    counts = count(path)
    assert (counts.parameters, counts.nonzero, counts.macs) == (60, 3, 60)


def test_the_zero_points_of_4_bit_blocks_are_what_zero_means(tmp_path: Path) -> None:
    packed = np.full((2, 2, 8), 0x88, np.uint8)
    zero_points = np.array([[0x88], [0x38]], np.uint8)  # of channel 1: 8 in its first block, 3 in its second
    node = helper.make_node(
        "MatMulNBits", ["x", "q", "s", "z"], ["y"], domain="com.microsoft", K=32, N=2, bits=4, block_size=16
    )
    path = _save(tmp_path / "m.onnx", [node], {"q": packed, "s": _ones(2, 2), "z": zero_points}, (32,))
    assert count(path).nonzero == 16


def test_int4_weights_that_cast_and_mul_restore_are_weights_and_their_scales_are_not(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["q"], ["c"], to=FLOAT),
        helper.make_node("Mul", ["c", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    path = _save(tmp_path / "m.onnx", nodes, {"s": _ones(1, 4)}, (3,))
    proto = read(path)
    proto.opset_import[0].version = 21
    values = helper.make_tensor("q", TensorProto.INT4, (3, 4), bytes([0x10, 0, 0, 0xF0, 0, 0]), raw=True)
    proto.graph.initializer.append(values)
    path.write_bytes(proto.SerializeToString())
    counts = count(path)
    assert (counts.parameters, counts.nonzero, counts.macs) == (12, 2, 12)


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_of_a_codebook_count_as_the_weights_they_stand_for(packed: bool, tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 2], [1, 1, 0]], np.uint8)  # of the values 0.5, 0, -2
    flat = numbers.ravel()
    stored = (flat[0::2] | flat[1::2] << 4).reshape(-1, 1) if packed else numbers
    nodes = [helper.make_node("Cast", ["w"], ["cast"], to=TensorProto.INT32)]
    if packed:
        nodes += [helper.make_node("Div", ["cast", "shifts"], ["d"]), helper.make_node("Mod", ["d", "sixteen"], ["m"])]
    nodes += [
        helper.make_node("Gather", ["codebook", "m" if packed else "cast"], ["flat" if packed else "weight"]),
        *([helper.make_node("Reshape", ["flat", "shape"], ["weight"])] if packed else []),
        helper.make_node("Mul", ["weight", "scale"], ["scaled"]),
        helper.make_node("Gemm", ["x", "scaled"], ["y"], transB=1),
    ]
    constants = {
        "w": stored,
        "codebook": np.float32([0.5, 0, -2]),
        "scale": np.float32([[2], [3]]),
        "shifts": np.int32([[1, 16]]),
        "sixteen": np.int32([16]),
        "shape": np.int64([2, 3]),
    }
    path = _save(tmp_path / "m.onnx", nodes, constants, (3,))
    assert count_weights(path) == {"w": (6, 3)}
    assert np.array_equal(weight_zeros(path)["w"], numbers == 1)
    assert count(path).macs == 6


def test_weights_beside_the_graph_are_counted_without_becoming_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph with all its weights cannot be serialized above 2 GB, and so not be run to count."""
    matmul = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = _save(tmp_path / "m.onnx", [matmul], {"w": np.eye(50, dtype=np.float32)}, (50,))
    inline = count(path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    run, ran = counts_module.run, []

    def watched(data: bytes, *args: object, **kwargs: object) -> object:
        ran.append(len(data))
        return run(data, *args, **kwargs)

    monkeypatch.setattr(counts_module, "run", watched)
    assert count(path) == inline
    assert inline.nonzero == 50
    assert count_weights(path) == {"w": (2500, 50)}
    assert weight_zeros(path)["w"].sum() == 2450
    assert ran[0] < 1000
