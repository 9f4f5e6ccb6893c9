"""compress.measurement.ceilings and limit: what a CPU can do, and how near a model comes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from compress.measurement.ceilings import Bandwidth, Machine, machine
from compress.measurement.limit import Limit, Work, limit, roofline, work_of
from compress.measurement.sessions import open_session
from compress.models.counts import count
from compress.values import InputSpec
from tests.onnx_graphs import weights, write

FLAT = Machine(
    fp32_gmacs=10.0, int8_gmacs=40.0, bandwidth=(Bandwidth(1 << 14, 100.0), Bandwidth(1 << 26, 10.0)),
    node_us=1.0, call_us=5.0, threads=1,
)  # fmt: skip
work = st.builds(
    Work,
    operator=st.just("Conv"),
    macs=st.integers(0, 10**9),
    integer=st.booleans(),
    weight_bytes=st.integers(0, 10**8),
    value_bytes=st.integers(0, 10**8),
)


def _one(tmp_path: Path, node: onnx.NodeProto, constants: dict[str, object], *shape: int, batch: int = 1) -> Work:
    path = write(tmp_path / "m.onnx", [node], constants, shape)
    (found,) = work_of(path, (InputSpec("x", shape),), batch, 1)
    return found


def _network(path: Path, width: int = 64) -> tuple[Path, tuple[InputSpec, ...]]:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "b"], ["y"], pads=[1] * 4),
    ]
    constants = {"a": weights(width, 16, 3, 3), "b": weights(width, width, 3, 3)}
    return write(path, nodes, constants, [16, 28, 28]), (InputSpec("x", (16, 28, 28)),)


def test_the_machine_is_measured_quickly_and_once() -> None:
    started = time.perf_counter()
    found = machine(1, 0.05)
    assert time.perf_counter() - started < 10
    assert machine(1, 0.05) is found
    assert found.fp32_gmacs > 0.1
    assert found.int8_gmacs is not None
    assert 0 < found.node_us < 100
    speeds = [each.gb_per_s for each in found.bandwidth]
    assert speeds == sorted(speeds, reverse=True)
    assert Machine.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_two_threads_are_measured_too() -> None:
    assert machine(2, 0.05).threads == 2


@pytest.mark.parametrize("working_set", [1, 1 << 14, 1 << 20, 1 << 26, 1 << 40])
def test_a_working_set_is_read_as_fast_as_the_nearest_measured(working_set: int) -> None:
    assert 0.01 <= FLAT.read_ms(10**6, working_set) <= 0.1
    assert FLAT.read_ms(0, working_set) == 0


def test_a_convolution_counts_no_products_with_padding(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    found = _one(tmp_path, node, {"w": weights(8, 4, 3, 3)}, 4, 1, 1)
    assert found.macs == 8 * 4  # of a 3x3 filter on one pixel only the middle is used
    assert found.weight_bytes == 8 * 4 * 4


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 3, 1), (9, 3, 2), (8, 3, 2), (12, 5, 1), (12, 7, 2), (6, 1, 1)]
)
def test_products_inside_the_padding_are_those_of_a_convolution_of_ones(
    tmp_path: Path, size: int, kernel: int, stride: int
) -> None:
    ones = np.ones((1, 1, kernel, kernel), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[kernel // 2] * 4, strides=[stride] * 2)
    path = write(tmp_path / "m.onnx", [node], {"w": ones}, [1, size, size])
    session = onnx.reference.ReferenceEvaluator(str(path))
    (inside,) = session.run(None, {"x": np.ones((1, 1, size, size), np.float32)})
    assert work_of(path, (InputSpec("x", (1, size, size)),), 1, 1)[0].macs == inside.sum()


def test_without_padding_the_products_are_those_that_are_counted(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 1])
    shape = (4, 9, 7)
    path = write(tmp_path / "m.onnx", [node], {"w": weights(8, 2, 3, 3)}, shape)
    inputs = (InputSpec("x", shape),)
    assert work_of(path, inputs, 5, 1)[0].macs == 5 * count(path, inputs).macs


@pytest.mark.parametrize(
    ("node", "constants", "shape"),
    [
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), {"w": weights(5, 7)}, (7,)),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), {"w": weights(7, 5)}, (7,)),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": weights(7, 5)}, (3, 7)),
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"]), {"w": weights(3, 5, 2, 2)}, (3, 4, 4)),
    ],
    ids=["gemm-turned", "gemm", "matmul", "transposed"],
)
def test_products_of_other_layers_are_those_that_are_counted(
    tmp_path: Path, node: onnx.NodeProto, constants: dict[str, object], shape: tuple[int, ...]
) -> None:
    path = write(tmp_path / "m.onnx", [node], constants, shape)
    inputs = (InputSpec("x", shape),)
    assert sum(each.macs for each in work_of(path, inputs, 4, 1)) == 4 * count(path, inputs).macs


def test_a_product_of_activations_counts_each_of_its_matrices(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, {}, [4, 6, 5])
    assert sum(each.macs for each in work_of(path, (InputSpec("x", (4, 6, 5)),), 2, 1)) == 2 * 4 * 6 * 6 * 5


def test_a_recurrent_layer_counts_every_step(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r"], ["y"], hidden_size=4),
    ]
    path = write(tmp_path / "m.onnx", nodes, {"w": weights(1, 16, 3), "r": weights(1, 16, 4)}, [5, 3])
    assert sum(each.macs for each in work_of(path, (InputSpec("x", (5, 3)),), 2, 1)) == 2 * 5 * (16 * 3 + 16 * 4)


def test_a_table_is_not_read_whole(tmp_path: Path) -> None:
    node = helper.make_node("Gather", ["w", "x"], ["y"])
    path = write(tmp_path / "m.onnx", [node], {"w": weights(1000, 8)}, [6], element=TensorProto.INT64)
    (found,) = work_of(path, (InputSpec("x", (6,), "int64"),), 1, 1)
    assert (found.macs, found.weight_bytes, found.value_bytes) == (0, 0, 2 * 6 * 8 * 4)


def test_quantized_layers_count_where_an_int8_kernel_runs_them(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "u"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "u"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "i"], ["v"]),
        helper.make_node("Conv", ["d", "v"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "u"], ["e"]),
        helper.make_node("DequantizeLinear", ["e", "s", "u"], ["y"]),
    ]
    levels = np.random.default_rng(0).integers(-9, 9, (8, 4, 3, 3)).astype(np.int8)
    constants = {"s": np.float32(0.1), "u": np.uint8(0), "i": np.int8(0), "w": levels}
    path = write(tmp_path / "m.onnx", nodes, constants, [4, 8, 8])
    works = work_of(path, (InputSpec("x", (4, 8, 8)),), 1, 1)
    (product,) = [each for each in works if each.macs]
    assert (product.operator, product.integer, product.macs) == ("QLinearConv", True, 8 * 4 * 9 * 36)
    assert product.weight_bytes < 2 * levels.nbytes


@given(st.lists(work, min_size=1, max_size=6))
def test_the_parts_add_up_and_more_work_takes_longer(works: list[Work]) -> None:
    found, less = roofline(works, FLAT, 1.0), roofline(works[1:], FLAT, 1.0)
    parts = {"compute": found.compute_ms, "memory": found.memory_ms, "overhead": found.overhead_ms}
    assert sum(parts.values()) == pytest.approx(found.roofline_ms) == pytest.approx(found.reached)
    assert parts[found.bound] == max(parts.values())
    assert found.roofline_ms >= less.roofline_ms - 1e-9


def test_each_ceiling_can_be_the_bound() -> None:
    heavy = Work("Conv", 10**9, False, 100, 100)
    assert roofline([heavy], FLAT, 1.0).compute_ms == pytest.approx(100)
    assert roofline([Work("QLinearConv", 10**9, True, 100, 100)], FLAT, 1.0).compute_ms == pytest.approx(25)
    wide = roofline([Work("Gemm", 10, False, 1 << 26, 0)], FLAT, 1.0)
    assert (wide.bound, wide.memory_ms) == ("memory", pytest.approx((1 << 26) / 10 / 1e6))
    assert roofline([Work("Relu", 0, False, 0, 4)] * 3, FLAT, 1.0).overhead_ms == pytest.approx(0.008)
    assert roofline([Work("Relu", 0, False, 0, 4)], FLAT, None).reached is None


def test_a_real_latency_is_not_below_the_limit(tmp_path: Path) -> None:
    path, inputs = _network(tmp_path / "m.onnx")
    session = open_session(path, "cpu", 1)
    feed = {"x": np.zeros((1, 16, 28, 28), np.float32)}
    times = []
    for _ in range(60):
        started = time.perf_counter()
        session.run(None, feed)
        times.append(1e3 * (time.perf_counter() - started))
    found = limit(path, inputs, 1, machine(1, 0.5), float(np.median(times)))
    assert found is not None
    assert found.nodes == 2  # Relu is part of the convolution before it
    assert found.bound == "compute"
    # A busy machine makes the latency longer, and the ceiling, the best of few calls here, a little lower.
    assert found.reached is not None
    assert 0.001 < found.reached < 1.5
    assert Limit.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_a_file_that_does_not_run_has_no_limit_and_the_reason_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weights(4, 2)}, [4])
    assert limit(path, (InputSpec("x", (5,)),), 1, FLAT, 1.0) is None
    assert "m.onnx has no roofline" in caplog.text
