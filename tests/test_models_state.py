"""A module's state goes to bytes and back without a change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.errors import ModelError
from compress.models import load_state, save_state
from compress.models.reference import digits_cnn


def test_the_state_comes_back_bit_for_bit_buffers_included() -> None:
    module = nn.Sequential(digits_cnn(), nn.BatchNorm1d(10))
    module(torch.rand(4, 1, 8, 8))
    other = nn.Sequential(digits_cnn(), nn.BatchNorm1d(10))
    load_state(other, save_state(module))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def tied() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    return module


def test_tied_weights_stay_tied_and_equal() -> None:
    module, other = tied(), tied()
    load_state(other, save_state(module))
    assert other[1].weight is other[0].weight
    assert torch.equal(other[0].weight, module[0].weight)


def test_views_and_transposed_weights_are_saved_as_their_values() -> None:
    module, other = nn.Linear(3, 4), nn.Linear(3, 4)
    module.weight = nn.Parameter(torch.rand(3, 4).t())
    load_state(other, save_state(module))
    assert torch.equal(other.weight, module.weight)


def test_saving_the_same_module_twice_gives_the_same_bytes() -> None:
    module = digits_cnn()
    assert save_state(module) == save_state(module)


def test_a_state_of_other_shapes_is_refused() -> None:
    with pytest.raises(ModelError, match=r"other shape 2: weight \(4, 3\) for \(5, 3\), bias"):
        load_state(nn.Linear(3, 5), save_state(nn.Linear(3, 4)))
