"""How sparsity rises during training."""

from __future__ import annotations

from typing import Literal

# cubic: gradually while training (Zhu & Gupta 2017), from `SparsifyConfig.initial`: "50 % to 90 % while training".
# one-shot: all at once, before training.
# iterative: some at once, train, again, for as long as the accuracy allows (Han et al. 2015).
# reactive: while training, as fast as the loss allows (`compress.sparsity.realtime.RealtimePruner`).
Schedule = Literal["cubic", "one-shot", "iterative", "reactive"]


def cubic(step: int, steps: int, start: float, end: float) -> float:
    """Sparsity after ``step`` of ``steps``: fast while weights are plenty, slow near the end; ``end`` from then on.

    s(t) = end + (start - end) (1 - t/n)³ (Zhu & Gupta 2017, "To prune, or not to prune", equation 1).
    """
    if step >= steps:
        return end
    return float(end + (start - end) * (1 - step / steps) ** 3)
