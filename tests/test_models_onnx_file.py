"""compress.models.onnx_file: what is read from, written into and taken out of a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compress.errors import ModelError
from compress.models.onnx_file import graph_inputs, provenance, read, run, serialize, stamp, strip, write_sizes
from compress.values import InputSpec

FACTS = {
    "source_sha256": "0f" * 32,
    "recipe": {"objective": "size"},
    "versions": {"compress": "0.1.0", "torch": "2.13.0", "onnx": "1.23.2", "onnxruntime": "1.31.1"},
    "accuracy": 0.8955,
    "calibration_sha256": "ab" * 32,
}


def _model(shape: tuple[str | int, ...] = ("batch", 3)) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    constant = numpy_helper.from_array(np.float32([1, 2, 3]), "c")
    graph = helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"])], "g", values[:1], values[1:], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "m.onnx"
    file.write_bytes(serialize(_model()))
    return file


def test_provenance_comes_back_as_it_was_stamped(path: Path) -> None:
    path.write_bytes(stamp(path, FACTS))
    assert provenance(path) == FACTS


def test_a_stamp_costs_little_more_than_what_it_says(path: Path) -> None:
    before = path.stat().st_size
    said = sum(len(str(value)) for value in FACTS.values())
    assert len(stamp(path, FACTS)) - before < said + 100


def test_a_second_stamp_takes_the_place_of_the_first_and_others_entries_stay(path: Path) -> None:
    proto = _model()
    helper.set_model_props(proto, {"author": "someone"})
    path.write_bytes(serialize(proto))
    for accuracy in (0.5, 0.75):
        path.write_bytes(stamp(path, {"accuracy": accuracy}))
    assert provenance(path) == {"accuracy": 0.75}
    assert {entry.key for entry in read(path).metadata_props} == {"author", "compress"}


def test_a_stamp_changes_no_result(path: Path) -> None:
    x = {"x": np.float32([[1, 2, 3]])}
    before = next(run(path, [x]))
    np.testing.assert_array_equal(next(run(stamp(path, FACTS), [x])), before)


def test_equal_facts_give_equal_bytes_whatever_their_order(path: Path) -> None:
    assert stamp(path, FACTS) == stamp(path, dict(reversed(FACTS.items())))


def test_a_file_without_a_stamp_has_no_provenance(path: Path) -> None:
    assert provenance(path) == {}


@pytest.mark.parametrize("text", ["not JSON", "[1]"])
def test_anothers_entry_of_that_name_is_no_provenance(path: Path, text: str) -> None:
    proto = _model()
    helper.set_model_props(proto, {"compress": text})
    path.write_bytes(serialize(proto))
    assert provenance(path) == {}


def test_stripping_takes_the_stamp_off(path: Path) -> None:
    path.write_bytes(stamp(path, FACTS))
    proto = read(path)
    strip(proto)
    assert not proto.metadata_props


@given(st.lists(st.integers(1, 512), min_size=1, max_size=4), st.data())
def test_sizes_of_free_axes_come_back_through_a_strip(sizes: list[int], data: st.DataObject) -> None:
    free = tuple(axis for axis in range(len(sizes)) if data.draw(st.booleans()))
    proto = _model(("batch", *(f"n{axis}" if axis in free else size for axis, size in enumerate(sizes))))
    spec = InputSpec("x", tuple(sizes), free=free)
    write_sizes(proto, (spec,))
    strip(proto)
    assert graph_inputs(proto) == (spec,)


def test_a_free_axis_whose_size_nobody_tells_is_refused() -> None:
    with pytest.raises(ModelError, match=r"input 'x' .* shape \['\?', '\?'\]; only axis 0"):
        graph_inputs(_model(("batch", "width")))


def test_a_size_that_the_data_will_tell_is_zero_until_then() -> None:
    proto = _model(("batch", 3, "width"))
    assert graph_inputs(proto, strict=False) == (InputSpec("x", (3, 0), free=(1,)),)
    assert graph_inputs(proto, (InputSpec("images", (3, 28)),)) == (InputSpec("x", (3, 28), free=(1,)),)


def test_a_lean_run_gives_the_same_results(path: Path) -> None:
    x = {"x": np.float32([[1, 2, 3], [4, 5, 6]])}
    np.testing.assert_array_equal(next(run(path, [x], lean=True)), next(run(path.read_bytes(), [x])))
