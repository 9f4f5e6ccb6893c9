"""compress.measurement.layers: each layer before and after."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper

from compress.measurement.layers import BINS, LayerChange, LayerSide, histogram, layer_changes
from tests.onnx_graphs import weights, write

floats = arrays(np.float32, st.integers(0, 60), elements=st.floats(-3, 3, width=32))


def _before(path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "conv1.weight", "conv1.bias"], ["a"], name="node_conv"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "conv2.weight"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight"], ["y"], transB=1),
    ]
    constants = {
        "conv1.weight": weights(8, 2, 3, 3), "conv1.bias": weights(8),
        "conv2.weight": weights(8, 8, 1, 1), "fc.weight": weights(5, 8),
    }  # fmt: skip
    return write(path, nodes, constants, [2, 6, 6])


def _after(path: Path) -> Path:
    """Without the second convolution, narrower, in int8 and without names."""
    levels = np.random.default_rng(3).integers(-127, 128, (4, 2, 3, 3)).astype(np.int8)
    levels[:, 0] = 0
    nodes = [
        helper.make_node("DequantizeLinear", ["b", "c"], ["d"]),
        helper.make_node("Conv", ["x", "d"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("GlobalAveragePool", ["f"], ["g"]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node("MatMul", ["h", "i"], ["y"]),
    ]
    constants = {"b": levels, "c": np.float32(0.01), "i": weights(4, 5)}
    return write(path, nodes, constants, [2, 6, 6])


def test_widths_weights_and_bytes_before_and_after(tmp_path: Path) -> None:
    first, second, last = layer_changes(_before(tmp_path / "a.onnx"), _after(tmp_path / "b.onnx"))
    assert [(c.name, c.kind) for c in (first, second, last)] == [("conv1", "Conv"), ("conv2", "Conv"), ("fc", "Gemm")]
    assert first.before == LayerSide((8, 2, 3, 3), 8, 144, 144, 4 * (144 + 8))
    assert first.after is not None
    assert (first.after.shape, first.after.channels, first.after.weights) == ((4, 2, 3, 3), 4, 72)
    assert first.after.nonzero <= 36
    assert first.after.bytes == 72 + 4
    assert (second.after, second.histogram.after, second.histogram.zeros_after) == (None, None, None)
    assert last.after == LayerSide((5, 4), 5, 20, 20, 80)


def test_the_histogram_shows_the_values_that_the_file_computes_with(tmp_path: Path) -> None:
    change = layer_changes(_before(tmp_path / "a.onnx"), _after(tmp_path / "b.onnx"))[0]
    found = change.histogram
    assert found.zeros_after == 72 - sum(found.after or ()) >= 36
    assert found.edges[0] <= -1 < 1 <= found.edges[-1]  # 127 steps of 0.01


def test_the_hidden_units_of_both_directions_are_channels(tmp_path: Path) -> None:
    node = helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=4, direction="bidirectional", name="node_gru")
    path = write(tmp_path / "m.onnx", [node], {"w": weights(2, 12, 3), "r": weights(2, 12, 4)}, [5, 3])
    (change,) = layer_changes(path, path)
    assert (change.name, change.kind, change.before.channels) == ("gru", "GRU", 8)
    assert change.before.weights == 2 * 12 * 3 + 2 * 12 * 4


def test_an_embedding_and_a_transposed_convolution_have_their_outputs_second(tmp_path: Path) -> None:
    embedding = write(
        tmp_path / "e.onnx", [helper.make_node("Gather", ["t.weight", "x"], ["y"])], {"t.weight": weights(9, 4)}, [3],
        element=TensorProto.INT64,
    )  # fmt: skip
    transposed = write(
        tmp_path / "t.onnx",
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"])],
        {"w": weights(3, 7, 2, 2)},
        [3, 4, 4],
    )
    assert [layer_changes(path, path)[0].before.channels for path in (embedding, transposed)] == [4, 7]


def test_changes_come_back_from_json(tmp_path: Path) -> None:
    for change in layer_changes(_before(tmp_path / "a.onnx"), _after(tmp_path / "b.onnx")):
        assert LayerChange.from_dict(json.loads(json.dumps(change.to_dict(), allow_nan=False))) == change


def test_constants_that_cannot_be_computed_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [helper.make_node("Unheard", ["q"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    broken = write(tmp_path / "m.onnx", nodes, {"q": weights(4, 4)}, [4])
    assert layer_changes(broken, broken) == ()
    assert "layers cannot be compared" in caplog.text


@given(floats, floats)
def test_every_weight_is_in_a_bin_or_a_zero(before: np.ndarray, after: np.ndarray) -> None:
    found = histogram(before, after)
    assert len(found.edges) == BINS + 1
    assert sum(found.before) + found.zeros_before == before.size
    assert sum(found.after or ()) + (found.zeros_after or 0) == after.size
    assert found.zeros_before == np.count_nonzero(before == 0)


@given(floats)
def test_a_layer_that_is_gone_has_no_second_histogram(before: np.ndarray) -> None:
    found = histogram(before, None)
    assert (found.after, found.zeros_after) == (None, None)
    assert (found.edges, found.before) == (histogram(before, before[:0]).edges, histogram(before, before[:0]).before)


def test_a_single_weight_far_out_does_not_hide_the_others() -> None:
    many = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    found = histogram(np.append(many, np.float32(1000)), None)
    assert found.edges[-1] < 10
    assert sum(found.before) == 20_001
    assert found.before[-1] >= 1
