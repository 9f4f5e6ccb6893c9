"""A torch module becomes an ONNX graph."""

from __future__ import annotations

import inspect
import re
import sysconfig
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from compress.errors import ExportError
from compress.models.onnx_file import first_line
from compress.quiet import quiet
from compress.values import Model

_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_BATCH = 2  # with a batch of 1 the exporter may take axis 0 for a constant


def trace(model: Model, samples: Sequence[torch.Tensor], outputs: int, opset: int) -> onnx.ModelProto:
    """Export ``model`` with torch's exporter and a free batch axis, in memory and without a word on the console.

    Args:
        model: What to export; a ScriptModule goes through the TorchScript exporter, all others through torch.export.
        samples: One tensor an input, (N, …) with N >= 2.
        outputs: How many tensors the model returns.
        opset: Of the default domain.

    Raises:
        ExportError: torch refuses the module.
    """
    batch = tuple(column[:_BATCH] for column in samples)
    names = {
        "input_names": [spec.name for spec in model.inputs],
        "output_names": ["output", *(f"output_{i}" for i in range(1, outputs))],
        "opset_version": opset,
    }
    scripted = isinstance(model.module, torch.jit.ScriptModule)
    try:
        with quiet(), torch.no_grad():
            return _from_script(model.module, batch, names) if scripted else _from_export(model.module, batch, names)
    except Exception as error:  # torch raises errors of a dozen unrelated types here
        raise _refusal(error) from error


def _from_export(module: torch.nn.Module, batch: tuple[torch.Tensor, ...], names: dict[str, Any]) -> onnx.ModelProto:
    program = torch.onnx.export(
        module, batch, dynamo=True, dynamic_shapes=_free_batch(module, len(batch)), verbose=False, **names
    )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


def _from_script(module: torch.nn.Module, batch: tuple[torch.Tensor, ...], names: dict[str, Any]) -> onnx.ModelProto:
    axes = {name: {0: "batch"} for name in (*names["input_names"], *names["output_names"])}
    with tempfile.TemporaryDirectory() as folder:  # this exporter writes files only
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module, batch, path, dynamo=False, dynamic_axes=axes, **names)
        return onnx.load(str(path))


def _free_batch(module: torch.nn.Module, count: int) -> tuple[Any, ...]:
    """Axis 0 of each input is free, in the structure of forward()'s arguments, where *args are one nested tuple."""
    free = [{0: torch.export.Dim.DYNAMIC} for _ in range(count)]
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(free)
    named = min(kinds.index(inspect.Parameter.VAR_POSITIONAL), count)
    return (*free[:named], tuple(free[named:]))


def _refusal(error: Exception) -> ExportError:
    """What torch said, where in the user's code, and what to do about it, in two lines."""
    chain = list(_causes(error))
    text = "\n".join(str(cause) for cause in chain)
    where = _user_code(chain, text)
    said = first_line(chain[-1])
    if "data-dependent" in text:
        return ExportError(
            f"the model cannot be exported{where}: its control flow depends on the data ({said}).\n"
            "Replace the Python if by torch.where or torch.cond."
        )
    static = re.search(r"static shape of (\d+)", text)
    if static or "Constraints violated" in text:
        size = f" of {static[1]}" if static else ""
        return ExportError(
            f"the model cannot be exported{where}: it works with a fixed batch{size} only.\n"
            "Write x.view(-1, …) instead of a fixed size; a .pt2 program must be saved with dynamic_shapes for axis 0."
        )
    return ExportError(
        f"torch {torch.__version__} cannot export the model{where}: {said} ({type(chain[-1]).__name__}).\n"
        "Rewrite that part of forward(), or give the model as ONNX."
    )


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, the first cause last."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _user_code(chain: list[BaseException], text: str) -> str:
    """The innermost line outside the libraries, as " at net.py, line 7"; empty where the traces do not show it."""
    named = re.findall(r'The following call raised this error:\s+File "([^"]+)", line (\d+)', text)
    frames = [(f.filename, f.lineno) for cause in chain for f in traceback.extract_tb(cause.__traceback__)]
    own = [f for f in frames if Path(f[0]).is_file() and not f[0].startswith(_LIBRARIES) and f[0] != __file__]
    file, line = next(iter((*named, *reversed(own))), (None, None))
    return f" at {Path(file).name}, line {line}" if file else ""
