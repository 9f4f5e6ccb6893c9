"""The other tables, from the plain dict of report.json: for Markdown, HTML and console alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.reporting import format as fmt
from compress.reporting.summary import (
    Entry,
    Table,
    answer_of,
    answer_text,
    drop_words,
    main_latency,
    shipped_bytes,
    shipped_entry,
    size_words,
    speedup_words,
)

Report = Mapping[str, Any]


def key_table(report: Report) -> Table:
    """The original beside what ships: bytes, latency, answers, each with its interval and what became of it."""
    baseline, shipped = report["variants"][0], shipped_entry(report)
    rows = (_size_row(report, baseline), *_latency_rows(report, shipped), _answers_row(report, shipped))
    return Table(("", "original", "ships", "change [95 %]"), rows)


def class_name(report: Report, label: int | str | None) -> str:
    """A class as the data names it, or its number."""
    names = report["data"].get("class_names") or ()
    if isinstance(label, int) and 0 <= label < len(names):
        return str(names[label])
    return fmt.NOTHING if label is None else str(label)


def class_table(report: Report, most: int = 10) -> Table | None:
    """The classes that lost most of what ships, the largest loss first; None where they were not told apart."""
    found = sorted(shipped_entry(report).get("classes") or (), key=lambda one: -one["drop"])
    rows = tuple(
        (
            class_name(report, one["label"]),
            fmt.count(one["n"]),
            fmt.fraction(one["baseline"]),
            fmt.fraction(one["accuracy"]),
            fmt.fraction(one["drop"]),
        )
        for one in found[:most]
    )
    return Table(("class", "samples", "original", "ships", "drop"), rows) if rows else None


def changed_table(report: Report) -> Table | None:
    """The test samples whose answers changed most; None where none did."""
    rows = tuple(
        (
            str(one["index"]),
            class_name(report, one["label"]),
            f"{class_name(report, one['before'])} ({fmt.percent(one['before_probability'])})",
            f"{class_name(report, one['after'])} ({fmt.percent(one['after_probability'])})",
            _fate(one),
        )
        for one in report.get("changed") or ()
    )
    return Table(("sample", "label", "original says", "what ships says", ""), rows) if rows else None


def limit_table(report: Report) -> Table | None:
    """How near each variant's latency comes to what this machine allows; None where that was not measured."""
    rows: list[tuple[str, ...]] = []
    number = main_latency(report["variants"])
    for variant in report["variants"]:
        limit = variant.get("limit")
        if limit is None:
            continue
        parts = (limit[f"{part}_ms"] for part in ("compute", "memory", "overhead", "roofline"))
        p50 = None if number is None else variant["latency"][number]["p50_ms"]
        reached = fmt.percent(limit["reached"])
        rows.append((variant["name"], *map(fmt.duration, parts), fmt.duration(p50), reached, limit["bound"]))
    columns = ("variant", "computing", "memory", "overhead", "at best", "p50", "of the limit", "bound by")
    return Table(columns, tuple(rows), _mark(report, rows)) if rows else None


def journey_table(report: Report) -> Table | None:
    """What each step on the way to what ships bought; None for a report of before it was recorded."""
    steps = report.get("journey") or ()
    spans = _p50_intervals(report)
    rows = tuple(_step_row(before, step, spans) for before, step in zip((None, *steps), steps, strict=False))
    columns = ("stage", "variant", "zipped", "p50", report["verdict"]["measured_in"])
    return Table(columns, rows) if rows else None


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
        f"{fmt.provider(provider)}, {'all variants' if len(names) == every else ', '.join(names)}: {reason}"
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


def _p50_intervals(report: Report) -> dict[str, Mapping[str, float] | None]:
    number = main_latency(report["variants"])
    if number is None:
        return {}
    return {variant["name"]: variant["latency"][number].get("p50_interval") for variant in report["variants"]}


def _step_row(
    before: Mapping[str, Any] | None, step: Mapping[str, Any], spans: Mapping[str, Mapping[str, float] | None]
) -> tuple[str, ...]:
    zipped, p50, figure = fmt.size(step["zip_bytes"]), fmt.duration(step["p50_ms"]), fmt.fraction(step["figure"])
    if before is None:
        return step["stage"], step["variant"], zipped, p50, figure
    if before["p50_ms"] and step["p50_ms"]:
        ours, theirs = spans.get(step["variant"]), spans.get(before["variant"])
        apart = not ours or not theirs or ours["low"] > theirs["high"] or ours["high"] < theirs["low"]
        p50 += f" ({fmt.ratio(before['p50_ms'] / step['p50_ms'])}{'' if apart else ', not significant'})"
    zipped += f" ({fmt.ratio(before['zip_bytes'] / step['zip_bytes'])})"
    return step["stage"], step["variant"], zipped, p50, f"{figure} ({fmt.signed(step['figure'] - before['figure'])})"


def _size_row(report: Report, baseline: Entry) -> tuple[str, ...]:
    before = f"{fmt.size(baseline['raw_bytes'])} ({fmt.size(baseline['zip_bytes'])} zipped)"
    return (
        "download",
        before,
        f"{fmt.size(shipped_bytes(report))} zipped",
        size_words(report["verdict"]["zip_ratio"]),
    )


def _latency_rows(report: Report, shipped: Entry) -> tuple[tuple[str, ...], ...]:
    number = main_latency(report["variants"])
    if number is None:
        return ()
    theirs, ours = (variant["latency"][number] for variant in (report["variants"][0], shipped))
    where = f"p50 ({fmt.provider(theirs['provider'])}, batch {theirs['batch']}, {_threads(theirs)})"
    return (
        (where, _latency_text(theirs), _latency_text(ours), speedup_words(None if ours is theirs else ours["speedup"])),
    )


def _latency_text(timing: Mapping[str, Any]) -> str:
    known = timing.get("p50_interval")
    return fmt.duration(timing["p50_ms"]) + (
        "" if known is None else f" [{fmt.span(fmt.duration(known['low']), fmt.duration(known['high']))}]"
    )


def _threads(timing: Mapping[str, Any]) -> str:
    return "1 thread" if timing["threads"] == 1 else f"{timing['threads']} threads"


def _answers_row(report: Report, shipped: Entry) -> tuple[str, ...]:
    verdict = report["verdict"]
    name = verdict["measured_in"]
    before, after = (answer_text(answer_of(variant, name)) for variant in (report["variants"][0], shipped))
    return f"{name} (n = {fmt.count(report['data']['test'])})", before, after, drop_words(verdict)


def _fate(one: Mapping[str, Any]) -> str:
    """What became of an answer, where its label tells."""
    if one["label"] is None:
        return ""
    right, now = (one[key] == one["label"] for key in ("before", "after"))
    return {(True, False): "was right", (False, True): "now right"}.get((right, now), "wrong before and after")


def _memory_row(name: str, timing: Mapping[str, Any], energy: bool) -> tuple[str, ...]:
    figures = (
        f"{fmt.count(round(timing['throughput']))} a second",
        fmt.duration(timing.get("load_ms")),
        fmt.size(timing.get("peak_bytes")),
    )
    used = timing.get("energy_mj")
    last = () if not energy else (fmt.NOTHING if used is None else f"{used:.3g} mJ",)
    where = (fmt.provider(timing["provider"]), fmt.count(timing["batch"]), fmt.count(timing["threads"]))
    return (name, *where, *figures, *last)


def _placement_row(name: str, timing: Mapping[str, Any]) -> tuple[str, ...]:
    placement = timing["placement"]
    nodes = ", ".join(f"{count} on {fmt.provider(provider)}" for provider, count in placement["nodes"].items())
    operators = ", ".join(
        f"{count} {operator}" for found in placement["by_operator"].values() for operator, count in found.items()
    )
    precision = timing.get("precision") or fmt.NOTHING
    return (name, fmt.provider(timing["provider"]), nodes, fmt.count(placement["copies"]), precision, operators)


def _mark(report: Report, rows: list[tuple[str, ...]]) -> int | None:
    return next((i for i, row in enumerate(rows) if row[0] == report["shipped"]), None)
