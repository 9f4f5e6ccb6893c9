"""compress check: exit statuses, and what it tells people, programs, build servers and GitHub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.conftest import Call
from tests.reports import example_report
from tests.runs import write_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    return write_run(tmp_path / "compressed")


def test_the_status_is_0_where_all_is_met_and_3_where_one_is_not(compress: Call, run: Path) -> None:
    met = compress("check", run, "--max-drop", 0.01, "--min-zip-ratio", 8, "--min-speedup", 2, "--max-bytes", "1MB")
    assert met.status == 0, met.err
    assert met.out.count("ok ") == 5
    assert met.out.endswith("All 5 met.\n")
    missed = compress("check", run, "--max-drop", 0.01, "--max-p95", "5us")
    assert missed.status == 3
    assert "FAILED  max-p95 5.00 µs: not met, p95 on cpu, batch 1, threads 1 is" in missed.out
    assert missed.out.endswith("1 of 3 not met.\n")


def test_a_warning_passes_and_with_strict_fails(compress: Call, run: Path) -> None:
    report = example_report()
    limit = report["verdict"]["drop_interval"]["high"] - 1e-4
    told = compress("check", run, "--max-drop", limit)
    assert told.status == 0
    assert "WARNING max-drop" in told.out
    assert "All 2 met. 1 of them might not be, if measured again." in told.out
    assert compress("check", run, "--max-drop", limit, "--strict").status == 3


def test_a_file_that_was_swapped_after_the_run_fails_whatever_the_report_says(compress: Call, run: Path) -> None:
    (run / "model.onnx").write_bytes(b"another model")
    told = compress("check", run, "--max-drop", 0.5)
    assert told.status == 3
    assert "FAILED  files: not met, model.onnx is not the file that was measured" in told.out


def test_a_report_that_was_made_prettier_fails(compress: Call, run: Path) -> None:
    text = (run / "report.json").read_text().replace('"zip_ratio": 76', '"zip_ratio": 99')
    (run / "report.json").write_text(text)
    told = compress("check", run, "--min-zip-ratio", 90)
    assert told.status == 3
    assert "report.json is not the file that was measured" in told.out


def test_no_limit_is_a_usage_error_that_names_them_all(compress: Call, run: Path) -> None:
    told = compress("check", run, "--batch", 1)
    assert told.status == 2
    assert "--max-drop, --min-accuracy, --min-zip-ratio" in told.err


@pytest.mark.parametrize("option", ["--max-p95", "--max-bytes"])
def test_a_limit_without_sense_is_a_usage_error(compress: Call, run: Path, option: str) -> None:
    told = compress("check", run, option, "5 parsecs")
    assert told.status == 2
    assert "'5 parsecs' is not a" in told.err


def test_no_run_and_a_broken_report_are_errors_in_a_line(compress: Call, run: Path) -> None:
    told = compress("check", run / "nothing", "--max-drop", 0.01)
    assert (told.status, told.out) == (1, "")
    assert "is not there. Give the directory of a run" in told.err
    (run / "report.json").write_text("{")
    told = compress("check", run, "--max-drop", 0.01)
    assert told.status == 1
    assert "report.json is not valid JSON" in told.err


def test_a_place_that_was_not_measured_is_an_error(compress: Call, run: Path) -> None:
    told = compress("check", run, "--max-p50", "1ms", "--provider", "tensorrt")
    assert told.status == 1
    assert "latency on provider tensorrt was not measured" in told.err


def test_limits_come_from_compress_toml_and_the_command_line_wins(compress: Call, run: Path) -> None:
    Path("compress.toml").write_text('[check]\nmax-drop = 0.01\nmax-bytes = "9KB"\n')
    told = compress("check", run)
    assert told.status == 3
    assert "FAILED  max-bytes 9.00 KB" in told.out
    assert compress("check", run, "--max-bytes", "1MB").status == 0


def test_json_is_one_document_and_nothing_else(compress: Call, run: Path) -> None:
    told = compress("check", run, "--min-zip-ratio", 1000, "--json")
    document = json.loads(told.out)
    assert told.status == 3
    assert document["passed"] is False
    assert [line["name"] for line in document["lines"]] == ["files", "min-zip-ratio"]


def test_junit_is_written_also_where_a_limit_is_missed(compress: Call, run: Path) -> None:
    told = compress("check", run, "--max-drop", 0.01, "--min-speedup", 100, "--junit", "out/check.xml")
    assert told.status == 3
    suite = ET.fromstring(Path("out/check.xml").read_text())[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")


@pytest.fixture
def actions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Path) -> Path:
    """As on GitHub; the file of the job summary."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("of an earlier command\n")
    return tmp_path / "summary.md"


def test_on_github_lines_are_annotations_and_the_report_is_added_to_the_summary(
    compress: Call, run: Path, actions: Path
) -> None:
    told = compress("check", run, "--max-drop", 0.01, "--min-speedup", 100)
    assert told.status == 3
    commands = [line for line in told.out.splitlines() if line.startswith("::")]
    assert [command.split(" ")[0] for command in commands] == ["::notice", "::notice", "::error"]
    text = actions.read_text()
    assert text.startswith("of an earlier command\n## compress check: not passed\n")
    assert "Compression report" in text


def test_json_stays_one_document_on_github(compress: Call, run: Path, actions: Path) -> None:
    told = compress("check", run, "--max-drop", 0.01, "--json")
    assert json.loads(told.out)["passed"] is True
    assert told.err.count("::notice ") == 2


def test_github_can_be_asked_to_be_left_alone(compress: Call, run: Path, actions: Path) -> None:
    told = compress("check", run, "--max-drop", 0.01, "--github", "no")
    assert "::" not in told.out
    assert actions.read_text() == "of an earlier command\n"


def test_elsewhere_there_are_no_annotations_unless_asked_for(compress: Call, run: Path) -> None:
    assert "::" not in compress("check", run, "--max-drop", 0.01).out
    assert "::notice " in compress("check", run, "--max-drop", 0.01, "--github", "yes").out


def test_every_limit_of_the_gate_is_an_option(compress: Callable[..., object]) -> None:
    from compress.cli.check import check
    from compress.reporting.gate import LIMITS

    options = {option.name for option in check.params}
    assert set(LIMITS) | {"provider", "batch", "threads", "strict"} <= options


def test_a_summary_that_cannot_be_written_is_told_and_leaves_json_output_empty(
    compress: Call, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "nowhere/summary.md")
    told = compress("check", run, "--max-drop", 0.01, "--github", "yes", "--json")
    assert (told.status, told.out) == (1, "")
    assert "GITHUB_STEP_SUMMARY=nowhere/summary.md cannot be written" in told.err
