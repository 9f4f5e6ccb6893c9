"""Fine-tuning: deterministic, held by its hook, right in its loss."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress.data.splits import Batch, Split
from compress.errors import DataError, ModelError, RecipeError
from compress.training import FineTuneConfig, Teacher, finetune, last_step, plan_steps, teacher_of, way_back, worth_more
from compress.training.finetune import _rate, distilling_mode, loss_of, make_optimizer, thaw
from compress.training.gradients import mean_gradients

CONFIG = FineTuneConfig(batch_size=16, learning_rate=0.01)


def blobs(count: int = 96, labelled: bool = True) -> Split:
    """Two clouds in four dimensions, easy to tell apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    points = torch.randn(count, 4, generator=generator) + 3.0 * labels[:, None]

    def fetch(indices: np.ndarray) -> Batch:
        chosen = torch.from_numpy(indices)
        return (points[chosen],), labels[chosen] if labelled else None

    return Split("train", fetch, np.arange(count), labelled)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def accuracy(module: nn.Module, split: Split) -> float:
    (points,), labels = split.fetch(split.indices)
    with torch.no_grad():
        return float((module(points).argmax(1) == labels).float().mean())


def test_training_on_labels_learns_and_leaves_eval_mode() -> None:
    split, module = blobs(), net()
    loss = finetune(module, None, split, CONFIG, steps=60, seed=0)
    assert accuracy(module, split) > 0.95
    assert loss < 0.4
    assert not module.training


def test_training_on_labels_has_dropout_on_whatever_mode_the_module_came_in() -> None:
    module, seen = net().eval(), []
    module[3].register_forward_hook(lambda layer, inputs, output: seen.append(layer.training))
    finetune(module, None, blobs(), CONFIG, steps=2, seed=0)
    assert seen == [True, True]
    assert not module.training


def test_a_student_learns_from_the_teacher_without_any_label() -> None:
    split = blobs(labelled=False)
    teacher_module = net()
    finetune(teacher_module, None, blobs(), CONFIG, steps=60, seed=0)
    student = net(seed=1)
    finetune(student, Teacher(teacher_module, split), split, CONFIG, steps=80, seed=0)
    assert accuracy(student, blobs()) > 0.95


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    split = blobs()
    teacher = Teacher(net(), split)
    students = [net(seed=1) for _ in range(3)]
    for student, seed in zip(students, (5, 5, 6), strict=True):
        finetune(student, teacher, split, CONFIG, steps=12, seed=seed)
    first, second, other = (torch.cat([p.flatten() for p in s.parameters()]) for s in students)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_teacher_gives_the_same_answers_from_its_table_and_live(monkeypatch: pytest.MonkeyPatch) -> None:
    split, module = blobs(), net().eval()
    positions = torch.tensor([3, 90, 7])
    inputs, _ = split.fetch(positions.numpy())
    remembered = Teacher(module, split).outputs(positions, inputs)
    monkeypatch.setattr("compress.training.teacher.TABLE_LIMIT", 0)
    live = Teacher(module, split)
    assert live._table is None
    torch.testing.assert_close(live.outputs(positions, inputs), remembered)


def test_stages_that_train_from_one_original_ask_it_once_and_again_once_it_has_changed() -> None:
    module, split, told = net().eval(), blobs(), []

    def asked() -> Teacher:
        return teacher_of(module, split, progress=lambda label, done, total, note="": told.append(done))

    first = asked()
    assert told
    passes = len(told)
    assert asked() is first
    assert len(told) == passes
    positions = torch.arange(5)
    inputs = split.fetch(split.indices[:5])[0]
    before = first.outputs(positions, inputs)
    with torch.no_grad():
        next(module.parameters()).mul_(2)
    second = asked()
    assert len(told) == 2 * passes
    assert not torch.equal(second.outputs(positions, inputs), before)
    assert torch.equal(first.outputs(positions, inputs), before)
    other = teacher_of(module, split.take(8))
    assert other is not second
    assert teacher_of(copy.deepcopy(module), split) is not asked()


def test_every_sample_is_seen_once_in_an_epoch() -> None:
    split, seen = blobs(), []

    def fetch(indices: np.ndarray) -> Batch:
        seen.extend(indices.tolist())
        return split.fetch(indices)

    watched = Split("train", fetch, split.indices)
    finetune(net(), None, watched, CONFIG, steps=plan_steps(watched, CONFIG, epochs=1), seed=0)
    assert sorted(seen) == list(range(len(split)))


def test_while_the_teacher_guides_dropout_is_off_and_batch_norm_learns() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.recurrent = nn.LSTM(4, 4, 2, dropout=0.3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(self.norm(x), 0.5, self.training)

    module = Net()
    restore = distilling_mode(module)
    assert not module.training
    assert module.norm.training
    assert module.recurrent.training
    assert module.recurrent.dropout == 0.0
    restore()
    assert module.recurrent.dropout == 0.3


def test_the_hook_runs_after_every_step_and_what_it_sets_stays() -> None:
    module, calls = net(), []

    def zero(step: int, loss: float) -> None:
        calls.append(step)
        with torch.no_grad():
            module[0].weight[0].zero_()

    finetune(module, None, blobs(), CONFIG, steps=7, seed=0, after_step=zero)
    assert calls == [1, 2, 3, 4, 5, 6, 7]
    assert torch.count_nonzero(module[0].weight[0]) == 0


@pytest.mark.parametrize("form", ["logits", "log-probabilities", "probabilities"])
def test_the_loss_is_the_same_whatever_form_the_outputs_have(form: str) -> None:
    ours, theirs = torch.randn(8, 5), torch.randn(8, 5)
    labels = torch.arange(8) % 5
    convert = {"logits": lambda x: x, "log-probabilities": lambda x: F.log_softmax(x, 1)}.get(
        form, lambda x: F.softmax(x, 1)
    )
    expected = loss_of(ours, theirs, labels, CONFIG)
    torch.testing.assert_close(loss_of(convert(ours), convert(theirs), labels, CONFIG), expected)


def test_the_loss_is_least_for_a_student_that_equals_its_teacher() -> None:
    theirs = torch.randn(8, 5)
    assert loss_of(theirs, theirs, None, CONFIG).item() == pytest.approx(0.0, abs=1e-6)
    assert loss_of(theirs + torch.randn(8, 5), theirs, None, CONFIG).item() > 0.01


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_option() -> None:
    module = net()
    teacher = Teacher(copy.deepcopy(module), blobs())
    with torch.no_grad():
        module[4].weight.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"step 1 of 5.*learning_rate"):
        finetune(module, teacher, blobs(), CONFIG, steps=5, seed=0)


def test_training_without_labels_and_without_a_teacher_is_refused() -> None:
    with pytest.raises(DataError, match="teacher"):
        finetune(net(), None, blobs(labelled=False), CONFIG, steps=1, seed=0)


def test_all_problems_of_a_config_are_told_at_once() -> None:
    with pytest.raises(RecipeError, match=r"batch_size=0.*temperature=0"):
        FineTuneConfig(batch_size=0, temperature=0)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_every_optimizer_learns_with_its_own_decay_and_momentum(name: str) -> None:
    config = FineTuneConfig(batch_size=16, optimizer=name, learning_rate=0.02, momentum=0.8, weight_decay=0.01)
    module, split = net(), blobs()
    optimizer = make_optimizer(module, config)
    assert type(optimizer).__name__.lower() == name
    assert optimizer.defaults["weight_decay"] == 0.01
    assert optimizer.defaults.get("momentum", 0.8) == 0.8
    finetune(module, None, split, config, steps=80, seed=0)
    assert accuracy(module, split) > 0.9


def test_a_level_learning_rate_stays_and_a_cosine_ends_near_zero() -> None:
    level, cosine = FineTuneConfig(schedule="constant", warm_up=0.1), FineTuneConfig(warm_up=0.1)
    assert [_rate(step, 100, level) for step in (10, 50, 99)] == [1.0, 1.0, 1.0]
    assert _rate(0, 100, level) < 0.2
    assert _rate(10, 100, cosine) == 1.0
    assert _rate(99, 100, cosine) < 0.01


def test_dropout_is_on_beside_a_teacher_where_it_is_asked_for() -> None:
    teacher_module, seen = net(), []
    for dropout in (False, True):
        student = net(1)
        student[3].register_forward_hook(lambda layer, inputs, output: seen.append(layer.training))
        config = replace(CONFIG, dropout=dropout)
        finetune(student, Teacher(teacher_module, blobs()), blobs(), config, steps=2, seed=0)
    assert seen == [False, False, True, True]


def test_the_hook_is_told_the_loss_and_finds_its_gradients() -> None:
    module, losses = net(), []

    def look(step: int, loss: float) -> None:
        losses.append(loss)
        assert all(p.grad is not None for p in module.parameters())

    mean = finetune(module, None, blobs(), CONFIG, steps=10, seed=0, after_step=look)
    assert mean == losses[-1]  # the last tenth of ten steps


def test_mean_gradients_are_those_of_all_samples_at_once() -> None:
    module, split = net().eval(), blobs()
    (points,), labels = split.fetch(split.indices)
    found = mean_gradients(module, split, batches=99, batch_size=7)
    F.cross_entropy(module(points), labels).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    assert not module.training


def test_gradients_can_be_had_without_labels() -> None:
    found = mean_gradients(net(), blobs(labelled=False))
    assert any(torch.count_nonzero(g) for g in found.values())


def test_every_float_parameter_takes_part_in_training_and_no_other() -> None:
    module = net().requires_grad_(False)
    module.register_parameter("codes", nn.Parameter(torch.arange(3), requires_grad=False))
    thaw(module)
    assert {name for name, p in module.named_parameters() if not p.requires_grad} == {"codes"}
    mean_gradients(module, blobs())


@given(good=st.floats(-0.02, 0.005), failed=st.floats(0.0051, 0.9))
def test_a_search_goes_back_the_further_the_more_was_lost(good: float, failed: float) -> None:
    near, far = way_back(good, failed, 0.005), way_back(good, 2 * failed, 0.005)
    assert 0.25 <= far <= near <= 0.75


def test_a_search_goes_back_to_where_a_square_expects_what_is_allowed() -> None:
    assert way_back(0.0, 0.016, 0.005) == pytest.approx(0.5)  # 0.016 * 0.5 ** 2 is 0.8 of what is allowed
    assert way_back(0.0, 0.9, 0.005) == 0.25
    assert way_back(0.005, 0.006, 0.005) == 0.25


def test_a_model_outside_the_budget_by_little_is_trained_on_for_as_long_as_each_round_halves_the_rest() -> None:
    assert worth_more(0.0249, None, allowed=0.005, reach=0.02)
    assert not worth_more(0.0251, None, allowed=0.005, reach=0.02)
    assert worth_more(0.0149, 0.025, allowed=0.005, reach=0.02)
    assert not worth_more(0.0151, 0.025, allowed=0.005, reach=0.02)


def test_the_last_round_goes_as_far_as_drops_are_expected_to_be_within() -> None:
    rising = [(0.08, -0.005), (0.04, -0.001)]  # by 0.004 in a halving; another would end at 0.007
    assert last_step(rising, 0.0125) == pytest.approx(0.5**0.75)  # not even then all the way
    assert last_step(rising, 0.005) == pytest.approx(2 ** -((1 + 4 * 0.005 / 0.004) ** 0.5 / 2 - 0.5))
    assert last_step(rising, 0.0) == pytest.approx(0.5**0.25) == last_step([(0.08, 0.0), (0.04, 0.02)], 0.005)
    assert last_step([(0.5, -0.01)], 0.005) == pytest.approx(0.5**0.75)  # nothing tells how drops rise


@given(
    goods=st.lists(st.tuples(st.floats(0.001, 1), st.floats(-0.1, 0.1)), min_size=1, max_size=4),
    allowed=st.floats(0, 0.1),
)
def test_the_last_step_is_never_none_and_never_a_halving(goods: list[tuple[float, float]], allowed: float) -> None:
    falling = sorted(goods, reverse=True)
    assert 0.5 < last_step(falling, allowed) < 1
