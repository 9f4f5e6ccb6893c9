"""The export stage: a torch model becomes a float ONNX file that gives the same results."""

from compress.onnx_export.ort_format import to_ort
from compress.onnx_export.stage import ExportConfig, export

__all__ = ["ExportConfig", "export", "to_ort"]
