"""Every variant tried, as what it costs against what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from compress.reporting import charts
from compress.reporting import format as fmt
from compress.reporting.charts import AXIS, WIDTH, Chart, Interval, Scale
from compress.reporting.summary import Entry, answer_of, main_latency

Report = Mapping[str, Any]
Box = tuple[float, float, float, float]  # left, top, right, bottom

LEFT, TOP, BOTTOM = 46.0, 10.0, 220.0
LOWEST = "lowest allowed"
FAR = 5.0  # budgets below the original from which on a variant is drawn at the chart's lower edge


@dataclass(frozen=True)
class Point:
    """A variant in the chart."""

    number: int  # its row in the table of variants, from 1
    name: str
    x: float
    y: float
    x_range: Interval | None
    y_range: Interval | None
    told: str
    style: str  # accent, baseline, quiet


def pareto_charts(report: Report) -> tuple[Chart, ...]:
    """Zipped size and latency against accuracy (fidelity, metric), a point a variant with its 95 % intervals."""
    variants = report["variants"]
    position = main_latency(variants)
    sizes = [_point(report, i, variant, variant["zip_bytes"], None, fmt.size) for i, variant in enumerate(variants)]
    drawn = [_chart(report, "pareto-size", "zipped size", sizes)]
    if position is not None:
        timed = [(i, variant, variant["latency"][position]) for i, variant in enumerate(variants)]
        points = [
            _point(report, i, variant, timing["p50_ms"], _range(timing.get("p50_interval")), fmt.duration)
            for i, variant, timing in timed
            if timing["p50_ms"] is not None
        ]
        drawn.append(_chart(report, "pareto-latency", "latency, p50", points))
    return tuple(drawn)


def _point(report: Report, index: int, variant: Entry, x: float, x_range: Interval | None, told: Any) -> Point:
    answer = answer_of(variant, report["verdict"]["measured_in"])
    style = "accent" if variant["name"] == report["shipped"] else "baseline" if index == 0 else "quiet"
    text = f"{index + 1} {variant['name']}: {told(x)}, {fmt.fraction(answer['value'])}"
    return Point(index + 1, variant["name"], x, answer["value"], x_range, _range(answer), text, style)


def _range(value: Mapping[str, Any] | None) -> Interval | None:
    return None if value is None or value["low"] is None else (value["low"], value["high"])


def _chart(report: Report, name: str, what: str, points: Sequence[Point]) -> Chart:
    measured, budget = report["verdict"]["measured_in"], report["verdict"]["max_drop"]
    across, upward, floor = _across(points), *_upward(points, budget)
    parts = [
        _axes(across, upward, what),
        _budget(across, upward, answer_of(report["variants"][0], measured)["value"], budget),
    ]
    parts.append(charts.polyline(_front(points, across, upward, floor), "front"))
    shown = sorted(points, key=lambda point: (point.style != "quiet", point.style == "accent"))  # the last is on top
    parts.extend(_drawn(point, across, upward, floor) for point in shown)
    parts.append(_labels(points, across, upward, floor, upward(points[0].y - budget)))
    told = "; ".join(point.told for point in points)
    title = f"{measured.capitalize()} on test against {what}"
    note = "bars 95 % intervals; dotted: no other is better in both"
    return Chart(name, title, told, BOTTOM + AXIS, charts.join(parts), note=note)


def _across(points: Sequence[Point]) -> Scale:
    low = min(point.x_range[0] if point.x_range else point.x for point in points)
    high = max(point.x_range[1] if point.x_range else point.x for point in points)
    far = low > 0 and high / low > 4
    room = (high / low) ** 0.06 if far else 0.06 * (high - low) or 0.1 * high
    low, high = (low / room, high * room) if far else (max(0.0, low - room), high + room)
    return Scale(low, high, LEFT, WIDTH - 6, logarithmic=far)


def _upward(points: Sequence[Point], budget: float) -> tuple[Scale, float]:
    """The scale of answers, and the value below which a point is drawn at the lower edge."""
    first = points[0].y
    floor = min(first - budget, *(p.y for p in points if p.y >= first - FAR * budget - 0.02))
    values = [p for p in points if p.y >= floor]
    low = min([floor, *(p.y_range[0] for p in values if p.y_range)])
    high = max(p.y_range[1] if p.y_range else p.y for p in values)
    room = 0.08 * (high - low) or 0.01
    return Scale(low - room, high + room, BOTTOM, TOP), floor


def _axes(across: Scale, upward: Scale, what: str) -> Markup:
    heights, ticks = upward.ticks(), across.ticks()
    typical = across.middle
    unit, factor = ("µs", 1e3) if typical < 1 else ("ms", 1.0) if typical < 1000 else ("s", 1e-3)
    if what == "zipped size":
        unit, factor = ("MB", 1e-6) if typical >= 1e6 else ("KB", 1e-3) if typical >= 1e3 else ("B", 1.0)
    values = [tick * factor for tick in ticks]
    labels = [f"{value:g}" for value in values] if across.logarithmic else charts.plain_ticks(values)
    title = f"{what}, {unit}{', logarithmic' if across.logarithmic else ''}"
    return charts.join(
        (
            charts.upward(upward, LEFT, WIDTH, charts.plain_ticks(heights), heights),
            charts.across(across, TOP, BOTTOM, labels, ticks, title),
        )
    )


def _budget(across: Scale, upward: Scale, first: float, budget: float) -> Markup:
    y = upward(first - budget)
    rule = charts.line(LEFT, y, WIDTH, y, "budget")
    return charts.join((rule, charts.text(WIDTH, y + 12, LOWEST, "end", "halo dim")))


def _front(points: Sequence[Point], across: Scale, upward: Scale, floor: float) -> list[tuple[float, float]]:
    """The stairs through the variants that none other beats in both."""
    best: list[Point] = []
    for point in sorted((p for p in points if p.y >= floor), key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    stairs: list[tuple[float, float]] = []
    for point in best:
        here = across(point.x), upward(point.y)
        stairs.extend(((here[0], stairs[-1][1]), here) if stairs else (here,))
    return stairs


def _drawn(point: Point, across: Scale, upward: Scale, floor: float) -> Markup:
    x = across(point.x)
    if point.y < floor:
        corners = ((x - 4, BOTTOM - 8), (x + 4, BOTTOM - 8), (x, BOTTOM - 1))
        return charts.area(corners, point.style)
    y, parts = upward(point.y), []
    if point.y_range:
        parts.append(
            charts.line(x, upward(point.y_range[0]), x, upward(point.y_range[1]), f"range {point.style}-range")
        )
    if point.x_range:
        parts.append(
            charts.line(across(point.x_range[0]), y, across(point.x_range[1]), y, f"range {point.style}-range")
        )
    parts.append(charts.circle(x, y, 5.5 if point.style == "accent" else 4, point.style, point.told))
    return charts.join(parts)


def _labels(points: Sequence[Point], across: Scale, upward: Scale, floor: float, lowest: float) -> Markup:
    """Names of the original and of what ships, numbers of the others; what finds no free place is left to the table."""
    spots = {p.number: (across(p.x), upward(p.y) if p.y >= floor else BOTTOM - 6) for p in points}
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots.values()]
    taken.append((WIDTH - len(LOWEST) * charts.LETTER, lowest, WIDTH, lowest + 16))
    bars = [bar for point in points if point.y >= floor for bar in _bars(point, across, upward)]
    parts = []
    for point in sorted(points, key=lambda p: (p.style == "quiet", p.number)):
        label, letter, style = _label(point, floor)
        places = list(_places(*spots[point.number], letter * len(label)))
        clear = [place for place in places if _free(place[3], taken)]
        best = next((place for place in clear if _free(place[3], bars)), clear[0] if clear else None)
        if best is not None:
            x, y, anchor, box = best
            taken.append(box)
            parts.append(charts.text(x, y, label, anchor, style))
    return charts.join(parts)


def _label(point: Point, floor: float) -> tuple[str, float, str]:
    """Its text, the width of a letter, and its style."""
    letter = charts.BOLD if point.style == "accent" else charts.LETTER
    label = str(point.number) if point.style == "quiet" else charts.fitting(point.name, "", 180, letter)
    if point.y < floor:
        label = f"{label} ({point.y:.3f})"
    return label, letter, {"accent": "halo strong", "baseline": "halo"}.get(point.style, "halo dim")


def _bars(point: Point, across: Scale, upward: Scale) -> Iterable[Box]:
    """The intervals of a point, which text had better not cross."""
    x, y = across(point.x), upward(point.y)
    if point.y_range:
        yield x - 1, upward(point.y_range[1]), x + 1, upward(point.y_range[0])
    if point.x_range:
        yield across(point.x_range[0]), y - 1, across(point.x_range[1]), y + 1


def _places(x: float, y: float, width: float) -> Iterable[tuple[float, float, str, Box]]:
    """Where the text of a point at (x, y) could stand, the best place first."""
    for dx, dy, anchor in (
        (8, 4, "start"), (-8, 4, "end"), (0, -9, "middle"), (0, 17, "middle"),
        (7, -6, "start"), (7, 14, "start"), (-7, -6, "end"), (-7, 14, "end"),
        (8, -18, "start"), (8, 26, "start"), (-8, -18, "end"), (-8, 26, "end"),
    ):  # fmt: skip
        left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        yield x + dx, y + dy, anchor, (left, y + dy - 9, left + width, y + dy + 2)


def _free(box: Box, taken: Sequence[Box]) -> bool:
    left, top, right, bottom = box
    if left < LEFT or right > WIDTH or top < 0 or bottom > BOTTOM:
        return False
    return all(right <= a or c <= left or bottom <= b or d <= top for a, b, c, d in taken)
