"""What a person sees: progress while it works, tables at the end. Plain text where the output is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_SECONDS = 15.0  # between two lines about the same piece of work


class Display:
    """A progress callback (`compress.values.Progress`): bars on a terminal, now and then a line elsewhere.

    Both go to standard error, so that standard output holds nothing but results.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._bars: Progress | None = None
        self._label = ""
        self._told = 0.0

    def __enter__(self) -> Display:
        if self._console.is_terminal and not self._quiet:
            self._bars = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None:
        if self._quiet:
            return
        if self._bars is not None:
            self._show_bar(self._bars, label, done, total, note)
        else:
            self._show_line(label, done, total, note)

    def _show_bar(self, bars: Progress, label: str, done: int, total: int, note: str) -> None:
        if label != self._label:
            self._label = label
            bars.add_task(label, total=total or None, note=note)
        task = bars.tasks[-1]
        bars.update(task.id, completed=done, total=total or None, note=note)

    def _show_line(self, label: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if label == self._label and now - self._told < PLAIN_SECONDS:
            return
        self._label, self._told = label, now
        figures = f" {done}/{total}" if total and done else ""
        print(f"{label}{figures}{' ' + note if note and done else ''}", file=sys.stderr, flush=True)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], mark: int | None = None) -> None:
    """Print a table to standard output; row number ``mark`` is the one that matters. The first column is text."""
    console = Console()
    if not console.is_terminal:
        _show_plain([columns, *rows])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for number, row in enumerate(rows):
        table.add_row(*row, style="bold green" if number == mark else None)
    console.print(table)


def _show_plain(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [f"{c:>{w}}" if n else f"{c:<{w}}" for n, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())


def say(text: str) -> None:
    """A line of the result, to standard output."""
    print(text)


def complain(text: str) -> None:
    """A line about what went wrong, to standard error."""
    print(text, file=sys.stderr)
