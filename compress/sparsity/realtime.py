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
    zeros_of,
)

logger = logging.getLogger(__name__)

Action = Literal["raise", "pause", "regrow", "hold"]

# The gradient of one batch is mostly noise. What returns is decided from the last steps before the decision; what goes,
# with the score taylor, from all of the interval: measured, that keeps more accuracy.
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
    smoothing: float = 30.0  # steps over which the loss is smoothed, beyond the interval's mean; 0: that mean alone
    patience: int = 3  # intervals in a row outside the tolerance, after which weights return; 0: they never do
    regrow: float = 0.5  # share 0..1 of what the last raise removed that returns each time
    score: Score = "lamp"  # what is removed first: lamp, magnitude |w|, taylor |w| * RMS gradient, random
    scope: Scope = "global"  # ranked among all weights together, or layer by layer, the same share of each
    layers: Mapping[str, float] = field(default_factory=dict)  # instead of ``sparsity``: limit 0..1 of each layer
    keep: tuple[str, ...] = ()  # name patterns of parameters that stay dense (fnmatch: "fc2.*")
    hold_zeros: bool = True  # weights that are zero at first stay so, but for parameters that are nothing but zeros
    seed: int = 0  # of the score random

    def __post_init__(self) -> None:
        shares = {"sparsity": self.sparsity, "recover": self.recover}
        shares |= {f"layers.{name}": share for name, share in self.layers.items()}
        counts = {"interval": self.interval, "steps": 1 if self.steps is None else self.steps}
        problems = [f"{k}={v} must be within 0 <= {k} < 1" for k, v in shares.items() if not 0 <= v < 1]
        problems += [f"{k}={v} must be at least 1" for k, v in counts.items() if v < 1]
        least = {n: getattr(self, n) for n in ("start", "patience", "tolerance", "smoothing")}
        problems += [f"{n}={value} must not be negative" for n, value in least.items() if not value >= 0]
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
        parameters = {n: p for n, p in sparsifiable(module, self.config.keep).items() if p.requires_grad}
        if not parameters:
            raise SparsityError("no parameter with two or more axes is being trained: there is nothing to sparsify.")
        self._shares = resolve_layers(parameters, self.config.layers) if self.config.layers else {}
        self._shapes = {name: p.shape for name, p in parameters.items()}
        self._weights = sum(p.numel() for p in parameters.values())
        self._masks: Masks = zeros_of(parameters) if self.config.hold_zeros else {}
        self._first: Masks = dict(self._masks)  # zeros that were never ours to give back
        self._held: tuple[list[Tensor], list[Tensor]] | None = None  # weights and their masks, as _foreach_mul_ wants
        self._gradients: dict[str, Tensor] = {}  # sums of squares since the window before a decision began
        self._step = 0
        self._total: Tensor = torch.zeros(())  # of the losses of this interval, on their device
        self._smoothed: float | None = None
        self._reference = math.inf
        self._outside = 0  # intervals in a row
        self._last_raise = 0  # weights that it removed

    @property
    def sparsity(self) -> float:
        """Share 0..1 of the weights that are removed now."""
        return self._removed() / self._weights

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
        if left < self._window():
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
        # Not by multiplying: that leaves -0.0 where a negative weight was, and every sign costs a bit when zipped.
        apply_masks(parameters, self._masks)
        zeros = round(sparsity_of(parameters) * self._weights)
        return RealtimeSummary(zeros / self._weights, self._weights, self._weights - zeros, self.history)

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
            "first": dict(self._first),
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
            if mask.shape != self._shapes.get(name):
                raise SparsityError(
                    f"the checkpoint has masks of the shape {tuple(mask.shape)} for {name}, the model has "
                    f"{', '.join(f'{n} {tuple(shape)}' for n, shape in self._shapes.items())}: load it for that model."
                )
        self._masks, self._first = (
            {name: mask.to(parameters[name].device) for name, mask in state[kind].items()}
            for kind in ("masks", "first")
        )
        self._gradients = {
            name: total.to(parameters[name].device, copy=True) for name, total in state["gradients"].items()
        }
        self._step, self._total, self._smoothed = state["step"], state["total"], state["smoothed"]
        self._reference, self._outside = state["reference"], state["outside"]
        self._last_raise = state["last_raise"]
        self.history = tuple(Decision(*values) for values in state["history"])
        self._held = None

    def _parameters(self) -> dict[str, nn.Parameter]:
        # Looked up again each time: loading with assign=True, and some wrappers, put new parameters in their place.
        found = dict(self._module.named_parameters())
        for name, shape in self._shapes.items():
            if name not in found or found[name].shape != shape:
                now = tuple(found[name].shape) if name in found else "nothing"
                raise SparsityError(
                    f"{name} had the shape {tuple(shape)} when pruning began, now there is {now}: call finish() before "
                    f"the model is changed, and make a new RealtimePruner for the changed one."
                )
        return {name: found[name] for name in self._shapes}

    def _removed(self) -> int:
        return sum(int((~mask).sum()) for mask in self._masks.values())

    def _window(self) -> int:
        """Steps before a decision whose gradients it needs."""
        if self.config.score == "taylor":
            return self.config.interval
        return min(GRADIENT_STEPS, self.config.interval) if self.config.patience else 0

    def _collect(self) -> None:
        found = {name: p.grad for name, p in self._parameters().items() if p.grad is not None}
        if not found:
            raise SparsityError(
                "no parameter has a gradient, and they decide which weights go and return: call step() between "
                "optimizer.step() and zero_grad(), or use patience=0 and a score other than taylor."
            )
        for name, gradient in found.items():
            dense = gradient.to_dense() if gradient.is_sparse else gradient
            # A step that AMP skips has infinite gradients.
            squares = torch.nan_to_num(dense.float(), nan=0.0, posinf=0.0, neginf=0.0).square_()
            self._gradients[name] = self._gradients[name].add_(squares) if name in self._gradients else squares

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
            before = mean if self._smoothed is None else self._smoothed
            weight = math.exp(-config.interval / config.smoothing) if config.smoothing else 0.0
            self._smoothed = weight * before + (1 - weight) * mean
            self._reference = min(reference, self._smoothed)
        loss = self._smoothed if math.isfinite(mean) and self._smoothed is not None else mean
        action = self._action(loss, reference)
        removed = self._removed()
        if action == "raise":
            self._masks = self._raised()
            went = self._removed() - removed
            self._last_raise, action = (went, "raise") if went else (self._last_raise, "hold")
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
            return "raise" if self.sparsity * self._weights < math.floor(self._limit() * self._weights) else "hold"
        return "regrow" if 0 < config.patience <= self._outside and self._last_raise else "pause"

    def _raised(self) -> Masks:
        config, parameters = self.config, self._parameters()
        target = next_sparsity(self.sparsity, self._limit(), self._step, config)
        taylor = config.score == "taylor"
        gradients = {name: self._gradient(name, p) for name, p in parameters.items()} if taylor else None
        made = make_masks(
            parameters, self._exact(target), config.score, config.scope, gradients=gradients, seed=config.seed
        )
        # A layer that was sparser than its share to begin with stays so.
        return {name: mask & self._masks.get(name, mask) for name, mask in made.items()}

    def _regrown(self, removed: int) -> Masks:
        """Masks with ``removed`` weights away: what stays does, and of the others those with the largest gradients."""
        rank = {name: self._regrowth(name, parameter) for name, parameter in self._parameters().items()}
        made = make_masks(rank, self._exact(removed / self._weights), "magnitude", self.config.scope)
        grown = {name: mask | self._masks.get(name, mask) for name, mask in made.items()}
        return {name: mask & self._first.get(name, mask) for name, mask in grown.items()}

    def _regrowth(self, name: str, parameter: Tensor) -> Tensor:
        """Rank of each weight of ``parameter``: above all others where it stays, else the size of its gradient.

        What was zero at first ranks below all.
        """
        smallest, top = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
        always = torch.ones_like(parameter, dtype=torch.bool)
        rank = self._gradient(name, parameter).abs().clamp(smallest, top / 2)
        return rank.masked_fill(self._masks.get(name, always), top).masked_fill(~self._first.get(name, always), 0.0)

    def _gradient(self, name: str, parameter: Tensor) -> Tensor:
        """Root mean square of the gradient of each weight; zero where a parameter had no part in the loss.

        With it |w ∂L/∂w| is the root of the weight's share in the empirical Fisher information, the saliency of Theis
        et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning". A mean would vanish as the
        training converges, and leave noise to decide.
        """
        total = self._gradients.get(name)
        return torch.zeros_like(parameter, dtype=torch.float32) if total is None else (total / self._window()).sqrt_()

    def _limit(self) -> float:
        """The highest sparsity of all weights together, 0..1."""
        if not self._shares:
            return self.config.sparsity
        return sum(share * self._shapes[name].numel() for name, share in self._shares.items()) / self._weights

    def _exact(self, sparsity: float) -> float | dict[str, float]:
        """``sparsity`` of all weights as `make_masks` takes it, in whole weights and never rounded up."""
        if self.config.scope == "global" and not self._shares:
            return _whole(sparsity, self._weights)
        shares = self._shares or dict.fromkeys(self._shapes, self.config.sparsity)
        part = sparsity / max(self._limit(), sparsity)
        return {name: _whole(part * share, self._shapes[name].numel()) for name, share in shares.items()}


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


def _whole(share: float, weights: int) -> float:
    """The largest share of so many ``weights`` that is not above ``share``, but for rounding of floats."""
    return math.floor(share * weights + 1e-6) / weights
