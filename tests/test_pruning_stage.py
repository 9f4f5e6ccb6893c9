"""The prune stage: where it searches, that it backs off, and what it returns."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from compress.data import DataOptions, load_data
from compress.errors import PruningError, RecipeError
from compress.measurement import outputs_of, score
from compress.pruning import PruneConfig, load_pruned, prune_to_budget
from compress.pruning.shares import next_share
from compress.recipe import Recipe
from compress.training import FineTuneConfig, Recovery, reestimate
from compress.values import Context, Model
from tests.conftest import tiny_cnn

Quick = Callable[..., Recipe]
SHORT = FineTuneConfig(batch_size=32, learning_rate=0.005)


def config(**fields: object) -> PruneConfig:
    plain = {"rounds": 1, "epochs": 0.1, "min_steps": 20, "round_to": 1, "budget": 1.0, "finetune": SHORT}
    return PruneConfig(**{**plain, **fields})  # type: ignore[arg-type]


def test_each_success_halves_what_is_left_and_a_failure_backs_off_to_the_geometric_middle() -> None:
    search = PruneConfig(start=0.5)
    assert next_share(None, None, search) == 0.5
    assert next_share(0.5, None, search) == 0.25
    assert next_share(0.5, 0.25, search) == pytest.approx(0.125**0.5)
    assert next_share(None, 0.5, search) == pytest.approx(0.5**0.5)


def test_how_far_a_failure_backs_off_is_a_share_of_the_way_on_a_log_scale() -> None:
    assert next_share(None, 0.5, PruneConfig(), way=0.25) == pytest.approx(0.5**0.25)


def test_half_of_what_can_leave_is_next_and_not_half_of_what_no_width_saves() -> None:
    assert next_share(0.5, None, PruneConfig(), least=0.3) == pytest.approx(0.4)
    assert next_share(0.5, None, PruneConfig(), step=0.75, least=0.3) == pytest.approx(0.45)
    assert next_share(0.5, None, PruneConfig(), least=0.45) is None  # where a round would save next to nothing
    assert next_share(0.5, None, PruneConfig(objective="latency"), least=0.45) == pytest.approx(0.475)
    assert next_share(0.5, None, PruneConfig(objective="latency"), least=0.5) is None


def test_the_next_cut_of_a_net_near_its_floor_is_one_that_can_be_had(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = opened
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: 0.0)
    _, record = prune_to_budget(model, config(rounds=3, floor=0.25), dataclasses.replace(context, max_drop=0.01))
    lefts = [r["left"] for r in record.figures["rounds"]]
    _, narrowest = prune_to_budget(model, config(rounds=9, floor=0.25), dataclasses.replace(context, max_drop=0.01))
    least = narrowest.figures["rounds"][-1]["left"]
    assert lefts == sorted(lefts, reverse=True)
    assert all(left > least for left in lefts)


@pytest.mark.parametrize(("lost", "goes_on"), [(0.0, True), (0.09, False)])
def test_a_failure_of_a_model_trained_less_does_not_bound_one_with_accuracy_to_spare(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch, lost: float, goes_on: bool
) -> None:
    model, context = opened
    drops = iter([1.0])
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: next(drops, lost))
    _, record = prune_to_budget(model, config(rounds=12), dataclasses.replace(context, max_drop=0.1))
    rounds = record.figures["rounds"]
    assert [r["within"] for r in rounds] == [False, *[True] * (len(rounds) - 1)]
    assert (min(r["left"] for r in rounds[1:]) < 0.9 * rounds[0]["left"]) is goes_on


def test_a_share_that_was_asked_for_is_the_end_of_the_search() -> None:
    asked = PruneConfig(macs=0.3)
    assert next_share(None, None, asked) == 0.3
    assert next_share(0.3, None, asked) is None
    assert next_share(None, 0.3, asked) == pytest.approx(0.3**0.5)


@given(threshold=st.floats(0.01, 0.99), start=st.floats(0.05, 0.95))
def test_the_search_ends_and_never_repeats_itself(threshold: float, start: float) -> None:
    best, failed, tried = None, None, []
    while (target := next_share(best, failed, PruneConfig(start=start))) is not None and target > 0.001:
        assert 0 < target < 1
        assert target not in tried
        tried.append(target)
        if target >= threshold:
            best = target
        else:
            failed = target
    assert len(tried) < 30


def test_a_model_within_the_budget_comes_back_smaller_and_the_given_one_is_untouched(
    opened: tuple[Model, Context],
) -> None:
    model, context = opened
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    smaller, record = prune_to_budget(model, config(macs=0.6), dataclasses.replace(context, max_drop=0.5))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert smaller.kept is not None
    figures = record.figures
    assert figures["macs"][1] <= 0.6 * figures["macs"][0]
    assert figures["parameters"][1] == sum(p.numel() for p in smaller.module.parameters()) < figures["parameters"][0]
    assert [r["within"] for r in figures["rounds"]] == [True]
    conv = next(layer for layer in smaller.module.modules() if isinstance(layer, nn.Conv2d))
    assert figures["widths"]["0"] == [8, conv.out_channels]


def test_a_search_goes_on_from_the_best_and_keeps_against_the_original(opened: tuple[Model, Context]) -> None:
    model, context = opened
    smaller, record = prune_to_budget(model, config(rounds=2, start=0.7), dataclasses.replace(context, max_drop=0.9))
    first, second = record.figures["rounds"]
    assert first["within"]
    assert second["within"]
    assert second["macs"] < first["macs"]
    assert smaller.kept is not None
    for name, axes in smaller.kept.items():
        for axis, index in axes.items():
            assert len(index) == smaller.module.state_dict()[name].shape[axis]
            assert int(index.max()) < model.module.state_dict()[name].shape[axis]


def test_what_is_outside_the_budget_by_little_is_trained_again_before_the_search_backs_off(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = opened
    drops = iter([0.025, 0.0, 0.025, 0.018, 0.0])  # of which 0.01 is allowed; the second excess is not half the first
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: next(drops))
    _, record = prune_to_budget(model, config(rounds=5), dataclasses.replace(context, max_drop=0.01))
    first, again, second, second_again, back = (r["left"] for r in record.figures["rounds"])
    assert first == again > back > second == second_again
    assert [r["within"] for r in record.figures["rounds"]] == [False, True, False, False, True]


def test_a_model_far_outside_the_budget_is_not_trained_again(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = opened
    drops = iter([0.031, 0.0])
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: next(drops))
    _, record = prune_to_budget(model, config(rounds=2), dataclasses.replace(context, max_drop=0.01))
    first, back = (r["left"] for r in record.figures["rounds"])
    assert back > first


@pytest.mark.parametrize(("after", "kept"), [(0.0, True), (0.3, False)])
def test_rounds_that_are_left_train_the_best_model_further_and_never_make_it_worse(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch, after: float, kept: bool
) -> None:
    model, context = opened
    freely = dataclasses.replace(context, max_drop=0.9)
    narrowest = config(start=0.3, rounds=1)
    monkeypatch.setattr("compress.pruning.rounds.next_share", lambda best, *_, **__: None if best else 0.3)
    one, _ = prune_to_budget(model, narrowest, freely)
    drops = iter([0.2, after])
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: next(drops))
    longer, record = prune_to_budget(model, dataclasses.replace(narrowest, rounds=4), freely)
    first, last = record.figures["rounds"]
    assert (first["steps"], last["steps"]) == (20, 60)
    assert first["left"] == last["left"]
    weights, trained = (dict(m.module.named_parameters()) for m in (one, longer))
    assert {n: p.shape for n, p in weights.items()} == {n: p.shape for n, p in trained.items()}
    assert all(torch.equal(weights[name], trained[name]) for name in weights) is not kept


def test_a_failure_that_a_narrower_model_refutes_does_not_end_the_search(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, context = opened
    drops = iter([0.0, 0.5, 0.0, 0.0, 0.0])
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: next(drops))
    lefts = iter([0.5, 0.2, 0.15, 0.1])
    monkeypatch.setattr("compress.pruning.rounds.Search._share", lambda *_: next(lefts))
    monkeypatch.setattr("compress.pruning.rounds.Search._least", lambda *_: 0.0)
    _, record = prune_to_budget(model, config(rounds=4), dataclasses.replace(context, max_drop=0.01))
    assert [r["left"] for r in record.figures["rounds"]] == [0.5, 0.2, 0.15, 0.1]


def test_outside_the_budget_the_model_comes_back_as_it_was(opened: tuple[Model, Context]) -> None:
    model, context = opened
    tight = config(macs=0.12, rounds=1, min_steps=1, epochs=0.001, floor=0.0)
    same, record = prune_to_budget(model, tight, dataclasses.replace(context, max_drop=0.0))
    assert same is model
    assert record.skipped is not None
    assert "no reduction stayed within 0.0000 on validation" in record.skipped
    assert record.figures["widths"]["0"] == [8, 8]


def test_a_goal_out_of_reach_is_an_error_with_what_can_be_had(opened: tuple[Model, Context]) -> None:
    model, context = opened
    with pytest.raises(PruningError, match="out of reach"):
        prune_to_budget(model, config(parameters=0.001, floor=0.9), context)


@dataclasses.dataclass(frozen=True)
class ByChannel:
    """A made-up latency: a millisecond a channel, and a rest."""

    scale: float = 1.0
    rest: float = 0.0
    whole: tuple[int, int] = (8, 32)  # channels of both groups

    names = ("0", "6")

    def many(self, widths: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.rest + self.scale * widths.sum(axis=1)

    def milliseconds(self, widths: Mapping[str, int]) -> float:
        first, second = self.whole
        return self.rest + self.scale * (widths.get("0", first) + widths.get("6", second))

    def calibrated(self, whole_ms: float, rest_ms: float = 0.0) -> ByChannel:
        return ByChannel((whole_ms - rest_ms) / sum(self.whole), rest_ms, self.whole)

    @classmethod
    def of(cls, module: nn.Module) -> ByChannel:
        weights = module.state_dict()
        return cls(whole=(len(weights["0.weight"]), len(weights["6.weight"])))


def test_a_speed_up_is_measured_and_asked_for_again_where_it_falls_short(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.pruning.rounds.layer_latency", lambda *_, **__: ByChannel())
    model, context = opened
    told: list[int] = []

    def measure(before: Model, after: Model) -> float:
        told.append(sum(p.numel() for p in after.module.parameters()))
        return 1.2 if len(told) == 1 else 1.5

    _, record = prune_to_budget(model, config(speedup=1.5), dataclasses.replace(context, max_drop=0.9), measure)
    assert len(told) == 2
    assert told[1] < told[0]
    assert record.figures["rounds"][0]["left"] == pytest.approx(1 / 1.5)


def test_a_search_for_the_least_latency_goes_by_what_was_measured_of_every_model(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.pruning.rounds.layer_latency", lambda module, *_, **__: ByChannel.of(module))
    model, context = opened
    monkeypatch.setattr("compress.pruning.pruned.channel_block", lambda: 1)
    told: list[float] = []

    def measure(before: Model, after: Model) -> float:
        told.append(40 / (sum(ByChannel.of(after.module).whole) + 0.25))  # a little slower than predicted
        return told[-1]

    asked = config(objective="latency", rounds=4, floor=0.0, round_to=1)
    _, record = prune_to_budget(model, asked, dataclasses.replace(context, max_drop=0.99), measure)
    lefts = [r["left"] for r in record.figures["rounds"]]
    assert len(lefts) >= 3
    assert set(lefts) <= {1 / ratio for ratio in told}


def test_a_cut_that_saved_far_more_than_predicted_does_not_end_the_search(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.pruning.rounds.layer_latency", lambda module, *_, **__: ByChannel.of(module))
    monkeypatch.setattr("compress.pruning.pruned.channel_block", lambda: 1)
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: 0.0)
    model, context = opened
    whole = sum(ByChannel.of(model.module).whole)

    def measure(before: Model, after: Model) -> float:
        share = sum(ByChannel.of(after.module).whole) / whole
        return 1 / (0.04 + 0.16 * share)  # half of the channels: 0.12 of the time, and from there on as predicted

    asked = config(objective="latency", rounds=4, floor=0.0, round_to=1)
    _, record = prune_to_budget(model, asked, dataclasses.replace(context, max_drop=0.99), measure)
    lefts = [r["left"] for r in record.figures["rounds"]]
    assert lefts[0] == pytest.approx(0.12, rel=0.1)
    assert min(lefts[1:]) < 0.075


def test_the_same_seed_gives_the_same_weights(opened: tuple[Model, Context]) -> None:
    model, context = opened
    one, two = (prune_to_budget(model, config(macs=0.6), dataclasses.replace(context, max_drop=0.9)) for _ in range(2))
    pairs = zip(one[0].module.state_dict().values(), two[0].module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"ratio": 0.5, "speedup": 2.0}, "give one of ratio, speedup"),
        ({"ratio": 1.0}, "ratio=1.0 must be within 0 < ratio < 1"),
        ({"speedup": 1.0}, "speedup=1.0 must be above 1"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"floor": 2.0}, "floor=2.0 must be within 0..1"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, float], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        PruneConfig(**fields)  # type: ignore[arg-type]


def test_statistics_are_those_of_the_data_after_reestimation(digits_file: Path) -> None:
    train = load_data(f"npz:{digits_file}", DataOptions()).train
    torch.manual_seed(0)
    module = tiny_cnn().eval()
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm2d)
    reestimate(module, train, batches=100, batch_size=64)
    (x,), _ = train.fetch(train.indices[: len(train.indices) // 64 * 64])
    with torch.no_grad():
        mean = module[0](x).mean((0, 2, 3))
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, mean, rtol=0.05, atol=0.02)
    assert norm.momentum == 0.1
    assert not any(layer.training for layer in module.modules())


def test_a_model_that_did_not_change_loses_nothing(opened: tuple[Model, Context]) -> None:
    model, context = opened
    assert context.data is not None
    assert Recovery(model, context.data, context, SHORT).drop(model.module) == 0.0


def test_a_round_may_be_trained_on_where_nothing_may_be_lost(opened: tuple[Model, Context]) -> None:
    model, context = opened
    assert context.data is not None

    def reach(max_drop: float) -> float:
        assert context.data is not None
        return Recovery(model, context.data, dataclasses.replace(context, max_drop=max_drop), SHORT).reach

    answers = outputs_of(model, context.data.validation)
    accuracy = score(answers, answers).figure
    assert 0 < reach(0.0) == pytest.approx(0.02 * accuracy)
    assert reach(0.05) == pytest.approx(0.1)


def test_the_command_writes_what_can_be_read_back(
    tmp_path: Path, model_file: Path, digits_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from compress.cli import main

    out = tmp_path / "pruned"
    arguments = ["prune", model_file, "--data", f"npz:{digits_file}", "--ratio", 0.25, "--out", out, "--max-drop", 0.5]
    quick = ["--epochs", 0.1, "--rounds", 1, "--round-to", 1, "--set", "prune.min_steps=20"]
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in (*arguments, *quick)])
    told = capsys.readouterr().out
    assert left.value.code in (0, None), told
    assert {p.name for p in out.iterdir()} == {"weights.safetensors", "kept.json", "model.onnx"}
    assert "0: 8 -> 6" in told
    original = torch.load(model_file, weights_only=False)
    again = load_pruned(original, out, torch.rand(2, 1, 8, 8))
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in original.parameters())


def test_inspect_shows_groups_and_what_is_frozen(
    model_file: Path, digits_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from compress.cli import main

    with pytest.raises(SystemExit):
        main(["inspect", str(model_file), "--data", f"npz:{digits_file}", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {g["name"]: (g["channels"], g["frozen"]) for g in found["groups"]} == {
        "0": (8, None),
        "6": (32, None),
        "8": (10, "reaches the output of the model"),
    }
    assert found["layers"][0] == {"weight": "0.weight", "operator": "conv2d", "macs": 8 * 9 * 64}
    with pytest.raises(SystemExit):
        main(["inspect", str(model_file), "--input", "1x8x8"])
    assert "2 groups of 40 channels can be cut, 1 cannot." in capsys.readouterr().out
