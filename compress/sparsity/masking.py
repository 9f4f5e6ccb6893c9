"""The masks of one fine-tuning: made at once or on a schedule, and held after every optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import torch
from torch import Tensor, nn

from compress.sparsity.masks import (
    Masks,
    Scope,
    Score,
    apply_masks,
    make_masks,
    pattern_masks,
    sparsity_of,
    zeros_of,
)
from compress.sparsity.schedules import cubic

Target = float | Mapping[str, float]  # of all weights together, or of each parameter by its name

# The masks follow the cubic schedule in so many steps at most: a ranking of all weights can cost more than training.
CUTS = 40


class Masking:
    """Called after every optimizer step of `compress.training.finetune`: raises sparsity, holds the zeros."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        target: Target,
        *,
        ramp: int = 0,
        initial: float = 0.0,
        score: Score = "lamp",
        scope: Scope = "global",
        pattern: str | None = None,
        gradients: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        """Make the first masks, and set what they remove to zero.

        Args:
            parameters: What may become zero, by name. What is zero in them already stays zero, but for parameters
                that are nothing but zeros.
            target: Sparsity at the end.
            ramp: Steps in which it is reached; 0: at once.
            initial: Sparsity to begin with, where the weights are not sparser already.
            pattern: N:M, as "2:4": instead of ``target``, at once.
            gradients: By name, for the score taylor: of the weights as they are now. Later ones are taken from the
                parameters themselves; one without a gradient had no part in the loss.
        """
        self._parameters = parameters
        self._score: Score = score
        self._scope: Scope = scope
        self._target, self._ramp, self._seed = target, ramp if pattern is None else 0, seed
        self._every = max(1, ceil(ramp / CUTS))
        self._start = _start(parameters, target, initial)
        self._zeros = zeros_of(parameters)
        self._masks: Masks = (
            self._made(self._at(0), gradients)
            if pattern is None
            else self._with_zeros(pattern_masks(parameters, pattern, score, gradients=gradients, seed=seed))
        )
        apply_masks(parameters, self._masks)

    @property
    def density(self) -> dict[str, float]:
        """Share of the weights that stay, by parameter name."""
        return {name: float(mask.float().mean()) for name, mask in self._masks.items()}

    def __call__(self, step: int, loss: float) -> None:
        # The parameters may have moved to another device since: the masks follow once, not in every step.
        self._masks = {name: mask.to(self._parameters[name].device) for name, mask in self._masks.items()}
        # First of all: momentum has moved the zeros, and a ranking of what it made of them would bring some back.
        apply_masks(self._parameters, self._masks)
        due = step % self._every == 0 or step == self._ramp
        if step <= self._ramp and due:
            gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self._parameters.items()}
            self._masks = self._made(self._at(step), gradients)
            apply_masks(self._parameters, self._masks)

    def _at(self, step: int) -> Target:
        """Sparsity after ``step`` steps."""
        if isinstance(self._target, Mapping):
            return {name: cubic(step, self._ramp, self._start[name], end) for name, end in self._target.items()}
        return cubic(step, self._ramp, self._start[""], self._target)

    def _made(self, sparsity: Target, gradients: Mapping[str, Tensor] | None) -> Masks:
        return self._with_zeros(
            make_masks(self._parameters, sparsity, self._score, self._scope, gradients=gradients, seed=self._seed)
        )

    def _with_zeros(self, masks: Masks) -> Masks:
        """``masks`` that hold the first zeros too: a model may come sparser than it is asked to be."""
        held = {name: masks[name] & zeros.to(masks[name].device) for name, zeros in self._zeros.items()}
        return {**masks, **held}


def _start(parameters: Mapping[str, nn.Parameter], target: Target, initial: float) -> dict[str, float]:
    """Sparsity that a ramp begins with: as the weights are, or ``initial`` where that is more, never above the end."""
    if isinstance(target, Mapping):
        return {name: min(end, max(initial, sparsity_of({name: parameters[name]}))) for name, end in target.items()}
    return {"": min(target, max(initial, sparsity_of(parameters)))}


def total(parameters: Mapping[str, nn.Parameter], target: Target, scope: Scope = "global") -> float:
    """``target`` as sparsity of all weights together, 0..1, in whole weights as `make_masks` counts them."""
    weights = sum(p.numel() for p in parameters.values())
    if not isinstance(target, Mapping) and scope == "global":
        return round(target * weights) / max(1, weights)
    shares = target if isinstance(target, Mapping) else dict.fromkeys(parameters, target)
    return sum(round(shares.get(name, 0.0) * p.numel()) for name, p in parameters.items()) / max(1, weights)
