"""Pictures of the frontier: accuracy over size and over latency, each point a file, each entry named at its best."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.compare.entries import ENTRIES
from benchmarks.compare.frontier import TARGETS, Metric, best, value_of
from benchmarks.compare.results import Comparison, Row
from benchmarks.compare.tables import average, dense_accuracies, entries, show
from compress.files import write_atomically
from compress.reporting.plots import COLOURS, QUIET, UNSIGNED, new_figure, tidy

LOWEST = 5  # times the allowed drop: files that lose more are told of and not drawn
_GAP = 0.062  # of the height, between two names
_OURS, _PEERS = COLOURS[0], COLOURS[1:]
_MARKERS = "osD^vP*X<>"  # with the colour, one pair an entry
_LABELS: dict[Metric, str] = {"zip": "zipped bytes (log)", "p50": "p50, batch 1, 1 thread (log)"}
_STEPS = (1.0, 2.0, 5.0)  # of a decade: where the axis has numbers


def write_pictures(comparison: Comparison, folder: Path, name: str) -> list[str]:
    """Write ``name``-zip.svg and ``name``-p50.svg, those that have something to show; returns their names."""
    written = []
    for metric in TARGETS:
        figure = pareto(comparison, metric)
        if figure is not None:
            write_atomically(folder / f"{name}-{metric}.svg", svg(figure))
            written.append(f"{name}-{metric}.svg")
    return written


def svg(figure: Figure) -> bytes:
    """The file's content: the same figure gives the same bytes. Text stays text, half the size of its outlines."""
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "compress", "svg.fonttype": "none"}):
        figure.savefig(content, format="svg", metadata=UNSIGNED["svg"])
    return content.getvalue()


def pareto(comparison: Comparison, metric: Metric) -> Figure | None:
    """Test accuracy over bytes or p50 of the files of all seeds; None where there is nothing to show."""
    rows = [row for row in comparison.rows if row.test is not None and value_of(row, metric)]
    dense = dense_accuracies(comparison)
    if not rows or not dense:
        return None
    allowed = float(comparison.budget["max_drop"])
    floor = average(dense) - LOWEST * allowed
    drawn = [row for row in rows if _accuracy(row) >= floor]
    figure = new_figure(8.6, 4.6)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for level, style in ((average(dense), "-"), (average(dense) - allowed, "--")):
        axes.axhline(level, color=QUIET, linewidth=1, linestyle=style, zorder=1)
    _frontier(axes, [row for row in drawn if row.kind != "own"], metric, "#555B66")
    _frontier(axes, [row for row in drawn if row.kind == "own"], metric, _OURS)
    for entry in entries(drawn):
        _points(axes, [row for row in drawn if row.entry == entry], metric, _style(entry))
    axes.margins(x=0.06, y=0.08)
    _finish(axes, comparison, metric, len(rows) - len(drawn), allowed)
    _name_entries(axes, drawn, metric)
    return figure


def spread_out(wanted: Sequence[float], gap: float) -> list[float]:
    """Places from 0 to 1, at least ``gap`` apart as long as all fit, in the order of what is wanted and near to it.

    Args:
        wanted: Ascending.
        gap: Between neighbours; less where not all fit.
    """
    gap = min(gap, 1 / max(len(wanted) - 1, 1))
    placed: list[float] = []
    for number, place in enumerate(wanted):  # upwards, and not so high that the rest has no room
        above = 1 - gap * (len(wanted) - 1 - number)
        placed.append(min(max(place, placed[-1] + gap if placed else 0.0), above))
    for number in range(len(placed) - 2, -1, -1):  # back down, for those that were pushed further than they need be
        placed[number] = max(min(placed[number], placed[number + 1] - gap), gap * number)
    return placed


def _accuracy(row: Row) -> float:
    assert row.test is not None
    return row.test.value


def _x(row: Row, metric: Metric) -> float:
    value = value_of(row, metric)
    assert value is not None
    return value


def _style(entry: str) -> tuple[str, str]:
    """Colour and marker, the same in every picture; ours share a colour."""
    known = [one.name for one in ENTRIES if one.kind == "own"]
    if entry in known:
        return _OURS, _MARKERS[known.index(entry)]
    others = [one.name for one in ENTRIES if one.kind != "own"]
    number = others.index(entry) if entry in others else len(others)  # the dense file, of no entry
    return _PEERS[number % len(_PEERS)], _MARKERS[(number // len(_PEERS) + number) % len(_MARKERS)]


def _points(axes: Axes, rows: Sequence[Row], metric: Metric, style: tuple[str, str]) -> None:
    """Filled: kept its accuracy on validation. Hollow: did not."""
    shade, marker = style
    for filled in (True, False):
        some = [row for row in rows if row.eligible == filled]
        faces = shade if filled else "white"
        xs, ys = [_x(row, metric) for row in some], [_accuracy(row) for row in some]
        axes.scatter(xs, ys, s=34, marker=marker, facecolors=faces, edgecolors=shade, linewidths=1.2, zorder=3)


def _frontier(axes: Axes, rows: Sequence[Row], metric: Metric, shade: str) -> None:
    """The highest accuracy at so many bytes or milliseconds, as steps."""
    corners: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: (_x(row, metric), -_accuracy(row))):
        if not corners or _accuracy(row) > corners[-1][1]:
            corners.append((_x(row, metric), _accuracy(row)))
    if corners:
        xs, ys = zip(*corners, strict=True)
        axes.step(xs, ys, where="post", color=shade, linewidth=1.1, alpha=0.6, zorder=2)


def _name_entries(axes: Axes, rows: Sequence[Row], metric: Metric) -> None:
    """Names in a column at the right, each with its marker and a line to the best file that kept its accuracy."""
    chosen = []
    for entry in entries(rows):
        some = [row for row in rows if row.entry == entry]
        row = best([row for row in some if row.eligible] or some, metric)
        assert row is not None
        chosen.append(row)
    chosen.sort(key=lambda row: (_accuracy(row), -_x(row, metric), row.entry))
    low, high = axes.get_ylim()
    places = spread_out([(_accuracy(row) - low) / (high - low) for row in chosen], _GAP)
    for row, place in zip(chosen, places, strict=True):
        shade, marker = _style(row.entry)
        line = {"arrowstyle": "-", "color": shade, "linewidth": 0.5, "alpha": 0.5, "shrinkA": 5, "shrinkB": 4}
        point = (_x(row, metric), _accuracy(row))
        side: dict[str, Any] = {"textcoords": "axes fraction", "va": "center", "annotation_clip": False}
        axes.annotate("", point, xytext=(1.03, place), arrowprops=line, **side)
        axes.scatter([1.03], [place], s=28, c=shade, marker=marker, transform=axes.transAxes, clip_on=False)
        axes.annotate(row.entry, point, xytext=(1.05, place), fontsize=8, **side)


def _finish(axes: Axes, comparison: Comparison, metric: Metric, left_out: int, allowed: float) -> None:
    axes.xaxis.set_major_locator(LogLocator(subs=_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(metric, value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(_LABELS[metric])
    axes.set_ylabel("test accuracy")
    seeds = f"{len(comparison.seeds)} seed{'s' if len(comparison.seeds) > 1 else ''}"
    hidden = f"; {left_out} that lose more than {LOWEST * allowed:g} left out" if left_out else ""
    kept = f"filled: lost at most {allowed:g} on validation{hidden}"
    axes.set_title(f"{comparison.workload}, {seeds}. Lines: dense, dense − {allowed:g}; {kept}", loc="left", fontsize=9)
    tidy(axes)
