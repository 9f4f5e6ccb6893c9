"""Pruning while training: zeros that hold, limits that are kept, decisions that follow the loss, exact resumption."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.errors import RecipeError, SparsityError
from compress.sparsity.masks import sparsifiable, sparsity_of
from compress.sparsity.realtime import GRADIENT_STEPS, RealtimeConfig, RealtimePruner, allowed, next_sparsity

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam with weight decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop with momentum": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}
WEIGHTS = 4 * 16 + 16 * 16 + 16 * 2  # of net()
SCORES = ("magnitude", "lamp", "taylor", "random")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


def batch(step: int, count: int = 16) -> tuple[Tensor, Tensor]:
    """Two clouds in four dimensions; the same for the same ``step``."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, 2, (count,), generator=generator)
    return torch.randn(count, 4, generator=generator) + 2.0 * labels[:, None], labels


class Loop:
    """A plain training loop. ``told`` replaces the loss that the pruner is told, step by step."""

    def __init__(self, optimizer: str = "adamw", module: nn.Module | None = None, **options: Any) -> None:
        self.module = net() if module is None else module
        self.optimizer = OPTIMIZERS[optimizer](self.module.parameters())
        self.pruner = RealtimePruner(self.module, **options)
        self.steps = 0

    def run(self, steps: int, told: Callable[[int], float] | None = None) -> Loop:
        for _ in range(steps):
            inputs, labels = batch(self.steps)
            loss = F.cross_entropy(self.module(inputs), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.steps += 1
            self.pruner.step(loss if told is None else told(self.steps))
            assert self.zeros_hold()
        return self

    def zeros_hold(self) -> bool:
        masks = self.pruner.state_dict()["masks"]
        return all(bool((p[~masks[n]] == 0).all()) for n, p in sparsifiable(self.module).items() if n in masks)

    @property
    def actions(self) -> list[str]:
        return [decision.action for decision in self.pruner.history]


@settings(max_examples=10, deadline=None)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    score=st.sampled_from(SCORES),
    scope=st.sampled_from(["global", "layer"]),
    interval=st.integers(1, 7),
)
def test_removed_weights_stay_zero_after_every_step_of_every_optimizer(
    optimizer: str, score: str, scope: str, interval: int
) -> None:
    loop = Loop(optimizer, interval=interval, score=score, scope=scope)
    loop.run(22, told=lambda step: 0.5)  # looks at the zeros after each step
    assert loop.pruner.sparsity > 0.3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_zeros_hold_under_autocast_with_a_gradient_scaler(dtype: torch.dtype) -> None:
    loop = Loop("sgd with momentum", interval=3, tolerance=10.0, score="taylor")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40 if dtype is torch.float16 else 2.0**10)
    skipped = 0
    for step in range(40):
        inputs, labels = batch(step)
        with torch.autocast("cpu", dtype=dtype):
            loss = F.cross_entropy(loop.module(inputs), labels)
        loop.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(loop.optimizer)
        before = scaler.get_scale()
        scaler.update()
        skipped += scaler.get_scale() < before
        loop.pruner.step(loss)
        assert loop.zeros_hold()
    assert skipped > 0 or dtype is torch.bfloat16  # infinite gradients were met, and did not reach the ranking
    assert loop.pruner.finish().sparsity == pytest.approx(0.9, abs=0.01)


def test_zeros_hold_when_gradients_accumulate_over_batches() -> None:
    loop = Loop("adamw", interval=2, tolerance=10.0)
    for step in range(20):
        for part in range(3):
            inputs, labels = batch(3 * step + part)
            loss = F.cross_entropy(loop.module(inputs), labels) / 3
            loss.backward()
        loop.optimizer.step()
        loop.pruner.step(loss)
        loop.optimizer.zero_grad()
        assert loop.zeros_hold()
    assert len(loop.pruner.history) == 10  # decisions count optimizer steps, not batches
    assert loop.pruner.sparsity > 0.5


@settings(max_examples=30, deadline=None)
@given(
    losses=st.lists(st.one_of(st.floats(0, 3), st.just(math.nan), st.just(math.inf)), min_size=6, max_size=20),
    limit=st.floats(0.05, 0.99),
    interval=st.integers(1, 2),
    patience=st.integers(0, 3),
    steps=st.one_of(st.none(), st.integers(5, 40)),
    scope=st.sampled_from(["global", "layer"]),
)
def test_sparsity_keeps_its_limit_and_falls_only_to_regrow_whatever_the_losses(
    losses: list[float], limit: float, interval: int, patience: int, steps: int | None, scope: str
) -> None:
    options = {
        "sparsity": limit,
        "interval": interval,
        "patience": patience,
        "steps": steps,
        "scope": scope,
        "smoothing": 1,
    }
    loop = Loop(**options, cut=0.4).run(len(losses), told=lambda step: losses[step - 1])
    sparsities = [0.0, *(d.sparsity for d in loop.pruner.history)]
    assert max(sparsities) <= limit
    for (before, after), action in zip(itertools.pairwise(sparsities), loop.actions, strict=True):
        assert (after > before) == (action == "raise")
        assert (after < before) == (action == "regrow")
    assert loop.pruner.finish().sparsity >= sparsities[-1]  # weights that have just returned are zero still


@settings(max_examples=20, deadline=None)
@given(rise=st.floats(0.03, 2.0), first=st.floats(0, 5), interval=st.integers(1, 4))
def test_a_loss_that_only_rises_beyond_the_tolerance_removes_nothing(rise: float, first: float, interval: int) -> None:
    told = lambda step: first + rise * max(1.0, first) * math.ceil(step / interval)  # noqa: E731
    loop = Loop(interval=interval, tolerance=0.01, smoothing=0).run(6 * interval, told)
    assert loop.actions == ["hold", *["pause"] * 5]
    assert loop.pruner.sparsity == 0.0


def test_a_loss_within_the_tolerance_removes_exactly_as_many_weights_as_allowed() -> None:
    loop = Loop(interval=1, sparsity=0.83, cut=0.3).run(20, told=lambda step: 0.5)
    removed = math.floor(0.83 * WEIGHTS)
    summary = loop.pruner.finish()
    assert (summary.weights, summary.nonzero) == (WEIGHTS, WEIGHTS - removed)
    assert summary.sparsity == removed / WEIGHTS
    assert loop.actions[-1] == "hold"


def test_each_raise_removes_the_share_of_what_is_left() -> None:
    loop = Loop(interval=2, cut=0.25, start=2).run(10, told=lambda step: 0.5)
    found = [decision.sparsity for decision in loop.pruner.history]
    assert found == pytest.approx([0, 0, 0.25, 1 - 0.75**2, 1 - 0.75**3], abs=2 / WEIGHTS)


def test_a_known_length_ends_at_the_limit_and_leaves_the_last_part_for_recovery() -> None:
    loop = Loop(interval=10, steps=200, recover=0.25, sparsity=0.9).run(200, told=lambda step: 0.5)
    reached = [d.step for d in loop.pruner.history if d.sparsity >= 0.9 - 1 / WEIGHTS]
    assert reached[0] == 150
    assert loop.actions[15:] == ["hold"] * 5


@given(
    steps=st.integers(20, 2000),
    interval=st.integers(1, 200),
    limit=st.floats(0.1, 0.99),
    waits=st.sets(st.integers(0, 30), max_size=5),
)
def test_raises_that_waited_are_made_up_for_before_the_recovery(
    steps: int, interval: int, limit: float, waits: set[int]
) -> None:
    config = RealtimeConfig(interval=interval, steps=steps, sparsity=limit)
    sparsity, last = 0.0, 0
    moments = range(interval, math.floor(0.75 * steps) + 1, interval)
    for number, step in enumerate(moments):
        if number not in waits or step == moments[-1]:
            raised = next_sparsity(sparsity, limit, step, config)
            assert sparsity <= raised <= limit
            sparsity, last = raised, step
    assert last == 0 or sparsity == pytest.approx(limit)


def test_an_outlier_pauses_and_the_next_good_interval_raises_again() -> None:
    loop = Loop(interval=1, tolerance=0.1, smoothing=0.0).run(6, told=lambda step: {4: 0.7}.get(step, 0.5))
    assert loop.actions == ["hold", "raise", "raise", "pause", "raise", "raise"]


def test_smoothing_carries_an_outlier_into_the_next_interval() -> None:
    told = lambda step: {4: 0.9}.get(step, 0.5)  # noqa: E731
    loop = Loop(interval=1, tolerance=0.1, smoothing=1 / math.log(2)).run(7, told)  # a weight of a half each step
    assert [d.loss for d in loop.pruner.history] == pytest.approx([0.5, 0.5, 0.5, 0.7, 0.6, 0.55, 0.525])
    assert loop.actions == ["hold", "raise", "raise", "pause", "raise", "raise", "raise"]


def test_the_tolerance_is_absolute_for_small_losses_and_relative_for_large_ones() -> None:
    assert allowed(0.02, 0.01) == pytest.approx(0.03)
    assert allowed(50.0, 0.01) == pytest.approx(50.5)
    assert allowed(-50.0, 0.01) == pytest.approx(-49.5)


def test_a_loss_that_stays_outside_brings_back_the_weights_with_the_largest_gradients() -> None:
    loop = Loop(interval=1, patience=2, regrow=0.5, sparsity=0.6, cut=0.5).run(3, told=lambda step: 0.5)
    parameters = sparsifiable(loop.module)
    before = {name: mask.clone() for name, mask in loop.pruner.state_dict()["masks"].items()}
    loop.run(1, told=lambda step: 9.0)
    assert loop.actions[-1] == "pause"
    loop.run(1, told=lambda step: 9.0)
    assert loop.actions[-1] == "regrow"
    after = loop.pruner.state_dict()["masks"]
    gradients = {name: p.grad.abs() for name, p in parameters.items() if p.grad is not None}
    returned = torch.cat([gradients[n][after[n] & ~before[n]] for n in before])
    still_away = torch.cat([gradients[n][~after[n]] for n in before])
    last_raise = math.floor(0.6 * WEIGHTS) - math.floor(0.5 * WEIGHTS)
    assert len(returned) == math.ceil(0.5 * last_raise)
    assert returned.min() >= still_away.max()
    assert all(bool(after[name][mask].all()) for name, mask in before.items())


def test_returned_weights_start_from_zero_and_train() -> None:
    loop = Loop(interval=2, patience=1, cut=0.5).run(4, told=lambda step: 0.5)
    before = loop.pruner.state_dict()["masks"]
    loop.run(2, told=lambda step: 9.0)
    returned = {n: m & ~before[n] for n, m in loop.pruner.state_dict()["masks"].items()}
    parameters = sparsifiable(loop.module)
    assert sum(int(m.sum()) for m in returned.values()) > 0
    assert all(bool((parameters[n][m] == 0).all()) for n, m in returned.items())
    loop.run(1)
    assert any(bool((parameters[n][m] != 0).any()) for n, m in returned.items())


@pytest.mark.parametrize(("score", "window"), [("taylor", GRADIENT_STEPS + 4), ("lamp", GRADIENT_STEPS)])
def test_gradients_decide_by_their_root_mean_square_over_a_window(score: str, window: int) -> None:
    interval = GRADIENT_STEPS + 4
    loop = Loop(interval=interval, score=score)
    total = torch.zeros(16, 4)
    for step in range(interval - 1):
        loop.run(1)
        if step >= interval - window:
            total += loop.module[0].weight.grad.square()
    torch.testing.assert_close(loop.pruner.state_dict()["gradients"]["0.weight"], total)


def test_the_score_taylor_removes_the_smallest_products_of_weight_and_gradient() -> None:
    loop = Loop(interval=1, score="taylor", cut=0.5, start=0).run(1)
    again = Loop(interval=100).run(1)  # the same step, nothing removed
    products = {n: (p * p.grad).abs() for n, p in sparsifiable(again.module).items()}
    masks = loop.pruner.state_dict()["masks"]
    kept = torch.cat([products[name][mask] for name, mask in masks.items()])
    gone = torch.cat([products[name][~mask] for name, mask in masks.items()])
    assert len(gone) == WEIGHTS // 2
    assert gone.max() <= kept.min() * (1 + 1e-5)


@settings(max_examples=12, deadline=None)
@given(
    half=st.integers(3, 30),
    interval=st.sampled_from([1, 4, 11]),
    score=st.sampled_from(SCORES),
    smoothing=st.sampled_from([0.0, 30.0]),
    tolerance=st.sampled_from([0.0, 0.01, 10.0]),
)
def test_a_checkpoint_resumes_bit_equal(
    half: int, interval: int, score: str, smoothing: float, tolerance: float
) -> None:
    options = {
        "interval": interval,
        "score": score,
        "smoothing": smoothing,
        "tolerance": tolerance,
        "patience": 2,
    }
    straight = Loop(**options).run(half)
    checkpoint = io.BytesIO()
    parts = {"model": straight.module, "optimizer": straight.optimizer, "pruner": straight.pruner}
    torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
    straight.run(half)

    checkpoint.seek(0)
    state = torch.load(checkpoint, weights_only=True)
    resumed = Loop(**options, module=net(seed=9))
    resumed.module.load_state_dict(state["model"])
    resumed.optimizer.load_state_dict(state["optimizer"])
    resumed.pruner.load_state_dict(state["pruner"])
    resumed.steps = half
    resumed.run(half)

    assert resumed.pruner.finish() == straight.pruner.finish()
    for ours, theirs in zip(resumed.module.parameters(), straight.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    state = Loop(interval=1).run(4).pruner.state_dict()
    with pytest.raises(SparsityError, match=r"4\.weight|2\.weight"):
        RealtimePruner(nn.Sequential(nn.Linear(4, 16))).load_state_dict(state)


def test_losses_as_floats_and_as_tensors_decide_alike() -> None:
    given_tensors = Loop(interval=5).run(40)
    values = []
    again = Loop(interval=5)
    for step in range(40):
        inputs, labels = batch(step)
        values.append(F.cross_entropy(again.module(inputs), labels).item())
        again.run(1, told=lambda _: values[-1])
    assert again.actions == given_tensors.actions
    assert again.pruner.sparsity == given_tensors.pruner.sparsity


class _Reads(TorchDispatchMode):
    """Counts how often a value is read back from a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "local_scalar_dense" in str(func) or "nonzero" in str(func)
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_back_from_the_device_between_decisions() -> None:
    loop = Loop(interval=20, tolerance=10.0, score="taylor").run(40)  # weights are masked by now
    loss = torch.tensor(0.3)
    with _Reads() as reads:
        for _ in range(19):
            loop.pruner.step(loss)
    assert reads.count == 0
    with reads:
        loop.pruner.step(loss)
    assert reads.count > 0


def test_removed_weights_are_plain_zeros_without_a_sign() -> None:
    loop = Loop(interval=2, tolerance=10.0).run(20)
    loop.pruner.finish()
    for parameter in sparsifiable(loop.module).values():
        assert not bool(torch.signbit(parameter[parameter == 0]).any())


def test_a_layer_dictionary_limits_each_layer() -> None:
    loop = Loop(interval=1, layers={"0": 0.5, "4": 0.9}).run(25, told=lambda step: 0.5)
    loop.pruner.finish()
    found = {name: sparsity_of({name: p}) for name, p in sparsifiable(loop.module).items()}
    assert found == {"0.weight": 0.5, "2.weight": 0.0, "4.weight": math.floor(0.9 * 32) / 32}


def test_kept_and_frozen_parameters_are_left_alone() -> None:
    module = net()
    module[0].weight.requires_grad_(False)
    loop = Loop(module=module, interval=1, keep=("4.*",)).run(25, told=lambda step: 0.5)
    summary = loop.pruner.finish()
    assert summary.weights == 256
    assert sparsity_of({"0": module[0].weight, "4": module[4].weight}) == 0.0


def test_weights_that_are_zero_at_first_stay_zero_and_count() -> None:
    module = net()
    zeros = torch.rand(16, 16) < 0.5
    with torch.no_grad():
        module[2].weight[zeros] = 0.0
        module[4].weight.zero_()  # a new layer, not a pruned one
    loop = Loop(module=module, interval=100).run(5)
    assert bool((module[2].weight[zeros] == 0).all())
    assert bool((module[4].weight != 0).any())
    assert loop.pruner.sparsity == int(zeros.sum()) / WEIGHTS


@pytest.mark.parametrize("limit", [0.0, 0.1, 0.5])
def test_a_layer_that_is_sparser_than_the_limit_keeps_its_zeros(limit: float) -> None:
    module = net()
    zeros = torch.rand(16, 16) < 0.8
    with torch.no_grad():
        module[2].weight[zeros] = 0.0
    loop = Loop(module=module, interval=1, scope="layer", sparsity=limit)
    loop.run(15, told=lambda step: 0.5)
    loop.pruner.finish()
    assert bool((module[2].weight[zeros] == 0).all())
    assert sparsity_of({"0": module[0].weight}) <= limit


def test_layers_that_are_frozen_or_thawed_on_the_way_do_not_stop_the_pruner() -> None:
    loop = Loop(interval=2).run(6, told=lambda step: 0.5)
    loop.module[0].weight.requires_grad_(False)
    loop.run(6, told=lambda step: 0.5)
    loop.module[0].weight.requires_grad_(True)
    loop.run(6, told=lambda step: 0.5)
    assert loop.pruner.finish().sparsity > 0.7


def test_zeros_of_the_first_weights_can_be_left_to_train() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    nn.init.eye_(module[0].weight)
    Loop(module=module, interval=100, hold_zeros=False).run(5)
    assert sparsity_of({"0": module[0].weight}) < 0.5


def test_parameters_that_were_put_in_the_place_of_others_are_masked_too() -> None:
    loop = Loop("sgd with momentum", interval=1, tolerance=10.0).run(4)
    replacement = {name: torch.randn_like(p) for name, p in loop.module.state_dict().items()}
    loop.module.load_state_dict(replacement, assign=True)
    assert loop.pruner.finish().sparsity == loop.pruner.sparsity > 0.3


def test_sparse_gradients_of_an_embedding_can_decide() -> None:
    torch.manual_seed(0)
    module = nn.EmbeddingBag(20, 4, sparse=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    pruner = RealtimePruner(module, interval=1, score="taylor", cut=0.5, start=0)
    loss = module(torch.tensor([[0, 1, 2]])).square().sum()
    loss.backward()
    optimizer.step()
    pruner.step(loss)
    assert bool((module.weight[:3] != 0).all())  # the only ones with a gradient
    assert pruner.sparsity == 0.5


def test_a_sparse_network_learns_as_well_as_a_dense_one() -> None:
    loop = Loop("adamw", interval=20, sparsity=0.8, steps=400, tolerance=0.05).run(400)
    summary = loop.pruner.finish()
    inputs, labels = batch(10_000, count=2000)
    assert summary.sparsity == pytest.approx(0.8, abs=0.01)
    # Two clouds 2·√4 apart with unit spread: the best possible is Φ(2) = .977.
    assert float((loop.module(inputs).argmax(1) == labels).float().mean()) > 0.96


def test_without_gradients_the_error_names_where_step_belongs() -> None:
    with pytest.raises(SparsityError, match="between"):
        RealtimePruner(net(), interval=1).step(0.5)
    RealtimePruner(net(), interval=1, patience=0).step(0.5)  # magnitude alone needs none


def test_a_loss_of_many_values_is_refused() -> None:
    with pytest.raises(SparsityError, match=r"\(16,\).*mean"):
        RealtimePruner(net()).step(torch.ones(16))


def test_a_model_without_weights_to_remove_is_refused() -> None:
    with pytest.raises(SparsityError, match="nothing to sparsify"):
        RealtimePruner(nn.LayerNorm(4))


def test_a_changed_model_is_refused_at_the_end() -> None:
    loop = Loop(interval=1, tolerance=10.0).run(3)
    loop.module[2] = nn.Linear(16, 12)
    with pytest.raises(SparsityError, match=r"2\.weight.*\(16, 16\).*\(12, 16\)"):
        loop.pruner.finish()


def test_all_problems_of_a_config_are_told_together() -> None:
    with pytest.raises(RecipeError) as caught:
        RealtimeConfig(interval=0, sparsity=1.0, cut=0.0, tolerance=-1.0, smoothing=-1.0, layers={"a": 2.0})
    assert all(
        name in str(caught.value) for name in ("interval", "sparsity", "cut", "tolerance", "smoothing", "layers.a")
    )


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="intervall"):
        RealtimePruner(net(), intervall=3)


def test_what_was_zero_at_first_never_returns_not_even_after_a_checkpoint() -> None:
    module = net()
    with torch.no_grad():
        module[2].weight[:, :4] = 0.0
    loop = Loop(module=module, interval=10, start=0, cut=0.3, patience=1, regrow=0.9, smoothing=0.0)
    rising = (1.0, 0.5, 9.0, 9.0, 0.4, 9.0, 9.0, 9.0)
    loop.run(40, told=lambda step: rising[(step - 1) // 10])
    again = RealtimePruner(module, **vars(loop.pruner.config))
    again.load_state_dict(loop.pruner.state_dict())
    loop.pruner = again
    loop.run(40, told=lambda step: rising[(step - 1) // 10])
    assert "regrow" in [decision.action for decision in again.history[:4]]
    assert "regrow" in [decision.action for decision in again.history[4:]]
    assert torch.count_nonzero(module[2].weight[:, :4]) == 0
    assert torch.count_nonzero(module[2].weight) > 0
