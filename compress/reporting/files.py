"""A report as the files of a run: every format from the plain dict of report.json alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compress.reporting.csv_table import render_csv
from compress.reporting.html import render_html
from compress.reporting.markdown import render_markdown
from compress.reporting.weights import weight_pictures

Report = Mapping[str, Any]


def _text(name: str, render: Callable[[Report], str]) -> Callable[[Report], dict[str, bytes]]:
    return lambda report: {name: render(report).encode()}


def _plots(report: Report) -> dict[str, bytes]:
    return {f"plots/{name}": content for name, content in weight_pictures(report).items()}


FORMATS: Mapping[str, Callable[[Report], dict[str, bytes]]] = {
    "html": _text("report.html", render_html),
    "md": _text("report.md", render_markdown),
    "csv": _text("report.csv", render_csv),
    "plots": _plots,
}


def render(report: Report, formats: Sequence[str] = tuple(FORMATS)) -> dict[str, bytes]:
    """File name, relative to the run directory -> content. The same report gives the same bytes.

    Args:
        report: Of `compress.reporting.schema.read`, or what is written as report.json.
        formats: Keys of ``FORMATS``.
    """
    files: dict[str, bytes] = {}
    for name in formats:
        files |= FORMATS[name](report)
    return files
