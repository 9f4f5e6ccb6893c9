"""The values of structured pruning: what can only leave together, what is kept, and what the layers cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

# "out": the entries make the channels (rows of a weight, its bias, a recurrent layer's gates, an embedding's columns).
# "in": the entries read the channels (columns of a weight).
# "along": the entries ride along with the channels (normalisation, layer scale, position embedding).
Role = Literal["out", "in", "along"]

# State-dict name of a parameter or buffer -> axis -> (kept,) int64 indices into the original axis, ascending.
# Only what loses something is listed.
Kept = Mapping[str, Mapping[int, Tensor]]


@dataclass(frozen=True)
class Member:
    """The entries of one axis of one parameter or buffer that belong to a group.

    Entry ``index[k]`` of axis ``axis`` leaves with channel ``channel[k]`` of the group.
    """

    name: str  # in the state dict of the module
    axis: int
    role: Role
    index: Tensor  # (entries,) int64, ascending
    channel: Tensor  # (entries,) int64, each within 0..group.channels - 1


@dataclass(frozen=True)
class ChannelGroup:
    """The channels of several layers that can only leave together; one channel may be a whole attention head."""

    name: str  # the layer that makes the channels: "layer1.0.conv1"
    channels: int
    members: tuple[Member, ...]
    frozen: str | None = None  # why no channel of it can leave, in one line; None: all but one can
    # False: a normalisation takes its statistics over these channels, so that the rest changes when some leave.
    exact: bool = True
    # Channels before earlier cuts, which floors and rounding go by; None: there were none.
    before: int | None = None


@dataclass(frozen=True)
class LayerUse:
    """One call of a weighted operator in the forward pass, as seen with the example inputs."""

    weight: str  # state-dict name of its weight
    operator: str  # aten's name: conv2d, linear, matmul, lstm, embedding, …
    input_shape: tuple[int, ...]  # with the batch
    output_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    macs: int  # multiply-accumulates for one sample (batch divided out)
    arguments: Mapping[str, Any] = field(default_factory=dict)  # stride, padding, dilation, groups of a convolution
