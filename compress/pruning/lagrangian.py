"""Widths under a budget of measured latency: a knapsack whose items share layers with their neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, product
from math import exp, log
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compress.errors import PruningError
from compress.pruning.allocation import Allocation, Choices, Scores, choices_of
from compress.pruning.values import ChannelGroup
from compress.values import Progress, silent

Floats = NDArray[np.float64]
State = NDArray[np.int64]  # (G,): which of its candidate widths each group has

_PRICES = 20  # bisection steps over the price of a millisecond
_SIDES = 6  # in the last so many of them, neighbours that hold each other wide or narrow are looked for
_SPAN = 1e6  # the price lies within this factor of (all importance / the whole cost), either way
_PASSES = 30  # over all groups, until no group changes: usually three
_STARTS = 4  # the local search starts from so many of the best states
_TRIALS = 1000  # of moves, in all local searches together
_REACH = 3  # candidates that one group moves at a time: a single one may save nothing
_EPSILON = 1e-12  # of importance: a smaller gain is rounding


class WidthCost(Protocol):
    """A cost of many width vectors at once, such as `LatencyModel`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The groups, in the order of the columns of ``many``."""

    def many(self, widths: Floats) -> Floats:
        """Costs (B,) at widths (B, G)."""


def knapsack(
    groups: Sequence[ChannelGroup],
    scores: Scores,
    cost: WidthCost,
    target: float,
    *,
    floor: float = 0.1,
    round_to: int = 8,
    narrow: bool = False,
    progress: Progress = silent,
) -> Allocation:
    """Choose a width for every group so that little importance is lost and the cost is at most ``target``.

    HALP (Shen et al. 2022, "Structural pruning via latency-saliency knapsack") takes the latency of each group as
    its own; here a layer costs by its input *and* output width, so that neighbours are chosen together. At a fixed
    price of a millisecond, importance lost + price * cost is minimised group by group until nothing changes; the
    price is bisected (Lagrangian relaxation; Everett 1963). A local search then closes the gap that prices leave: it
    moves one group, and lets the others make up for it.

    Args:
        cost: Measured, so it need not be monotone.
        target: In the unit of ``cost``: milliseconds for `LatencyModel`.
        floor: Share 0..1 of its channels that every group keeps at least.
        round_to: See `candidate_widths`.
        narrow: See `candidate_widths`.

    Raises:
        PruningError: no widths cost so little; names the least found.
    """
    choices = choices_of(groups, scores, floor, round_to, narrow)
    if not choices:
        raise PruningError("no latency target can be met: every group of channels is frozen. See `compress inspect`.")
    problem = _Problem(choices, cost)
    if problem.cost(problem.widest) <= target:
        return problem.allocation(problem.widest)
    cheapest = problem.settle(problem.narrowest, price=None)
    least = problem.cost(cheapest)
    if least > target:
        raise PruningError(
            f"a latency of {target:.4g} ms is out of reach: with floor={floor} the least is {least:.4g} ms. "
            "Ask for a smaller speed-up or lower floor."
        )
    starts = _bisect(problem, target, progress) or [cheapest]
    trials = iter(range(_TRIALS))
    ends = np.stack([_improve(problem, target, start, trials) for start in starts[:_STARTS]])
    return problem.allocation(ends[int(problem.losses(ends).argmin())])


def _bisect(problem: _Problem, target: float, progress: Progress) -> list[State]:
    """States within ``target``, found over a series of prices, the best first."""
    middle = log(max(problem.lost.max(axis=1).sum(), 1e-12) / problem.cost(problem.widest))
    low, high = middle - log(_SPAN), middle + log(_SPAN)
    last = problem.narrowest
    found: dict[tuple[int, ...], State] = {}
    for step in range(_PRICES):
        price = exp((low + high) / 2)
        sides = (last,) if step < _PRICES - _SIDES else (last, problem.widest, problem.narrowest)
        ends = np.stack([problem.settle(start, price) for start in sides])
        costs = problem.costs(ends)
        last = ends[int((problem.losses(ends) + price * costs).argmin())]
        found |= {tuple(state): state for state in ends[costs <= target]}
        within = problem.cost(last) <= target
        low, high = (low, log(price)) if within else (log(price), high)
        progress("choosing widths", step + 1, _PRICES)
    return sorted(found.values(), key=problem.loss)


def _improve(problem: _Problem, target: float, state: State, trials: Iterator[int]) -> State:
    """Move one group, let the others make up for it, and keep what loses less, until no move helps or trials end."""
    state = _widened(problem, target, state)
    shifts = [sign * step for step in range(1, _REACH + 1) for sign in (1, -1)]
    moves = list(product(range(len(state)), shifts))
    failed = 0  # moves in a row
    for (group, shift), _ in zip(cycle(moves), trials, strict=False):
        trial = _moved(problem, target, state, group, shift)
        better = trial is not None and problem.loss(trial) < problem.loss(state) - _EPSILON
        if trial is not None and better:
            state = trial
        failed = 0 if better else failed + 1
        if failed == len(moves):
            break
    return state


def _moved(problem: _Problem, target: float, state: State, group: int, shift: int) -> State | None:
    """``state`` with ``group`` moved by ``shift`` candidates and the others fitted around it; None: impossible."""
    moved = state + shift * (np.arange(len(state)) == group)
    if not 0 <= moved[group] < problem.counts[group]:
        return None
    narrow = _narrowed(problem, target, moved, held=group)
    return None if narrow is None else _widened(problem, target, narrow)


def _narrowed(problem: _Problem, target: float, state: State, held: int) -> State | None:
    """``state`` with groups other than ``held`` narrowed, at the least importance a millisecond, to ``target``."""
    now = problem.cost(state)
    while now > target:
        states = _shifted(problem, state, -1, held)
        costs = problem.costs(states)
        saved = now - costs
        price = (problem.losses(states) - problem.loss(state)) / np.where(saved > 0, saved, np.nan)
        if not (saved > 0).any():
            return None
        best = int(np.nanargmin(price))
        state, now = states[best], float(costs[best])
    return state


def _widened(problem: _Problem, target: float, state: State) -> State:
    """``state`` with groups widened, the one that regains most first, while ``target`` is kept."""
    while True:
        states = _shifted(problem, state, 1)
        states = states[problem.costs(states) <= target] if len(states) else states
        if not len(states):
            return state
        best = states[int(problem.losses(states).argmin())]
        if problem.loss(best) >= problem.loss(state) - _EPSILON:
            return state
        state = best


def _shifted(problem: _Problem, state: State, sign: int, held: int | None = None) -> NDArray[np.int64]:
    """The states in which one group, not ``held``, is a few candidates wider (sign 1) or narrower (-1)."""
    one = np.eye(len(state), dtype=np.int64)[[group for group in range(len(state)) if group != held]]
    states = state + np.concatenate([sign * step * one for step in range(1, _REACH + 1)])
    return np.asarray(states[((states >= 0) & (states < problem.counts)).all(axis=1)])


class _Problem:
    """The tables: groups in the order of the cost's columns, candidates padded to the longest list."""

    def __init__(self, choices: list[Choices], cost: WidthCost) -> None:
        by_name = {c.name: c for c in choices}
        missing = [name for name in by_name if name not in cost.names] + [n for n in cost.names if n not in by_name]
        if missing:
            raise PruningError(
                f"the cost model was made for other groups: {', '.join(missing)} not in both. "
                "Make it from the same groups."
            )
        self.choices = [by_name[name] for name in cost.names]
        self.counts = np.array([len(c.widths) for c in self.choices], np.int64)  # (G,)
        self.widest, self.narrowest = self.counts - 1, np.zeros_like(self.counts)
        longest = int(self.counts.max(initial=1))
        self.widths = np.stack([_padded(c.widths, longest) for c in self.choices])  # (G, K)
        self.lost = np.stack([_padded(c.lost, longest) for c in self.choices])  # (G, K)
        self._cost, self._rows = cost, np.arange(len(self.choices))

    def costs(self, states: NDArray[np.int64]) -> Floats:
        """(B,) of states (B, G)."""
        return self._cost.many(self.widths[self._rows, states])

    def cost(self, state: State) -> float:
        return float(self.costs(state[None])[0])

    def losses(self, states: NDArray[np.int64]) -> Floats:
        """Importance lost (B,) of states (B, G)."""
        return np.asarray(self.lost[self._rows, states].sum(axis=1))

    def loss(self, state: State) -> float:
        return float(self.losses(state[None])[0])

    def settle(self, start: State, price: float | None) -> State:
        """Move one group at a time to its best width until none moves; without a price, to its cheapest."""
        state = start.copy()
        for _ in range(_PASSES):
            before = state.copy()
            for group, count in enumerate(self.counts):
                states = np.repeat(state[None], count, axis=0)
                states[:, group] = np.arange(count)
                costs = self.costs(states)
                value = costs if price is None else self.lost[group, :count] + price * costs
                state[group] = count - 1 - value[::-1].argmin()  # the wider one of equals
            if (state == before).all():
                break
        return state

    def allocation(self, state: State) -> Allocation:
        return {c.name: c.kept(int(c.widths[k])) for c, k in zip(self.choices, state, strict=True)}


def _padded(values: NDArray[np.float64] | NDArray[np.int64], length: int) -> Floats:
    return np.pad(values.astype(np.float64), (0, length - len(values)), mode="edge")
