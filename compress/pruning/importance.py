"""How much each channel matters: plain functions from a group to one score a channel, higher is more important.

*Across the members of a group*: each weight that a channel takes part in (a row of the layer that makes it, a column of
each layer that reads it, its normalisation scale) has one voice. Its figures are divided by their mean over the
channels, then the voices are averaged: a group of eight members compares with one of two, a layer that reads 512
channels with a scale of one number. Biases and running statistics have no voice: they tell where a channel lies, not
how far it moves.

*Across groups*: `scores` divides by the mean of each group where the figures of two layers do not compare by
themselves. Else a global ranking empties the layer with the smallest weights.

*Measured* by benchmarks/importance.py, share of the accuracy that is left right after the cut (2,000 validation
images, one run): MobileNetV2 at half of its multiply-accumulates lamp .55, fisher .38, taylor .37, random .19, l2
.14, fpgm .12, bn_scale .12, l1 .11; at half of its parameters lamp .99, taylor .88, fisher .87, random .74, l1 .47,
bn_scale .44, fpgm .41, l2 .36. On the CNN of 228,010 parameters no order holds: at half of the MACs fisher .93,
random .91, fpgm .87, taylor .83, lamp .82. So lamp is the default: the best where it matters, and it needs no data.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from math import isfinite

import torch
from torch import Tensor

from compress.errors import PruningError
from compress.pruning.evidence import Evidence, channel_sums, gate_gradients
from compress.pruning.values import ChannelGroup, Member

Importance = Callable[[ChannelGroup, Evidence], Tensor]


def l1(group: ChannelGroup, evidence: Evidence) -> Tensor:
    """Sum of |w| (Li et al. 2017, "Pruning filters for efficient ConvNets")."""
    return _combined(group, evidence, lambda m, w: channel_sums(w.abs(), m, group.channels))


def l2(group: ChannelGroup, evidence: Evidence) -> Tensor:
    """Square root of the sum of w² (Li et al. 2017)."""
    return _combined(group, evidence, lambda m, w: channel_sums(w.square(), m, group.channels).sqrt())


def bn_scale(group: ChannelGroup, evidence: Evidence) -> Tensor:
    """|γ| of the normalisation (Liu et al. 2017, "Network slimming"); l2 for a group without one."""
    scales = [m for m in group.members if _is_scale(m, evidence)]
    if not scales:
        return l2(group, evidence)
    return _average(group, [(m, channel_sums(_entries(m, evidence).abs(), m, group.channels)) for m in scales])


def fpgm(group: ChannelGroup, evidence: Evidence) -> Tensor:
    """Sum of the distances to the weights of all other channels of the group: a channel in their middle is replaceable.

    He et al. 2019, "Filter pruning via geometric median". Only the weights that make the channels are compared.
    """
    makers = [m for m in _voices(group, evidence) if m.role == "out"] or _voices(group, evidence)
    found = []
    for member in makers:
        vectors = _vectors(member, _entries(member, evidence), group.channels)
        found.append((member, torch.cdist(vectors, vectors).sum(dim=1, dtype=torch.float64)))
    return _average(group, found)


def lamp(group: ChannelGroup, evidence: Evidence) -> Tensor:
    """The square of l2, over the sum of all squares in the group that are at least as large: the best scores 1.

    Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", with channels in place of weights. It
    compares across groups by itself.
    """
    squares = l2(group, evidence).square()
    ordered, order = squares.sort(descending=True, stable=True)
    result = torch.empty_like(squares)
    result[order] = ordered / ordered.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return result


def taylor(group: ChannelGroup, evidence: Evidence) -> Tensor:
    """|change of the mean loss when the channel leaves|, to first order.

    Molchanov et al. 2019, "Importance estimation for neural network pruning", with one gate for all readers of the
    channel (see `gate_gradients`).
    """
    if evidence.gradients is None:
        raise _without_data("taylor")
    return gate_gradients([group], evidence.weights, evidence.gradients)[group.name].abs()


def fisher(group: ChannelGroup, evidence: Evidence) -> Tensor:
    """Mean square of the gate gradient over small batches: the empirical Fisher information of a gate on the channel.

    Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning"; coupled layers share a gate as
    in Liu et al. 2021, "Group Fisher pruning".
    """
    if evidence.fisher is None or group.name not in evidence.fisher:
        raise _without_data("fisher")
    return evidence.fisher[group.name]


def random(group: ChannelGroup, evidence: Evidence) -> Tensor:
    """Uniform in 0..1, the same for the same seed and group name: the baseline of every comparison."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{evidence.seed} {group.name}".encode()))
    return torch.rand(group.channels, generator=generator, dtype=torch.float64)


IMPORTANCES: Mapping[str, Importance] = {
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "fpgm": fpgm,
    "lamp": lamp,
    "taylor": taylor,
    "fisher": fisher,
    "random": random,
}
NEEDS_DATA = frozenset({"taylor", "fisher"})
# In units that mean the same in every group: shares of a group, or loss.
_COMPARABLE = frozenset({"lamp", "taylor", "fisher"})


def scores(
    groups: Iterable[ChannelGroup], evidence: Evidence, importance: str = "l2", normalise: bool | None = None
) -> dict[str, Tensor]:
    """Score the channels of all groups that are not frozen: group name -> (channels,) float64, at least 0.

    Args:
        importance: A key of ``IMPORTANCES``.
        normalise: Divide by the mean of each group. None: but for lamp, taylor and fisher, which compare as they are.

    Raises:
        PruningError: the importance is not known, needs data that were not given, or is not finite.
    """
    function = IMPORTANCES.get(importance)
    if function is None:
        raise PruningError(f"importance {importance!r} is not known; allowed are {', '.join(IMPORTANCES)}.")
    found = {}
    for group in groups:
        if group.frozen is None:
            score = function(group, evidence)
            if not isfinite(float(score.sum())):
                raise PruningError(f"{importance} of group {group.name!r} is not finite: look for NaN in its weights.")
            wanted = importance not in _COMPARABLE if normalise is None else normalise
            found[group.name] = _by_mean(score) if wanted else score
    return found


def _combined(group: ChannelGroup, evidence: Evidence, figure: Callable[[Member, Tensor], Tensor]) -> Tensor:
    return _average(group, [(m, figure(m, _entries(m, evidence))) for m in _voices(group, evidence)])


def _average(group: ChannelGroup, figures: list[tuple[Member, Tensor]]) -> Tensor:
    """The mean over the members that have a part in a channel, each divided by its own mean over its channels."""
    total = torch.zeros(group.channels, dtype=torch.float64)
    count = torch.zeros(group.channels, dtype=torch.float64)
    for member, figure in figures:
        takes_part = torch.zeros(group.channels, dtype=torch.bool).index_fill_(0, member.channel, True)
        mean = figure[takes_part].mean()
        total += figure / mean if mean > 0 else figure
        count += takes_part
    return total / count.clamp_min(1)


def _voices(group: ChannelGroup, evidence: Evidence) -> list[Member]:
    """The members that multiply the channels; all floating-point ones where there are none."""
    floating = [m for m in group.members if evidence.weights[m.name].is_floating_point()]
    return [m for m in floating if not _is_offset(m.name)] or floating


def _is_offset(name: str) -> bool:
    last = name.rpartition(".")[2]
    return "bias" in last or last.startswith("running_")


def _is_scale(member: Member, evidence: Evidence) -> bool:
    """Whether it is γ of a normalisation: the weight of a module that has β or statistics, and rides along."""
    module, _, last = member.name.rpartition(".")
    beside = any(f"{module}.{name}".lstrip(".") in evidence.weights for name in ("bias", "running_var"))
    return member.role == "along" and last == "weight" and beside


def _entries(member: Member, evidence: Evidence) -> Tensor:
    """The member's part of its tensor; axis ``member.axis`` has (entries,)."""
    return evidence.weights[member.name].index_select(member.axis, member.index)


def _vectors(member: Member, entries: Tensor, channels: int) -> Tensor:
    """All weights of each channel side by side (channels, longest); shorter ones are filled with zeros."""
    rows = entries.movedim(member.axis, 0).reshape(len(member.index), -1)  # (entries, elements)
    order = member.channel.argsort(stable=True)
    counts = torch.bincount(member.channel, minlength=channels)
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[member.channel[order]]  # within its channel
    vectors = rows.new_zeros(channels, int(counts.max()), rows.shape[1])
    vectors[member.channel[order], place] = rows[order]
    return vectors.flatten(1)


def _by_mean(score: Tensor) -> Tensor:
    mean = score.mean()
    return score / mean if mean > 0 else score


def _without_data(importance: str) -> PruningError:
    return PruningError(
        f"importance {importance!r} needs gradients on calibration data, found none. "
        "Give data, or choose one of l1, l2, bn_scale, fpgm, lamp."
    )
