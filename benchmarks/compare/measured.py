"""All files of one workload and seed: scored on validation and test, weighed, and timed together in one run.

What was scored is kept in the work folder by the sha256 of the file, and where the files, samples and machine are those
of the last run, its rows are returned. Timings of two runs are never mixed: one new file, and all are timed again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import call, narrowest
from benchmarks.compare.entries import BY_NAME, DENSE
from benchmarks.compare.frontier import EQUAL
from benchmarks.compare.inputs import BUDGET, FLOAT, INPUTS, TEST
from benchmarks.compare.made import Made
from benchmarks.compare.results import keep, kept
from benchmarks.compare.row import OK, Row
from benchmarks.compare.scoring import Scored, Source, file_source, score, share
from benchmarks.peers.opened import TestSet, told
from benchmarks.workloads import LABELS
from compress.files import write_atomically
from compress.measurement import Timing, speedup
from compress.measurement.environment import environment
from compress.measurement.intervals import drop_interval
from compress.measurement.latency import Job, Plan, time_together
from compress.measurement.process import Process

_MEASURED = "measured.json"  # identifies what the rows that are kept were measured of
_SCORED = "scored"  # folder
_MACHINE = ("cpu", "isa", "onnxruntime")  # what answers and latencies depend on besides the files


@dataclass(frozen=True)
class _Candidate:
    row: Row  # without what is measured
    source: Source


@dataclass(frozen=True)
class _Samples:
    """What all are scored on; the first of test is what all are timed on."""

    validation: TestSet
    test: TestSet
    sha256: str


def measure(
    workload: str, seed: int, folder: Path, made: Sequence[Made], seconds: float, launches: int = Plan.launches
) -> list[Row]:
    """Score, weigh and time the dense file and all that was made of it; the rows are kept in ``folder``.

    Args:
        workload: Its name.
        seed: Of its training.
        folder: Of the two: test.npz, inputs/, and a folder for each entry.
        made: What each entry did.
        seconds: Of timing, for each file.
        launches: Processes that each file is timed in, one after the other.

    Returns:
        A row for the dense file, then one for each file of ``made``; one for an entry without, which says why. The
        last are timed and not scored: the model one channel wide, and what a call costs that computes nothing.
    """
    found = environment(threads=1)
    machine = {name: found[name] for name in _MACHINE}
    samples = _read_samples(folder)
    candidates = list(_candidates(workload, seed, folder, made))
    known = [[one.row.to_dict(), one.source.sha256] for one in candidates]
    identity = _sha256(known, samples.sha256, machine, seconds, launches).encode()
    last = folder / _MEASURED
    if not last.exists() or last.read_bytes() != identity:
        last.unlink(missing_ok=True)  # of the rows that are now replaced
        keep(_measured(candidates, samples, folder, machine, Plan(seconds=seconds, launches=launches)), folder)
        write_atomically(last, identity)
    return kept(folder)


def _candidates(workload: str, seed: int, folder: Path, made: Sequence[Made]) -> Iterator[_Candidate]:
    """The dense file first, and at last what none can undercut."""
    dense = file_source(folder / INPUTS / FLOAT)
    yield _Candidate(Row(workload, seed, DENSE, "dense", FLOAT, "the dense model, float32"), dense)
    for one in made:
        row = Row(
            workload=workload,
            seed=seed,
            entry=one.name,
            kind=BY_NAME[one.name].kind,
            file=None,
            settings=one.settings,
            status=one.status,
            seconds=one.seconds,
            cpu_seconds=one.cpu_seconds,
            steps=one.steps,
            lines=one.lines,
            versions=one.versions,
        )
        if one.status == OK and one.command:
            yield _Candidate(row, Source(dense.path, _sha256(dense.sha256, one.identity), one.command))
        elif one.status == OK and one.points:
            for point in one.points:
                source = file_source(folder / one.name / point.file)
                yield _Candidate(replace(row, file=point.file, settings=point.settings), source)
        else:
            status = "made no file" if one.status == OK else one.status
            yield _Candidate(replace(row, status=status), Source(folder, sha256=""))
    if (folder / narrowest.FILE).exists():
        row = Row(workload, seed, narrowest.NAME, "limit", None, narrowest.SETTINGS)
        yield _Candidate(row, file_source(folder / narrowest.FILE))
    alone = file_source(call.write(folder / INPUTS / FLOAT, folder))
    yield _Candidate(Row(workload, seed, call.NAME, "limit", None, call.SETTINGS), alone)


def _measured(
    candidates: Sequence[_Candidate], samples: _Samples, folder: Path, machine: Mapping[str, Any], plan: Plan
) -> list[Row]:
    _tell(candidates, "scoring")
    scored, rows = {}, [one.row for one in candidates]
    for number, one in enumerate(candidates):
        if one.row.status != OK or one.row.kind == "limit":
            continue
        name = _sha256(one.source.sha256, samples.sha256, machine)
        try:
            scored[number] = score(one.source, samples.validation, samples.test, folder / _SCORED / f"{name}.npz")
        except Exception as error:  # of a file that somebody wrote: onnxruntime's errors have no base of their own
            if number == 0:
                raise  # there is nothing to compare with
            rows[number] = replace(one.row, status=told(error, one.source.path))
    timed = {number: one for number, one in enumerate(candidates) if number in scored or one.row.kind == "limit"}
    # Scoring may have had to write a file anew, so that this onnxruntime reads it.
    paths = {number: scored[number].path if number in scored else one.source.path for number, one in timed.items()}
    _tell(paths, "timing")
    jobs = [_job(timed[number].source, path, samples.test) for number, path in paths.items()]
    timings = dict(zip(paths, time_together(jobs, plan), strict=True))
    allowed: float = json.loads((folder / INPUTS / BUDGET).read_text())["max_drop"]
    for number, timing in timings.items():
        if number in scored:
            rows[number] = _with_scores(rows[number], scored[number], scored[0], allowed)
        rows[number] = _with_timing(rows[number], timing, timings[0])
    return rows


def _job(source: Source, path: Path, test: TestSet) -> Job:
    """One sample a call, in a process of its own: of onnxruntime, or of the runtime that the source names."""
    launch = partial(Process, source.command) if source.command else None
    return Job(path, test.batch(0, 1), launch)


def _with_scores(row: Row, found: Scored, dense: Scored, allowed: float) -> Row:
    lost, won = int((dense.test & ~found.test).sum()), int((found.test & ~dense.test).sum())
    n, validation_drop = len(dense.test), float(dense.validation.mean() - found.validation.mean())
    facts = found.facts
    return replace(
        row,
        raw_bytes=facts.raw_bytes,
        zip_bytes=facts.zip_bytes,
        parameters=facts.parameters,
        nonzero=facts.nonzero,
        validation=share(found.validation),
        test=share(found.test),
        validation_drop=validation_drop,
        test_drop=(lost - won) / n,
        drop_interval=drop_interval(lost, won, n) if found is not dense else None,
        eligible=validation_drop <= allowed + EQUAL,
        versions={**row.versions, **facts.versions},
        notes=facts.notes,
        right=found.test,
    )


def _with_timing(row: Row, timing: Timing, dense: Timing) -> Row:
    """What could not be timed says so, beside its size and accuracy."""
    if timing.p50_ms is None or timing.p50_interval is None:
        return replace(row, status=f"not timed: {timing.status}", latency=timing)
    return replace(
        row,
        p50_ms=timing.p50_ms,
        p50_interval=(timing.p50_interval["low"], timing.p50_interval["high"]),
        speedup=None if timing is dense else speedup(dense, timing),
        latency=timing,
    )


def _read_samples(folder: Path) -> _Samples:
    paths = folder / INPUTS / "validation.npz", folder / TEST
    validation, test = map(_read_set, paths)
    return _Samples(validation, test, _sha256(*(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)))


def _read_set(path: Path) -> TestSet:
    with np.load(path) as stored:
        return TestSet({name: stored[name] for name in stored.files if name != LABELS}, stored[LABELS])


def _sha256(*values: Any) -> str:
    """Of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _tell(files: Collection[Any], what: str) -> None:
    print(f"{what} {len(files)} files …", file=sys.stderr, flush=True)
