"""`prune`: after surgery a model computes what the original computes when nothing reads the removed channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import PruningError
from compress.pruning import PrunedModel, channel_groups, load_pruned, prune, relative_error
from compress.pruning.exactness import evaluate, relative_effect, signature
from compress.pruning.outputs import leaves
from compress.pruning.pruned import compose
from compress.pruning.traced import TracedModule
from tests.architectures import MODELS, TwoBranches, make

TRACED = {"hard-coded view", "attention", "packed attention", "rotary", "hard-coded slices"}
EXACT = 1e-4  # relative, as the contract has it; in float64 a right cut is within 1e-12


def error_of(module: nn.Module, pruned: PrunedModel, inputs: tuple[Tensor, ...]) -> float:
    return relative_error(module, pruned.module, pruned.groups, pruned.kept, inputs)


@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_model_computes_what_the_original_does_without_the_removed_channels(name: str) -> None:
    module, inputs = make(name)
    pruned = prune(module, inputs, ratio=0.5, round_to=1)
    assert not [g.frozen for g in pruned.groups if g.frozen and "refused" in g.frozen]
    assert error_of(module, pruned, inputs) < EXACT
    # The test would pass where the removed channels did nothing: they did.
    assert relative_effect(module, pruned.groups, pruned.kept, inputs) > 100 * EXACT
    assert isinstance(pruned.module, TracedModule if name in TRACED else type(module))
    for group in channel_groups(module, inputs):
        if group.frozen is None:
            assert pruned.widths[group.name] == group.channels - group.channels // 2


@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_model_has_fewer_parameters_trains_and_takes_other_batches(name: str) -> None:
    module, (x,) = make(name)
    pruned = prune(module, x, ratio=0.5, round_to=1)
    assert sum(p.numel() for p in pruned.module.parameters()) < 0.75 * sum(p.numel() for p in module.parameters())
    more = torch.cat([x, x, x])
    expected = [s.replace(" (6,", " (2,") for s in signature(evaluate(pruned.module, (more,)))]
    assert expected == signature(evaluate(module, (x,)))
    pruned.module.train()
    total = sum(t.float().square().sum() for _, t in leaves(pruned.module(more)))
    assert isinstance(total, Tensor)
    total.backward()  # type: ignore[no-untyped-call]
    without = [n for n, p in pruned.module.named_parameters() if p.grad is None]
    assert not without


@pytest.mark.parametrize("name", ["two branches", "hard-coded view", "tied"])
def test_a_pruned_model_is_saved_and_read_back_without_pickle(name: str, tmp_path: Path) -> None:
    module, inputs = make(name)
    pruned = prune(module, inputs, ratio=0.5, round_to=1)
    pruned.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"weights.safetensors", "kept.json"}
    again = load_pruned(make(name)[0], tmp_path, inputs).eval()
    pruned.module.eval()
    with torch.no_grad():
        assert torch.equal(again(*inputs), pruned.module(*inputs))


def test_what_is_kept_is_listed_ascending_by_parameter_and_axis() -> None:
    module, inputs = make("two branches")
    pruned = prune(module, inputs, ratio=0.5, round_to=1)
    assert set(pruned.kept) == {
        *("left.weight", "left.bias", "right.weight", "right.bias", "mix.weight", "mix.bias", "head.weight")
    }
    assert set(pruned.kept["mix.weight"]) == {0, 1}
    for name, axes in pruned.kept.items():
        for axis, index in axes.items():
            assert bool((index.diff() > 0).all())
            original, smaller = module.get_parameter(name), pruned.module.get_parameter(name)
            assert smaller.shape[axis] == len(index) < original.shape[axis]
    kept = pruned.kept["left.weight"][0]
    assert torch.equal(pruned.module.get_parameter("left.bias"), module.get_parameter("left.bias")[kept])


def test_the_original_stays_as_it_was() -> None:
    module, inputs = make("residual")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    prune(module, inputs, ratio=0.5)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_channels_whose_weights_are_zero_leave_first_and_nothing_changes() -> None:
    module, inputs = make("two branches")
    assert isinstance(module, TwoBranches)
    with torch.no_grad():
        for parameter in (module.mix.weight, module.mix.bias):
            parameter[::2] = 0
        module.head.weight[:, ::2] = 0
    pruned = prune(module, inputs, ratio=0.5, round_to=1, keep=("left", "right"))
    assert pruned.kept["mix.weight"][0].tolist() == list(range(1, 16, 2))
    with torch.no_grad():
        torch.testing.assert_close(pruned.module(*inputs), module(*inputs))


@pytest.mark.parametrize("budget", [{"macs": 0.4}, {"parameters": 0.4}])
def test_a_budget_is_met(budget: dict[str, float]) -> None:
    module, inputs = make("two branches")
    pruned = prune(module, inputs, round_to=1, **budget)  # type: ignore[arg-type]
    assert error_of(module, pruned, inputs) < EXACT
    whole, left = (sum(p.numel() for p in m.parameters()) for m in (module, pruned.module))
    assert left < whole
    if "parameters" in budget:
        assert left <= 0.4 * whole


def test_a_measured_speed_up_cuts_what_takes_long(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 4)).eval()
    pruned = prune(module, torch.rand(2, 64), speedup=2, cache=tmp_path / "cache.json")
    left = sum(p.numel() for p in pruned.module.parameters()) / sum(p.numel() for p in module.parameters())
    assert left < 0.7
    assert (tmp_path / "cache.json").stat().st_size > 0


def test_a_global_ratio_removes_that_share_of_all_channels() -> None:
    module, inputs = make("residual")
    pruned = prune(module, inputs, ratio=0.4, scope="global", round_to=1)
    assert sum(pruned.widths.values()) == 20 - 8
    assert min(pruned.widths.values()) >= 1


def test_widths_are_rounded_to_the_nearest_multiple_of_eight() -> None:
    module = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
    assert prune(module, torch.rand(2, 4), ratio=0.3).widths == {"0": 24}


def test_what_is_named_to_be_kept_stays_whole() -> None:
    module, inputs = make("two branches")
    pruned = prune(module, inputs, ratio=0.5, round_to=1, keep=("r*",))
    assert "right" not in pruned.widths
    assert "right.weight" not in pruned.kept
    with pytest.raises(PruningError, match=r"keep='rihgt' names no channel group"):
        prune(module, inputs, ratio=0.5, keep=("rihgt",))


@pytest.mark.parametrize("given", [{}, {"ratio": 0.5, "macs": 0.5}])
def test_exactly_one_amount_is_asked_for(given: dict[str, float]) -> None:
    module, inputs = make("two branches")
    with pytest.raises(PruningError, match="give one of ratio, macs, parameters and speedup"):
        prune(module, inputs, **given)  # type: ignore[arg-type]


class SecretWidth(nn.Module):
    """A constant of the full width that no parameter tells of, beside a layer that is as it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.table = [0.5] * 8

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)) * torch.tensor(self.table)
        return self.c(F.relu(self.b(x)))


def test_a_group_whose_cut_fails_its_test_is_left_whole_with_the_reason() -> None:
    module = SecretWidth().eval()
    x = torch.rand(2, 4)
    pruned = prune(module, x, ratio=0.5, round_to=1)
    refused = {g.name: g.frozen for g in pruned.groups if g.frozen and "refused" in g.frozen}
    assert set(refused) == {"a"}
    assert pruned.widths == {"b": 4}
    assert error_of(module, pruned, (x,)) < EXACT


def test_a_model_without_anything_to_cut_is_refused() -> None:
    with pytest.raises(PruningError, match="no channels that can leave"):
        prune(nn.Sequential(nn.Linear(4, 2)).eval(), torch.rand(2, 4), ratio=0.5)


def test_two_cuts_compose() -> None:
    module, inputs = make("two branches")
    first = prune(module, inputs, ratio=0.25, round_to=1)
    second = prune(first.module, inputs, ratio=0.25, round_to=1)
    both = compose(first.kept, second.kept)
    for name, axes in both.items():
        expected = module.get_parameter(name)
        for axis, index in axes.items():
            expected = expected.index_select(axis, index)
        assert torch.equal(expected, second.module.get_parameter(name))
