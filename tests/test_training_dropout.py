"""Dropout falls with the square root of the connections left, wherever it is written."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.models.reference import FineGrainedCNN
from compress.training.dropout import lowered_dropout


def rates(module: nn.Module, *inputs: Tensor) -> list[float]:
    """p of each dropout, as the kernel is told it, in one forward pass in training mode."""
    told: list[float] = []

    def kernel(x: Tensor, p: float, training: bool) -> Tensor:
        told.append(p)
        return x

    with mock.patch("torch.nn.functional._VF.dropout", side_effect=kernel):
        module.train()(*inputs)
    return told


def test_functional_dropout_with_a_written_p_is_lowered_for_the_layer_it_feeds() -> None:
    density = {"conv3.weight": 0.25, "fc1.weight": 0.01, "fc2.weight": 0.36}
    images = torch.randn(2, 1, 28, 28)
    module = FineGrainedCNN()
    with lowered_dropout(module, density, (images,)):
        assert rates(module, images) == pytest.approx([0.25, 0.05, 0.3])
        assert rates(module, images) == pytest.approx([0.25, 0.05, 0.3])
    assert rates(module, images) == [0.5, 0.5, 0.5]


def test_dropout_modules_are_lowered_and_the_last_without_a_layer_keeps_its_p() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.4), nn.ReLU(), nn.Linear(6, 3), nn.Dropout(0.2))
    inputs = torch.randn(2, 4)
    with lowered_dropout(module, {"0.weight": 0.1, "3.weight": 0.25}, (inputs,)):
        assert rates(module, inputs) == pytest.approx([0.2, 0.2])
        assert module[1].p == 0.4
    assert rates(module, inputs) == [0.4, 0.2]


def test_a_dropout_that_feeds_several_layers_follows_all_their_connections() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.wide, self.slim = nn.Dropout(0.5), nn.Linear(4, 30), nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.dropout(x)
            return torch.cat([self.wide(x), self.slim(x + 1)], dim=1)

    module, inputs = Two(), torch.randn(2, 4)
    with lowered_dropout(module, {"wide.weight": 0.0, "slim.weight": 0.36}, (inputs,)):
        assert rates(module, inputs) == pytest.approx([0.5 * 0.3])


def test_a_layer_that_is_not_named_counts_as_whole() -> None:
    module, inputs = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)), torch.randn(2, 4)
    with lowered_dropout(module, {}, (inputs,)):
        assert rates(module, inputs) == [0.5]


def test_dropout_between_recurrent_layers_is_lowered_and_put_back() -> None:
    module = nn.LSTM(3, 4, num_layers=2, dropout=0.4, batch_first=True)
    with lowered_dropout(module, {"weight_ih_l0": 0.0, "weight_ih_l1": 0.25}, (torch.randn(2, 5, 3),)):
        assert module.dropout == pytest.approx(0.2)
    assert module.dropout == 0.4


def test_neither_the_weights_nor_the_statistics_nor_the_random_numbers_are_touched() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    before, inputs = copy.deepcopy(module.state_dict()), torch.randn(8, 4)
    torch.manual_seed(0)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    with lowered_dropout(module, {"3.weight": 0.1}, (inputs,)):
        assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_other_modules_keep_their_dropout_and_an_error_in_the_forward_pass_leaves_none_lowered() -> None:
    module, inputs = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)), torch.randn(2, 4)
    other = copy.deepcopy(module)
    with lowered_dropout(module, {"1.weight": 0.25}, (inputs,)):
        with pytest.raises(RuntimeError, match="shapes"):
            module(torch.randn(2, 5))
        assert rates(other, inputs) == [0.5]
        assert rates(module, inputs) == [0.25]
    assert rates(module, inputs) == [0.5]


def test_about_the_lowered_share_of_the_inputs_is_dropped() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(20_000, 1)
            self.zeros = 0.0

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(x, 0.5, self.training)
            self.zeros = float((x == 0).float().mean())
            return torch.sum(self.fc(x))

    module, inputs = Plain().train(), torch.ones(2, 20_000)
    torch.manual_seed(0)
    with lowered_dropout(module, {"fc.weight": 0.16}, (inputs,)):
        module(inputs)
    assert module.zeros == pytest.approx(0.2, abs=0.01)  # five standard deviations of 40,000 draws
