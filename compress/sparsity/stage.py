"""The sparsify stage: the highest sparsity whose fine-tuned model stays within its share of the accuracy budget."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from dataclasses import dataclass, field

from torch import nn

from compress.errors import RecipeError, SparsityError
from compress.sparsity.masks import Masks, Score, apply_masks, make_masks, sparsifiable, sparsity_of
from compress.sparsity.schedules import cubic
from compress.training import FineTuneConfig, Recovery
from compress.values import Context, Model, StageRecord

logger = logging.getLogger(__name__)

# The masks follow the cubic schedule in this many steps: a ranking of all weights can cost more than a training step.
CUTS = 40
REACHED = 1e-3  # closer to a sparsity than this is there: the number of weights is whole


@dataclass(frozen=True)
class SparsifyConfig:
    """How many weights become zero, and how the rest is trained to make up for them."""

    sparsity: float | None = None  # share 0..1 of the weights to remove; None: search the highest within the budget
    start: float = 0.9  # where the search begins
    score: Score = "lamp"  # what is removed first: lamp, or magnitude (|w| compared across layers)
    rounds: int = 4  # fine-tunings at most, each at another sparsity
    epochs: float = 3.0  # passes over the training split in each round
    min_steps: int = 400  # optimizer steps in each round at least: small data sets need more passes
    ramp: float = 0.6  # share 0..1 of each round in which sparsity rises; the rest recovers
    budget: float = 0.5  # share 0..1 of max_drop that this stage may use on validation; quantization needs the rest
    keep: tuple[str, ...] = ()  # name patterns of parameters that stay dense (fnmatch: "fc2.*")
    finetune: FineTuneConfig = field(default_factory=FineTuneConfig)

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value} must be within 0 <= {name} < 1"
            for name, value in (("sparsity", self.sparsity), ("start", self.start), ("ramp", self.ramp))
            if value is not None and not 0 <= value < 1
        ]
        if self.rounds < 1:
            problems.append(f"rounds={self.rounds} must be at least 1")
        if self.epochs <= 0:
            problems.append(f"epochs={self.epochs} must be above 0")
        if not 0 <= self.budget <= 1:
            problems.append(f"budget={self.budget} must be within 0..1")
        if problems:
            raise RecipeError("; ".join(problems))


@dataclass(frozen=True)
class Round:
    """One fine-tuning at one sparsity."""

    sparsity: float  # zeros / elements of the sparsifiable weights
    drop: float  # on validation, against the original model
    loss: float  # mean over the last tenth of its steps
    steps: int
    within: bool  # drop <= its share of the budget


def sparsify(model: Model, config: SparsifyConfig, context: Context) -> tuple[Model, StageRecord]:
    """Make as many weights zero as the accuracy budget allows.

    Each round raises sparsity on a cubic schedule while the model is distilled from the original, then recovers. After
    a round within the budget the next one halves the weights that are left, starting from the weights just trained;
    after one outside it the next backs off to half-way, from the last good weights. What is returned is the sparsest
    model that was within the budget on validation.

    Returns:
        The sparse model (the given one is untouched) and the record. Where no round was within the budget: the model
        as it came, and a record that says so.

    Raises:
        SparsityError: there is no data to fine-tune on, or zeros did not hold.
    """
    started = time.perf_counter()
    if context.data is None or context.original is None:
        raise SparsityError("sparsify fine-tunes, so it needs a torch model and data: give --data.")
    search = _Search(model, config, context)
    for number in range(config.rounds):
        target = next_sparsity(search.best_sparsity, search.failed, config)
        if target is None:
            break
        search.run_round(target, number)
    figures = {
        "sparsity": search.best_sparsity or 0.0,
        "weights": sum(p.numel() for p in sparsifiable(model.module, config.keep).values()),
        "rounds": [dataclasses.asdict(r) for r in search.rounds],
    }
    seconds = time.perf_counter() - started
    plain = dataclasses.asdict(config)
    if search.best is None:
        tried = ", ".join(f"{r.sparsity:.2%} dropped {r.drop:.4f}" for r in search.rounds)
        reason = f"no sparsity stayed within {search.allowed:.4f} on validation ({tried})"
        return model, StageRecord("sparsify", plain, seconds, figures, skipped=reason)
    notes = (
        f"{search.best_sparsity:.2%} of the weights are zero: smaller when zipped, no faster",
        f"drops on validation, {search.allowed:.4f} allowed: "
        + ", ".join(f"{r.drop:+.4f} at {r.sparsity:.2%}" for r in search.rounds),
    )
    return dataclasses.replace(model, module=search.best), StageRecord("sparsify", plain, seconds, figures, notes)


def next_sparsity(best: float | None, failed: float | None, config: SparsifyConfig) -> float | None:
    """Which sparsity to try: bisection over density (1 - sparsity) on a logarithmic scale.

    Args:
        best: The highest sparsity that was within the budget; None before the first.
        failed: The lowest that was not; None before the first.

    Returns:
        The next sparsity, or None where another round cannot tell more.
    """
    kept = best or 0.0
    if config.sparsity is not None and kept >= config.sparsity - REACHED:
        return None
    if failed is None and best is None:
        return config.sparsity if config.sparsity is not None else config.start
    if failed is None:
        return 1 - (1 - kept) / 2
    middle = 1 - math.sqrt((1 - kept) * (1 - failed))
    # Another round costs as much as the first: not for less than a tenth of the remaining weights.
    return middle if (1 - kept) / (1 - middle) > 1.1 else None


class _Search:
    """The rounds so far, and the best model among them."""

    def __init__(self, model: Model, config: SparsifyConfig, context: Context) -> None:
        assert context.data is not None
        assert context.original is not None
        self.config, self.context = config, context
        self.dense = model
        self.allowed = config.budget * context.max_drop
        self.best: nn.Module | None = None
        self.best_sparsity: float | None = None
        self.failed: float | None = None  # the lowest sparsity that was outside the budget
        self.rounds: list[Round] = []
        self._recovery = Recovery(context.original, context.data, context, config.finetune)

    def run_round(self, target: float, number: int) -> None:
        module = copy.deepcopy(self.best if self.best is not None else self.dense.module)
        steps = self._recovery.steps(self.config.epochs, self.config.min_steps)
        outcome = self._recovery.train(
            module,
            steps=steps,
            seed=self.context.seed * 1000 + number,
            label=f"sparsify {target:.1%}",
            after_step=Masking(module, self.config, self.best_sparsity or 0.0, target, steps),
        )
        reached = sparsity_of(sparsifiable(module, self.config.keep))
        if reached < target - REACHED:
            raise SparsityError(f"sparsity {target:.4f} was asked for, but only {reached:.4f} of the weights are zero.")
        within = outcome.drop <= self.allowed + 1e-9
        self.rounds.append(Round(reached, outcome.drop, outcome.loss, steps, within))
        logger.info("sparsify %.1f%%: drop %.4f, %.4f allowed", 100 * target, outcome.drop, self.allowed)
        if within:
            self.best, self.best_sparsity = module, reached
        else:
            self.failed = target if self.failed is None else min(self.failed, target)


class Masking:
    """Called after every optimizer step: raises sparsity on schedule and holds the zeros."""

    def __init__(self, module: nn.Module, config: SparsifyConfig, start: float, target: float, steps: int) -> None:
        self._parameters = sparsifiable(module, config.keep)
        self._score: Score = config.score
        self._start, self._target = start, target
        self._ramp = max(1, round(config.ramp * steps))
        self._every = max(1, self._ramp // CUTS)
        self._masks: Masks = {}

    def __call__(self, step: int) -> None:
        # First of all: momentum has moved the zeros, and a ranking of what it made of them would bring some back.
        apply_masks(self._parameters, self._masks)
        due = step % self._every == 0 or step == self._ramp
        if step <= self._ramp and (due or not self._masks):
            sparsity = cubic(step, self._ramp, self._start, self._target)
            self._masks = make_masks(self._parameters, sparsity, self._score)
            apply_masks(self._parameters, self._masks)
