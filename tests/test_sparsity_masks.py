"""Masks and schedules: exact counts, the published score, zeros that stay."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.errors import SparsityError
from compress.sparsity import apply_masks, cubic, make_masks, sparsifiable, sparsity_of
from compress.sparsity.lamp import smallest_by_layer
from compress.sparsity.masks import (
    Scope,
    Score,
    check_pattern,
    off_pattern,
    pattern_masks,
    resolve_layers,
)

SCORES: tuple[Score, ...] = ("lamp", "magnitude", "taylor", "random")
SCOPES: tuple[Scope, ...] = ("global", "layer")


def lamp(weight: Tensor) -> Tensor:
    """The published scores (weights,) float64, descending: a square over the sum of all at least as large."""
    squares = weight.detach().flatten().abs().sort(descending=True).values.double().square()
    return squares / squares.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3))


def slopes(parameters: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Gradients, a fifth of them zero, as behind units that never fire."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=generator) * (torch.rand(p.shape, generator=generator) < 0.8)
        for name, p in parameters.items()
    }


def removed(masks: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in masks.items()}


def test_biases_and_normalisation_are_never_sparsified() -> None:
    assert list(sparsifiable(net())) == ["0.weight", "3.weight", "4.weight"]


def test_kept_names_are_never_sparsified() -> None:
    assert list(sparsifiable(net(), keep=("4.*",))) == ["0.weight", "3.weight"]


def test_a_tied_weight_is_counted_once() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    assert list(sparsifiable(module)) == ["0.weight"]


@settings(max_examples=100, deadline=None)
@given(
    sparsity=st.floats(0, 0.999),
    score=st.sampled_from(SCORES),
    scope=st.sampled_from(SCOPES),
    ties=st.booleans(),
    seed=st.integers(0, 5),
)
def test_exactly_the_asked_share_of_weights_goes(
    sparsity: float, score: Score, scope: Scope, ties: bool, seed: int
) -> None:
    parameters = sparsifiable(net(seed))
    if ties:
        parameters = {name: nn.Parameter((p.detach() * 4).round()) for name, p in parameters.items()}
    masks = make_masks(parameters, sparsity, score, scope, gradients=slopes(parameters, seed))
    if scope == "layer":
        assert removed(masks) == {name: round(sparsity * p.numel()) for name, p in parameters.items()}
    assert scope == "layer" or sum(removed(masks).values()) == round(sparsity * 188)


@settings(max_examples=50, deadline=None)
@given(shares=st.lists(st.floats(0, 0.999), min_size=2, max_size=2), score=st.sampled_from(SCORES))
def test_each_parameter_loses_its_own_share_and_one_without_stays_whole(shares: list[float], score: Score) -> None:
    parameters = sparsifiable(net())
    asked = {"0.weight": shares[0], "4.weight": shares[1]}
    masks = make_masks(parameters, asked, score, gradients=slopes(parameters))
    assert removed(masks) == {"0.weight": round(36 * shares[0]), "3.weight": 0, "4.weight": round(24 * shares[1])}


@settings(max_examples=40, deadline=None)
@given(sparsity=st.floats(0, 0.999), seed=st.integers(0, 20), zeros=st.floats(0, 0.9))
def test_lamp_removes_the_lowest_of_all_published_scores(sparsity: float, seed: int, zeros: float) -> None:
    parameters = sparsifiable(net(seed))
    with torch.no_grad():
        for p in parameters.values():
            p.mul_(torch.rand(p.shape) >= zeros)
    scores = torch.cat([lamp(p) for p in parameters.values()])
    lowest = scores.sort().values[: round(sparsity * len(scores))].sum()
    masks = make_masks(parameters, sparsity, "lamp")
    counts = removed(masks)
    ours = sum(float(lamp(p).flip(0)[: counts[name]].sum()) for name, p in parameters.items())
    assert ours == pytest.approx(float(lowest), rel=1e-12)
    for name, p in parameters.items():
        gone, left = p.detach()[~masks[name]].abs(), p.detach()[masks[name]].abs()
        assert not len(gone) or not len(left) or gone.max() <= left.min()


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_lamp_counts_are_exact_across_chunks_and_layers_of_unlike_scale(
    rounded: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.sparsity.lamp.CHUNK", 100)
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randn(40, 30, generator=generator) * scale for scale in (1e-3, 1.0, 40.0)]
    layers = [(w * (torch.rand(w.shape, generator=generator) > 0.3)).to(dtype) for w in layers]
    layers = [w.float().round(decimals=1).to(dtype) for w in layers] if rounded else layers
    scores = torch.cat([lamp(w) for w in layers])
    owner = torch.arange(3).repeat_interleave(1200)[scores.argsort(stable=True)]
    for k in (0, 1, 700, 1500, 3000, 3599, 3600):
        assert smallest_by_layer(layers, k) == tuple(owner[:k].bincount(minlength=3).tolist())


def test_the_global_scope_takes_the_smallest_weights_wherever_they_are() -> None:
    parameters = sparsifiable(net())
    sizes = torch.cat([p.detach().abs().flatten() for p in parameters.values()])
    threshold = sizes.sort().values[100]
    masks = make_masks(parameters, 100 / 188, "magnitude")
    assert all(torch.equal(mask, parameters[name].abs() >= threshold) for name, mask in masks.items())


def test_taylor_ranks_by_weight_times_gradient() -> None:
    parameters = {"w": torch.tensor([[1.0, -4.0, 3.0, 2.0]])}
    masks = make_masks(parameters, 0.5, "taylor", gradients={"w": torch.tensor([[5.0, 0.1, -0.1, 9.0]])})
    assert masks["w"].tolist() == [[True, False, False, True]]


def test_random_masks_depend_on_the_seed_and_the_name_alone() -> None:
    parameters = {"a": torch.randn(40, 50), "b": torch.randn(40, 50)}
    shares = dict.fromkeys(parameters, 0.5)
    first = make_masks(parameters, shares, "random", seed=1)
    make_masks({"b": torch.randn(3, 3)}, 0.3, "random", seed=7)
    other = {name: torch.randn(40, 50) for name in ("b", "c", "a")}
    again = make_masks(other, dict.fromkeys(other, 0.5), "random", seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], make_masks(parameters, shares, "random", seed=2)["a"])


def test_random_masks_take_as_many_weights_from_every_part() -> None:
    mask = make_masks({"a": torch.randn(100, 1000)}, 0.5, "random")["a"].double()
    # Six standard deviations of a binomial: 0.5 ± 6 √(0.25 / n).
    assert (mask.mean(dim=1) - 0.5).abs().max() < 6 * (0.25 / 1000) ** 0.5
    assert (mask.mean(dim=0) - 0.5).abs().max() < 6 * (0.25 / 100) ** 0.5
    assert abs(float((mask[:, 1:] * mask[:, :-1]).mean()) - 0.25) < 6 * (0.1875 / 99_900) ** 0.5


def test_masks_of_weights_that_are_not_contiguous_follow_their_logical_order() -> None:
    weight = torch.randn(8, 6, 3, 3)
    strided = weight.to(memory_format=torch.channels_last)
    for score in SCORES:
        one = make_masks({"w": weight}, 0.7, score, gradients={"w": weight.flip(0)})["w"]
        assert torch.equal(one, make_masks({"w": strided}, 0.7, score, gradients={"w": weight.flip(0)})["w"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_point_type_is_ranked(dtype: torch.dtype) -> None:
    parameters = {"a": torch.randn(30, 40).to(dtype), "b": torch.randn(10, 40).to(dtype)}
    for score in SCORES:
        masks = make_masks(parameters, 0.75, score, gradients=slopes(parameters))
        assert sum(removed(masks).values()) == 1200


def test_lamp_leaves_a_weight_in_every_layer_where_magnitude_empties_one() -> None:
    parameters = sparsifiable(net())
    with torch.no_grad():
        parameters["3.weight"].mul_(1e-4)
    assert int(make_masks(parameters, 0.9, "lamp")["3.weight"].sum()) > 0
    assert int(make_masks(parameters, 0.9, "magnitude")["3.weight"].sum()) == 0


@settings(max_examples=60, deadline=None)
@given(
    first=st.floats(0, 0.9),
    more=st.floats(0, 0.09),
    score=st.sampled_from(SCORES),
    scope=st.sampled_from(SCOPES),
)
def test_zeros_stay_zero_as_sparsity_rises(first: float, more: float, score: Score, scope: Scope) -> None:
    parameters = sparsifiable(net())
    apply_masks(parameters, make_masks(parameters, first, score, scope, gradients=slopes(parameters, 0), seed=0))
    before = {name: p.detach() == 0 for name, p in parameters.items()}
    apply_masks(parameters, make_masks(parameters, first + more, score, scope, gradients=slopes(parameters, 1), seed=1))
    assert all(bool((parameters[name] == 0)[zeros].all()) for name, zeros in before.items())


def test_what_a_mask_removes_becomes_a_positive_zero() -> None:
    weight = nn.Parameter(torch.tensor([[-1.0, 2.0, -3.0]]))
    apply_masks({"w": weight}, {"w": torch.tensor([[False, False, True]])})
    assert weight.tolist() == [[0.0, 0.0, -3.0]]
    assert not torch.signbit(weight)[0, :2].any()


def two_of_four(weight: Tensor) -> Tensor:
    """By its definition, one group after another: larger than at least two of its four."""
    mask = torch.zeros_like(weight, dtype=torch.bool).movedim(1, -1)  # (C_out, kH, kW, C_in)
    sizes = weight.abs().movedim(1, -1)
    for start in range(0, weight.shape[1], 4):
        group = sizes[..., start : start + 4]
        mask[..., start : start + 4] = (group[..., None] > group[..., None, :]).sum(dim=-1) >= 2
    return mask.movedim(-1, 1)


@pytest.mark.parametrize("shape", [(5, 8), (3, 12, 2, 3), (2, 4, 5)])
def test_two_of_each_four_weights_along_the_input_axis_stay(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    assert torch.equal(pattern_masks({"w": weight}, "2:4")["w"], two_of_four(weight))


@settings(max_examples=60, deadline=None)
@given(m=st.integers(2, 8), data=st.data(), score=st.sampled_from(SCORES), ties=st.booleans())
def test_exactly_n_of_each_m_stay(m: int, data: st.DataObject, score: Score, ties: bool) -> None:
    n = data.draw(st.integers(1, m - 1))
    weight = torch.randn(3, 2 * m, 2)
    weight = weight.round() if ties else weight
    mask = pattern_masks({"w": weight}, f"{n}:{m}", score, gradients={"w": weight.flip(0)})["w"]
    assert bool((mask.movedim(1, -1).reshape(-1, m).sum(dim=1) == n).all())


def test_a_parameter_that_a_pattern_does_not_fit_stays_whole_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    parameters = {"first": torch.randn(8, 3, 3, 3), "second": torch.randn(8, 8, 3, 3)}
    with caplog.at_level(logging.WARNING):
        masks = pattern_masks(parameters)
    assert removed(masks) == {"first": 0, "second": 288}
    assert off_pattern(parameters) == ("first",)
    assert "stay whole: first" in caplog.text


@pytest.mark.parametrize("pattern", ["4:4", "0:4", "4:2", "2/4", "2:4:8", "", "-1:4", " 2:4"])
def test_what_is_not_a_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(SparsityError, match="N:M with 0 < N < M"):
        pattern_masks({"w": torch.randn(4, 4)}, pattern)
    assert len(check_pattern(pattern)) == 1
    assert check_pattern("2:4") == []


NAMES = {
    name: torch.ones(2, 2)
    for name in ("conv1.weight", "conv10.weight", "block.0.weight", "block.1.weight", "lstm.weight_ih_l0")
}


def test_layers_are_named_by_layer_parameter_block_or_pattern() -> None:
    asked = {"conv1": 0.1, "block": 0.2, "lstm.weight_ih_l0": 0.3}
    assert resolve_layers(NAMES, asked) == {
        "conv1.weight": 0.1,
        "block.0.weight": 0.2,
        "block.1.weight": 0.2,
        "lstm.weight_ih_l0": 0.3,
    }
    assert resolve_layers(NAMES, {"conv*": 0.4}) == {"conv1.weight": 0.4, "conv10.weight": 0.4}


def test_the_most_exact_name_of_a_layer_wins_in_any_order() -> None:
    asked = {"block.1.weight": 0.1, "block.0": 0.2, "block": 0.3, "*": 0.4}
    for order in itertools.permutations(asked):
        found = resolve_layers(NAMES, {key: asked[key] for key in order})
        assert [found["block.1.weight"], found["block.0.weight"], found["conv1.weight"]] == [0.1, 0.2, 0.4]


def test_an_unknown_layer_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(SparsityError, match=r"'cnv1'; did you mean 'conv1'"):
        resolve_layers(NAMES, {"cnv1": 0.5})
    with pytest.raises(SparsityError, match=r"'conv1.wight'; did you mean 'conv1.weight'"):
        make_masks(NAMES, {"conv1.wight": 0.5})
    with pytest.raises(SparsityError, match=r"sparsity=1.5 of conv1.weight"):
        resolve_layers(NAMES, {"conv1": 1.5})


def test_what_cannot_be_ranked_is_refused_with_its_name() -> None:
    parameters = {"a": torch.randn(4, 4), "b": torch.randn(4, 4)}
    with pytest.raises(SparsityError, match="needs the gradient of a"):
        make_masks(parameters, 0.5, "taylor")
    with pytest.raises(SparsityError, match=r"gradient of b is \(4, 5\)"):
        make_masks(parameters, 0.5, "taylor", gradients={"a": torch.ones(4, 4), "b": torch.ones(4, 5)})
    with pytest.raises(SparsityError, match="score='size' is not one of lamp, magnitude, taylor, random"):
        make_masks(parameters, 0.5, "size")  # type: ignore[arg-type]
    with pytest.raises(SparsityError, match="scope='row' is not one of global, layer"):
        make_masks(parameters, 0.5, scope="row")  # type: ignore[arg-type]
    for value in (float("nan"), float("inf")):
        parameters["b"][3, 3] = value
        for score in SCORES:
            with pytest.raises(SparsityError, match=r"^b: .* infinite or NaN"):
                make_masks(parameters, 0.5, score, gradients=slopes(parameters))
            with pytest.raises(SparsityError, match=r"^b: .* infinite or NaN"):
                pattern_masks(parameters, "2:4", score, gradients=slopes(parameters))


def test_sparsity_is_zeros_over_elements() -> None:
    assert sparsity_of({"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([[0.0, 0.0, 3.0, 4.0]])}) == 0.5


def test_nothing_to_sparsify_is_an_error_and_so_is_everything() -> None:
    with pytest.raises(SparsityError, match="nothing to sparsify"):
        make_masks({}, 0.5)
    with pytest.raises(SparsityError, match="sparsity=1"):
        make_masks(sparsifiable(net()), 1.0)


@given(steps=st.integers(1, 1000), start=st.floats(0, 0.5), rise=st.floats(0, 0.49))
def test_the_cubic_schedule_never_falls_and_ends_at_its_target(steps: int, start: float, rise: float) -> None:
    values = [cubic(step, steps, start, start + rise) for step in range(steps + 2)]
    assert values[0] == pytest.approx(start)
    assert values[-1] == start + rise
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))


def test_the_cubic_schedule_equals_the_published_formula() -> None:
    assert cubic(25, 100, 0.0, 0.8) == pytest.approx(0.8 - 0.8 * 0.75**3)


def test_a_tied_weight_is_kept_by_any_of_its_names() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    assert list(sparsifiable(module)) == ["0.weight"]
    assert not sparsifiable(module, ("1.weight",))
