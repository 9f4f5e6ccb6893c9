"""compress.quantization.large: files above 2 GB, shown on small ones with the limit lowered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from compress.errors import QuantizationError
from compress.models.counts import count
from compress.quantization import QuantizeConfig, quantize
from compress.values import Context, OnnxModel
from tests.test_quantization import INPUTS, _data, _mlp, _samples


@pytest.fixture
def external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnnxModel:
    """A file whose weights lie beside it, and which counts as large."""
    monkeypatch.setattr("compress.quantization.stage.LARGE", 1000)
    path = tmp_path / "model.onnx"
    onnx.save(_mlp(zeros=0.5), str(path), save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return OnnxModel(path, INPUTS["mlp"], 18)


def test_a_large_file_gets_int8_weights_read_one_by_one(external: OnnxModel, tmp_path: Path) -> None:
    context = Context(data=_data("mlp"), directory=tmp_path / "quantize")
    ((variant,), record) = quantize(external, QuantizeConfig(), context)
    assert variant.name == "int8-weights"
    assert "above 2 GB" in record.notes[0]
    assert not onnx.load(str(variant.onnx.path), load_external_data=False).graph.initializer[0].external_data
    x = _samples("mlp")
    float_outputs, outputs = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]
        for path in (external.path, variant.onnx.path)
    )
    assert 10 * np.log10(np.square(float_outputs).sum() / np.square(float_outputs - outputs).sum()) > 35
    before, after = count(external.path), count(variant.onnx.path)
    assert (before.parameters, before.macs) == (after.parameters, after.macs)
    assert after.nonzero <= before.nonzero


def test_other_methods_are_refused_for_a_large_file(external: OnnxModel, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"above 2 GB.*method=weights"):
        quantize(external, QuantizeConfig(method="dynamic"), Context(data=_data("mlp"), directory=tmp_path))
