"""How many channels each group keeps, and which: a ratio everywhere, one ranking of all, or the budget of a cost.

Every function returns group name -> numbers of the kept channels, ascending int64, for all groups that are not frozen.
Within a group the best-scored channels stay, the later ones among equals. No group ever loses all its channels.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, gcd, inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.errors import PruningError
from compress.pruning.values import ChannelGroup

Scores = Mapping[str, Tensor]  # group name -> (channels,), higher = more important, at least 0
Allocation = dict[str, Tensor]
Cost = Callable[[Mapping[str, int]], float]  # widths (group name -> kept channels) -> cost; wider never costs less

_BLOCKS = 64  # `to_cost` first walks down in at most this many steps a group


@dataclass(frozen=True)
class Choices:
    """The widths that one group may have, and what each of them loses."""

    name: str
    widths: NDArray[np.int64]  # (K,) ascending; the last is the whole group
    lost: NDArray[np.float64]  # (K,) sum of the scores of the channels that leave; the last is 0
    order: Tensor  # (channels,) numbers by ascending score

    def kept(self, width: int) -> Tensor:
        return self.order[len(self.order) - width :].sort().values


def candidate_widths(group: ChannelGroup, floor: float = 0.0, round_to: int = 1, narrow: bool = False) -> list[int]:
    """The widths that ``group`` may have, ascending, at least 1 and ``floor`` of its channels; the last is its own.

    A group of at least ``2 * round_to`` channels keeps a multiple of ``round_to``, or everything. A channel of several
    neurons counts as so many: heads of 64 are multiples of 8 already. Narrower groups have every width: rounding would
    leave them no choice. Both go by the width before earlier cuts.

    Args:
        narrow: Every group may have any width below ``round_to`` too, and above it none but multiples. Kernels that
            compute a block of output channels at a time still read as many input channels as there are.
    """
    whole = group.before or group.channels
    step = round_to // gcd(round_to, _neurons(group))
    least = min(max(1, ceil(floor * whole - 1e-9)), group.channels)
    if narrow:
        below, blocks = range(least, min(step, group.channels)), range(step, group.channels, step)
        return [*below, *(width for width in blocks if width >= least), group.channels]
    if whole < 2 * step:
        return list(range(least, group.channels + 1))
    return [*range(ceil(least / step) * step, group.channels, step), group.channels]


def uniform(groups: Sequence[ChannelGroup], scores: Scores, ratio: float, round_to: int = 1) -> Allocation:
    """Remove the same share of every group.

    Args:
        ratio: Share 0 <= ratio < 1 of the channels that leave; the kept count is the nearest of `candidate_widths`.
    """
    _check_share("ratio", ratio)
    return {
        choices.name: choices.kept(_nearest(choices.widths, (1 - ratio) * len(choices.order)))
        for choices in choices_of(groups, scores, round_to=round_to)
    }


def ranked(
    groups: Sequence[ChannelGroup], scores: Scores, ratio: float, floor: float = 0.1, round_to: int = 1
) -> Allocation:
    """Remove the lowest-scored channels of all groups together, but none beyond a group's floor.

    Args:
        ratio: Share 0 <= ratio < 1 of all channels that leave. Rounding each group to the nearest of
            `candidate_widths` afterwards moves the total a little.
        floor: Share 0..1 of its channels that every group keeps at least.

    Raises:
        PruningError: with these floors no such share can leave; names the largest that can.
    """
    _check_share("ratio", ratio)
    free = choices_of(groups, scores, floor)
    total = sum(len(choices.order) for choices in free)
    removable = [len(choices.order) - int(choices.widths[0]) for choices in free]
    remove = round(ratio * total)
    if remove > sum(removable):
        raise PruningError(
            f"ratio={ratio} of {total} channels cannot leave: with floor={floor} at most "
            f"{sum(removable) / total:.4f} can. Lower ratio or floor."
        )
    lowest = [scores[c.name][c.order[:n]].double() for c, n in zip(free, removable, strict=True)]
    owner = torch.cat([torch.full((n,), i) for i, n in enumerate(removable)]) if free else torch.empty(0)
    taken = owner[torch.cat(lowest).argsort(stable=True)[:remove]].long() if free else owner.long()
    counts = torch.bincount(taken, minlength=len(free)).tolist()
    allowed = choices_of(groups, scores, floor, round_to)
    return {
        choices.name: choices.kept(_nearest(choices.widths, len(choices.order) - count))
        for choices, count in zip(allowed, counts, strict=True)
    }


def to_cost(
    groups: Sequence[ChannelGroup],
    scores: Scores,
    cost: Cost,
    target: float,
    *,
    floor: float = 0.1,
    round_to: int = 1,
) -> Allocation:
    """Lose little importance until the whole costs at most ``target``: a budget of MACs or parameters.

    Greedy: the group that loses the least importance for each unit of cost saved gives up its next channels. What a
    step saves only shrinks while its neighbours get narrower, so a price computed earlier is a lower bound and only
    the cheapest one has to be computed again (Minoux 1978). The walk takes 64 steps a group at most; then channels
    come back one step at a time, the most important first, while they fit.

    Args:
        cost: Of widths; any function that never falls when a group gets wider, such as `CostModel.macs`.
        target: In the unit of ``cost``.
        floor: Share 0..1 of its channels that every group keeps at least.
        round_to: See `candidate_widths`.

    Raises:
        PruningError: even the narrowest widths cost more; names what they cost.
    """
    free = {choices.name: choices for choices in choices_of(groups, scores, floor, round_to)}
    smallest = cost({name: int(choices.widths[0]) for name, choices in free.items()})
    if smallest > target:
        raise PruningError(
            f"a cost of {target:,.6g} is out of reach: with floor={floor} the smallest is {smallest:,.6g}. "
            "Raise the target or lower floor."
        )
    widths = _walk_down(free, cost, target)
    widths = _give_back(free, cost, target, widths)
    return {name: choices.kept(widths[name]) for name, choices in free.items()}


def choices_of(
    groups: Sequence[ChannelGroup], scores: Scores, floor: float = 0.0, round_to: int = 1, narrow: bool = False
) -> list[Choices]:
    """The choices of every group that is not frozen, in the order of ``groups``.

    Raises:
        PruningError: a floor or rounding out of range, or scores that do not fit a group.
    """
    if not 0 <= floor <= 1:
        raise PruningError(f"floor={floor} must be within 0..1.")
    if round_to < 1:
        raise PruningError(f"round_to={round_to} must be at least 1.")
    found = []
    for group in groups:
        if group.frozen is None:
            score = scores.get(group.name)
            if score is None or score.shape != (group.channels,):
                told = "none" if score is None else tuple(score.shape)
                raise PruningError(f"group {group.name!r} needs scores ({group.channels},), found {told}.")
            order = score.argsort(stable=True)
            lost = np.concatenate([[0.0], score[order].double().cumsum(0).numpy()])  # by the number that leave
            widths = np.array(candidate_widths(group, floor, round_to, narrow), np.int64)
            found.append(Choices(group.name, widths, lost[group.channels - widths], order))
    return found


def _neurons(group: ChannelGroup) -> int:
    """Neurons of one channel: what the numbers of entries that a channel has along each axis have in common."""
    return gcd(*(len(m.index) // group.channels for m in group.members)) or 1


def _nearest(widths: NDArray[np.int64], wanted: float) -> int:
    """The width closest to ``wanted``, the wider one of two."""
    return int(widths[::-1][np.abs(widths[::-1] - wanted).argmin()])


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise PruningError(f"{name}={value} must be within 0 <= {name} < 1.")


def _walk_down(free: Mapping[str, Choices], cost: Cost, target: float) -> dict[str, int]:
    """Widths that cost at most ``target``, which the narrowest do."""
    steps = {name: _thinned(len(choices.widths)) for name, choices in free.items()}  # positions, descending
    widths = {name: int(choices.widths[-1]) for name, choices in free.items()}
    now = cost(widths)
    # A price of 0 is below every real one: each is computed when it first comes up.
    queue = [(0.0, name, 0) for name in free if len(steps[name]) > 1]
    heapq.heapify(queue)
    while now > target and queue:
        _, name, at = heapq.heappop(queue)
        choices, (here, there) = free[name], steps[name][at : at + 2]
        narrower = {**widths, name: int(choices.widths[there])}
        reached = cost(narrower)
        saved = now - reached
        price = (choices.lost[there] - choices.lost[here]) / saved if saved > 0 else inf
        if queue and price > queue[0][0]:
            heapq.heappush(queue, (price, name, at))
            continue
        widths, now = narrower, reached
        if at + 2 < len(steps[name]):
            heapq.heappush(queue, (0.0, name, at + 1))
    return widths


def _thinned(count: int) -> list[int]:
    """Positions ``count - 1`` down to 0 in at most `_BLOCKS` even steps."""
    even = np.linspace(count - 1, 0, min(count, _BLOCKS + 1))
    return list(dict.fromkeys(round(float(position)) for position in even))


def _give_back(free: Mapping[str, Choices], cost: Cost, target: float, widths: dict[str, int]) -> dict[str, int]:
    """Widen groups one candidate at a time, the one that regains most first, while the cost stays within target."""
    at = {name: int(np.searchsorted(choices.widths, widths[name])) for name, choices in free.items()}

    def offer(name: str) -> list[tuple[float, str]]:
        lost, here = free[name].lost, at[name]
        return [(float(lost[here + 1] - lost[here]), name)] if here + 1 < len(lost) else []

    queue = [entry for name in free for entry in offer(name)]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        wider = {**widths, name: int(free[name].widths[at[name] + 1])}
        if cost(wider) <= target:
            widths, at[name] = wider, at[name] + 1
            for entry in offer(name):
                heapq.heappush(queue, entry)
    return widths
