"""What is compared: a literal table, one entry a chain of tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.compare.frontier import Metric
from benchmarks.workloads import Architecture
from compress.reporting import Objective

Kind = Literal["own", "peer", "dense"]
MAX_DROP = 0.01  # fraction 0..1 of validation accuracy that every entry may lose
DENSE = "dense"  # not an entry: the float ONNX file that all are compared with


@dataclass(frozen=True)
class Entry:
    """One chain of tools, as a user of it would run it: a script of benchmarks/peers, after that of ``needs``."""

    name: str
    settings: str  # in words
    kind: Kind = "peer"
    script: str = ""  # benchmarks.peers.<script>; "": `compress pipeline`
    environment: str | None = None  # of requirements-<environment>.txt; None: this project's
    flags: tuple[str, ...] = ()
    flags_of: Mapping[Architecture, tuple[str, ...]] = field(default_factory=dict)  # besides, for these models
    needs: str | None = None  # the entry whose folder is its SOURCE; DENSE: none, it takes the dense model
    architectures: tuple[Architecture, ...] = ()  # it is tried on these alone; empty: on all
    objective: Objective | None = None  # of `compress pipeline`
    max_drop: float = MAX_DROP  # of `compress pipeline`; peers have that of the budget
    matches: Metric | None = None  # its max_drop is what the best peer in this lost on validation: see `matched`
    native: bool = False  # the script is a worker that times the dense model in its own runtime, and writes no file

    def flags_for(self, architecture: Architecture) -> tuple[str, ...]:
        return (*self.flags, *self.flags_of.get(architecture, ()))


_ORT = "finish_onnxruntime"
_DYNAMIC: Mapping[Architecture, tuple[str, ...]] = {"transformer": ("--dynamic",), "recurrent": ("--dynamic",)}
_TRANSFORMER: Mapping[Architecture, tuple[str, ...]] = {"transformer": ("--transformer",)}

ENTRIES = (
    Entry("compress-size", "compress pipeline, objective size", "own", objective="size"),
    Entry("compress-latency", "compress pipeline, objective latency", "own", objective="latency"),
    Entry("compress-balanced", "compress pipeline, objective balanced", "own", objective="balanced"),
    Entry("compress-size-matched", "objective size, the best peer's drop", "own", objective="size", matches="zip"),
    Entry("compress-latency-matched", "latency, the best peer's drop", "own", objective="latency", matches="p50"),
    Entry("torch-prune", "torch.nn.utils.prune, global magnitude", script="prune_torch"),
    Entry(
        "torch-prune-ort",
        "torch.nn.utils.prune, then ONNX Runtime's quantizers",
        script=_ORT,
        flags_of=_DYNAMIC,
        needs="torch-prune",
    ),
    Entry("torch-pruning", "Torch-Pruning", script="prune_torch_pruning", environment="torch-pruning"),
    Entry(
        "torch-pruning-ort",
        "Torch-Pruning, then ONNX Runtime's quantizers",
        script=_ORT,
        flags_of=_DYNAMIC,
        needs="torch-pruning",
    ),
    Entry(
        "torch-pruning-nncf",
        "Torch-Pruning, then NNCF",
        script="finish_nncf",
        environment="nncf",
        flags_of=_TRANSFORMER,
        needs="torch-pruning",
    ),
    Entry(
        "torch-pruning-olive",
        "Torch-Pruning, then Olive",
        script="finish_olive",
        environment="olive",
        flags_of={"transformer": ("--dynamic", "--transformer"), "recurrent": ("--dynamic",)},
        needs="torch-pruning",
    ),
    Entry(
        "torch-pruning-inc",
        "Torch-Pruning, then Neural Compressor",
        script="finish_neural_compressor",
        environment="neural-compressor",
        flags_of=_DYNAMIC,
        needs="torch-pruning",
    ),
    Entry(
        "recursive-reduction",
        "recursive neuron reduction, as published",
        script="reduce_recursively",
        architectures=("mlp",),
    ),
    Entry(
        "recursive-reduction-ort",
        "recursive neuron reduction, then ONNX Runtime's quantizers",
        script=_ORT,
        needs="recursive-reduction",
        architectures=("mlp",),
    ),
    Entry("dense-ort-int8", "ONNX Runtime's quantizers alone", script=_ORT, flags_of=_DYNAMIC, needs=DENSE),
    Entry("dense-openvino", "OpenVINO, float32", "dense", "native_openvino", "openvino", ("f32",), native=True),
    Entry(
        "dense-openvino-default",
        "OpenVINO, the precision that it chooses",
        "dense",
        "native_openvino",
        "openvino",
        ("default",),
        native=True,
    ),
    Entry("dense-torch-compile", "torch.compile", "dense", "native_torch_compile", flags=("default",), native=True),
    Entry(
        "dense-torch-compile-autotune",
        "torch.compile, max-autotune",
        "dense",
        "native_torch_compile",
        flags=("max-autotune",),
        native=True,
    ),
)
BY_NAME: Mapping[str, Entry] = {entry.name: entry for entry in ENTRIES}


def entries_for(architecture: Architecture) -> tuple[Entry, ...]:
    """Those that are tried on models of this kind; what an entry needs comes before it."""
    return tuple(entry for entry in ENTRIES if not entry.architectures or architecture in entry.architectures)
