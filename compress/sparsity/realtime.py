"""Pruning while training: as fast as the loss allows, in any PyTorch loop.

pruner = RealtimePruner(model, interval=len(loader))
for _ in range(epochs):
    for inputs, labels in loader:
        ...
        optimizer.step()
        pruner.step(loss)
summary = pruner.finish()
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.errors import RecipeError, SparsityError
from compress.sparsity.masks import (
    Masks,
    Scope,
    Score,
    apply_masks,
    make_masks,
    resolve_layers,
    sparsifiable,
    sparsity_of,
)

logger = logging.getLogger(__name__)

Action = Literal["raise", "pause", "regrow", "hold"]

# The gradient of one batch is mostly noise: what decides is the mean over the last steps before a decision.
GRADIENT_STEPS = 8


@dataclass(frozen=True)
class RealtimeConfig:
    """When sparsity rises, by how much, and what is removed first."""

    interval: int = 100  # optimizer steps between decisions; len(loader) for whole epochs
    sparsity: float = 0.9  # the limit, share 0..1 of the weights; never exceeded
    tolerance: float = 0.01  # how far the smoothed loss may be above its best: of the loss, or of 1 where that is more
    cut: float = 0.2  # share 0..1 of the weights left that a raise removes, where ``steps`` is not given
    steps: int | None = None  # optimizer steps of the whole training: raises are spread over them
    recover: float = 0.25  # share 0..1 of ``steps``, at their end, in which nothing is removed
    start: int = 1  # intervals before the first decision
    smoothing: float = 0.5  # weight 0..1 of the intervals before in the smoothed loss; 0: the interval's mean alone
    patience: int = 3  # intervals in a row outside the tolerance, after which weights return; 0: they never do
    regrow: float = 0.5  # share 0..1 of what the last raise removed that returns each time
    score: Score = "lamp"  # what is removed first: lamp, magnitude |w|, taylor |w * gradient|, random
    scope: Scope = "global"  # ranked among all weights together, or layer by layer, the same share of each
    layers: Mapping[str, float] = field(default_factory=dict)  # instead of ``sparsity``: limit 0..1 of each layer
    keep: tuple[str, ...] = ()  # name patterns of parameters that stay dense (fnmatch: "fc2.*")
    hold_zeros: bool = True  # weights that are zero at first stay so, but for parameters that are nothing but zeros
    seed: int = 0  # of the score random

    def __post_init__(self) -> None:
        shares = {"sparsity": self.sparsity, "recover": self.recover, "smoothing": self.smoothing}
        shares |= {f"layers.{name}": share for name, share in self.layers.items()}
        counts = {"interval": self.interval, "steps": 1 if self.steps is None else self.steps}
        problems = [f"{k}={v} must be within 0 <= {k} < 1" for k, v in shares.items() if not 0 <= v < 1]
        problems += [f"{k}={v} must be at least 1" for k, v in counts.items() if v < 1]
        for name, least in (("start", self.start), ("patience", self.patience), ("tolerance", self.tolerance)):
            if not least >= 0:
                problems.append(f"{name}={least} must not be negative")
        for name, share in (("cut", self.cut), ("regrow", self.regrow)):
            if not 0 < share < 1:
                problems.append(f"{name}={share} must be within 0 < {name} < 1")
        if problems:
            raise RecipeError("; ".join(problems))


@dataclass(frozen=True)
class Decision:
    """What was decided at the end of one interval, and from what."""

    step: int  # optimizer steps so far
    loss: float  # smoothed
    reference: float  # the best smoothed loss before this one
    sparsity: float  # after the decision, 0..1
    action: Action


@dataclass(frozen=True)
class RealtimeSummary:
    """What was removed, once training is over."""

    sparsity: float  # zeros / weights, 0..1
    weights: int  # that could have been removed
    nonzero: int
    history: tuple[Decision, ...]


class RealtimePruner:
    """Raises sparsity while the loss stays within a tolerance of its best, and holds the zeros.

    At the end of every interval: where the smoothed loss is at most ``tolerance`` above the best so far, the
    lowest-scored weights go; where it is not, sparsity waits; where it stays so for ``patience`` intervals, a part of
    the weights that went last returns, those with the largest gradients first, from zero (Evci et al. 2020, "Rigging
    the Lottery"). Training from new weights and fine-tuning follow one rule: while the loss falls, its best falls too.

    The masks are multiplied into the weights after every optimizer step, so that neither momentum nor weight decay
    brings a removed weight back, while its gradient stays known. Between decisions nothing is read back from the
    device. Parameters without ``requires_grad`` are left alone. In distributed training every process has to be given
    the same loss.
    """

    def __init__(self, module: nn.Module, **options: Any) -> None:
        """Args: ``module`` in training; ``options`` are the fields of `RealtimeConfig`.

        Raises:
            RecipeError: options that cannot be used, all told at once.
            SparsityError: no weight to remove, or a layer that there is not.
        """
        self.config = RealtimeConfig(**options)
        self.history: tuple[Decision, ...] = ()
        self._module = module
        parameters = self._parameters()
        if not parameters:
            raise SparsityError("no parameter with two or more axes is being trained: there is nothing to sparsify.")
        self._shares = resolve_layers(parameters, self.config.layers) if self.config.layers else {}
        self._sizes = {name: p.numel() for name, p in parameters.items()}
        self._masks: Masks = _zeros_of(parameters) if self.config.hold_zeros else {}
        self._held: tuple[list[Tensor], list[Tensor]] | None = None  # weights and their masks, as _foreach_mul_ wants
        self._gradients: dict[str, Tensor] = {}  # sums since `GRADIENT_STEPS` before the next decision
        self._step = 0
        self._total: Tensor = torch.zeros(())  # of the losses of this interval, on their device
        self._smoothed: float | None = None
        self._reference = math.inf
        self._outside = 0  # intervals in a row
        self._last_raise = 0  # weights that it removed

    @property
    def sparsity(self) -> float:
        """Share 0..1 of the weights that are removed now."""
        return self._removed() / sum(self._sizes.values())

    @torch.no_grad()
    def step(self, loss: Tensor | float) -> None:
        """Hold the masks, and decide where an interval ends. Call it after each ``optimizer.step()``, before the
        gradients are set to zero. With gradient accumulation: the loss of any of the batches, or their mean.

        Raises:
            SparsityError: there are no gradients to decide from, or the loss is not one number.
        """
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise SparsityError(f"loss has the shape {tuple(loss.shape)}, one number is needed: take its mean.")
        self._step += 1
        self._total = self._total + (loss.detach().reshape(()) if isinstance(loss, Tensor) else loss)
        left = -self._step % self.config.interval
        if left < GRADIENT_STEPS and self._needs_gradients():
            self._collect()
        self._hold()
        if left == 0:
            self._decide(float(self._total) / self.config.interval)
            self._total = torch.zeros(())
            self._gradients = {}

    @torch.no_grad()
    def finish(self) -> RealtimeSummary:
        """Apply the masks a last time, check that they hold in the module, and tell what was removed.

        Raises:
            SparsityError: a parameter was replaced by one of another name or shape.
        """
        parameters = self._parameters()
        for name, mask in self._masks.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                found = tuple(parameters[name].shape) if name in parameters else "nothing"
                raise SparsityError(
                    f"{name} had the shape {tuple(mask.shape)} when it was pruned, now there is {found}: "
                    f"call finish() before the model is changed."
                )
        # Not by multiplying: that leaves -0.0 where a negative weight was, and every sign costs a bit when zipped.
        apply_masks(parameters, self._masks)
        weights = sum(self._sizes.values())
        zeros = round(sparsity_of(parameters) * weights)
        return RealtimeSummary(zeros / weights, weights, weights - zeros, self.history)

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs for going on bit-equal: tensors and plain values, safe for ``weights_only``."""
        return {
            "step": self._step,
            "total": self._total,
            "smoothed": self._smoothed,
            "reference": self._reference,
            "outside": self._outside,
            "last_raise": self._last_raise,
            "masks": dict(self._masks),
            "gradients": {name: total.clone() for name, total in self._gradients.items()},
            "history": [dataclasses.astuple(decision) for decision in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``. The weights and the optimizer are the caller's to restore.

        Raises:
            SparsityError: the state is of a model with other parameters.
        """
        parameters = self._parameters()
        for name, mask in state["masks"].items():
            if name not in parameters or parameters[name].shape != mask.shape:
                raise SparsityError(
                    f"the checkpoint has a mask {tuple(mask.shape)} for {name}, the model's parameters are "
                    f"{', '.join(f'{n} {tuple(p.shape)}' for n, p in parameters.items())}: load it into the same model."
                )
        self._masks = {name: mask.to(parameters[name].device) for name, mask in state["masks"].items()}
        self._gradients = {name: total.to(parameters[name].device) for name, total in state["gradients"].items()}
        self._step, self._total, self._smoothed = state["step"], state["total"], state["smoothed"]
        self._reference, self._outside = state["reference"], state["outside"]
        self._last_raise = state["last_raise"]
        self.history = tuple(Decision(*values) for values in state["history"])
        self._held = None

    def _parameters(self) -> dict[str, nn.Parameter]:
        # Looked up again each time: loading with assign=True, and some wrappers, put new parameters in their place.
        found = sparsifiable(self._module, self.config.keep)
        return {name: p for name, p in found.items() if p.requires_grad}

    def _removed(self) -> int:
        return sum(int((~mask).sum()) for mask in self._masks.values())

    def _needs_gradients(self) -> bool:
        return self.config.score == "taylor" or self.config.patience > 0

    def _collect(self) -> None:
        parameters = self._parameters()
        found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        if not found:
            raise SparsityError(
                "no parameter has a gradient, and they decide which weights go and return: call step() between "
                "optimizer.step() and zero_grad(), or use patience=0 and a score other than taylor."
            )
        for name, gradient in found.items():
            dense = gradient.to_dense() if gradient.is_sparse else gradient
            # A step that AMP skips has infinite gradients.
            finite = torch.nan_to_num(dense.float(), nan=0.0, posinf=0.0, neginf=0.0)
            self._gradients[name] = self._gradients[name] + finite if name in self._gradients else finite

    def _hold(self) -> None:
        if self._held is None:
            parameters = self._parameters()
            weights: list[Tensor] = [parameters[name] for name in self._masks]
            masks = [mask.to(w.device, w.dtype) for w, mask in zip(weights, self._masks.values(), strict=True)]
            self._held = weights, masks
        if self._held[0]:
            torch._foreach_mul_(*self._held)

    def _decide(self, mean: float) -> None:
        """End an interval whose losses had this ``mean``."""
        config, reference = self.config, self._reference
        if math.isfinite(mean):
            before = self._smoothed if self._smoothed is not None else mean
            self._smoothed = config.smoothing * before + (1 - config.smoothing) * mean
            self._reference = min(reference, self._smoothed)
        loss = self._smoothed if math.isfinite(mean) and self._smoothed is not None else mean
        action = self._action(loss, reference)
        removed = self._removed()
        if action == "raise":
            self._masks = self._raised()
            self._last_raise = self._removed() - removed
            action = action if self._last_raise else "hold"
        elif action == "regrow":
            self._masks = self._regrown(removed - math.ceil(config.regrow * self._last_raise))
            self._outside, self._last_raise = 0, max(0, self._last_raise - removed + self._removed())
        self._held = None
        self._hold()
        decision = Decision(self._step, loss, min(reference, loss), self.sparsity, action)
        self.history = (*self.history, decision)
        logger.info("step %d: loss %.4f, %s, sparsity %.4f", self._step, loss, action, decision.sparsity)

    def _action(self, loss: float, reference: float) -> Action:
        config = self.config
        within = math.isfinite(loss) and loss <= allowed(reference, config.tolerance)
        self._outside = 0 if within else self._outside + 1
        last = math.inf if config.steps is None else (1 - config.recover) * config.steps
        if self._step <= config.start * config.interval or self._step > last:
            return "hold"
        if within:
            return "raise"
        return "regrow" if 0 < config.patience <= self._outside and self._last_raise else "pause"

    def _raised(self) -> Masks:
        config, parameters = self.config, self._parameters()
        target = max(self.sparsity, next_sparsity(self.sparsity, self._limit(), self._step, config))
        gradients = {name: self._gradient(name, parameter) for name, parameter in parameters.items()}
        return make_masks(
            parameters, self._exact(target), config.score, config.scope, gradients=gradients, seed=config.seed
        )

    def _regrown(self, removed: int) -> Masks:
        """Masks with ``removed`` weights away: what stays does, and of the others those with the largest gradients."""
        rank = {name: self._regrowth(name, parameter) for name, parameter in self._parameters().items()}
        asked = self._exact(removed / sum(self._sizes.values()))
        return make_masks(rank, asked, "magnitude", self.config.scope)

    def _regrowth(self, name: str, parameter: Tensor) -> Tensor:
        """Rank of each weight of ``parameter``: above all others where it stays, else the size of its gradient."""
        top = torch.finfo(torch.float32).max
        stays = self._masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
        return torch.where(stays, top, self._gradient(name, parameter).abs().clamp(max=top / 2))

    def _gradient(self, name: str, parameter: Tensor) -> Tensor:
        """Mean gradient of the last steps; zero where a parameter had no part in the loss."""
        total = self._gradients.get(name)
        steps = min(GRADIENT_STEPS, self.config.interval)
        return torch.zeros_like(parameter, dtype=torch.float32) if total is None else total / steps

    def _limit(self) -> float:
        """The highest sparsity of all weights together, 0..1."""
        if not self._shares:
            return self.config.sparsity
        removed = sum(share * self._sizes[name] for name, share in self._shares.items())
        return removed / sum(self._sizes.values())

    def _exact(self, sparsity: float) -> float | dict[str, float]:
        """``sparsity`` of all weights as `make_masks` takes it, in whole weights and never rounded up."""
        if self.config.scope == "global" and not self._shares:
            weights = sum(self._sizes.values())
            return math.floor(sparsity * weights + 1e-6) / weights
        shares = self._shares or dict.fromkeys(self._sizes, self.config.sparsity)
        part = sparsity / self._limit()
        counts = {name: math.floor(part * share * self._sizes[name] + 1e-6) for name, share in shares.items()}
        return {name: count / self._sizes[name] for name, count in counts.items()}


def allowed(reference: float, tolerance: float) -> float:
    """The highest smoothed loss at which sparsity still rises."""
    return reference + tolerance * max(1.0, abs(reference)) if math.isfinite(reference) else math.inf


def next_sparsity(sparsity: float, limit: float, step: int, config: RealtimeConfig) -> float:
    """Sparsity after a raise at ``step``.

    Each raise removes the same share of what is left: ``cut``, or, where the length of the training is known, the share
    that ends at the limit if none of the decisions to come waits.
    """
    cut = config.cut
    if config.steps is not None:
        raises = max(1, math.floor(((1 - config.recover) * config.steps - step) / config.interval) + 1)
        cut = 1 - ((1 - limit) / (1 - min(sparsity, limit))) ** (1 / raises)
    return min(limit, 1 - (1 - sparsity) * (1 - cut))


def _zeros_of(parameters: Mapping[str, nn.Parameter]) -> Masks:
    """Masks that hold what is zero already. A parameter of zeros alone is new, not pruned: it is left out."""
    stays = {name: p.detach() != 0 for name, p in parameters.items()}
    return {name: mask for name, mask in stays.items() if bool(mask.any()) and not bool(mask.all())}
