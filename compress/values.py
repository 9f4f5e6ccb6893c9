"""The values that flow between stages: plain frozen dataclasses, no behaviour beyond their own fields.

Importing this module imports neither torch nor onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.data.splits import Data
    from compress.measurement.metrics import Metric
    from compress.measurement.stage import Measurement

Task = Literal["classification", "other"]


class StageName(str):
    """The label of a whole stage in `Progress` calls, where ``done`` of ``total`` stages are over.

    Told when the stage begins, and again when it is over: one more is done, and the note is its result.
    """


class Progress(Protocol):
    """Told about long work: what, how far, and a note. Must return quickly and never raise.

    Work that is told while another piece is unfinished is a part of it, so that whoever stops early says so:
    ``done`` = ``total``. ``total`` is 0 where it is not known. A note that begins with "best" tells the best result so
    far, and stays on show.
    """

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None: ...


def silent(label: str, done: int, total: int, note: str = "") -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True)
class InputSpec:
    """One input tensor of a model."""

    name: str
    shape: tuple[int, ...]  # of one sample: without the batch, which is axis 0 and free
    dtype: str = "float32"  # numpy's name: float32, int64, …
    free: tuple[
        int, ...
    ] = ()  # axes of ``shape`` of any size too, as the length of a text; their size is the usual one


@dataclass(frozen=True)
class Model:
    """A torch model: float32, on the CPU, in eval mode. Stages never change the module they are given."""

    module: nn.Module
    inputs: tuple[InputSpec, ...]
    task: Task = "classification"  # "classification": the first output is (N, C) with C >= 2
    # What pruning kept of the module as it was loaded: see `compress.pruning.values.Kept`. None: all of it.
    kept: Mapping[str, Mapping[int, Tensor]] | None = None
    skipped: tuple[str, ...] = ()  # residual blocks of it that pruning left out


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file on disk."""

    path: Path
    inputs: tuple[InputSpec, ...]
    opset: int
    task: Task = "classification"


@dataclass(frozen=True)
class Variant:
    """One ONNX file that could ship."""

    name: str  # baseline-fp32, sparse-fp32, sparse-int8, …
    stage: str  # the stage that made it
    onnx: OnnxModel


@dataclass(frozen=True)
class StageRecord:
    """What a stage did, as written to its record.json."""

    stage: str
    config: Mapping[str, Any]  # the stage's config, as plain values
    seconds: float
    figures: Mapping[str, Any] = field(default_factory=dict)  # measured by the stage; units in the names
    notes: tuple[str, ...] = ()  # one line each, shown in the report
    skipped: str | None = None  # the reason, where the stage had nothing to do


@dataclass(frozen=True)
class Context:
    """What a stage may use besides its model and its config.

    ``original`` is the model that every drop is measured against: the teacher of a fine-tuning stage. It is None
    where the pipeline started from an ONNX file.
    """

    data: Data | None
    directory: Path  # the stage writes its files here, and nowhere else
    original: Model | None = None
    max_drop: float = 0.01  # fraction 0..1: the whole budget, against the original
    seed: int = 0
    device: str = "cpu"
    progress: Progress = silent
    objective: str = "balanced"  # what the shipped variant is to be best at: size, latency, balanced
    stored: Literal["float32", "int8"] = "int8"  # what the smallest variant's weights will be
    cache: Path | None = None  # a directory for work that a stopped run goes on from; None: nothing is kept
    metric: Metric | None = None  # of the user's own: what every drop is measured in; None: accuracy, or fidelity


@dataclass(frozen=True)
class State:
    """What one stage hands to the next."""

    model: Model | None  # None: the source was ONNX, there is nothing for the torch stages
    onnx: OnnxModel | None = None  # the float ONNX of ``model``
    variants: tuple[Variant, ...] = ()  # every file that could ship; the first is the baseline
    measurements: tuple[Measurement, ...] = ()  # one a variant, once the benchmark has run
    changes: tuple[str, ...] = ()  # what was done to ``model``, as its variants' names tell: pruned, sparse
