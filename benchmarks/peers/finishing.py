"""What the finishers share: a trainer's float files are quantized, and what is worth measuring is kept.

A finisher is run as ``<script> INPUTS SOURCE OUT``: SOURCE is the folder that a trainer wrote, or INPUTS itself, and
then the dense model is what is quantized. Imports nothing that a peer's environment may lack, torch least of all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from benchmarks.peers.points import POINTS, Point, read_points, write_points
from benchmarks.peers.stripping import strip

Feed = dict[str, NDArray[Any]]

DENSE = "float.onnx"
IR_VERSION = 10

_BATCH, _ROUNDS, _ROUND_S = 256, 7, 0.1
# Scales that come from the batch at hand: a sample alone is answered otherwise than among others.
_AT_RUN_TIME = ("DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul")


@dataclass(frozen=True)
class Samples:
    """Inputs, each (N, …) by name, and labels (N,)."""

    inputs: Feed
    labels: NDArray[np.int64]

    def feeds(self, size: int = 1) -> list[Feed]:
        """The inputs in order, ``size`` samples a feed."""
        starts = range(0, len(self.labels), size)
        return [{name: array[i : i + size] for name, array in self.inputs.items()} for i in starts]


@dataclass(frozen=True)
class Task:
    """Where the float files are, what quantizes and scores them, and how far they may drop."""

    inputs: Path
    source: Path
    out: Path
    calibration: Samples
    validation: Samples
    baseline: float  # accuracy 0..1 of the dense model on validation
    max_drop: float  # fraction 0..1
    seed: int


@dataclass(frozen=True)
class Candidate:
    """A file, and what is known of it."""

    path: Path
    settings: str
    drop: float  # fraction 0..1 below the dense model, on validation
    zip_bytes: int


@dataclass
class Search:
    """The candidates made of one float file, in a folder of their own."""

    task: Task
    source: Path  # float ONNX
    folder: Path
    made: list[Candidate] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def within(self) -> list[Candidate]:
        return [one for one in self.made if one.drop <= self.task.max_drop]

    def add(self, settings: str, write: Callable[[Path], object]) -> None:
        """Have ``write`` make a file at a path, and score it; what goes wrong is told, and the search goes on."""
        path = self.folder / f"{len(self.made) + len(self.errors)}.onnx"
        try:
            write(path)
            proto = onnx.load(path)
            strip(proto)
            proto.ir_version = min(proto.ir_version, IR_VERSION)
            onnx.save(proto, path)
            self.made.append(candidate(self.task, path, settings))
        except Exception as error:  # a tool's errors have no base of their own
            self.errors.append(f"{settings}: {type(error).__name__}: {error}")
            print(self.errors[-1], file=sys.stderr)

    def best(self) -> list[Candidate]:
        """The fastest, the smallest and the most accurate of those within the drop; else the most accurate of all."""
        if not self.made:
            raise RuntimeError("; ".join([f"nothing was made of {self.source.name}", *self.errors[-1:]]))
        if not self.within:
            return [min(self.made, key=lambda one: (one.drop, one.zip_bytes))]
        return distinct(fastest(self.task, self.within), smallest(self.within), most_accurate(self.within))


def arguments(description: str | None, *flags: str) -> tuple[Task, argparse.Namespace]:
    """The command line of a finisher, ``INPUTS SOURCE OUT``, and its flags."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("inputs", "source", "out"):
        parser.add_argument(name, type=Path)
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return read_task(options.inputs, options.source, options.out), options


def read_task(inputs: Path, source: Path, out: Path) -> Task:
    budget = json.loads((inputs / "budget.json").read_text())
    calibration, validation = (_samples(inputs / f"{name}.npz") for name in ("calibration", "validation"))
    baseline, max_drop = budget["baseline"]["validation"], budget["max_drop"]
    return Task(inputs, source, out, calibration, validation, baseline, max_drop, budget["seed"])


def _samples(path: Path) -> Samples:
    with np.load(path) as stored:
        return Samples({name: stored[name] for name in stored.files if name != "labels"}, stored["labels"])


def finish(task: Task, quantize: Callable[[Search], None], *packages: str) -> None:
    """Quantize the float files, and write what is worth measuring, with points.json, to the task's folder.

    Args:
        quantize: Adds candidates to a search.
        packages: Whose versions are told.
    """
    points: list[Point] = []
    for number, source in enumerate(sources(task), 1):
        with tempfile.TemporaryDirectory() as scratch:
            search = Search(task, source.path, Path(scratch))
            quantize(search)
            for place, one in enumerate(search.best(), 1):
                name = f"p{number}-{place}.onnx"
                shutil.copyfile(one.path, task.out / name)
                settings = f"{source.settings}; {one.settings}"
                points.append(Point(name, settings, round(one.drop, 6), one.drop <= task.max_drop))
    write_points(task.out, points, 0, *packages)


def sources(task: Task) -> list[Candidate]:
    """The float files to quantize: the fastest and the smallest, at most two, that kept their accuracy; else dense."""
    points = read_points(task.source) if (task.source / POINTS).exists() else []
    kept = [candidate(task, task.source / point.file, point.settings) for point in points if point.within]
    if not kept:
        return [candidate(task, task.inputs / DENSE, "dense")]
    by_size = sorted(kept, key=lambda one: one.zip_bytes)
    return distinct(fastest(task, kept), *by_size)[:2]


def candidate(task: Task, path: Path, settings: str) -> Candidate:
    zipped = len(zlib.compress(path.read_bytes(), 9))
    return Candidate(path, settings, task.baseline - accuracy(path, task.validation), zipped)


def distinct(*candidates: Candidate) -> list[Candidate]:
    return list(dict.fromkeys(candidates))


def most_accurate(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda one: (one.drop, one.zip_bytes))


def smallest(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda one: one.zip_bytes)


def fastest(task: Task, candidates: Sequence[Candidate]) -> Candidate:
    """By the median of one sample a call on one thread, all files in turns."""
    sessions = [session(one.path) for one in candidates]
    feed = task.validation.feeds()[0]
    calls: list[list[float]] = [[] for _ in candidates]
    for _ in range(_ROUNDS):
        for opened, seconds in zip(sessions, calls, strict=True):
            opened.run(None, feed)
            ends = time.perf_counter() + _ROUND_S
            while (started := time.perf_counter()) < ends:
                opened.run(None, feed)
                seconds.append(time.perf_counter() - started)
    return min(zip(candidates, calls, strict=True), key=lambda pair: statistics.median(pair[1]))[0]


def accuracy(model: Path | bytes, samples: Samples) -> float:
    """Top-1, 0..1."""
    return float(np.mean(answers(model, samples) == samples.labels))


def answers(model: Path | bytes, samples: Samples) -> NDArray[np.int64]:
    """Classes (N,) that an ONNX file, or its bytes, gives."""
    proto = onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model)
    batch = 1 if any(node.op_type in _AT_RUN_TIME for node in proto.graph.node) else _BATCH
    opened = session(model)
    return np.concatenate([opened.run(None, feed)[0].argmax(axis=1) for feed in samples.feeds(batch)])


def session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """An open file, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    given = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
