"""Which execution provider really runs a model's operators, from a profile of a session of its own.

A session's list of providers says who was asked; only the profile says who ran. Profiling slows every call: the session
that is profiled is never the one that is timed.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from compress.errors import MeasurementError
from compress.measurement.sessions import PROVIDERS, Factory, Feeds, Provider, bind, open_session, provider_of

_COPIES = ("MemcpyFromHost", "MemcpyToHost")  # nodes that ONNX Runtime adds between a device and the host
_CPU = PROVIDERS["cpu"].name
_OF_SHAPES = ("int64", "bool")  # the types of arithmetic on shapes
_NAMED = 5  # operators in an error
_SERIAL = re.compile(r"(_\d+)+$")  # ends the names that providers give to subgraphs which they run as one node
_RAN = "_kernel_time"  # ends the name of the event of a node that ran


@dataclass(frozen=True)
class Placement:
    """Where the nodes of a session ran, copies apart.

    Nodes are counted as ONNX Runtime ran them, after its fusions. A provider that compiles, as OpenVINO and TensorRT
    do, runs a whole subgraph as one node.
    """

    nodes: Mapping[str, int]  # by ONNX Runtime's name of the provider, the asked one first
    copies: int  # between host and device, inside the graph
    by_operator: Mapping[str, Mapping[str, int]]  # provider -> operator -> nodes, most first

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "nodes": dict(self.nodes),
            "copies": self.copies,
            "by_operator": {provider: dict(operators) for provider, operators in self.by_operator.items()},
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Placement:
        """What `to_dict` made."""
        return cls(stored["nodes"], stored["copies"], stored["by_operator"])


def placement(
    model: Path | bytes,
    provider: Provider,
    threads: int,
    feeds: Feeds,
    factory: Factory = onnxruntime.InferenceSession,
) -> Placement:
    """Run a model once under ONNX Runtime's profiler and count its nodes by the provider that ran them.

    Args:
        model: The file, or its content.
        provider: A key of ``PROVIDERS``.
        threads: Of one operator, at least 1.
        feeds: Arrays by the names of the inputs.
        factory: As of `open_session`.

    Raises:
        MeasurementError: the session cannot be had, or its latency would be another provider's: this one ran nothing,
            or it is one that must take all and left more than arithmetic on shapes to the CPU, where ONNX Runtime
            puts that on purpose.
    """
    row = provider_of(provider)
    nodes, name = ran(profiled(model, provider, threads, feeds, factory)), row.name
    found = _placement(nodes, name)
    if not found.nodes.get(name):
        others = ", ".join(f"{other} {count}" for other, count in found.nodes.items()) or "nothing ran"
        raise MeasurementError(
            f"{name} runs none of this model's nodes ({others}): its latency would be another provider's. "
            "Measure that one instead."
        )
    fallen = Counter(node.operator for node in nodes if node.provider == _CPU and node.computes)
    if name != _CPU and "cpu" not in row.rest and fallen:
        told = ", ".join(f"{operator} x{count}" for operator, count in fallen.most_common(_NAMED))
        raise MeasurementError(
            f"{name} leaves {fallen.total()} of {sum(found.nodes.values())} nodes to the CPU ({told}): the latency "
            "would be that of both. Measure cpu, or another variant."
        )
    return found


def profiled(
    model: Path | bytes,
    provider: Provider,
    threads: int,
    feeds: Feeds,
    factory: Factory = onnxruntime.InferenceSession,
) -> list[dict[str, Any]]:
    """Run a model once under ONNX Runtime's profiler; return the events of the nodes that ran.

    The arguments are those of `placement`.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, provider, threads, factory, profile=Path(folder) / "profile")
        bind(session, provider, feeds)()
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        del session  # closes the file, which Windows needs before the folder can go
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith(_RAN)]


@dataclass(frozen=True)
class Node:
    """One node of a session that ran."""

    name: str
    index: int  # in its graph
    provider: str  # ONNX Runtime's name
    operator: str
    computes: bool  # False: it gives 64-bit whole numbers or truth values, as arithmetic on shapes does


def ran(events: Iterable[Mapping[str, Any]]) -> tuple[Node, ...]:
    """The nodes in the events of `profiled`; one that ran several times, as in a loop's body, once."""
    kernels = (event for event in events if event["args"].get("provider"))
    nodes = (
        Node(
            name=event["name"].removesuffix(_RAN),
            index=int(event["args"]["node_index"]),
            provider=event["args"]["provider"],
            operator=_SERIAL.sub("", event["args"]["op_name"]),
            computes=any(kind not in _OF_SHAPES for out in event["args"].get("output_type_shape", ()) for kind in out),
        )
        for event in kernels
    )
    return tuple(dict.fromkeys(nodes))


def _placement(nodes: Sequence[Node], first: str) -> Placement:
    counted: dict[str, Counter[str]] = {}
    for node in nodes:
        if node.operator not in _COPIES:
            counted.setdefault(node.provider, Counter())[node.operator] += 1
    names = sorted(counted, key=lambda name: (name != first, name))
    return Placement(
        nodes={name: counted[name].total() for name in names},
        copies=sum(node.operator in _COPIES for node in nodes),
        by_operator={name: dict(sorted(counted[name].items(), key=lambda item: (-item[1], item[0]))) for name in names},
    )
