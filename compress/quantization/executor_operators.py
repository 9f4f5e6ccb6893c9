"""ONNX operators as torch functions: the table at the end says which.

Each takes the inputs of its node (None: left out) and its attributes, and returns one tensor or a tuple of them. A form
of an operator that torch has no equal of is refused by name when it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.quantization import executor_shapes as shapes
from compress.quantization.executor_shapes import Attributes, Inputs, given, padded, refusal, whole_numbers

Operator = Callable[[Inputs, Attributes], Tensor | tuple[Tensor, ...]]

# Gates that onnx stacks along the rows of a recurrent weight, in torch's order: LSTM iofc -> ifgo, GRU zrh -> rzn.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda inputs, attributes: function(inputs[0])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda inputs, attributes: function(inputs[0], inputs[1])


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda inputs, attributes: reduce(function, inputs)


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.fmod(*inputs) if attributes.get("fmod", 0) else torch.remainder(*inputs)


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    return (
        torch.clamp(inputs[0], given(inputs, 1), given(inputs, 2))
        if any(x is not None for x in inputs[1:])
        else inputs[0]
    )


def _prelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, slope = inputs
    return torch.where(x < 0, slope * x, x)


def _hard_sigmoid(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.clamp(attributes.get("alpha", 0.2) * inputs[0] + attributes.get("beta", 0.5), 0, 1)


def _softmax(function: Callable[..., Tensor]) -> Operator:
    return lambda inputs, attributes: function(inputs[0], dim=attributes.get("axis", -1))


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a = inputs[0].t() if attributes.get("transA", 0) else inputs[0]
    b = inputs[1].t() if attributes.get("transB", 0) else inputs[1]
    product: Tensor = attributes.get("alpha", 1.0) * (a @ b)
    bias = given(inputs, 2)
    return product if bias is None else product + attributes.get("beta", 1.0) * bias


# Convolution and pooling: x (N, C, …), one kernel size an axis of space.


def _pads(x: Tensor, kernel: Sequence[int], attributes: Attributes) -> tuple[list[int], list[int]]:
    """What is added before and after each axis of space."""
    axes = len(kernel)
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        pads = [0] * 2 * axes if mode == "VALID" else [int(pad) for pad in attributes.get("pads", [0] * 2 * axes)]
        return pads[:axes], pads[axes:]
    strides, dilations = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    before, after = [], []
    for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return before, after


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight = inputs[:2]
    axes = weight.ndim - 2
    before, after = _pads(x, weight.shape[2:], attributes)
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    stride, dilation = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    group = attributes.get("group", 1)
    if before == after:
        return function(x, weight, given(inputs, 2), stride, before, dilation, group)
    return function(padded(x, before, after), weight, given(inputs, 2), stride, 0, dilation, group)


def _conv_transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight = inputs[:2]
    axes = weight.ndim - 2
    if "output_shape" in attributes or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise refusal("ConvTranspose", "output_shape or auto_pad")
    before, after = _pads(x, weight.shape[2:], attributes)
    if before != after:
        raise refusal("ConvTranspose", f"uneven pads {before}, {after}")
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    stride, extra = attributes.get("strides", [1] * axes), attributes.get("output_padding", [0] * axes)
    dilation = attributes.get("dilations", [1] * axes)
    return function(x, weight, given(inputs, 2), stride, before, extra, attributes.get("group", 1), dilation)


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, kernel = inputs[0], attributes["kernel_shape"]
    axes = len(kernel)
    if attributes.get("ceil_mode", 0):
        raise refusal("MaxPool", "ceil_mode")
    before, after = _pads(x, kernel, attributes)
    function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
    stride, dilation = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
    result: Tensor = function(padded(x, before, after, -math.inf), kernel, stride, 0, dilation)
    return result


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, kernel = inputs[0], attributes["kernel_shape"]
    if attributes.get("ceil_mode", 0) or any(d != 1 for d in attributes.get("dilations", [])):
        raise refusal("AveragePool", "ceil_mode or dilations")
    before, after = _pads(x, kernel, attributes)
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    stride = attributes.get("strides", [1] * len(kernel))
    mean: Tensor = function(padded(x, before, after), kernel, stride)
    if attributes.get("count_include_pad", 0) or not any((*before, *after)):
        return mean
    inside = padded(torch.ones_like(x[:1, :1]), before, after)  # share of each window that is no padding
    return mean / function(inside, kernel, stride)


def _global_pool(function: Callable[..., Tensor]) -> Operator:
    return lambda inputs, attributes: function(inputs[0], dim=tuple(range(2, inputs[0].ndim)), keepdim=True)


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def reduced(inputs: Inputs, attributes: Attributes) -> Tensor:
        axes = whole_numbers(inputs, 1, attributes, "axes")
        if not axes:
            if attributes.get("noop_with_empty_axes", 0):
                same: Tensor = inputs[0]
                return same
            axes = list(range(inputs[0].ndim))
        result: Tensor = function(inputs[0], dim=tuple(axes), keepdim=bool(attributes.get("keepdims", 1)))
        return result

    return reduced


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale, bias, mean, variance = inputs
    if attributes.get("training_mode", 0):
        raise refusal("BatchNormalization", "training_mode")
    return F.batch_norm(x, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axis = inputs[0], attributes.get("axis", -1)
    return F.layer_norm(x, x.shape[axis:], inputs[1], given(inputs, 2), attributes.get("epsilon", 1e-5))


def _instance_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    return F.instance_norm(inputs[0], weight=inputs[1], bias=inputs[2], eps=attributes.get("epsilon", 1e-5))


def _einsum(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.einsum(attributes["equation"], *inputs)


# Recurrent layers: x (T, N, D), weights (directions, gates * H, D or H), biases (directions, 2 * gates * H).


def _recurrent_weights(kind: str, inputs: Inputs, direction: int) -> list[Tensor]:
    """Of one direction, as torch has them: input and hidden weights, then the two biases."""

    def reordered(rows: Tensor) -> Tensor:
        blocks = rows.chunk(len(_GATES[kind]))
        return torch.cat([blocks[gate] for gate in _GATES[kind]])

    weights = [reordered(inputs[index][direction]) for index in (1, 2)]
    bias = given(inputs, 3)
    return weights if bias is None else weights + [reordered(half) for half in bias[direction].chunk(2)]


def _recurrent(kind: str, inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    odd = {"activations", "activation_alpha", "activation_beta", "clip", "input_forget", "layout"} & {
        name for name, value in attributes.items() if value
    }
    if odd or given(inputs, 4) is not None or given(inputs, 7) is not None:
        raise refusal(kind, ", ".join(sorted(odd)) or "sequence lengths or peepholes")
    x, recurrence = inputs[0], inputs[2]
    directions, hidden = recurrence.shape[0], recurrence.shape[2]
    backwards = attributes.get("direction", "forward") == "reverse"
    states = [
        torch.zeros(directions, x.shape[1], hidden, dtype=x.dtype, device=x.device) if s is None else s
        for s in (given(inputs, 5), given(inputs, 6))
    ]
    weights = [w for d in range(directions) for w in _recurrent_weights(kind, inputs, d)]
    # layers, dropout, training, bidirectional, batch first; cuDNN has its backward pass in training mode only
    options = (given(inputs, 3) is not None, 1, 0.0, True, directions == 2, False)
    x = x.flip(0) if backwards else x
    if kind == "LSTM":
        y, *last = torch._VF.lstm(x, tuple(states), weights, *options)
    else:
        y, *last = torch._VF.gru(x, states[0], weights, *options)
    y = y.flip(0) if backwards else y
    return (
        y.reshape(*y.shape[:2], directions, hidden).transpose(1, 2),
        *last,
    )  # (T, directions, N, H), then (directions, N, H)


def _lstm(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    return _recurrent("LSTM", inputs, attributes)


def _gru(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    if not attributes.get("linear_before_reset", 0):
        raise refusal("GRU", "linear_before_reset=0")
    return _recurrent("GRU", inputs, attributes)


OPERATORS: dict[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": shapes.cast,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Concat": shapes.concat,
    "ConstantOfShape": shapes.constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _unary(torch.cos),
    "Div": _binary(_div),
    "Dropout": _unary(lambda x: x),
    "Einsum": _einsum,
    "Elu": lambda inputs, attributes: F.elu(inputs[0], attributes.get("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": shapes.expand,
    "Flatten": shapes.flatten,
    "Floor": _unary(torch.floor),
    "GRU": _gru,
    "Gather": shapes.gather,
    "Gelu": lambda inputs, attributes: F.gelu(inputs[0], approximate=attributes.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": _unary(lambda x: x),
    "InstanceNormalization": _instance_norm,
    "LSTM": _lstm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda inputs, attributes: F.leaky_relu(inputs[0], attributes.get("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _binary(torch.matmul),
    "Max": _variadic(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _variadic(torch.minimum),
    "Mish": _unary(F.mish),
    "Mod": _mod,
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": _prelu,
    "Pad": shapes.pad,
    "Pow": _binary(torch.pow),
    "Range": shapes.range_of,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _unary(torch.relu),
    "Reshape": shapes.reshape,
    "Resize": shapes.resize,
    "Shape": shapes.shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Sin": _unary(torch.sin),
    "Size": shapes.size,
    "Slice": shapes.slice_of,
    "Softmax": _softmax(torch.softmax),
    "Softplus": _unary(F.softplus),
    "Split": shapes.split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": shapes.squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _variadic(torch.add),
    "Tanh": _unary(torch.tanh),
    "Tile": lambda inputs, attributes: torch.tile(inputs[0], inputs[1].tolist()),
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.unsqueeze,
    "Where": lambda inputs, attributes: torch.where(*inputs),
}
