"""The quantize stage: a float ONNX file becomes int8 candidates, without training."""

from compress.quantization.options import QuantizeConfig
from compress.quantization.stage import quantize

__all__ = ["QuantizeConfig", "quantize"]
