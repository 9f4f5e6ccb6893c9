"""A torch module becomes an ONNX graph."""

from __future__ import annotations

import contextlib
import inspect
import re
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import ir

from compress.errors import ExportError
from compress.models.attention import plain_attention
from compress.models.onnx_file import first_line
from compress.onnx_export.weights import INLINE, Traced, Value, from_file
from compress.quiet import quiet
from compress.values import InputSpec, Model

_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_BATCH = 2  # with a batch of 1 the exporter may take axis 0 for a constant


def from_export(
    model: Model, inputs: Sequence[InputSpec], samples: Sequence[torch.Tensor], outputs: int, opset: int, external: bool
) -> Traced:
    """Export ``model`` through torch.export, in memory and without a word on the console.

    Args:
        model: What to export; no ScriptModule.
        inputs: Of the model; the batch and their free axes are free in the graph.
        samples: One tensor an input, (N, …) with N >= 2.
        outputs: How many tensors the model returns.
        opset: Of the default domain.
        external: Leave the weights where they are: the graph holds none of them.

    Raises:
        ExportError: torch refuses the module.
    """
    batch = tuple(column[:_BATCH] for column in samples)
    try:
        with quiet(), torch.no_grad(), _own_recurrent_rules(), plain_attention():
            shapes = _free_axes(model.module, inputs)
            names = _names(inputs, outputs, opset)
            program = torch.onnx.export(model.module, batch, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
            assert program is not None
            return _without_weights(program.model) if external else Traced(program.model_proto)
    except Exception as error:  # torch raises errors of a dozen unrelated types here
        raise _refusal(error) from error


def from_script(
    model: Model,
    inputs: Sequence[InputSpec],
    samples: Sequence[torch.Tensor],
    outputs: int,
    opset: int,
    external: Path | None,
) -> Traced:
    """Export a ScriptModule, or a module as it runs on ``samples``, through torch's old TorchScript exporter.

    A branch of a plain module that depends on the data is frozen without a word: the caller proves parity.

    Args:
        external: An empty folder where the weights may lie for as long as the result is used; None: in the graph.

    Raises:
        ExportError: torch refuses the module.
    """
    batch = tuple(column[:_BATCH] for column in samples)
    names = _names(inputs, outputs, opset)
    free = [{0: "batch", **{axis + 1: "length" for axis in spec.free}} for spec in inputs]
    axes = dict(zip(names["input_names"], free, strict=True)) | {name: {0: "batch"} for name in names["output_names"]}
    try:
        with quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:  # this exporter writes files only
            path = (external or Path(folder)) / "traced.onnx"
            torch.onnx.export(model.module, batch, path, dynamo=False, dynamic_axes=axes, **names)
            return Traced(onnx.load(str(path))) if external is None else from_file(path)
    except Exception as error:  # torch raises errors of a dozen unrelated types here
        raise _refusal(error) from error


def _names(inputs: Sequence[InputSpec], outputs: int, opset: int) -> dict[str, Any]:
    return {
        "input_names": [spec.name for spec in inputs],
        "output_names": ["output", *(f"output_{i}" for i in range(1, outputs))],
        "opset_version": opset,
    }


def _free_axes(module: torch.nn.Module, inputs: Sequence[InputSpec]) -> tuple[Any, ...]:
    """The free axes of each input, in the structure of forward()'s arguments, where *args are one nested tuple."""
    free = [dict.fromkeys((0, *(axis + 1 for axis in spec.free)), torch.export.Dim.DYNAMIC) for spec in inputs]
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(free)
    named = min(kinds.index(inspect.Parameter.VAR_POSITIONAL), len(free))
    return (*free[:named], tuple(free[named:]))


@contextlib.contextmanager
def _own_recurrent_rules() -> Iterator[None]:
    """Make torch look up anew, before and after, how it traces LSTM and GRU.

    torch's exporter swaps these rules while it runs, but not in the operators' caches: the second export in a process
    would then find the length of a text fixed (torch 2.13).
    """

    def forget() -> None:
        for operator in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
            getattr(operator, "_dispatch_cache", {}).clear()

    forget()
    try:
        yield
    finally:
        forget()


def _without_weights(model: ir.Model) -> Traced:
    """The graph, with large weights as views of the module's own."""
    values: dict[str, Value] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > INLINE:
            values[name] = tensor.numpy
            value.const_value = ir.ExternalTensor("", 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name)
    return Traced(ir.to_proto(model), values)


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
