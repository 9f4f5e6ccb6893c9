"""What a person sees: progress while it works, tables at the end. Plain text where the output is no terminal."""

from __future__ import annotations

import codecs
import io
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from compress.cli.progress import Finished, Track, Work, clock_text, left_text

PLAIN_SECONDS = 15.0  # between two lines where there is no terminal
WIDE = 90  # columns from which there is room for a bar
NAME_WIDTH = 10  # of the longest stage
# For an output that does not know them, such as one in code page 1252: a sign must not become "?".
PLAIN = {"−": "-", "–": "-", "×": "x", "µ": "u", "·": "*", "…": "...", "✓": "yes", "✗": "no"}


class Display:
    """A progress callback (`compress.values.Progress`): bars on a terminal, now and then a line elsewhere.

    On a terminal: the stage with its times, a bar for each piece of work with what it is a part of, the best result so
    far; a stage that is over becomes one line. All go to standard error, so that standard output holds nothing but
    results.

    Args:
        quiet: Show nothing.
        console: Where to; None: standard error.
        clock: Seconds, always rising.
    """

    def __init__(
        self, quiet: bool = False, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quiet = quiet
        self._console = console or Console(stderr=True, highlight=False)
        self._track = Track(clock)
        self._clock = clock
        self._live: Live | None = None
        self._told: dict[str, float] = {}  # label -> when its last plain line was printed, within the stage

    def __enter__(self) -> Display:
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._quiet:
            self._live = Live(self, console=self._console, transient=True, refresh_per_second=5)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None:
        finished = self._track.tell(label, done, total, note)
        if self._quiet:
            return
        if finished is not None:
            self._console.print(_finished_line(finished), no_wrap=True, overflow="ellipsis", soft_wrap=not self._live)
            self._told = {}
        elif self._live is None:
            self._print_line(label, done)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        track = self._track
        if headline := track.headline():
            yield Text(headline, style="bold", no_wrap=True, overflow="ellipsis")
        if track.shown:
            yield _work_table(track.shown, self._clock(), options.max_width)
        if track.best:
            yield Text(track.best, style="green", no_wrap=True, overflow="ellipsis")

    def _print_line(self, label: str, done: int) -> None:
        """The first word of a piece of work, and now and then how far it is."""
        now = self._clock()
        works = self._track.works
        if label in self._told and now - max(self._told.values()) < PLAIN_SECONDS:
            return
        self._told[label] = now
        told = _plain_work(works[-1], now) if works and works[-1].label == label else self._track.headline()
        self._console.print(told, soft_wrap=True, markup=False)


def _finished_line(stage: Finished) -> Text:
    seconds = "" if stage.seconds is None else clock_text(stage.seconds)
    return Text(f"{stage.name:<{NAME_WIDTH}} {seconds:>7}  {stage.result}".rstrip())


def _plain_work(work: Work, now: float) -> str:
    figures = f" {work.done}/{work.total}" if work.total and work.done else ""
    note = f" {work.note}" if work.note and work.done else ""
    left = left_text(work.left(now)) if work.done < work.total else ""
    return f"{work.label}{figures}{note}{left}"


def _work_table(works: Sequence[Work], now: float, width: int) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True, overflow="ellipsis", width=28 if width >= WIDE else 24)
    if width >= WIDE:
        table.add_column(width=20)
    table.add_column(justify="right", no_wrap=True, min_width=9)  # done/total
    table.add_column(justify="right", no_wrap=True, min_width=10)  # time left
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for depth, work in enumerate(works):
        left = work.left(now)
        pulse = not work.total
        bar = ProgressBar(total=work.total or None, completed=work.done, width=20, pulse=pulse, animation_time=now)
        table.add_row(
            Text("  " * depth + work.label),
            *([bar] if width >= WIDE else []),
            f"{work.done}/{work.total}" if work.total else str(work.done or ""),
            "" if left is None else f"{clock_text(left)} left",
            Text("" if work.note.startswith("best") else work.note, style="dim"),
        )
    return table


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], mark: int | None = None, console: Console | None = None
) -> None:
    """Print a table to standard output; row number ``mark`` is the one that matters. The first column is text.

    On a terminal that is too narrow, columns are left for a second table below, under the same first column; a column
    that does not even fit beside the first is a list.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        _show_plain([columns, *rows])
        return
    widths = [max(len(row[number]) for row in (columns, *rows)) + 2 for number in range(len(columns))]
    for part in _fitting(widths, console.width):
        if len(part) == 2 and sum(widths[number] for number in part) > console.width + 2:
            lines = (f"{row[0]}\n    {row[part[1]]}" for row in rows)
            console.print("\n".join((columns[part[1]], *lines)), markup=False, soft_wrap=True)
            continue
        table = Table(box=None, pad_edge=False, header_style="bold")
        for number in part:
            table.add_column(Text(columns[number]), justify="right" if number else "left", no_wrap=True)
        for number, row in enumerate(rows):
            table.add_row(*(Text(row[i]) for i in part), style="bold green" if number == mark else None)
        console.print(table)


def _fitting(widths: Sequence[int], width: int) -> list[list[int]]:
    """Numbers of the columns of each table: as many as fit beside the first column, at least one."""
    parts, used = [[0]], widths[0]
    for number in range(1, len(widths)):
        if used + widths[number] > width + 2 and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0]
        parts[-1].append(number)
        used += widths[number]
    return parts


def _show_plain(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [f"{c:>{w}}" if n else f"{c:<{w}}" for n, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())


def write_what_the_output_knows() -> None:
    """Let characters that the encoding of an output has no form for be written as plain ones, and not be an error."""
    codecs.register_error("compress.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="compress.plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    found = error.object[error.start]
    return PLAIN.get(found, found.encode("ascii", "backslashreplace").decode()), error.start + 1


def say(text: str) -> None:
    """A line of the result, to standard output."""
    print(text)


def emit(document: object) -> None:
    """The result as one JSON document, to standard output: what --json prints, and all that it prints."""
    from compress.workspace import to_json

    print(to_json(document).decode(), end="")


def complain(text: str) -> None:
    """A line about what went wrong, to standard error."""
    print(text, file=sys.stderr)
