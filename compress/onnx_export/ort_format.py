"""ONNX Runtime's own file format, .ort: read by the small runtimes for phones and the web, and quicker to load."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from compress.data.examples import examples
from compress.errors import ExportError
from compress.files import copy_atomically
from compress.models.onnx_file import Array, first_line, graph_inputs, read
from compress.values import InputSpec

_ERRORS_ONLY = 3  # onnxruntime's log severity
# An .ort file is run as it was saved. EXTENDED makes int8 operators of QuantizeLinear … DequantizeLinear, which runs
# ten times as fast as BASIC; ALL also writes blocked convolutions that only processors like this one have kernels for.
_LEVEL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED


def to_ort(source: Path, target: Path, inputs: Sequence[InputSpec] = ()) -> None:
    """Write ``source``, float or int8, as ``target`` in the .ort format, and check that it gives the same outputs.

    The file is portable: it holds no operator that only this processor has kernels for. Float convolutions run without
    the blocked layout that onnxruntime gives an .onnx file when it loads it: such nets are several times slower as
    .ort, where int8 ones and those of matrix products are not.

    Equal files give equal outputs, and not equal bytes: onnxruntime writes its tables in no fixed order.

    Args:
        source: An ONNX file of at most 2 GB.
        target: The file to write.
        inputs: The sizes of free axes, where the file does not tell the usual ones itself.

    Raises:
        ExportError: onnxruntime cannot write the file, or the file gives other outputs than ``source``.
        WorkspaceError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.ort"
        options = _options()
        options.optimized_model_filepath = str(made)
        options.add_session_config_entry("session.save_model_format", "ORT")
        try:
            session = onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
            feed = _made_up(source, inputs)
            expected = session.run(None, feed)
            restored = onnxruntime.InferenceSession(str(made), _options(), providers=["CPUExecutionProvider"])
            found = restored.run(None, feed)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise ExportError(
                f"{source} cannot be written as .ort: {first_line(error)}. Ship the .onnx file, without export.ort."
            ) from error
        if not all(np.array_equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True)):
            raise ExportError(f"{target} gives other outputs than {source}. Ship the .onnx file, without export.ort.")
        copy_atomically(made, target)


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVEL
    options.intra_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    return options


def _made_up(source: Path, like: Sequence[InputSpec]) -> dict[str, Array]:
    inputs = graph_inputs(read(source, weights=False), like)
    columns = examples(inputs, None, 1)
    return {spec.name: column.numpy() for spec, column in zip(inputs, columns, strict=True)}
