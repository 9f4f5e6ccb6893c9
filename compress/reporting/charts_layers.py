"""Charts of the model's inside: bytes, widths and weights of each layer, and how much each layer can lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from compress.reporting import charts
from compress.reporting import format as fmt
from compress.reporting.charts import WIDTH, Chart, Mark, Row, Scale, Segment
from compress.reporting.plots import short
from compress.reporting.tables import class_name
from compress.reporting.weights import layer_entries

Report = Mapping[str, Any]

SHOWN = 20  # rows of a chart; those after them are folded away
FOLDED = 180  # rows that are folded away at most: a report stays a page
PANELS = 12  # layers with a histogram of their own
LABELS, FIGURES = 146.0, 104.0  # widths that the names and the figures of dense rows take
STEPS = (0.002, 0.01, 0.02, 0.05, 0.1)  # drops at which the heat map changes its colour


@dataclass(frozen=True)
class Folded:
    """A chart of the rows that matter most, and one of the rows after them."""

    chart: Chart
    rest: Chart | None  # behind a line to open
    more: str  # that line


def kinds_chart(report: Report) -> Chart | None:
    """What a file's bytes are, of the original and of what ships."""
    shown = [v for v in _ends(report) if v.get("sizes")]
    if not shown:
        return None
    longest = max(sum(v["sizes"]["by_kind"].values()) for v in shown)
    rows = []
    for variant in shown:
        kinds = variant["sizes"]["by_kind"]
        ends = [0.0]
        for kind in ("weights", "graph", "metadata"):
            ends.append(ends[-1] + kinds.get(kind, 0))
        parts = [Segment(a, b, colour) for (a, b), colour in zip(pairwise(ends), ("c1", "c2", "c3"), strict=True)]
        rows.append(
            Row(variant["name"], fmt.size(int(ends[-1])), tuple(parts), shipped=variant["name"] == report["shipped"])
        )
    body, height = charts.rows_of_bars(rows, Scale(0, longest, 0, WIDTH), track=False)
    figures = "; ".join(
        f"{variant['name']}: "
        + ", ".join(f"{kind} {fmt.size(size)}" for kind, size in variant["sizes"]["by_kind"].items())
        for variant in shown
    )
    key = (("c1", "weights"), ("c2", "graph"), ("c3", "metadata"))
    return Chart("size-kinds", "Bytes of the file, by kind", figures, height, body, key)


def forms_chart(report: Report) -> Chart | None:
    """What ships as it is, compressed in three ways, and the entropy of its weights as the floor."""
    sizes = _shipped(report).get("sizes")
    if not sizes:
        return None
    forms = (
        ("as it is", "raw"),
        ("gzip", "gzip"),
        ("zip, deflate 9", "zip"),
        ("zstd", "zstd"),
        ("entropy of the weights", "entropy"),
    )
    found = [(label, sizes[f"{key}_bytes"], key) for label, key in forms if sizes.get(f"{key}_bytes") is not None]
    rows = [
        Row(label, fmt.size(size), (Segment(0, size, "accent" if key == "zip" else "quiet"),), shipped=key == "zip")
        for label, size, key in found
    ]
    body, height = charts.rows_of_bars(rows, Scale(0, max(size for _, size, _ in found), 0, WIDTH))
    figures = "; ".join(f"{row.label} {row.text}" for row in rows)
    return Chart("size-forms", "What ships, compressed", figures, height, body)


def bytes_chart(report: Report) -> Folded | None:
    """Zipped bytes of each layer of what ships, the largest first, with the entropy of its weights as a tick."""
    sizes = _shipped(report).get("sizes")
    layers = sorted((sizes or {}).get("by_layer") or (), key=lambda layer: -layer["zip_bytes"])
    if not layers:
        return None
    longest = max(layer["zip_bytes"] for layer in layers) or 1
    rows = []
    for layer in layers:
        floor = layer.get("entropy_bytes")
        marks = () if floor is None else (Mark(min(1.0, floor / longest), "tick", "ink"),)
        rows.append(
            Row(
                layer["name"],
                fmt.size(layer["zip_bytes"]),
                (Segment(0, layer["zip_bytes"] / longest, "accent"),),
                marks,
            )
        )
    title, note = "Zipped bytes of each layer of what ships", "tick: entropy of its weights"
    return _fold("size-layers", title, rows, "layers", note)


def widths_chart(report: Report) -> Folded | None:
    """Channels of each layer and those that are left; None where all are."""
    layers = [layer for layer in _changed(report) if layer["before"]["channels"]]
    if all(_left(layer, "channels") == layer["before"]["channels"] for layer in layers):
        return None
    rows = [_pair(layer, "channels") for layer in layers]
    return _fold("widths", "Channels of each layer", rows, "layers", "the share of its channels that is left")


def weights_chart(report: Report) -> Folded | None:
    """Weights of each layer and those that are left; None where all are."""
    layers = _changed(report)
    if all(_left(layer, "nonzero") == layer["before"]["nonzero"] for layer in layers):
        return None
    rows = [_pair(layer, "nonzero") for layer in layers]
    return _fold(
        "weights", "Weights of each layer that are not zero", rows, "layers", "the share of its weights that is left"
    )


def histogram_charts(report: Report) -> tuple[Chart, ...]:
    """Weights before and after as small pictures, of the largest layers in the model's order."""
    layers = [layer for layer in layer_entries(report) if layer.get("histogram")]
    largest = sorted(layers, key=lambda layer: -(layer["before"] or layer["after"])["weights"])[:PANELS]
    return tuple(_histogram(f"histogram-{i}", layer) for i, layer in enumerate(layers) if layer in largest)


def sensitivity_chart(report: Report) -> Folded | None:
    """What each layer alone costs, the most sensitive first."""
    found = report.get("sensitivity")
    if not found or not found["layers"]:
        return None
    ranked = sorted(
        zip(found["layers"], found["drops"], strict=True), key=lambda pair: -max(_known(pair[1]), default=0.0)
    )
    shown, rest = ranked[:SHOWN], ranked[SHOWN : SHOWN + FOLDED]
    title = f"Drop of {found['measured_in']} in points, a layer alone, n = {fmt.count(found['n'])}"
    first = _heat("sensitivity", title, shown, found["columns"])
    second = _heat("sensitivity-rest", title, rest, found["columns"]) if rest else None
    return Folded(first, second, _more(len(rest), len(ranked) - len(shown), "layers"))


def classes_chart(report: Report) -> Folded | None:
    """Accuracy of each class, of the original and of what ships; the largest drop first."""
    classes = sorted(_shipped(report).get("classes") or (), key=lambda c: (-c["drop"], str(c["label"])))
    if not classes or report["shipped"] == report["variants"][0]["name"]:
        return None
    low = min(min(c["baseline"], c["accuracy"]) for c in classes)
    scale = Scale(max(0.0, low - 0.02), 1.0, 0, 1)
    rows = []
    for each in classes:
        before, after = scale(each["baseline"]), scale(each["accuracy"])
        segment = Segment(before, after, "worse" if after < before else "saved", 3)
        marks = (Mark(before, "ring", "hollow-quiet"), Mark(after, "dot", "accent"))
        told = f"{each['accuracy']:.3f}, {_points(-each['drop'])}"
        rows.append(Row(_class_label(report, each["label"]), told, (segment,), marks))
    note = f"ring original, dot what ships, from {max(0.0, low - 0.02):.2f} to 1; change in points"
    return _fold("classes", "The largest drop first", rows, "classes", note)


def _heat(name: str, title: str, rows: Sequence[tuple[str, Sequence[float | None]]], columns: Sequence[str]) -> Chart:
    start = _label_width(layer for layer, _ in rows)
    width = min(44.0, (WIDTH - start) / len(columns))
    parts = [charts.text(start + (i + 0.5) * width, 10, c, "middle", "dim small") for i, c in enumerate(columns)]
    for index, (layer, drops) in enumerate(rows):
        top = 16 + index * 18.0
        parts.append(charts.text(0, top + 13, charts.fitting(layer, "", start - 6)))
        cells = ((start + column * width, drop) for column, drop in enumerate(drops) if drop is not None)
        parts.extend(_cell(left, top, width, drop) for left, drop in cells)
    told = "; ".join(
        f"{layer}: " + ", ".join(f"{c} {_points(d)}" for c, d in zip(columns, drops, strict=True))
        for layer, drops in rows
    )
    edges = [f"{100 * step:g}" for step in STEPS]
    key = (("h0", f"up to {edges[0]} points"), *((f"h{i}", f"over {edge}") for i, edge in enumerate(edges, 1)))
    return Chart(name, title, told, 18 + len(rows) * 18.0, charts.join(parts), key)


def _cell(left: float, top: float, width: float, drop: float) -> Markup:
    level = sum(drop > step for step in STEPS)
    square = charts.rectangle(left + 0.5, top + 0.5, width - 1, 17, f"h{level}")
    if width < 26:  # no room for its text; the alternative has it
        return square
    shown = f"{100 * drop:.1f}".replace("-", "−")
    return charts.join((square, charts.text(left + width / 2, top + 13, shown, "middle", f"t{level}")))


def _label_width(labels: Iterable[str]) -> float:
    """Where the bars begin: after the longest name, or where names are cut."""
    return min(LABELS, 20 + charts.LETTER * max(map(len, labels)))


def _histogram(name: str, layer: Mapping[str, Any]) -> Chart:
    wide, top, bottom = 160.0, 32.0, 92.0
    edges, before, after = (layer["histogram"][key] for key in ("edges", "before", "after"))
    across = Scale(edges[0], edges[-1], 0, wide)
    counts = [*(before or ()), *(after or ())]
    upward = Scale(0, math.log10(1 + max(counts, default=1)), bottom, top)
    start, end = layer["before"] or layer["after"], layer["after"] or layer["before"]
    share = f"{fmt.count(start['nonzero'])} to {fmt.count(end['nonzero'])}"
    parts = [
        charts.text(0, 11, short(layer["name"], int(wide / charts.LETTER))),
        charts.text(0, 25, share, style="dim"),
    ]
    for values, style in ((before, "quiet"), (after, "accent-soft")):
        if values:
            parts.append(charts.area(_stairs(edges, values, across, upward), style))
    parts.append(charts.line(0, bottom, wide, bottom, "axis"))
    ends = ((0.0, edges[0], "start"), (wide, edges[-1], "end"))
    parts.extend(
        charts.text(x, bottom + 13, f"{value:.2g}".replace("-", "−"), anchor, "dim") for x, value, anchor in ends
    )
    told = f"weights that are not zero: {share}, from {edges[0]:.2g} to {edges[-1]:.2g}"
    return Chart(name, layer["name"], told, bottom + 18, charts.join(parts), width=wide)


def _stairs(edges: Sequence[float], counts: Sequence[float], across: Scale, upward: Scale) -> list[tuple[float, float]]:
    heights = [upward(math.log10(1 + count)) for count in counts]
    outline = [(across(edges[0]), upward(0))]
    for left, right, height in zip(edges, edges[1:], heights, strict=False):
        outline.extend(((across(left), height), (across(right), height)))
    return [*outline, (across(edges[-1]), upward(0))]


def _changed(report: Report) -> list[Mapping[str, Any]]:
    return [layer for layer in layer_entries(report) if layer["before"]]


def _left(layer: Mapping[str, Any], key: str) -> int | None:
    """Channels or weights after; None: the layer is gone."""
    return layer["after"][key] if layer["after"] else None


def _pair(layer: Mapping[str, Any], key: str) -> Row:
    before, after = layer["before"][key], _left(layer, key)
    segments = [Segment(0, 1, "pale")]
    if after:
        segments.append(Segment(0, min(1.0, after / before) if before else 1.0, "accent"))
    told = "gone" if after is None else _short_count(after)
    return Row(
        layer["name"], _short_count(before) if before == after else f"{_short_count(before)} → {told}", tuple(segments)
    )


def _fold(name: str, title: str, rows: Sequence[Row], what: str, note: str = "") -> Folded:
    shown, rest = rows[:SHOWN], rows[SHOWN : SHOWN + FOLDED]
    folded = _dense(f"{name}-rest", title, rest, note) if rest else None
    return Folded(_dense(name, title, shown, note), folded, _more(len(rest), len(rows) - len(shown), what))


def _dense(name: str, title: str, rows: Sequence[Row], note: str) -> Chart:
    labels = _label_width(row.label for row in rows)
    body, height = charts.dense_rows(rows, Scale(0, 1, labels, WIDTH - FIGURES), labels - 6)
    return Chart(name, title, "; ".join(f"{row.label} {row.text}" for row in rows), height, body, note=note)


def _class_label(report: Report, label: int | str) -> str:
    name = class_name(report, label)
    return f"class {name}" if name.isdecimal() else name


def _more(folded: int, left: int, what: str) -> str:
    return (
        f"{fmt.count(left)} more {what}" if folded == left else f"{fmt.count(folded)} of {fmt.count(left)} more {what}"
    )


def _ends(report: Report) -> list[Mapping[str, Any]]:
    """The original and what ships, which may be one."""
    baseline, shipped = report["variants"][0], _shipped(report)
    return [baseline] if shipped is baseline else [baseline, shipped]


def _shipped(report: Report) -> Mapping[str, Any]:
    found: Callable[[Mapping[str, Any]], bool] = lambda variant: variant["name"] == report["shipped"]  # noqa: E731
    return next(filter(found, report["variants"]))


def _known(drops: Sequence[float | None]) -> list[float]:
    return [drop for drop in drops if drop is not None]


def _points(value: float | None) -> str:
    if value is None:
        return fmt.NOTHING
    return f"{'+' if value > 0 else '−' if value < 0 else '±'}{abs(100 * value):.1f}"


def _short_count(count: int) -> str:
    """1,234 or 2.36 M."""
    return fmt.count(count) if count < 100_000 else f"{count / 1e6:.2f} M"
