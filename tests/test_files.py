"""compress.files: a file is the old one or the new one, whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

import pytest

from compress.errors import WorkspaceError
from compress.files import copy_atomically, opened_atomically, write_atomically


def test_a_file_is_written_with_the_folders_above_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "model.onnx"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_a_file_that_exists_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_file_gets_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_failed_write_is_one_line_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WorkspaceError, match=os.strerror(code)) as caught:
        write_atomically(path, b"new")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(WorkspaceError, match="cannot write"):
        write_atomically(tmp_path / "out" / "model.onnx", b"new")


def test_a_copy_holds_the_bytes_of_its_source_which_may_be_the_target_itself(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"weights")
    copy_atomically(tmp_path / "source", tmp_path / "new" / "target")
    copy_atomically(tmp_path / "source", tmp_path / "source")
    assert (tmp_path / "new" / "target").read_bytes() == (tmp_path / "source").read_bytes() == b"weights"


def _write_half(file: IO[bytes]) -> None:
    file.write(b"ne")
    raise ValueError("half")


def test_content_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(ValueError, match="half"), opened_atomically(tmp_path / "out") as file:
        _write_half(file)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("out", b"old")]
