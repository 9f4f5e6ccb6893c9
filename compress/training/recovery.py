"""What every stage that changes a model does next: train it back towards the original, and score it against that."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from compress.data.splits import Data
from compress.measurement import drop, outputs_of, score
from compress.training.finetune import AfterStep, FineTuneConfig, finetune, plan_steps, thaw
from compress.training.teacher import teacher_of
from compress.values import Context, Model

_AIM = 0.8  # of the allowed drop: a round exactly at it fails as often as not
_REACH = 2.0  # of max_drop: a first excess above it is too far for one more round
_LEAST_REACH = 0.02  # of the original's score: what a round wins back does not depend on what may be lost, as 0
_NEAREST = 0.25  # to either end that a search goes: one drop is a sample, and no model of it is right


def way_back(good: float, failed: float, allowed: float) -> float:
    """How far from the last good model to the failed one, 0..1, a search should go next.

    Drops rise slowly at first and then ever faster: taken as a square between the two. On a vision transformer whose
    search began far too high (0.90, +.0795) its second round is what half-way back came to in its third (0.44, +.0065).

    Args:
        good: Drop of the last model within the budget; 0 for the original.
        failed: Drop of the first outside it.
        allowed: What is within.
    """
    share = (_AIM * allowed - good) / max(failed - good, 1e-9)
    return min(1 - _NEAREST, max(_NEAREST, math.sqrt(max(0.0, share))))


def last_step(goods: Sequence[tuple[float, float]], allowed: float) -> float:
    """By what a search multiplies what is left in its last round, where nothing failed so far; others halve it.

    A last round that fails is lost, so it stays where drops are expected to be within: they are taken to rise with
    every halving by the rise of the last one, and by as much again for each further one. Measured on the CNN of 228,010
    parameters: -.0105 and -.0040 at 6.8 and 3.4 % of the weights, then +.0082 at 1.7 %, of which +.0050 was allowed.

    Args:
        goods: What was left and the drop, of the models within the budget, in their order.
        allowed: What is within.
    """
    room, rise = _AIM * allowed - goods[-1][1], 0.0
    if len(goods) > 1:
        (before, lost_before), (after, lost_after) = goods[-2:]
        rise = max(0.0, lost_after - lost_before) / max(math.log2(before / after), 1e-9)
    halvings = 1.0 if rise == 0 else (math.sqrt(1 + 4 * max(0.0, room) / rise) - 1) / 2
    return float(2 ** -min(1 - _NEAREST, max(_NEAREST, halvings)))


def worth_more(drop: float, before: float | None, allowed: float, reach: float) -> bool:
    """Whether a model that is outside the budget is trained for another round, before a search backs off.

    A round at a new width or sparsity ends in the middle of its recovery. Measured on the CNN of 228,010 parameters at
    14 % of its latency: +.0055 after 844 steps, -.0045 after as many again, where backing off would have cost as much;
    on a vision transformer at 53 % of its weights +.0090, +.0052 and +.0003, 300 steps apart.

    Args:
        drop: After its last round.
        before: After the one before; None: that was its first.
        allowed: What is within.
        reach: The largest excess of a first round, see `Recovery.reach`; later ones must halve.
    """
    excess = drop - allowed
    return excess <= (reach if before is None else (before - allowed) / 2)


@dataclass(frozen=True)
class Outcome:
    """A module after fine-tuning."""

    drop: float  # on validation, against the original
    loss: float  # mean over the last tenth of the steps
    steps: int


class Recovery:
    """Distils from the original on the training split; scores on the validation split."""

    def __init__(self, original: Model, data: Data, context: Context, config: FineTuneConfig) -> None:
        self._original, self._data, self._context, self._config = original, data, context, config
        self._teacher = teacher_of(original.module, data.train, device=context.device, progress=context.progress)
        self._reference = outputs_of(original, data.validation)
        self._baseline = score(self._reference, self._reference, context.metric)

    def train(
        self,
        module: nn.Module,
        *,
        steps: int,
        seed: int,
        label: str,
        after_step: AfterStep | None = None,
    ) -> Outcome:
        """Fine-tune ``module`` in place, all of its parameters, and score it. Same seed, same weights."""
        loss = finetune(
            thaw(module),
            self._teacher,
            self._data.train,
            self._config,
            steps=steps,
            seed=seed,
            device=self._context.device,
            after_step=after_step,
            progress=self._context.progress,
            label=label,
        )
        return Outcome(self.drop(module), loss, steps)

    @property
    def reach(self) -> float:
        """By how much a round may be outside the budget to be followed by another of the same model."""
        return max(_REACH * self._context.max_drop, _LEAST_REACH * abs(self._baseline.figure))

    def steps(self, epochs: float, min_steps: int) -> int:
        return plan_steps(self._data.train, self._config, epochs, min_steps)

    def drop(self, module: nn.Module) -> float:
        """What ``module`` loses on validation against the original: see `compress.measurement.drop`."""
        model = dataclasses.replace(self._original, module=module)
        outputs = outputs_of(model, self._data.validation, progress=self._context.progress)
        return drop(score(outputs, self._reference, self._context.metric), self._baseline)
