"""compress.quantization.compact: fewer zipped bytes for the same graph, and constants of fewer bits."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from compress.quantization.compact import compact, round_constants


def _graph(**said: object) -> onnx.ModelProto:
    """Conv, MaxPool, Gemm; ``said`` are attributes of the convolution."""
    random = np.random.default_rng(0)
    constants = {
        "kernel": random.standard_normal((6, 1, 3, 3)),
        "offset": random.standard_normal(6),
        "matrix": random.standard_normal((54, 4)),
        "scalar": np.array([0.3]),
    }
    nodes = [
        helper.make_node("Conv", ["input", "kernel", "offset"], ["a"], name="conv", **said),
        helper.make_node(
            "MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2], dilations=[1, 1], pads=[0, 0, 0, 0],
            ceil_mode=0, storage_order=0, auto_pad="NOTSET",
        ),
        helper.make_node("Flatten", ["b"], ["c"], axis=1),
        helper.make_node("Gemm", ["c", "matrix"], ["d"], alpha=1.0, beta=1.0, transA=0, transB=0),
        helper.make_node("Mul", ["d", "scalar"], ["output"]),
    ]  # fmt: skip
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 4])]
    graph = helper.make_graph(nodes, "model", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _run(proto: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((2, 1, 8, 8)).astype(np.float32)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"input": x}
    )[0]


def _said(proto: onnx.ModelProto, operator: str) -> set[str]:
    return {attribute.name for node in proto.graph.node if node.op_type == operator for attribute in node.attribute}


def test_attributes_that_say_what_holds_without_them_leave_and_the_outputs_stay() -> None:
    said = {"kernel_shape": [3, 3], "strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0], "group": 1}
    proto = _graph(**said)
    expected = _run(proto)
    compact(proto)
    assert _said(proto, "Conv") == {"kernel_shape"}
    assert _said(proto, "MaxPool") == {"kernel_shape", "strides"}
    assert not _said(proto, "Gemm")
    np.testing.assert_array_equal(_run(proto), expected)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"strides": [2, 2], "pads": [2, 2, 2, 2]}, {"strides", "pads"}),
        ({"dilations": [2, 2], "pads": [2, 2, 2, 2]}, {"dilations", "pads"}),
        ({"auto_pad": "VALID"}, {"auto_pad"}),
    ],
)
def test_attributes_with_other_values_stay(said: dict[str, object], kept: set[str]) -> None:
    proto = _graph(**said)
    if "pads" in said:
        del proto.graph.node[3:]
        proto.graph.node[2].output[0] = "output"
        proto.graph.output[0].type.tensor_type.shape.dim[1].Clear()
    expected = _run(proto)
    compact(proto)
    assert _said(proto, "Conv") == kept
    np.testing.assert_array_equal(_run(proto), expected)


def _constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


@given(arrays.arrays(np.float32, (6,), elements=st.floats(width=32)))
@example(np.full(6, np.finfo(np.float32).max))
def test_rounded_constants_keep_eight_bits_their_zeros_and_whatever_is_not_finite(values: np.ndarray) -> None:
    proto = _graph()
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(values, "offset"))
    round_constants(proto)
    found = _constants(proto)["offset"]
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(values))
    np.testing.assert_array_equal(found == 0, values == 0)
    finite = np.isfinite(values)
    normal = finite & (np.abs(values) >= np.finfo(np.float32).tiny)
    assert np.all(np.abs(found[normal] - values[normal]) <= 2.0**-8 * np.abs(values[normal]))
    rounded = normal & (np.abs(values) < 2.0**127)
    assert not (found[rounded].view(np.uint32) & 0xFFFF).any()
    again = copy.deepcopy(proto)
    round_constants(again)
    assert again == proto


def test_a_scalar_and_the_constants_of_an_int8_graph_are_left_as_they_are() -> None:
    proto, before = _graph(), _constants(_graph())
    round_constants(proto)
    assert _constants(proto)["scalar"] == before["scalar"]
    assert (_constants(proto)["offset"] != before["offset"]).any()
    quantized = _graph()
    quantized.graph.node.append(helper.make_node("QuantizeLinear", ["a", "scalar"], ["unused"]))
    round_constants(quantized)
    np.testing.assert_array_equal(_constants(quantized)["offset"], before["offset"])
