"""What users' models do that a search by NaN must survive: each of these once went wrong."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data import DataOptions, load_data
from compress.errors import PruningError
from compress.pruning import channel_groups, prune, relative_error
from compress.pruning.traced import TracedModule
from compress.training import reestimate
from tests.architectures import make


class Net(nn.Module):
    """Two layers, and what a test makes of the forward."""

    def __init__(self, forward: Callable[[Net, Tensor], Any], **extra: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 3)
        self.calls = forward
        for name, value in extra.items():
            self.register_buffer(name, value) if isinstance(value, Tensor) else setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.calls(self, x)

    def rest(self, h: Tensor) -> Tensor:
        out: Tensor = self.c(F.relu(self.b(F.relu(h))))
        return out


def widths(module: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """Of a model pruned at half, once it was found exact."""
    module.eval()
    pruned = prune(module, inputs, ratio=0.5, round_to=1)
    assert relative_error(module, pruned.module, pruned.groups, pruned.kept, inputs) < 1e-4
    return dict(pruned.widths)


X = torch.linspace(-1, 1, 12).reshape(2, 6)
BOTH = {"a": 8, "b": 4}


def test_statistics_and_buffers_are_left_alone_even_where_training_mode_is_probed() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        net.ema.mul_(0.9)
        return net.rest(net.norm(net.a(x)))

    module = Net(forward, ema=torch.ones(1), norm=nn.BatchNorm1d(16), unused=nn.Linear(3, 3)).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    channel_groups(module, X * 5)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_state_that_a_forward_keeps_does_not_carry_nan_into_the_next_pass() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        net.last = h if net.last is None else 0.5 * (net.last.detach() + h)
        return net.rest(h)

    module = Net(forward, last=None)
    assert {g.name for g in channel_groups(module.eval(), X) if g.frozen is None} == {"a", "b"}
    assert module.last is None


def test_what_reaches_an_output_is_seen_in_any_object() -> None:
    module = Net(lambda net, x: types.SimpleNamespace(hidden=(h := net.a(x)), out=net.rest(h))).eval()
    assert next(g for g in channel_groups(module, X) if g.name == "a").frozen == "reaches the output of the model"


def test_outputs_without_a_tensor_are_refused() -> None:
    with pytest.raises(PruningError, match="in which no tensor is found"):
        channel_groups(Net(lambda net, x: float(net.rest(net.a(x)).sum())).eval(), X)


def test_a_coupling_through_a_comparison_is_not_cut() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        h = torch.tanh(net.a(x))
        return net.c(F.relu(net.b(h)) * (1 + (h.sum(1, keepdim=True) > 0).float()))

    module = Net(forward).eval()
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    pruned = prune(module, x[:2], ratio=0.5, round_to=1)
    assert relative_error(module, pruned.module, pruned.groups, pruned.kept, (x,)) < 1e-4


def test_a_forward_that_refuses_nan_is_told_with_the_next_step() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        assert not bool(h.isnan().any())
        return net.rest(h)

    with pytest.raises(PruningError, match=r"does not run with NaN in it: AssertionError.*--skip prune"):
        channel_groups(Net(forward).eval(), X)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_float_types_are_grouped_too(dtype: torch.dtype) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.rest(net.mix @ net.a(x))

    module = Net(forward, mix=torch.rand(2, 2)).to(dtype).eval()
    assert {g.name for g in channel_groups(module, X.to(dtype)) if g.frozen is None} == {"a", "b"}


class LearnedState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head, self.start = nn.GRU(6, 12), nn.Linear(12, 3), nn.Parameter(torch.rand(1, 1, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x, self.start.expand(-1, x.shape[1], -1).contiguous())[0][-1])


def test_a_learned_initial_state_leaves_with_its_units() -> None:
    assert widths(LearnedState(), torch.rand(5, 2, 6)) == {"rnn": 6}


def test_parts_written_into_a_tensor_are_followed() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        parts = torch.zeros_like(h)
        parts[:] = torch.tanh(h)
        return net.rest(h + parts)

    assert widths(Net(forward), X) == BOTH


def test_calls_with_keywords_are_understood() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        h = torch.matmul(x, other=net.a.weight.t())
        return net.rest(torch.reshape(input=h, shape=(len(x), -1)))

    assert widths(Net(forward), X) == BOTH


def test_a_path_that_only_training_takes_must_run_too() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        if net.training:
            h = h + 0.1 * torch.randn(len(x), 16)
        return net.rest(h)

    pruned = prune(Net(forward).eval(), X, ratio=0.5, round_to=1)
    assert pruned.module.train()(X).shape == (2, 3)


def test_a_head_that_training_runs_is_found_from_a_single_sample_too() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        h = F.relu(net.a(x))
        return (net.rest(h), net.aux(net.norm(h))) if net.training else net.rest(h)

    module = Net(forward, norm=nn.BatchNorm1d(16), aux=nn.Linear(16, 2)).eval()
    pruned = prune(module, X[:1], ratio=0.5, round_to=1)
    assert pruned.kept["aux.weight"][1].numel() == 8
    assert pruned.module.train()(X)[1].shape == (2, 2)


def test_where_nothing_leaves_a_copy_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    module = Net(lambda net, x: net.rest(net.a(x))).eval()
    pruned = prune(module, X, ratio=0.01)
    assert pruned.module is not module
    assert not pruned.kept
    assert "smaller round_to" in caplog.text


def test_a_traced_model_survives_torchs_own_pickle(tmp_path: Path) -> None:
    module, inputs = make("hard-coded view")
    pruned = prune(module, inputs, ratio=0.5, round_to=1).module.eval()
    assert isinstance(pruned, TracedModule)
    torch.save(pruned, tmp_path / "pruned.pt")
    again = torch.load(tmp_path / "pruned.pt", weights_only=False)
    with torch.no_grad():
        assert torch.equal(again(*inputs), pruned(*inputs))


def test_statistics_of_a_traced_model_are_those_of_the_data(digits_file: Path) -> None:
    class View(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(288, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.norm(self.conv(x))).view(-1, 288))

    train = load_data(f"npz:{digits_file}", DataOptions()).train
    (x,), _ = train.fetch(train.indices)
    torch.manual_seed(0)
    traced = prune(View().eval(), x[:2], ratio=0.5, round_to=1).module
    assert isinstance(traced, TracedModule)
    reestimate(traced, train, batches=2, batch_size=300)
    with torch.no_grad():
        expected = F.conv2d(x, traced.get_parameter("conv.weight"), traced.get_parameter("conv.bias"))
    torch.testing.assert_close(traced.get_buffer("norm.running_mean"), expected.mean((0, 2, 3)), rtol=0.05, atol=0.02)
    torch.testing.assert_close(traced.get_buffer("norm.running_var"), expected.var((0, 2, 3)), rtol=0.1, atol=0.02)


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(PruningError, match="scope='globl' must be one of uniform, global"):
        prune(Net(lambda net, x: net.rest(net.a(x))).eval(), X, ratio=0.5, scope="globl")  # type: ignore[arg-type]
