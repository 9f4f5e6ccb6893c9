"""compress inspect of ONNX files: operators, size, and where the file says that it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.models.onnx_file import stamp
from tests.conftest import Call
from tests.test_quantization import _cnn

FACTS = {"source": "ab" * 32, "variant": "baseline-int8", "versions": {"onnx": "1.23.2"}, "accuracy": 0.9}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(_cnn(zeros=0.5).SerializeToString())
    return path


def test_a_file_is_told_by_its_operators_its_versions_and_its_weights(compress: Call, file: Path) -> None:
    outcome = compress("inspect", file)
    assert outcome.status == 0
    rows = [line.split() for line in outcome.out.splitlines()]
    assert rows[1:4] == [["Conv", "2"], ["Relu", "2"], ["Flatten", "1"]]
    size = file.stat().st_size
    assert f"opset 18, IR version 10, {size:,} bytes." in outcome.out
    assert "The file does not say where it comes from." in outcome.out


def test_provenance_is_told(compress: Call, file: Path) -> None:
    file.write_bytes(stamp(file, FACTS))
    out = compress("inspect", file).out
    for line in ("variant: baseline-int8", "versions: onnx 1.23.2", "accuracy: 0.9", f"source: {'ab' * 32}"):
        assert line in out.splitlines()
    assert "does not say" not in out


def test_json_holds_the_same(compress: Call, file: Path) -> None:
    file.write_bytes(stamp(file, FACTS))
    facts = json.loads(compress("inspect", file, "--json").out)
    assert facts["provenance"] == FACTS
    assert facts["operators"]["Conv"] == 2
    assert (facts["opset"], facts["ir_version"], facts["raw_bytes"]) == (18, 10, file.stat().st_size)
    assert facts["parameters"] == 16 * 9 + 16 + 16 * 4 + 3 * 64 + 3
    assert 0 < facts["nonzero"] < facts["parameters"]
    assert facts["macs"] == 16 * 9 * 36 + 16 * 4 * 4 + 3 * 64


def test_the_channel_groups_of_an_onnx_file_cannot_be_scanned(compress: Call, file: Path) -> None:
    outcome = compress("inspect", file, "--sensitivity", "--data", "digits")
    assert outcome.status == 1
    assert "needs a torch module" in outcome.err
