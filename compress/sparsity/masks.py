"""Masks: which weights stay, by the score of each weight."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Literal

import torch
from torch import Tensor, nn

from compress.errors import SparsityError

Score = Literal["lamp", "magnitude"]
Masks = Mapping[str, Tensor]  # parameter name -> bool, the parameter's shape, True where the weight stays


def sparsifiable(module: nn.Module, keep: tuple[str, ...] = ()) -> dict[str, nn.Parameter]:
    """The parameters that sparsification may touch: floating point, two or more axes, no name pattern of ``keep``.

    Biases and normalisation scales have one axis: too few bytes to be worth what a missing one does to its channel.
    A tied parameter is listed once, under its first name.
    """
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim >= 2 and parameter.is_floating_point() and not any(fnmatch(name, p) for p in keep)
    }


def lamp(weight: Tensor) -> Tensor:
    """LAMP score of each weight, any shape: its square over the sum of all squares at least as large in its layer.

    Comparable across layers, and the largest weight of each layer scores 1, so that no layer empties (Lee et al. 2021,
    "Layer-adaptive sparsity for the magnitude-based pruning").
    """
    squares = weight.detach().double().square().flatten()
    ordered, order = squares.sort(descending=True)
    scores = torch.empty_like(squares)
    scores[order] = ordered / ordered.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return scores.reshape(weight.shape)


def magnitude(weight: Tensor) -> Tensor:
    """|w|, compared across layers as it is (Han et al. 2015)."""
    return weight.detach().double().abs()


SCORES = {"lamp": lamp, "magnitude": magnitude}


@torch.no_grad()
def make_masks(parameters: Mapping[str, nn.Parameter], sparsity: float, score: Score = "lamp") -> dict[str, Tensor]:
    """Masks that keep the best-scored ``1 - sparsity`` of all weights together, ranked across layers.

    Exactly ``round(sparsity * weights)`` weights go; among equal scores the later ones stay. A weight that is zero
    already has the lowest score, so that a higher sparsity only ever removes more.

    Raises:
        SparsityError: nothing to rank, or a sparsity outside 0 <= s < 1.
    """
    if not parameters:
        raise SparsityError("the model has no weight with two or more axes: there is nothing to sparsify.")
    if not 0 <= sparsity < 1:
        raise SparsityError(f"sparsity={sparsity} is not within 0 <= sparsity < 1.")
    scores = torch.cat([SCORES[score](p).flatten() for p in parameters.values()])  # (weights,)
    keep = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    remove = round(sparsity * len(scores))
    keep[scores.argsort(stable=True)[:remove]] = False
    parts = torch.split(keep, [p.numel() for p in parameters.values()])
    return {name: part.reshape(p.shape) for (name, p), part in zip(parameters.items(), parts, strict=True)}


@torch.no_grad()
def apply_masks(parameters: Mapping[str, nn.Parameter], masks: Masks) -> None:
    """Set the weights that do not stay to zero, in place."""
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)


def sparsity_of(parameters: Mapping[str, Tensor]) -> float:
    """Zeros over elements of all ``parameters`` together, 0..1."""
    elements = sum(p.numel() for p in parameters.values())
    return sum(int((p == 0).sum()) for p in parameters.values()) / max(1, elements)
