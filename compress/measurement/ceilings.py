"""What this CPU reaches at its best: products, bytes, and the cost of a node that has nothing to do."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compress.errors import MeasurementError
from compress.measurement.sessions import open_session

logger = logging.getLogger(__name__)

Array = NDArray[Any]

_OPSET, _IR = 17, 8
# Products in which the kernels do best: square ones, and 3x3 convolutions whose layout conversions do not count.
_SQUARES = (256, 768)
_CHANNELS, _SIDE = 256, 14
_WORKING_SETS = tuple(16 << (10 + 2 * step) for step in range(7))  # bytes: 16 KiB to 64 MiB
_READ_AT_ONCE = 32 << 20  # bytes that each thread reads in a timed call, at least: a small working set many times
_NODES = 200  # of the chain that tells the cost of one
_LEAST_CALLS = 3  # the first is warm-up


@dataclass(frozen=True)
class Machine:
    """The ceilings of a CPU, each the best of many tries: what else runs can only make it slower."""

    fp32_gmacs: float  # 10^9 multiply-accumulates a second, in ONNX Runtime's best float32 kernel
    int8_gmacs: float | None  # the same of uint8 with int8, as quantized files compute; None: it has no such kernel
    bandwidth: tuple[Bandwidth, ...]  # by working set, smallest first; never rising
    node_us: float  # what a node of one number costs ONNX Runtime
    call_us: float  # what one call costs besides
    threads: int

    def read_ms(self, count: int, working_set: int) -> float:
        """Milliseconds to read ``count`` bytes of a working set that is read over and over."""
        if count == 0:
            return 0.0
        sizes = np.log([each.bytes for each in self.bandwidth])
        speed = np.interp(np.log(max(working_set, 1)), sizes, [each.gb_per_s for each in self.bandwidth])
        return count / float(speed) / 1e6

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"bandwidth": [asdict(each) for each in self.bandwidth]}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Machine:
        """What `to_dict` made."""
        return cls(**{**stored, "bandwidth": tuple(Bandwidth(**each) for each in stored["bandwidth"])})


@dataclass(frozen=True)
class Bandwidth:
    """How fast a working set is read, over and over: the smaller it is, the nearer the cache that holds it."""

    bytes: int  # of the working set, of all threads together
    gb_per_s: float  # 10^9 bytes a second


@functools.cache
def machine(threads: int, seconds: float = 2.0) -> Machine:
    """Measure the ceilings of this CPU, once in a process.

    Bandwidth is that of numpy's ``bitwise_or.reduce``, which does nothing but read, a thread for each part of the
    working set; ONNX Runtime has no operator whose call is short beside the reading of a small one.

    Args:
        threads: Of one operator, at least 1.
        seconds: For all of it, about; every figure takes a few calls, however little is given.

    Raises:
        MeasurementError: ONNX Runtime does not multiply matrices here.
    """
    part = seconds / (2 * (len(_SQUARES) + 1) + len(_WORKING_SETS) + 2)
    single, chain = (_best(_run(_chain(nodes), threads), part) for nodes in (1, _NODES))
    node = max(chain - single, 0.0) / (_NODES - 1)
    fp32 = _peak(threads, part, integer=False)
    if fp32 is None:
        raise MeasurementError("onnxruntime multiplies no float32 matrices here. See `compress doctor`.")
    return Machine(
        fp32_gmacs=fp32,
        int8_gmacs=_peak(threads, part, integer=True),
        bandwidth=_bandwidths(threads, part),
        node_us=1e6 * node,
        call_us=1e6 * max(single - node, 0.0),
        threads=threads,
    )


def _peak(threads: int, seconds: float, *, integer: bool) -> float | None:
    """The most multiply-accumulates a second, in 10^9, of all the products that are tried."""
    reached = []
    products = [*((_product(size, integer), size**3) for size in _SQUARES), _convolution(integer)]
    for model, macs in products:
        try:
            reached.append(macs / _best(_run(model, threads), seconds) / 1e9)
        except Exception as error:  # a build without this kernel; onnxruntime's errors have no common base
            logger.info("a product that cannot be timed: %s", error)
    return max(reached, default=None)


def _bandwidths(threads: int, seconds: float) -> tuple[Bandwidth, ...]:
    with ThreadPoolExecutor(threads) as pool:
        speeds = [_bandwidth(size, threads, seconds, pool) for size in _WORKING_SETS]
    # What a large working set is read with, a small one is too, whatever a busy machine said.
    ceilings = np.maximum.accumulate(speeds[::-1])[::-1]
    return tuple(Bandwidth(size, float(speed)) for size, speed in zip(_WORKING_SETS, ceilings, strict=True))


def _bandwidth(size: int, threads: int, seconds: float, pool: ThreadPoolExecutor) -> float:
    words = size // threads // 8
    rounds = max(1, _READ_AT_ONCE // (8 * words))
    parts = [np.ones(words, np.uint64) for _ in range(threads)]
    results = [np.empty(rounds, np.uint64) for _ in range(threads)]

    def read(number: int) -> None:
        # The same words as the rows of a matrix, again and again, so that the call counts little beside the reading.
        rows = as_strided(parts[number], (rounds, words), (0, 8))
        np.bitwise_or.reduce(rows, axis=1, out=results[number])

    def all_parts() -> None:
        if threads == 1:
            read(0)
        else:
            list(pool.map(read, range(threads)))

    return threads * words * 8 * rounds / _best(all_parts, seconds) / 1e9


def _best(call: Callable[[], object], seconds: float) -> float:
    """Seconds of the quickest call."""
    best, calls, end = np.inf, 0, perf_counter() + seconds
    while calls < _LEAST_CALLS or perf_counter() < end:
        started = perf_counter()
        call()
        if calls:
            best = min(best, perf_counter() - started)
        calls += 1
    return float(best)


def _run(model: onnx.ModelProto, threads: int) -> Callable[[], object]:
    session = open_session(model.SerializeToString(), "cpu", threads)
    feeds = {value.name: _random(value) for value in model.graph.input}
    return functools.partial(session.run, None, feeds)


def _random(value: onnx.ValueInfoProto) -> Array:
    tensor = value.type.tensor_type
    shape = [dim.dim_value for dim in tensor.shape.dim]
    return _values(shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def _values(shape: Sequence[int], dtype: np.dtype[Any] | type) -> Array:
    """Random ones: zeros might be quicker."""
    return np.random.default_rng(0).integers(1, 100, shape).astype(dtype)


def _chain(nodes: int) -> onnx.ModelProto:
    """Nodes of one number each, none of which can be fused with the next."""
    names = ["x", *(f"v{number}" for number in range(1, nodes)), "y"]
    made = [
        helper.make_node(("Neg", "Abs")[number % 2], [names[number]], [names[number + 1]]) for number in range(nodes)
    ]
    return _model(made, {"x": (TensorProto.FLOAT, (1,))}, TensorProto.FLOAT, {})


def _product(size: int, integer: bool) -> onnx.ModelProto:
    kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
    node = helper.make_node("MatMulInteger" if integer else "MatMul", ["x", "w"], ["y"])
    weight = _values((size, size), np.int8 if integer else np.float32)
    return _model([node], {"x": (kind, (size, size))}, TensorProto.INT32 if integer else kind, {"w": weight})


def _convolution(integer: bool) -> tuple[onnx.ModelProto, int]:
    """A convolution, and its multiply-accumulates."""
    weight = _values((_CHANNELS, _CHANNELS, 3, 3), np.int8 if integer else np.float32)
    macs = weight.size * _SIDE * _SIDE
    kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
    given = {"x": (kind, (1, _CHANNELS, _SIDE, _SIDE))}
    if not integer:
        return _model([helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], given, kind, {"w": weight}), macs
    constants: dict[str, Any] = {"w": weight, "s": np.float32(1), "u": np.uint8(0), "i": np.int8(0)}
    taken = ["x", "s", "u", "w", "s", "i", "s", "u"]
    return _model([helper.make_node("QLinearConv", taken, ["y"], pads=[1] * 4)], given, kind, constants), macs


def _model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, tuple[int, ...]]],
    output: int,
    constants: Mapping[str, Array],
) -> onnx.ModelProto:
    given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    result = [helper.make_tensor_value_info("y", output, None)]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "ceiling", given, result, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
