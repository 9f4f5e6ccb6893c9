"""Recursive reduction: the loop with trainers that answer as told, and with real training on a tiny model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.errors import PruningError, RecipeError
from compress.opening import open_inputs
from compress.pruning import reduction as reduction_module
from compress.pruning.groups import channel_groups
from compress.pruning.history import to_csv
from compress.pruning.reduction import ReduceConfig, Reduction, first_step, reduce, write_back
from compress.pruning.retraining import reduce_model
from compress.pruning.surgery import cut, kept_of
from compress.pruning.values import ChannelGroup, Kept
from compress.recipe import Recipe
from compress.reporting.plot_history import plot_history
from compress.reporting.plots import picture
from compress.training import FineTuneConfig
from compress.values import Context, Model, silent

X = (torch.linspace(-1, 1, 2 * 6).reshape(2, 6),)
Answer = tuple[float, float]


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [layer for pair in itertools.pairwise((6, *widths)) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 3))


def widths_of(module: nn.Module) -> tuple[int, ...]:
    """Outputs of every Linear but the last."""
    return tuple(layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear))[:-1]


class Trainer:
    """Answers by the widths of the module, and keeps what it was asked; each training moves the head's bias by one."""

    def __init__(self, answer: Callable[[tuple[int, ...]], Answer] = lambda widths: (0.5, 0.9)) -> None:
        self.answer = answer
        self.widths: list[tuple[int, ...]] = []
        self.biases: list[Tensor] = []

    def __call__(self, module: nn.Module) -> Answer:
        *_, bias = (p for name, p in module.named_parameters() if name.endswith("bias"))
        self.widths.append(widths_of(module))
        self.biases.append(bias.detach().clone())
        with torch.no_grad():
            bias += 1
        return self.answer(self.widths[-1])


def test_thresholds_are_against_the_fixed_original_and_not_the_last_round() -> None:
    """Every unit costs .001: against the last round a step of two would pass for ever, against the original once."""
    trainer = Trainer(lambda widths: (0.5, 0.9 - 0.001 * (16 - widths[0])))
    found = reduce(mlp(16), trainer, X, original=(0.5, 0.9), step=2, accuracy_threshold=0.003)
    assert widths_of(found.module) == (13,)
    assert found.history.accuracy_limit == pytest.approx(0.897)
    assert all(r.accuracy >= 0.897 for r in found.history.rounds)


def test_the_loss_has_a_threshold_of_its_own() -> None:
    trainer = Trainer(lambda widths: (0.5 + 0.01 * (16 - widths[0]), 0.9))
    found = reduce(mlp(16), trainer, X, original=(0.5, 0.9), step=2, loss_threshold=0.045)
    assert widths_of(found.module) == (12,)
    assert found.history.loss_limit == pytest.approx(0.545)


def test_trained_weights_are_kept_from_round_to_round() -> None:
    """The head's bias, which no cut touches, has moved once for each round whose candidate was kept."""
    module, trainer = mlp(8, 8), Trainer()
    found = reduce(module, trainer, X, original=(0.5, 0.9), step=2, rounds=4)
    start, trainings = module[-1].bias.detach(), iter(trainer.biases)
    for kept_before, r in enumerate(found.history.rounds[1:]):
        assert r.chosen is not None
        for _ in r.trials:
            torch.testing.assert_close(next(trainings), start + kept_before)
    torch.testing.assert_close(found.module[-1].bias, start + 4)


def test_what_stays_keeps_its_weights() -> None:
    module = mlp(8)
    found = reduce(module, Trainer(), X, original=(0.5, 0.9), step=3, rounds=1)
    rows = found.kept["0.weight"][0]
    assert len(rows) == 5
    torch.testing.assert_close(found.module[0].weight, module[0].weight[rows])
    torch.testing.assert_close(found.module[2].weight, module[2].weight[:, found.kept["2.weight"][1]])


def test_fresh_starts_every_candidate_from_new_weights() -> None:
    module, trainer = mlp(8), Trainer()
    reduce(module, trainer, X, original=(0.5, 0.9), step=2, rounds=3, fresh=True)
    assert all(not torch.isclose(bias, module[-1].bias, atol=1e-4).any() for bias in trainer.biases)
    again = Trainer()
    reduce(module, again, X, original=(0.5, 0.9), step=2, rounds=3, fresh=True)
    torch.testing.assert_close(trainer.biases, again.biases, rtol=0, atol=0)


def test_the_best_candidate_is_kept_and_not_the_first_that_passes() -> None:
    """All three are within the thresholds; the last layer's loss does not rise."""
    trainer = Trainer(lambda widths: (0.5 + 0.01 * (24 - widths[0] - widths[1]), 0.9))
    found = reduce(mlp(12, 12, 12), trainer, X, original=(0.5, 0.9), step=2, rounds=1)
    assert [t.within for t in found.history.rounds[1].trials] == [True, True, True]
    assert found.history.rounds[1].chosen == "4"
    assert widths_of(found.module) == (12, 12, 10)


def test_of_candidates_that_cost_nothing_the_one_that_saves_most_parameters_is_kept() -> None:
    found = reduce(mlp(12, 12, 12), Trainer(), X, original=(0.5, 0.9), step=2, rounds=1)
    trials = {t.group: t.parameters for t in found.history.rounds[1].trials}
    assert found.history.rounds[1].chosen == min(trials, key=lambda name: trials[name]) == "2"


def test_the_channels_of_least_importance_leave() -> None:
    module = mlp(8)
    with torch.no_grad():
        module[0].weight[[1, 4, 6]] *= 0.01
        module[2].weight[:, [1, 4, 6]] *= 0.01
    found = reduce(module, Trainer(), X, original=(0.5, 0.9), step=3, rounds=1)
    assert found.kept["0.weight"][0].tolist() == [0, 2, 3, 5, 7]


def test_importance_is_an_option_that_changes_what_leaves() -> None:
    options = {"l2": ReduceConfig(importance="l2"), "random": ReduceConfig(importance="random")}
    kept = {
        name: reduce(mlp(32), Trainer(), X, config, original=(0.5, 0.9), step=16, rounds=1).kept["0.weight"][0].tolist()
        for name, config in options.items()
    }
    assert kept["l2"] != kept["random"]


def test_with_one_probe_only_the_candidate_that_loses_least_importance_is_retrained() -> None:
    module, trainer = mlp(8, 8), Trainer()
    with torch.no_grad():
        module[2].weight[:4] *= 0.01
        module[4].weight[:, :4] *= 0.01
    found = reduce(module, trainer, X, original=(0.5, 0.9), step=4, rounds=1, probes=1)
    assert trainer.widths == [(8, 4)]
    (trial,) = found.history.rounds[1].trials
    assert trial.group == "2"
    assert trial.importance < 0.1


def test_a_group_that_failed_waits_until_the_others_had_their_turn() -> None:
    trainer = Trainer(lambda widths: (0.5, 0.9 if widths[1] == 16 else 0.0))
    found = reduce(mlp(16, 16), trainer, X, original=(0.5, 0.9), step=2, rounds=6, probes=1)
    tried = [t.group for r in found.history.rounds[1:] for t in r.trials]
    assert tried.count("2") == 1
    assert widths_of(found.module)[1] == 16


def test_the_step_doubles_after_a_success_and_halves_after_a_failure() -> None:
    trainer = Trainer(lambda widths: (0.5, 0.9 if widths[0] >= 80 else 0.0))
    found = reduce(mlp(100), trainer, X, original=(0.5, 0.9), step=4, finest=0)
    assert [t.removed for r in found.history.rounds for t in r.trials] == [4, 8, 16, 8, 16, 8, 4, 2, 1]
    assert widths_of(found.module) == (80,)


def test_a_step_may_be_a_share_of_the_channels() -> None:
    assert (first_step(0.25, 64), first_step(0.001, 64), first_step(100, 64)) == (16, 1, 100)
    found = reduce(mlp(64), Trainer(), X, original=(0.5, 0.9), step=0.25, rounds=1)
    assert widths_of(found.module) == (48,)


def test_no_step_takes_more_than_half_of_what_a_group_has_left() -> None:
    found = reduce(mlp(64), Trainer(), X, original=(0.5, 0.9), step=100)
    left = [r.widths["0"] for r in found.history.rounds]
    assert all(2 * after >= before for before, after in itertools.pairwise(left))
    assert left[-1] == 1


@settings(max_examples=25, deadline=None)
@given(
    outcomes=st.lists(st.booleans(), min_size=1, max_size=40),
    step=st.sampled_from([0.5, 1, 2, 7, 100]),
    probes=st.sampled_from([None, 1, 2]),
)
def test_it_always_ends_with_a_channel_left_in_every_layer(
    outcomes: list[bool], step: float, probes: int | None
) -> None:
    answers = itertools.cycle(outcomes)
    trainer = Trainer(lambda widths: (0.5, 0.9 if next(answers) else 0.0))
    found = reduce(
        mlp(7, 5), trainer, X, original=(0.5, 0.9), groups=GROUPS, step=step, probes=probes, finest=0, rounds=10_000
    )
    assert min(widths_of(found.module)) >= 1
    # Each training either removes a channel (10 at most) or halves a step; a step of 3 can be halved twice.
    assert len(trainer.widths) <= 200
    assert tuple(found.history.rounds[-1].widths.values()) == widths_of(found.module)


GROUPS = channel_groups(mlp(7, 5), X)


def test_rounds_are_bounded() -> None:
    found = reduce(mlp(16), Trainer(), X, original=(0.5, 0.9), step=1, rounds=2)
    assert found.history.rounds[-1].number == 2


def test_without_any_candidate_within_the_thresholds_the_model_is_the_original() -> None:
    module = mlp(16)
    found = reduce(module, Trainer(lambda widths: (9.0, 0.0)), X, original=(0.5, 0.9), step=4)
    assert found.kept == {}
    torch.testing.assert_close(found.module(*X), module(*X))
    assert found.history.rounds[-1].chosen is None


def test_the_original_is_trained_first_unless_its_figures_are_given() -> None:
    module, trainer = mlp(8), Trainer(lambda widths: (0.7, 0.8))
    found = reduce(module, trainer, X, step=4, rounds=0)
    assert trainer.widths == [(8,)]
    assert (found.history.rounds[0].loss, found.history.rounds[0].accuracy) == (0.7, 0.8)
    torch.testing.assert_close(found.module[-1].bias, module[-1].bias + 1)
    trainer = Trainer()
    reduce(module, trainer, X, original=(0.7, 0.8), step=4, rounds=0)
    assert trainer.widths == []


def test_the_module_that_was_given_stays_as_it_is() -> None:
    module = mlp(8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    reduce(module, Trainer(), X, step=2, rounds=2)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Deep(nn.Module):
    """Convolutions with normalisation inside a block, hidden units behind them."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
        self.trunk = nn.ModuleDict({"block": block})
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.trunk["block"](x))
        return result


def test_convolutions_and_hidden_units_at_any_depth_are_reduced() -> None:
    found = reduce(Deep(), Trainer(), (torch.rand(2, 1, 6, 6),), original=(0.5, 0.9), step=0.5, rounds=3)
    assert found.history.rounds[-1].widths == {"trunk.block.0": 4, "trunk.block.3": 3, "head.1": 5}
    assert found.module(torch.rand(2, 1, 6, 6)).shape == (2, 3)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.lstm(x)[0][:, -1])
        return result


def test_hidden_units_of_a_recurrent_layer_are_reduced() -> None:
    found = reduce(Recurrent(), Trainer(), (torch.rand(2, 4, 6),), original=(0.5, 0.9), step=2, rounds=2)
    assert found.history.rounds[-1].parameters < found.history.rounds[0].parameters
    assert found.module(torch.rand(2, 4, 6)).shape == (2, 3)
    assert list(found.history.rounds[-1].widths.values()) == [3]


class Fixed(nn.Module):
    """Has a size written into its forward, so that only a traced form of it can be narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.head = nn.Linear(8 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.conv(x).relu().view(-1, 128))
        return result


def test_a_model_with_sizes_in_its_forward_keeps_its_trained_weights_too() -> None:
    module, trainer = Fixed(), Trainer()
    found = reduce(module, trainer, (torch.rand(2, 1, 6, 6),), original=(0.5, 0.9), step=2, rounds=2)
    assert found.history.rounds[-1].widths == {"conv": 3}
    torch.testing.assert_close(dict(found.module.named_parameters())["head.bias"], module.head.bias + 2)
    assert found.module(torch.rand(5, 1, 6, 6)).shape == (5, 3)


def test_layers_that_are_kept_lose_nothing() -> None:
    found = reduce(mlp(8, 8), Trainer(), X, original=(0.5, 0.9), step=2, rounds=3, keep=("0",))
    assert widths_of(found.module)[0] == 8 > widths_of(found.module)[1]
    assert "0" not in found.history.rounds[-1].widths


def test_a_model_without_anything_to_reduce_is_refused_with_the_reason() -> None:
    with pytest.raises(PruningError, match=r"none of the 1 channel groups.*output"):
        reduce(nn.Sequential(nn.Linear(6, 3)), Trainer(), X, original=(0.5, 0.9))


def test_inputs_may_be_one_tensor() -> None:
    assert widths_of(reduce(mlp(8), Trainer(), X[0], original=(0.5, 0.9), step=2, rounds=1).module) == (6,)


def test_an_original_that_is_not_trained_is_refused() -> None:
    with pytest.raises(PruningError, match="nan"):
        reduce(mlp(8), Trainer(), X, original=(float("nan"), 0.9))


def test_a_group_that_cannot_be_cut_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_first(module: nn.Module, groups: Sequence[ChannelGroup], kept: Kept, inputs: Sequence[Any]) -> nn.Module:
        if "0.weight" in kept:
            raise PruningError("no")
        return cut(module, groups, kept, inputs)

    monkeypatch.setattr(reduction_module, "cut", refuse_first)
    found = reduce(mlp(8, 8), Trainer(), X, original=(0.5, 0.9), step=4)
    assert widths_of(found.module) == (8, 1)


def test_weights_go_back_to_their_places_and_what_left_is_zero() -> None:
    module, groups = mlp(8, 8), channel_groups(mlp(8, 8), X)
    kept = kept_of(module, groups, {"0": torch.tensor([1, 2, 5])})
    smaller = cut(module, groups, kept, X)
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.mul_(2)
    write_back(module, smaller, kept)
    again = cut(module, groups, kept, X)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), smaller.parameters(), strict=True))
    assert torch.count_nonzero(module[0].weight[[0, 3, 4, 6, 7]]) == 0


def test_all_problems_of_the_config_are_told_at_once() -> None:
    with pytest.raises(RecipeError, match=r"step=1\.5.*probes=0.*epochs=0"):
        ReduceConfig(step=1.5, probes=0, epochs=0)


@pytest.fixture(scope="module")
def finished() -> Reduction:
    trainer = Trainer(lambda widths: (0.5 if widths[0] >= 6 else float("inf"), 0.9))
    return reduce(mlp(8, 8), trainer, X, original=(0.5, 0.9), step=2)


def test_the_history_tells_every_round_as_plain_values(finished: Reduction) -> None:
    plain = json.loads(json.dumps(finished.history.to_dict(), allow_nan=False))
    assert plain["loss_limit"] == pytest.approx(0.55)
    first, last = plain["rounds"][0], plain["rounds"][-1]
    assert first["widths"] == {"0": 8, "2": 8}
    assert first["parameters"] == 6 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3
    assert first["capacity"] == 6 * 8 + 8 + 8 + 8
    assert last["widths"] == {"0": 6, "2": 1}
    assert last["parameters"] == 6 * 6 + 6 + 6 + 1 + 3 + 3
    trials = [t for r in plain["rounds"] for t in r["trials"]]
    assert {t["loss"] for t in trials if not t["within"]} == {None}


def test_the_csv_has_a_line_for_each_round(finished: Reduction) -> None:
    head, *lines = to_csv(finished.history).splitlines()
    assert head.startswith("round,chosen,loss,accuracy,capacity_bits,parameters,")
    assert head.endswith("width of 0,width of 2")
    assert len(lines) == len(finished.history.rounds)
    assert lines[-1].endswith(",6,1")


def test_the_history_is_drawn_the_same_each_time(finished: Reduction) -> None:
    svg = picture(plot_history(finished.history), "svg")
    assert b"<svg" in svg
    assert svg == picture(plot_history(finished.history), "svg")
    assert picture(plot_history(finished.history), "png").startswith(b"\x89PNG")


@pytest.fixture
def opened(quick: Callable[..., Recipe], tmp_path: Path) -> tuple[Model, Context]:
    recipe = quick()
    opened = open_inputs(recipe, silent)
    assert opened.original is not None
    return opened.original, opened.context(tmp_path, recipe, silent)


SHORT = ReduceConfig(
    step=0.25,
    accuracy_threshold=0.05,
    loss_threshold=0.2,
    rounds=3,
    epochs=0.1,
    min_steps=40,
    finetune=FineTuneConfig(batch_size=32, learning_rate=0.005),
)


def test_a_trained_model_is_reduced_by_distillation_and_stays_within_the_thresholds(
    opened: tuple[Model, Context],
) -> None:
    model, context = opened
    smaller, record, found = reduce_model(model, SHORT, context)
    first, last = found.history.rounds[0], found.history.rounds[-1]
    assert record.skipped is None
    assert last.parameters < 0.8 * first.parameters
    assert last.accuracy >= first.accuracy - 0.05
    assert last.loss <= first.loss + 0.2
    assert record.figures["parameters"] == [first.parameters, sum(p.numel() for p in smaller.module.parameters())]
    assert not smaller.module.training


def test_the_same_seed_gives_the_same_reduction(opened: tuple[Model, Context]) -> None:
    model, context = opened
    states = [reduce_model(model, SHORT, context)[0].module.state_dict() for _ in range(2)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_reduction_that_is_never_within_returns_the_model_as_it_came(opened: tuple[Model, Context]) -> None:
    model, context = opened
    config = ReduceConfig(
        step=0.5, accuracy_threshold=0, loss_threshold=0, rounds=1, min_steps=1, epochs=1e-3, fresh=True
    )
    same, record, _ = reduce_model(model, config, context)
    assert same is model
    assert record.skipped is not None
    assert "no candidate" in record.skipped


def test_without_data_it_says_what_it_needs(opened: tuple[Model, Context], tmp_path: Path) -> None:
    model, _ = opened
    with pytest.raises(PruningError, match="--data"):
        reduce_model(model, ReduceConfig(), Context(data=None, directory=tmp_path, original=model))
