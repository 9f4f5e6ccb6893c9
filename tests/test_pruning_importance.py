"""Importance: each function against its definition, and gradients against what really happens to the loss."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.splits import Split
from compress.errors import PruningError
from compress.pruning.evidence import Evidence, from_weights, gate_gradients, gather
from compress.pruning.importance import IMPORTANCES, NEEDS_DATA, scores
from compress.pruning.values import ChannelGroup, Member, Role


def member(name: str, axis: int, role: Role, channels: int, each: int = 1) -> Member:
    index = torch.arange(channels * each)
    return Member(name, axis, role, index, index // each)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def mlp_group() -> ChannelGroup:
    along = [member(f"1.{n}", 0, "along", 5) for n in ("weight", "bias", "running_mean", "running_var")]
    made = (member("0.weight", 0, "out", 5), member("0.bias", 0, "out", 5))
    return ChannelGroup("0", 5, (*made, *along, member("3.weight", 1, "in", 5)))


def split_of(samples: int, labelled: bool = True) -> Split:
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.standard_normal((samples, 6)).astype(np.float32))
    y = torch.from_numpy(generator.integers(0, 3, samples))
    return Split("calibration", lambda i: ((x[i],), y[i] if labelled else None), np.arange(samples), labelled)


def evidence(**weights: list[list[float]] | list[float]) -> Evidence:
    return Evidence({name: torch.tensor(values) for name, values in weights.items()})


ONE = ChannelGroup("g", 3, (member("w", 0, "out", 3),))


def test_magnitudes_are_norms_of_the_rows_over_their_mean() -> None:
    rows = evidence(w=[[3.0, -4.0], [0.0, 1.0], [6.0, 8.0]])
    norms = torch.tensor([5.0, 1.0, 10.0], dtype=torch.float64)
    sums = torch.tensor([7.0, 1.0, 14.0], dtype=torch.float64)
    assert torch.allclose(IMPORTANCES["l2"](ONE, rows), norms / norms.mean())
    assert torch.allclose(IMPORTANCES["l1"](ONE, rows), sums / sums.mean())


def test_every_member_has_one_voice_however_large_it_is() -> None:
    # The reader's weights are 1000 times those of the maker, and say the opposite.
    both = ChannelGroup("g", 2, (member("w", 0, "out", 2), member("r", 1, "in", 2)))
    found = IMPORTANCES["l1"](both, evidence(w=[[1.0], [3.0]], r=[[3000.0, 1000.0]]))
    assert torch.allclose(found, torch.ones(2, dtype=torch.float64))


def test_a_member_that_only_some_channels_have_does_not_lower_the_others() -> None:
    half = Member("r", 1, "in", torch.tensor([0]), torch.tensor([1]))
    both = ChannelGroup("g", 2, (member("w", 0, "out", 2), half))
    found = IMPORTANCES["l1"](both, evidence(w=[[2.0], [2.0]], r=[[9.0]]))
    assert found.tolist() == [1.0, 1.0]


def test_biases_and_running_statistics_have_no_voice() -> None:
    module, group = mlp(), mlp_group()
    before = IMPORTANCES["l2"](group, from_weights(module))
    with torch.no_grad():
        module[0].bias.mul_(100)
        module[1].bias.add_(100)
        module[1].running_mean.add_(7)
    assert torch.equal(before, IMPORTANCES["l2"](group, from_weights(module)))


def test_bn_scale_ranks_by_gamma_and_falls_back_to_l2() -> None:
    module = mlp()
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([0.1, -0.9, 0.5, 0.3, 0.0]))
    found = IMPORTANCES["bn_scale"](mlp_group(), from_weights(module))
    assert found.argsort().tolist() == [4, 0, 3, 2, 1]
    rows = evidence(w=[[3.0], [1.0], [2.0]])
    assert torch.equal(IMPORTANCES["bn_scale"](ONE, rows), IMPORTANCES["l2"](ONE, rows))


def test_fpgm_finds_the_channel_in_the_middle_of_the_others() -> None:
    rows = evidence(w=[[10.0, 10.0], [11.0, 10.0], [30.0, -4.0]])
    found = IMPORTANCES["fpgm"](ONE, rows)
    assert found.argmin() == 1  # not the smallest norm, 0
    assert found.argmax() == 2


def test_fpgm_compares_all_entries_of_a_channel_wherever_they_lie() -> None:
    spread = Member("w", 0, "out", torch.arange(6), torch.tensor([0, 1, 2, 2, 1, 0]))
    rows = evidence(w=[[0.0], [0.0], [0.0], [5.0], [0.0], [0.0]])
    found = IMPORTANCES["fpgm"](ChannelGroup("g", 3, (spread,)), rows)
    assert found.argmax() == 2
    assert found[0] == found[1] > 0


def test_lamp_gives_the_best_channel_one_and_the_rest_their_share_of_what_is_left() -> None:
    found = IMPORTANCES["lamp"](ONE, evidence(w=[[2.0], [1.0], [3.0]]))
    assert torch.allclose(found, torch.tensor([4 / 13, 1 / 14, 1.0], dtype=torch.float64))


def test_random_repeats_with_the_seed_and_differs_between_groups() -> None:
    other = ChannelGroup("h", 3, ONE.members)
    first, again = (IMPORTANCES["random"](ONE, Evidence({}, seed=1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, IMPORTANCES["random"](ONE, Evidence({}, seed=2)))
    assert not torch.equal(first, IMPORTANCES["random"](other, Evidence({}, seed=1)))


def test_the_gate_gradient_is_the_derivative_of_the_loss_by_a_factor_on_the_channel() -> None:
    module, group = mlp().eval(), mlp_group()
    (x,), y = split_of(16).fetch(np.arange(16))
    gate = torch.ones(5, requires_grad=True)
    hidden = module[2](module[1](module[0](x))) * gate
    loss = F.cross_entropy(module[3](hidden), y)
    expected = torch.autograd.grad(loss, gate, retain_graph=True)[0]
    parameters = dict(module.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    found = gate_gradients([group], parameters, gradients)["0"]
    assert torch.allclose(found.float(), expected, atol=1e-6)


def test_fisher_is_the_mean_square_of_the_gate_gradient_over_batches() -> None:
    module, group = mlp().eval(), mlp_group()
    split = split_of(12)
    found = gather(module, [group], split, batches=3, batch_size=4)
    squares = torch.zeros(5)
    for (x,), y in split.batches(4, torch.Generator().manual_seed(0)):
        gate = torch.ones(5, requires_grad=True)
        loss = F.cross_entropy(module[3](module[2](module[1](module[0](x))) * gate), y)
        squares += torch.autograd.grad(loss, gate)[0].square() / 3
    assert found.fisher is not None
    assert torch.allclose(found.fisher["0"].float(), squares, rtol=1e-4)


def test_taylor_is_the_gate_gradient_of_the_mean_loss_however_the_samples_are_batched() -> None:
    module, group, split = mlp(), mlp_group(), split_of(10)
    at_once = scores([group], gather(module, [group], split, batches=1, batch_size=10), "taylor")["0"]
    in_parts = scores([group], gather(module, [group], split, batches=3, batch_size=4), "taylor")["0"]  # 4, 4, 2
    assert torch.allclose(at_once, in_parts, rtol=1e-4)
    one_batch = gather(module, [group], split, batches=1, batch_size=10)
    assert torch.allclose(at_once.square(), scores([group], one_batch, "fisher")["0"])


def test_gathering_leaves_the_module_as_it_was() -> None:
    module = mlp().train()
    module[0].weight.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    gather(module, [mlp_group()], split_of(8), batches=2, batch_size=4)
    assert module.training
    assert not module[0].weight.requires_grad
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_without_labels_the_fisher_information_comes_from_the_models_own_answers() -> None:
    split = split_of(32, labelled=False)
    first, again = (gather(mlp(), [mlp_group()], split, batches=4, seed=3) for _ in range(2))
    assert first.fisher is not None
    assert again.fisher is not None
    assert torch.equal(first.fisher["0"], again.fisher["0"])
    assert (first.fisher["0"] > 0).any()


def test_a_loss_of_ones_own_is_used_for_outputs_that_are_no_classes() -> None:
    def squared(outputs: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        return outputs.square().mean()

    flat = nn.Sequential(*mlp(), nn.Flatten(0))
    with pytest.raises(PruningError, match="Give a loss"):
        gather(flat, [mlp_group()], split_of(8))
    found = gather(flat, [mlp_group()], split_of(8), loss=squared)
    assert (scores([mlp_group()], found, "fisher")["0"] > 0).any()


def test_a_dead_channel_scores_nothing_by_gradients() -> None:
    module = mlp()
    with torch.no_grad():
        module[3].weight[:, 2] = 0
    found = gather(module, [mlp_group()], split_of(16), batches=4, batch_size=4)
    for importance in NEEDS_DATA:
        score = scores([mlp_group()], found, importance)["0"]
        assert score[2] == 0
        assert score.sum() > 0


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_scores_every_free_group_and_no_frozen_one(importance: str) -> None:
    group = mlp_group()
    frozen = ChannelGroup("3", 3, (member("3.weight", 0, "out", 3),), frozen="makes the outputs")
    found = scores([group, frozen], gather(mlp(), [group, frozen], split_of(8)), importance)
    assert list(found) == ["0"]
    assert found["0"].shape == (5,)
    assert found["0"].dtype == torch.float64
    assert (found["0"] >= 0).all()


def test_normalised_scores_have_mean_one_and_zeros_stay_zero() -> None:
    group = mlp_group()
    found = gather(mlp(), [group], split_of(8))
    assert scores([group], found, "fisher", normalise=True)["0"].mean().item() == pytest.approx(1)
    assert scores([ONE], evidence(w=[[0.0], [0.0], [0.0]]), "l2")["g"].tolist() == [0, 0, 0]


def test_refusals_name_what_is_allowed() -> None:
    with pytest.raises(PruningError, match="allowed are l1, l2"):
        scores([ONE], evidence(w=[[1.0], [1.0], [1.0]]), "l3")
    with pytest.raises(PruningError, match="needs gradients"):
        scores([ONE], evidence(w=[[1.0], [1.0], [1.0]]), "fisher")
    with pytest.raises(PruningError, match="'g' is not finite"):
        scores([ONE], evidence(w=[[float("nan")], [1.0], [1.0]]), "l1")
    with pytest.raises(PruningError, match="empty"):
        gather(mlp(), [mlp_group()], split_of(0))
