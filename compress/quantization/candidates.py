"""Which int8 forms of a graph are worth measuring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx

from compress.models.counts import RECURRENT, macs_by_operator

Form = Literal["static", "dynamic", "weights"]
Choice = Literal["auto", "yes", "no"]

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_PREFIX = {"static": "int8", "dynamic": "int8-dynamic", "weights": "int8-weights"}


@dataclass(frozen=True)
class Candidate:
    """One way to quantize."""

    form: Form
    per_channel: Choice  # one scale for each output channel; "auto", of weights only: where a tensor needs it
    reduce_range: bool  # weights of 7 bits: no CPU saturates, and the zip is smaller

    @property
    def name(self) -> str:
        channel = "-per-channel" if self.per_channel == "yes" else ""
        return _PREFIX[self.form] + channel + ("-reduced" if self.reduce_range else "")


def forms(proto: onnx.ModelProto) -> tuple[Form, ...]:
    """The forms that suit a graph: static for convolutional nets, dynamic for all others, weight-only for all.

    Dynamic quantization of a Conv is many times slower than float; static ranges do not fit a recurrent state, and
    transformers have activation outliers that one range a tensor cuts off.
    """
    macs = macs_by_operator(proto)
    convolutional = 2 * sum(macs.get(kind, 0) for kind in _CONVOLUTIONS) > sum(macs.values())
    recurrent = any(node.op_type in RECURRENT for node in proto.graph.node)
    return ("static" if convolutional and not recurrent else "dynamic", "weights")


def candidates(form: Form, per_channel: Choice, reduce_range: Choice, saturates: bool) -> tuple[Candidate, ...]:
    """The candidates of one form.

    With "auto" for both: full range and reduced range per tensor, and per channel the one that is exact on this CPU.
    The reduced per-tensor file is made everywhere: it is the smallest zipped, and exact on every CPU.

    Args:
        form: Of the candidates.
        per_channel: "yes", "no", or both.
        reduce_range: "yes", "no", or both.
        saturates: Whether this CPU saturates int16 sums, so that full-range weights can be wrong on it.
    """
    if form == "weights":
        return (Candidate(form, per_channel, reduce_range == "yes"),)
    made = []
    for channel in ("no", "yes") if per_channel == "auto" else (per_channel,):
        if reduce_range != "auto":
            ranges = [reduce_range == "yes"]
        elif form == "dynamic" or channel == "yes":
            ranges = [saturates]
        else:
            ranges = [False, True]
        made += [Candidate(form, "yes" if channel == "yes" else "no", reduced) for reduced in ranges]
    return tuple(made)
