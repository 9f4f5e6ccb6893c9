"""The least time that this CPU needs for a model, and what stands in the way: the roofline (Williams et al. 2009).

The ceilings are measured, not read from a data sheet: see `compress.measurement.ceilings`. What a model needs is read
off ONNX Runtime's profile: the nodes that really run after its fusions, with their types and shapes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from compress.measurement.ceilings import Machine, machine
from compress.measurement.placement import profiled
from compress.models.onnx_file import first_line
from compress.values import InputSpec

__all__ = ["Limit", "Machine", "Work", "limit", "machine", "roofline", "work_of"]

logger = logging.getLogger(__name__)

Bound = Literal["compute", "memory", "overhead"]
Shape = tuple[int, ...]

# Operator -> the input with its weight. Integer kernels, by the peak of int8; the others by that of float32.
# MatMulNBits computes in one or the other, which the profile does not tell: the least time is that of int8.
_INTEGER = {
    "QLinearConv": 3, "ConvInteger": 1, "QGemm": 3, "QLinearMatMul": 3, "MatMulInteger": 1, "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1, "DynamicQuantizeLSTM": 1, "QAttention": 1,
    "MatMulNBits": 1,
}  # fmt: skip
_FLOAT = {
    "Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvTranspose": 1, "Gemm": 1, "FusedGemm": 1, "MatMul": 1,
    "FusedMatMul": 1, "TransposeMatMul": 1, "LSTM": 1, "GRU": 1, "RNN": 1, "Attention": 1,
}  # fmt: skip
_WEIGHT = {**_INTEGER, **_FLOAT}
_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "QLinearConv")
_RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Size", "Dropout")  # move no values
_PICKS = ("Gather", "GatherElements", "GatherND", "Slice")  # read as much as they write


@dataclass(frozen=True)
class Limit:
    """The roofline of one file at one batch size: each node takes as long as its products or its bytes, the longer.

    The three parts add up to the whole. A latency near it cannot be bettered on this CPU but by another model; one far
    above it is spent in kernels that do not reach the ceilings (depthwise convolutions, recurrences, small products).
    """

    compute_ms: float  # of the nodes that take longer for their products: multiply-accumulates / peak
    memory_ms: float  # of the others: bytes / bandwidth
    overhead_ms: float  # what one call and its nodes cost where they have nothing to do
    roofline_ms: float  # the sum
    reached: float | None  # roofline / measured p50: 1 is the ceiling; None: no latency was measured
    bound: Bound  # the largest part
    macs: int  # of the whole batch, without products with padding
    moved_bytes: int  # weights, inputs and outputs of all nodes, each once
    nodes: int  # that ran, after ONNX Runtime's fusions

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Limit:
        """What `to_dict` made."""
        return cls(**stored)


@dataclass(frozen=True)
class Work:
    """What one node has to do."""

    operator: str
    macs: int
    integer: bool  # its products are of int8
    weight_bytes: int  # constants that it reads
    value_bytes: int  # inputs and outputs


def limit(path: Path, inputs: Sequence[InputSpec], batch: int, machine: Machine, p50_ms: float | None) -> Limit | None:
    """The roofline of an ONNX file on the CPU. The file is run once, apart from what is timed.

    Args:
        path: The file.
        inputs: Its inputs, without the batch; free axes have their usual size.
        batch: Samples a call.
        machine: The ceilings, of `compress.measurement.ceilings.machine`, with as many threads as the latency.
        p50_ms: The measured latency, above 0; None: there is none.

    Returns:
        None, with the reason logged, where the file cannot be run with made-up inputs.
    """
    try:
        works = work_of(path, inputs, batch, machine.threads)
    except Exception as error:  # onnxruntime's errors have no common base of their own
        logger.warning("%s has no roofline: %s.", path.name, first_line(error))
        return None
    return roofline(works, machine, p50_ms)


def roofline(works: Sequence[Work], machine: Machine, p50_ms: float | None) -> Limit:
    """The least time for the work of some nodes.

    Weights of a small model stay in a near cache from call to call, those of a large one come from memory each time:
    their bandwidth is that of all weights together. What a node takes was just written: its bandwidth, and that of what
    it gives, is that of its own bytes.
    """
    weights = sum(work.weight_bytes for work in works)
    compute = memory = 0.0
    for work in works:
        peak = machine.int8_gmacs if work.integer and machine.int8_gmacs is not None else machine.fp32_gmacs
        products = work.macs / peak / 1e6
        moved = machine.read_ms(work.weight_bytes, weights) + machine.read_ms(work.value_bytes, work.value_bytes)
        compute, memory = (compute + products, memory) if products >= moved else (compute, memory + moved)
    overhead = (machine.call_us + len(works) * machine.node_us) / 1e3
    parts: dict[Bound, float] = {"compute": compute, "memory": memory, "overhead": overhead}
    whole = sum(parts.values())
    return Limit(
        compute_ms=compute,
        memory_ms=memory,
        overhead_ms=overhead,
        roofline_ms=whole,
        reached=None if p50_ms is None else whole / p50_ms,
        bound=max(parts, key=lambda part: parts[part]),
        macs=sum(work.macs for work in works),
        moved_bytes=weights + sum(work.value_bytes for work in works),
        nodes=len(works),
    )


def work_of(path: Path, inputs: Sequence[InputSpec], batch: int, threads: int) -> tuple[Work, ...]:
    """What each node of a file that runs has to do, in one call.

    Raises:
        Exception: onnxruntime cannot run the file with zeros for inputs.
    """
    zeros = {spec.name: np.zeros((batch, *spec.shape), spec.dtype) for spec in inputs}
    return tuple(_work(event["args"]) for event in profiled(path, "cpu", threads, zeros, _plain_session))


def _plain_session(source: str | bytes, options: onnxruntime.SessionOptions, **others: Any) -> Any:
    """A session with all fusions, but whose profile tells the shapes of the weights, and no padding of channels."""
    options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(source, options, disabled_optimizers=["NchwcTransformer"], **others)


def _work(told: Mapping[str, Any]) -> Work:
    operator = str(told["op_name"])
    inputs, outputs = _shapes(told["input_type_shape"]), _shapes(told["output_type_shape"])
    weights, values = int(told["parameter_size"]), int(told["activation_size"]) + int(told["output_size"])
    if operator in _VIEWS:
        weights = values = 0
    elif operator in _PICKS:
        weights, values = 0, 2 * int(told["output_size"])
    if operator not in _WEIGHT or len(inputs) <= _WEIGHT[operator] or not outputs:
        return Work(operator, 0, False, weights, values)
    if operator in _CONVOLUTIONS:
        products, share = _convolution(inputs[0], inputs[_WEIGHT[operator]], outputs[0])
        return Work(operator, products, operator in _INTEGER, round(share * weights), values)
    return Work(operator, _products(operator, inputs, outputs[0]), operator in _INTEGER, weights, values)


def _shapes(entries: Sequence[Mapping[str, Sequence[int]]]) -> list[Shape]:
    return [tuple(shape) for entry in entries for shape in entry.values()]


def _products(operator: str, inputs: Sequence[Shape], out: Shape) -> int:
    """Multiply-accumulates of a node that is no convolution, from the shapes of what it took and gave."""
    data, weight = inputs[0], inputs[_WEIGHT[operator]]
    if operator in _RECURRENT:  # data (T, N, D), weights (directions, gates * H, D) and (directions, gates * H, H)
        return data[0] * data[1] * (prod(weight) + prod(inputs[2]))
    if operator == "ConvTranspose":  # weight (C_in, C_out / groups, kH, kW)
        return prod(data) * prod(weight[1:])
    if "Attention" in operator:  # data (N, T, D), weight (D, 3 H): three projections, then two products of T x T
        return prod(data[:-1]) * (prod(weight) + 2 * data[-2] * (weight[-1] // 3))
    if operator == "MatMulNBits":  # its weight is packed
        return prod(out) * data[-1]
    # (M, K) x (K, N) = (M, N), either of them transposed: M K * K N / M N is the square of K.
    areas = [prod(shape[-2:]) for shape in (data, weight, out)]
    return prod(out) * round(sqrt(areas[0] * areas[1] / max(areas[2], 1)))


def _convolution(data: Shape, weight: Shape, out: Shape) -> tuple[int, float]:
    """Multiply-accumulates of a convolution, and the share of its weights that it reads.

    Products with padding are left out, as kernels do: on a map of 1x1 a 3x3 filter is its middle weight. The profile
    tells no strides and paddings; they are found from the sizes, without dilation and with equal padding on both sides.

    Args:
        data: (N, C_in, …), or (N, …, C_in) where ``out`` is (N, …, C_out).
        weight: (C_out, C_in / groups, …).
        out: (N, C_out, …) or (N, …, C_out).
    """
    axes = slice(2, None) if out[1] == weight[0] else slice(1, -1)
    products, share = out[0] * weight[0] * weight[1], 1.0
    for given, made, kernel in zip(data[axes], out[axes], weight[2:], strict=True):
        stride = max(1, round(given / made))
        padding = max(0, (made - 1) * stride + kernel - given)
        places = stride * np.arange(made)[:, None] - padding // 2 + np.arange(kernel)  # (made, kernel)
        inside = (places >= 0) & (places < given)
        products *= int(inside.sum())
        share *= float(inside.any(axis=0).mean())
    return products, share
