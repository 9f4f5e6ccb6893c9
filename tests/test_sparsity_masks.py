"""Masks and schedules: exact counts, the published score, zeros that stay."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.errors import SparsityError
from compress.sparsity import apply_masks, cubic, make_masks, sparsifiable, sparsity_of
from compress.sparsity.masks import lamp


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3))


def test_biases_and_normalisation_are_never_sparsified() -> None:
    assert list(sparsifiable(net())) == ["0.weight", "3.weight", "4.weight"]


def test_kept_names_are_never_sparsified() -> None:
    assert list(sparsifiable(net(), keep=("4.*",))) == ["0.weight", "3.weight"]


def test_a_tied_weight_is_counted_once() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    assert list(sparsifiable(module)) == ["0.weight"]


def test_lamp_equals_its_definition() -> None:
    weight = torch.randn(5, 7)
    squares = weight.double().square()
    expected = squares / torch.stack([(squares * (squares >= s)).sum() for s in squares.flatten()]).reshape(5, 7)
    torch.testing.assert_close(lamp(weight), expected)


@settings(max_examples=60, deadline=None)
@given(
    sparsity=st.floats(0, 0.999),
    score=st.sampled_from(["lamp", "magnitude"]),
    seed=st.integers(0, 5),
)
def test_exactly_the_asked_share_of_weights_goes(sparsity: float, score: str, seed: int) -> None:
    parameters = sparsifiable(net(seed))
    weights = sum(p.numel() for p in parameters.values())
    masks = make_masks(parameters, sparsity, score)
    assert sum(int((~m).sum()) for m in masks.values()) == round(sparsity * weights)


def test_lamp_leaves_a_weight_in_every_layer_where_magnitude_empties_one() -> None:
    module = net()
    with torch.no_grad():
        module[3].weight.mul_(1e-4)
    parameters = sparsifiable(module)
    assert int(make_masks(parameters, 0.9, "lamp")["3.weight"].sum()) > 0
    assert int(make_masks(parameters, 0.9, "magnitude")["3.weight"].sum()) == 0


@settings(max_examples=30, deadline=None)
@given(first=st.floats(0, 0.9), more=st.floats(0, 0.09), score=st.sampled_from(["lamp", "magnitude"]))
def test_zeros_stay_zero_as_sparsity_rises(first: float, more: float, score: str) -> None:
    module = net()
    parameters = sparsifiable(module)
    apply_masks(parameters, make_masks(parameters, first, score))
    before = {name: p.detach() == 0 for name, p in parameters.items()}
    apply_masks(parameters, make_masks(parameters, first + more, score))
    assert all(bool((parameters[name] == 0)[zeros].all()) for name, zeros in before.items())


def test_sparsity_is_zeros_over_elements() -> None:
    assert sparsity_of({"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([[0.0, 0.0, 3.0, 4.0]])}) == 0.5


def test_nothing_to_sparsify_is_an_error_and_so_is_everything() -> None:
    with pytest.raises(SparsityError, match="nothing to sparsify"):
        make_masks({}, 0.5)
    with pytest.raises(SparsityError, match="sparsity=1"):
        make_masks(sparsifiable(net()), 1.0)


@given(steps=st.integers(1, 1000), start=st.floats(0, 0.5), rise=st.floats(0, 0.49))
def test_the_cubic_schedule_never_falls_and_ends_at_its_target(steps: int, start: float, rise: float) -> None:
    values = [cubic(step, steps, start, start + rise) for step in range(steps + 2)]
    assert values[0] == pytest.approx(start)
    assert values[-1] == start + rise
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))


def test_the_cubic_schedule_equals_the_published_formula() -> None:
    assert cubic(25, 100, 0.0, 0.8) == pytest.approx(0.8 - 0.8 * 0.75**3)
