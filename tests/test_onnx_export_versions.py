"""compress.onnx_export.versions: what an old onnxruntime reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from compress.errors import RecipeError
from compress.models.onnx_file import opset, read
from compress.onnx_export import ExportConfig, export
from compress.onnx_export.versions import Versions, versions
from compress.values import Context, InputSpec, Model


@pytest.mark.parametrize(
    ("min_ort", "expected"),
    [
        ("1.12", Versions(17, 8)),
        ("1.14", Versions(18, 8)),
        ("1.15.1", Versions(18, 8)),
        ("1.16", Versions(18, 9)),
        ("1.17", Versions(18, 9)),
        ("1.18", Versions(18, 10)),
        ("1.31", Versions(18, 10)),
        ("2.0", Versions(18, 10)),
    ],
)
def test_an_old_release_gets_the_newest_versions_that_it_reads(min_ort: str, expected: Versions) -> None:
    assert versions(min_ort, None, None) == expected


def test_versions_that_were_asked_for_are_taken_where_the_release_reads_them() -> None:
    assert versions("1.16", 19, 8) == Versions(19, 8)


@pytest.mark.parametrize(
    ("min_ort", "opset", "ir_version", "message"),
    [
        ("1.16", 20, None, r"export.opset=20: onnxruntime 1.16 \(export.min_ort\) reads up to 19"),
        ("1.16", None, 10, r"export.ir_version=10: onnxruntime 1.16 \(export.min_ort\) reads up to 9"),
        ("1.13", 18, 9, r"opset=18: onnxruntime 1.13 .* up to 17; .*ir_version=9: .* up to 8"),
        ("1.11", None, None, r"min_ort='1.11': write a release of onnxruntime from 1.12 on"),
        ("latest", None, None, "min_ort='latest'"),
        ("1.18", 21, None, "export.opset=21: allowed are 17 to 20"),
    ],
)
def test_what_the_release_cannot_read_is_refused(
    min_ort: str, opset: int | None, ir_version: int | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        ExportConfig(min_ort=min_ort, opset=opset, ir_version=ir_version)


def test_the_file_has_the_versions_of_the_release(tmp_path: Path) -> None:
    model = Model(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), (InputSpec("x", (4,)),))
    made, record = export(model, ExportConfig(min_ort="1.13"), Context(data=None, directory=tmp_path))
    proto = read(made.path)
    assert (opset(proto), proto.ir_version) == (made.opset, record.figures["ir_version"]) == (17, 8)
