"""One layer as an ONNX model, and how long ONNX Runtime takes for it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from compress.errors import MeasurementError
from compress.measurement.turns import undisturbed
from compress.pruning.values import LayerUse

_OPSET, _IR = 17, 8
_SECONDS = 0.02  # of timed runs of one layer, within
_RUNS = (8, 60)  # these many
_WARM = 2  # runs that are not counted

_CONV = tuple(f"conv{n}d" for n in (1, 2, 3))
_TRANSPOSED = tuple(f"conv_transpose{n}d" for n in (1, 2, 3))
_MATMUL = ("matmul", "mm", "addmm")
MEASURED = frozenset({*_CONV, *_TRANSPOSED, *_MATMUL, "linear"})


@dataclass(frozen=True)
class Layer:
    """An ONNX operator with one weight, at fixed shapes. Its text is its key in the cache."""

    operator: str  # Conv, ConvTranspose, MatMul
    data: tuple[int, ...]
    weight: tuple[int, ...]
    attributes: tuple[tuple[str, int | tuple[int, ...]], ...] = ()

    def __str__(self) -> str:
        options = "".join(f" {name}={value}" for name, value in self.attributes)
        return f"{self.operator} {self.data} x {self.weight}{options}"


def layer_at(use: LayerUse, first: int, second: int, whole_groups: bool = False) -> Layer:
    """The layer of one call where the first two axes of its weight have these lengths, for one sample.

    Args:
        use: A call of one of ``MEASURED``.
        first: Of axis 0 of the weight.
        second: Of axis 1.
        whole_groups: Of a grouped convolution: axis 0 loses whole groups, so that there are fewer of them.
    """
    if use.operator not in (*_CONV, *_TRANSPOSED):
        rows = max(1, round(use.macs / prod(use.weight_shape)))
        out, into = (second, first) if use.operator in _MATMUL else (first, second)
        return Layer("MatMul", (rows, into), (into, out))
    transposed = use.operator in _TRANSPOSED
    kernel = use.weight_shape[2:]
    spatial = use.input_shape[-len(kernel) :]
    positions = spatial if transposed else use.output_shape[-len(kernel) :]
    # More than 1 where the model folds another axis into the batch.
    batch = max(1, round(use.macs / (prod(positions) * prod(use.weight_shape))))
    groups = int(use.arguments.get("groups", 1))
    if whole_groups:
        groups = max(1, groups * first // use.weight_shape[0])
    channels = first if transposed else second * groups
    return Layer(
        operator="ConvTranspose" if transposed else "Conv",
        data=(batch, channels, *spatial),
        weight=(first, second, *kernel),
        attributes=(("group", groups), *_geometry(use.arguments, kernel, transposed)),
    )


def onnx_model(layer: Layer) -> bytes:
    """``layer`` as an ONNX file of one node, with random weights: zeros might be quicker."""
    weight = np.random.default_rng(0).standard_normal(layer.weight).astype(np.float32)
    node = onnx.helper.make_node(layer.operator, ["x", "w"], ["y"], **dict(layer.attributes))
    kind = onnx.TensorProto.FLOAT
    source = onnx.helper.make_tensor_value_info("x", kind, layer.data)
    result = onnx.helper.make_tensor_value_info("y", kind, [None] * len(layer.data))
    graph = onnx.helper.make_graph([node], "layer", [source], [result], [onnx.numpy_helper.from_array(weight, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR)
    data: bytes = model.SerializeToString()
    return data


def time_layer(layer: Layer, threads: int) -> float:
    """Milliseconds that ONNX Runtime's CPU kernel takes for ``layer``: the mean of its fastest quarter of runs.

    The time is that of the kernels, from the profiler, without the conversion between memory layouts that a
    convolution needs when it stands alone, but not between other convolutions.

    Raises:
        MeasurementError: ONNX Runtime does not run the layer.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "layer")
        try:
            session = onnxruntime.InferenceSession(onnx_model(layer), options, providers=["CPUExecutionProvider"])
            feed = {"x": np.random.default_rng(1).standard_normal(layer.data).astype(np.float32)}
            seconds = min(_seconds(session, feed) for _ in range(_WARM))
            for _ in range(int(np.clip(_SECONDS / seconds, *_RUNS))):
                session.run(None, feed)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise MeasurementError(f"cannot time {layer}: {str(error).strip().splitlines()[0]}") from error
        events = json.loads(Path(session.end_profiling()).read_text())
    runs = np.asarray(_kernel_times(events)[_WARM:])
    if not len(runs):
        raise MeasurementError(f"cannot time {layer}: the profile of ONNX Runtime has no kernels.")
    return undisturbed(runs) / 1e3  # a model's own p50 is put in by `LatencyModel.calibrated`


def _seconds(session: Any, feed: dict[str, NDArray[np.float32]]) -> float:
    started = perf_counter()
    session.run(None, feed)
    return perf_counter() - started


def _kernel_times(events: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Microseconds of each run, all kernels together but for those that convert layouts."""
    by_node: dict[str, list[float]] = {}
    for event in events:
        operator = event.get("args", {}).get("op_name", "")
        if event.get("name", "").endswith("_kernel_time") and not operator.startswith("Reorder"):
            by_node.setdefault(event["name"], []).append(float(event["dur"]))
    return np.sum(list(by_node.values()), axis=0) if by_node else np.zeros(0)


def _geometry(
    arguments: Mapping[str, Any], kernel: tuple[int, ...], transposed: bool
) -> list[tuple[str, tuple[int, ...]]]:
    """ONNX attributes for the arguments of a torch convolution."""
    axes = len(kernel)
    dilations = _per_axis(arguments.get("dilation", 1), axes)
    padding = arguments.get("padding", 0)
    if padding == "same":  # torch puts the odd one at the end
        whole = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = (*(w // 2 for w in whole), *(w - w // 2 for w in whole))
    else:
        pads = _per_axis(0 if padding == "valid" else padding, axes) * 2
    found = [("strides", _per_axis(arguments.get("stride", 1), axes)), ("pads", pads), ("dilations", dilations)]
    if transposed:
        found.append(("output_padding", _per_axis(arguments.get("output_padding", 0), axes)))
    return found


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),)
    return values * axes if len(values) == 1 else values
