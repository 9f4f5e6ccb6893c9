"""`compress report`: the reports of a finished run, again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from compress.reporting import FORMATS
from compress.reporting.schema import SCHEMA
from compress.workspace import to_json
from tests.conftest import Call
from tests.reports import example_report

QUICK = ("--format", "html,md,csv")  # drawing the plots takes a second


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with nothing but its report.json."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "report.json").write_bytes(to_json(example_report()))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_all_formats_are_written_and_named_and_the_same_report_gives_the_same_bytes(
    run: Path, compress: Call, tmp_path: Path
) -> None:
    outcome = compress("report", run)
    assert outcome.status == 0
    written = files_of(run)
    assert {"report.html", "report.md", "report.csv", "plots/histograms.svg"} <= set(written)
    assert set(outcome.out.splitlines()) == {str(run / name) for name in written} - {str(run / "report.json")}
    assert compress("report", run, "--out", tmp_path / "again").status == 0
    assert files_of(tmp_path / "again") == {name: content for name, content in written.items() if name != "report.json"}


def test_only_the_formats_asked_for_are_written(run: Path, compress: Call, tmp_path: Path) -> None:
    assert compress("report", run, "--format", "md,csv", "--out", tmp_path / "some").status == 0
    assert set(files_of(tmp_path / "some")) == {"report.md", "report.csv"}


def test_the_options_are_those_that_there_are(run: Path, compress: Call) -> None:
    from compress.cli.report import FORMATS as OFFERED

    assert tuple(FORMATS) == OFFERED
    outcome = compress("report", run, "--format", "pdf")
    assert outcome.status == 2
    assert "html" in outcome.err


def test_the_manifest_follows_what_is_written_again(run: Path, compress: Call) -> None:
    (run / "manifest.json").write_text('{"seed": 7, "files": {"report.md": {"sha256": "0", "bytes": 1}}}')
    assert compress("report", run, "--format", "md").status == 0
    manifest = json.loads((run / "manifest.json").read_text())
    content = (run / "report.md").read_bytes()
    assert manifest["seed"] == 7
    assert manifest["files"]["report.md"] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_what_is_no_run_is_told_in_a_line(compress: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "stopped" / "stages").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for name, told in (
        ("empty", "is not the directory of a run"),
        ("stopped", "the run is not finished. Go on with the same command and --resume"),
        ("file", "is a file"),
        ("nowhere", "is not there"),
    ):
        outcome = compress("report", tmp_path / name)
        assert outcome.status == 1
        assert told in outcome.err
        assert len(outcome.err.splitlines()) == 1


def test_a_broken_or_newer_report_is_refused_and_nothing_is_written(compress: Call, tmp_path: Path) -> None:
    newer = to_json(example_report(schema=SCHEMA + 1))
    wrong = to_json(example_report(verdict={}))
    for content, told in ((b"{", "not valid JSON"), (newer, "Update compress"), (wrong, "$.verdict")):
        (tmp_path / "report.json").write_bytes(content)
        outcome = compress("report", tmp_path, *QUICK)
        assert outcome.status == 1
        assert told in outcome.err
        assert not (tmp_path / "report.html").exists()
