"""compress.quantization.fast: small layers stay in float where that is measured to be faster."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from compress.quantization import QuantizeConfig
from compress.quantization.judge import Judge
from tests.test_quantization import _quantize


def _weights_in_int8(data: bytes) -> set[str]:
    """Which layers of the CNN are quantized, by the shapes of their weights."""
    names = {(16, 1, 3, 3): "conv", (16, 1, 2, 2): "depthwise", (3, 64): "fc", (64, 3): "fc"}
    tensors = onnx.load_from_string(data).graph.initializer
    return {names[tuple(t.dims)] for t in tensors if t.data_type == onnx.TensorProto.INT8 and tuple(t.dims) in names}


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What each layer takes in int8, in milliseconds; in float each takes 1."""
    each = {"conv": 0.5, "depthwise": 0.5, "fc": 0.5}

    def p50_ms(self: Judge, data: bytes) -> tuple[float, float]:
        quantized = _weights_in_int8(data)
        return sum(each[name] if name in quantized else 1.0 for name in each), float(len(each))

    monkeypatch.setattr(Judge, "p50_ms", p50_ms)
    return each


def test_a_layer_that_int8_makes_slower_stays_in_float_and_the_others_do_not(
    costs: dict[str, float], tmp_path: Path
) -> None:
    costs["conv"] = 3.0
    variants, record = _quantize("cnn", tmp_path, QuantizeConfig())
    assert _weights_in_int8(variants["int8-fast"].onnx.path.read_bytes()) == {"depthwise", "fc"}
    assert _weights_in_int8(variants["int8"].onnx.path.read_bytes()) == {"conv", "depthwise", "fc"}
    assert record.figures["fast"]["int8"]["layers"] == ["conv"]
    assert record.figures["files"]["int8-fast"]["layers_in_float"] == 1


def test_where_int8_is_faster_everywhere_there_is_no_such_file(costs: dict[str, float], tmp_path: Path) -> None:
    variants, record = _quantize("cnn", tmp_path, QuantizeConfig())
    assert "int8-fast" not in variants
    assert record.figures["fast"]["int8"]["layers"] == []


def test_what_is_closer_than_noise_changes_nothing(costs: dict[str, float], tmp_path: Path) -> None:
    costs["conv"] = 1.02
    assert "int8-fast" not in _quantize("cnn", tmp_path, QuantizeConfig())[0]


def test_it_can_be_left_out(costs: dict[str, float], tmp_path: Path) -> None:
    costs["conv"] = 3.0
    variants, record = _quantize("cnn", tmp_path, QuantizeConfig(fast="no"))
    assert "int8-fast" not in variants
    assert "fast" not in record.figures
