"""What share of the goal a round of the prune stage aims at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.pruning.stage import PruneConfig

CLOSE = 1.03  # a share within this factor of another is the same: timings are no better


def next_share(
    best: float | None,
    failed: float | None,
    config: PruneConfig,
    way: float = 0.5,
    step: float = 0.5,
    least: float = 0.0,
) -> float | None:
    """What share to leave next: what can leave is halved while it works, then between the two on a logarithmic scale.

    Args:
        best: The smallest share that was within the budget; None before the first.
        failed: The largest that was not; None before the first.
        way: Share 0..1 of the way from ``best`` to ``failed``: see `way_back`.
        step: What of ``best`` can still leave is multiplied by it where nothing failed: see `last_step`.
        least: What no width saves. Half of a small net's latency can be the call itself: halving the whole would then
            take nearly all of its channels in one round.

    Returns:
        The next share, or None where another round cannot tell more.
    """
    goal = config.goal[1]
    left = best if best is not None else 1.0
    if goal is not None and left <= goal * 1.01:
        return None
    if failed is None:
        if best is None:
            return goal if goal is not None else config.start
        target = least + (left - least) * step
    else:
        target = left ** (1 - way) * failed**way
    # Another round costs as much as the first: not for less than a tenth of what is left, or what timings can tell.
    return target if left / target > (CLOSE if config.goal[0] == "latency" else 1.1) else None
