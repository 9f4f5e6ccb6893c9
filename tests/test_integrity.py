"""The files of a finished run, held against its manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.errors import WorkspaceError
from compress.integrity import check_files, top_files
from tests.runs import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_a_run_as_it_was_left_has_no_problem(run: Path) -> None:
    files = check_files(run)
    assert files.problems == ()
    assert files.count == 3  # model.onnx, its zip, report.json


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.zip", "report.json"])
def test_a_single_changed_byte_is_told_with_the_name_of_the_file(run: Path, name: str) -> None:
    content = bytearray((run / name).read_bytes())
    content[-1] ^= 1
    (run / name).write_bytes(content)
    (problem,) = check_files(run).problems
    assert problem.startswith(f"{name} is not the file that was measured (sha256 ")


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.zip"])
def test_a_file_that_was_not_copied_is_told(run: Path, name: str) -> None:
    (run / name).unlink()
    assert check_files(run).problems == (f"{name} is missing",)


def test_weights_beside_the_model_are_looked_at_too(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["files"]["model.onnx.data"] = {"sha256": "0" * 64, "bytes": 5}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert check_files(run).problems == ("model.onnx.data is missing",)


def test_what_is_rendered_from_the_report_and_what_stages_made_may_be_gone(run: Path) -> None:
    for name in ("report.md", "report.html", "report.csv"):
        (run / name).unlink()
    assert check_files(run).problems == ()


def test_without_a_manifest_nothing_is_known_of_the_model(run: Path) -> None:
    (run / "manifest.json").unlink()
    assert check_files(run).problems[0].startswith("manifest.json is missing")


def test_a_manifest_that_does_not_name_the_model_vouches_for_nothing(run: Path) -> None:
    (run / "manifest.json").write_text('{"files": {}}')
    assert check_files(run).problems == ("model.onnx is not in manifest.json", "report.json is not in manifest.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 3}', '{"files": {"a": {"sha256": 1}}}'])
def test_a_broken_manifest_is_an_error_that_names_it(run: Path, content: str) -> None:
    (run / "manifest.json").write_text(content)
    with pytest.raises(WorkspaceError, match=r"manifest\.json cannot be read as a manifest"):
        check_files(run)


def test_the_files_at_the_top_are_the_model_its_zip_and_the_reports(run: Path) -> None:
    (run / "notes of my own.txt").write_text("mine")
    names = {path.name for path in top_files(run)}
    assert names == {"model.onnx", "model.onnx.zip", "report.json", "report.md", "report.html", "report.csv"}
