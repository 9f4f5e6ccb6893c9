"""Whole residual blocks: which there are, what is left without one, which leaves first, and what is written of it."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.checkpoint import restore, save
from compress.data.splits import Split
from compress.errors import PruningError
from compress.pruning import PruneConfig, channel_groups, load_pruned, prune_to_budget, save_pruned
from compress.pruning.blocks import (
    Answers,
    Skipped,
    least_missed,
    removable,
    residual_blocks,
    skip,
    without,
)
from compress.pruning.onnx_layers import Layer
from compress.pruning.surgery import cut, kept_of
from compress.training import FineTuneConfig
from compress.values import Context, Model, OnnxModel, StageRecord, State

WIDTH = 8


class Added(nn.Module):
    """x + f(x), in one of the ways that it is written."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.norm = nn.LayerNorm(WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "in place":
            result: Tensor = self.inner(self.norm(x))
            result += x
            return result
        if self.how == "relu":
            return torch.relu(self.inner(x) + x)
        if self.how == "twice":
            x = x + self.inner(self.norm(x))
            return x + self.inner(self.norm(x))
        if self.how == "scaled":
            return x + 0.1 * self.inner(x)
        if self.how == "normalised":
            normalised: Tensor = self.norm(x + self.inner(x))
            return normalised
        if self.how == "plain":
            plain: Tensor = self.inner(self.norm(x))
            return plain
        gated: Tensor = x * self.inner(x).sigmoid()
        return gated


class Net(nn.Module):
    def __init__(self, *how: str, again: bool = False) -> None:
        super().__init__()
        self.again = again
        self.stem = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(Added(one) for one in how)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in (*self.blocks, *(self.blocks if self.again else ())):
            x = block(x)
        scores: Tensor = self.head(x)
        return scores


X = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))


def net(*how: str, again: bool = False) -> Net:
    torch.manual_seed(0)
    return Net(*how, again=again).eval()


@pytest.mark.parametrize("how", ["in place", "relu", "twice", "scaled", "normalised"])
def test_a_block_is_found_however_its_sum_is_written(how: str) -> None:
    assert residual_blocks(net("plain", how, how), (X,)) == ("blocks.1", "blocks.2")


@pytest.mark.parametrize("how", ["plain", "gated"])
def test_what_does_more_than_add_to_its_input_is_no_residual_block(how: str) -> None:
    assert residual_blocks(net(how, how), (X,)) == ()


def test_a_normalisation_alone_is_no_residual_block() -> None:
    module = nn.Sequential(nn.Linear(4, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3)).eval()
    assert residual_blocks(module, (X,)) == ()


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_layers_of_a_transformer_are_blocks(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, norm_first=norm_first, batch_first=True)
    module = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    found = residual_blocks(module, (torch.rand(2, 5, WIDTH),))
    assert found == ("layers.1", "layers.2")  # the encoder itself looks into its first


def test_a_branch_that_its_caller_adds_to_in_place_is_not_taken_for_the_block() -> None:
    assert residual_blocks(net("in place"), (X,)) == ("blocks.0",)  # and not blocks.0.inner


def test_a_block_that_is_called_twice_stays() -> None:
    assert residual_blocks(net("in place", again=True), (X,)) == ()


def test_a_block_that_the_forward_looks_into_is_not_offered() -> None:
    class Reading(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.blocks[0].norm.weight.mean()  # type: ignore[union-attr]

    torch.manual_seed(0)
    assert residual_blocks(Reading("scaled", "scaled").eval(), (X,)) == ("blocks.1",)


def test_a_scripted_submodule_is_passed_over() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.trace(Added("scaled").eval(), torch.rand(1, WIDTH))
    module = nn.Sequential(nn.Linear(4, WIDTH), scripted, Added("relu"))
    assert residual_blocks(module.eval(), (X,)) == ("2",)


def test_a_sequence_of_blocks_is_no_block_while_one_of_them_is() -> None:
    module = nn.Sequential(nn.Linear(4, WIDTH), nn.Sequential(Added("scaled"), Added("scaled")), nn.Linear(WIDTH, 3))
    assert residual_blocks(module.eval(), (X,)) == ("1.0", "1.1")


def test_finding_blocks_leaves_the_model_as_it_was() -> None:
    module = net("in place").train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    residual_blocks(module, (X,))
    assert module.training
    assert not any(layer._forward_hooks for layer in module.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("how", ["in place", "relu", "scaled"])
def test_leaving_a_block_out_is_what_the_original_computes_where_its_branch_adds_nothing(how: str) -> None:
    module = net(how, how)
    shorter = skip(module, ["blocks.1"])
    expected = net(how, how)
    with torch.no_grad():
        for parameter in expected.blocks[1].inner[2].parameters():  # type: ignore[index,union-attr]
            parameter.zero_()
    assert torch.equal(shorter(X), expected(X))
    assert not torch.equal(shorter(X), module(X))
    assert isinstance(module.blocks[1], Added)
    assert not any(name.startswith("blocks.1.") for name in shorter.state_dict())


def test_a_block_with_a_parameter_that_is_to_stay_is_not_removable() -> None:
    module = net("scaled", "scaled", "scaled")
    names = residual_blocks(module, (X,))
    assert removable(names, module, ["blocks.1.inner.*"]) == ["blocks.0", "blocks.2"]
    assert removable(names, module, ["blocks.2.norm.bias", "stem.*"]) == ["blocks.0", "blocks.1"]
    assert removable(names, module, ["blocks.0.inner"]) == ["blocks.1", "blocks.2"]


def test_what_is_missed_least_for_what_it_saves_leaves_first_until_it_saves_about_what_is_wanted() -> None:
    saves = {"a": 0.1, "b": 0.2, "c": 0.1, "d": 0.1}
    lost = {"a": 0.3, "b": 0.4, "c": 0.1, "d": 0.9}
    assert least_missed(saves, lost, 0.0, 9) == ["c"]
    assert least_missed(saves, lost, 0.29, 9) == ["c", "b"]
    assert least_missed(saves, lost, 0.36, 9) == ["c", "b", "a"]
    assert least_missed(saves, lost, 0.36, 2) == ["c", "b"]


@given(saves=st.lists(st.floats(0.01, 1), min_size=1, max_size=8), wanted=st.floats(0, 3), most=st.integers(1, 9))
def test_at_least_one_block_leaves_and_none_that_is_not_needed(saves: list[float], wanted: float, most: int) -> None:
    named = {str(number): value for number, value in enumerate(saves)}
    chosen = least_missed(named, dict.fromkeys(named, 1.0), wanted, most)
    assert 1 <= len(chosen) <= min(most, len(named))
    assert len(chosen) == 1 or sum(named[name] for name in chosen[:-1]) < wanted


def test_the_divergence_is_that_of_the_softmax_and_nothing_for_the_same_answers() -> None:
    module, other = net("scaled"), net("plain")
    many = X.repeat(30, 1) * torch.linspace(0, 2, 150)[:, None]
    answers = Answers(module, Split("calibration", lambda at: ((many[at],), None), np.arange(150)))
    assert answers.divergence(module) == pytest.approx(0, abs=1e-6)
    p, q = module(many).softmax(1), other(many).softmax(1)
    assert answers.divergence(other) == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-4)


def cut_and_short(module: nn.Module) -> tuple[nn.Module, dict[str, dict[int, Tensor]]]:
    """Without blocks.1, and with half of the channels within blocks.0."""
    shorter = skip(module, ["blocks.1"])
    groups = channel_groups(shorter, (X,))
    inside = next(g for g in groups if g.name == "blocks.0.inner.0")
    kept = kept_of(shorter, groups, {inside.name: torch.arange(WIDTH)})
    return cut(shorter, groups, kept, (X,)), {name: dict(axes) for name, axes in kept.items()}


def test_a_model_that_is_shorter_and_narrower_is_written_and_read_back(tmp_path: Path) -> None:
    module = net("scaled", "scaled")
    smaller, kept = cut_and_short(module)
    save_pruned(smaller, kept, tmp_path, ["blocks.1"])
    again = load_pruned(net("scaled", "scaled"), tmp_path, (X,))
    assert torch.equal(again(X), smaller(X))
    assert isinstance(again.blocks[1], Skipped)


def test_a_file_from_before_blocks_could_leave_is_still_read(tmp_path: Path) -> None:
    module = net("scaled")
    save_pruned(module, {}, tmp_path)
    plain = json.loads((tmp_path / "kept.json").read_text())
    del plain["skipped"]
    (tmp_path / "kept.json").write_text(json.dumps({**plain, "schema": 1}))
    assert torch.equal(load_pruned(net("scaled"), tmp_path, (X,))(X), module(X))


def test_a_block_that_the_original_does_not_have_is_an_error_that_names_it(tmp_path: Path) -> None:
    save_pruned(skip(net("scaled", "scaled"), ["blocks.1"]), {}, tmp_path, ["blocks.1"])
    with pytest.raises(PruningError, match=r"leaves out a block that Net does not have.*1"):
        load_pruned(net("scaled"), tmp_path, (X,))


def test_what_is_kept_of_a_block_that_leaves_is_forgotten() -> None:
    kept = {"blocks.1.norm.weight": {0: torch.arange(2)}, "blocks.10.norm.weight": {0: torch.arange(3)}}
    assert set(without(kept, ["blocks.1"])) == {"blocks.10.norm.weight"}


# -- the search ------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """The tiny CNN's data through blocks, as images (N, 1, 8, 8)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.blocks = nn.Sequential(*(Conv() for _ in range(blocks)))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))
        return scores


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers take as long as they have weights: real times differ from run to run."""

    def by_weights(layers: Sequence[Layer], *_: object) -> dict[Layer, float]:
        return {layer: float(np.prod(layer.weight)) for layer in layers}

    monkeypatch.setattr("compress.pruning.latency._timed", by_weights)


def searched(
    opened: tuple[Model, Context], measure: Callable[[Model, Model], float], **fields: object
) -> tuple[Model, StageRecord]:
    model, context = opened
    torch.manual_seed(0)
    residual = dataclasses.replace(model, module=Residual(4).eval())
    plain = {"rounds": 4, "epochs": 0.1, "min_steps": 5, "round_to": 1, "budget": 1.0, "objective": "latency"}
    config = PruneConfig(**{**plain, "finetune": FineTuneConfig(batch_size=32), **fields})  # type: ignore[arg-type]
    return prune_to_budget(residual, config, dataclasses.replace(context, original=residual, max_drop=0.01), measure)


def _weights(model: Model) -> int:
    return sum(p.numel() for p in model.module.parameters())


def by_blocks(before: Model, after: Model) -> float:
    """Nearly all of the time goes by the number of blocks."""
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in after.module.modules())
    return 1 / (0.95 * convolutions / 9 + 0.05 * _weights(after) / _weights(before))


def test_blocks_leave_where_narrowing_saves_little(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: 0.0)
    model, record = searched(opened, by_blocks)
    assert model.skipped
    assert record.figures["skipped"] == list(model.skipped)
    assert any(note.startswith("left out: blocks.") for note in record.notes)
    gone = {name: widths for name, widths in record.figures["widths"].items() if name.startswith(model.skipped)}
    assert gone
    assert all(after == 0 for _, after in gone.values())
    assert record.figures["parameters"][1] == sum(p.numel() for p in model.module.parameters())
    layers = [layer for layer in model.module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert record.figures["macs"][1] == sum(
        layer.weight.numel() * (64 if isinstance(layer, nn.Conv2d) else 1) for layer in layers
    )


@pytest.mark.parametrize("fields", [{"blocks": False}, {"macs": 0.6}, {"speedup": 1.02}])
def test_no_block_leaves_where_it_was_not_to(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch, fields: Mapping[str, object]
) -> None:
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: 0.0)
    model, record = searched(opened, by_blocks, **fields)
    assert model.skipped == ()
    assert record.figures["skipped"] == []


@pytest.mark.parametrize("counted", ["macs", "parameters"])
def test_blocks_leave_where_something_else_than_latency_is_counted(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch, counted: str
) -> None:
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: 0.0)
    monkeypatch.setattr("compress.pruning.rounds.Answers.divergence", lambda _, module: float(not _shorter(module)))
    model, record = searched(opened, lambda *_: pytest.fail("timed"), objective=counted, rounds=1)
    assert len(model.skipped) > 1  # about as much as the widths at half of the cost would have saved
    before, after = record.figures[counted]
    assert record.figures["rounds"][0]["left"] == pytest.approx(after / before, rel=1e-3)


def test_no_block_leaves_with_a_parameter_that_is_to_stay(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: 0.0)
    model, _ = searched(opened, by_blocks, keep=("blocks.0.*", "blocks.2.second.bias"), rounds=8)
    assert "blocks.1" in model.skipped
    assert not {"blocks.0", "blocks.2"} & set(model.skipped)


def test_no_block_leaves_where_narrowing_loses_less_for_what_it_saves(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: 0.0)
    monkeypatch.setattr("compress.pruning.rounds.Answers.divergence", lambda _, module: float(_shorter(module)))
    model, _ = searched(opened, by_blocks, rounds=1)
    assert model.skipped == ()
    assert model.kept


def _shorter(module: nn.Module) -> bool:
    return any(isinstance(layer, Skipped) for layer in module.modules())


def test_blocks_whose_absence_was_too_much_are_tried_again_by_half_as_many(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    drops = iter([1.0])
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: next(drops, 0.0))
    monkeypatch.setattr("compress.pruning.rounds.Answers.divergence", lambda _, module: float(not _shorter(module)))
    tried: list[int] = []

    def measure(before: Model, after: Model) -> float:
        tried.append(sum(isinstance(layer, Skipped) for layer in after.module.modules()))
        return 1 / (0.02 + 0.98 * _weights(after) / _weights(before))

    model, record = searched(opened, measure, rounds=2, start=0.3)
    assert [r["within"] for r in record.figures["rounds"]] == [False, True]
    assert [number for number in tried if number] == [3, 1]
    assert len(model.skipped) == 1
    lefts = [r["left"] for r in record.figures["rounds"]]
    assert lefts == sorted(lefts)  # fewer and fewer leave


def test_a_failure_without_blocks_does_not_bound_the_widths(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    drops = iter([1.0])
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: next(drops, 0.0))
    monkeypatch.setattr("compress.pruning.rounds.Answers.divergence", lambda _, module: float(not _shorter(module)))
    model, record = searched(opened, by_blocks, rounds=4)
    first, *others = (r["left"] for r in record.figures["rounds"])
    assert model.skipped == ()
    assert model.kept
    assert others
    assert all(left > first for left in others)


def test_a_near_miss_without_a_block_is_trained_again_and_more_blocks_may_follow(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    drops = iter([0.012, 0.0])
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: next(drops, 0.0))
    model, record = searched(opened, by_blocks, rounds=5)
    lefts = [r["left"] for r in record.figures["rounds"]]
    assert lefts[0] == lefts[1]
    assert len(model.skipped) > 1


def test_a_finished_stage_is_read_back_without_the_blocks(
    opened: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("compress.training.recovery.drop", lambda *_: 0.0)
    smaller, record = searched(opened, by_blocks)
    assert smaller.skipped
    torch.manual_seed(1)
    before = State(dataclasses.replace(smaller, module=Residual(4).eval(), kept=None, skipped=()))
    before = dataclasses.replace(before, onnx=OnnxModel(tmp_path / "before.onnx", smaller.inputs, 18))
    after = State(smaller, before.onnx, changes=("pruned",))
    stored = save(before, after, record, tmp_path, "fingerprint")
    example = (torch.rand(2, 1, 8, 8),)
    again, _ = restore(before, stored, tmp_path, example)
    assert again.model is not None
    assert again.model.skipped == smaller.skipped
    assert torch.equal(again.model.module(*example), smaller.module(*example))
