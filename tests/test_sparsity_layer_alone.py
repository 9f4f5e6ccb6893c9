"""What single layers are worth, on a model whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compress.errors import MeasurementError
from compress.sparsity import layer_alone
from compress.sparsity.layer_alone import CHANGES, sensitivity_map
from compress.values import Context, Model


def test_every_layer_is_scored_in_every_way_and_the_model_stays_as_it_was(opened: tuple[Model, Context]) -> None:
    model, context = opened
    assert context.data is not None
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    found = sensitivity_map(model, context.data.validation, 30.0)
    assert found.layers == ("0", "6", "8")
    assert found.columns == ("50 %", "80 %", "90 %", "95 %", "int8", "int4")
    assert [len(row) for row in found.drops] == [6, 6, 6]
    assert (found.measured_in, found.n) == ("accuracy", len(context.data.validation))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())


def test_taking_more_costs_more_and_eight_bits_cost_little(opened: tuple[Model, Context]) -> None:
    model, context = opened
    assert context.data is not None
    for row in sensitivity_map(model, context.data.validation, 30.0).drops:
        few, *_, most, int8, _ = row
        assert most > few
        assert abs(int8) < 0.02


def test_without_labels_drops_are_of_fidelity(opened: tuple[Model, Context]) -> None:
    model, context = opened
    assert context.data is not None
    split = context.data.validation
    blind = replace(split, fetch=lambda numbers: (split.fetch(numbers)[0], None), labelled=False)
    found = sensitivity_map(model, blind, 30.0)
    assert found.measured_in == "fidelity"
    assert min(drop for row in found.drops for drop in row) >= 0


def test_too_little_time_is_told_with_how_much_it_would_take(opened: tuple[Model, Context]) -> None:
    model, context = opened
    assert context.data is not None
    with pytest.raises(MeasurementError, match=r"19 passes over 64 samples .* benchmark\.sensitivity_seconds"):
        sensitivity_map(model, context.data.validation, 1e-6)


def test_a_model_without_weights_is_refused(opened: tuple[Model, Context]) -> None:
    model, context = opened
    assert context.data is not None
    with pytest.raises(MeasurementError, match="no layer with weights"):
        sensitivity_map(replace(model, module=nn.Flatten()), context.data.validation, 1.0)


def test_a_change_takes_the_smallest_or_rounds_to_the_grid() -> None:
    weight = torch.tensor([[-4.0, 1.0, 2.0, -3.0]])
    assert CHANGES["50 %"](weight).tolist() == [[-4.0, 0.0, 0.0, -3.0]]
    step = 4.0 / 7
    assert torch.allclose(CHANGES["int4"](weight), (weight / step).round() * step)
    assert (CHANGES["int8"](weight) - weight).abs().max() <= 4.0 / 127 / 2
    assert layer_alone.CHANGES["int8"](torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
