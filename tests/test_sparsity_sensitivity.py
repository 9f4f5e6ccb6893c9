"""Sensitivity: the scan agrees with masking by hand, leaves the model alone, and suggests what it measured."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.data.splits import Batch, Split
from compress.errors import SparsityError
from compress.measurement import outputs_of, score
from compress.sparsity.masks import apply_masks, make_masks, sparsifiable
from compress.sparsity.sensitivity import Sensitivity, highest, layer_names, scan, sparse_copy, suggest, to_csv
from compress.sparsity.weights_summary import LayerWeights, summarise, summarise_all
from compress.values import Context, InputSpec, Model

RATES = (0.0, 0.3, 0.6, 0.9, 0.99)


@pytest.fixture
def opened_split(opened: tuple[Model, Context]) -> tuple[Model, Split]:
    model, context = opened
    assert context.data is not None
    return model, context.data.validation


def toy(module: nn.Module, x: Tensor, labels: Tensor | None = None) -> tuple[Model, Split]:
    def fetch(numbers: NDArray[np.int64]) -> Batch:
        rows = torch.from_numpy(numbers)
        return (x[rows],), None if labels is None else labels[rows]

    split = Split("validation", fetch, np.arange(len(x)), labels is not None)
    return Model(module.eval(), (InputSpec("x", tuple(x.shape[1:])),)), split


def test_each_point_is_what_masking_that_layer_by_hand_gives(opened_split: tuple[Model, Split]) -> None:
    model, split = opened_split
    found = scan(model, split, RATES)
    reference = outputs_of(model, split)
    assert found.n == len(split)
    assert found.baseline == score(reference, reference).figure
    for layer in found.layers:
        for rate, accuracy in zip(RATES, layer.accuracy, strict=True):
            masked = copy.deepcopy(model.module)
            parameter = {layer.parameter: sparsifiable(masked)[layer.parameter]}
            apply_masks(parameter, make_masks(parameter, rate, "magnitude"))
            outputs = outputs_of(dataclasses.replace(model, module=masked), split)
            assert accuracy == score(outputs, reference).figure, (layer.name, rate)


def test_the_scanned_model_is_left_as_it_was(opened_split: tuple[Model, Split]) -> None:
    model, split = opened_split
    model.module.train()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    suggest(model, split, scan(model, split, (0.5, 0.9), samples=40), 0.01)
    assert model.module.training
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_samples_are_fetched_once_and_spread_over_the_split() -> None:
    asked: list[int] = []
    model, split = toy(nn.Linear(4, 3), torch.randn(100, 4))

    def fetch(numbers: NDArray[np.int64]) -> Batch:
        asked.extend(numbers.tolist())
        return split.fetch(numbers)

    found = scan(model, dataclasses.replace(split, fetch=fetch), samples=5)
    assert asked == [0, 20, 40, 60, 80]
    assert found.n == 5


def test_without_labels_it_is_measured_against_the_models_own_answers() -> None:
    torch.manual_seed(0)
    found = scan(*toy(nn.Linear(8, 5), torch.randn(50, 8)), (0.0, 0.9))
    assert (found.measured_in, found.baseline) == ("fidelity", 1.0)
    assert found.layers[0].accuracy[0] == 1.0 > found.layers[0].accuracy[1]


def test_weights_that_are_zero_already_cost_no_measurement() -> None:
    calls = []
    module = nn.Linear(10, 4)
    with torch.no_grad():
        module.weight[:, :8] = 0
    module.register_forward_hook(lambda *_: calls.append(1))
    model, split = toy(module, torch.randn(6, 10))
    scan(model, split, (0.0, 0.2, 0.5, 0.8))
    assert len(calls) == 1, "only the whole model was to be run"


def test_answers_that_are_not_finite_count_as_wrong() -> None:
    class Divides(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (self.weight != 0).all()

    labels = torch.zeros(5, dtype=torch.int64)
    found = scan(*toy(Divides(4, 3), torch.ones(5, 4), labels), (0.0, 0.5))
    assert found.layers[0].accuracy[1] == 0.0


def test_a_tied_weight_is_scanned_once_and_holds_in_both_places() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x))
            return y

    found = scan(*toy(Tied(), torch.randn(9, 6)), (0.5,))
    assert [layer.name for layer in found.layers] == ["first"]
    smaller = sparse_copy(Tied(), {"first.weight": 0.5})
    assert int((dict(smaller.named_parameters())["first.weight"] == 0).sum()) == 18


def test_the_suggestion_is_within_the_budget_when_measured_again(opened_split: tuple[Model, Split]) -> None:
    model, split = opened_split
    found = scan(model, split, RATES)
    suggestion = suggest(model, split, found, 0.03)
    after = sparse_copy(model.module, {layer.parameter: suggestion.layers[layer.name] for layer in found.layers})
    reference = outputs_of(model, split)
    lost = found.baseline - score(outputs_of(dataclasses.replace(model, module=after), split), reference).figure
    assert lost == pytest.approx(suggestion.drop, abs=1e-12)
    assert suggestion.drop <= 0.03 + 1e-9
    assert 0.1 < suggestion.sparsity < 1
    zeros = sum(int((p == 0).sum()) for p in sparsifiable(after).values())
    assert zeros / sum(p.numel() for p in sparsifiable(after).values()) == pytest.approx(suggestion.sparsity, abs=0.01)


def test_a_larger_budget_never_suggests_less(opened_split: tuple[Model, Split]) -> None:
    model, split = opened_split
    found = scan(model, split, RATES)
    none, some, all_of_it = (suggest(model, split, found, budget) for budget in (0.0, 0.05, 1.0))
    assert none.sparsity <= some.sparsity <= all_of_it.sparsity
    assert none.drop <= 1e-9
    assert set(all_of_it.layers.values()) == {0.99}


def test_layers_that_cost_nothing_alone_but_much_together_are_not_all_taken() -> None:
    class EitherWillDo(nn.Module):
        """Right as long as one of its two layers is whole."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)
            for layer in (self.first, self.second):
                nn.init.ones_(layer.weight)

        def forward(self, x: Tensor) -> Tensor:
            whole = ((self.first(x)[:, 1] == 4) | (self.second(x)[:, 1] == 4)).float()
            return torch.stack([1 - whole, whole], dim=1)

    model, split = toy(EitherWillDo(), torch.ones(10, 4), torch.ones(10, dtype=torch.int64))
    found = scan(model, split, (0.5, 0.9))
    assert all(layer.accuracy == (1.0, 1.0) for layer in found.layers)
    suggestion = suggest(model, split, found, 0.0)
    assert suggestion.drop == 0.0
    less, more = sorted(suggestion.layers.values())
    assert more == 0.9
    assert 0.4 < less < 0.65, "the first row of one layer, which is not the one that answers"


@given(st.lists(st.floats(-0.1, 1.0), min_size=1, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_the_highest_sparsity_within_a_drop_rises_with_the_drop(drops: list[float], one: float, other: float) -> None:
    rates = [0.9 * (i + 1) / len(drops) for i in range(len(drops))]
    low, high = sorted((one, other))
    assert 0 <= highest(rates, drops, low) <= highest(rates, drops, high) <= rates[-1]


def test_the_highest_sparsity_lies_on_the_line_between_two_points() -> None:
    assert highest((0.0, 0.5, 0.9), (0.0, 0.0, 0.4), 0.1) == pytest.approx(0.6)
    assert highest((0.5,), (0.1,), 0.05) == pytest.approx(0.25)
    assert highest((0.5, 0.9), (0.2, 0.1), 0.1) == 0.9


def test_layers_are_named_as_short_as_is_clear() -> None:
    assert layer_names(("conv.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "weight", "b.weight", "b.other")) == {
        "conv.weight": "conv",
        "lstm.weight_ih_l0": "lstm.weight_ih_l0",
        "lstm.weight_hh_l0": "lstm.weight_hh_l0",
        "weight": "weight",
        "b.weight": "b.weight",
        "b.other": "b.other",
    }


def test_a_scan_survives_json_and_csv(opened_split: tuple[Model, Split]) -> None:
    found = scan(*opened_split, (0.0, 0.5), samples=30)
    assert Sensitivity.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    lines = to_csv(found).splitlines()
    assert lines[0] == "layer,parameter,weights,sparsity,accuracy,drop"
    assert len(lines) == 1 + 3 * 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"rates": (0.5, 1.0)}, "0 <= rate < 1"),
        ({"rates": ()}, "none"),
        ({"samples": 0}, "samples=0"),
        ({"keep": ("*",)}, "nothing to scan"),
    ],
)
def test_a_scan_that_cannot_be_made_is_refused(arguments: dict[str, object], told: str) -> None:
    model, split = toy(nn.Linear(4, 3), torch.randn(5, 4))
    with pytest.raises(SparsityError, match=told):
        scan(model, split, **arguments)  # type: ignore[arg-type]


def test_a_scan_of_another_model_is_refused() -> None:
    model, split = toy(nn.Linear(4, 3), torch.randn(5, 4))
    other, _ = toy(nn.Linear(4, 2), torch.randn(5, 4))
    with pytest.raises(SparsityError, match="another model"):
        suggest(other, split, scan(model, split, (0.5,)), 0.01)


def test_a_summary_counts_every_weight_once_and_only_what_is_left() -> None:
    torch.manual_seed(0)
    before = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4))
    after = sparse_copy(before, {"0.weight": 0.75})
    first, second = summarise(before, after)
    together = summarise_all(before, after)
    assert (first.name, first.weights, first.nonzero) == ("0", 200, 50)
    assert (second.name, second.weights, second.nonzero) == ("2", 40, 40)
    assert (sum(first.counts_before), sum(first.counts_after)) == (200, 50)
    assert (together.weights, together.nonzero, sum(together.counts_after)) == (240, 90, 90)
    assert len(first.edges) == len(first.counts_before) + 1
    assert LayerWeights.from_dict(json.loads(json.dumps(first.to_dict()))) == first


def test_a_summary_of_all_zeros_or_with_larger_weights_after_leaves_none_out() -> None:
    before, after = nn.Linear(3, 3), nn.Linear(3, 3)
    with torch.no_grad():
        before.weight.zero_()
        after.weight.fill_(7.0)
    (summary,) = summarise(before, after)
    assert (sum(summary.counts_before), sum(summary.counts_after)) == (0, 9)
    (empty,) = summarise(before, before)
    assert (empty.nonzero, sum(empty.counts_after)) == (0, 0)


def test_a_summary_of_unrelated_models_is_refused() -> None:
    with pytest.raises(SparsityError, match="not in the model"):
        summarise(nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 3))
