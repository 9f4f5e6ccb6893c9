"""Sparsification: single weights become zero, shapes stay."""

from compress.sparsity.masks import apply_masks, make_masks, sparsifiable, sparsity_of
from compress.sparsity.schedules import cubic
from compress.sparsity.stage import SparsifyConfig, sparsify

__all__ = ["SparsifyConfig", "apply_masks", "cubic", "make_masks", "sparsifiable", "sparsify", "sparsity_of"]
