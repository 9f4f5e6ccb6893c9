"""Loading a model file: what it is, what is in it, and where in the pipeline it can enter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import nn

from compress.errors import ModelError
from compress.models import state
from compress.models.factory import build, source_of
from compress.models.onnx_file import graph_inputs, opset
from compress.models.pickles import load_pickle
from compress.models.programs import exported_inputs, load_exported, load_torchscript
from compress.models.sniff import Content, sniff
from compress.values import InputSpec, OnnxModel

Kind = Literal["module", "torchscript", "exported", "onnx"]

_SKIPS: dict[Kind, str | None] = {
    "module": None,
    "torchscript": "prune and sparsify skipped: TorchScript is a fixed program; it enters at export",
    "exported": "prune and sparsify skipped: an exported program (.pt2) is a fixed graph; it enters at export",
    "onnx": "prune, sparsify and export skipped: the file is ONNX already; it enters at quantize",
}


@dataclass(frozen=True)
class Source:
    """A model file, read. ``module`` or ``onnx`` is set, never both."""

    path: Path
    kind: Kind
    sha256: str  # of the file, and of the files beside it that hold weights of an ONNX graph
    module: nn.Module | None = None  # on the CPU, in eval mode; float32, but for "exported", whose graph fixes dtypes
    onnx: OnnxModel | None = None
    inputs: tuple[InputSpec, ...] | None = None  # where the file tells them: "exported" with example inputs, "onnx"
    notes: tuple[str, ...] = ()  # what was done to the model while loading, one line each
    skips: str | None = None  # which stages cannot run and why, and where the model enters; None for "module"
    fixed_batch: int | None = None  # of an ONNX graph that runs no other; None: axis 0 of every input is free


def load(
    path: Path | str,
    *,
    factory: str | None = None,
    factory_args: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    trust_pickle: bool = False,
) -> Source:
    """Read a model file without running code from it.

    Args:
        path: torch.save of a module or of a state dict, safetensors, TorchScript, .pt2 or ONNX: the content decides.
        factory: what builds the module for a file that holds weights only: ``package.module:callable`` or
            ``./net.py:Net``.
        factory_args: keyword arguments for it.
        trust: classes that a pickled module may use besides torch's: ``package.module.Class``, or ``./net.py:Net`` for
            a class that the saving script defined itself.
        trust_pickle: read a pickle that is refused otherwise by running it.

    Raises:
        ModelError: the file, or the model in it, cannot be used.
    """
    path = Path(path)
    content = sniff(path)
    digest = _sha256(path)
    if content == "onnx":
        return _load_onnx(path, digest)
    if content == "exported":
        return _load_exported(path, digest, trust_pickle)
    if content == "torchscript":
        return _finish(path, "torchscript", digest, load_torchscript(path, trust_pickle=trust_pickle))
    # Mapped into memory only where the values are copied into a module: the file may be written again later.
    payload, notes = _read_payload(path, content, trust, trust_pickle, mapped=factory is not None)
    if isinstance(payload, nn.Module):
        if factory is not None:
            notes += (f"--factory {factory} is not used: the file holds the whole model",)
        return _finish(path, "module", digest, payload, notes)
    if not state.is_state(payload):
        raise ModelError(_explain_payload(path, payload))
    if factory is None:
        raise ModelError(state.explain_state(path, payload))
    module = build(factory, factory_args or {})
    state.fit(
        module,
        payload,
        what=str(path),
        target=f"--factory {factory} {json.dumps(dict(factory_args or {}), default=repr)}",
    )
    return _finish(path, "module", digest, module, notes + state.cast_notes(payload))


def load_new(factory: str, factory_args: Mapping[str, Any] | None = None, seed: int = 0) -> Source:
    """A module as its factory builds it, with new weights drawn from ``seed``: to be trained, not compressed.

    Raises:
        ModelError: the factory cannot be used.
    """
    torch.manual_seed(seed)
    module = build(factory, factory_args or {})
    identity = json.dumps([factory, dict(factory_args or {}), seed], default=repr, sort_keys=True).encode()
    return _finish(Path(factory), "module", hashlib.sha256(identity + source_of(factory)).hexdigest(), module)


def _read_payload(
    path: Path, content: Content, trust: Sequence[str], trust_pickle: bool, mapped: bool
) -> tuple[Any, tuple[str, ...]]:
    if content == "safetensors":
        return state.unwrap(state.read_safetensors(path))
    return state.unwrap(load_pickle(path, content, trust=trust, trust_pickle=trust_pickle, mapped=mapped))


def _finish(path: Path, kind: Kind, digest: str, module: nn.Module, notes: tuple[str, ...] = ()) -> Source:
    """Unwrap, check and cast a module that was just read; it belongs to nobody else, so it is changed in place."""
    if isinstance(module, nn.DataParallel):
        module = module.module
        notes += ("the DataParallel wrapper is taken off",)
    try:
        weights = module.state_dict()
        state.check_finite(path, weights)
        notes += state.cast_notes(weights)
        module = module.to("cpu").float().eval()
    except (AttributeError, TypeError) as error:
        raise ModelError(
            f"{path} holds a {type(module).__name__} that is not whole ({error}): it was saved by another version of "
            f"its class. Save its state_dict() and pass --factory package.module:callable."
        ) from error
    return Source(path, kind, digest, module=module, notes=tuple(dict.fromkeys(notes)), skips=_SKIPS[kind])


def _load_exported(path: Path, digest: str, trust_pickle: bool) -> Source:
    program = load_exported(path, trust_pickle=trust_pickle)
    state.check_finite(path, program.state_dict)
    return Source(
        path,
        "exported",
        digest,
        module=program.module(),
        inputs=exported_inputs(program),
        skips=_SKIPS["exported"],
    )


def _load_onnx(path: Path, digest: str) -> Source:
    model = onnx.load_model(path, load_external_data=False)
    apart = _external_files(path, model)
    if apart:  # the weights make the model what it is, too
        digest = hashlib.sha256(" ".join([digest, *map(_sha256, apart)]).encode()).hexdigest()
    inputs = graph_inputs(model, strict=False)  # sizes of free axes come from the data or --input
    output = [dimension.dim_value for dimension in model.graph.output[0].type.tensor_type.shape.dim]
    task: Literal["classification", "other"] = "classification" if len(output) == 2 and output[1] >= 2 else "other"
    return Source(
        path,
        "onnx",
        digest,
        onnx=OnnxModel(path, inputs, opset(model), task),
        inputs=inputs,
        skips=_SKIPS["onnx"],
        fixed_batch=_fixed_batch(model, inputs),
    )


def _fixed_batch(model: onnx.ModelProto, inputs: tuple[InputSpec, ...]) -> int | None:
    names = {spec.name for spec in inputs}
    batches = {v.type.tensor_type.shape.dim[0].dim_value for v in model.graph.input if v.name in names}
    return max(batches) or None


def _external_files(path: Path, model: onnx.ModelProto) -> list[Path]:
    """The files beside an ONNX graph that hold its weights, by name."""
    files = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if tensor.data_location == onnx.TensorProto.EXTERNAL and entry.key == "location"
    }
    missing = sorted(name for name in files if not (path.parent / name).is_file())
    if missing:
        raise ModelError(f"{path} keeps its weights in {missing[0]!r}, which is not beside it. Put both in one folder.")
    return [path.parent / name for name in sorted(files)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _explain_payload(path: Path, payload: Any) -> str:
    if isinstance(payload, Mapping):
        keys = ", ".join(str(key) for key in list(payload)[:6]) or "none"
        return (
            f"{path} holds a dict without a model in it (keys: {keys}). Save the module itself, or its state_dict(), "
            f"with torch.save."
        )
    return (
        f"{path} holds a {type(payload).__name__}, not a model. Save the module, or its state_dict(), with torch.save."
    )
