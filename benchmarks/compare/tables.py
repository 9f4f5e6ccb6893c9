"""The figures of a comparison as rows of text: one table a function, the first row its columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.compare.entries import DENSE
from benchmarks.compare.frontier import (
    DROPS,
    TARGETS,
    Metric,
    Outcome,
    Versus,
    best,
    best_peer,
    geometric_mean,
    most_accurate,
    name_of,
    value_of,
    within,
)
from benchmarks.compare.results import OK, Comparison, Row
from compress.measurement.timing import FLOOR
from compress.reporting import format as fmt
from compress.units import signed

Cells = list[tuple[str, ...]]  # rows of a table, the first its columns
Shown = Callable[[float | None], str]

MEASURES: dict[Metric, str] = {"zip": "zipped", "p50": "p50"}
_OUTCOMES: dict[Outcome, str] = {
    "met": "target met",
    "ahead": "ahead, short of the target",
    "level": "no difference",
    "behind": "**behind**",
    "none": "–",
}


def markdown(cells: Cells, left: int = 1) -> str:
    """A table of Markdown: so many columns of words to the left, figures to the right."""
    columns, *rows = ([" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in cells)
    marks = ["---" if number < left else "---:" for number in range(len(columns))]
    return "".join(f"| {' | '.join(row)} |\n" for row in (columns, marks, *rows))


def show(metric: Metric, value: float | None) -> str:
    """Bytes or milliseconds, with their unit."""
    if metric == "p50":
        return fmt.duration(value)
    return fmt.size(None if value is None else round(value))


def over_seeds(values: Sequence[float | None], text: Shown, mean: Callable[[Sequence[float]], float]) -> str:
    """The mean of the values of all seeds, with the smallest and the largest; None: a seed without a value."""
    known = [value for value in values if value is not None]
    if not known:
        return fmt.NOTHING
    shown, least, most = text(mean(known)), text(min(known)), text(max(known))
    if least != most:
        shown += f" ({fmt.span(least, most)})"
    return shown if len(known) == len(values) else f"{shown}, {len(known)} of {len(values)} seeds"


def average(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def versus_table(comparison: Comparison) -> Cells:
    """Each of our entries against the best peer, in both measures."""
    cells: Cells = [
        ("entry", "measure", "ours", "best peer", "ours / best peer", "", "test accuracy, ours − best peer")
    ]
    for one in comparison.versus:
        if one.ratio is None:
            cells.append((one.entry, MEASURES[one.metric], *[fmt.NOTHING] * 3, one.reason, fmt.NOTHING))
            continue
        sides = [show(one.metric, geometric_mean(values)) for values in (one.ours, one.theirs)]
        verdict = _OUTCOMES[one.outcome] + (", at a lower accuracy" if one.accuracy == "lower" else "")
        verdict += f" ({one.reason})" if one.reason else ""
        peer = f"{sides[1]}: {', '.join(dict.fromkeys(one.peers))}"
        cells.append((one.entry, MEASURES[one.metric], sides[0], peer, ratio_text(one), verdict, difference_text(one)))
    return cells


def ratio_text(one: Versus) -> str:
    """Ours / best peer and how sure it is: 0.41×, or 0.41× [0.39–0.43×]."""
    if one.ratio is None or one.low is None or one.high is None:
        return fmt.NOTHING
    text = fmt.ratio(one.ratio)
    return text if one.low == one.high else f"{text} [{fmt.span(fmt.ratio(one.low), fmt.ratio(one.high))}]"


def difference_text(one: Versus) -> str:
    """Test accuracy of ours - that of the best peer, its interval, and what it says."""
    if one.difference is None:
        return fmt.NOTHING
    if one.difference_low is None or one.difference_high is None:
        return signed(one.difference)
    sure = {"higher": "", "lower": ", **lower**", "level": ", no significant difference", None: ""}[one.accuracy]
    return f"{signed(one.difference)} [{signed(one.difference_low)} to {signed(one.difference_high)}]{sure}"


def entry_table(comparison: Comparison) -> Cells:
    """One row an entry: its smallest and its fastest file that kept its accuracy, and what they cost."""
    columns = (
        "entry",
        "files that kept their accuracy",
        "smallest",
        "its test accuracy",
        "fastest",
        "its test accuracy",
    )
    cells: Cells = [(*columns, "steps", "compute", "lines")]
    for entry in entries(comparison.rows):
        found = [_of(comparison, entry, seed) for seed in comparison.seeds]
        made = [row for rows in found for row in rows if row.status == OK]
        if not made:
            told = dict.fromkeys(row.status for rows in found for row in rows)
            cells.append((entry, "; ".join(told), *[fmt.NOTHING] * 4, *_cost(found)))
            continue
        if made[0].kind == "limit":
            cells.append((entry, made[0].settings, *[fmt.NOTHING] * 2, limit(comparison, entry), *[fmt.NOTHING] * 4))
            continue
        kept = f"{sum(row.eligible for row in made)} of {len(made)}" + _failed(found)
        cells.append((entry, kept, *_best_cells(found, "zip"), *_best_cells(found, "p50"), *_cost(found)))
    return cells


@dataclass(frozen=True)
class _Column:
    """A figure of each entry: of the file that is best at a limit."""

    title: str
    choose: Callable[[Sequence[Row], int], float | None]  # rows of an entry at a seed, the seed's number -> the figure
    text: Shown
    mean: Callable[[Sequence[float]], float]
    top: Callable[[Sequence[float]], float]  # max or min: which of the means is best
    equal: float = 0.0  # a mean that is away from the best by no more than this share is as good

    def cells(self, found: Sequence[Sequence[Sequence[Row]]]) -> list[str]:
        """One an entry, the best in bold: among those that have a figure at each seed.

        Args:
            found: Rows by entry and seed.
        """
        values = [[self.choose(rows, number) for number, rows in enumerate(seeds)] for seeds in found]
        means = [None if None in line else self.mean([value for value in line if value is not None]) for line in values]
        top = self.top([value for value in means if value is not None] or [math.nan])
        shown = [over_seeds(line, self.text, self.mean) for line in values]
        good = [value is not None and abs(value - top) <= self.equal * top for value in means]
        return [f"**{cell}**" if best else cell for cell, best in zip(shown, good, strict=True)]


def fixed_table(comparison: Comparison) -> Cells:
    """One row an entry: accuracy at a fixed size, sizes and latencies at fixed accuracies; the best are bold."""
    names = entries(comparison.rows)
    columns = [_accuracy_column(comparison), *(_limit_column(metric, drop) for metric in TARGETS for drop in DROPS)]
    found = [[_of(comparison, name, seed) for seed in comparison.seeds] for name in names]
    lines = zip(names, *(column.cells(found) for column in columns), strict=True)
    known = [line for line in lines if any(cell != fmt.NOTHING for cell in line[1:])]
    return [("entry", *(column.title for column in columns)), *known]


def _accuracy_column(comparison: Comparison) -> _Column:
    """Test accuracy of the file that is best on validation among those no larger than the best peer's."""
    peers = [best_peer([row for row in comparison.rows if row.seed == seed], "zip") for seed in comparison.seeds]
    limits = [None if peer is None else peer.zip_bytes for peer in peers]

    def choose(rows: Sequence[Row], number: int) -> float | None:
        limit = limits[number]
        row = None if limit is None else most_accurate(rows, limit)
        return None if row is None or row.test is None else row.test.value

    title = f"test accuracy within {over_seeds(limits, _size, geometric_mean)}"
    return _Column(title, choose, fmt.fraction, average, max)


def _limit_column(metric: Metric, drop: float) -> _Column:
    """Bytes or milliseconds of the best file whose drop on validation is at most so large."""

    def choose(rows: Sequence[Row], _: int) -> float | None:
        row = best(within(rows, drop), metric)
        return None if row is None else value_of(row, metric)

    title = f"{MEASURES[metric]}, drop ≤ {drop:g}"
    if metric == "p50":
        return _Column(title, choose, _duration, geometric_mean, min, FLOOR)
    return _Column(title, choose, _size, geometric_mean, min)


def all_rows(comparison: Comparison) -> Cells:
    """Every file that was measured, and every entry that failed."""
    columns = ("entry and file", "settings", "seed", "test accuracy [95 %]", "drop on test [95 %]", "on validation")
    cells: Cells = [(*columns, "kept", "zipped", "p50 [95 %]", "speed-up of dense [95 %]", "weights, not 0", "notes")]
    for row in comparison.rows:
        if row.status != OK:
            cells.append((name_of(row), row.settings, str(row.seed), *[fmt.NOTHING] * 8, row.status))
            continue
        cells.append((name_of(row), row.settings, str(row.seed), *_figures(row), row.notes))
    return cells


def entries(rows: Iterable[Row]) -> list[str]:
    """Names, in the order of the rows."""
    return list(dict.fromkeys(row.entry for row in rows))


def dense_accuracies(comparison: Comparison) -> list[float]:
    """Test accuracy of the dense float file, for each seed."""
    return [row.test.value for row in comparison.rows if row.entry == DENSE and row.test is not None]


def limit(comparison: Comparison, name: str) -> str:
    """p50 of what only a limit is measured with, over the seeds; a dash where it was not."""
    found = [row.p50_ms for row in comparison.rows if row.kind == "limit" and row.entry == name]
    return over_seeds(found, _duration, geometric_mean) if found else fmt.NOTHING


def _of(comparison: Comparison, entry: str, seed: int) -> list[Row]:
    return [row for row in comparison.rows if row.entry == entry and row.seed == seed]


def _figures(row: Row) -> tuple[str, ...]:
    test = "–" if row.test is None else f"{row.test.value:.4f} [{row.test.low:.4f}–{row.test.high:.4f}]"
    drop = "–" if row.test_drop is None else signed(row.test_drop)
    if row.drop_interval is not None:
        drop += f" [{signed(row.drop_interval[0])} to {signed(row.drop_interval[1])}]"
    p50 = fmt.duration(row.p50_ms)
    if row.p50_interval is not None:
        p50 += f" [{fmt.span(*map(fmt.duration, row.p50_interval))}]"
    speedup = fmt.ratio(None if row.speedup is None else row.speedup.value)
    if row.speedup is not None:
        speedup += f" [{fmt.span(fmt.ratio(row.speedup.low), fmt.ratio(row.speedup.high))}]"
    on_validation = "–" if row.validation_drop is None else signed(row.validation_drop)
    kept = "yes" if row.eligible else "no"
    return test, drop, on_validation, kept, fmt.size(row.zip_bytes), p50, speedup, fmt.count(row.nonzero)


def _best_cells(found: Sequence[Sequence[Row]], metric: Metric) -> tuple[str, str]:
    """The best that kept its accuracy, over the seeds, and its test accuracy."""
    chosen = [best((row for row in rows if row.eligible), metric) for rows in found]
    values = [None if row is None else value_of(row, metric) for row in chosen]
    tests = [None if row is None or row.test is None else row.test.value for row in chosen]
    text = _duration if metric == "p50" else _size
    return over_seeds(values, text, geometric_mean), over_seeds(tests, fmt.fraction, average)


def _cost(found: Sequence[Sequence[Row]]) -> tuple[str, str, str]:
    """Steps, seconds of all cores and lines: those of an entry are the same in all its rows of a seed."""
    first = [rows[0] for rows in found if rows]
    steps = [row.steps for row in first if row.steps is not None]
    seconds = [row.cpu_seconds for row in first if row.cpu_seconds is not None]
    lines = [row.lines for row in first if row.lines is not None]
    return (
        fmt.count(round(average(steps))) if steps else fmt.NOTHING,
        fmt.seconds(average(seconds)) if seconds else fmt.NOTHING,
        fmt.count(lines[0]) if lines else fmt.NOTHING,
    )


def _failed(found: Sequence[Sequence[Row]]) -> str:
    """What is said of seeds at which an entry failed that worked at others."""
    wrong = [row for rows in found for row in rows if row.status != OK]
    return "".join(f"; seed {row.seed}, {name_of(row)}: {row.status}" for row in wrong)


def _size(value: float | None) -> str:
    return show("zip", value)


def _duration(value: float | None) -> str:
    return show("p50", value)
