"""compress.measurement.size: every form of a file, by kind and by layer."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from compress.errors import MeasurementError
from compress.measurement.entropy import entropy_bytes
from compress.measurement.size import Sizes, members, raw_bytes, sizes, zip_bytes
from tests.onnx_graphs import weights, write

DTYPES = (np.float32, np.float16, np.int8, np.int32)


def _net(path: Path, *, rows: int = 6, zeros: float = 0.0) -> Path:
    first, second = weights(rows, 4), weights(3, rows, seed=1)
    first[np.random.default_rng(2).random(first.shape) < zeros] = 0
    nodes = [
        helper.make_node("Gemm", ["x", "fc1.weight", "fc1.bias"], ["h"], transB=1, name="node_first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "fc2.weight"], ["s"], transB=1, name="node_second"),
        helper.make_node("Reshape", ["s", "shape"], ["y"]),
    ]
    constants = {"fc1.weight": first, "fc1.bias": weights(rows), "fc2.weight": second, "shape": np.int64([-1, 3])}
    return write(path, nodes, constants, [4])


def _external(path: Path) -> Path:
    onnx.save(onnx.load(path), str(path), save_as_external_data=True, location=f"{path.stem}.data", size_threshold=0)
    return path


def _adds_up(found: Sizes) -> None:
    assert sum(found.by_kind.values()) == found.raw_bytes
    assert all(count >= 0 for count in found.by_kind.values())
    assert sum(layer.bytes for layer in found.by_layer) == found.by_kind["weights"]
    assert found.entropy_bytes >= sum(layer.entropy_bytes for layer in found.by_layer)


def test_every_form_is_that_of_its_library(tmp_path: Path) -> None:
    path = _net(tmp_path / "m.onnx", rows=200)
    data, found = path.read_bytes(), sizes(path)
    assert found.raw_bytes == raw_bytes(path) == len(data)
    assert found.zip_bytes == zip_bytes(path)
    assert found.gzip_bytes == len(gzip.compress(data, 9, mtime=0))
    assert found.zstd_bytes == pytest.approx(len(zstandard.compress(data, 19)), abs=8)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.floats(0, 1), st.booleans())
def test_kinds_and_layers_add_up(tmp_path: Path, rows: int, zeros: float, external: bool) -> None:
    path = _net(tmp_path / "m.onnx", rows=rows, zeros=zeros)
    inline = sizes(path)
    _adds_up(inline)
    assert inline.by_kind["weights"] == 4 * (4 * rows + rows + 3 * rows) + 16
    if external:
        apart = sizes(_external(path))
        _adds_up(apart)
        assert (apart.by_layer, apart.by_kind["weights"]) == (inline.by_layer, inline.by_kind["weights"])


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(DTYPES), st.integers(1, 6), st.integers(1, 30), st.booleans())
def test_values_count_however_they_are_written(tmp_path: Path, dtype: type, rows: int, columns: int, raw: bool) -> None:
    values = np.random.default_rng(rows).integers(-9, 9, (rows, columns)).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    data = values.tobytes() if raw else values.ravel().tolist()
    tensor = helper.make_tensor("w", kind, values.shape, data, raw=raw)
    nodes = [helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT), helper.make_node("Mul", ["x", "c"], ["y"])]
    found = sizes(write(tmp_path / "m.onnx", nodes, {"w": tensor}, [columns]))
    _adds_up(found)
    (other,) = found.by_layer
    assert (other.name, other.kind) == ("other", "other")
    assert other.entropy_bytes == np.ceil(entropy_bytes(values))
    if raw:
        assert other.bytes == values.nbytes


def test_external_data_zips_to_what_it_does_inline_and_its_name(tmp_path: Path) -> None:
    path = _net(tmp_path / "m.onnx", rows=500)
    inline, apart = zip_bytes(path), zip_bytes(_external(path))
    assert inline < apart < inline + 600  # a member more, with names, offsets and lengths of four tensors
    assert sizes(path).gzip_bytes == sum(len(gzip.compress(f.read_bytes(), 9)) for f in members(path).values())


def test_a_layer_is_weighed_alone(tmp_path: Path) -> None:
    path = _net(tmp_path / "m.onnx", rows=100, zeros=0.9)
    first, second, other = sizes(path).by_layer
    assert [(layer.name, layer.kind) for layer in (first, second, other)] == [
        ("fc1", "Gemm"), ("fc2", "Gemm"), ("other", "other"),
    ]  # fmt: skip
    tensors = {tensor.name: tensor.raw_data for tensor in onnx.load(path).graph.initializer}
    assert first.zip_bytes == len(zlib.compress(tensors["fc1.weight"] + tensors["fc1.bias"], 9)) - 6  # its header
    assert first.entropy_bytes < first.zip_bytes < second.zip_bytes + 400
    assert second.bytes == len(tensors["fc2.weight"])


def test_layers_of_a_large_file_are_weighed_at_a_quicker_level(tmp_path: Path) -> None:
    path = _net(tmp_path / "m.onnx", rows=70_000, zeros=0.86)
    tensors = {tensor.name: tensor.raw_data for tensor in onnx.load(path).graph.initializer}
    stored = tensors["fc1.weight"] + tensors["fc1.bias"]
    found = sizes(path)
    assert found.raw_bytes > 1 << 20
    assert found.by_layer[0].zip_bytes == len(zlib.compress(stored, 6)) - 6 != len(zlib.compress(stored, 9)) - 6
    assert found.zip_bytes == zip_bytes(path)


def test_a_file_without_names_takes_those_of_the_original(tmp_path: Path) -> None:
    original = _net(tmp_path / "a.onnx", rows=30)
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "c"], ["y"], transB=1),
    ]
    constants = {"a": weights(20, 4), "b": weights(20), "c": weights(3, 20)}
    path = write(tmp_path / "b.onnx", nodes, constants, [4])
    assert [layer.name for layer in sizes(path).by_layer] == ["Gemm", "Gemm.2"]
    assert [layer.name for layer in sizes(path, original).by_layer] == ["fc1", "fc2"]


def test_what_no_result_needs_is_metadata(tmp_path: Path) -> None:
    path = _net(tmp_path / "m.onnx")
    before = sizes(path).by_kind
    proto = onnx.load(path)
    proto.doc_string = "d" * 1000
    proto.graph.node[0].doc_string = "n" * 500
    helper.set_model_props(proto, {"key": "v" * 300})
    onnx.save(proto, str(path))
    after = sizes(path).by_kind
    assert after["weights"] == before["weights"]
    assert 0 <= after["graph"] - before["graph"] <= 4  # the lengths of what holds them take a byte more
    assert 1800 <= after["metadata"] - before["metadata"] <= 1830


def test_weights_in_constants_and_in_subgraphs_are_weights_too(tmp_path: Path) -> None:
    value = onnx.numpy_helper.from_array(weights(4, 3), "")
    inner = helper.make_graph(
        [helper.make_node("Add", ["m", "k"], ["i"])], "inner", [],
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weights(3, seed=1), "k")],
    )  # fmt: skip
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("MatMul", ["x", "w"], ["m"], name="node_product"),
        helper.make_node("If", ["true"], ["y"], then_branch=inner, else_branch=inner),
    ]
    found = sizes(write(tmp_path / "m.onnx", nodes, {"true": np.bool_(True)}, [4]))
    _adds_up(found)
    assert [(layer.name, layer.bytes) for layer in found.by_layer] == [("product", 48), ("other", 2 * 12 + 1)]


def test_a_file_of_zeros_has_hardly_any_entropy(tmp_path: Path) -> None:
    full, empty = (sizes(_net(tmp_path / f"{zeros}.onnx", rows=2000, zeros=zeros)) for zeros in (0.0, 1.0))
    assert empty.by_layer[0].entropy_bytes < full.by_layer[0].entropy_bytes / 3
    assert full.raw_bytes == empty.raw_bytes


def test_sizes_come_back_from_json(tmp_path: Path) -> None:
    found = sizes(_net(tmp_path / "m.onnx"))
    assert Sizes.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x00not a graph")
    with pytest.raises(MeasurementError, match=r"m\.onnx cannot be read as ONNX"):
        sizes(tmp_path / "m.onnx")
