"""compress quantize: candidates, measured, and the best of them as model.onnx."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from compress.models.onnx_file import provenance
from tests.conftest import Call
from tests.test_quantization import _cnn

FAST = ("--set", "benchmark.seconds=0.05", "--set", "benchmark.rounds=2", "--set", "quantize.types=u8s8")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(_cnn().SerializeToString())
    return path


def test_the_best_file_is_written_with_its_provenance(compress: Call, model: Path, tmp_path: Path) -> None:
    """Random weights and made-up inputs: dropping nothing is what keeps any of them."""
    outcome = compress("quantize", model, "--input", "1x8x8", "--objective", "size", "--max-drop", 1, *FAST)
    assert outcome.status == 0, outcome.err
    out = tmp_path / "quantized"
    found = json.loads((out / "quantize.json").read_text())
    names = {variant["name"] for variant in found["variants"]}
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.onnx" for name in names), "model.onnx", "model.onnx.zip", "quantize.json",
    }  # fmt: skip
    assert found["shipped"] == min(found["variants"], key=lambda variant: variant["zip_bytes"])["name"]
    facts = provenance(out / "model.onnx")
    assert facts["variant"] == found["shipped"]
    assert set(facts["versions"]) == {"compress", "torch", "onnx", "onnxruntime"}
    assert f"model.onnx: {found['shipped']}" in outcome.out


def test_nothing_of_an_earlier_run_is_left(compress: Call, model: Path, tmp_path: Path) -> None:
    (tmp_path / "quantized").mkdir()
    (tmp_path / "quantized" / "mine.onnx").write_bytes(b"the user's own")
    shared = ("quantize", model, "--input", "1x8x8", "--max-drop", 1, "--overwrite", *FAST)
    assert compress(*shared, "--method", "weights", "--set", "quantize.float16=yes").status == 0
    assert (tmp_path / "quantized" / "float16.onnx").is_file()
    assert compress(*shared, "--method", "weights").status == 0
    assert not (tmp_path / "quantized" / "float16.onnx").exists()
    assert (tmp_path / "quantized" / "mine.onnx").is_file()


def test_the_source_is_not_replaced(compress: Call, model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    outcome = compress("quantize", model, "--input", "1x8x8", "--out", tmp_path, "--overwrite", *FAST)
    assert outcome.status == 2
    assert "would replace" in outcome.err
    assert model.read_bytes() == before


def test_where_no_candidate_keeps_the_accuracy_the_float_file_ships_and_the_status_is_3(
    compress: Call, model: Path, tmp_path: Path
) -> None:
    poisoned = onnx.load(str(model))
    weight = next(tensor for tensor in poisoned.graph.initializer if tensor.name == "fc.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] = 1e6  # one scale a tensor: all others round to nothing
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "fc.weight"))
    model.write_bytes(poisoned.SerializeToString())
    plain = ("--set", "quantize.per_channel=no")
    options = ("--input", "1x8x8", "--method", "weights", "--max-drop", 0, *plain, *FAST)
    outcome = compress("quantize", model, *options)
    found = json.loads((tmp_path / "quantized" / "quantize.json").read_text())
    assert (outcome.status, found["shipped"], found["met"]) == (3, "float", False)


def test_an_unknown_target_is_refused_with_those_there_are(compress: Call, model: Path) -> None:
    outcome = compress("quantize", model, "--input", "1x8x8", "--target-isa", "z80")
    assert outcome.status == 2
    assert "avx512-vnni" in outcome.err
