"""Every quantizer's file of one model, measured in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.peers.opened import Answers, TestSet, answer, readable, told
from benchmarks.peers.quantizers import OURS, Made
from compress.measurement import (
    Accuracy,
    Ratio,
    Timing,
    fidelity,
    raw_bytes,
    speedup,
    zip_bytes,
)
from compress.measurement.accuracy import accuracy
from compress.measurement.latency import Job, Plan, time_together
from compress.measurement.significance import McNemar, mcnemar, p_text

FLOAT = "float"  # the name of the row that all are compared with


@dataclass(frozen=True)
class Row:
    """One file, measured; None: it did not come so far, and ``made.status`` says why."""

    made: Made
    note: str = ""  # what had to be changed for it to load
    raw_bytes: int | None = None
    zip_bytes: int | None = None
    accuracy: Accuracy | None = None
    fidelity: float | None = None  # share of samples with the float file's top-1
    scored_batch: int | None = None  # samples a call while scoring
    against_float: McNemar | None = None  # the float file is the reference
    against_ours: McNemar | None = None  # this project's file is
    latency: Timing | None = None
    speedup: Ratio | None = None  # p50 of the float file / of this one
    ours_speedup: Ratio | None = None  # p50 of this file / of this project's: above 1, ours is faster

    def to_dict(self) -> dict[str, Any]:
        latency = None if self.latency is None else self.latency.to_dict()
        return {**asdict(replace(self, latency=None)), "latency": latency}


@dataclass(frozen=True)
class _File:
    """A file that loads, and its answers."""

    made: Made
    path: Path
    note: str
    answers: Answers


def measure(
    model: Path,
    made: Sequence[Made],
    files: Mapping[str, Path],
    test: TestSet,
    seconds: float,
    launches: int = Plan.launches,
) -> list[Row]:
    """Score and time a float file and all that was made of it.

    Args:
        model: Float ONNX.
        made: What each quantizer did.
        files: What it wrote, by its name.
        test: Samples; the first is the one that is timed.
        seconds: Of timing, for each file.
        launches: Processes that each file is timed in, one after the other.

    Returns:
        A row for the float file, and one for each of ``made``, in that order.
    """
    dense = Made(FLOAT, "compress export, float32", made[0].source if made else "", file=model.name)
    opened, failed = {FLOAT: _open(dense, model, test)}, {}
    for one in made:
        try:
            if one.name in files:
                opened[one.name] = _open(one, files[one.name], test)
            else:
                failed[one.name] = Row(one)
        except Exception as error:  # of a file that somebody wrote: onnxruntime's errors have no base of their own
            failed[one.name] = Row(replace(one, status=told(error, files[one.name])))
    timings = dict(
        zip(opened, _time(list(opened.values()), test, Plan(seconds=seconds, launches=launches)), strict=True)
    )
    return [
        failed[one.name] if one.name in failed else _row(opened[one.name], opened, timings) for one in (dense, *made)
    ]


def _open(made: Made, path: Path, test: TestSet) -> _File:
    path, note = readable(path)
    return _File(made, path, note, answer(path, test))


def _time(files: Sequence[_File], test: TestSet, plan: Plan) -> list[Timing]:
    """All files in turns, each in processes of its own, one sample a call, one thread."""
    return time_together([Job(file.path.resolve(), test.batch(0, 1)) for file in files], plan)


def _row(file: _File, opened: Mapping[str, _File], timings: Mapping[str, Timing]) -> Row:
    dense, ours, timing = opened[FLOAT], opened.get(OURS), timings[file.made.name]
    beside = ours if file is not ours else None  # a file is not compared with itself
    return Row(
        made=file.made,
        note=file.note,
        raw_bytes=raw_bytes(file.path),
        zip_bytes=zip_bytes(file.path),
        accuracy=accuracy(file.answers.outputs),
        fidelity=fidelity(file.answers.outputs, dense.answers.outputs),
        scored_batch=file.answers.batch,
        against_float=None if file is dense else mcnemar(dense.answers.right(), file.answers.right()),
        against_ours=None if beside is None else mcnemar(beside.answers.right(), file.answers.right()),
        latency=timing,
        speedup=None if file is dense else speedup(timings[FLOAT], timing),
        ours_speedup=None if beside is None else speedup(timing, timings[OURS]),
    )


def markdown(name: str, rows: Sequence[Row]) -> str:
    """The table of one model."""
    head = ["", "accuracy", "drop (McNemar)", "above ours (McNemar)", "agrees", "p50", "speed-up", "ours is faster by"]
    head += ["bytes", "zipped", "made in"]
    n = next((row.accuracy.n for row in rows if row.accuracy is not None), 0)
    lines = [f"**{name}** (n = {n:,}; 95 % intervals in brackets)", "", f"| {' | '.join(head)} |"]
    lines.append(f"|{'---|' * len(head)}")
    dense = rows[0].accuracy
    for row in rows:
        cells = [f"{row.made.name}: {row.made.settings}"]
        if row.accuracy is None or row.latency is None or dense is None:
            cells += [row.made.status, *["–"] * (len(head) - 2)]
        else:
            cells += _cells(row, row.accuracy, row.latency, dense.value)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(row: Row, found: Accuracy, latency: Timing, dense: float) -> list[str]:
    float_p = None if row.against_float is None else row.against_float.p
    against = row.against_ours
    return [
        f"{found.value:.4f} [{found.low:.4f}-{found.high:.4f}]",
        "–" if float_p is None else f"{dense - found.value:+.4f} ({p_text(float_p)})",
        "–"
        if against is None
        else f"{(against.only_changed - against.only_reference) / found.n:+.4f} ({p_text(against.p)})",
        "–" if row.fidelity is None else f"{row.fidelity:.4f}",
        f"{latency.p50_ms:.3f} ms",
        _ratio(row.speedup),
        _ratio(row.ours_speedup),
        f"{row.raw_bytes:,}",
        f"{row.zip_bytes:,}",
        "–" if row.made.seconds is None else f"{row.made.seconds:.0f} s ({row.made.cpu_seconds:.0f} s CPU)",
    ]


def _ratio(ratio: Ratio | None) -> str:
    return "–" if ratio is None else f"{ratio.value:.2f}× [{ratio.low:.2f}-{ratio.high:.2f}]"
