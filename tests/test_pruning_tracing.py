"""Models with sizes written into their forward: traced, with those sizes rewritten."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import PruningError
from compress.pruning.exactness import evaluate, relative_error
from compress.pruning.groups import channel_groups
from compress.pruning.rewriting import rewrite
from compress.pruning.surgery import cut, kept_of
from compress.pruning.traced import TracedModule
from compress.pruning.values import ChannelGroup, Member


def member(name: str, axis: int, role: str, channels: int, each: int = 1, offset: int = 0) -> Member:
    """Entries offset.. of an axis, ``each`` consecutive ones a channel."""
    index = offset + torch.arange(channels * each)
    return Member(name, axis, role, index, torch.arange(channels).repeat_interleave(each))  # type: ignore[arg-type]


def layer(name: str, channels: int, each: int = 1, bias: bool = True) -> tuple[Member, ...]:
    """The rows of a layer's weight and bias."""
    weight = member(f"{name}.weight", 0, "out", channels, each)
    return (weight, member(f"{name}.bias", 0, "out", channels, each)) if bias else (weight,)


class Convolutions(nn.Module):
    """The flattened size is a number in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, groups=1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(16 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(self.drop(x.view(-1, 256)))


CONVOLUTIONS = (
    ChannelGroup(
        "conv1",
        8,
        (
            *layer("conv1", 8),
            *(member(f"bn.{name}", 0, "along", 8) for name in ("weight", "bias", "running_mean", "running_var")),
            member("conv2.weight", 1, "in", 8),
        ),
    ),
    ChannelGroup("conv2", 16, (*layer("conv2", 16), member("fc.weight", 1, "in", 16, each=16))),
)


class Attention(nn.Module):
    """Hand-written: heads and head width are numbers of the module."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.heads, self.width, self.packed = 4, 6, packed
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 3 * 24) if packed else nn.Linear(12, 24)
        if not packed:
            self.k, self.v = nn.Linear(12, 24), nn.Linear(12, 24)
        self.out = nn.Linear(24, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        y = self.norm(x)
        q, k, v = self.qkv(y).chunk(3, dim=-1) if self.packed else (self.qkv(y), self.k(y), self.v(y))
        q, k, v = (t.view(batch, length, self.heads, self.width).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(-2, -1) * self.width**-0.5
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(causal, -torch.inf).softmax(-1)
        y = (scores @ v).transpose(1, 2).reshape(batch, length, 24)
        return self.head((x + self.out(y)).mean(1))


def attention_groups(packed: bool) -> tuple[ChannelGroup, ...]:
    if packed:
        rows = [member(f"qkv.{n}", 0, "out", 4, 6, offset) for n in ("weight", "bias") for offset in (0, 24, 48)]
    else:
        rows = [m for name in ("qkv", "k", "v") for m in layer(name, 4, 6)]
    return (ChannelGroup("qkv", 4, (*rows, member("out.weight", 1, "in", 4, 6))),)


class Sliced(nn.Module):
    """Positions and halves of channels are numbers in the forward; the output is a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 16, 3, padding=1)
        self.left = nn.Conv1d(8, 4, 1)
        self.right = nn.Conv1d(8, 4, 1)
        self.depthwise = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.gate = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.conv(x)
        left, right = x[:, :8], self.depthwise(x[:, 8:])
        right = right * torch.sigmoid(self.gate(right.mean(-1))).view(-1, 8, 1)
        return {"left": self.left(left), "right": self.right(right)}


SLICED = (
    ChannelGroup("conv", 8, (*layer("conv", 8), member("left.weight", 1, "in", 8))),
    ChannelGroup(
        "depthwise",
        8,
        (
            member("conv.weight", 0, "out", 8, offset=8),
            member("conv.bias", 0, "out", 8, offset=8),
            *layer("depthwise", 8),
            *layer("gate", 8),
            member("gate.weight", 1, "in", 8),
            member("right.weight", 1, "in", 8),
        ),
    ),
)


class Recurrent(nn.Module):
    """An LSTM between an embedding and a size that is a number in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 8, num_layers=2, bidirectional=True, dropout=0.3, batch_first=True)
        self.fc = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embedding(tokens))[0][:, -1].reshape(-1, 2, 8).view(-1, 16))


def recurrent_groups() -> tuple[ChannelGroup, ...]:
    members = []
    for level in (0, 1):
        for suffix in (f"l{level}", f"l{level}_reverse"):
            for gate in range(4):
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    members.append(member(f"lstm.{name}_{suffix}", 0, "out", 8, offset=8 * gate))
            members.append(member(f"lstm.weight_hh_{suffix}", 1, "in", 8))
            if level:
                members += [member(f"lstm.weight_ih_{suffix}", 1, "in", 8, offset=8 * way) for way in (0, 1)]
    members += [member("fc.weight", 1, "in", 8, offset=8 * way) for way in (0, 1)]
    columns = (member(f"lstm.weight_ih_{suffix}", 1, "in", 6) for suffix in ("l0", "l0_reverse"))
    embedding = ChannelGroup("embedding", 6, (member("embedding.weight", 1, "out", 6), *columns))
    return (ChannelGroup("lstm", 8, tuple(members)), embedding)


def settled(module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """With running statistics that are not the initial ones, in eval mode."""
    with torch.no_grad():
        module(*inputs)
    return module.eval()


IMAGES = (torch.randn(2, 1, 12, 12),)
CASES = {
    "view": (Convolutions, CONVOLUTIONS, {"conv1": [0, 3, 5], "conv2": [1, 2, 8, 15]}, IMAGES),
    "heads": (lambda: Attention(False), attention_groups(False), {"qkv": [0, 2, 3]}, (torch.randn(2, 5, 12),)),
    "packed": (lambda: Attention(True), attention_groups(True), {"qkv": [1, 3]}, (torch.randn(2, 5, 12),)),
    "slices": (Sliced, SLICED, {"conv": [0, 1, 6], "depthwise": [2, 3, 4, 7]}, (torch.randn(2, 3, 7),)),
    "lstm": (
        Recurrent,
        recurrent_groups(),
        {"lstm": [0, 2, 3, 6, 7], "embedding": [0, 4]},
        (torch.randint(11, (2, 5)),),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_sizes_in_the_forward_are_rewritten_exactly(case: str) -> None:
    make, groups, keep, inputs = CASES[case]
    torch.manual_seed(0)
    module = settled(make(), inputs)
    kept = kept_of(module, groups, {name: torch.tensor(channels) for name, channels in keep.items()})
    smaller = cut(module, groups, kept, inputs)
    assert isinstance(smaller, TracedModule)
    assert relative_error(module, smaller, groups, kept, inputs) < 1e-12
    assert smaller.state_dict().keys() == module.state_dict().keys()
    assert [name for name, _ in smaller.named_parameters()] == [name for name, _ in module.named_parameters()]
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("case", CASES)
def test_a_traced_module_takes_other_batch_sizes_and_gives_gradients_to_all(case: str) -> None:
    make, groups, keep, inputs = CASES[case]
    module = settled(make(), inputs)
    kept = kept_of(module, groups, {name: torch.tensor(channels) for name, channels in keep.items()})
    smaller = copy.deepcopy(cut(module, groups, kept, inputs)).train()
    for size in (1, 3):
        batch = tuple(torch.cat([x, x])[:size] for x in inputs)
        smaller.zero_grad()
        outputs = smaller(*batch) if size > 1 or case != "view" else smaller.eval()(*batch)
        tensors = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
        assert all(len(t) == size for t in tensors)
        sum(t.square().sum() for t in tensors).backward()  # type: ignore[union-attr]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in smaller.parameters())
        smaller.train()


def traced_convolutions() -> nn.Module:
    module = settled(Convolutions(), IMAGES)
    kept = kept_of(module, CONVOLUTIONS, {"conv1": torch.arange(4), "conv2": torch.arange(8)})
    return rewrite(module, kept, IMAGES)


def test_dropout_and_statistics_work_in_training_only() -> None:
    module = traced_convolutions().train()
    mean, count = module.bn.running_mean.clone(), int(module.bn.num_batches_tracked)
    assert not torch.equal(module(*IMAGES), module(*IMAGES))
    assert not torch.equal(module.bn.running_mean, mean)
    assert int(module.bn.num_batches_tracked) == count + 2
    mean = module.eval().bn.running_mean.clone()
    assert torch.equal(module(*IMAGES), module(*IMAGES))
    assert torch.equal(module.bn.running_mean, mean)


def test_the_flags_of_single_layers_are_followed() -> None:
    module = traced_convolutions().eval()
    module.bn.train()
    mean = module.bn.running_mean.clone()
    assert torch.equal(module(*IMAGES), module(*IMAGES))
    assert not torch.equal(module.bn.running_mean, mean)
    module.train()
    module.drop.eval()
    assert torch.equal(module(*IMAGES), module(*IMAGES))


def test_a_traced_module_can_be_cut_again() -> None:
    module = traced_convolutions().eval()
    members = (*layer("conv2", 8), member("fc.weight", 1, "in", 8, each=16))
    groups = (ChannelGroup("conv2", 8, members),)
    kept = kept_of(module, groups, {"conv2": torch.tensor([0, 7])})
    smaller = cut(module, groups, kept, IMAGES)
    assert smaller.fc.in_features == 32
    assert relative_error(module, smaller, groups, kept, IMAGES) < 1e-12
    smaller.train()
    assert not torch.equal(smaller(*IMAGES), smaller(*IMAGES))


class FrozenStatistics(Convolutions):
    def train(self, mode: bool = True) -> FrozenStatistics:
        super().train(mode)
        self.bn.eval()
        return self


def test_a_normalisation_that_the_users_class_keeps_frozen_stays_frozen() -> None:
    module = FrozenStatistics()
    kept = kept_of(module, CONVOLUTIONS, {"conv2": torch.arange(8)})
    smaller = rewrite(module, kept, IMAGES).train()
    mean = smaller.bn.running_mean.clone()
    smaller(*IMAGES)
    assert torch.equal(smaller.bn.running_mean, mean)


class TiedTwice(nn.Module):
    """One block used twice, its weight tied to a decoder; the sizes are numbers in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.block = nn.Linear(8, 8)
        self.decoder = nn.Linear(8, 10, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for _ in range(2):
            x = x + self.block(x.view(-1, 4, 8))
        return self.decoder(x)


def test_tied_weights_stay_tied_when_traced() -> None:
    tokens = (torch.randint(10, (2, 4)),)
    module = TiedTwice().eval()
    members = (member("embedding.weight", 1, "in", 8), *layer("block", 8), member("block.weight", 1, "in", 8))
    groups = (ChannelGroup("embedding", 8, members),)
    kept = kept_of(module, groups, {"embedding": torch.tensor([0, 1, 6])})
    smaller = cut(module, groups, kept, tokens)
    assert isinstance(smaller, TracedModule)
    assert smaller.decoder.weight is smaller.embedding.weight
    assert smaller.state_dict().keys() == module.state_dict().keys()
    assert relative_error(module, smaller, groups, kept, tokens) < 1e-12


class Literals(nn.Module):
    """Functional forms: groups, normalised shapes, initial states, paddings and halves as numbers in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 3)
        self.depthwise = nn.Parameter(torch.randn(8, 1, 3))
        self.scale, self.shift = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.wide = nn.Linear(8, 12)
        self.gru = nn.GRU(6, 10, batch_first=True)
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.conv1d(F.pad(x, (1, 1)), self.depthwise, groups=8)
        x = F.group_norm(x, 4, self.scale, self.shift).unflatten(1, (2, 4)).flatten(1, 2)
        left, right = self.wide(x.transpose(1, 2)).split(6, dim=-1)
        gated = F.dropout(left.sigmoid() * right, 0.1, self.training)
        return self.head(self.gru(gated, x.new_zeros(1, x.shape[0], 10))[0].narrow(1, 2, 1).expand(-1, 3, 10).mean(1))


def test_every_kind_of_literal_follows_the_groups_that_probing_finds() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 9),)
    module = Literals().eval()
    groups = channel_groups(module, inputs)
    free = [group for group in groups if group.frozen is None and group.channels > 1]
    lost = {name.partition(".")[0] for group in free for name in (member.name for member in group.members)}
    assert lost >= {"wide", "gru", "head"}
    kept = kept_of(module, groups, {group.name: torch.arange(group.channels // 2) for group in free})
    smaller = cut(module, groups, kept, inputs)
    assert isinstance(smaller, TracedModule)
    assert relative_error(module, smaller, groups, kept, inputs) < 1e-12
    assert smaller.train()(torch.randn(5, 3, 9)).shape == (5, 2)


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 12)
        self.fc2 = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).view(-1, 3, 4).transpose(1, 2).reshape(-1, 12))


def test_a_size_that_cannot_follow_is_told_by_its_operator() -> None:
    module = Shuffled().eval()
    groups = (ChannelGroup("fc1", 12, (*layer("fc1", 12), member("fc2.weight", 1, "in", 12))),)
    kept = kept_of(module, groups, {"fc1": torch.arange(5)})
    with pytest.raises(PruningError, match=r"As its own class it does not run.*\n?.*aten.view.*view\(-1, 3, 4\)"):
        cut(module, groups, kept, (torch.randn(2, 4),))


def test_the_original_is_left_as_it_was() -> None:
    module = settled(Convolutions(), IMAGES)
    before = copy.deepcopy(module.state_dict())
    outputs = evaluate(module, IMAGES)
    kept = kept_of(module, CONVOLUTIONS, {"conv1": torch.arange(2)})
    cut(module, CONVOLUTIONS, kept, IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(evaluate(module, IMAGES), outputs)
    assert not module.training
