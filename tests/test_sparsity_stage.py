"""The sparsify stage: where it searches, that zeros hold after every step, that it backs off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress.errors import RecipeError, SparsityError
from compress.recipe import Recipe
from compress.sparsity import SparsifyConfig, make_masks, sparsify, sparsity_of
from compress.sparsity.masking import Masking
from compress.sparsity.masks import Scope, Score, apply_masks, sparsifiable
from compress.sparsity.schedules import Schedule
from compress.sparsity.search import next_sparsity, start_after
from compress.sparsity.size_model import predict_zip_bytes
from compress.training import FineTuneConfig
from compress.training.dropout import lowered_dropout
from compress.values import Context, InputSpec, Model
from tests.conftest import tiny_cnn

Quick = Callable[..., Recipe]
SHORT = FineTuneConfig(batch_size=32, learning_rate=0.005)


def test_the_search_begins_denser_in_a_model_that_was_cut() -> None:
    assert start_after(0.9, 1000, 1000) == pytest.approx(0.9)
    assert start_after(0.9, 1000, 250) == pytest.approx(0.8)
    assert start_after(0.9, 1000, 1) == pytest.approx(0.5)
    assert start_after(0.3, 1000, 1) == pytest.approx(0.3)


def test_each_success_halves_what_is_left() -> None:
    assert next_sparsity(None, None, None, 0.9) == 0.9
    assert next_sparsity(0.9, None, None, 0.9) == pytest.approx(0.95)
    assert next_sparsity(0.95, None, None, 0.9) == pytest.approx(0.975)


def test_a_failure_backs_off_to_the_geometric_middle_of_the_densities() -> None:
    assert next_sparsity(0.9, 0.975, None, 0.9) == pytest.approx(0.95)
    assert next_sparsity(None, 0.9, None, 0.9) == pytest.approx(1 - 0.1**0.5)


def test_how_far_a_failure_backs_off_is_a_share_of_the_way_between_the_densities() -> None:
    assert next_sparsity(None, 0.9, None, 0.9, way=0.25) == pytest.approx(1 - 0.1**0.25)
    assert next_sparsity(0.9, 0.99, None, 0.9, way=1 / 3) == pytest.approx(1 - 0.1 * 0.1 ** (1 / 3))


def test_a_sparsity_that_was_asked_for_is_the_end_of_the_search() -> None:
    assert next_sparsity(None, None, 0.8, 0.9) == 0.8
    assert next_sparsity(0.8, None, 0.8, 0.9) is None
    assert next_sparsity(None, 0.8, 0.8, 0.9) == pytest.approx(1 - 0.2**0.5)


def test_a_round_that_fell_short_is_not_followed_by_one_above_what_was_asked_for() -> None:
    assert next_sparsity(0.7, None, 0.8, 0.9) == 0.8
    assert next_sparsity(0.2, None, 0.8, 0.9) == pytest.approx(0.6)


def test_no_sparsity_below_that_of_the_model_as_it_came_is_tried() -> None:
    assert next_sparsity(None, None, 0.5, 0.9, came=0.8) is None
    assert next_sparsity(None, None, None, 0.9, came=0.95) == 0.95
    assert next_sparsity(None, 0.95, None, 0.9, came=0.8) == pytest.approx(0.9)


@given(threshold=st.floats(0.05, 0.995), start=st.floats(0.1, 0.95))
def test_the_search_ends_and_never_repeats_itself(threshold: float, start: float) -> None:
    best, failed, tried = None, None, []
    while (target := next_sparsity(best, failed, None, start)) is not None:
        assert 0 < target < 1
        assert target not in tried
        tried.append(target)
        assert len(tried) < 30
        if target <= threshold:
            best = target
        else:
            failed = target
    assert failed is not None
    assert (1 - (best or 0.0)) / (1 - failed) < 1.1**2 + 1e-6


def test_zeros_hold_after_every_optimizer_step() -> None:
    torch.manual_seed(0)
    module = tiny_cnn()
    masking = Masking(sparsifiable(module), 0.8, ramp=20)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    parameters, before = sparsifiable(module), {}
    for step in range(1, 41):
        module(torch.randn(8, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        masking(step, 0.0)
        zeros = {name: p.detach() == 0 for name, p in parameters.items()}
        assert all(bool(zeros[name][was].all()) for name, was in before.items()), f"step {step}"
        before = zeros
        if step >= 20:
            assert sparsity_of(parameters) == pytest.approx(0.8, abs=1e-3)


def test_zeros_of_a_model_that_comes_sparser_than_asked_do_not_return() -> None:
    torch.manual_seed(0)
    module = tiny_cnn()
    parameters = sparsifiable(module)
    apply_masks(parameters, make_masks(parameters, 0.8))
    zeros = {name: p.detach() == 0 for name, p in parameters.items()}
    ways: tuple[dict[str, Any], ...] = ({"target": 0.5}, {"target": {"6.weight": 0.1}}, {"target": 0, "pattern": "2:4"})
    for options in ways:
        masking = Masking(parameters, **options)
        for step in (1, 2):
            with torch.no_grad():
                for parameter in parameters.values():
                    parameter.add_(0.1)
            masking(step, 0.0)
            assert all(bool((p[zeros[name]] == 0).all()) for name, p in parameters.items()), options


def test_a_parameter_without_a_gradient_has_no_part_in_the_loss() -> None:
    parameters = {"used": nn.Parameter(torch.ones(2, 4)), "unused": nn.Parameter(torch.ones(2, 4))}
    gradients = {name: torch.ones(2, 4) for name in parameters}
    masking = Masking(parameters, 0.5, ramp=2, score="taylor", gradients=gradients)
    parameters["used"].grad = torch.ones(2, 4)
    masking(1, 0.0)
    masking(2, 0.0)
    assert torch.count_nonzero(parameters["used"]) == 8
    assert torch.count_nonzero(parameters["unused"]) == 0


def test_a_share_of_few_weights_is_met_in_whole_weights(opened: tuple[Model, Context]) -> None:
    _, context = opened
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Linear(1, 10))  # 74 weights
    few = Model(module.eval(), (InputSpec("input", (1, 8, 8)),))
    config = quickly(sparsity=0.655, rounds=3)  # 48.47 of them
    _, record = sparsify(few, config, replace(context, original=few, max_drop=1.0))
    assert [r["sparsity"] for r in record.figures["rounds"]] == [pytest.approx(48 / 74)]


def test_what_is_sparse_enough_already_is_left_as_it_came(opened: tuple[Model, Context]) -> None:
    model, context = opened
    same, record = sparsify(model, quickly(zip_bytes=10**6), context)
    assert same is model
    assert record.skipped == "0.00% of the weights are zero already, and 0.00% are needed"


def test_what_stays_within_the_budget_is_returned_and_what_does_not_is_backed_off(
    opened: tuple[Model, Context],
) -> None:
    model, context = opened
    config = SparsifyConfig(sparsity=0.995, rounds=3, epochs=1, min_steps=60, budget=0.5, finetune=SHORT)
    sparse, record = sparsify(model, config, context)
    rounds = record.figures["rounds"]
    assert not rounds[0]["within"]
    assert rounds[0]["sparsity"] == pytest.approx(0.995, abs=1e-3)
    assert rounds[1]["sparsity"] < rounds[0]["sparsity"]
    within = [r["sparsity"] for r in rounds if r["within"]]
    assert within
    assert record.figures["sparsity"] == max(within)
    assert sparsity_of(sparsifiable(sparse.module)) == pytest.approx(max(within))
    assert all(r["drop"] <= 0.05 + 1e-9 for r in rounds if r["within"])


def test_without_any_round_within_the_budget_the_model_is_as_it_came(opened: tuple[Model, Context]) -> None:
    model, context = opened
    config = SparsifyConfig(sparsity=0.999, rounds=1, epochs=0.1, min_steps=1, budget=0.0, finetune=SHORT)
    same, record = sparsify(model, config, context)
    assert same is model
    assert record.skipped is not None
    assert "99.9" in record.skipped


def quickly(**options: Any) -> SparsifyConfig:
    return SparsifyConfig(**{"rounds": 1, "epochs": 0.1, "min_steps": 20, "budget": 1, "finetune": SHORT, **options})


@pytest.mark.parametrize(
    ("score", "scope"),
    [("magnitude", "global"), ("taylor", "global"), ("random", "global"), ("lamp", "layer")],
)
def test_score_and_scope_are_options_that_change_what_goes_but_not_how_much(
    score: Score, scope: Scope, opened: tuple[Model, Context]
) -> None:
    model, context = opened
    plain, _ = sparsify(model, quickly(sparsity=0.7), replace(context, max_drop=1.0))
    other, _ = sparsify(model, quickly(sparsity=0.7, score=score, scope=scope), replace(context, max_drop=1.0))
    ours, theirs = sparsifiable(plain.module), sparsifiable(other.module)
    assert sparsity_of(ours) == pytest.approx(0.7, abs=1e-3)
    assert sparsity_of(theirs) == pytest.approx(0.7, abs=1e-3)
    assert any(not torch.equal(ours[name] == 0, theirs[name] == 0) for name in ours)


def test_the_layerwise_scope_takes_the_same_share_of_every_layer(opened: tuple[Model, Context]) -> None:
    model, context = opened
    sparse, _ = sparsify(model, quickly(sparsity=0.75, scope="layer"), replace(context, max_drop=1.0))
    for name, weight in sparsifiable(sparse.module).items():
        assert int((weight == 0).sum()) == round(0.75 * weight.numel()), name


@pytest.mark.parametrize("schedule", ["cubic", "one-shot"])
def test_a_dictionary_gives_every_layer_its_own_share(schedule: Schedule, opened: tuple[Model, Context]) -> None:
    model, context = opened
    config = quickly(layers={"0": 0.25, "6.weight": 0.9}, schedule=schedule)
    sparse, record = sparsify(model, config, replace(context, max_drop=1.0))
    zeros = {name: int((weight == 0).sum()) for name, weight in sparsifiable(sparse.module).items()}
    assert zeros == {"0.weight": 18, "6.weight": round(0.9 * 4096), "8.weight": 0}
    assert record.figures["sparsity"] == pytest.approx((18 + 3686) / (72 + 4096 + 320))


def test_a_layer_that_there_is_not_is_named_with_the_nearest(opened: tuple[Model, Context]) -> None:
    model, context = opened
    with pytest.raises(SparsityError, match=r"8\.wight"):
        sparsify(model, quickly(layers={"8.wight": 0.5}), context)


def test_of_four_consecutive_inputs_two_stay_through_training(opened: tuple[Model, Context]) -> None:
    model, context = opened
    sparse, record = sparsify(model, quickly(pattern="2:4"), replace(context, max_drop=1.0))
    weight = sparsifiable(sparse.module)["6.weight"]  # (32, 128)
    assert ((weight.reshape(32, 32, 4) != 0).sum(dim=2) == 2).all()
    assert torch.count_nonzero(sparse.module[0].weight) == 72  # one input channel: nothing to choose from
    assert record.figures["sparsity"] == pytest.approx((4096 + 320) / 2 / 4488)


def test_one_shot_removes_before_training_what_is_zero_after_it(opened: tuple[Model, Context]) -> None:
    model, context = opened
    sparse, _ = sparsify(model, quickly(sparsity=0.6, schedule="one-shot"), replace(context, max_drop=1.0))
    expected = make_masks(sparsifiable(model.module), 0.6, "lamp")
    for name, weight in sparsifiable(sparse.module).items():
        assert torch.equal(weight != 0, expected[name])


def test_iterative_pruning_halves_what_is_left_until_the_accuracy_is_gone(opened: tuple[Model, Context]) -> None:
    model, context = opened
    config = quickly(schedule="iterative", rounds=12, min_steps=30)
    sparse, record = sparsify(model, config, replace(context, max_drop=0.05))
    rounds = record.figures["rounds"]
    assert len(rounds) > 1
    for number, done in enumerate(rounds, start=1):
        assert done["sparsity"] == pytest.approx(1 - 0.5**number, abs=2e-3)
    assert all(done["within"] for done in rounds[:-1])
    assert not rounds[-1]["within"]  # 12 halvings leave one weight of 4,488
    assert sparsity_of(sparsifiable(sparse.module)) == pytest.approx(rounds[-2]["sparsity"])


def test_iterative_pruning_ends_at_the_sparsity_that_was_asked_for(opened: tuple[Model, Context]) -> None:
    model, context = opened
    config = quickly(schedule="iterative", sparsity=0.7, rounds=9)
    _, record = sparsify(model, config, replace(context, max_drop=1.0))
    assert [round(r["sparsity"], 2) for r in record.figures["rounds"]] == [0.5, 0.7]


def test_iterative_pruning_ends_at_the_bytes_that_were_asked_for(opened: tuple[Model, Context]) -> None:
    model, context = opened
    asked = predict_zip_bytes(model.module, masks=make_masks(sparsifiable(model.module), 0.6), stored="int8")
    config = quickly(schedule="iterative", zip_bytes=asked, rounds=9)
    _, record = sparsify(model, config, replace(context, max_drop=1.0))
    assert [r["sparsity"] for r in record.figures["rounds"]] == pytest.approx([0.5, 0.6], abs=0.01)


def test_a_ramp_from_a_half_starts_at_a_half() -> None:
    torch.manual_seed(0)
    parameters = sparsifiable(tiny_cnn())
    masking = Masking(parameters, 0.9, ramp=30, initial=0.5)
    assert sparsity_of(parameters) == pytest.approx(0.5, abs=1e-3)
    found = []
    for step in range(1, 41):
        masking(step, 0.0)
        found.append(sparsity_of(parameters))
    assert found == sorted(found)
    assert found[28] < 0.9
    assert found[29] == found[-1] == pytest.approx(0.9, abs=1e-3)


def test_the_reactive_schedule_goes_as_far_as_the_loss_allows(opened: tuple[Model, Context]) -> None:
    model, context = opened
    found = {}
    for tolerance in (0.0, 100.0):
        config = quickly(sparsity=0.8, schedule="reactive", tolerance=tolerance, min_steps=60)
        _, record = sparsify(model, config, replace(context, max_drop=1.0))
        found[tolerance] = record.figures["rounds"][0]["sparsity"]
    assert found[100.0] == pytest.approx(0.8, abs=1e-3)
    assert found[0.0] < found[100.0]


def test_a_number_of_zip_bytes_becomes_a_sparsity_that_is_predicted_to_fit(opened: tuple[Model, Context]) -> None:
    model, context = opened
    dense = predict_zip_bytes(model.module, stored="int8")
    config = quickly(zip_bytes=round(0.6 * dense))
    sparse, record = sparsify(model, config, replace(context, max_drop=1.0))
    assert 0.1 < record.figures["sparsity"] < 0.99
    assert predict_zip_bytes(sparse.module, stored="int8") == pytest.approx(0.6 * dense, rel=0.05)
    with pytest.raises(SparsityError, match="out of reach"):
        sparsify(model, quickly(zip_bytes=10), context)


def test_for_size_no_round_is_run_that_is_predicted_to_save_nothing(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = opened
    config = quickly(start=0.5, rounds=3)
    freely = replace(context, max_drop=1.0)
    _, record = sparsify(model, config, replace(freely, objective="size"))
    assert len(record.figures["rounds"]) == 3
    monkeypatch.setattr("compress.sparsity.search.predict_zip_bytes", lambda *a, **k: 1000)
    _, record = sparsify(model, config, replace(freely, objective="size"))
    assert {r["sparsity"] for r in record.figures["rounds"]} == {0.5}
    assert "was not tried" in record.notes[-1]


def test_rounds_that_are_left_train_the_best_model_further_and_keep_its_zeros(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = opened
    monkeypatch.setattr("compress.sparsity.search.predict_zip_bytes", lambda *a, **k: 1000)  # no other round pays
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: 0.0)
    asked = quickly(start=0.5, rounds=4)
    one, _ = sparsify(model, quickly(start=0.5, rounds=1), replace(context, max_drop=1.0, objective="size"))
    longer, record = sparsify(model, asked, replace(context, max_drop=1.0, objective="size"))
    assert [r["steps"] for r in record.figures["rounds"]] == [20, 60]
    for name, weights in sparsifiable(one.module).items():
        trained = longer.module.get_parameter(name)
        assert torch.equal(weights == 0, trained == 0)
        assert not torch.equal(weights, trained)


def test_what_is_outside_the_budget_by_little_is_trained_again_before_the_search_backs_off(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = opened
    drops = iter([0.025, 0.018, 0.0, 0.0])  # of which 0.01 is allowed; the second excess is not half the first
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: next(drops))
    _, record = sparsify(model, quickly(start=0.8, rounds=3), replace(context, max_drop=0.01))
    first, again, back = (r["sparsity"] for r in record.figures["rounds"])
    assert back < again == first
    drops = iter([0.025, 0.0, 0.0, 0.0])  # the second time it is within: the search goes on from there
    _, record = sparsify(model, quickly(start=0.8, rounds=3), replace(context, max_drop=0.01))
    first, again, further = (r["sparsity"] for r in record.figures["rounds"])
    assert further > again == first
    drops = iter([0.035, 0.0, 0.0, 0.0])  # by much
    _, record = sparsify(model, quickly(start=0.8, rounds=2), replace(context, max_drop=0.01))
    first, back = (r["sparsity"] for r in record.figures["rounds"])
    assert back < first


def test_dropout_is_lowered_with_the_connections_left_where_it_is_on(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = opened
    seen: list[dict[str, float]] = []

    def spy(module: Any, density: dict[str, float], example: Any) -> Any:
        seen.append(density)
        return lowered_dropout(module, density, example)

    monkeypatch.setattr("compress.sparsity.search.lowered_dropout", spy)
    freely = replace(context, max_drop=1.0)
    sparsify(model, quickly(schedule="iterative", rounds=1), freely)
    assert not seen
    sparsify(model, quickly(schedule="iterative", rounds=1, finetune=replace(SHORT, dropout=True)), freely)
    kept = {name: float((m).float().mean()) for name, m in make_masks(sparsifiable(model.module), 0.5).items()}
    assert seen[0] == pytest.approx(kept)
    sparsify(model, quickly(pattern="2:4", finetune=replace(SHORT, dropout=True)), freely)
    assert seen[1]["6.weight"] == 0.5
    sparsify(model, quickly(sparsity=0.5, finetune=replace(SHORT, dropout=True)), freely)
    assert len(seen) == 2  # the masks of the cubic schedule are not final yet


def test_kept_layers_stay_dense(opened: tuple[Model, Context]) -> None:
    model, context = opened
    config = SparsifyConfig(sparsity=0.5, keep=("8.*",), rounds=1, epochs=0.1, min_steps=20, budget=1, finetune=SHORT)
    sparse, _ = sparsify(model, config, context)
    assert torch.count_nonzero(sparse.module[8].weight) == sparse.module[8].weight.numel()


def test_a_pattern_of_keep_that_names_nothing_is_refused(opened: tuple[Model, Context]) -> None:
    model, context = opened
    with pytest.raises(SparsityError, match=r"keep='8\.wight' names no parameter; did you mean '8\.weight'"):
        sparsify(model, quickly(sparsity=0.5, keep=("8.wight",)), context)


def test_without_data_it_says_what_it_needs(opened: tuple[Model, Context], tmp_path: Path) -> None:
    model, _ = opened
    with pytest.raises(SparsityError, match="--data"):
        sparsify(model, SparsifyConfig(), Context(data=None, directory=tmp_path, original=model))


def test_all_problems_of_the_config_are_told_at_once() -> None:
    with pytest.raises(RecipeError, match=r"sparsity=1.*rounds=0.*budget=2"):
        SparsifyConfig(sparsity=1.0, rounds=0, budget=2)


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"tolerance=nan.*epochs=nan"):
        SparsifyConfig(epochs=float("nan"), tolerance=float("nan"))


def test_two_amounts_at_once_are_refused() -> None:
    with pytest.raises(RecipeError, match="sparsity and pattern are given"):
        SparsifyConfig(sparsity=0.5, pattern="2:4")
    with pytest.raises(RecipeError, match="leave out layers"):
        SparsifyConfig(layers={"0": 0.5}, schedule="iterative")
    with pytest.raises(RecipeError, match="scope=layer"):
        SparsifyConfig(layers={"0": 0.5}, scope="layer")
    with pytest.raises(RecipeError, match="2-4"):
        SparsifyConfig(pattern="2-4")


def test_a_reactive_round_that_removes_nothing_is_no_success(opened: tuple[Model, Context]) -> None:
    model, context = opened
    config = quickly(sparsity=0.8, schedule="reactive", tolerance=0.0, min_steps=2, epochs=0.01, rounds=3)
    same, record = sparsify(model, config, replace(context, max_drop=1.0))
    assert same is model
    assert record.skipped is not None
    assert len(record.figures["rounds"]) == 1
