"""Which int8 forms of a graph are worth measuring."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx

from compress.models.counts import RECURRENT, macs_by_operator
from compress.values import InputSpec

Form = Literal["static", "dynamic", "weights"]
Types = Literal["u8s8", "s8s8", "u8u8"]  # of activations and weights: uint8 and int8, and so on
Choice = Literal["auto", "yes", "no"]

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_PREFIX = {"static": "int8", "dynamic": "int8-dynamic", "weights": "int8-weights"}


@dataclass(frozen=True)
class Candidate:
    """One way to quantize."""

    form: Form
    per_channel: Choice  # one scale for each output channel; "auto", of weights only: where a tensor needs it
    reduce_range: bool  # weights of 7 bits: no CPU saturates, and the zip is smaller
    types: Types = "u8s8"  # of static ones
    repaired: bool = False  # larger scales for those weights alone that can saturate

    @property
    def name(self) -> str:
        types = "" if self.types == "u8s8" else f"-{self.types}"
        channel = "-per-channel" if self.per_channel == "yes" else ""
        bits = "-reduced" if self.reduce_range else "-repaired" if self.repaired else ""
        return _PREFIX[self.form] + types + channel + bits


def forms(proto: onnx.ModelProto, inputs: Sequence[InputSpec] = ()) -> tuple[Form, ...]:
    """The forms that suit a graph, the one that computes in int8 first.

    Static for convolutional nets, dynamic for recurrent ones, both for all others, weight-only for all. Dynamic
    quantization of a Conv is many times slower than float, and static ranges do not fit a recurrent state.

    Args:
        proto: The float graph.
        inputs: The sizes of its free axes, where it does not tell them itself.
    """
    macs = macs_by_operator(proto, inputs)
    if any(node.op_type in RECURRENT for node in proto.graph.node):
        return ("dynamic", "weights")
    if 2 * sum(macs.get(kind, 0) for kind in _CONVOLUTIONS) > sum(macs.values()):
        return ("static", "weights")
    return ("dynamic", "static", "weights")


def candidates(
    form: Form,
    per_channel: Choice = "auto",
    reduce_range: Choice = "auto",
    types: Iterable[Types] = ("u8s8",),
    saturates: bool = False,
    measurable: bool = True,
) -> tuple[Candidate, ...]:
    """The candidates of one form, the plainest first.

    The reduced per-tensor file is made everywhere: it is the smallest zipped, and exact on every CPU. Where int16 sums
    saturate, full-range weights are made only if their loss can be measured here.

    Args:
        form: Of the candidates.
        per_channel: "yes", "no", or "auto" for both.
        reduce_range: "yes", "no", or "auto" for all that make sense.
        types: Of static candidates; of those after the first, only a per-tensor file at the full range is
            made, and none where the other choices are explicit.
        saturates: Whether the processor that the file is for saturates int16 sums of U8S8 products.
        measurable: Whether that processor is this one.
    """
    if form == "weights":
        return (Candidate(form, per_channel, reduce_range == "yes"),)
    channels: tuple[Choice, ...] = ("no", "yes") if per_channel == "auto" else (per_channel,)
    first, *others = tuple(types) if form == "static" else ("u8s8",)
    made = []
    for channel in channels:
        plain = Candidate(form, channel, False, first)
        repaired, reduced = replace(plain, repaired=True), replace(plain, reduce_range=True)
        if reduce_range != "auto":
            made.append(reduced if reduce_range == "yes" else plain)
            continue
        if not saturates or (measurable and channel == channels[0]):
            made.append(plain)
        if saturates and form == "static" and first == "u8s8":
            made.append(repaired)
        if saturates or channel == channels[0]:
            made.append(reduced)
    if per_channel == reduce_range == "auto":
        made += [Candidate(form, channels[0], False, kind) for kind in others]
    return tuple(made)
