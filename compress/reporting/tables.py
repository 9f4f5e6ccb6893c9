"""Tables about what ships, from the plain dict of report.json: for Markdown, HTML and console alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.reporting import format as fmt
from compress.reporting.summary import (
    Entry,
    Table,
    answer_of,
    answer_text,
    main_latency,
    signed_interval,
    significant,
    speedup_text,
)

Report = Mapping[str, Any]


def shipped_entry(report: Report) -> Entry:
    """The variant that ships."""
    entry: Entry = next(variant for variant in report["variants"] if variant["name"] == report["shipped"])
    return entry


def key_table(report: Report) -> Table:
    """The original beside what ships: bytes, latency, answers, each with its interval and what became of it."""
    baseline, shipped = report["variants"][0], shipped_entry(report)
    rows = (_size_row(report, baseline, shipped), *_latency_rows(report, shipped), _answers_row(report, shipped))
    return Table(("", "original", "ships", "change [95 %]"), rows)


def class_table(report: Report, most: int = 10) -> Table | None:
    """The classes that lost most of what ships, the largest loss first; None where they were not told apart."""
    found = sorted(shipped_entry(report).get("classes") or (), key=lambda one: -one["drop"])
    rows = tuple(
        (
            str(one["label"]),
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
            fmt.NOTHING if one["label"] is None else str(one["label"]),
            f"{one['before']} ({fmt.percent(one['before_probability'])})",
            f"{one['after']} ({fmt.percent(one['after_probability'])})",
            _fate(one),
        )
        for one in report.get("changed") or ()
    )
    return Table(("sample", "label", "original says", "what ships says", ""), rows) if rows else None


def limit_table(report: Report) -> Table | None:
    """How near each variant's latency comes to what this machine allows; None where that was not measured."""
    rows: list[tuple[str, ...]] = []
    mark = None
    number = main_latency(report["variants"])
    for variant in report["variants"]:
        limit = variant.get("limit")
        if limit is None:
            continue
        mark = len(rows) if variant["name"] == report["shipped"] else mark
        parts = (limit[f"{part}_ms"] for part in ("compute", "memory", "overhead", "roofline"))
        p50 = None if number is None else variant["latency"][number]["p50_ms"]
        reached = fmt.percent(limit["reached"])
        rows.append((variant["name"], *map(fmt.duration, parts), fmt.duration(p50), reached, limit["bound"]))
    columns = ("variant", "computing", "memory", "overhead", "at best", "p50", "of the limit", "bound by")
    return Table(columns, tuple(rows), mark) if rows else None


def journey_table(report: Report) -> Table | None:
    """What each step on the way to what ships bought; None for a report of before it was recorded."""
    steps = report.get("journey") or ()
    spans = _p50_intervals(report)
    rows = tuple(_step_row(before, step, spans) for before, step in zip((None, *steps), steps, strict=False))
    columns = ("stage", "variant", "zipped", "p50", report["verdict"]["measured_in"])
    return Table(columns, rows) if rows else None


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
    return step["stage"], step["variant"], zipped, p50, f"{figure} ({step['figure'] - before['figure']:+.4f})"


def _size_row(report: Report, baseline: Entry, shipped: Entry) -> tuple[str, ...]:
    zipped = report.get("shipped_zip_bytes") or shipped["zip_bytes"]
    before = f"{fmt.size(baseline['raw_bytes'])} ({fmt.size(baseline['zip_bytes'])} zipped)"
    return "download", before, f"{fmt.size(zipped)} zipped", f"{fmt.ratio(report['verdict']['zip_ratio'])} smaller"


def _latency_rows(report: Report, shipped: Entry) -> tuple[tuple[str, ...], ...]:
    number = main_latency(report["variants"])
    if number is None:
        return ()
    theirs, ours = (variant["latency"][number] for variant in (report["variants"][0], shipped))
    where = f"p50 ({theirs['provider'].removesuffix('ExecutionProvider')}, batch {theirs['batch']}, {_threads(theirs)})"
    return ((where, _latency_text(theirs), _latency_text(ours), _speedup_words(ours, ours is theirs)),)


def _speedup_words(timing: Mapping[str, Any], is_baseline: bool) -> str:
    gain = timing["speedup"]
    if gain is None or is_baseline:
        return fmt.NOTHING
    if not significant(gain):
        return f"no significant difference: {speedup_text({**gain, 'significant': True})}"
    return f"{speedup_text(gain)} {'faster' if gain['value'] > 1 else 'as fast: slower'}"


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
    return f"{name} (n = {fmt.count(report['data']['test'])})", before, after, _drop_words(verdict)


def _drop_words(verdict: Mapping[str, Any]) -> str:
    known = verdict.get("drop_interval")
    told = f"drop {fmt.fraction(verdict['drop'])}"
    if known is not None:
        nothing = known["low"] <= 0 <= known["high"]
        told += f" [{signed_interval(known)}]{', no significant difference' if nothing else ''}"
    return f"{told}; {fmt.fraction(verdict['max_drop'])} allowed"


def _fate(one: Mapping[str, Any]) -> str:
    """What became of an answer, where its label tells."""
    if one["label"] is None:
        return ""
    right, now = (one[key] == one["label"] for key in ("before", "after"))
    return {(True, False): "was right", (False, True): "now right"}.get((right, now), "wrong before and after")
