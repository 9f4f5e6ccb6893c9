"""The reference: the original with the consumers of the removed channels at zero."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from compress.pruning.exactness import evaluate, leaves, reference, relative_effect, relative_error, signature
from compress.pruning.slicing import slice_module
from compress.pruning.surgery import kept_of
from compress.pruning.values import ChannelGroup
from tests.test_pruning_tracing import layer, member


@dataclass
class Answer:
    scores: Tensor
    extra: dict[str, Tensor]


def test_every_tensor_of_nested_outputs_is_found() -> None:
    one, two = torch.zeros(2, 3), torch.ones(2, dtype=torch.int64)
    outputs = OrderedDict(a=Answer(one, {"k": two}), b=(one, [None, two]))
    assert [path for path, _ in leaves(outputs)] == ["['a'].scores", "['a'].extra['k']", "['b'][0]", "['b'][1][1]"]
    assert signature({"y": one}) == ["output['y'] (2, 3) torch.float32"]


class Network(nn.Module):
    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.norm = norm or nn.Identity()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Answer:
        hidden = self.norm(self.fc1(x))
        return Answer(self.fc2(self.drop(hidden.sigmoid())), {"positive": (x > 0).sum(1)})


def groups_of(norm: nn.Module | None) -> list[ChannelGroup]:
    along = tuple(member(f"norm.{name}", 0, "along", 6) for name, _ in norm.named_parameters()) if norm else ()
    return [ChannelGroup("fc1", 6, (*layer("fc1", 6), *along, member("fc2.weight", 1, "in", 6)))]


INPUTS = (torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),)


def test_the_reference_is_the_original_with_zero_consumers() -> None:
    module = Network().train()
    groups = groups_of(None)
    kept = kept_of(module, groups, {"fc1": torch.tensor([0, 4])})
    found = reference(module, groups, kept, INPUTS)
    hidden = module.fc1(INPUTS[0]).sigmoid()
    by_hand = hidden[:, [0, 4]] @ module.fc2.weight[:, [0, 4]].T + module.fc2.bias
    torch.testing.assert_close(found.scores, by_hand.detach())
    assert module.training
    assert bool((module.fc2.weight != 0).all())


@pytest.mark.parametrize(
    ("norm", "kept_channels"),
    [
        (None, [0, 4]),
        (nn.LayerNorm(6), [1, 2, 5]),
        (nn.RMSNorm(6), [0, 3]),
        (nn.GroupNorm(3, 6), [0, 1, 4, 5]),
        (nn.BatchNorm1d(6), [2]),
    ],
)
def test_a_right_cut_agrees_to_rounding_in_float64(norm: nn.Module | None, kept_channels: list[int]) -> None:
    module = Network(norm)
    if norm is not None:
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    groups = groups_of(norm)
    if isinstance(norm, nn.BatchNorm1d):
        extra = tuple(member(f"norm.running_{name}", 0, "along", 6) for name in ("mean", "var"))
        groups = [ChannelGroup("fc1", 6, (*groups[0].members, *extra))]
    kept = kept_of(module, groups, {"fc1": torch.tensor(kept_channels)})
    assert relative_error(module, slice_module(module, kept), groups, kept, INPUTS) < 1e-14


def test_the_effect_tells_whether_an_exactness_test_proves_anything() -> None:
    module = Network()
    groups = groups_of(None)
    kept = kept_of(module, groups, {"fc1": torch.tensor([0, 4])})
    assert relative_effect(module, groups, kept, INPUTS) > 0.01
    with torch.no_grad():
        module.fc2.weight.zero_()
    assert relative_effect(module, groups, kept, INPUTS) == 0


def test_a_wrong_cut_is_seen() -> None:
    module = Network()
    groups = groups_of(None)
    kept = kept_of(module, groups, {"fc1": torch.tensor([0, 4])})
    smaller = slice_module(module, kept)
    with torch.no_grad():
        smaller.fc2.bias[0] += 0.1
    assert relative_error(module, smaller, groups, kept, INPUTS) > 0.01
    with torch.no_grad():
        smaller.fc2.bias[0] = torch.nan
    assert relative_error(module, smaller, groups, kept, INPUTS) == torch.inf


def test_a_model_with_its_dtype_written_down_is_compared_in_it() -> None:
    class Single(Network):
        def forward(self, x: Tensor) -> Answer:
            return super().forward(x.to(torch.float32))

    module = Single()
    groups = groups_of(None)
    kept = kept_of(module, groups, {"fc1": torch.tensor([1])})
    assert relative_error(module, slice_module(module, kept), groups, kept, INPUTS) < 1e-6


def test_infinities_in_the_same_places_are_no_difference() -> None:
    class Masked(Network):
        def forward(self, x: Tensor) -> Answer:
            answer = super().forward(x)
            return Answer(answer.scores.masked_fill(torch.tensor([True, False, False]), -torch.inf), {})

    module = Masked()
    groups = groups_of(None)
    kept = kept_of(module, groups, {"fc1": torch.tensor([1, 2])})
    assert relative_error(module, slice_module(module, kept), groups, kept, INPUTS) < 1e-14


def test_evaluating_puts_the_training_flags_back_and_does_not_touch_the_inputs() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1)

    module = nn.Sequential(nn.Dropout(0.5), InPlace())
    module[0].eval()
    inputs = (torch.zeros(2),)
    assert torch.equal(evaluate(module, inputs), torch.ones(2))
    assert inputs[0].sum() == 0
    assert [m.training for m in module] == [False, True]
