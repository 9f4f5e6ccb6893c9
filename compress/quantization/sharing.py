"""Weight sharing: each layer keeps a few distinct weights (Han et al. 2016, "Deep Compression").

The file holds the layer's codebook and, for each element, the number of its value in it, half a byte or a byte. A zip
brings that down to the entropy of the numbers: below 4 bits at 16 values.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.data.splits import Split
from compress.errors import QuantizationError, RecipeError
from compress.models.counts import RECURRENT
from compress.models.onnx_file import Array
from compress.quantization.clustering import Codebook, cluster, levels_of, nearest_of
from compress.quantization.executor import OnnxModule, check, with_weights_of
from compress.quantization.graph import array, channel_axis, constants, copy_of, replace_constants
from compress.training.finetune import FineTuneConfig, finetune, loss_of
from compress.training.teacher import Teacher
from compress.values import Progress, silent

logger = logging.getLogger(__name__)

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", *RECURRENT)
_SMALLEST = 128  # elements: below, the codebook and the two nodes cost more bytes than sharing saves
_MOST = 256  # values: their numbers are bytes
_BATCH = 256  # samples, where nothing is learned

_NUMBERS, _CODEBOOK, _SCALE = "_quantized", "_codebook", "_scale"  # what the stored tensors of a weight end in
_SHIFTS, _SIXTEEN = "unpacking_shifts", "unpacking_sixteen"
_UNPACKING = {_SHIFTS: np.array([[1, 16]], np.int32), _SIXTEEN: np.array([16], np.int32)}  # (p / shifts) mod 16
_NODES = 80  # zipped bytes of the three more nodes that unpacking takes
_TUNING = FineTuneConfig(batch_size=64, learning_rate=0.002, distillation=0.7)


@dataclass(frozen=True)
class SharingConfig:
    """How many values are left, and how they are learned."""

    values: int = 16  # distinct weights of a layer, 2..256; zero is one of them where the layer has zeros
    scope: Literal["layer", "channel"] = "layer"  # channel: a layer's values, times a scale for each output channel
    steps: int = 300  # optimizer steps that fine-tune the values, 0 or more; 0: as k-means found them
    exclude: tuple[str, ...] = ()  # names of nodes whose weights stay as they are
    finetune: FineTuneConfig = field(default=_TUNING)

    def __post_init__(self) -> None:
        problems = []
        if not 2 <= self.values <= _MOST:
            problems.append(f"values={self.values}: allowed are 2 to {_MOST}")
        if self.steps < 0:
            problems.append(f"steps={self.steps}: allowed are whole numbers from 0")
        if problems:
            raise RecipeError("; ".join(problems) + ".")


@dataclass(frozen=True)
class Shared:
    """A graph with shared weights, before it is stored as such."""

    proto: onnx.ModelProto  # float, the shared values in place: what an int8 form is made from
    codebooks: Mapping[str, Codebook]  # by the names of the weights
    figures: Mapping[str, float]


def share_weights(
    proto: onnx.ModelProto,
    config: SharingConfig,
    train: Split | None = None,
    held_out: Split | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> Shared:
    """Share the weights of each large layer of a float graph; zeros stay zeros, biases and small layers float.

    The values are one-dimensional k-means of the layer's weights. With ``train`` and ``held_out`` they then learn, with
    the biases, to answer as the graph did before: the gradient of a value is the sum of its weights' gradients. What
    was learned is kept only where the loss on ``held_out`` is lower than that of k-means.

    Raises:
        QuantizationError: no weight is large enough, or the graph cannot be trained in torch.
    """
    axes = _weights(proto, config.exclude)
    if not axes:
        raise QuantizationError(
            f"weights cannot be shared: no float32 weight has {_SMALLEST} elements or more. Ship the float file."
        )
    tensors = constants(proto)
    codebooks = {}
    for done, (name, axis) in enumerate(axes.items()):
        progress("clustering weights", done, len(axes), name)
        codebooks[name] = cluster(array(tensors[name]), config.values, axis if config.scope == "channel" else None)
    progress("clustering weights", len(axes), len(axes))
    shared = Shared(_dense(proto, codebooks), codebooks, {"layers": len(axes)})
    if train is None or held_out is None or config.steps == 0:
        return shared
    return _learned(proto, shared, config, train, held_out, seed=seed, device=device, progress=progress)


def store(shared: Shared) -> onnx.ModelProto:
    """The graph with each shared weight as ``Gather(codebook, Cast(numbers))``, times its channels' scale.

    ONNX Runtime folds these nodes at load (from the basic optimization level on): latency is the float file's. Up to 16
    values, two numbers are packed in a byte where a zip is smaller for it, by 4 to 12 %: deflate codes pairs better.
    """
    graph = shared.proto.graph
    made, nodes, tensors = copy_of(shared.proto), [], []
    for tensor in graph.initializer:
        book = shared.codebooks.get(tensor.name)
        if book is None:
            tensors.append(tensor)
            continue
        restoring, stored = _restoring(tensor.name, book)
        nodes += restoring
        tensors += stored
    if any(node.op_type == "Mod" for node in nodes):
        tensors += [numpy_helper.from_array(value, name) for name, value in _UNPACKING.items()]
    del made.graph.initializer[:], made.graph.node[:]
    made.graph.initializer.extend(tensors)
    made.graph.node.extend([*nodes, *graph.node])
    return made


def _restoring(name: str, book: Codebook) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes that restore one weight, and what they take."""
    stored: dict[str, Array] = {f"{name}{_NUMBERS}": book.indices, f"{name}{_CODEBOOK}": book.values}
    # operator, inputs after the first, what is made
    steps: list[tuple[str, list[str], str]] = [("Cast", [], "cast"), ("Gather", [], "looked_up")]
    packed = _packed(book)
    if packed is not None:
        stored |= {f"{name}{_NUMBERS}": packed, f"{name}_shape": np.array(book.indices.shape, np.int64)}
        steps[1:1] = [("Div", [_SHIFTS], "shifted"), ("Mod", [_SIXTEEN], "unpacked")]
        steps.append(("Reshape", [f"{name}_shape"], "reshaped"))
    if book.scale is not None:
        stored[f"{name}{_SCALE}"] = book.scale
        steps.append(("Mul", [f"{name}{_SCALE}"], "scaled"))
    nodes, value = [], f"{name}{_NUMBERS}"
    for position, (operator, others, made) in enumerate(steps):
        inputs = [f"{name}{_CODEBOOK}", value] if operator == "Gather" else [value, *others]
        value = name if position == len(steps) - 1 else f"{name}_{made}"
        options = {"to": TensorProto.INT32} if operator == "Cast" else {}
        nodes.append(helper.make_node(operator, inputs, [value], **options))
    return nodes, [numpy_helper.from_array(np.ascontiguousarray(v), key) for key, v in stored.items()]


def _packed(book: Codebook) -> NDArray[np.uint8] | None:
    """Two numbers a byte, (elements / 2, 1), the first in the low half; None where that is impossible or no smaller."""
    flat = book.indices.ravel()
    if len(book.values) > 16 or flat.size % 2:
        return None
    packed = flat[0::2] | flat[1::2] << 4
    saved = len(zlib.compress(flat.tobytes(), 9)) - len(zlib.compress(packed.tobytes(), 9))
    return packed.reshape(-1, 1).astype(np.uint8) if saved > _NODES else None


def share_quantized(proto: onnx.ModelProto, values: int) -> Shared:
    """Leave each large int8 weight of a QDQ graph at most ``values`` distinct values: int8 kernels and a small zip.

    The error is weighed by the scales of the channels. Zeros, where the zero point is 0, stay zeros. To be stored by
    `store`, as float weights are: ONNX Runtime folds the nodes before it fuses the int8 kernels.
    """
    tensors = constants(proto)
    codebooks = {}
    for node in proto.graph.node:
        weight = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.data_type != TensorProto.INT8 or math.prod(weight.dims) < _SMALLEST:
            continue
        integers = array(weight)
        scale = array(tensors[node.input[1]]).astype(np.float64)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if i == axis else 1 for i in range(integers.ndim)] if scale.size > 1 else [1] * integers.ndim
        importance = np.broadcast_to(np.square(scale).reshape(shape), integers.shape)
        levels = np.unique(np.rint(levels_of(integers, importance, values)))
        codebooks[weight.name] = Codebook(levels.astype(np.int8), nearest_of(integers, levels).astype(np.uint8))
    return Shared(_dense(proto, codebooks), codebooks, {"layers": len(codebooks)})


def _weights(proto: onnx.ModelProto, exclude: tuple[str, ...]) -> dict[str, int]:
    """Name -> channel axis of the large float32 initializers that only weighted operators take."""
    large = {
        tensor.name: len(tensor.dims)
        for tensor in proto.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2 and math.prod(tensor.dims) >= _SMALLEST
    }
    axes: dict[str, int] = {}
    kept = set()
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name in large and (node.op_type not in _WEIGHTED or index > 2 or node.name in exclude):
                kept.add(name)
            elif name in large:
                axes[name] = channel_axis(node, index, large[name])
    return {name: axis for name, axis in axes.items() if name not in kept}


def _dense(proto: onnx.ModelProto, codebooks: Mapping[str, Codebook]) -> onnx.ModelProto:
    copy = copy_of(proto)
    replace_constants(copy, {name: book.weight for name, book in codebooks.items()})
    return copy


class _Lookup(nn.Module):
    """Parametrization: a weight is its codebook, looked up. Learned in units of the values, so that one rate fits all.

    A value of zero stays zero.
    """

    numbers: Tensor
    scale: Tensor
    unit: Tensor

    def __init__(self, book: Codebook) -> None:
        super().__init__()
        values = torch.from_numpy(book.values)
        size = values.square().mean().sqrt()
        self.register_buffer("numbers", torch.from_numpy(book.indices.astype(np.int64)))
        self.register_buffer("unit", torch.where(values != 0, size, 0.0))
        self.register_buffer("scale", torch.ones(()) if book.scale is None else torch.from_numpy(book.scale))
        self._start = values / size.clamp_min(torch.finfo(size.dtype).tiny)

    def values(self, learned: Tensor) -> Tensor:
        return learned * self.unit

    def forward(self, learned: Tensor) -> Tensor:
        # take's gradient adds up by value in one pass; that of values[numbers] takes a hundred times as long on a CPU
        return self.values(learned).take(self.numbers) * self.scale

    def right_inverse(self, weight: Tensor) -> Tensor:
        return self._start


def _learned(
    proto: onnx.ModelProto,
    shared: Shared,
    config: SharingConfig,
    train: Split,
    held_out: Split,
    *,
    seed: int,
    device: str,
    progress: Progress,
) -> Shared:
    """The same graph with learned values, where they are better than those it came with."""
    student, original = _student(shared), OnnxModule(proto)
    samples = held_out.fetch(held_out.indices[:_BATCH])[0]
    check(original, proto, [{name: column.numpy() for name, column in zip(original.input_names, samples, strict=True)}])
    train = train.take(config.steps * config.finetune.batch_size)  # no more are seen: the teacher is spared the others
    teacher, judge = (Teacher(original, split, device=device, progress=progress) for split in (train, held_out))
    before = _loss(student, judge, held_out, config.finetune, device)
    finetune(
        student,
        teacher,
        train,
        config.finetune,
        steps=config.steps,
        seed=seed,
        device=device,
        progress=progress,
        label="learning shared weights",
    )
    after = _loss(student, judge, held_out, config.finetune, device)
    figures = {**shared.figures, "held_out_loss_kmeans": before, "held_out_loss_learned": after}
    if not after < before:
        logger.info("shared weights stay as k-means found them: held-out loss %.4f, learned %.4f", before, after)
        return replace(shared, figures=figures)
    codebooks = {name: _looked_up(student, name, book) for name, book in shared.codebooks.items()}
    return Shared(_dense(with_weights_of(shared.proto, student), codebooks), codebooks, figures)


def _student(shared: Shared) -> OnnxModule:
    """The graph as a module whose shared weights are their values, and in which every zero stays one."""
    student = OnnxModule(shared.proto)
    for name, book in shared.codebooks.items():
        parametrize.register_parametrization(student, student.slot(name), _Lookup(book))
    for parameter in student.weights().values():
        hold = partial(_hold, zeros=parameter.detach() == 0)
        parameter.register_hook(hold)  # type: ignore[no-untyped-call]
    return student


def _hold(gradient: Tensor, zeros: Tensor) -> Tensor:
    return gradient.masked_fill(zeros.to(gradient.device), 0.0)


def _looked_up(student: OnnxModule, name: str, book: Codebook) -> Codebook:
    place = f"parametrizations.{student.slot(name)}"
    lookup, learned = student.get_submodule(f"{place}.0"), student.get_parameter(f"{place}.original")
    assert isinstance(lookup, _Lookup)
    return replace(book, values=lookup.values(learned.detach()).numpy().astype(np.float32))


@torch.no_grad()
def _loss(student: nn.Module, judge: Teacher, split: Split, config: FineTuneConfig, device: str) -> float:
    """The mean training loss over a split; the student is back on the CPU afterwards."""
    student.eval().to(device)
    total, done = 0.0, 0
    for inputs, labels in split.batches(_BATCH):
        moved = tuple(column.to(device) for column in inputs)
        theirs = judge.outputs(torch.arange(done, done + len(moved[0])), inputs)
        ours = student(*moved)
        total += float(loss_of(ours, theirs, None if labels is None else labels.to(device), config)) * len(ours)
        done += len(ours)
    student.to("cpu")
    return total / len(split)
