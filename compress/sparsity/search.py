"""The rounds of the sparsify stage: which sparsity next, one fine-tuning at it, and the best model so far."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from compress.errors import SparsityError
from compress.sparsity.masking import Masking, Target, total
from compress.sparsity.masks import make_masks, resolve_layers, sparsifiable, sparsity_of
from compress.sparsity.realtime import RealtimePruner
from compress.sparsity.size_model import predict_zip_bytes
from compress.training import Outcome, Recovery, last_step, way_back, worth_more
from compress.training.dropout import lowered_dropout
from compress.training.finetune import thaw
from compress.training.gradients import mean_gradients
from compress.units import signed
from compress.values import Context, Model

if TYPE_CHECKING:
    from compress.sparsity.stage import SparsifyConfig

logger = logging.getLogger(__name__)

DECISIONS = 20  # of the reactive schedule, in the part of a round in which sparsity rises
FEWEST = 1e-3  # density at which a search for a number of bytes gives up
REACHED = 1e-3  # closer to a sparsity than this is there: the number of weights is whole
DENSEST = 0.5  # density at which the search begins at most: nobody asks for fewer zeros
TRAINED_ON = ("cubic", "one-shot")  # schedules that leave a target's model to be trained on; others set their own
PAYS = 0.05  # share of the predicted bytes that another round must save: it costs as much as the first


@dataclass(frozen=True)
class Round:
    """One fine-tuning at one sparsity."""

    sparsity: float  # zeros / elements of the sparsifiable weights
    drop: float  # on validation, against the original model
    loss: float  # mean over the last tenth of its steps
    steps: int
    within: bool  # drop <= its share of the budget
    zip_bytes: int  # predicted, as the weights will be stored


@dataclass(frozen=True)
class Sparse:
    """A module that was within the budget."""

    module: nn.Module
    sparsity: float
    zip_bytes: int  # predicted


@dataclass(frozen=True)
class _Near:
    """A module that was outside the budget by little."""

    module: nn.Module
    target: float  # sparsity
    drop: float


class Search:
    """The rounds so far, and the best model among them."""

    def __init__(self, model: Model, config: SparsifyConfig, context: Context) -> None:
        assert context.data is not None
        assert context.original is not None
        self.config, self.context = config, context
        self.dense = model
        self.allowed = config.budget * context.max_drop
        self.came = sparsity_of(sparsifiable(model.module, config.keep))  # what was zero already stays so
        self.asked: float | None = None  # sparsity, where one or a number of bytes was asked for
        self.best: Sparse | None = None
        self.drop = 0.0  # of the best
        self.failures: list[tuple[float, float]] = []  # sparsity that was outside the budget, and the drop there
        self.near: _Near | None = None  # trained again
        self.rounds: list[Round] = []
        self.notes: list[str] = []
        self._start = start_after(self.config.start, _elements(context.original, config), _elements(model, config))
        self._data = context.data
        self._recovery = Recovery(context.original, context.data, context, config.finetune)
        self._steps = self._recovery.steps(config.epochs, config.min_steps)

    def run(self) -> None:
        for number, target in enumerate(self._targets()):
            self._tell(number)
            if not self._run_round(target, number):
                break
        self._polish()
        self._tell(self.config.rounds)

    def _tell(self, done: int) -> None:
        best = (
            f"best: {self.best.sparsity:.1%} zeros, {signed(self.drop)} of {self.allowed:.4f} lost" if self.best else ""
        )
        self.context.progress("rounds of sparsify", done, self.config.rounds, best)

    def _targets(self) -> Iterator[Target]:
        """What each round aims at; looks at how the ones before it ended."""
        config, parameters = self.config, sparsifiable(self.dense.module, self.config.keep)
        if config.layers:
            yield resolve_layers(parameters, config.layers)
        elif config.pattern is not None:
            yield 0.0
        else:
            asked = config.sparsity if config.zip_bytes is None else self._sparsity_of_bytes(config.zip_bytes)
            self.asked = None if asked is None else total(parameters, asked, config.scope)
            yield from self._iterations() if config.schedule == "iterative" else self._bisection()

    def _bisection(self) -> Iterator[float]:
        for _ in range(self.config.rounds):
            if self.near is not None:
                yield self.near.target
                continue
            target = self._next_target()
            if target is None or not (self.asked is not None or self._pays(target)):
                return
            yield target

    def _next_target(self) -> float | None:
        best = None if self.best is None else self.best.sparsity
        # What failed at no more zeros than the best has was refuted by it.
        failures = [failure for failure in self.failures if best is None or failure[0] > best + REACHED]
        failed, lost = min(failures, default=(None, 0.0))
        way = way_back(self.drop, lost, self.allowed)
        goods = [(1 - r.sparsity, r.drop) for r in self.rounds if r.within]
        last = goods and len(self.rounds) == self.config.rounds - 1
        step = last_step(goods, self.allowed) if last else 0.5
        return next_sparsity(best, failed, self.asked, self._start, self.came, way, step)

    def _iterations(self) -> Iterator[float]:
        """Remove a share of what is left, retrain, again, until accuracy is outside the budget (Han et al. 2015)."""
        for _ in range(self.config.rounds):
            kept = 1 - (self.best.sparsity if self.best is not None else self.came)
            target = 1 - kept * (1 - self.config.cut)
            if self.asked is not None:
                if 1 - kept >= self.asked - REACHED:
                    return
                target = min(target, self.asked)
            yield target
            if self.failures:
                return

    def _pays(self, target: float) -> bool:
        """Whether a round at ``target`` would make the zipped model enough smaller, as the size model predicts."""
        if self.best is None or self.context.objective != "size":
            return True
        predicted = self._bytes_at(self.best.module, target)
        if predicted <= (1 - PAYS) * self.best.zip_bytes:
            return True
        self.notes.append(
            f"{target:.2%} was not tried: predicted to zip to {predicted:,} bytes, not {PAYS:.0%} below "
            f"{self.best.zip_bytes:,}"
        )
        return False

    def _bytes_at(self, module: nn.Module, sparsity: float) -> int:
        """What the size model predicts for ``module`` at ``sparsity``, before any training."""
        # Gradients are not worth their time here: which weights go hardly changes how many bytes stay.
        score = "magnitude" if self.config.score == "taylor" else self.config.score
        masks = make_masks(
            sparsifiable(module, self.config.keep), sparsity, score, self.config.scope, seed=self.context.seed
        )
        return predict_zip_bytes(module, masks=masks, stored=self.context.stored)

    def _sparsity_of_bytes(self, zip_bytes: int) -> float:
        """The lowest sparsity that is predicted to fit into ``zip_bytes``, to a thousandth of the density.

        Raises:
            SparsityError: not even the highest does.
        """
        module, densest, sparsest = self.dense.module, 1.0, FEWEST
        if (least := self._bytes_at(module, 1 - sparsest)) > zip_bytes:
            raise SparsityError(
                f"sparsify.zip_bytes={zip_bytes:,} is out of reach: at {1 - sparsest:.1%} zeros the zipped model is "
                f"predicted to have {least:,} bytes. Allow more, or cut channels first (prune)."
            )
        if self._bytes_at(module, 0.0) <= zip_bytes:
            return 0.0
        while densest / sparsest > 1.001:
            middle = math.sqrt(densest * sparsest)
            if self._bytes_at(module, 1 - middle) <= zip_bytes:
                sparsest = middle
            else:
                densest = middle
        return 1 - sparsest

    def _run_round(self, target: Target, number: int) -> bool:
        """One fine-tuning; False where it tells that no further one is worth its time."""
        near, self.near = self.near, None
        module = near.module if near is not None else copy.deepcopy((self.best or self.dense).module)
        seed = self.context.seed * 1000 + number
        aim = total(sparsifiable(module, self.config.keep), target, self.config.scope)
        label = f"sparsify {self.config.pattern or f'{aim:.1%}'}"
        if self.config.schedule == "reactive":
            outcome = self._react(module, aim, seed, label)
        else:
            masking = self._masking(module, target)
            with self._dropout(module, masking):
                outcome = self._recovery.train(module, steps=self._steps, seed=seed, label=label, after_step=masking)
        goes_on = self._judge(module, aim, outcome)
        again = self.config.schedule in TRAINED_ON and not self.rounds[-1].within
        if (
            again
            and isinstance(target, float)
            and worth_more(outcome.drop, None if near is None else near.drop, self.allowed, self._recovery.reach)
        ):
            self.near = _Near(module, target, outcome.drop)
        return goes_on

    def _polish(self) -> None:
        """Train the best model for the rounds that are left, its zeros held, where as many as possible were wanted.

        They are part of what the user allowed; what quantization takes needs all the accuracy there is.
        """
        rest, config = self.config.rounds - len(self.rounds), self.config
        given = self.asked is not None or config.layers or config.pattern is not None
        if self.best is None or rest < 1 or given or config.schedule not in TRAINED_ON:
            return
        module, target = copy.deepcopy(self.best.module), self.best.sparsity
        masking = Masking(sparsifiable(module, config.keep), target, score="magnitude", scope=config.scope)
        outcome = self._recovery.train(
            module,
            steps=rest * self._steps,
            seed=self.context.seed * 1000 + len(self.rounds),
            label=f"sparsify {target:.1%}",
            after_step=masking,
        )
        longer = self._noted(module, outcome)
        if outcome.drop <= self.drop:
            self.best, self.drop = longer, outcome.drop

    def _react(self, module: nn.Module, limit: float, seed: int, label: str) -> Outcome:
        """Train while the loss decides how fast sparsity rises, up to ``limit``."""
        config = self.config
        pruner = RealtimePruner(
            thaw(module),
            interval=max(1, round(config.ramp * self._steps) // DECISIONS),
            sparsity=limit,
            tolerance=config.tolerance,
            steps=self._steps,
            recover=1 - config.ramp,
            score=config.score,
            scope=config.scope,
            keep=config.keep,
            seed=self.context.seed,
        )
        outcome = self._recovery.train(
            module, steps=self._steps, seed=seed, label=label, after_step=lambda step, loss: pruner.step(loss)
        )
        pruner.finish()
        return outcome

    def _masking(self, module: nn.Module, target: Target) -> Masking:
        config = self.config
        gradients = None
        if config.score == "taylor":
            gradients = mean_gradients(module, self._data.train, seed=self.context.seed, device=self.context.device)
        return Masking(
            sparsifiable(module, config.keep),
            target,
            ramp=max(1, round(config.ramp * self._steps)) if config.schedule == "cubic" else 0,
            initial=config.initial,
            score=config.score,
            scope=config.scope,
            pattern=config.pattern,
            gradients=gradients,
            seed=self.context.seed,
        )

    def _dropout(self, module: nn.Module, masking: Masking) -> AbstractContextManager[None]:
        """Dropout lowered with the connections left, where it is on and the masks are final before training."""
        gradual = self.config.schedule == "cubic" and self.config.pattern is None
        if not self.config.finetune.dropout or gradual:
            return nullcontext()
        example, _ = self._data.train.fetch(self._data.train.indices[:2])
        return lowered_dropout(module, masking.density, example)

    def _noted(self, module: nn.Module, outcome: Outcome) -> Sparse:
        """Write down what a round came to."""
        found = Sparse(
            module,
            sparsity_of(sparsifiable(module, self.config.keep)),
            predict_zip_bytes(module, stored=self.context.stored),
        )
        within = outcome.drop <= self.allowed + 1e-9
        self.rounds.append(Round(found.sparsity, outcome.drop, outcome.loss, outcome.steps, within, found.zip_bytes))
        logger.info("sparsify %.1f%%: drop %.4f, %.4f allowed", 100 * found.sparsity, outcome.drop, self.allowed)
        return found

    def _judge(self, module: nn.Module, aim: float, outcome: Outcome) -> bool:
        """Keep it if it is better than the best; False where no further round is worth its time."""
        reached = sparsity_of(sparsifiable(module, self.config.keep))
        if reached < aim - 1e-9 and self.config.schedule != "reactive":
            raise SparsityError(f"sparsity {aim:.4f} was asked for, but only {reached:.4f} of the weights are zero.")
        found = self._noted(module, outcome)
        if not self.rounds[-1].within:
            self.failures.append((aim, outcome.drop))
            return True
        sparser = reached > (self.came if self.best is None else self.best.sparsity)
        smaller = self.best is None or self.context.objective != "size" or found.zip_bytes < self.best.zip_bytes
        if sparser and smaller:
            self.best, self.drop = found, outcome.drop
            return True
        # The reactive schedule found nothing more to remove, or what it removed saves no byte.
        self.notes.append(
            f"{reached:.2%} was reached at a drop of {signed(outcome.drop)}, and is no gain over the best"
        )
        return False


def start_after(start: float, original: int, left: int) -> float:
    """Where the search begins in a model that was cut before: what is left is needed more.

    ``start`` is for models as they were trained. The density 1 - start grows with the square root of what the cut took,
    so that both share it. Measured on LeNet-300-100, a tenth of whose weights was left: from 0.9 the search failed at
    once and ended at 86.7 % zeros, from 0.75 at 91.2 %, in as many steps.

    Args:
        start: Sparsity 0..1.
        original: Weights before the cut.
        left: Weights after it.
    """
    density = 1 - start
    return 1 - max(density, min(DENSEST, density * math.sqrt(original / max(1, left))))


def _elements(model: Model, config: SparsifyConfig) -> int:
    return sum(p.numel() for p in sparsifiable(model.module, config.keep).values())


def next_sparsity(
    best: float | None,
    failed: float | None,
    asked: float | None,
    start: float,
    came: float = 0.0,
    way: float = 0.5,
    step: float = 0.5,
) -> float | None:
    """Which sparsity to try: doubling, then halving the gap, over density (1 - sparsity) on a logarithmic scale.

    Args:
        best: The highest sparsity that was within the budget; None before the first.
        failed: The lowest that was not; None before the first.
        asked: What was asked for: none above it is tried.
        start: The first one, where none was asked for.
        came: Sparsity of the model as it came: none below it is tried.
        way: Share 0..1 of the way from ``best`` to ``failed``: see `way_back`.
        step: What the density of ``best`` is multiplied by where nothing failed: see `last_step`.

    Returns:
        The next sparsity, or None where another round cannot tell more.
    """
    kept = came if best is None else best
    if asked is not None and kept >= asked - REACHED:
        return None
    if failed is None and best is None:
        return asked if asked is not None else max(start, came)
    if failed is None:
        return min(1 - (1 - kept) * step, 1.0 if asked is None else asked)
    middle = 1 - (1 - kept) ** (1 - way) * (1 - failed) ** way
    # Another round costs as much as the first: not for less than a tenth of the remaining weights.
    return middle if (1 - kept) / (1 - middle) > 1.1 else None
