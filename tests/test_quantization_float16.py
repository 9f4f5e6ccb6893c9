"""compress.quantization.float16: half of the bytes, for GPUs; it also runs on the CPU, slowly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from compress.errors import QuantizationError
from compress.models.onnx_file import run, serialize
from compress.quantization import QuantizeConfig
from compress.quantization.float16 import to_float16
from compress.quantization.graph import array, constants, replace_constants
from tests.test_quantization import GRAPHS, _cnn, _quantize, _samples


@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_weights_are_halves_and_inputs_and_outputs_keep_their_type(kind: str) -> None:
    before, after = GRAPHS[kind](), to_float16(GRAPHS[kind]())
    kinds = {tensor.data_type for tensor in after.graph.initializer if tensor.name in constants(before)}
    assert kinds == {TensorProto.FLOAT16}
    for values in zip(before.graph.input, after.graph.input, strict=True):
        assert values[0].type == values[1].type
    assert after.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_file_runs_close_to_float(batch: int) -> None:
    feed = {"input": _samples("cnn")[:batch]}
    wanted, found = (next(run(serialize(proto), [feed]))[0] for proto in (_cnn(), to_float16(_cnn())))
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_a_weight_beyond_the_range_of_float16_is_refused_by_name() -> None:
    proto = _cnn()
    replace_constants(proto, {"fc.weight": array(constants(proto)["fc.weight"]) * 1e6})
    with pytest.raises(QuantizationError, match=r"fc\.weight reaches .* float16 ends at 65504"):
        to_float16(proto)


def test_it_is_made_on_request_and_not_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.quantization.stage.has_cuda", lambda: False)
    config = {"method": "weights"}
    assert "float16" not in _quantize("cnn", tmp_path, QuantizeConfig(**config))[0]
    variants, _ = _quantize("cnn", tmp_path, QuantizeConfig(**config, float16="yes"))
    assert onnx.load(str(variants["float16"].onnx.path)).graph.input[0].name == "input"
    monkeypatch.setattr("compress.quantization.stage.has_cuda", lambda: True)
    assert "float16" in _quantize("cnn", tmp_path, QuantizeConfig(**config))[0]
