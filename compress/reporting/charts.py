"""What every chart of report.html shares: its text alternative, its scales, and rows of bars.

Charts are SVG written here and not by a plotting library: text stays text that a phone shows at its size, the colours
are those of the page's style sheet in light and dark, and a chart takes a few kilobytes. Positions are in user units,
about one CSS pixel each on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

WIDTH = 340.0  # of every chart
ROW = 40.0  # height of a row whose label stands above its bar
LETTER, BOLD = 6.8, 7.7  # widths of a letter in wide fonts, on average: what decides how much of a name fits
AXIS = 32.0  # height of an axis with its ticks and title

Interval = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """One drawing, and the same figures as text for who cannot see it."""

    name: str  # unique in the page
    title: str
    figures: str  # all that is drawn, as a sentence
    height: float
    body: Markup
    key: tuple[tuple[str, str], ...] = ()  # colour -> what it stands for, where the chart does not say so itself
    note: str = ""  # how to read it, in a few words
    width: float = WIDTH


@dataclass(frozen=True)
class Scale:
    """From values to positions: linear, or logarithmic for values above 0."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        span = self._turn(self.high) - self._turn(self.low)
        share = (self._turn(value) - self._turn(self.low)) / span if span else 0.5
        return self.start + share * (self.end - self.start)

    @property
    def middle(self) -> float:
        """The value in the middle, which tells the unit that suits the scale."""
        return math.sqrt(self.low * self.high) if self.logarithmic else self.high

    def ticks(self, count: int = 4) -> list[float]:
        """Round values within the scale, about ``count`` of them."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        found: list[float] = []
        if self.logarithmic:
            ratio = self.high / self.low
            subs = (1.0, 2.0, 5.0) if ratio < 60 else (1.0, 3.0) if ratio < 1000 else (1.0,)
            found = self._within(LogLocator(subs=subs).tick_values(self.low, self.high))
        if len(found) < 2:
            found = self._within(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high))
        return found

    def _within(self, values: Iterable[float]) -> list[float]:
        margin = 1e-9 * (self.high - self.low)
        return [float(value) for value in values if self.low - margin <= value <= self.high + margin]

    def _turn(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


class Segment(NamedTuple):
    """A part of a row's bar."""

    start: float
    end: float
    colour: str  # a class of the style sheet
    height: float = 10.0


class Mark(NamedTuple):
    """One value of a row."""

    value: float
    shape: str  # dot, ring, tick
    colour: str


@dataclass(frozen=True)
class Row:
    """A label, its figures as text, and what is drawn under them."""

    label: str
    text: str
    segments: tuple[Segment, ...] = ()
    marks: tuple[Mark, ...] = ()
    shipped: bool = False


def number(value: float) -> str:
    """A position as SVG reads it."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, content: str, anchor: str = "start", style: str = "") -> Markup:
    styled = Markup(' class="{}"').format(style) if style else Markup()
    placed = Markup(' text-anchor="{}"').format(anchor) if anchor != "start" else Markup()
    return Markup('<text x="{}" y="{}"{}{}>{}</text>').format(number(x), number(y), placed, styled, content)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    ends = map(number, (x1, y1, x2, y2))
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(*ends, style)


def rectangle(x: float, y: float, width: float, height: float, style: str) -> Markup:
    sides = map(number, (x, y, width, height))
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}"/>').format(*sides, style)


def polyline(points: Iterable[tuple[float, float]], style: str) -> Markup:
    joined = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return Markup('<polyline points="{}" class="{}"/>').format(joined, style)


def area(points: Iterable[tuple[float, float]], style: str) -> Markup:
    joined = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return Markup('<polygon points="{}" class="{}"/>').format(joined, style)


def circle(x: float, y: float, radius: float, style: str, told: str = "") -> Markup:
    """A point; ``told`` is shown where the pointer rests on it."""
    where = (number(x), number(y), number(radius), style)
    if not told:
        return Markup('<circle cx="{}" cy="{}" r="{}" class="{}"/>').format(*where)
    return Markup('<circle cx="{}" cy="{}" r="{}" class="{}"><title>{}</title></circle>').format(*where, told)


def join(parts: Iterable[Markup]) -> Markup:
    return Markup("\n").join(parts)


def plain_ticks(values: Sequence[float]) -> list[str]:
    """Ticks as text, all with as many decimals as their step needs."""
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    if decimals < 6 and any(abs(round(value, decimals) - value) > step / 100 for value in values):
        decimals += 1  # steps of 2.5
    return [f"{value:.{decimals}f}" for value in values]


def fitting(label: str, beside: str, width: float = WIDTH, letter: float = LETTER) -> str:
    """A label cut so that it and the text beside it share a line of ``width``.

    Layers are told apart by the numbers in their names, variants by the ends of theirs.
    """
    from compress.reporting.plots import short

    room = max(8, int((width - 8) / letter) - len(beside))
    if len(label) <= room or "." in label:
        return short(label, room)
    return f"{label[: room // 2 - 1]}…{label[len(label) - (room - room // 2) :]}"


def rows_of_bars(rows: Sequence[Row], scale: Scale, track: bool = True) -> tuple[Markup, float]:
    """Rows below each other, each with its label and text above its bar; and their height."""
    parts: list[Markup] = []
    for index, row in enumerate(rows):
        top = index * ROW
        label = fitting(row.label, row.text, letter=BOLD if row.shipped else LETTER)
        parts.append(text(0, top + 12, label, style="halo strong" if row.shipped else "halo"))
        parts.append(text(WIDTH, top + 12, row.text, "end", "halo strong" if row.shipped else "halo dim"))
        if track:
            parts.append(rectangle(scale.start, top + 19, scale.end - scale.start, 10, "track"))
        parts.extend(_drawn(row, scale, top + 24))
    return join(parts), len(rows) * ROW


def dense_rows(rows: Sequence[Row], scale: Scale, labels: float) -> tuple[Markup, float]:
    """Rows of one line each: the label within ``labels``, the bar, the text on the right; for many rows."""
    parts: list[Markup] = []
    for index, row in enumerate(rows):
        middle = 8 + index * 18.0
        parts.append(text(0, middle + 4, fitting(row.label, "", labels)))
        parts.extend(_drawn(row, scale, middle))
        parts.append(text(WIDTH, middle + 4, row.text, "end", "dim"))
    return join(parts), len(rows) * 18.0 + 2


def across(
    scale: Scale, top: float, bottom: float, labels: Sequence[str], ticks: Sequence[float], title: str
) -> Markup:
    """An axis below a chart: pale lines up to ``top``, their values, and what they are with the unit."""
    parts = []
    for value, label in zip(ticks, labels, strict=True):
        x = scale(value)
        anchor = "start" if x < 14 else "end" if x > WIDTH - 14 else "middle"
        parts.append(line(x, top, x, bottom, "grid"))
        parts.append(text(x, bottom + 13, label, anchor, "dim"))
    parts.append(text((scale.start + scale.end) / 2, bottom + 28, title, "middle", "dim"))
    return join(parts)


def upward(scale: Scale, left: float, right: float, labels: Sequence[str], ticks: Sequence[float]) -> Markup:
    """An axis on the left: pale lines to the right and their values."""
    parts = []
    for value, label in zip(ticks, labels, strict=True):
        y = scale(value)
        parts.append(line(left, y, right, y, "grid"))
        parts.append(text(left - 5, y + 4, label, "end", "dim"))
    return join(parts)


def _drawn(row: Row, scale: Scale, middle: float) -> Iterable[Markup]:
    for start, end, colour, height in row.segments:
        left, right = sorted((scale(start), scale(end)))
        width = max(right - left, 1.0 if colour != "space" else 0.0)
        yield rectangle(min(left, WIDTH - width), middle - height / 2, width, height, colour)
    for value, shape, colour in row.marks:
        x = scale(value)
        if shape == "tick":
            yield rectangle(x - 1, middle - 8, 2, 16, colour)
        else:
            yield circle(x, middle, 4 if shape == "dot" else 3.5, colour)
