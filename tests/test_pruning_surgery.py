"""Smaller parameters in the user's own class, and the choice between class and trace."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from compress.errors import PruningError
from compress.pruning.attention import ReducedMultiheadAttention
from compress.pruning.exactness import relative_error
from compress.pruning.slicing import blocks_left, slice_module
from compress.pruning.surgery import cut, kept_of
from compress.pruning.values import ChannelGroup, Member
from tests.test_pruning_tracing import layer, member


def keep(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


class TwoLayers(nn.Module):
    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, hidden), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


HIDDEN = ChannelGroup("fc1", 6, (*layer("fc1", 6), member("fc2.weight", 1, "in", 6)))


def test_kept_lists_only_what_loses_something_in_ascending_order() -> None:
    kept = kept_of(TwoLayers(), [HIDDEN], {"fc1": keep(5, 0, 2)})
    assert {name: {axis: index.tolist() for axis, index in axes.items()} for name, axes in kept.items()} == {
        "fc1.weight": {0: [0, 2, 5]},
        "fc1.bias": {0: [0, 2, 5]},
        "fc2.weight": {1: [0, 2, 5]},
    }
    assert kept_of(TwoLayers(), [HIDDEN], {"fc1": torch.arange(6)}) == {}


def test_groups_that_share_an_axis_lose_together() -> None:
    module = nn.Sequential(nn.Linear(2, 8))
    left, right = (ChannelGroup(n, 3, (member("0.weight", 0, "out", 3, offset=o),)) for n, o in (("a", 0), ("b", 4)))
    kept = kept_of(module, [left, right], {"a": keep(0), "b": keep(2)})
    assert kept["0.weight"][0].tolist() == [0, 3, 6, 7]  # 3 and 7 are in no group


def test_what_cannot_be_kept_is_refused_by_the_groups_name() -> None:
    frozen = ChannelGroup("fc2", 3, layer("fc2", 3), frozen="its channels are an output of the model")
    groups = [HIDDEN, frozen]
    for chosen, said in (
        ({"fc1": keep()}, r"'fc1'.*give at least one of 0\.\.5"),
        ({"fc1": keep(6)}, r"'fc1'.*give at least one of 0\.\.5"),
        ({"fc2": keep(0, 1)}, "'fc2' was to keep 2 of 3.*output of the model"),
        ({"fc": keep(0)}, "no channel group 'fc' among the 2.*Did you mean"),
    ):
        with pytest.raises(PruningError, match=said):
            kept_of(TwoLayers(), groups, chosen)
    assert kept_of(TwoLayers(), groups, {"fc2": keep(0, 1, 2)}) == {}


def test_slicing_keeps_flags_and_drops_gradients_and_leaves_the_original() -> None:
    module = TwoLayers().eval()
    module(torch.ones(1, 4)).sum().backward()
    module.fc1.bias.requires_grad_(False)
    kept = kept_of(module, [HIDDEN], {"fc1": keep(1, 4)})
    smaller = slice_module(module, kept)
    assert torch.equal(smaller.fc1.weight, module.fc1.weight[[1, 4]])
    assert [p.requires_grad for p in smaller.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in smaller.parameters())
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in smaller.parameters())
    assert not smaller.training
    assert module.fc1.weight.shape == (6, 4)
    assert "out_features=2" in str(smaller.fc1)
    assert smaller.fc2.in_features == 2


def test_tied_parameters_stay_tied() -> None:
    module = nn.ModuleDict({"embedding": nn.Embedding(10, 6), "decoder": nn.Linear(6, 10)})
    module["decoder"].weight = module["embedding"].weight
    smaller = slice_module(module, {"embedding.weight": {1: keep(0, 3)}})
    assert smaller["decoder"].weight is smaller["embedding"].weight
    assert smaller["decoder"].in_features == smaller["embedding"].embedding_dim == 2


@pytest.mark.parametrize(
    ("layer", "kept", "expected", "shape"),
    [
        (
            nn.Conv2d(8, 8, 3, groups=8),
            {"weight": {0: keep(1, 5)}, "bias": {0: keep(1, 5)}},
            {"groups": 2},
            (1, 2, 5, 5),
        ),
        # Whole groups leave …
        (nn.Conv1d(8, 12, 1, groups=4), {"weight": {0: keep(0, 1, 2, 9, 10, 11)}}, {"groups": 2}, (1, 4, 5)),
        # … or the same place in every group.
        (nn.Conv1d(8, 8, 1, groups=2), {"weight": {0: keep(0, 4), 1: keep(1, 2)}}, {"groups": 2}, (1, 4, 5)),
        (nn.ConvTranspose2d(6, 4, 2), {"weight": {0: keep(0, 5), 1: keep(1)}}, {"out_channels": 1}, (1, 2, 3, 3)),
        (
            nn.ConvTranspose1d(8, 4, 2, groups=4),
            {"weight": {0: keep(2, 3, 6, 7)}, "bias": {0: keep(1, 3)}},
            {"groups": 2},
            (1, 4, 3),
        ),
        (
            nn.GroupNorm(4, 8),
            {"weight": {0: keep(0, 1, 4, 5)}, "bias": {0: keep(0, 1, 4, 5)}},
            {"num_groups": 2},
            (1, 4),
        ),
        (nn.LayerNorm(6), {"weight": {0: keep(1, 2)}, "bias": {0: keep(1, 2)}}, {"normalized_shape": (2,)}, (3, 2)),
        (nn.RMSNorm(6), {"weight": {0: keep(1, 2)}}, {"normalized_shape": (2,)}, (3, 2)),
        (
            nn.InstanceNorm1d(4, affine=True),
            {n: {0: keep(3)} for n in ("weight", "bias")},
            {"num_features": 1},
            (2, 1, 5),
        ),
        (nn.PReLU(4), {"weight": {0: keep(0, 1)}}, {"num_parameters": 2}, (3, 2)),
        (nn.Bilinear(3, 4, 5), {"weight": {1: keep(0), 2: keep(1, 2)}}, {"in2_features": 2}, ()),
    ],
)
def test_sizes_of_layers_follow_their_parameters(
    layer: nn.Module, kept: dict[str, dict[int, Tensor]], expected: dict[str, object], shape: tuple[int, ...]
) -> None:
    if isinstance(layer, nn.modules.conv._ConvNd) and "bias" not in kept:
        axis = 1 if layer.transposed else 0
        index = kept["weight"].get(axis)
        if index is not None:
            kept = {**kept, "bias": {0: index}}
    smaller = slice_module(layer, kept)
    assert {name: getattr(smaller, name) for name in expected} == expected
    if shape:
        assert smaller(torch.randn(shape)).isfinite().all()


def test_groups_that_would_keep_different_numbers_are_refused() -> None:
    assert blocks_left(keep(0, 1, 4, 5), 8, 4) == 2
    with pytest.raises(PruningError, match=r"keep \[2, 1\] channels"):
        blocks_left(keep(0, 1, 4), 8, 2)


class Texts(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.rnn = kind(6, 8, num_layers=2, bidirectional=True, batch_first=True, **options)
        self.head = nn.Linear(2 * (options.get("proj_size") or 8), 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(tokens))[0].mean(1))


def recurrent_members(gates: int, projection: int) -> list[ChannelGroup]:
    hidden: list[Member] = []
    outside: list[Member] = [
        member("head.weight", 1, "in", projection or 8, offset=w * (projection or 8)) for w in (0, 1)
    ]
    for level in (0, 1):
        for suffix in (f"l{level}", f"l{level}_reverse"):
            for gate in range(gates):
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    hidden.append(member(f"rnn.{name}_{suffix}", 0, "out", 8, offset=8 * gate))
            read = member(f"rnn.weight_hh_{suffix}", 1, "in", projection or 8)
            outside.append(read)
            if level:
                width = projection or 8
                outside += [member(f"rnn.weight_ih_{suffix}", 1, "in", width, offset=w * width) for w in (0, 1)]
            if projection:
                hidden.append(member(f"rnn.weight_hr_{suffix}", 1, "in", 8))
                outside.append(member(f"rnn.weight_hr_{suffix}", 0, "out", projection))
    if projection:
        return [ChannelGroup("hidden", 8, tuple(hidden)), ChannelGroup("projection", projection, tuple(outside))]
    return [ChannelGroup("hidden", 8, (*hidden, *outside))]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize(
    ("kind", "gates", "projection"), [(nn.LSTM, 4, 0), (nn.LSTM, 4, 5), (nn.GRU, 3, 0), (nn.RNN, 1, 0)]
)
def test_recurrent_layers_lose_units_exactly_and_keep_their_class(
    kind: type[nn.RNNBase], gates: int, projection: int
) -> None:
    module = Texts(kind, **({"proj_size": projection} if projection else {})).eval()
    tokens = (torch.randint(12, (2, 5)),)
    groups = recurrent_members(gates, projection)
    kept = kept_of(module, groups, {"hidden": keep(0, 3, 7)} | ({"projection": keep(1, 2)} if projection else {}))
    smaller = cut(module, groups, kept, tokens)
    assert type(smaller) is Texts
    assert (smaller.rnn.hidden_size, smaller.rnn.proj_size) == (3, 2 if projection else 0)
    assert relative_error(module, smaller, groups, kept, tokens) < 1e-12
    smaller.train()(*tokens).sum().backward()
    assert smaller.rnn.weight_hh_l1.grad is not None


def encoder_layer_groups(prefix: str, width: int, heads: int, hidden: int) -> list[ChannelGroup]:
    each = width // heads
    rows = [
        member(f"{prefix}self_attn.in_proj_{name}", 0, "out", heads, each, offset)
        for name in ("weight", "bias")
        for offset in (0, width, 2 * width)
    ]
    attention = (*rows, member(f"{prefix}self_attn.out_proj.weight", 1, "in", heads, each))
    feed_forward = (*layer(f"{prefix}linear1", hidden), member(f"{prefix}linear2.weight", 1, "in", hidden))
    return [
        ChannelGroup(f"{prefix}self_attn", heads, attention),
        ChannelGroup(f"{prefix}linear1", hidden, feed_forward),
    ]


def test_an_encoder_with_fewer_heads_keeps_its_class() -> None:
    encoder_layer = nn.TransformerEncoderLayer(12, 4, 16, dropout=0.1, batch_first=True)
    module = nn.TransformerEncoder(encoder_layer, 2, enable_nested_tensor=False).eval()
    inputs = (torch.randn(2, 5, 12),)
    groups = [g for number in (0, 1) for g in encoder_layer_groups(f"layers.{number}.", 12, 4, 16)]
    chosen = {g.name: torch.arange(1, g.channels) for g in groups}
    kept = kept_of(module, groups, chosen)
    smaller = cut(module, groups, kept, inputs)
    assert type(smaller) is nn.TransformerEncoder
    assert smaller.layers[0].self_attn.num_heads == 3
    assert smaller.state_dict().keys() == module.state_dict().keys()
    assert relative_error(module, smaller, groups, kept, inputs) < 1e-12
    with torch.no_grad():  # the fused kernel is off for it
        assert torch.allclose(smaller(*inputs), smaller.requires_grad_(False)(*inputs))
    again = cut(smaller, encoder_layer_groups("layers.1.", 9, 3, 15)[1:], {}, inputs)
    assert type(again.layers[0].self_attn) is ReducedMultiheadAttention


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("separate", [True, False])
def test_reduced_attention_with_all_heads_computes_what_torch_does(
    batch_first: bool, need_weights: bool, separate: bool
) -> None:
    torch.manual_seed(0)
    sizes = {"kdim": 6, "vdim": 10} if separate else {}
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **sizes).eval()
    reduced = copy.deepcopy(attention)
    ReducedMultiheadAttention.take_over(reduced, {})
    query, key, value = (
        torch.randn(3, 4, 8),
        torch.randn(3, 5, sizes.get("kdim", 8)),
        torch.randn(3, 5, sizes.get("vdim", 8)),
    )
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    mask = torch.randn(6, 4, 5)
    for options in ({}, {"key_padding_mask": padding.float() * -9.0, "attn_mask": mask}, {"key_padding_mask": padding}):
        ours = reduced(query, key, value, need_weights=need_weights, **options)
        theirs = attention(query, key, value, need_weights=need_weights, **options)
        torch.testing.assert_close(ours[0], theirs[0])
        assert (ours[1] is None) == (theirs[1] is None)
        if need_weights:
            torch.testing.assert_close(ours[1], theirs[1])
    if not separate:
        alike = (x := query.contiguous(), x, x)
        torch.testing.assert_close(reduced(*alike)[0], attention(*alike)[0])
        first = (x[:, 0] if not batch_first else x[0] for x in (query, key, value))
        q, k, v = first
        torch.testing.assert_close(reduced(q, k, v)[0], attention(q, k, v)[0])


def test_parametrized_layers_are_refused_with_the_way_out() -> None:
    module = nn.Sequential(weight_norm(nn.Linear(4, 6)), nn.Linear(6, 2))
    with pytest.raises(PruningError, match="remove_parametrizations"):
        slice_module(module, {"0.parametrizations.weight.original1": {0: keep(0, 1)}})


def test_what_belongs_to_another_model_is_refused() -> None:
    for kept in ({"fc9.weight": {0: keep(0)}}, {"fc1.weight": {0: keep(6)}}, {"fc1.weight": {2: keep(0)}}):
        with pytest.raises(PruningError, match="belongs to another model"):
            slice_module(TwoLayers(), kept)


def test_a_cut_that_changes_the_outputs_is_refused() -> None:
    module = TwoLayers().eval()
    output = ChannelGroup("fc2", 3, layer("fc2", 3))
    kept = kept_of(module, [output], {"fc2": keep(0, 1)})
    with pytest.raises(PruningError, match=r"outputs change.*\(2, 2\).*instead of.*\(2, 3\)"):
        cut(module, [output], kept, (torch.randn(2, 4),))


def test_a_cut_that_computes_something_else_is_refused() -> None:
    class Mean(TwoLayers):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.fc1(x))
            return self.fc2(x - x.mean(1, keepdim=True))  # the mean is over what is left

    module = Mean().eval()
    kept = kept_of(module, [HIDDEN], {"fc1": keep(0, 1, 5)})
    with pytest.raises(PruningError, match=r"\(relative\) from the reference, 1e-04 allowed\. Traced:"):
        cut(module, [HIDDEN], kept, (torch.randn(2, 4),))
