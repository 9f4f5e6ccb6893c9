"""Zip bytes before anything is exported: what the weights deflate to, and what the graph around them weighs.

Deflate sees a sparse float file as runs of zero bytes between bytes that are nearly random, and an int8 one as symbols
of a narrow distribution. Neither has a formula that holds within a few percent for real weights, so the weights are
brought into the form in which they will be stored, and deflated: all of a small model, an even sample of a large one.
benchmarks/size_model.py compares with files.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.sparsity.masks import Masks

# How weights are stored: float32; int8 with one scale a tensor; the same with 7 bits (``reduce_range``); with one scale
# an output channel; or restored to float in the graph (weight-only), with one scale where that is precise enough.
Stored = Literal["float32", "int8", "int8-reduced", "int8-per-channel", "int8-weights"]
Array = NDArray[Any]

# Elements, of all tensors together. Level 9, that of the zip, takes 1 to 2 s for 4 MB that are half zeros, ten times as
# long as level 6: it gives their ratio on a few, and level 6 the rest. 0.3 s at most, together.
_FEW, _MANY = 2**16, 2**20
_BLOCK = 2**11  # elements in a row that a sample takes: longer than the runs of zeros
_GRAPH = 500  # bytes of a zip with one node, and
_LAYER = {"float32": 40, "int8": 80, "int8-reduced": 80, "int8-per-channel": 80, "int8-weights": 50}  # of each layer's
_INPUT_SCALE = np.float32(1 / 81)  # any number that is no power of two: it makes other digits of the same entropy
_BIAS = 2**13  # a bias in int32, on the scale of the products, has about 13 bits
_SMALLEST = 128  # elements: weight-only quantization leaves smaller tensors as they are
_ENOUGH_DB = 35.0  # signal to quantization noise that lets weight-only quantization do with one scale

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def predict_zip_bytes(module: nn.Module, *, masks: Masks | None = None, stored: Stored = "float32") -> int:
    """Bytes of the zip that would ship if ``module`` were exported now, and quantized unless float32 is asked for.

    Args:
        module: Any; left as it is.
        masks: Weights to take for zero, as `compress.sparsity.masks.make_masks` returns them: what a sparsity would
            give is asked without applying it.
        stored: See `Stored`. Dynamic quantization, which the Linear and LSTM nets get, is "int8" here too.
    """
    return _predict(_Content.of(module, masks or {}), stored)


def predict_all(module: nn.Module, *, masks: Masks | None = None) -> dict[Stored, int]:
    """`predict_zip_bytes` for each way to store."""
    content = _Content.of(module, masks or {})
    return {stored: _predict(content, stored) for stored in get_args(Stored)}


def _predict(content: _Content, stored: Stored) -> int:
    return round(_deflated(content.stored(stored)) + _GRAPH + content.layers * _LAYER[stored])


@dataclass(frozen=True)
class _Content:
    """What export makes of a module."""

    tensors: tuple[Array, ...]  # float32, in the order of the graph; two axes or more: output channels first
    embeddings: tuple[bool, ...]  # for each tensor, whether it is a table of vectors
    layers: int  # with weights
    static: bool  # whether quantization makes biases integers: convolutional nets, with ranges from data

    @classmethod
    def of(cls, module: nn.Module, masks: Masks) -> _Content:
        factors, gone = _folded(module)
        tables = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Embedding)}
        tensors, embeddings = [], []
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            if name not in gone and tensor.is_floating_point():
                tensors.append(_values(tensor, masks.get(name), factors.get(name)))
                embeddings.append(name in tables)
        layers = list(module.modules())
        weighted = sum(bool(layer._parameters) and not isinstance(layer, _NORMS) for layer in layers)
        convolutions = sum(isinstance(layer, _CONVOLUTIONS) for layer in layers)
        others = sum(isinstance(layer, nn.Linear) for layer in layers)
        static = convolutions > others and not any(isinstance(layer, nn.RNNBase) for layer in layers)
        return cls(tuple(tensors), tuple(embeddings), weighted, static)

    def stored(self, how: Stored) -> list[Array]:
        """The tensors of the file, flat."""
        integer_biases = self.static and how in ("int8", "int8-reduced", "int8-per-channel")
        weights: list[Array] = []
        biases: list[Array] = []
        for tensor, embedding in zip(self.tensors, self.embeddings, strict=True):
            if tensor.ndim < 2:
                # onnxruntime's static quantizer writes biases after all weights, the others leave them between.
                (biases if integer_biases else weights).append(_integer(tensor) if integer_biases else tensor)
                continue
            values, scales = _quantized(tensor, how, per_channel=not embedding)
            weights.append(values.reshape(-1))
            if scales.size > 1:
                weights.append(scales.reshape(-1))
            if scales.size > 1 and integer_biases:  # the biases' scales: those of the weights times the input's
                weights.append(_INPUT_SCALE * scales.reshape(-1))
        return weights + biases


def _folded(module: nn.Module) -> tuple[dict[str, Tensor], set[str]]:
    """What export multiplies convolutions with, (C_out,) by name, and the tensors that vanish in turn.

    A normalisation belongs to the convolution that is listed right before it, if it has as many channels.
    """
    factors: dict[str, Tensor] = {}
    gone: set[str] = set()
    leaves = [(name, layer) for name, layer in module.named_modules() if next(layer.children(), None) is None]
    for (before, convolution), (name, norm) in pairwise(leaves):
        if not isinstance(convolution, _CONVOLUTIONS) or not isinstance(norm, _NORMS) or norm.running_var is None:
            continue
        if norm.num_features != convolution.out_channels:
            continue
        scale = (norm.running_var + norm.eps).rsqrt()
        factors[f"{before}.weight"] = scale * norm.weight if norm.affine else scale
        gone |= {f"{name}.weight", f"{name}.running_var"}
        if norm.affine:  # its bias stands for the one that is left
            gone |= {f"{name}.running_mean", f"{before}.bias"}
        elif convolution.bias is not None:
            gone.add(f"{name}.running_mean")
    return factors, gone


def _values(tensor: Tensor, mask: Tensor | None, factor: Tensor | None) -> Array:
    values = tensor.detach().float()
    if mask is not None:
        values = values.masked_fill(~mask.to(values.device), 0.0)
    if factor is not None:
        values = values * factor.detach().reshape(-1, *[1] * (values.ndim - 1))
    array: Array = values.cpu().numpy()
    return array


def _quantized(weight: Array, how: Stored, per_channel: bool) -> tuple[Array, Array]:
    """A weight as it is stored, and its scales."""
    if how == "float32" or (how == "int8-weights" and weight.size < _SMALLEST):
        return weight, np.ones(1, np.float32)
    if how == "int8-per-channel" and per_channel:
        return _rounded(weight, tuple(range(1, weight.ndim)), 127)
    values, scale = _rounded(weight, None, 64 if how == "int8-reduced" else 127)
    if how == "int8-weights":
        noise, signal = np.square(weight - values * scale).sum(), np.square(weight).sum()
        if noise * 10 ** (_ENOUGH_DB / 10) > signal:
            return _rounded(weight, tuple(range(1, weight.ndim)), 127)
    return values, scale


def _rounded(weight: Array, axes: tuple[int, ...] | None, limit: int) -> tuple[Array, Array]:
    """Symmetric int8, with one scale for all values along ``axes``."""
    largest = np.abs(weight).max(axis=axes, keepdims=True, initial=0.0)
    scale = (np.where(largest > 0, largest, 1) / limit).astype(np.float32)
    return np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8), scale


def _integer(bias: Array) -> Array:
    largest = max(float(np.abs(bias).max(initial=0.0)), 1e-30)
    return np.asarray(np.rint(bias.reshape(-1) * (_BIAS / largest)), np.int32)


def _deflated(tensors: Sequence[Array]) -> float:
    """Bytes at level 9 of flat tensors, one after the other; of an estimate where they are large."""
    if sum(tensor.size for tensor in tensors) <= _FEW:
        return _zipped(tensors, 9)
    few, many = _thinned(tensors, _FEW), _thinned(tensors, _MANY)
    # Zeros cost next to nothing: what a sample stands for is told by its nonzero values.
    share = _nonzero_bytes(many) / max(1, _nonzero_bytes(tensors))
    return _zipped(many, 6) / (share or 1.0) * _zipped(few, 9) / _zipped(few, 6)


def _zipped(tensors: Sequence[Array], level: int) -> int:
    return len(zlib.compress(b"".join(tensor.tobytes() for tensor in tensors), level))


def _nonzero_bytes(tensors: Sequence[Array]) -> int:
    return sum(int(np.count_nonzero(tensor)) * tensor.itemsize for tensor in tensors)


def _thinned(tensors: Sequence[Array], limit: int) -> list[Array]:
    """About ``limit`` elements of all tensors: the same share of each, in blocks that are spread evenly over it."""
    share = limit / sum(tensor.size for tensor in tensors)
    if share >= 1:
        return list(tensors)
    return [_blocks(tensor.reshape(-1), max(1, round(share * tensor.size))) for tensor in tensors if tensor.size]


def _blocks(values: Array, count: int) -> Array:
    blocks = -(-count // _BLOCK)
    starts = np.linspace(0, values.size - count // blocks, blocks + 2, dtype=np.int64)[1:-1]
    return np.concatenate([values[start : start + count // blocks] for start in starts])
