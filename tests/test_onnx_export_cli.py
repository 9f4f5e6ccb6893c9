"""`compress export`: its options reach the file."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from compress.models.onnx_file import opset, read
from tests.conftest import Call


def test_the_oldest_onnxruntime_decides_the_versions(compress: Call, model_file: Path, tmp_path: Path) -> None:
    outcome = compress("export", model_file, "--input", "1x8x8", "--min-ort", "1.13")
    assert outcome.status == 0, outcome.err
    proto = read(tmp_path / "model.onnx")
    assert (opset(proto), proto.ir_version) == (17, 8)
    assert "opset 17, IR version 8" in outcome.out


def test_an_opset_that_the_oldest_onnxruntime_cannot_read_is_refused(compress: Call, model_file: Path) -> None:
    outcome = compress("export", model_file, "--input", "1x8x8", "--min-ort", "1.13", "--opset", "18")
    assert outcome.status == 1
    assert "export.opset=18: onnxruntime 1.13 (export.min_ort) reads up to 17" in outcome.err


def test_ort_writes_onnxruntimes_own_format_beside_the_file(compress: Call, model_file: Path, tmp_path: Path) -> None:
    outcome = compress("export", model_file, "--input", "1x8x8", "--ort")
    assert outcome.status == 0, outcome.err
    session = onnxruntime.InferenceSession(tmp_path / "model.ort", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    assert "model.ort: " in outcome.out


def test_a_free_length_needs_a_text(compress: Call, model_file: Path) -> None:
    outcome = compress("export", model_file, "--input", "1x8x8", "--dynamic-length", "yes")
    assert outcome.status == 1
    assert "no input is a text" in outcome.err


def test_the_onnx_file_cannot_have_the_name_of_the_ort_file(compress: Call, model_file: Path) -> None:
    outcome = compress("export", model_file, "--input", "1x8x8", "--ort", "--out", "small.ort")
    assert outcome.status == 2
    assert "name it small.onnx, and give --ort" in outcome.err
