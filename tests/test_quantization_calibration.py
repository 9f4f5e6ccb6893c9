"""compress.quantization.calibration: constant memory, equal ranges whatever stopped it, errors that name the sample."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.data.splits import Batch, Split
from compress.errors import QuantizationError
from compress.quantization import calibration as module
from compress.quantization.calibration import Calibration, Feeds, calibrate, tensors_to_observe
from compress.quantization.integer import STATIC_OPERATORS
from compress.quantization.observers import METHODS
from compress.values import InputSpec

IMAGE = (InputSpec("input", (1, 6, 6)),)
VECTOR = (InputSpec("input", (4,)),)
SEQUENCE = (InputSpec("input", (-1, 4)),)
CNN_TENSORS = ("input", "c", "r", "f", "output")


def _graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: tuple[int | str, ...], rank: int = 2):
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, [None] * rank)]
    graph = helper.make_graph(nodes, "model", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _cnn() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "w2"], ["output"], name="head"),
    ]
    return _graph(nodes, {"w1": _normal(1, 3, 1, 3, 3), "w2": _normal(2, 48, 3)}, (1, 6, 6))


def _logarithm() -> onnx.ModelProto:
    """log of the input, then a MatMul: not finite where an input value is 0 or less."""
    nodes = [
        helper.make_node("Log", ["input"], ["l"], name="log"),
        helper.make_node("MatMul", ["l", "w"], ["output"], name="head"),
    ]
    return _graph(nodes, {"w": _normal(3, 4, 2)}, (4,))


def _attention() -> onnx.ModelProto:
    """(batch, length, 4) with a free length: a projection, its scores (two inputs that are no constants), a head."""
    nodes = [
        helper.make_node("MatMul", ["input", "w1"], ["p"], name="projection"),
        helper.make_node("Transpose", ["p"], ["t"], perm=[0, 2, 1], name="transpose"),
        helper.make_node("MatMul", ["p", "t"], ["s"], name="scores"),
        helper.make_node("ReduceMean", ["s", "axis"], ["m"], keepdims=1, name="mean"),
        helper.make_node("MatMul", ["m", "w2"], ["output"], name="head"),
    ]
    constants = {"w1": _normal(4, 4, 4), "w2": _normal(5, 1, 2), "axis": np.int64([2])}
    return _graph(nodes, constants, ("length", 4), rank=3)


def _split(samples: np.ndarray, first: int = 100) -> Split:
    """The samples, numbered from ``first`` on in their source."""

    def fetch(indices: np.ndarray) -> Batch:
        return (torch.from_numpy(samples[indices - first]),), None

    return Split("calibration", fetch, np.arange(first, first + len(samples)), False)


def _images(count: int = 70) -> np.ndarray:
    images = _normal(7, count, 1, 6, 6)
    images[count // 2] *= 5
    return images


def _calibrated(samples: np.ndarray | None = None, **options: object) -> Calibration:
    images = _images() if samples is None else samples
    return calibrate(_cnn(), _split(images), IMAGE, **{"batch_size": 8, "bins": 512, **options})


def _all_values(samples: np.ndarray, batch_size: int = 8) -> dict[str, list[np.ndarray]]:
    """Every value of every tensor of the CNN, by batch, as one who has the memory would hold them."""
    proto = _cnn()
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("c", "r", "f"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: dict[str, list[np.ndarray]] = {name: [] for name in CNN_TENSORS}
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        results = dict(zip(("output", "c", "r", "f"), session.run(None, {"input": batch}), strict=True))
        for name, values in found.items():
            values.append({"input": batch, **results}[name])
    return found


@pytest.mark.parametrize("passes", [1, 2])
def test_ranges_are_those_of_all_values_held_at_once(passes: int) -> None:
    found = _calibrated(passes=passes)
    extremes, averages, percentiles = (found.ranges(m, percentile=99.0) for m in METHODS[:3])
    for name, batches in _all_values(_images()).items():
        values = np.concatenate([batch.ravel() for batch in batches])
        assert extremes[name] == (min(values.min(), 0), max(values.max(), 0))
        low, high = batches[0].min().item(), batches[0].max().item()
        for batch in batches[1:]:
            low, high = low + 0.01 * (batch.min().item() - low), high + 0.01 * (batch.max().item() - high)
        assert averages[name] == (np.float32(min(low, 0)), np.float32(high))
        width = found.observers[name].histogram.width
        cut = int(0.005 * values.size)
        ends = np.sort(values)[[cut, -1 - cut]]
        assert percentiles[name] == pytest.approx((min(ends[0], 0), ends[1]), abs=width)
        assert found.observers[name].histogram.counts.sum() == values.size
    assert found.samples == 70


def test_what_is_observed_is_what_the_operators_take_and_give_in_the_order_of_the_graph() -> None:
    assert tensors_to_observe(_cnn(), STATIC_OPERATORS) == CNN_TENSORS
    assert tensors_to_observe(_cnn(), ("Conv",)) == ("input", "c")
    assert tensors_to_observe(_cnn(), STATIC_OPERATORS, exclude=("conv", "relu")) == ("f", "output")


def test_a_matmul_of_two_inner_values_is_not_observed() -> None:
    assert tensors_to_observe(_attention(), STATIC_OPERATORS) == ("input", "p", "m", "output")


def test_whole_numbers_and_constants_are_not_observed() -> None:
    nodes = [
        helper.make_node("Constant", [], ["least"], value=numpy_helper.from_array(np.float32(0.5))),
        helper.make_node("Clip", ["input", "least"], ["k"], name="float"),
        helper.make_node("Cast", ["k"], ["i"], to=TensorProto.INT32),
        helper.make_node("Relu", ["i"], ["j"], name="whole"),
        helper.make_node("Cast", ["j"], ["output"], to=TensorProto.FLOAT),
    ]
    assert tensors_to_observe(_graph(nodes, {}, (4,)), STATIC_OPERATORS) == ("input", "k")


def test_the_graph_is_not_changed() -> None:
    proto = _cnn()
    before = proto.SerializeToString()
    calibrate(proto, _split(_images()), IMAGE)
    assert proto.SerializeToString() == before


def test_equal_data_gives_equal_bytes_and_other_data_others() -> None:
    assert _calibrated().sha256 == _calibrated().sha256
    assert _calibrated().sha256 != _calibrated(_images()[:-1]).sha256
    assert _calibrated().sha256 != _calibrated(batch_size=16).sha256


def test_samples_run_one_by_one_where_their_values_are_large_and_ranges_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _calibrated()
    sizes = []
    run = module.inner_values

    def watched(proto, names, batches, threads):
        for values in run(proto, names, batches, threads):
            sizes.append(len(values["input"]))
            yield values

    monkeypatch.setattr(module, "_BUDGET_BYTES", 1)
    monkeypatch.setattr(module, "inner_values", watched)
    alone = _calibrated()
    assert set(sizes) == {1}
    for method in ("minmax", "moving-average"):
        for name, ends in alone.ranges(method).items():
            assert ends == pytest.approx(whole.ranges(method)[name], rel=1e-5)


@pytest.mark.parametrize("passes", [1, 2])
def test_progress_is_told_in_samples_up_to_all_of_them(passes: int) -> None:
    told = []
    _calibrated(passes=passes, progress=lambda label, done, total, note="": told.append((label, done, total)))
    assert told[0] == ("calibrating", 8, 70 * passes)
    assert told[8] == ("calibrating", 70, 70 * passes)
    assert told[-1] == ("calibrating", 70 * passes, 70 * passes)
    assert len(told) == 9 * passes


def _lengths(lengths: list[int]) -> tuple[Split, list[np.ndarray]]:
    samples = [_normal(i, length, 4) for i, length in enumerate(lengths)]

    def fetch(indices: np.ndarray) -> Batch:
        return (torch.stack([torch.from_numpy(samples[i]) for i in indices]),), None

    return Split("calibration", fetch, np.arange(len(samples)), False), samples


def test_samples_of_different_lengths_are_fed_in_groups_of_one_shape() -> None:
    split, samples = _lengths([3, 5, 3, 2, 5, 3, 4])
    feeds = list(Feeds(split, SEQUENCE, 4).numbered())
    assert [list(feed.positions) for feed in feeds] == [[0, 2], [1], [3], [4], [5], [6]]
    assert [feed.last for feed in feeds] == [False, False, True, False, False, True]
    for feed in feeds:
        assert (feed.values["input"] == np.stack([samples[i] for i in feed.positions])).all()


def test_a_graph_with_a_free_axis_is_calibrated_on_samples_of_different_lengths() -> None:
    split, samples = _lengths([3, 5, 3, 2, 5, 3, 4])
    found = calibrate(_attention(), split, SEQUENCE, batch_size=4, bins=512)
    weight = _normal(4, 4, 4)
    projected = np.concatenate([sample @ weight for sample in samples])
    assert found.ranges("minmax")["p"] == pytest.approx((projected.min(), projected.max()), rel=1e-5)
    assert found.observers["p"].histogram.counts.sum() == projected.size
    assert found.samples == 7


def test_feeds_can_be_iterated_again_and_hold_no_samples() -> None:
    fetched = []
    images = _images(10)

    def fetch(indices: np.ndarray) -> Batch:
        fetched.append(len(indices))
        return (torch.from_numpy(images[indices]),), None

    feeds = Feeds(Split("calibration", fetch, np.arange(10), False), IMAGE, 4)
    for _ in range(2):
        assert (np.concatenate([feed["input"] for feed in feeds]) == images).all()
    assert fetched == [4, 4, 2] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("position", [0, 13])
def test_an_input_that_is_not_finite_is_named_with_its_sample(bad: float, position: int) -> None:
    images = _images()
    images[position, 0, 2, 2] = bad
    with pytest.raises(
        QuantizationError, match=rf"'input' of sample {100 + position} \(number {position} of the calib"
    ):
        _calibrated(images)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_an_inner_value_that_is_not_finite_is_named_with_its_node_and_sample(bad: float, passes: int) -> None:
    samples = np.abs(_normal(1, 20, 4)) + 0.1
    samples[11, 2] = samples[14, 1] = bad
    with pytest.raises(QuantizationError, match=r"'l', the output of node 'log' \(Log\), .*sample 111 \(number 11 of"):
        calibrate(_logarithm(), _split(samples), VECTOR, batch_size=8, passes=passes)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(QuantizationError, match="calibration split is empty"):
        _calibrated(_images()[:0])


def test_data_that_the_graph_cannot_take_is_told_with_its_sample() -> None:
    with pytest.raises(QuantizationError, match=r"cannot run the graph on a batch of 1 from sample 100"):
        _calibrated(_normal(1, 8, 1, 7, 7))


class _StoppedError(Exception):
    pass


def _stop_after(samples: int):
    def progress(label: str, done: int, total: int, note: str = "") -> None:
        if done >= samples:
            raise _StoppedError

    return progress


@pytest.mark.parametrize(("passes", "stops"), [(1, (24,)), (1, (8, 40, 56)), (2, (24, 70, 94))])
def test_a_calibration_that_was_stopped_goes_on_to_equal_bytes(
    passes: int, stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)
    whole = _calibrated(passes=passes, cache=tmp_path / "whole.npz")
    told: list[int] = []
    for stop in stops:
        with pytest.raises(_StoppedError):
            _calibrated(passes=passes, cache=tmp_path / "cache.npz", progress=_stop_after(stop))
    done = _calibrated(passes=passes, cache=tmp_path / "cache.npz", progress=lambda _, done, total: told.append(done))
    assert told[0] > stops[-1]
    assert done.sha256 == whole.sha256
    assert (tmp_path / "cache.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert done.ranges("moving-average") == whole.ranges("moving-average")


def killed_after_three_batches(cache: Path) -> None:
    """Run in a process of its own by the test below."""

    def progress(label: str, done: int, total: int, note: str = "") -> None:
        if done >= 24:
            os.kill(os.getpid(), signal.SIGKILL)

    module._SAVE_SECONDS = 0.0
    _calibrated(cache=cache, progress=progress)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_calibration_that_was_killed_goes_on_to_equal_bytes(tmp_path: Path) -> None:
    cache, told = tmp_path / "cache.npz", []
    code = f"import tests.{Path(__file__).stem} as t; t.killed_after_three_batches(t.Path({str(cache)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == -signal.SIGKILL
    again = _calibrated(cache=cache, progress=lambda _, done, total: told.append(done))
    assert told[0] == 32
    assert again.sha256 == _calibrated().sha256


def test_a_finished_calibration_is_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _calibrated(cache=tmp_path / "cache.npz", data_sha256="a")
    monkeypatch.setattr(module, "inner_values", lambda *_: pytest.fail("the graph ran"))
    again = _calibrated(cache=tmp_path / "cache.npz", data_sha256="a")
    for method in METHODS:
        assert again.ranges(method) == first.ranges(method)
        assert again.ranges(method, symmetric=True) == first.ranges(method, symmetric=True)


@pytest.mark.parametrize(
    "other",
    [
        {"data_sha256": "b"}, {"batch_size": 16}, {"bins": 256}, {"passes": 2}, {"exclude": ("head",)},
        {"samples": _images()[:-1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_cache_of_other_data_or_options_is_not_used(
    other: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _calibrated(cache=tmp_path / "cache.npz", data_sha256="a")
    with caplog.at_level(logging.WARNING):
        found = _calibrated(cache=tmp_path / "cache.npz", **{"data_sha256": "a", **other})
    assert "of another model, data or options" in caplog.text
    assert found.sha256 == _calibrated(**other).sha256


def test_a_cache_of_another_model_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _calibrated(cache=tmp_path / "cache.npz")
    proto = _cnn()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(_normal(9, 3, 1, 3, 3), "w1"))
    cached = calibrate(proto, _split(_images()), IMAGE, batch_size=8, bins=512, cache=tmp_path / "cache.npz")
    assert "of another model" in caplog.text
    assert cached.sha256 == calibrate(proto, _split(_images()), IMAGE, batch_size=8, bins=512).sha256


@pytest.mark.parametrize("content", [b"", b"not a zip", None], ids=["empty", "text", "cut off"])
def test_a_broken_cache_is_told_and_replaced(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache.npz"
    first = _calibrated(cache=path)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2] if content is None else content)
    assert _calibrated(cache=path).sha256 == first.sha256
    assert "is no calibration" in caplog.text
    assert path.read_bytes() == good


def _peak_bytes(samples: np.ndarray) -> int:
    tracemalloc.start()
    _calibrated(samples, batch_size=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_eight_times_the_samples_take_no_more_memory() -> None:
    few, many = _images(64), _images(512)
    _calibrated(few)  # what is made once only
    assert _peak_bytes(many) <= 1.1 * _peak_bytes(few)
