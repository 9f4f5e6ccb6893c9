"""Training with and without pruning: what the two share, what is recorded, and what a second run repeats."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compress.errors import RecipeError, SparsityError
from compress.sparsity import sparsifiable, sparsity_of
from compress.sparsity.comparison import (
    Arm,
    Comparison,
    PlainTraining,
    TrainConfig,
    compare,
    conclude,
    train_arm,
    weights_name,
)
from compress.sparsity.realtime import RealtimeConfig
from compress.values import Context, Model
from tests.conftest import tiny_cnn

CONFIG = TrainConfig(
    epochs=3,
    seeds=2,
    interval="0.5 epochs",
    realtime=RealtimeConfig(sparsity=0.6, tolerance=0.5),
    finetune=PlainTraining(batch_size=32, learning_rate=0.005),
)
Opened = tuple[Model, Context]


def maker(model: Model) -> Callable[[int], Model]:
    def make(seed: int) -> Model:
        torch.manual_seed(seed)
        return dataclasses.replace(model, module=tiny_cnn().eval())

    return make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, digits_file: Path) -> tuple[Comparison, Context, Model]:
    """One comparison of two seeds, which several tests look at."""
    from compress.data import DataOptions, load_data

    data = load_data(f"npz:{digits_file}", DataOptions(calibration=64))
    model = Model(tiny_cnn(), data.inputs)
    context = Context(data, tmp_path_factory.mktemp("trained"))
    return compare(maker(model), CONFIG, context), context, model


def test_both_trainings_of_a_seed_start_alike_and_other_seeds_do_not(made: tuple[Comparison, Context, Model]) -> None:
    comparison = made[0]
    assert [a.started_from for a in comparison.dense] == [a.started_from for a in comparison.sparse]
    assert comparison.dense[0].started_from != comparison.dense[1].started_from
    first, second = comparison.dense[0].history[0], comparison.sparse[0].history[0]
    assert second.action == "hold"
    assert first == dataclasses.replace(
        second, action=None
    )  # nothing is cut before the first decision: order, dropout and settings are the same


def test_only_the_sparse_training_loses_weights_and_what_is_counted_is_in_the_file(
    made: tuple[Comparison, Context, Model],
) -> None:
    comparison, context, model = made
    for dense, sparse in zip(comparison.dense, comparison.sparse, strict=True):
        module = tiny_cnn()
        module.load_state_dict(load_file(context.directory / weights_name(sparse.seed)))
        assert sparse.sparsity == sparsity_of(sparsifiable(module)) == pytest.approx(0.6, abs=1e-3)
        assert sparse.nonzero == sum(int(p.count_nonzero()) for p in module.parameters())
        assert dense.sparsity < 0.01
        assert dense.parameters == sparse.parameters == sum(p.numel() for p in model.module.parameters())
        assert sparse.effective_flops < dense.effective_flops <= dense.flops == sparse.flops


def test_the_test_accuracy_is_that_of_the_predictions(made: tuple[Comparison, Context, Model]) -> None:
    comparison, context, _ = made
    assert context.data is not None
    labels = torch.cat([labels for _, labels in context.data.test.batches(50) if labels is not None])
    for arm in (*comparison.dense, *comparison.sparse):
        right = torch.tensor(arm.predictions) == labels
        assert right.tolist() == arm.right.tolist()
        assert arm.test.value == pytest.approx(right.float().mean().item())
        assert arm.test.value > 0.5  # it did learn: ten classes


def test_the_history_has_every_interval_and_the_decisions_of_the_pruner(
    made: tuple[Comparison, Context, Model],
) -> None:
    comparison, context, _ = made
    assert context.data is not None
    steps = round(3 * len(context.data.train) / 32)
    for arm in (comparison.dense[0], comparison.sparse[0]):
        assert arm.history[-1].step == steps
        assert arm.history[-1].accuracy == pytest.approx(arm.validation.value)
        assert len(arm.step_ms) == steps - 1
        assert min(arm.step_ms) > 0
        assert [m.step for m in arm.history] == [m.step for m in comparison.dense[1].history]
    actions = [moment.action for moment in comparison.sparse[0].history]
    assert "raise" in actions
    assert not any(moment.action for moment in comparison.dense[0].history)
    sparsities = [moment.sparsity for moment in comparison.sparse[0].history]
    assert max(sparsities) == pytest.approx(0.6, abs=1e-3)
    assert sparsities[0] < 0.01


def test_the_plain_values_have_times_and_tests_but_no_samples(made: tuple[Comparison, Context, Model]) -> None:
    plain = json.loads(json.dumps(made[0].to_dict(), allow_nan=False))
    assert [(arm["seed"], arm["name"]) for arm in plain["arms"]] == [
        (0, "dense"), (0, "sparse"), (1, "dense"), (1, "sparse"),
    ]  # fmt: skip
    assert not {"predictions", "wrong", "step_ms"} & plain["arms"][0].keys()
    assert plain["arms"][0]["median_step_ms"] > 0
    assert plain["tests"]["n"] == 2
    assert plain["mcnemar"][1]["seed"] == 1
    assert plain["verdict"]["sentence"]


def test_a_stopped_comparison_goes_on_to_the_same_result(
    made: tuple[Comparison, Context, Model], tmp_path: Path
) -> None:
    comparison, context, model = made
    again = dataclasses.replace(context, directory=tmp_path)
    calls: list[int] = []

    def stopping(seed: int) -> Model:
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return maker(model)(seed)

    with pytest.raises(KeyboardInterrupt):
        compare(stopping, CONFIG, again)
    resumed = compare(stopping, CONFIG, again)
    assert calls == [0, 0, 1, 1, 1]  # seed 0 was finished, and is not trained again
    assert [untimed(arm) for arm in (*resumed.dense, *resumed.sparse)] == [
        untimed(arm) for arm in (*comparison.dense, *comparison.sparse)
    ]
    assert (tmp_path / weights_name(1)).read_bytes() == (context.directory / weights_name(1)).read_bytes()
    assert resumed.tests == comparison.tests


def untimed(arm: Arm) -> Arm:
    return dataclasses.replace(arm, step_ms=())


def test_another_margin_needs_no_training_and_another_limit_only_that_with_pruning(
    made: tuple[Comparison, Context, Model],
) -> None:
    context = made[1]
    calls: list[int] = []

    def counting(seed: int) -> Model:
        calls.append(seed)
        raise KeyboardInterrupt

    wider = compare(counting, dataclasses.replace(CONFIG, margin=0.2), context)
    assert wider.tests.margin == 0.2
    assert not calls
    limit = dataclasses.replace(CONFIG.realtime, sparsity=0.3)
    with pytest.raises(KeyboardInterrupt):
        compare(counting, dataclasses.replace(CONFIG, realtime=limit), context)
    assert calls == [0]
    with pytest.raises(KeyboardInterrupt):
        compare(counting, CONFIG, context, identity="another model")


def test_a_model_that_is_not_the_same_for_the_same_seed_is_refused(opened: Opened, tmp_path: Path) -> None:
    model, context = opened
    config = dataclasses.replace(CONFIG, epochs=0.5, interval=1)
    with pytest.raises(SparsityError, match="different weights"):
        compare(lambda seed: dataclasses.replace(model, module=tiny_cnn()), config, context)


def test_the_given_model_stays_as_it_was(opened: Opened) -> None:
    model, context = opened
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    arm, trained = train_arm(model, "sparse", 0, dataclasses.replace(CONFIG, epochs=1), context, "one")
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert isinstance(trained, nn.Module)
    assert not trained.training
    assert arm.started_from


def test_without_labels_there_is_nothing_to_compare(opened: Opened) -> None:
    model, context = opened
    assert context.data is not None
    bare = dataclasses.replace(context, data=dataclasses.replace(context.data, classes=None))
    with pytest.raises(SparsityError, match="labelled"):
        compare(maker(model), CONFIG, bare)


def test_a_training_too_short_for_any_pruning_is_refused_and_the_shortest_that_is_not_prunes(
    opened: Opened, tmp_path: Path
) -> None:
    model, context = opened
    context = dataclasses.replace(context, directory=tmp_path)
    assert context.data is not None
    per_epoch = len(context.data.train) / CONFIG.finetune.batch_size
    short = TrainConfig(
        epochs=7 / per_epoch,
        seeds=1,
        interval=3,
        realtime=RealtimeConfig(tolerance=100, recover=0.25),
        finetune=CONFIG.finetune,
    )
    with pytest.raises(SparsityError, match=r"after 6 steps, the last one within 5 of 7 .*more epochs"):
        compare(maker(model), short, context)
    assert not list(tmp_path.iterdir())
    made = compare(maker(model), dataclasses.replace(short, epochs=8 / per_epoch), context)
    assert [moment.action for moment in made.sparse[0].history if moment.action] == ["hold", "raise"]


def test_where_the_loss_lets_nothing_be_removed_there_is_no_verdict(made: tuple[Comparison, Context, Model]) -> None:
    dense, sparse = made[0].dense, made[0].sparse
    waits = dataclasses.replace(sparse[1], history=dense[1].history)
    verdict = conclude(dense, (sparse[0], waits), 0.5).verdict
    assert verdict.outcome == "undecided"
    assert "nothing be removed with seed 1." in verdict.sentence
    assert conclude(dense, sparse, 0.5).verdict.outcome != "undecided"


def test_a_model_without_weights_is_refused(opened: Opened) -> None:
    model, context = opened
    bare = dataclasses.replace(model, module=nn.Sequential(nn.Flatten(), nn.ReLU()))
    with pytest.raises(SparsityError, match="nothing to sparsify"):
        compare(lambda seed: bare, CONFIG, context)


@pytest.mark.parametrize(
    ("interval", "steps"),
    [("1 epoch", 20), ("2 epochs", 39), ("0.5epochs", 10), ("0.001 epoch", 1), ("100", 100), (7, 7), ("3 steps", 3)],
)
def test_an_interval_is_epochs_or_steps(interval: int | str, steps: int) -> None:
    assert TrainConfig(interval=interval).interval_steps(19.6) == steps


def test_every_problem_of_a_config_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as error:
        TrainConfig(epochs=0, seeds=0, margin=0, interval="often", realtime=RealtimeConfig(interval=5))
    for word in ("epochs=0", "seeds=0", "margin=0", "interval='often'", "realtime.interval=5"):
        assert word in str(error.value)
