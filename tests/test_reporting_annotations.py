"""Workflow commands and job summaries of GitHub Actions."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.reporting import annotations
from compress.reporting.annotations import job_summary, workflow_commands
from compress.reporting.gate import Limits, Line, check, files_line
from tests.reports import example_report

# actions/runner, ActionCommand.TryParseV2: ::name key=value,key=value::data
COMMAND = re.compile(r"^::(?P<name>\w+) title=(?P<title>[^:,\r\n]*)::(?P<data>[^\r\n]*)$")


def line_of(sentence: str = "said.", met: bool = True, warning: bool = False) -> Line:
    return Line("max-drop", 0.01, 0.0, None, None, met, warning, sentence)


@pytest.mark.parametrize(
    ("met", "warning", "level"),
    [(True, False, "notice"), (True, True, "warning"), (False, False, "error"), (False, True, "error")],
)
def test_the_level_tells_met_from_unsure_from_missed(met: bool, warning: bool, level: str) -> None:
    (command,) = workflow_commands((line_of(met=met, warning=warning),), "run")
    assert command == f"::{level} title=compress check run%3A max-drop::said."


@given(sentence=st.text(), run=st.text())
def test_no_text_ends_a_command_early_or_is_changed_by_it(sentence: str, run: str) -> None:
    (command,) = workflow_commands((line_of(sentence),), run)
    parts = COMMAND.match(command)
    assert parts is not None
    if "%" not in sentence + run:  # then the runner's three escapes are all that there is to undo
        assert unquote(parts["data"]) == sentence
        assert unquote(parts["title"]) == f"compress check {run}: max-drop"


def test_the_summary_has_the_lines_above_the_report() -> None:
    report = example_report()
    lines = (files_line((), 3), *check(report, Limits(max_drop=0.01, min_zip_ratio=1000.0)))
    text = job_summary(lines, report)
    head, _, rest = text.partition("Compression report")
    assert head.startswith("## compress check: not passed\n\n- ✅ files: met")
    assert "- ❌ min-zip-ratio" in head
    assert report["shipped"] in rest


def test_a_report_that_is_longer_than_github_shows_leaves_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "SUMMARY_LIMIT", 500)
    report = example_report()
    text = job_summary((files_line((), 3),), report)
    assert text == "## compress check: passed\n\n- ✅ files: met, sha256 of 3 files as in manifest.json.\n"
