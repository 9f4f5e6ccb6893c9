"""Allocation: properties of every result, and greedy and Lagrangian choices against all possible ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from compress.errors import PruningError
from compress.pruning.allocation import Allocation, candidate_widths, ranked, to_cost, uniform
from compress.pruning.lagrangian import knapsack
from compress.pruning.values import ChannelGroup, Member

Groups = list[ChannelGroup]
Scores = dict[str, Tensor]


def group(name: str, channels: int, each: int = 1, frozen: str | None = None) -> ChannelGroup:
    index = torch.arange(channels * each)
    return ChannelGroup(name, channels, (Member(f"{name}.weight", 0, "out", index, index // each),), frozen)


def scores_of(groups: Sequence[ChannelGroup], seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.channels, generator=generator, dtype=torch.float64) for g in groups}


def total(allocation: Allocation) -> int:
    return sum(len(kept) for kept in allocation.values())


def widths_of(allocation: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: len(kept) for name, kept in allocation.items()}


def lost(scores: Scores, allocation: Allocation) -> float:
    return float(sum(scores[name].sum() - scores[name][kept].sum() for name, kept in allocation.items()))


def assert_valid(groups: Groups, scores: Scores, allocation: Allocation) -> None:
    assert list(allocation) == [g.name for g in groups if g.frozen is None]
    for g in groups:
        if g.frozen is None:
            kept = allocation[g.name]
            assert kept.dtype == torch.int64
            assert 1 <= len(kept) <= g.channels
            assert (kept.diff() > 0).all()
            gone = torch.ones(g.channels, dtype=torch.bool).index_fill_(0, kept, False)
            assert not gone.any() or scores[g.name][gone].max() <= scores[g.name][kept].min()


networks = st.builds(
    lambda widths, seed: ([g := [group(f"g{i}", w) for i, w in enumerate(widths)], scores_of(g, seed)]),
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(0, 1000),
)
ratios = st.floats(0, 0.99)
quick = settings(max_examples=60, deadline=None)


def chain_macs(widths: Mapping[str, int], groups: Groups) -> float:
    """A chain of layers: each costs the product of its input's and its output's width."""
    w = [3, *(widths.get(g.name, g.channels) for g in groups), 10]
    return float(sum(a * b for a, b in itertools.pairwise(w)))


@pytest.mark.parametrize(
    ("channels", "round_to", "floor", "expected"),
    [
        (32, 8, 0.0, [8, 16, 24, 32]),
        (36, 8, 0.3, [16, 24, 32, 36]),
        (15, 8, 0.5, [8, 9, 10, 11, 12, 13, 14, 15]),
        (4, 1, 0.0, [1, 2, 3, 4]),
        (5, 8, 1.0, [5]),
    ],
)
def test_wide_groups_keep_multiples_and_narrow_ones_any_width(
    channels: int, round_to: int, floor: float, expected: list[int]
) -> None:
    assert candidate_widths(group("g", channels), floor, round_to) == expected


def test_heads_of_64_neurons_are_multiples_of_8_already() -> None:
    assert candidate_widths(group("attention", 12, each=64), round_to=8) == list(range(1, 13))
    assert candidate_widths(group("pairs", 16, each=2), round_to=8) == [4, 8, 12, 16]


def test_rounding_goes_to_the_nearest_multiple() -> None:
    groups = [group("g", 32)]
    # 0.3 of 32 leaves 22.4: 24 is nearer than 16.
    assert widths_of(uniform(groups, scores_of(groups, 0), 0.3, round_to=8)) == {"g": 24}


@quick
@given(networks, ratios, st.sampled_from([1, 4, 8]))
def test_uniform_is_valid_and_close_to_its_ratio(network: tuple[Groups, Scores], ratio: float, round_to: int) -> None:
    groups, scores = network
    allocation = uniform(groups, scores, ratio, round_to)
    assert_valid(groups, scores, allocation)
    for g in groups:
        gap = abs(len(allocation[g.name]) - (1 - ratio) * g.channels)
        assert gap <= (1 if g.channels < 2 * round_to else round_to)


@quick
@given(networks, ratios, ratios, st.sampled_from([1, 4, 8]))
def test_a_higher_ratio_never_keeps_more(
    network: tuple[Groups, Scores], one: float, other: float, round_to: int
) -> None:
    groups, scores = network
    low, high = sorted((one, other))
    for allocate in (uniform, lambda *a: ranked(*a[:3], floor=0.0, round_to=a[3])):
        try:
            few, many = (widths_of(allocate(groups, scores, ratio, round_to)) for ratio in (high, low))
        except PruningError:
            continue
        assert all(few[name] <= many[name] for name in few)


@quick
@given(networks, ratios, st.floats(0, 1))
def test_ranked_removes_its_share_and_keeps_the_floors_or_says_what_it_can(
    network: tuple[Groups, Scores], ratio: float, floor: float
) -> None:
    groups, scores = network
    channels = sum(g.channels for g in groups)
    least = {g.name: candidate_widths(g, floor)[0] for g in groups}
    if round(ratio * channels) > channels - sum(least.values()):
        with pytest.raises(PruningError, match=f"at most {1 - sum(least.values()) / channels:.4f} can"):
            ranked(groups, scores, ratio, floor)
        return
    allocation = ranked(groups, scores, ratio, floor)
    assert_valid(groups, scores, allocation)
    assert total(allocation) == channels - round(ratio * channels)
    assert all(len(kept) >= least[name] for name, kept in allocation.items())


def test_ranked_takes_the_lowest_of_all_groups_together() -> None:
    groups = [group("a", 4), group("b", 4)]
    scores = {"a": torch.tensor([9.0, 1.0, 8.0, 7.0]), "b": torch.tensor([2.0, 5.0, 3.0, 6.0])}
    kept = ranked(groups, scores, 0.375, floor=0.0)
    assert kept["a"].tolist() == [0, 2, 3]
    assert kept["b"].tolist() == [1, 3]


def test_frozen_groups_are_left_alone() -> None:
    groups = [group("a", 8), group("out", 10, frozen="makes the outputs")]
    scores = scores_of(groups, 0)
    assert list(uniform(groups, scores, 0.5)) == ["a"]
    assert widths_of(ranked(groups, scores, 0.5)) == {"a": 4}
    only = [group("out", 10, frozen="makes the outputs")]
    assert uniform(only, {}, 0.5) == ranked(only, {}, 0.0) == {}


@quick
@given(networks, st.floats(0.05, 1.2), st.sampled_from([1, 8]))
def test_a_budget_is_met_or_the_smallest_cost_is_told(
    network: tuple[Groups, Scores], share: float, round_to: int
) -> None:
    groups, scores = network
    target = share * chain_macs({}, groups)
    smallest = chain_macs({g.name: candidate_widths(g, 0.1, round_to)[0] for g in groups}, groups)

    def cost(widths: Mapping[str, int]) -> float:
        return chain_macs(widths, groups)

    if smallest > target:
        with pytest.raises(PruningError, match=f"the smallest is {smallest:,.6g}"):
            to_cost(groups, scores, cost, target, round_to=round_to)
        return
    allocation = to_cost(groups, scores, cost, target, round_to=round_to)
    assert_valid(groups, scores, allocation)
    widths = widths_of(allocation)
    assert cost(widths) <= target
    for g in groups:  # nothing more fits
        wider = [w for w in candidate_widths(g, 0.1, round_to) if w > widths[g.name]]
        assert not wider or cost({**widths, g.name: wider[0]}) > target


def test_a_wide_budget_keeps_everything() -> None:
    groups = [group("a", 100), group("b", 70)]
    scores = scores_of(groups, 0)
    assert widths_of(to_cost(groups, scores, lambda w: chain_macs(w, groups), 1e9)) == {"a": 100, "b": 70}


def test_blocks_of_a_wide_group_do_not_cost_exactness() -> None:
    groups = [group("a", 1000)]
    scores = scores_of(groups, 0)
    assert widths_of(to_cost(groups, scores, lambda w: w.get("a", 1000), 503)) == {"a": 503}


def best_of_all(groups: Groups, scores: Scores, cost: Costs, target: float, round_to: int) -> float:
    """The least importance lost by any widths within ``target``."""
    candidates = [candidate_widths(g, 0.1, round_to) for g in groups]
    widths = np.array(list(itertools.product(*candidates)), np.float64)
    tables = []
    for number, g in enumerate(groups):
        ordered = np.concatenate([[0.0], np.cumsum(np.sort(scores[g.name].numpy()))])
        tables.append(ordered[g.channels - widths[:, number].astype(int)])
    losses = np.sum(tables, axis=0)
    return float(losses[cost.many(widths) <= target].min())


@dataclass(frozen=True)
class Costs:
    """A chain in which each layer costs by blocks of 4 channels, as kernels do, and a little for being there."""

    names: tuple[str, ...]
    factors: tuple[float, ...]
    block: float = 4.0

    def many(self, widths: NDArray[np.float64]) -> NDArray[np.float64]:
        ends = np.ones((len(widths), 1)) * 8
        blocks = np.ceil(np.concatenate([ends, widths, ends], axis=1) / self.block)
        return np.asarray((blocks[:, :-1] * blocks[:, 1:]) @ np.array(self.factors) + 3.0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_knapsack_is_within_two_percent_of_the_best_of_all_widths(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    groups = [group(f"g{i}", int(n)) for i, n in enumerate(generator.integers(20, 60, 4))]
    scores = scores_of(groups, seed)
    costs = Costs(tuple(g.name for g in groups), tuple(generator.uniform(0.2, 3, 5)))
    target = share * float(costs.many(np.array([[g.channels for g in groups]], np.float64))[0])
    found = knapsack(groups, scores, costs, target, round_to=4)
    assert_valid(groups, scores, found)
    assert costs.many(np.array([[len(kept) for kept in found.values()]], np.float64))[0] <= target
    # 2 %: the gap that the issue allows a heuristic on cases small enough to enumerate.
    assert lost(scores, found) <= 1.02 * best_of_all(groups, scores, costs, target, 4) + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_within_a_tenth_of_the_best_of_all_widths(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = [group(f"g{i}", int(n)) for i, n in enumerate(generator.integers(8, 24, 3))]
    scores = scores_of(groups, seed)
    costs = Costs(tuple(g.name for g in groups), tuple(generator.uniform(0.2, 3, 4)), block=1.0)

    def cost(widths: Mapping[str, int]) -> float:
        return float(costs.many(np.array([[widths.get(g.name, g.channels) for g in groups]], np.float64))[0])

    target = 0.5 * cost({})
    found = to_cost(groups, scores, cost, target)
    assert lost(scores, found) <= 1.1 * best_of_all(groups, scores, costs, target, 1)


def test_a_latency_out_of_reach_is_told_with_the_least_there_is() -> None:
    groups = [group("a", 16), group("b", 16)]
    costs = Costs(("a", "b"), (1.0, 1.0, 1.0))
    with pytest.raises(PruningError, match=r"least is 8 ms"):  # 2*1 + 1*1 + 1*2 blocks, and 3
        knapsack(groups, scores_of(groups, 0), costs, 5.0, round_to=1)
    with pytest.raises(PruningError, match="frozen"):
        knapsack([group("a", 4, frozen="makes the outputs")], {}, costs, 5.0)
    with pytest.raises(PruningError, match="other groups: b"):
        knapsack(groups[:1], scores_of(groups, 0), costs, 5.0)


def test_a_cost_that_is_not_monotone_is_used_as_it_is() -> None:
    class Odd:
        """15 channels are slower than 16, and everything below 12 too slow."""

        names = ("a",)

        def many(self, widths: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.where(np.isin(widths[:, 0], (12, 14)), 1.0, 2.0)

    groups = [group("a", 16)]
    assert widths_of(knapsack(groups, scores_of(groups, 0), Odd(), 1.5, round_to=1)) == {"a": 14}


def test_refusals_name_the_range() -> None:
    groups = [group("a", 4)]
    scores = scores_of(groups, 0)
    with pytest.raises(PruningError, match=r"ratio=1.0 must be within 0 <= ratio < 1"):
        uniform(groups, scores, 1.0)
    with pytest.raises(PruningError, match=r"floor=1.5 must be within 0..1"):
        ranked(groups, scores, 0.5, floor=1.5)
    with pytest.raises(PruningError, match="round_to=0"):
        uniform(groups, scores, 0.5, round_to=0)
    with pytest.raises(PruningError, match=r"group 'a' needs scores \(4,\), found none"):
        uniform(groups, {}, 0.5)


@pytest.mark.parametrize(
    ("channels", "round_to", "floor", "expected"),
    [
        (64, 16, 0.05, [*range(4, 16), 16, 32, 48, 64]),
        (24, 16, 0.0, [*range(1, 17), 24]),
        (10, 16, 0.25, [3, 4, 5, 6, 7, 8, 9, 10]),
        (64, 16, 0.5, [32, 48, 64]),
        (16, 1, 0.0, [*range(1, 17)]),
    ],
)
def test_narrow_widths_are_any_below_a_block_and_whole_blocks_above(
    channels: int, round_to: int, floor: float, expected: list[int]
) -> None:
    assert candidate_widths(group("g", channels), floor, round_to, narrow=True) == expected
