"""The release steps that the repository holds: valid files, and commands that run as they are written there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Call
from tests.runs import write_run

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github" / "workflows" / "compress.yml"
GITLAB = ROOT / ".gitlab-ci.yml"
CHECK = ".venv/bin/compress check "


def github() -> dict[str, Any]:
    workflow: dict[str, Any] = yaml.safe_load(GITHUB.read_text())
    return workflow


def gitlab() -> dict[str, Any]:
    pipeline: dict[str, Any] = yaml.safe_load(GITLAB.read_text())
    return pipeline


def commands() -> list[str]:
    """The lines with which both hold the demo against its limits."""
    steps = github()["jobs"]["demo"]["steps"]
    lines = [*(step.get("run", "") for step in steps), *gitlab()["compress"]["script"]]
    return [" ".join(line.split()) for line in lines if line.startswith(CHECK)]


def test_both_check_the_demo_with_the_same_line() -> None:
    first, second = commands()
    assert first == second


def test_the_github_workflow_runs_on_pull_requests_with_rights_to_read_alone() -> None:
    workflow = github()
    triggers = workflow.get("on", workflow.get(True))  # YAML 1.1 reads the key "on" as true
    assert {"push", "pull_request"} <= set(triggers)
    assert workflow["permissions"] == {"contents": "read"}


def test_the_github_workflow_keeps_the_report_also_where_the_gate_fails() -> None:
    *_, gate, keep = github()["jobs"]["demo"]["steps"]
    assert "compress check" in gate["run"]
    assert keep["if"] == "always()"
    assert "demo/compressed/report.html" in keep["with"]["path"].split()


def test_the_gitlab_job_hands_in_its_lines_as_tests() -> None:
    artifacts = gitlab()["compress"]["artifacts"]
    (junit,) = re.findall(r"--junit (\S+)", commands()[0])
    assert artifacts["reports"]["junit"] == junit
    assert artifacts["when"] == "always"


def test_the_line_runs_as_it_is_written_and_holds_all_its_limits(
    compress: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a run that is where `make demo` puts it. (The demo itself meets them: it takes a minute, see README.)"""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    write_run(tmp_path / "demo" / "compressed")
    told = compress("check", *shlex.split(commands()[0].removeprefix(CHECK)))
    assert told.status == 0, told.out
    names = re.findall(r"^(?:ok|WARNING|FAILED) +([a-z0-9-]+)", told.out, re.MULTILINE)
    assert names == ["files", "max-drop", "min-zip-ratio", "max-p95", "max-bytes"]
    assert (tmp_path / "check.xml").is_file()
