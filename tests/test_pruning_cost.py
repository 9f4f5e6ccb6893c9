"""Cost at given widths, against models that were really built at them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.pruning.cost import CostModel
from compress.pruning.values import ChannelGroup, LayerUse, Member, Role


def member(name: str, axis: int, role: Role, channels: int, each: int = 1, interleaved: bool = False) -> Member:
    """``each`` entries a channel: side by side, or one in each of ``each`` blocks."""
    index = torch.arange(channels * each)
    return Member(name, axis, role, index, index % channels if interleaved else index // each)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def cnn(first: int = 8, second: int = 6) -> nn.Sequential:
    """Two convolutions at 8x8, then 4x4 positions flattened into a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(second * 16, 5),
    )


CNN_GROUPS = [
    ChannelGroup(
        "0",
        8,
        (
            member("0.weight", 0, "out", 8),
            member("0.bias", 0, "out", 8),
            *(member(f"1.{n}", 0, "along", 8) for n in ("weight", "bias", "running_mean", "running_var")),
            member("3.weight", 1, "in", 8),
        ),
    ),
    ChannelGroup(
        "3",
        6,
        (member("3.weight", 0, "out", 6), member("3.bias", 0, "out", 6), member("5.weight", 1, "in", 6, each=16)),
    ),
    ChannelGroup("5", 5, (member("5.weight", 0, "out", 5), member("5.bias", 0, "out", 5)), frozen="makes the outputs"),
]


def cnn_uses(first: int = 8, second: int = 6) -> list[LayerUse]:
    middle = 144 * second * first
    return [
        LayerUse("0.weight", "conv2d", (1, 3, 8, 8), (1, first, 8, 8), (first, 3, 3, 3), 64 * first * 27),
        LayerUse("3.weight", "conv2d", (1, first, 8, 8), (1, second, 4, 4), (second, first, 3, 3), middle),
        LayerUse("5.weight", "linear", (1, second * 16), (1, 5), (5, second * 16), second * 16 * 5),
    ]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), [(8, 6), (5, 6), (8, 1), (3, 2)])
def test_cost_of_widths_is_that_of_a_model_built_with_them(first: int, second: int) -> None:
    cost = CostModel(CNN_GROUPS, cnn_uses(), shapes_of(cnn()))
    widths = {"0": first, "3": second}
    assert cost.parameters(widths) == sum(p.numel() for p in cnn(first, second).parameters())
    assert cost.macs(widths) == sum(use.macs for use in cnn_uses(first, second))


def test_a_group_that_is_not_named_is_whole() -> None:
    cost = CostModel(CNN_GROUPS, cnn_uses(), shapes_of(cnn()))
    assert cost.parameters({}) == sum(p.numel() for p in cnn().parameters())
    assert cost.macs({"0": 4}) == sum(use.macs for use in cnn_uses(4, 6))


def test_one_group_takes_from_both_axes_of_a_recurrent_weight() -> None:
    def lstm(hidden: int) -> nn.LSTM:
        return nn.LSTM(7, hidden, num_layers=2)

    rows = [member(f"{kind}_l{layer}", 0, "out", 10, each=4, interleaved=True)
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") for layer in (0, 1)]  # fmt: skip
    columns = [member(name, 1, "in", 10) for name in ("weight_hh_l0", "weight_hh_l1", "weight_ih_l1")]
    groups = [ChannelGroup("lstm", 10, (*rows, *columns))]

    def macs(hidden: int) -> int:
        return 3 * sum(p.numel() for p in lstm(hidden).parameters() if p.ndim == 2)

    use = LayerUse("weight_ih_l0", "lstm", (3, 1, 7), (3, 1, 10), (40, 7), macs(10))
    cost = CostModel(groups, [use], shapes_of(lstm(10)))
    assert cost.parameters({"lstm": 4}) == sum(p.numel() for p in lstm(4).parameters())
    assert cost.macs({"lstm": 4}) == macs(4)


def test_whole_groups_of_a_grouped_convolution_leave_in_proportion() -> None:
    # 4 groups of 3 -> 6 channels each: a channel of the group is one of the 4.
    conv = nn.Conv1d(12, 24, 5, groups=4)
    groups = [ChannelGroup("c", 4, (member("weight", 0, "out", 4, each=6), member("bias", 0, "out", 4, each=6)))]
    use = LayerUse("weight", "conv1d", (1, 12, 9), (1, 24, 5), (24, 3, 5), 5 * 24 * 15, {"groups": 4})
    cost = CostModel(groups, [use], shapes_of(conv))
    smaller = nn.Conv1d(9, 18, 5, groups=3)
    assert cost.parameters({"c": 3}) == sum(p.numel() for p in smaller.parameters())
    assert cost.macs({"c": 3}) == 5 * 18 * 15


def test_scalars_count_and_unknown_weights_are_constant() -> None:
    use = LayerUse("not.a.parameter", "matmul", (1, 2), (1, 2), (2, 2), 4)
    cost = CostModel([], [use], {"scale": (), "weight": (2, 3)})
    assert cost.parameters({}) == 7
    assert cost.macs({}) == 4
