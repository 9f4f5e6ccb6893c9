"""torch's multi-head attention computed plainly: few operators, and heads of any width together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    layer: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As `torch.nn.MultiheadAttention.forward`, of a layer without learned extra keys.

    ``num_heads * head_dim`` need not be the embedding, on which torch's own insists. ``is_causal`` is a hint that
    ``attn_mask`` makes needless.
    """
    batched = query.ndim == 3
    alike = query is key and key is value
    if not batched:
        query, key, value = (x[None] for x in (query, key, value))
        key_padding_mask = key_padding_mask[None] if key_padding_mask is not None else None
    elif not layer.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    q, k, v = _packed(layer, query) if alike and layer.in_proj_weight is not None else _each(layer, query, key, value)
    mask = _mask(layer, attn_mask, key_padding_mask, q)
    dropout = layer.dropout if layer.training else 0.0
    weights = None
    if need_weights or torch.compiler.is_exporting():  # torch's kernel is quicker, but its trace is three times as long
        scores = (q * layer.head_dim**-0.5) @ k.transpose(-2, -1)
        weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout)
        out = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    out = layer.out_proj(out.transpose(1, 2).flatten(2))  # (N, length, embedding)
    weights = weights if need_weights else None
    if not batched:
        return out[0], weights[0] if weights is not None else None
    return out if layer.batch_first else out.transpose(0, 1), weights


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Have torch's layers computed by `attend` while they are traced.

    Their own forward moves the batch behind the length and back, and packs and unpacks the three projections: of a
    vision transformer of 4 blocks it makes 203 nodes, this one 119, and the same outputs to the last bit.
    """
    own = nn.MultiheadAttention.forward

    def forward(self: nn.MultiheadAttention, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        if self.bias_k is not None or self.add_zero_attn:
            return own(self, *arguments, **options)
        return attend(self, *arguments, **options)

    nn.MultiheadAttention.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.MultiheadAttention.forward = own  # type: ignore[method-assign]


def _packed(layer: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, ...]:
    """The three projections of one input by one product, each (N, heads, length, head_dim)."""
    heads = layer.num_heads
    packed = F.linear(x, layer.in_proj_weight, layer.in_proj_bias)
    q, k, v = packed.view(*x.shape[:2], 3 * heads, layer.head_dim).transpose(1, 2).chunk(3, dim=1)
    return q, k, v


def _each(layer: nn.MultiheadAttention, *inputs: Tensor) -> list[Tensor]:
    separate = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    weights: Any = separate if layer.in_proj_weight is None else layer.in_proj_weight.chunk(3)
    biases: Any = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    return [
        F.linear(x, weight, bias).view(*x.shape[:2], layer.num_heads, layer.head_dim).transpose(1, 2)
        for x, weight, bias in zip(inputs, weights, biases, strict=True)
    ]


def _mask(
    layer: nn.MultiheadAttention, attention: Tensor | None, padding: Tensor | None, like: Tensor
) -> Tensor | None:
    """Both masks in one, to be added to the scores (N, heads, query length, key length)."""
    if attention is not None:
        attention = _additive(attention, like)  # (queries, keys), or (N * heads, queries, keys)
        if attention.ndim == 3:
            attention = attention.view(-1, layer.num_heads, *attention.shape[1:])
    if padding is not None:
        padding = _additive(padding, like)[:, None, None]
    if attention is None or padding is None:
        return attention if padding is None else padding
    return attention + padding


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Zero where attended, -inf where not; masks that are additive already stay."""
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
