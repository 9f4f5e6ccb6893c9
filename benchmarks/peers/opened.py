"""ONNX files that others wrote: opened as they are, and scored by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.measurement import Outputs, open_session, top1
from compress.measurement.environment import available_threads

NEWEST_IR = 10  # that this project stamps; onnxruntime refuses files with a later one than it knows

_BATCH = 256


@dataclass(frozen=True)
class TestSet:
    """Samples that files are scored on: each input (N, …) by name, and labels (N,)."""

    __test__ = False  # to pytest

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64]

    def batch(self, start: int, size: int) -> dict[str, NDArray[Any]]:
        return {name: array[start : start + size] for name, array in self.inputs.items()}


@dataclass(frozen=True)
class Answers:
    """What a file answers."""

    batch: int  # samples a call
    outputs: Outputs

    def right(self) -> NDArray[np.bool_]:
        """(N,): which samples are answered with their label."""
        right: NDArray[np.bool_] = top1(self.outputs.values) == self.outputs.labels
        return right


def readable(path: Path) -> tuple[Path, str]:
    """A file that onnxruntime does not refuse for its version alone, and what was done to it."""
    proto = onnx.load(path)
    if proto.ir_version <= NEWEST_IR:
        return path, ""
    stamped = path.with_name(f"{path.stem}-ir{NEWEST_IR}.onnx")
    note = f"IR version {proto.ir_version}, stamped {NEWEST_IR} here"
    proto.ir_version = NEWEST_IR
    onnx.save(proto, stamped)
    return stamped, note


def answer(path: Path, samples: TestSet) -> Answers:
    """Have onnxruntime answer all samples, in as large calls as the file takes and its answers do not depend on."""
    session = open_session(path, "cpu", available_threads())
    # Scales that come from the batch at hand make a sample's answer another one alone than among others.
    dynamic = any(node.op_type.startswith("DynamicQuantize") for node in onnx.load(path).graph.node)
    fixed = [given.shape[0] for given in session.get_inputs() if isinstance(given.shape[0], int)]
    batch = 1 if dynamic else min(fixed, default=_BATCH)
    starts = range(0, len(samples.labels), batch)
    values = [np.asarray(session.run(None, samples.batch(start, batch))[0], np.float32) for start in starts]
    return Answers(batch, Outputs(np.concatenate(values), samples.labels))


def told(error: Exception, path: Path) -> str:
    """The first line of an error, without the folder that the file happens to be in."""
    text = str(error).replace(f"{path.parent}/", "").strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0]}"[:300]
