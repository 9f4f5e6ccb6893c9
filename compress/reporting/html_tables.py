"""Tables that only the page has room for: bytes in every form, memory and load time, and where the nodes run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.reporting import format as fmt
from compress.reporting.summary import Table

Report = Mapping[str, Any]


def size_table(report: Report) -> Table | None:
    """One row a variant: its bytes as they are, compressed, and at least; None where they were not measured."""
    columns = ("variant", "as it is", "gzip", "zip", "zstd", "entropy of the weights", "weights", "graph", "metadata")
    rows = []
    for variant in report["variants"]:
        sizes = variant.get("sizes")
        if not sizes:
            continue
        forms = (sizes[f"{form}_bytes"] for form in ("raw", "gzip", "zip", "zstd", "entropy"))
        kinds = (sizes["by_kind"][kind] for kind in ("weights", "graph", "metadata"))
        rows.append((variant["name"], *map(fmt.size, forms), *map(fmt.size, kinds)))
    return Table(columns, tuple(rows), _mark(report, rows)) if rows else None


def timed_table(table: Table, report: Report) -> Table:
    """The rows of the latency table that have numbers, without the status where it is ok for all of them."""
    timings = [timing for variant in report["variants"] for timing in variant["latency"]]
    rows = [row for row, timing in zip(table.rows, timings, strict=True) if timing["p50_ms"] is not None]
    if table.columns[-1] == "status" and all(row[-1] == "ok" for row in rows):
        return Table(table.columns[:-1], tuple(row[:-1] for row in rows))
    return Table(table.columns, tuple(rows))


def absences(report: Report) -> tuple[str, ...]:
    """One line for each provider and reason that there are no numbers: which variants it concerns."""
    found: dict[tuple[str, str], list[str]] = {}
    for variant in report["variants"]:
        for timing in variant["latency"]:
            names = found.setdefault((timing["provider"], timing["status"]), [])
            if timing["p50_ms"] is None and variant["name"] not in names:
                names.append(variant["name"])
    every = len(report["variants"])
    return tuple(
        f"{_provider(provider)}, {'all variants' if len(names) == every else ', '.join(names)}: {reason}"
        for (provider, reason), names in found.items()
        if names
    )


def memory_table(report: Report) -> Table | None:
    """One row for each timing that ran: throughput, load time, peak memory, energy where it was readable."""
    columns = ("variant", "provider", "batch", "threads", "throughput", "load", "peak memory")
    timings = [(v["name"], t) for v in report["variants"] for t in v["latency"] if t.get("throughput") is not None]
    energy = any(timing.get("energy_mj") is not None for _, timing in timings)
    rows = tuple(_memory_row(name, timing, energy) for name, timing in timings)
    return Table((*columns, *(("energy a sample",) if energy else ())), rows) if rows else None


def placement_table(report: Report) -> Table | None:
    """One row for each variant and provider asked for: which providers run how many nodes, and the copies between."""
    seen: dict[tuple[str, str], Mapping[str, Any]] = {}
    for variant in report["variants"]:
        for timing in variant["latency"]:
            if timing.get("placement"):
                seen.setdefault((variant["name"], timing["provider"]), timing)
    rows = tuple(_placement_row(name, timing) for (name, _), timing in seen.items())
    return Table(("variant", "asked for", "nodes", "copies", "precision", "operators"), rows) if rows else None


def _memory_row(name: str, timing: Mapping[str, Any], energy: bool) -> tuple[str, ...]:
    figures = (
        f"{fmt.count(round(timing['throughput']))} a second",
        fmt.duration(timing.get("load_ms")),
        fmt.size(timing.get("peak_bytes")),
    )
    used = timing.get("energy_mj")
    last = () if not energy else (fmt.NOTHING if used is None else f"{used:.3g} mJ",)
    where = (_provider(timing["provider"]), fmt.count(timing["batch"]), fmt.count(timing["threads"]))
    return (name, *where, *figures, *last)


def _placement_row(name: str, timing: Mapping[str, Any]) -> tuple[str, ...]:
    placement = timing["placement"]
    nodes = ", ".join(f"{count} on {_provider(provider)}" for provider, count in placement["nodes"].items())
    operators = ", ".join(
        f"{count} {operator}" for found in placement["by_operator"].values() for operator, count in found.items()
    )
    precision = timing.get("precision") or fmt.NOTHING
    return (name, _provider(timing["provider"]), nodes, fmt.count(placement["copies"]), precision, operators)


def _provider(name: str) -> str:
    return name.removesuffix("ExecutionProvider")


def _mark(report: Report, rows: list[tuple[str, ...]]) -> int | None:
    return next((i for i, row in enumerate(rows) if row[0] == report["shipped"]), None)
