"""Memory-equivalent capacity: how many bits a network can memorise (Friedland et al. 2018, arXiv:1810.02328)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

# Names of the torch functions and aten operators that multiply by a weight; a recurrent layer is one of them.
_WEIGHTED = frozenset({
    "linear", "bilinear", "matmul", "mm", "bmm", "addmm", "einsum", "embedding", "embedding_bag",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    "multi_head_attention_forward", "_transformer_encoder_layer_fwd",
})  # fmt: skip


@dataclass(frozen=True)
class LayerSize:
    """What the capacity of a layer depends on."""

    parameters: int  # elements of its weights and biases
    outputs: int  # values it computes for one sample: units, times positions for a convolution or a sequence


def memory_equivalent_capacity(layers: Sequence[LayerSize]) -> int:
    """Upper bound in bits on what layers, in forward order, can memorise.

    A layer holds a bit for each of its parameters, but no more than the values that the layer before passes on to it:
    parameters of the first layer, and for each later one the smaller of its parameters and those values.
    """
    if not layers:
        return 0
    return layers[0].parameters + sum(min(layer.parameters, before.outputs) for before, layer in pairwise(layers))


def capacity(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> int:
    """The memory-equivalent capacity of ``module`` in bits."""
    return memory_equivalent_capacity(layer_sizes(module, example_inputs))


def layer_sizes(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> list[LayerSize]:
    """The weighted layers of ``module`` in the order in which its forward runs them on ``example_inputs`` (N, …).

    A layer is one call with parameters among its arguments, functional or not: nn.LSTM and nn.MultiheadAttention are
    one layer each. Normalisation has no layer of its own: it can be folded into the one before. Parameters count where
    they are used first, branches in the order in which they run. Runs in eval mode, and puts the mode back.
    """
    training = {part: part.training for part in module.modules()}
    recorder = _Recorder(module, samples=len(example_inputs[0]))
    for part in training:  # module.eval() is refused by an exported program
        part.training = False
    try:
        with torch.no_grad(), recorder:
            module(*example_inputs)
    finally:
        for part, was in training.items():
            part.training = was
    return recorder.layers


class _Recorder(TorchFunctionMode):
    """Notes every weighted call that runs under it."""

    def __init__(self, module: nn.Module, samples: int) -> None:
        super().__init__()
        self.layers: list[LayerSize] = []
        self._samples = samples
        # By storage: a transposed or reshaped weight is the same parameter.
        self._unseen = {_storage(parameter): parameter.numel() for parameter in module.parameters()}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "").partition(".")[0] in _WEIGHTED:  # aten's are called linear.default
            found = [self._unseen.pop(_storage(tensor), 0) for tensor in _tensors((args, kwargs))]
            if any(found):
                output = next(_tensors(result))
                self.layers.append(LayerSize(sum(found), output.numel() // self._samples))
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
