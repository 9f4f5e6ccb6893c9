"""What a file answers, sample by sample: scored once, and kept by what it was."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.opened import Answers, TestSet, answer, readable
from compress.files import write_atomically
from compress.measurement import Accuracy, Outputs, raw_bytes, zip_bytes
from compress.measurement.accuracy import accuracy
from compress.measurement.intervals import share_interval
from compress.measurement.process import Process
from compress.models.counts import stored_weights
from compress.models.onnx_file import read

_CHUNK = 256  # samples a request: an answer that takes 2 s a sample is still in time


@dataclass(frozen=True)
class Source:
    """What is measured: an ONNX file, or the dense model in another runtime."""

    path: Path
    sha256: str  # of the file; of all that decides what the other runtime does
    command: tuple[str, ...] = ()  # starts the other runtime: see `benchmarks.peers.native`


@dataclass(frozen=True)
class Facts:
    """What is known of a file without running it."""

    raw_bytes: int | None = None  # None: the dense model in another runtime
    zip_bytes: int | None = None
    parameters: int | None = None
    nonzero: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # that another runtime tells of itself
    notes: str = ""


@dataclass(frozen=True)
class Scored:
    """A file that runs, and which samples it answers with their label."""

    path: Path  # what is opened: the file, or a copy with another IR version
    facts: Facts
    validation: NDArray[np.bool_]  # (N_validation,)
    test: NDArray[np.bool_]  # (N_test,)


def file_source(path: Path) -> Source:
    """An ONNX file; one that is not there is told of when it is opened."""
    content = path.read_bytes() if path.exists() else b""
    return Source(path.absolute(), hashlib.sha256(content).hexdigest())


def score(source: Source, validation: TestSet, test: TestSet, kept: Path) -> Scored:
    """Have a source answer all samples, unless ``kept``, an npz file, holds what it answered before.

    Raises:
        Exception: of the runtime, of whatever kind, where it does not take the file or the samples.
    """
    path, note = (source.path, "") if source.command else readable(source.path)
    if not kept.exists():
        if source.command:
            right, facts = _score_native(source, validation, test)
        else:
            right, facts = _score_file(path, note, validation, test)
        _keep(kept, right, facts)
    with np.load(kept) as stored:
        facts = Facts(**json.loads(stored["facts"].item()))
        return Scored(path, facts, stored["validation"], stored["test"])


def share(right: NDArray[np.bool_]) -> Accuracy:
    """Accuracy, with its Wilson interval."""
    count, n = int(right.sum()), len(right)
    return Accuracy(count / n, *share_interval(count, n), n)


def _score_file(path: Path, note: str, *sets: TestSet) -> tuple[list[NDArray[np.bool_]], Facts]:
    answers = [answer(path, one) for one in sets]
    weights = stored_weights(read(path, weights=False), path.parent).values()
    notes = [note] if note else []
    if answers[0].batch == 1:
        notes.append("scored one sample a call")
    facts = Facts(
        raw_bytes=raw_bytes(path),
        zip_bytes=zip_bytes(path),
        parameters=sum(weight.elements for weight in weights),
        nonzero=sum(weight.nonzero for weight in weights),
        notes="; ".join(notes),
    )
    return [_right(one) for one in answers], facts


def _score_native(source: Source, *sets: TestSet) -> tuple[list[NDArray[np.bool_]], Facts]:
    """By the very program that is timed, one sample a call."""
    with closing(Process(source.command)) as process:
        process.ask("open", str(source.path), "cpu", 1, sets[0].batch(0, 1))
        answers = []
        for one in sets:
            starts = range(0, len(one.labels), _CHUNK)
            values = [process.ask("answers", one.batch(start, _CHUNK)) for start in starts]
            answers.append(Answers(1, Outputs(np.concatenate(values), one.labels)))
        facts = Facts(versions=process.ask("versions"), notes="its own runtime, the dense model")
    return [_right(one) for one in answers], facts


def _right(answers: Answers) -> NDArray[np.bool_]:
    accuracy(answers.outputs)  # refuses answers that are not one a label
    return answers.right()


def _keep(path: Path, right: list[NDArray[np.bool_]], facts: Facts) -> None:
    content = io.BytesIO()
    arrays: dict[str, Any] = {"validation": right[0], "test": right[1], "facts": np.array(json.dumps(asdict(facts)))}
    np.savez_compressed(content, **arrays)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content.getvalue())
