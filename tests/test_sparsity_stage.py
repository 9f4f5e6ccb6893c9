"""The sparsify stage: where it searches, that zeros hold after every step, that it backs off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import RecipeError, SparsityError
from compress.recipe import Recipe
from compress.sparsity import SparsifyConfig, sparsify, sparsity_of
from compress.sparsity.masks import sparsifiable
from compress.sparsity.stage import Masking, next_sparsity
from compress.training import FineTuneConfig
from compress.values import Context, Model
from tests.conftest import tiny_cnn

Quick = Callable[..., Recipe]
SHORT = FineTuneConfig(batch_size=32, learning_rate=0.005)


def test_each_success_halves_what_is_left() -> None:
    config = SparsifyConfig(start=0.9)
    assert next_sparsity(None, None, config) == 0.9
    assert next_sparsity(0.9, None, config) == pytest.approx(0.95)
    assert next_sparsity(0.95, None, config) == pytest.approx(0.975)


def test_a_failure_backs_off_to_the_geometric_middle_of_the_densities() -> None:
    assert next_sparsity(0.9, 0.975, SparsifyConfig()) == pytest.approx(0.95)
    assert next_sparsity(None, 0.9, SparsifyConfig(start=0.9)) == pytest.approx(1 - 0.1**0.5)


def test_a_sparsity_that_was_asked_for_is_the_end_of_the_search() -> None:
    config = SparsifyConfig(sparsity=0.8)
    assert next_sparsity(None, None, config) == 0.8
    assert next_sparsity(0.8, None, config) is None
    assert next_sparsity(None, 0.8, config) == pytest.approx(1 - 0.2**0.5)


@given(threshold=st.floats(0.05, 0.995), start=st.floats(0.1, 0.95))
def test_the_search_ends_and_never_repeats_itself(threshold: float, start: float) -> None:
    config, best, failed, tried = SparsifyConfig(start=start), None, None, []
    while (target := next_sparsity(best, failed, config)) is not None:
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
    config = SparsifyConfig(sparsity=0.8, ramp=0.5)
    masking = Masking(module, config, start=0.0, target=0.8, steps=40)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    parameters, before = sparsifiable(module), {}
    for step in range(1, 41):
        module(torch.randn(8, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        masking(step)
        zeros = {name: p.detach() == 0 for name, p in parameters.items()}
        assert all(bool(zeros[name][was].all()) for name, was in before.items()), f"step {step}"
        before = zeros
        if step >= 20:
            assert sparsity_of(parameters) == pytest.approx(0.8, abs=1e-3)


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


def test_magnitude_is_an_option_that_changes_the_result(opened: tuple[Model, Context]) -> None:
    model, context = opened
    counts = {}
    for score in ("lamp", "magnitude"):
        config = SparsifyConfig(sparsity=0.7, score=score, rounds=1, epochs=0.1, min_steps=20, budget=1, finetune=SHORT)
        sparse, _ = sparsify(model, config, context)
        counts[score] = int(torch.count_nonzero(sparse.module[0].weight))
    assert counts["lamp"] != counts["magnitude"]


def test_kept_layers_stay_dense(opened: tuple[Model, Context]) -> None:
    model, context = opened
    config = SparsifyConfig(sparsity=0.5, keep=("8.*",), rounds=1, epochs=0.1, min_steps=20, budget=1, finetune=SHORT)
    sparse, _ = sparsify(model, config, context)
    assert torch.count_nonzero(sparse.module[8].weight) == sparse.module[8].weight.numel()


def test_without_data_it_says_what_it_needs(opened: tuple[Model, Context], tmp_path: Path) -> None:
    model, _ = opened
    with pytest.raises(SparsityError, match="--data"):
        sparsify(model, SparsifyConfig(), Context(data=None, directory=tmp_path, original=model))


def test_all_problems_of_the_config_are_told_at_once() -> None:
    with pytest.raises(RecipeError, match=r"sparsity=1.*rounds=0.*budget=2"):
        SparsifyConfig(sparsity=1.0, rounds=0, budget=2)
