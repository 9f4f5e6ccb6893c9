"""The run directory: whole or not there, never mixed, never deleting what is not its own."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from compress.errors import WorkspaceError
from compress.workspace import Workspace, fingerprint


def test_a_stage_has_its_final_name_only_when_it_is_whole(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "run")
    partial = workspace.begin("02-sparsify")
    (partial / "weights").write_bytes(b"w")
    assert not workspace.stage_directory("02-sparsify").exists()
    workspace.finish("02-sparsify", {"fingerprint": "f"})
    assert (workspace.stage_directory("02-sparsify") / "weights").read_bytes() == b"w"
    assert not partial.exists()


def test_what_a_stopped_stage_left_is_gone_at_resume(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "run")
    (workspace.begin("02-sparsify") / "half").write_bytes(b"w")
    Workspace.open(tmp_path / "run", resume=True)
    assert list((tmp_path / "run" / "stages").iterdir()) == []


def test_a_finished_stage_is_found_by_its_fingerprint_alone(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "run")
    workspace.begin("00-baseline")
    workspace.finish("00-baseline", {"fingerprint": "f", "n": 1})
    assert workspace.finished("00-baseline", "f") == {"fingerprint": "f", "n": 1}
    assert workspace.finished("00-baseline", "g") is None
    assert workspace.finished("01-prune", "f") is None


def test_a_damaged_record_makes_its_stage_run_again(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "run")
    workspace.begin("00-baseline")
    workspace.finish("00-baseline", {"fingerprint": "f"})
    (workspace.stage_directory("00-baseline") / "record.json").write_text("{")
    assert workspace.finished("00-baseline", "f") is None


def test_a_directory_that_is_not_empty_is_refused_with_both_ways_on(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WorkspaceError, match=r"--resume.*--overwrite"):
        Workspace.open(tmp_path)


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "run")
    workspace.begin("00-baseline")
    workspace.finish("00-baseline", {})
    workspace.write("report.json", b"{}")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    Workspace.open(tmp_path / "run", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["notes.txt", "stages"]
    assert list((tmp_path / "run" / "stages").iterdir()) == []


def test_what_is_kept_to_go_on_from_survives_a_resume_and_no_overwrite(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "run")
    kept = workspace.cache / "calibration.npz"
    for content, options in ((True, {"resume": True}), (False, {"overwrite": True})):
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(b"ranges")
        Workspace.open(tmp_path / "run", **options)
        assert kept.exists() == content
    kept.parent.mkdir()
    kept.write_bytes(b"ranges")
    workspace.write_manifest({})
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["files"] == {}
    workspace.drop_cache()
    assert not workspace.cache.exists()


def test_resume_and_overwrite_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="one of them"):
        Workspace.open(tmp_path / "run", resume=True, overwrite=True)


def test_an_out_that_is_a_file_or_lies_under_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="is a file"):
        Workspace.open(tmp_path / "file")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        Workspace.open(tmp_path / "file" / "run")


def test_a_full_disk_is_told_before_the_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkspaceError, match=r"(?i)no space left"):
        Workspace.open(tmp_path / "run")


def test_the_manifest_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "run")
    workspace.write("model.onnx", b"onnx")
    workspace.write_manifest({"seed": 3})
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["files"] == {"model.onnx": {"sha256": hashlib.sha256(b"onnx").hexdigest(), "bytes": 4}}


def test_the_fingerprint_changes_with_any_part(tmp_path: Path) -> None:
    base = fingerprint(config={"a": 1}, seed=0)
    assert base == fingerprint(seed=0, config={"a": 1})
    assert len({base, fingerprint(config={"a": 2}, seed=0), fingerprint(config={"a": 1}, seed=1)}) == 3
