"""The ONNX operators that move and count elements, as torch functions. See `executor_operators` for all others.

Whole numbers that are computed from shapes are tensors too, as they are in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from compress.errors import QuantizationError

Inputs = list[Any]  # Tensor, or None where an optional input was left out
Attributes = dict[str, Any]


def refusal(operator: str, what: str) -> QuantizationError:
    return QuantizationError(
        f"the ONNX graph cannot be trained: {operator} with {what} has no equal in torch here. "
        "Leave out what learns on the file, or learn before export, from the torch model."
    )


def given(inputs: Inputs, index: int) -> Any:
    return inputs[index] if index < len(inputs) else None


def whole_numbers(inputs: Inputs, index: int, attributes: Attributes, name: str) -> list[int] | None:
    """Whole numbers that older opsets have as an attribute and newer ones as an input."""
    value = given(inputs, index)
    if value is not None:
        return [int(i) for i in value.reshape(-1).tolist()]
    return [int(i) for i in attributes[name]] if name in attributes else None


def padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    flat = [pad for pair in zip(reversed(before), reversed(after), strict=True) for pad in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = inputs[0]
    axis = attributes.get("axis", 1) % (x.ndim + 1)
    return torch.reshape(x, (math.prod(x.shape[:axis]), -1))


def reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = inputs[0]
    sizes = [int(size) for size in inputs[1].tolist()]
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return torch.reshape(x, sizes)


def transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.permute(inputs[0], attributes.get("perm", list(reversed(range(inputs[0].ndim)))))


def concat(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.cat(inputs, dim=attributes["axis"])


def split(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    x, axis = inputs[0], attributes.get("axis", 0)
    sizes = whole_numbers(inputs, 1, attributes, "split") or math.ceil(x.shape[axis] / attributes["num_outputs"])
    return torch.split(x, sizes, dim=axis)


def slice_of(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = inputs[0]
    starts, ends = inputs[1].tolist(), inputs[2].tolist()
    axes = whole_numbers(inputs, 3, {}, "axes") or list(range(len(starts)))
    steps = whole_numbers(inputs, 4, {}, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # A negative end beyond the start means "to the very first"; Python's slice would count it from the end again.
        stop = None if step < 0 and end < -x.shape[axis] else end
        kept = range(*slice(start, stop, step).indices(x.shape[axis]))
        if step == 1:
            x = x.narrow(axis, kept.start, len(kept))
        else:
            x = x.index_select(axis, torch.tensor(list(kept), dtype=torch.int64, device=x.device))
    result: Tensor = x
    return result


def gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, indices = inputs
    axis = attributes.get("axis", 0) % x.ndim
    positive = torch.where(indices < 0, indices + x.shape[axis], indices)
    found: Tensor = x.index_select(axis, positive.reshape(-1))
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    sizes = inputs[0].shape[attributes.get("start", 0) : attributes.get("end")]
    return torch.tensor(list(sizes), dtype=torch.int64, device=inputs[0].device)


def size(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.tensor(inputs[0].numel(), dtype=torch.int64, device=inputs[0].device)


def expand(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, sizes = inputs[0], inputs[1].tolist()
    return torch.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(sizes)))


def squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    axes = whole_numbers(inputs, 1, attributes, "axes")
    return torch.squeeze(inputs[0]) if axes is None else torch.squeeze(inputs[0], dim=tuple(axes))


def unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = inputs[0]
    axes = whole_numbers(inputs, 1, attributes, "axes") or []
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = torch.unsqueeze(x, axis)
    result: Tensor = x
    return result


def _dtype(element: int) -> torch.dtype:
    found = getattr(torch, helper.tensor_dtype_to_np_dtype(element).name, None)
    if not isinstance(found, torch.dtype):
        raise refusal("Cast", f"type {TensorProto.DataType.Name(element)}")
    return found


def cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    result: Tensor = inputs[0].to(_dtype(attributes["to"]))
    return result


def constant_of_shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    value = torch.zeros(1) if "value" not in attributes else torch.tensor(numpy_helper.to_array(attributes["value"]))
    return value.to(inputs[0].device).expand(inputs[0].tolist())


def range_of(inputs: Inputs, attributes: Attributes) -> Tensor:
    start, limit, step = (x.item() for x in inputs)
    return torch.arange(start, limit, step, dtype=inputs[0].dtype, device=inputs[0].device)


def pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = inputs[0]
    pads = whole_numbers(inputs, 1, attributes, "pads") or []
    axes = whole_numbers(inputs, 3, {}, "axes") or list(range(x.ndim))
    before, after = [0] * x.ndim, [0] * x.ndim
    for position, axis in enumerate(axes):
        before[axis], after[axis] = pads[position], pads[position + len(axes)]
    mode = attributes.get("mode", "constant")
    if mode == "constant":
        value = given(inputs, 2)
        return padded(x, before, after, 0.0 if value is None else value.item())
    space = [axis for axis in range(x.ndim) if axis >= 2 or before[axis] or after[axis]]
    if mode not in ("reflect", "edge") or any(axis < 2 for axis in space):
        raise refusal("Pad", f"mode {mode} of axes {space}")
    flat = [pad for axis in reversed(space) for pad in (before[axis], after[axis])]
    return F.pad(x, flat, mode="replicate" if mode == "edge" else mode)


def resize(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Nearest and linear as torch has them: whole factors for nearest, half-pixel coordinates for linear."""
    x, scales, sizes = inputs[0], given(inputs, 2), given(inputs, 3)
    target = [round(n * s) for n, s in zip(x.shape, scales.tolist(), strict=True)] if sizes is None else sizes.tolist()
    mode, place = attributes.get("mode", "nearest"), attributes.get("coordinate_transformation_mode", "half_pixel")
    whole = all(t % n == 0 for t, n in zip(target, x.shape, strict=True))
    plain = target[:2] == list(x.shape[:2]) and not attributes.get("antialias", 0)
    if plain and mode == "nearest" and whole:
        return F.interpolate(x, target[2:], mode="nearest")
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}.get(x.ndim)
    if plain and mode == "linear" and linear and place in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return F.interpolate(x, target[2:], mode=linear, align_corners=place == "align_corners")
    raise refusal("Resize", f"mode {mode}, coordinates {place}, from {list(x.shape)} to {target}")
