"""An ONNX graph as a torch module, so that what learns after export learns from an .onnx file too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from compress.errors import QuantizationError
from compress.models.counts import stored_weights
from compress.models.onnx_file import Array, first_line, opset, run, serialize
from compress.quantization.executor_operators import OPERATORS, Operator
from compress.quantization.graph import copy_of, replace_constants

_OLDEST_OPSET = 13  # the first in which Softmax, Squeeze and ReduceSum are as they are now
_ONNX_DOMAINS = ("", "ai.onnx")
_STATISTICS = {"BatchNormalization": (3, 4)}  # inputs that are measured, not learned


@dataclass(frozen=True)
class _Step:
    """One node, ready to run."""

    name: str
    operator: str
    function: Operator
    attributes: dict[str, Any]
    inputs: tuple[str, ...]  # "": left out
    outputs: tuple[str, ...]


class OnnxModule(nn.Module):
    """Runs a float ONNX graph (opset 13 or later) in torch; differentiable in its weights and inputs.

    The float weights and biases are parameters, everything else that is constant (shapes, statistics, the numbers of a
    formula) a buffer. Normalisation uses its stored statistics and dropout is off, whatever the mode: that is what the
    file computes. Compare it with onnxruntime (`check`) before its results are believed.

    Raises:
        QuantizationError: names the operators that it cannot run, or the opset that is too old.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__()
        _refuse_unknown(proto)
        graph = proto.graph
        self._steps = tuple(_step(node) for node in graph.node if node.op_type != "Constant")
        self._outputs = tuple(value.name for value in graph.output)
        initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        written = {node.output[0]: _constant(node) for node in graph.node if node.op_type == "Constant"}
        self.input_names = tuple(value.name for value in graph.input if value.name not in initializers)
        learned = stored_weights(proto).keys() & initializers.keys() - _statistics(proto)
        self._slots: dict[str, str] = {}  # name in the graph -> of the attribute: torch allows no dots in it
        for name, values in (initializers | written).items():
            self._add(name, torch.from_numpy(np.array(values)), name in learned)

    def _add(self, name: str, values: Tensor, learned: bool) -> None:
        self._slots[name] = slot = f"{'weight' if learned else 'constant'}_{len(self._slots)}"
        if learned and values.is_floating_point():
            self.register_parameter(slot, nn.Parameter(values))
        else:
            self.register_buffer(slot, values)

    def slot(self, name: str) -> str:
        """The attribute that holds the initializer ``name``: what `torch.nn.utils.parametrize` is told."""
        return self._slots[name]

    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters by the names of their initializers; those under a parametrization are not among them."""
        held = dict(self.named_parameters(recurse=False))
        return {name: held[slot] for name, slot in self._slots.items() if slot in held}

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first output of the graph, from its inputs in their order."""
        return self.outputs(*inputs)[0]

    def outputs(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Every output of the graph, in order."""
        values: dict[str, Tensor | None] = {"": None} | dict(zip(self.input_names, inputs, strict=True))
        values |= {name: getattr(self, slot) for name, slot in self._slots.items()}
        for step in self._steps:
            results = step.function([values[name] for name in step.inputs], step.attributes)
            for name, value in zip(step.outputs, results if isinstance(results, tuple) else (results,), strict=False):
                values[name] = value
        found = (values[name] for name in self._outputs)
        return tuple(value for value in found if value is not None)

    def from_feeds(self, feeds: dict[str, Array]) -> tuple[Tensor, ...]:
        """Every output for inputs by name."""
        return self.outputs(*(torch.from_numpy(np.array(feeds[name])) for name in self.input_names))


def check(
    module: OnnxModule, proto: onnx.ModelProto, feeds: Iterable[dict[str, Array]], tolerance: float = 1e-4
) -> float:
    """Compare a module with onnxruntime on batches of inputs by name.

    Returns:
        The largest difference of any output, as a fraction of the largest absolute value of that output.

    Raises:
        QuantizationError: the module cannot run the graph, or differs by more than ``tolerance``.
    """
    batches = list(feeds)
    worst = 0.0
    for feed, expected in zip(batches, run(serialize(proto), batches), strict=True):
        try:
            with torch.no_grad():
                found = [output.numpy() for output in module.from_feeds(feed)]
        except QuantizationError:
            raise
        except Exception as error:  # torch's errors have no common base
            raise QuantizationError(
                f"the ONNX graph does not run in torch: {first_line(error)}. Learn before export, from the torch model."
            ) from error
        worst = max(worst, *(_difference(*pair) for pair in zip(found, expected, strict=True)))
    if not worst <= tolerance:
        raise QuantizationError(
            f"the ONNX graph gives other results in torch than in onnxruntime: {worst:.1e} of the largest output, "
            f"allowed are {tolerance:.0e}. Learn before export, from the torch model, and please report this model."
        )
    return worst


def with_weights_of(proto: onnx.ModelProto, module: OnnxModule) -> onnx.ModelProto:
    """A copy of the graph with the weights that the module has learned."""
    copy = copy_of(proto)
    learned = {name: getattr(module, module.slot(name)).detach().cpu().numpy() for name in module.weights()}
    replace_constants(copy, learned)
    return copy


def _difference(found: Array, expected: Array) -> float:
    if found.shape != expected.shape:
        return float("inf")
    scale = max(float(np.abs(expected).max(initial=0)), float(np.finfo(np.float32).tiny))
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0)) / scale


def _refuse_unknown(proto: onnx.ModelProto) -> None:
    known = OPERATORS.keys() | {"Constant"}
    unknown = {
        f"{node.domain}.{node.op_type}" if node.domain not in _ONNX_DOMAINS else node.op_type
        for node in proto.graph.node
        if node.domain not in _ONNX_DOMAINS or node.op_type not in known
    }
    if unknown:
        raise QuantizationError(
            f"the ONNX graph cannot be trained: it has {', '.join(sorted(unknown))}, which torch has no equal of here. "
            "Leave out what learns on the file, or learn before export, from the torch model."
        )
    if opset(proto) < _OLDEST_OPSET:
        raise QuantizationError(
            f"the ONNX graph cannot be trained: its opset is {opset(proto)}, allowed are {_OLDEST_OPSET} and later. "
            "Convert it with onnx.version_converter, or export it again."
        )


def _step(node: onnx.NodeProto) -> _Step:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()}
    if node.op_type == "Split":
        plain.setdefault("num_outputs", len(node.output))
    return _Step(node.name, node.op_type, OPERATORS[node.op_type], plain, tuple(node.input), tuple(node.output))


def _constant(node: onnx.NodeProto) -> Array:
    """The value of a Constant node, in any of the forms that it may be written in."""
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return np.asarray(numpy_helper.to_array(value))
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name not in kinds:
        raise QuantizationError(f"constant {node.output[0]!r} is a {attribute.name}, which torch has no equal of.")
    return np.asarray(value, kinds[attribute.name])


def _statistics(proto: onnx.ModelProto) -> set[str]:
    return {
        node.input[index]
        for node in proto.graph.node
        for index in _STATISTICS.get(node.op_type, ())
        if index < len(node.input)
    }
