"""The quantize stage: a float ONNX file becomes int8 candidates, without training."""

from compress.quantization.stage import QuantizeConfig, quantize

__all__ = ["QuantizeConfig", "quantize"]
