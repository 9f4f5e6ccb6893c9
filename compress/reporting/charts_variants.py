"""Charts of a run's variants: what each stage bought, how their latencies spread, and how near the limit they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from compress.reporting import charts
from compress.reporting import format as fmt
from compress.reporting.charts import AXIS, WIDTH, Chart, Mark, Row, Scale, Segment
from compress.reporting.summary import Entry, main_latency, significant

Report = Mapping[str, Any]

SPREAD = 8.0  # latencies that differ by more than this factor are drawn on a logarithmic axis


def journey_charts(report: Report) -> tuple[Chart, ...]:
    """What each stage changed in bytes, milliseconds and points of accuracy; empty where only the original is left."""
    steps = report.get("journey") or ()
    if len(steps) < 2:
        return ()
    drawn = [
        _falls("journey-bytes", "Zipped size", steps, "zip_bytes", fmt.size),
        _falls("journey-latency", "Latency, p50", steps, "p50_ms", fmt.duration),
        _points(report, steps),
    ]
    return tuple(chart for chart in drawn if chart is not None)


def latency_charts(report: Report) -> tuple[Chart, ...]:
    """Where each variant's calls lie, and the whole distribution of the original and of what ships."""
    timed = _timed(report)
    if not timed or any(not timing.get("quantiles_ms") for _, timing in timed):
        return ()
    spread, curves = _spread(report, timed), _distribution(report, timed)
    return (spread, curves) if curves is not None else (spread,)


def limit_chart(report: Report) -> Chart | None:
    """The roofline time of each variant under its measured p50."""
    entries = [
        (variant, variant["limit"], timing)
        for variant, timing in _timed(report)
        if variant.get("limit") and timing["p50_ms"]
    ]
    if not entries:
        return None
    longest = max(max(timing["p50_ms"], limit["roofline_ms"]) for _, limit, timing in entries)
    scale = Scale(0, longest, 0, WIDTH)
    rows = [_limit_row(variant, limit, timing, report["shipped"]) for variant, limit, timing in entries]
    body, height = charts.rows_of_bars(rows, scale, track=False)
    key = (("c1", "computing"), ("c2", "memory"), ("c3", "overhead"), ("quiet", "measured p50"))
    figures = "; ".join(
        f"{row.label}: {fmt.duration(limit['roofline_ms'])} at least (computing {fmt.duration(limit['compute_ms'])}, "
        f"memory {fmt.duration(limit['memory_ms'])}, overhead {fmt.duration(limit['overhead_ms'])}), {row.text}"
        for row, (_, limit, _) in zip(rows, entries, strict=True)
    )
    return Chart("limit", f"Least time this processor needs: {_where(report)}", figures, height, body, key)


def _falls(
    name: str, title: str, steps: Sequence[Mapping[str, Any]], key: str, told: Callable[[Any], str]
) -> Chart | None:
    values = [step[key] for step in steps]
    if any(value is None for value in values):
        return None
    scale = Scale(0, max(values), 0, WIDTH)
    rows = [Row("original", told(values[0]), (Segment(0, values[0], "quiet"),))]
    for index, (before, after) in enumerate(pairwise(values), 1):
        last = index == len(values) - 1
        changed = ("saved", after, before) if after <= before else ("worse", before, after)
        segments = (Segment(0, min(before, after), "accent" if last else "quiet"), Segment(*changed[1:], changed[0]))
        text = f"{told(after)}, {_change(before, after)}"
        rows.append(Row(steps[index]["stage"], text, segments, shipped=last))
    body, height = charts.rows_of_bars(rows, scale, track=False)
    return Chart(name, title, _told_steps(rows, steps), height, body)


def _points(report: Report, steps: Sequence[Mapping[str, Any]]) -> Chart | None:
    if any(step["figure"] is None for step in steps):
        return None
    verdict, first = report["verdict"], steps[0]["figure"]
    values = [step["figure"] - first for step in steps]
    low, high = min(-verdict["max_drop"], *values), max(verdict["max_drop"] / 4, *values)
    room = 0.06 * (high - low)
    scale = Scale(low - room, high + room, 0, WIDTH)
    rows = []
    for index, value in enumerate(values):
        last, before = index == len(values) - 1, values[max(0, index - 1)]
        moved = () if value == before else (Segment(before, value, "saved" if value > before else "worse", 6),)
        mark = Mark(value, "dot", "accent" if last else "quiet")
        shown = fmt.fraction(first) if index == 0 else f"{_signed(value)} points"
        rows.append(Row(steps[index]["stage"] if index else "original", shown, moved, (mark,), last))
    body, height = charts.rows_of_bars(rows, scale, track=False)
    allowed = scale(-verdict["max_drop"])
    rules = [
        charts.line(x, index * charts.ROW + 16, x, index * charts.ROW + 32, style)
        for x, style in ((scale(0), "axis"), (allowed, "budget"))
        for index in range(len(rows))
    ]
    names = (
        charts.text(max(allowed, 24), height + 8, "allowed", "middle", "dim"),
        charts.text(min(scale(0), WIDTH - 24), height + 8, "original", "middle", "dim"),
    )
    title = f"{verdict['measured_in'].capitalize()} on test, against the original"
    figures = f"{_told_steps(rows, steps)}; a drop of {_signed(-verdict['max_drop'])} points is allowed"
    return Chart("journey-points", title, figures, height + 12, charts.join((*rules, *names, body)))


def _spread(report: Report, timed: Sequence[tuple[Entry, Mapping[str, Any]]]) -> Chart:
    """A row a variant: the middle half of its calls as a bar, 5 % to 95 % as a line, p50 as a tick, p99 as a ring."""
    scale = _milliseconds([timing["quantiles_ms"] for _, timing in timed], 3, WIDTH - 5)
    baseline = report["variants"][0]["name"]
    rows = []
    for variant, timing in timed:
        q, ships = timing["quantiles_ms"], variant["name"] == report["shipped"]
        colour = "accent" if ships else "quiet"
        segments = (Segment(q[5], q[95], colour, 2), Segment(q[25], q[75], colour, 10))
        marks = (Mark(q[99], "ring", f"hollow-{colour}"), Mark(timing["p50_ms"], "tick", "ink"))
        gain = None if variant["name"] == baseline else timing.get("speedup")
        told = f"{fmt.duration(timing['p50_ms'])}{_gain(gain)}"
        rows.append(Row(variant["name"], told, segments, marks, ships))
    body, height = charts.rows_of_bars(rows, scale, track=False)
    axis = _time_axis(scale, 0, height)
    note = "bar 25–75 %, line 5–95 %, tick p50, ring p99"
    drawn = charts.join((axis, body))
    return Chart("latency-spread", f"Latency, {_where(report)}", _told(rows), height + AXIS, drawn, note=note)


def _distribution(report: Report, timed: Sequence[tuple[Entry, Mapping[str, Any]]]) -> Chart | None:
    """The share of calls that took at most so long, of the original and of what ships."""
    wanted = {report["variants"][0]["name"]: "quiet-line", report["shipped"]: "accent-line"}
    found = [(v["name"], t["quantiles_ms"]) for v, t in timed if v["name"] in wanted]
    if not found:
        return None
    left, top, bottom = 40.0, 8.0, 190.0
    scale = _milliseconds([q for _, q in found], left, WIDTH - 8)
    height = Scale(0, 1, bottom, top)
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    parts = [charts.upward(height, left, WIDTH, [f"{t:.0%}" for t in ticks], ticks), _time_axis(scale, top, bottom)]
    for name, q in found:
        kept = [(scale(value), height(share / 100)) for share, value in enumerate(q) if value <= scale.high]
        parts.append(charts.polyline(kept, wanted[name]))
    told = "; ".join(
        f"{name}: " + ", ".join(f"{share} % within {fmt.duration(q[share])}" for share in (5, 25, 50, 75, 95, 99))
        for name, q in found
    )
    title, key = (
        "Share of calls that took at most so long",
        tuple((wanted[name].removesuffix("-line"), name) for name, _ in found),
    )
    return Chart("latency-distribution", title, told, bottom + AXIS, charts.join(parts), key, note="to p99")


def _limit_row(variant: Entry, limit: Mapping[str, Any], timing: Mapping[str, Any], shipped: str) -> Row:
    ends = [0.0]
    for kind in ("compute", "memory", "overhead"):
        ends.append(ends[-1] + limit[f"{kind}_ms"])
    parts = [Segment(a, b, colour) for (a, b), colour in zip(pairwise(ends), ("c1", "c2", "c3"), strict=True) if a < b]
    reached = limit["reached"] if limit["reached"] is not None else limit["roofline_ms"] / timing["p50_ms"]
    told = f"{100 * reached:.0f} % of {fmt.duration(timing['p50_ms'])}, {limit['bound']}"
    segments = (Segment(0, timing["p50_ms"], "quiet", 3), *parts)
    return Row(variant["name"], told, segments, shipped=variant["name"] == shipped)


def _timed(report: Report) -> list[tuple[Entry, Mapping[str, Any]]]:
    """Each variant with its timing on the first provider, threads and batch that the baseline ran on."""
    position = main_latency(report["variants"])
    if position is None:
        return []
    pairs = [(variant, variant["latency"][position]) for variant in report["variants"]]
    return [(variant, timing) for variant, timing in pairs if timing["p50_ms"] is not None]


def _where(report: Report) -> str:
    position = main_latency(report["variants"])
    timing = report["variants"][0]["latency"][position]
    threads = f"{timing['threads']} thread{'s' if timing['threads'] != 1 else ''}"
    return f"{timing['provider'].removesuffix('ExecutionProvider')}, batch {timing['batch']}, {threads}"


def _milliseconds(quantiles: Sequence[Sequence[float]], start: float, end: float) -> Scale:
    low, high = min(q[1] for q in quantiles), max(q[99] for q in quantiles)
    if high <= low:
        low, high = 0.9 * low, 1.1 * low + 1e-6
    if low > 0 and high / low > SPREAD:
        return Scale(low / 1.1, high * 1.1, start, end, logarithmic=True)
    room = 0.03 * (high - low)
    return Scale(max(0.0, low - room), high + room, start, end)


def _time_axis(scale: Scale, top: float, bottom: float) -> Markup:
    ticks = scale.ticks()
    typical = scale.middle
    unit, factor = ("µs", 1e3) if typical < 1 else ("ms", 1.0) if typical < 1000 else ("s", 1e-3)
    labels = charts.plain_ticks([tick * factor for tick in ticks])
    if scale.logarithmic:
        labels = [f"{tick * factor:g}" for tick in ticks]
    title = f"{unit} a call{', logarithmic' if scale.logarithmic else ''}"
    return charts.across(scale, top, bottom, labels, ticks, title)


def _change(before: float, after: float) -> str:
    if not before:
        return fmt.NOTHING
    share = round(100 * (after / before - 1))
    return f"{'+' if share > 0 else '−' if share < 0 else '±'}{abs(share)} %"


def _signed(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    shown = f"{abs(100 * value):.2f}"
    return shown if shown == "0.00" else f"{'+' if value > 0 else '−'}{shown}"


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    if not significant(gain):
        return ", not significant"
    return f", {fmt.ratio(gain['value'])}"


def _told(rows: Sequence[Row]) -> str:
    return "; ".join(f"{row.label} {row.text}" for row in rows)


def _told_steps(rows: Sequence[Row], steps: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{row.label} ({step['variant']}) {row.text}" for row, step in zip(rows, steps, strict=True))
