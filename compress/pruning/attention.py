"""torch's multi-head attention with fewer heads, or a narrower embedding, than its constructor allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReducedMultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose heads together may be narrower than the embedding.

    The same parameters under the same names, the same arguments and results: the modules around it keep their class.
    torch's own forward insists on ``num_heads * head_dim == embed_dim``.
    """

    @staticmethod
    def take_over(layer: nn.MultiheadAttention, kept: Mapping[str, Mapping[int, Tensor]]) -> None:
        """Make ``layer``, whose parameters have just lost ``kept``'s complement, one of these, where that is possible.

        Where it is not (parts of heads left, or learned extra keys), the layer stays as it is and will not run.
        """
        packed = layer.in_proj_weight is not None
        rows = kept.get("in_proj_weight" if packed else "q_proj_weight", {}).get(0)
        width = layer.num_heads * layer.head_dim
        heads = layer.num_heads
        if rows is not None:
            counts = torch.bincount(rows[rows < width].cpu() // layer.head_dim, minlength=heads)
            if not bool(((counts == 0) | (counts == layer.head_dim)).all()):
                return
            heads = int((counts > 0).sum())
        if layer.bias_k is not None or layer.add_zero_attn:
            return
        layer.num_heads = heads
        layer.embed_dim = layer.out_proj.weight.shape[0]  # (embedding, heads * head_dim)
        layer.kdim = (layer.in_proj_weight if packed else layer.k_proj_weight).shape[1]
        layer.vdim = (layer.in_proj_weight if packed else layer.v_proj_weight).shape[1]
        layer._qkv_same_embed_dim = (
            False  # or TransformerEncoderLayer hands the weights to a kernel that reads them flat
        )
        layer.__class__ = ReducedMultiheadAttention

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention.forward`; ``is_causal`` is a hint that ``attn_mask`` makes needless."""
        batched = query.ndim == 3
        if not batched:
            query, key, value = (x[None] for x in (query, key, value))
            key_padding_mask = key_padding_mask[None] if key_padding_mask is not None else None
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, key, value)  # each (N, heads, length, head_dim)
        mask = self._mask(attn_mask, key_padding_mask, q)
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = F.dropout(
                torch.softmax(scores if mask is None else scores + mask, -1), self.dropout, self.training
            )
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        out = self.out_proj(out.transpose(1, 2).flatten(2))  # (N, length, embedding)
        if not batched:
            return out[0], weights[0] if weights is not None else None
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, *inputs: Tensor) -> list[Tensor]:
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights: Any = separate if self.in_proj_weight is None else self.in_proj_weight.chunk(3)
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [
            F.linear(x, weight, bias).view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        ]

    def _mask(self, attention: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
        """Both masks in one, to be added to the scores (N, heads, query length, key length)."""
        if attention is not None:
            attention = _additive(attention, like)  # (queries, keys), or (N * heads, queries, keys)
            if attention.ndim == 3:
                attention = attention.view(-1, self.num_heads, *attention.shape[1:])
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
