"""The lines of a gate for GitHub Actions: annotations, which a workflow prints, and its job summary.

The commands and their escapes are those of the runner's own toolkit (actions/toolkit, packages/core/src/command.ts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.reporting.gate import Line, passed
from compress.reporting.markdown import render_markdown

SUMMARY_LIMIT = 1024 * 1024  # bytes of one step's summary: a longer one is not shown at all


def workflow_commands(lines: Sequence[Line], run: str) -> tuple[str, ...]:
    """A workflow command for each line: ::error where it is not met, ::warning where that might change, else ::notice.

    Args:
        lines: Of `compress.reporting.gate.check`.
        run: The run directory, as the user gave it.
    """
    return tuple(
        f"::{_level(line)} title={_property(f'compress check {run}: {line.name}')}::{_data(line.sentence)}"
        for line in lines
    )


def job_summary(lines: Sequence[Line], report: Mapping[str, Any]) -> str:
    """Markdown for the job's page: the lines first, then the whole report, unless that is longer than GitHub shows."""
    head = "\n".join(
        (
            f"## compress check: {'passed' if passed(lines) else 'not passed'}",
            "",
            *(f"- {_MARKS[_level(line)]} {line.sentence}" for line in lines),
            "",
        )
    )
    whole = f"{head}\n{render_markdown(report)}"
    return whole if len(whole.encode()) <= SUMMARY_LIMIT else head


_MARKS = {"error": "❌", "warning": "⚠️", "notice": "✅"}


def _level(line: Line) -> str:
    return "error" if not line.met else "warning" if line.warning else "notice"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
