"""Channel groups: what leaves together is found without rules for the operators between the layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import PruningError
from compress.pruning import ChannelGroup, analyse, channel_groups
from tests.architectures import MODELS, make

OUTPUT = "reaches the output of the model"

# Groups that can lose channels, and how many they have.
EXPECTED = {
    "hard-coded view": {"conv1": 16, "conv2": 16, "fc1": 32},
    "functional mlp": {"w1": 32, "w2": 24},
    "two branches": {"left": 8, "right": 12, "mix": 16},
    "residual": {"stem": 8, "inner": 12},
    "gru": {"embed": 16, "gru": 24},
    "bidirectional lstm": {"embed": 16, "lstm": 20},
    "projected lstm": {"embed": 16, "lstm": 6, "lstm#2": 20},
    "attention": {"embed": 32, "q": 4, "up": 64},
    "packed attention": {"embed": 32, "qkv": 4, "up": 64},
    "encoder": {
        "embed": 32,
        "encoder.layers.0.self_attn": 4,
        "encoder.layers.0.linear1": 64,
        "encoder.layers.1.self_attn": 4,
        "encoder.layers.1.linear1": 64,
    },
    "tied": {"embed": 16, "up": 24},
    "used twice": {"first": 16},
    "dict output": {"trunk": 16},
    "excited": {"conv": 4, "squeeze": 4, "next": 4, "up": 6},
    "volume": {"conv": 8},
    "gated": {"conv": 8, "next": 6, "rnn": 10},
    "cells": {"embed": 8, "gru": 12, "lstm": 10},
    "packed sequence": {"embed": 8, "lstm": 12},
    "rotary": {"embed": 32, "q": 2, "gate": 48},
    "unet": {"down": 8, "deep": 16, "up": 8, "mix": 8, "fine": 4},
    "hard-coded slices": {"trunk": 32, "left": 8, "right": 8},
}


def find(name: str) -> dict[str, ChannelGroup]:
    module, inputs = make(name)
    return {group.name: group for group in channel_groups(module, inputs)}


def entries(group: ChannelGroup) -> dict[tuple[str, int], int]:
    return {(m.name, m.axis): len(m.index) for m in group.members}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_groups_of_an_architecture_are_found(name: str) -> None:
    found = find(name)
    assert {n: g.channels for n, g in found.items() if g.frozen is None} == EXPECTED[name]
    assert all(g.frozen == OUTPUT for g in found.values() if g.frozen is not None)


def test_residual_branches_lose_the_same_channels() -> None:
    stem = find("residual")["stem"]
    assert entries(stem) == {
        ("stem.weight", 0): 8,
        ("stem.bias", 0): 8,
        ("norm.weight", 0): 8,
        ("norm.bias", 0): 8,
        ("norm.running_mean", 0): 8,
        ("norm.running_var", 0): 8,
        ("inner.weight", 1): 8,
        ("outer.weight", 0): 8,
        ("outer.bias", 0): 8,
        ("scale", 0): 8,
        ("head.weight", 1): 8,
    }
    assert all(torch.equal(m.channel, torch.arange(8)) for m in stem.members)


def test_flattened_channels_take_all_their_positions_along() -> None:
    conv2 = find("hard-coded view")["conv2"]
    member = next(m for m in conv2.members if m.name == "fc1.weight")
    assert (member.axis, member.role, len(member.index)) == (1, "in", 576)
    assert torch.equal(member.channel, torch.arange(16).repeat_interleave(36))


def test_a_head_takes_its_rows_of_packed_projections_along() -> None:
    head = find("packed attention")["qkv"]
    rows = next(m for m in head.members if m.name == "qkv.weight")
    assert torch.equal(rows.channel, torch.arange(4).repeat_interleave(8).repeat(3))


def test_a_hidden_unit_takes_all_its_gates_along() -> None:
    gru = find("gru")["gru"]
    rows = next(m for m in gru.members if m.name == "gru.weight_hh_l0" and m.axis == 0)
    assert torch.equal(rows.channel, torch.arange(24).repeat(3))
    assert ("gru.weight_hh_l0", 1) in entries(gru)


def test_group_normalisation_lets_whole_groups_go_and_layer_normalisation_is_told_to_be_inexact() -> None:
    assert find("excited")["conv"].exact
    found = find("attention")
    assert not found["embed"].exact
    assert found["up"].exact


def test_halves_of_a_chunk_stay_of_one_length() -> None:
    stem = find("shuffled")["stem"]
    rows = next(m for m in stem.members if m.name == "stem.weight")
    left, right = (set(rows.channel[half].tolist()) for half in (slice(0, 8), slice(8, 16)))
    assert left == right
    for channel in left:
        taken = rows.index[rows.channel == channel]
        assert (taken < 8).sum() == (taken >= 8).sum()


def test_tied_weights_are_one_and_their_vocabulary_is_frozen() -> None:
    found = find("tied")
    assert ("embed.weight", 1) in entries(found["embed"])
    assert not any(m.name == "head.weight" for g in found.values() for m in g.members)
    assert found["embed#2"].frozen == OUTPUT


def test_the_module_is_left_as_it_was() -> None:
    module, inputs = make("residual")
    module.train()
    module[0].eval() if isinstance(module, nn.Sequential) else module.norm.eval()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    flags = [m.training for m in module.modules()]
    channel_groups(module, inputs)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert flags == [m.training for m in module.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_a_single_tensor_will_do_as_example_input() -> None:
    module, (x,) = make("two branches")
    names = [group.name for group in channel_groups(module, x)]
    assert names == [group.name for group in channel_groups(module, (x,))]


def test_layers_come_with_their_multiply_accumulates() -> None:
    module, inputs = make("two branches")
    layers = {layer.weight: layer for layer in analyse(module, inputs).layers}
    assert layers["left.weight"].macs == 8 * 8 * 8 * 3 * 9
    assert layers["mix.weight"].macs == 8 * 8 * 16 * 20
    assert layers["head.weight"].macs == 16 * 5


class MixedChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).softmax(-1))


def test_channels_that_are_mixed_are_frozen() -> None:
    a, b = channel_groups(MixedChannels(), torch.rand(2, 4))
    assert a.frozen == "its channels can only leave all together"
    assert b.frozen == OUTPUT


class AddsItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x + self.a(x))


def test_channels_that_meet_the_input_are_frozen() -> None:
    a, _ = channel_groups(AddsItsInput(), torch.rand(2, 6))
    assert a.frozen == "meets an input of the model"


class Auxiliary(nn.Module):
    """A head that only training runs, as in googlenet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.a(x))
        return (self.b(x), self.aux(x)) if self.training else self.b(x)


def test_a_head_that_only_training_runs_loses_its_inputs_too() -> None:
    a = channel_groups(Auxiliary().eval(), torch.rand(2, 4))[0]
    assert ("aux.weight", 1) in entries(a)


class Unread(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x) + self.a(x).argmax(-1, keepdim=True)


def test_channels_whose_use_cannot_be_seen_are_frozen() -> None:
    a = next(g for g in channel_groups(Unread(), torch.rand(2, 4)) if g.name == "a")
    assert a.frozen == "no layer reads it"


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x) if torch.isnan(x).any() else x


def test_a_path_that_depends_on_values_is_refused() -> None:
    with pytest.raises(PruningError, match="must not depend on values"):
        channel_groups(Undecided(), torch.rand(2, 4))


def test_inputs_that_do_not_fit_are_refused_with_torchs_reason() -> None:
    with pytest.raises(PruningError, match=r"cannot run on the example inputs.*shapes cannot be multiplied"):
        channel_groups(nn.Sequential(nn.Linear(4, 2)), torch.rand(2, 5))


@pytest.mark.parametrize("name", MODELS)
def test_every_entry_of_an_axis_belongs_to_one_channel_of_one_group(name: str) -> None:
    module, inputs = make(name)
    seen: set[tuple[str, int, int]] = set()
    for group in channel_groups(module, inputs):
        for member in group.members:
            assert len(member.index) == len(member.channel)
            assert bool((member.index.diff() > 0).all())
            assert 0 <= int(member.channel.min()) <= int(member.channel.max()) < group.channels
            mine = {(member.name, member.axis, int(i)) for i in member.index}
            assert not mine & seen
            seen |= mine
