"""The operators that have weights: which of their axes read channels, which make them, and which ride along.

This is the only list of operators that pruning needs, and it is closed: everything between two of these is followed by
running it. Names and argument orders are aten's, so that eager calls and exported graphs read the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from compress.pruning.tracking import Nodes, Tracker
from compress.pruning.values import Role

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_NORM = ("input", "weight", "bias", "running_mean", "running_var")
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    "matmul": ("input", "weight"),
    "mm": ("input", "weight"),
    "addmm": ("bias", "input", "weight"),
    "conv1d": _CONV,
    "conv2d": _CONV,
    "conv3d": _CONV,
    "conv_transpose1d": _TRANSPOSED,
    "conv_transpose2d": _TRANSPOSED,
    "conv_transpose3d": _TRANSPOSED,
    "embedding": ("weight", "indices"),
    "embedding_bag": ("weight", "indices"),
    "batch_norm": _NORM,
    "instance_norm": _NORM,
    "layer_norm": ("input", "normalized_shape", "weight", "bias"),
    "rms_norm": ("input", "normalized_shape", "weight"),
    "group_norm": ("input", "num_groups", "weight", "bias"),
    "prelu": ("input", "weight"),
    "lstm": (),
    "gru": (),
    "rnn_tanh": (),
    "rnn_relu": (),
    "lstm_cell": ("input", "hidden", "w_ih", "w_hh", "b_ih", "b_hh"),
    "gru_cell": ("input", "hidden", "w_ih", "w_hh", "b_ih", "b_hh"),
    "rnn_tanh_cell": ("input", "hidden", "w_ih", "w_hh", "b_ih", "b_hh"),
    "rnn_relu_cell": ("input", "hidden", "w_ih", "w_hh", "b_ih", "b_hh"),
}


_ALIASES = {
    ("matmul", "other"): "weight",
    ("mm", "mat2"): "weight",
    ("addmm", "input"): "bias",
    ("addmm", "mat1"): "input",
    ("addmm", "mat2"): "weight",
}


@dataclass(frozen=True)
class Link:
    """Positions of a port and the slices that they stand for, side by side."""

    positions: Nodes  # (n,) within 0..port size - 1
    nodes: Nodes  # (n,)
    role: Role


@dataclass(frozen=True)
class Port:
    """An axis along which an operator reads or writes channels."""

    size: int
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Read:
    tensor: Tensor
    axis: int
    port: int  # which of the operator's ports the axis is
    positions: Nodes  # (extent of the axis,) -> position of the port


@dataclass(frozen=True)
class Write:
    output: int  # which of the operator's outputs
    axis: int
    port: int
    positions: Nodes


@dataclass(frozen=True)
class Use:
    """One call of an operator with weights: its ports, and the tensors that they meet."""

    weight: str
    ports: tuple[Port, ...]
    reads: tuple[Read, ...]
    writes: tuple[Write, ...] = ()  # empty: NaN passes through, entry by entry
    statistics: bool = False  # over the channels: what stays changes when some leave
    arguments: Mapping[str, Any] = field(default_factory=dict)


Call = Mapping[str, Any]
Reader = Callable[[Call, Tracker], "Use | None"]


def bound(operator: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by aten's names; positional extras are left out."""
    named = {_ALIASES.get((operator, name), name): value for name, value in kwargs.items()}
    return {**dict(zip(ARGUMENTS[operator], args, strict=False)), **named, "args": args}


def describe(operator: str, args: Sequence[Any], kwargs: Mapping[str, Any], track: Tracker) -> Use | None:
    """What a call reads and writes; None where its weights are no parameters (it is then followed like any other)."""
    return _READERS[operator](bound(operator, args, kwargs), track)


def tensors_read(operator: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors of a call in the order of its `Use.reads`."""
    call = bound(operator, args, kwargs)
    if operator in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        data, states, _ = _recurrent_arguments(args)
        return [data, *states]
    if operator.endswith("_cell"):
        return [call["input"], *_listed(call["hidden"])]
    return [] if operator.startswith("embedding") else [call["input"]]


def _link(role: Role, nodes: Nodes | None) -> tuple[Link, ...]:
    return () if nodes is None else (Link(np.arange(len(nodes)), nodes, role),)


def _identity(size: int) -> Nodes:
    return np.arange(size, dtype=np.int64)


def _optional(track: Tracker, tensor: object, axis: int = 0) -> Nodes | None:
    return None if tensor is None else track.nodes(tensor, axis)


def _plain(call: Call, track: Tracker, axes: tuple[int, int], channel_axis: int) -> Use | None:
    """A weight with one axis that reads and one that writes: ``axes`` = (in, out)."""
    weight, reads = call["weight"], call["input"]
    columns, rows = track.nodes(weight, axes[0]), track.nodes(weight, axes[1])
    name = track.name(weight)
    if columns is None or rows is None or name is None or track.name(reads) is not None:
        return None
    made = Port(len(rows), (*_link("out", rows), *_link("out", _optional(track, call.get("bias")))))
    return Use(
        weight=name,
        ports=(Port(len(columns), _link("in", columns)), made),
        reads=(Read(reads, channel_axis, 0, _identity(len(columns))),),
        writes=(Write(0, channel_axis, 1, _identity(len(rows))),),
    )


def _linear(call: Call, track: Tracker) -> Use | None:
    return _plain(call, track, (1, 0), -1)


def _matmul(call: Call, track: Tracker) -> Use | None:
    if not isinstance(call["weight"], Tensor) or call["weight"].ndim != 2:
        return None
    return _plain(call, track, (0, 1), -1)


def _conv(call: Call, track: Tracker) -> Use | None:
    return _convolution(call, track, transposed=False)


def _conv_transpose(call: Call, track: Tracker) -> Use | None:
    return _convolution(call, track, transposed=True)


def _convolution(call: Call, track: Tracker, transposed: bool) -> Use | None:
    axis = 1 - call["weight"].ndim
    names = ("stride", "padding", "output_padding", "dilation", "groups")
    arguments = {name: call[name] for name in names if name in call}
    groups = int(arguments.get("groups", 1))
    if groups == 1:
        use = _plain(call, track, (0, 1) if transposed else (1, 0), axis)
    else:
        use = _grouped(call, track, groups, transposed, axis)
    return None if use is None else replace(use, arguments=arguments)


def _grouped(call: Call, track: Tracker, groups: int, transposed: bool, axis: int) -> Use | None:
    """Whole groups leave, inputs and outputs together, or the same place leaves every group: whichever is finer."""
    weight = call["weight"]
    first, second = track.nodes(weight, 0), track.nodes(weight, 1)
    name, bias = track.name(weight), _optional(track, call.get("bias"))
    if first is None or second is None or name is None:
        return None
    n_in = call["input"].shape[axis]
    n_out = len(first) if not transposed else len(second) * groups
    of_in, of_out = _identity(n_in) // (n_in // groups), _identity(n_out) // (n_out // groups)
    biases = () if bias is None else (Link(of_out, bias, "out"),)
    if groups >= n_in // groups:
        along_first = of_in if transposed else of_out
        port = Port(groups, (Link(along_first, first, "out"), *biases))
        return Use(name, (port,), (Read(call["input"], axis, 0, of_in),), (Write(0, axis, 0, of_out),))
    place_in, place_out = _identity(n_in) % (n_in // groups), _identity(n_out) % (n_out // groups)
    if transposed:
        reading, writing = Link(place_in, first, "in"), Link(_identity(len(second)), second, "out")
    else:
        reading, writing = Link(_identity(len(second)), second, "in"), Link(place_out, first, "out")
    biases = () if bias is None else (Link(place_out, bias, "out"),)
    ports = (Port(n_in // groups, (reading,)), Port(n_out // groups, (writing, *biases)))
    return Use(name, ports, (Read(call["input"], axis, 0, place_in),), (Write(0, axis, 1, place_out),))


def _embedding(call: Call, track: Tracker) -> Use | None:
    columns, name = track.nodes(call["weight"], 1), track.name(call["weight"])
    if columns is None or name is None:
        return None
    port = Port(len(columns), _link("out", columns))
    return Use(name, (port,), (), (Write(0, -1, 0, _identity(len(columns))),))


def _norm(call: Call, track: Tracker) -> Use:
    axis = 1 if call["input"].ndim > 1 else 0
    size = call["input"].shape[axis]
    names = ("weight", "bias", "running_mean", "running_var")
    links = tuple(link for name in names for link in _link("along", _optional(track, call.get(name))))
    return Use(_name(call, track), (Port(size, links),), (Read(call["input"], axis, 0, _identity(size)),))


def _layer_norm(call: Call, track: Tracker) -> Use | None:
    if len(call["normalized_shape"]) != 1:
        return None
    size = call["input"].shape[-1]
    links = tuple(link for n in ("weight", "bias") for link in _link("along", _optional(track, call.get(n))))
    read = Read(call["input"], -1, 0, _identity(size))
    return Use(_name(call, track), (Port(size, links),), (read,), statistics=True)


def _group_norm(call: Call, track: Tracker) -> Use:
    size, groups = call["input"].shape[1], int(call["num_groups"])
    # Statistics are taken over a group: when it leaves as a whole, those of the others do not change.
    group = _identity(size) // (size // groups) if groups > 1 else _identity(size)
    tracked = [_optional(track, call.get(n)) for n in ("weight", "bias")]
    links = tuple(Link(group, nodes, "along") for nodes in tracked if nodes is not None)
    read = Read(call["input"], 1, 0, group)
    port = Port(groups if groups > 1 else size, links)
    return Use(_name(call, track), (port,), (read,), statistics=groups == 1)


def _prelu(call: Call, track: Tracker) -> Use:
    axis = 1 if call["input"].ndim > 1 else 0
    size = call["input"].shape[axis]
    links = _link("along", _optional(track, call["weight"])) if call["weight"].numel() > 1 else ()
    return Use(_name(call, track), (Port(size, links),), (Read(call["input"], axis, 0, _identity(size)),))


def _name(call: Call, track: Tracker) -> str:
    return track.name(call.get("weight")) or ""


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _recurrent_arguments(args: Sequence[Any]) -> tuple[Tensor, list[Tensor], Sequence[Any]]:
    """(data, initial states, [weights, has_biases, layers, dropout, train, bidirectional]), packed or not."""
    packed = isinstance(args[3], (tuple, list))
    return args[0], _listed(args[2] if packed else args[1]), args[3:] if packed else args[2:]


def _recurrent(call: Call, track: Tracker) -> Use | None:
    data, states, rest = _recurrent_arguments(call["args"])
    weights, has_biases, layers, bidirectional = list(rest[0]), bool(rest[1]), int(rest[2]), bool(rest[5])
    directions = 2 if bidirectional else 1
    each = len(weights) // (layers * directions)
    if any(track.name(w) is None for w in weights):
        return None
    cells = [weights[i * each : (i + 1) * each] for i in range(layers * directions)]
    projected = each % 2 == 1
    return _cells(track, data, states, cells, has_biases, directions, projected)


def _cell(call: Call, track: Tracker) -> Use | None:
    weights = [call["w_ih"], call["w_hh"], *(call[b] for b in ("b_ih", "b_hh") if call.get(b) is not None)]
    if any(track.name(w) is None for w in weights):
        return None
    use = _cells(track, call["input"], _listed(call["hidden"]), [weights], len(weights) == 4, 1, projected=False)
    # A cell has no sequence of outputs: its states are what it returns.
    return replace(use, writes=tuple(replace(write, output=write.output - 1) for write in use.writes[1:]))


def _cells(
    track: Tracker, data: Tensor, states: list[Tensor], cells: list[list[Tensor]], biases: bool, directions: int,
    projected: bool,
) -> Use:  # fmt: skip
    """Hidden unit j leaves at the same place in every gate, layer and direction: they have one ``hidden_size``.

    Ports: 0 what the first layer reads, 1 what every layer hands on, 2 the hidden units where a projection hides them.
    """
    hidden = cells[0][-1].shape[1] if projected else cells[0][1].shape[1]
    handed = cells[0][1].shape[1]
    inputs: list[Link] = []
    out: list[Link] = []
    units: list[Link] = []
    for number, cell in enumerate(cells):
        rows = (*cell[:2], *(cell[2:4] if biases else ()))
        for tensor in rows:
            nodes = _sure(track.nodes(tensor, 0))
            (units if projected else out).append(Link(_identity(len(nodes)) % hidden, nodes, "out"))
        out.append(Link(_identity(handed), _sure(track.nodes(cell[1], 1)), "in"))
        columns = _sure(track.nodes(cell[0], 1))
        if number < directions:
            inputs.append(Link(_identity(len(columns)), columns, "in"))
        else:
            out.append(Link(_identity(len(columns)) % handed, columns, "in"))
        if projected:
            out.append(Link(_identity(handed), _sure(track.nodes(cell[-1], 0)), "out"))
            units.append(Link(_identity(hidden), _sure(track.nodes(cell[-1], 1)), "in"))
    carried = 2 if projected else 1
    ports = [Port(cells[0][0].shape[1], tuple(inputs)), Port(handed, tuple(out))]
    ports += [Port(hidden, tuple(units))] if projected else []
    reads = [Read(data, -1, 0, _identity(cells[0][0].shape[1]))]
    reads += [Read(s, -1, p, _identity(s.shape[-1])) for s, p in zip(states, (1, carried), strict=False)]
    writes = [Write(0, -1, 1, _identity(directions * handed) % handed)]
    writes += [
        Write(i + 1, -1, p, _identity(states[i].shape[-1]))
        for i, p in zip(range(len(states)), (1, carried), strict=False)
    ]
    return Use(track.name(cells[0][0]) or "", tuple(ports), tuple(reads), tuple(writes))


def _sure(nodes: Nodes | None) -> Nodes:
    assert nodes is not None
    return nodes


def macs_of(operator: str, args: Sequence[Any], kwargs: Mapping[str, Any], output: object) -> int:
    """Multiply-accumulates of a call, for the whole batch."""
    call = bound(operator, args, kwargs)
    if operator in ("linear", "matmul", "mm", "addmm"):
        return _first(output).numel() * int(call["input"].shape[-1])
    if operator.startswith("conv_transpose"):
        return int(call["input"].numel() * prod(call["weight"].shape[1:]))
    if operator.startswith("conv"):
        return int(_first(output).numel() * prod(call["weight"].shape[1:]))
    if operator in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        data, _, rest = _recurrent_arguments(args)
        steps = data.numel() // data.shape[-1]
        return int(steps * sum(w.numel() for w in rest[0] if w.ndim == 2))
    if operator.endswith("_cell"):
        return int((call["w_ih"].numel() + call["w_hh"].numel()) * (call["input"].numel() // call["input"].shape[-1]))
    return 0


def _first(output: object) -> Tensor:
    found = output[0] if isinstance(output, (tuple, list)) else output
    assert isinstance(found, Tensor)
    return found


_READERS: Mapping[str, Reader] = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "addmm": _matmul,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "conv_transpose3d": _conv_transpose,
    "embedding": _embedding,
    "embedding_bag": _embedding,
    "batch_norm": _norm,
    "instance_norm": _norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "group_norm": _group_norm,
    "prelu": _prelu,
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn_tanh": _recurrent,
    "rnn_relu": _recurrent,
    "lstm_cell": _cell,
    "gru_cell": _cell,
    "rnn_tanh_cell": _cell,
    "rnn_relu_cell": _cell,
}
