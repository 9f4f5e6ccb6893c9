"""Smaller parameters in the user's own module: indexing along axes, and the sizes that torch's layers remember."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.errors import PruningError
from compress.pruning.attention import ReducedMultiheadAttention
from compress.pruning.values import Kept

LocalKept = Mapping[str, Mapping[int, Tensor]]  # as Kept, with the names of one layer: "weight"


def slice_module(module: nn.Module, kept: Kept) -> nn.Module:
    """A copy of ``module`` whose parameters and buffers hold only the kept entries.

    Tied tensors stay tied, ``requires_grad`` and the training flags stay, gradients are dropped. The integer attributes
    of torch's own layers (and of their subclasses) follow the new shapes. Whether the forward pass of the user's class
    still runs is not checked here: see `compress.pruning.surgery.cut`.

    Raises:
        PruningError: a name or an index does not fit the module, or a tensor cannot be replaced (parametrized).
    """
    smaller = _copy(module)
    owners = _owners(smaller)
    touched: dict[nn.Module, dict[str, Mapping[int, Tensor]]] = {}
    for name, axes in kept.items():
        old = tensor_at(smaller, name)
        new = _sliced(old, axes, name)
        for layer, attribute in owners[id(old)]:
            _refuse_parametrized(layer, name)
            setattr(layer, attribute, new)
            touched.setdefault(layer, {})[attribute] = axes
    for layer, local in touched.items():
        _update_sizes(layer, local)
    return smaller


def tensor_at(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer with this state-dict name."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, Tensor):
        raise PruningError(
            f"{type(module).__name__} has no parameter or buffer {name!r}: what is kept belongs to another model."
        )
    return found


def blocks_left(kept: Tensor, size: int, groups: int) -> int:
    """How many of ``groups`` equal blocks of an axis still hold an entry.

    A grouped convolution may lose whole groups, or the same number of places in each: both leave equal blocks.

    Args:
        kept: (kept,) int64 indices into the axis.
        size: Of the axis, before.
        groups: A divisor of ``size``.

    Raises:
        PruningError: the blocks that are left differ in size.
    """
    counts = torch.bincount(kept.cpu() // (size // groups), minlength=groups)
    sizes = set(counts[counts > 0].tolist())
    if len(sizes) != 1:
        raise PruningError(
            f"{groups} groups of {size // groups} channels would keep {counts.tolist()} channels: every group that "
            "stays must keep as many. Remove whole groups, or the same number in each."
        )
    return int((counts > 0).sum())


def _copy(module: nn.Module) -> nn.Module:
    for name, layer in module.named_modules():
        computed = [key for key, value in vars(layer).items() if isinstance(value, Tensor) and not value.is_leaf]
        if computed:
            raise PruningError(
                f"{name or type(module).__name__} computes {computed[0]!r} from other tensors (weight_norm?) and "
                "cannot be cut. Make it a plain parameter first (remove_weight_norm)."
            )
    return copy.deepcopy(module)


def _owners(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Who holds each tensor, by its id: several layers and attributes where it is tied."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for layer in module.modules():
        for attribute, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None:
                owners.setdefault(id(tensor), []).append((layer, attribute))
    return owners


def _sliced(tensor: Tensor, axes: Mapping[int, Tensor], name: str) -> Tensor:
    data = tensor.detach()
    for axis, index in axes.items():
        if axis >= tensor.ndim or not len(index) or int(index.max()) >= tensor.shape[axis]:
            raise PruningError(
                f"axis {axis} of {name!r} {tuple(tensor.shape)} cannot keep {len(index)} entries up to "
                f"{int(index.max()) if len(index) else '-'}: what is kept belongs to another model."
            )
        data = data.index_select(axis, index.to(data.device))
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _refuse_parametrized(layer: nn.Module, name: str) -> None:
    if parametrize.is_parametrized(layer) or isinstance(layer, parametrize.ParametrizationList):
        raise PruningError(
            f"{name!r} is parametrized and cannot be cut: its layer computes it from other tensors. "
            "Call torch.nn.utils.parametrize.remove_parametrizations first."
        )


def _update_sizes(layer: nn.Module, kept: LocalKept) -> None:
    for kind, update in _SIZES:
        if isinstance(layer, kind):
            update(layer, kept)
            return


def _linear(layer: Any, _: LocalKept) -> None:
    layer.out_features, layer.in_features = layer.weight.shape  # (out, in)


def _bilinear(layer: Any, _: LocalKept) -> None:
    layer.out_features, layer.in1_features, layer.in2_features = layer.weight.shape  # (out, in1, in2)


def _convolution(layer: Any, kept: LocalKept) -> None:
    rows = kept.get("weight", {}).get(0)
    if rows is not None:
        layer.groups = blocks_left(rows, layer.out_channels, layer.groups)
    layer.out_channels = layer.weight.shape[0]  # (C_out, C_in / groups, …)
    layer.in_channels = layer.weight.shape[1] * layer.groups


def _transposed_convolution(layer: Any, kept: LocalKept) -> None:
    rows = kept.get("weight", {}).get(0)
    if rows is not None:
        layer.groups = blocks_left(rows, layer.in_channels, layer.groups)
    layer.in_channels = layer.weight.shape[0]  # (C_in, C_out / groups, …)
    layer.out_channels = layer.weight.shape[1] * layer.groups


def _batch_norm(layer: Any, _: LocalKept) -> None:
    layer.num_features = len(layer.running_mean if layer.running_mean is not None else layer.weight)


def _group_norm(layer: Any, kept: LocalKept) -> None:
    index = next(axes[0] for axes in kept.values() if 0 in axes)
    layer.num_groups = blocks_left(index, layer.num_channels, layer.num_groups)
    layer.num_channels = len(layer.weight)


def _layer_norm(layer: Any, _: LocalKept) -> None:
    layer.normalized_shape = tuple(layer.weight.shape)


def _embedding(layer: Any, _: LocalKept) -> None:
    layer.num_embeddings, layer.embedding_dim = layer.weight.shape


def _prelu(layer: Any, _: LocalKept) -> None:
    layer.num_parameters = len(layer.weight)


def _recurrent(layer: Any, _: LocalKept) -> None:
    gates = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    layer.hidden_size = layer.weight_hh_l0.shape[0] // gates  # (gates * hidden, hidden or projection)
    layer.input_size = layer.weight_ih_l0.shape[1]  # (gates * hidden, input)
    if layer.proj_size:
        layer.proj_size = layer.weight_hr_l0.shape[0]  # (projection, hidden)
    layer.flatten_parameters()


def _recurrent_cell(layer: Any, _: LocalKept) -> None:
    layer.hidden_size = layer.weight_hh.shape[1]  # (gates * hidden, hidden)
    layer.input_size = layer.weight_ih.shape[1]  # (gates * hidden, input)


def _multihead_attention(layer: Any, kept: LocalKept) -> None:
    if type(layer) in (nn.MultiheadAttention, ReducedMultiheadAttention):
        ReducedMultiheadAttention.take_over(layer, kept)


# The first kind that fits: a subclass of torch's layer has the same attributes.
_SIZES: tuple[tuple[type | tuple[type, ...], Callable[[Any, LocalKept], None]], ...] = (
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed_convolution),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    (nn.modules.batchnorm._NormBase, _batch_norm),  # instance norm too
    (nn.GroupNorm, _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent_cell),
    (nn.MultiheadAttention, _multihead_attention),
)
