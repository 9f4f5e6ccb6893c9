"""Rows kept while a comparison runs, and written as CSV and JSON when it is done."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.compare.frontier import Versus, all_versus
from benchmarks.compare.row import OK as OK
from benchmarks.compare.row import Row as Row
from compress.files import write_atomically
from compress.measurement import Timing

SCHEMA = 1
FOLDER = Path("benchmarks/results")

_ROWS, _ARRAYS = "rows.json", "rows.npz"
# The columns of the CSV: a row's own fields, and parts of those that are no plain value.
_PLAIN = (
    *("workload", "seed", "entry", "kind", "file", "settings", "status", "eligible", "raw_bytes", "zip_bytes"),
    *("parameters", "nonzero", "validation_drop", "test_drop", "p50_ms", "seconds", "cpu_seconds", "steps", "lines"),
)
_SHARES, _INTERVALS = ("validation", "test"), ("drop_interval", "p50_interval")


@dataclass(frozen=True)
class Comparison:
    """All that was measured on one workload, on one machine."""

    workload: str
    command: str
    environment: Mapping[str, Any]  # of `compress.measurement.environment`
    budget: Mapping[str, Any]  # that every entry had: steps, max_drop, …
    rows: tuple[Row, ...]
    versus: tuple[Versus, ...]  # our entries against the best peer: made while the answers to each sample are known
    not_run: tuple[str, ...] = ()  # entries that were not tried at every seed: without them nobody is the best peer

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({row.seed for row in self.rows}))

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "workload": self.workload,
            "command": self.command,
            "seeds": list(self.seeds),
            "environment": dict(self.environment),
            "budget": dict(self.budget),
            "not_run": list(self.not_run),
            "versus": [one.to_dict() for one in self.versus],
            "rows": [row.to_dict() for row in self.rows],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Comparison:
        """What `to_dict` made."""
        return cls(
            stored["workload"],
            stored["command"],
            stored["environment"],
            stored["budget"],
            tuple(Row.from_dict(row) for row in stored["rows"]),
            tuple(Versus.from_dict(one) for one in stored["versus"]),
            tuple(stored["not_run"]),
        )


def keep(rows: Sequence[Row], folder: Path) -> None:
    """Write rows.json and rows.npz, from which `kept` reads all that was measured at one seed."""
    arrays: dict[str, NDArray[Any]] = {}
    for number, row in enumerate(rows):
        if row.right is not None:
            arrays[f"right-{number}"] = np.packbits(row.right)
            arrays[f"samples-{number}"] = np.array(len(row.right))
        if row.latency is not None and row.latency.rounds:
            arrays[f"rounds-{number}"] = _round_medians(row.latency)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # its other argument is a flag
    write_atomically(folder / _ARRAYS, content.getvalue())
    write_atomically(folder / _ROWS, _json([row.to_dict() for row in rows]))


def kept(folder: Path) -> list[Row]:
    """What `keep` wrote, or nothing; of the samples of a latency the median of each round, all that a ratio needs."""
    if not (folder / _ROWS).exists():
        return []
    rows = [Row.from_dict(stored) for stored in json.loads((folder / _ROWS).read_text())]
    with np.load(folder / _ARRAYS) as arrays:
        return [_with_arrays(row, number, arrays) for number, row in enumerate(rows)]


def write(
    rows: Sequence[Row],
    workload: str,
    out: Path,
    environment: Mapping[str, Any],
    budget: Mapping[str, Any],
    command: str,
    expected: Iterable[str] = (),
) -> Path:
    """Write compare-<workload>-seeds<k>-<cpu>-threads1.json and .csv, of the rows of all seeds.

    Args:
        rows: With ``right`` and the samples of ``latency``, as they were measured or read by `kept`.
        workload: Its name.
        out: Folder.
        environment: Of `compress.measurement.environment.environment(threads=1)`.
        budget: What every entry had: budget.json of the inputs, without what differs from seed to seed.
        command: Without this machine's folders.
        expected: The entries that there are for this workload.

    Returns:
        The JSON file.
    """
    tried = {(row.entry, row.seed) for row in rows}
    not_run = tuple(name for name in expected if any((name, seed) not in tried for _, seed in tried))
    comparison = Comparison(workload, command, environment, budget, tuple(rows), all_versus(rows), not_run)
    name = (
        f"compare-{workload}-seeds{len(comparison.seeds)}-{machine_name(environment)}-threads{environment['threads']}"
    )
    write_atomically(out / f"{name}.csv", table(rows).encode())
    write_atomically(out / f"{name}.json", _json(comparison.to_dict()))
    return out / f"{name}.json"


def read_all(folder: Path) -> list[Comparison]:
    """The comparisons in a folder, by workload and machine; of those of both the one with the most seeds."""
    found: dict[tuple[str, str], Comparison] = {}
    for path in sorted(folder.glob("compare-*.json")):
        comparison = Comparison.from_dict(json.loads(path.read_text()))
        place = comparison.workload, machine_name(comparison.environment)
        if place not in found or len(comparison.seeds) > len(found[place].seeds):
            found[place] = comparison
    return list(found.values())


def machine_name(environment: Mapping[str, Any]) -> str:
    """A processor, as it stands in names of files: amd-epyc-vnni."""
    cpu = re.sub(r"\W+", "-", str(environment["cpu"]).lower()).strip("-")
    return cpu + ("-vnni" if "vnni" in environment["isa"] else "")


def table(rows: Sequence[Row]) -> str:
    """CSV: one line a row, in their order, under names of columns; what is not known is empty."""
    lines = [_flat(row) for row in rows]
    content = io.StringIO()
    writer = csv.DictWriter(content, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return content.getvalue()


def _flat(row: Row) -> dict[str, Any]:
    """The columns of one row: its plain fields, and the parts of those that are none."""
    flat = {name: getattr(row, name) for name in _PLAIN}
    for name in _SHARES:
        share = getattr(row, name)
        flat |= {f"{name}_{part}": getattr(share, part, None) for part in ("value", "low", "high", "n")}
    for name in _INTERVALS:
        flat |= dict(zip((f"{name}_low", f"{name}_high"), getattr(row, name) or (None, None), strict=True))
    flat |= {f"speedup_{part}": getattr(row.speedup, part, None) for part in ("value", "low", "high")}
    versions = " ".join(f"{package}={version}" for package, version in row.versions.items())
    return {**flat, "versions": versions, "notes": row.notes}


def _round_medians(timing: Timing) -> NDArray[np.float64]:
    medians: NDArray[np.float64] = np.median(np.array(timing.samples_ms).reshape(timing.rounds, -1), axis=1)
    return medians


def _with_arrays(row: Row, number: int, arrays: Mapping[str, NDArray[Any]]) -> Row:
    if f"right-{number}" in arrays:
        count = int(arrays[f"samples-{number}"])
        row = replace(row, right=np.unpackbits(arrays[f"right-{number}"], count=count).astype(np.bool_))
    if f"rounds-{number}" in arrays and row.latency is not None:
        row = replace(row, latency=replace(row.latency, samples_ms=tuple(arrays[f"rounds-{number}"].tolist())))
    return row


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
