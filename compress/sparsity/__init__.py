"""Sparsification: single weights become zero, shapes stay."""

from compress.sparsity.comparison import TrainConfig
from compress.sparsity.curves import CurveConfig
from compress.sparsity.masks import apply_masks, make_masks, resolve_layers, sparsifiable, sparsity_of
from compress.sparsity.realtime import RealtimeConfig, RealtimePruner
from compress.sparsity.schedules import cubic
from compress.sparsity.stage import SparsifyConfig, sparsify

__all__ = [
    "CurveConfig",
    "RealtimeConfig",
    "RealtimePruner",
    "SparsifyConfig",
    "TrainConfig",
    "apply_masks",
    "cubic",
    "make_masks",
    "resolve_layers",
    "sparsifiable",
    "sparsify",
    "sparsity_of",
]
