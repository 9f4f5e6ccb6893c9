"""compress.models: the layers of an ONNX file, their weights as floats, and which of another file's they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from compress.models.layer_matching import Form, Layers, match
from compress.models.weighted_layers import weighted_layers
from tests.onnx_graphs import weights, write


def _restored(path: Path) -> list[np.ndarray]:
    layers = Layers(path)
    return [weight for layer in layers.all for weight in layers.weights(layer)]


def _close(found: np.ndarray, wanted: np.ndarray, step: float) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 0.5 * step + 1e-6


def _int8(weight: np.ndarray, axis: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    axes = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.asarray(np.abs(weight).max(axis=axes, keepdims=axis is not None) / 127, np.float32)
    return np.rint(weight / scale).astype(np.int8), scale.reshape(-1) if axis is not None else scale


def test_a_layer_is_named_after_its_constants_else_its_node(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "val_3"], ["h"], name="node_MatMul_1"),
        helper.make_node("Add", ["h", "block.0.fc.bias"], ["a"]),
        helper.make_node("MatMul", ["a", "val_4"], ["b"], name="node_MatMul_2"),
        helper.make_node("Gemm", ["b", "c"], ["y"]),
    ]
    constants = {"val_3": weights(4, 5), "block.0.fc.bias": weights(5), "val_4": weights(5, 5), "c": weights(5, 2)}
    layers = weighted_layers(onnx.load(write(tmp_path / "m.onnx", nodes, constants, [4])).graph)
    assert [layer.name for layer in layers] == ["block.0.fc", "MatMul_2", "Gemm"]
    assert layers[0].tensors == ("val_3", "block.0.fc.bias")


def test_a_shared_weight_belongs_to_the_first_layer_and_a_sum_of_branches_to_none(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "w"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Mul", ["s", "half"], ["y"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, {"w": weights(4, 4), "half": np.float32(0.5)}, [4])
    assert [layer.tensors for layer in weighted_layers(onnx.load(path).graph)] == [("w",), ()]


@pytest.mark.parametrize("turned", [0, 1])
def test_linear_weights_are_given_with_the_outputs_first(tmp_path: Path, turned: int) -> None:
    weight = weights(3, 4)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=turned)
    path = write(tmp_path / "m.onnx", [node], {"w": weight if turned else weight.T}, [4])
    np.testing.assert_array_equal(_restored(path)[0], weight)


def test_weights_between_dequantizers_are_restored_by_channel(tmp_path: Path) -> None:
    weight = weights(6, 2, 3, 3)
    integers, scale = _int8(weight, 0)
    nodes = [
        helper.make_node("DequantizeLinear", ["w_quantized", "w_scale", "z"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    constants = {"w_quantized": integers, "w_scale": scale, "z": np.zeros(6, np.int8)}
    path = write(tmp_path / "m.onnx", nodes, constants, [2, 5, 5])
    _close(_restored(path)[0], weight, scale.max())
    assert Layers(path).all[0].tensors == ("w_quantized", "w_scale", "z")


def test_four_bit_weights_restored_by_cast_and_mul(tmp_path: Path) -> None:
    levels = np.arange(-7, 8, dtype=np.int8).reshape(5, 3)
    nodes = [
        helper.make_node("Cast", ["q"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    packed = helper.make_tensor("q", TensorProto.INT4, levels.shape, levels.ravel().tolist())
    path = write(tmp_path / "m.onnx", nodes, {"q": packed, "s": np.float32(0.25)}, [5], opset=21)
    np.testing.assert_array_equal(_restored(path)[0], 0.25 * levels.T)


def test_shared_values_are_looked_up_in_their_codebook_two_a_byte(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 16, (4, 6)).astype(np.uint8)
    flat, book = numbers.ravel(), weights(16)
    nodes = [
        helper.make_node("Div", ["q", "shifts"], ["d"]),
        helper.make_node("Mod", ["d", "sixteen"], ["m"]),
        helper.make_node("Cast", ["m"], ["i"], to=TensorProto.INT32),
        helper.make_node("Gather", ["book", "i"], ["g"]),
        helper.make_node("Reshape", ["g", "shape"], ["w"]),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
    ]
    constants = {
        "q": (flat[0::2] | flat[1::2] << 4).reshape(-1, 1), "shifts": np.uint8([[1, 16]]), "sixteen": np.uint8(16),
        "book": book, "shape": np.int64([4, 6]),
    }  # fmt: skip
    path = write(tmp_path / "m.onnx", nodes, constants, [6])
    layers = Layers(path)
    assert [layer.operator for layer in layers.all] == ["Gemm"]
    np.testing.assert_array_equal(layers.weights(layers.all[0])[0], book[numbers])


def test_blocks_of_four_bits_are_unpacked(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 16, (3, 2, 16)).astype(np.uint8)  # (N, blocks, block)
    scale = np.abs(weights(3, 2)) + 0.1
    node = helper.make_node(
        "MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", N=3, K=30, bits=4, block_size=16
    )
    constants = {"q": levels[..., 0::2] | levels[..., 1::2] << 4, "s": scale.reshape(-1)}
    path = write(tmp_path / "m.onnx", [node], constants, [30])
    wanted = ((levels.astype(np.float32) - 8) * scale[..., None]).reshape(3, 32)[:, :30]
    np.testing.assert_allclose(_restored(path)[0], wanted, rtol=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
def test_what_onnxruntime_quantizes_dynamically_is_restored(tmp_path: Path, per_channel: bool) -> None:
    w, r, head, table = weights(1, 16, 5), weights(1, 16, 4, seed=1), weights(3, 4, seed=2), weights(20, 5, seed=3)
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["e"]),
        helper.make_node("Transpose", ["e"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r"], ["", "h"], hidden_size=4, name="lstm"),
        helper.make_node("Squeeze", ["h", "zero"], ["s"]),
        helper.make_node("MatMul", ["s", "head"], ["y"], name="head"),
    ]
    constants = {"table": table, "w": w, "r": r, "zero": np.int64([0]), "head": head.T}
    path = write(tmp_path / "m.onnx", nodes, constants, [7], element=TensorProto.INT64)
    wanted = [table, w, r, head]
    for found, weight in zip(_restored(path), wanted, strict=True):
        np.testing.assert_array_equal(found, weight)
    made = tmp_path / "q.onnx"
    quantize_dynamic(
        path,
        made,
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
        op_types_to_quantize=["MatMul", "LSTM", "Gather"],
    )
    for found, weight in zip(_restored(made), wanted, strict=True):
        _close(found, weight, 2 * np.abs(weight).max() / 127)
    assert [layer.operator for layer in Layers(made).all] == ["Gather", "LSTM", "MatMul"]
    assert all(layer.tensors for layer in Layers(made).all)


def test_the_scale_after_an_integer_product_is_the_layers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "s"], ["scale"]),
        helper.make_node("Mul", ["f", "scale"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    constants = {"w": np.int8([[1, -2], [3, 4]]), "s": np.float32([0.5, 2]), "b": weights(2)}
    path = write(tmp_path / "m.onnx", nodes, constants, [2])
    assert Layers(path).all[0].tensors == ("w", "s", "b")
    np.testing.assert_array_equal(_restored(path)[0], [[0.5, 1.5], [-4, 8]])


def _form(*shape: int, name: str = "", kind: str = "Conv") -> Form:
    return Form(name, kind, (shape,))


def test_layers_are_found_again_by_order_kind_and_shape() -> None:
    before = [_form(32, 3, 3, 3), _form(32, 32, 3, 3), _form(64, 32, 1, 1), _form(10, 64, kind="Gemm")]
    after = [_form(8, 3, 3, 3), _form(20, 8, 1, 1), _form(10, 20, kind="MatMul")]
    assert match(before, after) == (0, None, 1, 2)


def test_a_layer_that_grew_is_another_one() -> None:
    assert match([_form(8, 8, kind="Gemm")], [_form(9, 8, kind="Gemm")]) == (None,)


def test_names_that_were_kept_decide_between_equal_layers() -> None:
    before = [_form(8, 8, 3, 3, name=name) for name in ("a", "b", "c")]
    assert match(before, [_form(8, 8, 3, 3, name="b")]) == (None, 0, None)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.booleans()), max_size=12))
def test_what_is_left_of_a_file_is_found_in_order(layers: list[tuple[int, int, bool]]) -> None:
    before = [_form(rows, columns, 3, name=str(place)) for place, (rows, columns, _) in enumerate(layers)]
    kept = [place for place, (_, _, stays) in enumerate(layers) if stays]
    wanted = [kept.index(place) if place in kept else None for place in range(len(layers))]
    assert list(match(before, [before[place] for place in kept])) == wanted
