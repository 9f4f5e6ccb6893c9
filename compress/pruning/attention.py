"""torch's multi-head attention with fewer heads, or a narrower embedding, than its constructor allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.models.attention import attend


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

    def forward(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention.forward`."""
        return attend(self, *arguments, **options)
