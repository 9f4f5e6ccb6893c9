"""A trained module becomes a float ONNX file: torch's exporter, onnxslim, and nothing in it that is not the model."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnxslim
import torch
from torch import Tensor, nn

from benchmarks.peers.stripping import strip

OPSET, IR_VERSION = 18, 10


def export(module: nn.Module, example: tuple[Tensor, ...], names: Sequence[str], path: Path) -> None:
    """Write ``module`` to ``path``, its batch free.

    Args:
        example: Inputs (N, …) with N >= 2: with one the exporter would take axis 0 for a constant.
        names: Of the inputs.
    """
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            example,
            input_names=list(names),
            output_names=["output"],
            opset_version=OPSET,
            dynamic_shapes=free,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        proto = onnxslim.slim(program.model_proto)
    strip(proto)
    proto.ir_version = IR_VERSION
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's and onnxslim's progress goes nowhere; their errors are raised."""
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
