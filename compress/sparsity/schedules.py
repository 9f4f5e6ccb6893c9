"""How sparsity rises during training."""

from __future__ import annotations


def cubic(step: int, steps: int, start: float, end: float) -> float:
    """Sparsity after ``step`` of ``steps``: fast while weights are plenty, slow near the end; ``end`` from then on.

    s(t) = end + (start - end) (1 - t/n)³ (Zhu & Gupta 2017, "To prune, or not to prune", equation 1).
    """
    if step >= steps:
        return end
    return float(end + (start - end) * (1 - step / steps) ** 3)
