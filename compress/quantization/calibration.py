"""Ranges of activations, from one walk (or two) of calibration data through the float graph, in constant memory.

A walk that is stopped goes on from its cache file, and ends with the very same ranges.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from compress.data.splits import Split
from compress.errors import QuantizationError
from compress.files import write_atomically
from compress.models.onnx_file import Array, first_line, serialize
from compress.quantization.graph import inner_values
from compress.quantization.integer import STATIC_OPERATORS
from compress.quantization.observers import BINS, PERCENTILE, Histogram, Method, Observer, Range
from compress.values import InputSpec, Progress, silent

logger = logging.getLogger(__name__)

_FORMAT = 1  # of the cache file, and of how observers see: raise it with either
_SAVE_SECONDS = 5.0
# What the observed tensors of one run may hold; a run, and the results of the one before, are in memory at once.
_BUDGET_BYTES = 128 << 20
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Feed:
    """Some samples as a graph takes them."""

    values: dict[str, Array]  # by input name, each (n, …)
    positions: NDArray[np.int64]  # (n,) of the samples in the split
    last: bool  # of its batch


@dataclass(frozen=True)
class Feeds:
    """A split as batches of inputs by name; can be iterated again and again, the samples are fetched anew each time.

    Samples whose shapes differ come in batches of their own within a batch.

    Raises, when iterated:
        QuantizationError: a value is NaN or infinite; names the input and the sample.
    """

    split: Split
    inputs: tuple[InputSpec, ...]
    batch_size: int = 32

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (feed.values for feed in self.numbered())

    def numbered(self, first: int = 0, at_once: int | None = None) -> Iterator[Feed]:
        """The batches from number ``first`` on, cut into feeds of at most ``at_once`` samples."""
        for start in range(first * self.batch_size, len(self.split), self.batch_size):
            stop = min(start + self.batch_size, len(self.split))
            positions = np.arange(start, stop, dtype=np.int64)
            cuts = np.split(positions, range(at_once, len(positions), at_once)) if at_once else [positions]
            for cut in cuts:
                groups = self._fetch(cut)
                for number, (members, columns) in enumerate(groups, 1):
                    last = cut is cuts[-1] and number == len(groups)
                    yield Feed(self._named(columns, members), members, last)

    def _fetch(self, positions: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], list[Array]]]:
        """The samples, in groups of one shape: (positions, a column an input)."""
        try:
            columns, _ = self.split.fetch(self.split.indices[positions])
        except (RuntimeError, ValueError):  # what torch.stack and numpy.stack make of unequal shapes
            if len(positions) == 1:
                raise
        else:
            return [(positions, [column.numpy() for column in columns])]
        groups: dict[tuple[tuple[int, ...], ...], list[tuple[int, list[Array]]]] = {}
        for position in positions:
            [(_, one)] = self._fetch(np.array([position]))
            groups.setdefault(tuple(column.shape for column in one), []).append((position, one))
        return [
            (
                np.array([position for position, _ in group]),
                [np.concatenate(c) for c in zip(*(one for _, one in group), strict=True)],
            )
            for group in groups.values()
        ]

    def _named(self, columns: Sequence[Array], positions: NDArray[np.int64]) -> dict[str, Array]:
        values = {}
        for column, spec in zip(columns, self.inputs, strict=True):
            array = values[spec.name] = column.astype(spec.dtype, copy=False)
            bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
            if bad.any():
                raise QuantizationError(
                    f"input {spec.name!r} of {self.name_of(positions[bad.argmax()])} holds NaN or infinity; "
                    "ranges cannot be taken from it. Clean the data, or leave that sample out."
                )
        return values

    def name_of(self, position: int | np.int64) -> str:
        """A sample, as errors tell it."""
        return f"sample {self.split.indices[position]} (number {position} of the {self.split.name} split)"


@dataclass(frozen=True)
class Calibration:
    """What was seen of each tensor."""

    observers: Mapping[str, Observer]  # by the tensor's name
    samples: int

    def ranges(self, method: Method, *, percentile: float = PERCENTILE, symmetric: bool = False) -> dict[str, Range]:
        """(low, high) of each tensor; see `Observer.range_of`."""
        return {
            name: observer.range_of(method, percentile=percentile, symmetric=symmetric)
            for name, observer in self.observers.items()
        }

    @property
    def sha256(self) -> str:
        """Of all that the ranges come from; with the method, it tells them."""
        digest = hashlib.sha256()
        for name, array in _packed(self.observers).items():
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Job:
    """What is to be observed, on what."""

    proto: onnx.ModelProto
    tensors: tuple[str, ...]
    feeds: Feeds
    passes: int
    threads: int

    @property
    def batches(self) -> int:
        """Of all passes."""
        return self.passes * -(-len(self.feeds.split) // self.feeds.batch_size)

    def samples_in(self, batches: int) -> int:
        """How many samples the first ``batches`` hold; the last of a pass may be smaller."""
        passes, rest = divmod(batches, self.batches // self.passes)
        return passes * len(self.feeds.split) + rest * self.feeds.batch_size


@dataclass
class _Walk:
    """How far a calibration has come."""

    observers: dict[str, Observer]
    done: int = 0  # batches, of all passes


def tensors_to_observe(
    proto: onnx.ModelProto, operators: Sequence[str], exclude: Sequence[str] = ()
) -> tuple[str, ...]:
    """The floating-point values, constants apart, that nodes of these operators take and give, in graph order.

    A MatMul whose second input is no constant is not quantized, and so not observed.
    """
    constant = {tensor.name for tensor in proto.graph.initializer}
    constant |= {name for node in proto.graph.node if node.op_type == "Constant" for name in node.output}
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    found: dict[str, None] = {}
    for node in proto.graph.node:
        if node.op_type not in operators or node.name in exclude:
            continue
        if node.op_type == "MatMul" and node.input[1] not in constant:
            continue
        names = (name for name in (*node.input, *node.output) if name and name not in constant)
        found |= dict.fromkeys(name for name in names if types.get(name, _FLOATS[0]) in _FLOATS)
    return tuple(found)


def calibrate(
    proto: onnx.ModelProto,
    split: Split,
    inputs: tuple[InputSpec, ...],
    *,
    operators: Sequence[str] = STATIC_OPERATORS,
    exclude: Sequence[str] = (),
    batch_size: int = 32,
    bins: int = BINS,
    passes: int = 1,
    threads: int = 1,
    data_sha256: str = "",
    progress: Progress = silent,
    cache: Path | None = None,
) -> Calibration:
    """Run the float graph on every sample and observe its tensors. Memory does not depend on the number of samples.

    Args:
        proto: The float graph; it is not changed.
        split: The samples, in their order.
        inputs: Of the graph, in the order of a sample's columns.
        operators: Whose inputs and outputs are observed: see `tensors_to_observe`.
        exclude: Names of nodes that are not.
        batch_size: Samples by which moving averages go. Fewer run at once where their inner values are large.
        bins: Of each histogram.
        passes: 1: histograms widen as larger values come. 2: the extremes first, then histograms of the finest bins
            (up to twice as fine, at twice the time).
        threads: Of onnxruntime.
        data_sha256: Of the samples and of how they are preprocessed, `Data.sha256`: a part of the cache's key.
        progress: Told the samples that are done, of all passes.
        cache: File that is kept up to date every few seconds. A calibration of the same graph, samples and options
            goes on from it, and ends with equal bytes; any other file there is replaced.

    Raises:
        QuantizationError: no samples; NaN or infinity in an input or an inner value (names it, its node and the
            sample); onnxruntime cannot run the graph.
        WorkspaceError: the cache cannot be written.
    """
    if len(split) == 0:
        raise QuantizationError(f"the {split.name} split is empty: ranges need at least one sample.")
    job = _Job(proto, tensors_to_observe(proto, operators, exclude), Feeds(split, inputs, batch_size), passes, threads)
    key = _key(job, bins, data_sha256) if cache else ""
    walk = _resumed(cache, key) if cache else None
    if walk is None:
        walk = _Walk({name: Observer.new(bins) for name in job.tensors})
    saved = time.monotonic()
    for _ in _steps(job, walk):
        if cache and (walk.done == job.batches or time.monotonic() - saved >= _SAVE_SECONDS):
            write_atomically(cache, _to_bytes(walk, key))
            saved = time.monotonic()
        progress("calibrating", job.samples_in(walk.done), passes * len(split))
    return Calibration(walk.observers, len(split))


def _steps(job: _Job, walk: _Walk) -> Iterator[None]:
    """Take the batches that are left, one a step."""
    if walk.done == job.batches or not job.tensors:
        return
    at_once = _samples_at_once(job)
    while walk.done < job.batches:
        number, first = divmod(walk.done, job.batches // job.passes)
        if number == 1 and first == 0:
            for observer in walk.observers.values():
                observer.fix_bins()
        for feed, values in _run(job, job.tensors, job.feeds.numbered(first, at_once)):
            for name, observer in walk.observers.items():
                if number == 1:
                    observer.count(values[name])
                elif not (observer.update if job.passes == 1 else observer.see)(values[name]):
                    raise _not_finite(job, name, feed)
            if feed.last:
                for observer in walk.observers.values():
                    observer.close_batch()
                walk.done += 1
                yield


def _run(job: _Job, names: Sequence[str], source: Iterable[Feed]) -> Iterator[tuple[Feed, dict[str, Array]]]:
    """Each feed with the named values that the graph gives for it."""
    present: list[Feed] = []  # one; itertools.tee would keep dozens
    found = inner_values(job.proto, names, (present[0].values for _ in count()), job.threads)
    for feed in source:  # the data's own errors are raised here, onnxruntime's below
        present[:] = [feed]
        try:
            values = next(found)
        except Exception as error:  # they have no common base of their own
            raise QuantizationError(
                f"onnxruntime cannot run the graph on a batch of {len(feed.positions)} from "
                f"{job.feeds.name_of(feed.positions[0])} on: {first_line(error)}. Check that the data fits the model."
            ) from error
        yield feed, values


def _samples_at_once(job: _Job) -> int:
    """How many samples of the size of the first one fit the budget: 1 to the batch size."""
    first = next(job.feeds.numbered(at_once=1))
    [(_, values)] = _run(job, job.tensors, [first])
    size = sum(array.nbytes for array in values.values())
    return max(1, min(job.feeds.batch_size, _BUDGET_BYTES // max(size, 1)))


def _not_finite(job: _Job, name: str, feed: Feed) -> QuantizationError:
    """Each sample of the feed is run alone to find the one that it comes from."""
    guilty = feed
    for number in range(len(feed.positions)):
        row = slice(number, number + 1)
        alone = Feed({key: value[row] for key, value in feed.values.items()}, feed.positions[row], last=True)
        [(_, values)] = _run(job, [name], [alone])
        if not np.isfinite(values[name]).all():
            guilty = alone
            break
    node = next(node for node in job.proto.graph.node if name in node.output)
    where = job.feeds.name_of(guilty.positions[0])
    if len(guilty.positions) > 1:
        where = f"the {len(guilty.positions)} samples from {where} on"
    return QuantizationError(
        f"{name!r}, the output of node {node.name!r} ({node.op_type}), is NaN or infinite for {where}; ranges cannot "
        "be taken from it. Check the model with that input, or leave it out."
    )


def _key(job: _Job, bins: int, data_sha256: str) -> str:
    """sha256 of all that decides what is observed."""
    parts = {
        "format": _FORMAT,
        "onnxruntime": onnxruntime.__version__,
        "model": hashlib.sha256(serialize(job.proto)).hexdigest(),
        "tensors": job.tensors,
        "data": data_sha256,
        "samples": hashlib.sha256(job.feeds.split.indices.astype("<i8").tobytes()).hexdigest(),
        "inputs": [(spec.name, spec.shape, spec.dtype) for spec in job.feeds.inputs],
        "batch_size": job.feeds.batch_size,
        "bins": bins,
        "passes": job.passes,
        "threads": job.threads,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _packed(observers: Mapping[str, Observer]) -> dict[str, Array]:
    """All that observers hold, between two batches."""
    rows = [
        (o.low, o.high, *(o.average or (np.nan, np.nan)), o.histogram.width, o.histogram.start)
        for o in observers.values()
    ]
    return {
        "names": np.array(list(observers), np.str_),
        "numbers": np.array(rows, np.float64).reshape(len(rows), 6),
        "counts": np.array([o.histogram.counts for o in observers.values()], np.int64),
    }


def _to_bytes(walk: _Walk, key: str) -> bytes:
    buffer, packed = io.BytesIO(), _packed(walk.observers)
    np.savez_compressed(
        buffer,
        key=np.array(key),
        done=np.array(walk.done),
        names=packed["names"],
        numbers=packed["numbers"],
        counts=packed["counts"],
    )
    return buffer.getvalue()


def _resumed(path: Path, key: str) -> _Walk | None:
    """The walk kept at ``path``; None where there is none, or another one."""
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            found, done = str(kept["key"]), int(kept["done"])
            packed = [(str(n), r, c) for n, r, c in zip(kept["names"], kept["numbers"], kept["counts"], strict=True)]
    except Exception as error:  # a broken zip, or another file: numpy and zipfile raise a dozen types
        logger.warning("%s is no calibration (%s): calibrating from the start", path, first_line(error))
        return None
    if found != key:
        logger.warning("%s is of another model, data or options: calibrating from the start", path)
        return None
    return _Walk({name: _unpacked(row, counts) for name, row, counts in packed}, done)


def _unpacked(row: NDArray[np.float64], counts: NDArray[np.int64]) -> Observer:
    low, high, average_low, average_high, width, start = (float(number) for number in row)
    average = None if np.isnan(average_low) else (average_low, average_high)
    return Observer(Histogram(counts.copy(), width, int(start)), low, high, average)
