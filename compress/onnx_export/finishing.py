"""From a traced graph to one that may become a file: cleaned, folded, simplified, checked, and equal to torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxslim
import torch

from compress.errors import ExportError, ModelError
from compress.models.onnx_file import first_line, graph_inputs, opset, serialize, strip, write_sizes
from compress.onnx_export.folding import (
    arrange_gelus,
    batch_norms_left,
    fold_batch_norms,
    fold_transposes,
    foldable_nodes,
    forward_constants,
)
from compress.onnx_export.parity import Case, compare
from compress.onnx_export.weights import Traced, write_external
from compress.quiet import quiet
from compress.values import InputSpec


@dataclass(frozen=True)
class Target:
    """What the file must be."""

    inputs: tuple[InputSpec, ...]
    opset: int
    ir_version: int
    simplify: bool
    tolerance: float
    path: Path | None  # where to write the graph, its weights beside it; None: nothing is written


@dataclass(frozen=True)
class Finished:
    """A graph that is valid and agrees with torch."""

    data: bytes | None  # None: it lies in ``path``
    path: Path | None
    parity: float  # largest absolute difference from torch
    figures: dict[str, Any]
    notes: tuple[str, ...]


def finish(traced: Traced, cases: Sequence[Case], target: Target) -> Finished:
    """Strip, name, fold and simplify a traced graph, which is changed, and compare it with torch on every case.

    Raises:
        ExportError: the graph has other inputs than the model, is not valid, or does not agree with torch.
        WorkspaceError: a file cannot be written.
    """
    _clean(traced.proto, cases, target)
    forward_constants(traced.proto)
    arrange_gelus(traced.proto)
    folded, count = fold_batch_norms(traced)
    if target.path is not None:
        return _finish_external(fold_transposes(folded), count, cases, target)
    forms = [(folded, count)] if count == 0 else [(folded, count), (traced, 0)]
    notes: list[str] = []
    for form, done in forms:
        try:
            proto, parity, slim_notes = _simplified(form.proto, cases, target)
        except ExportError as error:
            if done == 0:
                raise
            notes.append(f"BatchNorm is not folded, since the folded graph did not pass: {first_line(error)}")
            continue
        figures, left = _figures(proto, done)
        return Finished(serialize(proto), None, parity, figures, (*notes, *slim_notes, *left))
    raise AssertionError("the last form is returned or raises")


def _finish_external(traced: Traced, folded: int, cases: Sequence[Case], target: Target) -> Finished:
    assert target.path is not None
    write_external(traced, target.path)
    parity = _checked(target.path, cases, target)
    figures, left = _figures(traced.proto, folded)
    notes = (*_not_simplified(target), *left)
    return Finished(None, target.path, parity, figures, notes)


def _not_simplified(target: Target) -> Iterator[str]:
    if target.simplify:
        yield "not simplified: onnxslim would need all weights in memory; BatchNorm and transposed weights are folded"


def _figures(proto: onnx.ModelProto, folded: int) -> tuple[dict[str, Any], Iterator[str]]:
    """What was folded and what is left, and a note where something is."""
    norms, foldable = batch_norms_left(proto), foldable_nodes(proto)
    figures = {
        "nodes": len(proto.graph.node),
        "batch_norms_folded": folded,
        "batch_norms_left": norms,
        "foldable_left": len(foldable),
    }
    return figures, _left(norms, foldable)


def _left(norms: int, foldable: Sequence[str]) -> Iterator[str]:
    if norms:
        yield f"{norms} BatchNormalization are left: no Conv or Gemm comes directly before, or something else takes it"
    if foldable:
        yield f"{len(foldable)} operators with constant inputs are left: {', '.join(sorted(set(foldable)))}"


def _clean(proto: onnx.ModelProto, cases: Sequence[Case], target: Target) -> None:
    """Strip the graph, stamp its version, name its free axes, and refuse a graph with other inputs than the model."""
    strip(proto)
    proto.ir_version = target.ir_version
    if opset(proto) != target.opset:
        raise ExportError(
            f"the exporter of torch {torch.__version__} wrote opset {opset(proto)} where {target.opset} was asked for. "
            f"Set export.opset={opset(proto)}."
        )
    _name_axes(proto, target.inputs)
    _free_outputs(proto, cases)
    try:
        found = graph_inputs(proto, target.inputs)
    except ModelError as error:
        raise ExportError(str(error)) from error
    if [_interface(spec) for spec in found] != [_interface(spec) for spec in target.inputs]:
        raise ExportError(
            f"the model takes {_describe(target.inputs)}, its ONNX graph {_describe(found)}. "
            "An input that the model ignores must be removed from its forward()."
        )
    write_sizes(proto, target.inputs)


def _name_axes(proto: onnx.ModelProto, inputs: Sequence[InputSpec]) -> None:
    """Give the symbols of free axes names that tell what they are: batch, length."""
    free = {spec.name: spec.free for spec in inputs}
    names: dict[str, str] = {}
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        names.update({dim.dim_param: "batch" for dim in dims[:1] if dim.dim_param})
        for axis in free.get(value.name, ()):
            lengths = sum(name.startswith("length") for name in names.values())
            if axis + 1 < len(dims) and dims[axis + 1].dim_param not in ("", *names):
                names[dims[axis + 1].dim_param] = f"length_{lengths}" if lengths else "length"
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _free_outputs(proto: onnx.ModelProto, cases: Sequence[Case]) -> None:
    """Free the axes of outputs that are not of one size in torch; the old exporter fixes all but those it is told."""
    for number, value in enumerate(proto.graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            sizes = {case.outputs[number].shape[axis : axis + 1] for case in cases}
            if len(sizes) > 1 and dim.HasField("dim_value"):
                dim.dim_param = "batch" if axis == 0 else f"{value.name}_{axis}"


def _interface(spec: InputSpec) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return spec.name, spec.shape, spec.free


def _describe(inputs: Sequence[InputSpec]) -> str:
    sizes = [[f"{n} (any)" if axis in spec.free else str(n) for axis, n in enumerate(spec.shape)] for spec in inputs]
    return ", ".join(f"{spec.name} ({', '.join(told)})" for spec, told in zip(inputs, sizes, strict=True))


def _simplified(
    proto: onnx.ModelProto, cases: Sequence[Case], target: Target
) -> tuple[onnx.ModelProto, float, tuple[str, ...]]:
    """The simplified graph, its parity, and notes; the graph as it was where simplifying it fails."""
    notes: tuple[str, ...] = ()
    if target.simplify:
        try:
            slim = _slim(proto, target)
            return slim, _checked(slim, cases, target), notes
        except Exception as error:  # the file must not depend on the health of the simplifier
            notes = (f"not simplified, since onnxslim's graph did not pass: {first_line(error)}",)
    return proto, _checked(proto, cases, target), notes


def _slim(proto: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    with quiet():
        slim = onnxslim.slim(copy)
    if not isinstance(slim, onnx.ModelProto):
        raise ExportError("onnxslim returned no graph")
    strip(slim)
    slim.ir_version = target.ir_version
    write_sizes(slim, target.inputs)
    return slim


def _checked(graph: onnx.ModelProto | Path, cases: Sequence[Case], target: Target) -> float:
    """Check that a graph, or its file, is valid and agrees with torch; return the largest absolute difference."""
    apart = isinstance(graph, Path)
    try:
        onnx.checker.check_model(str(graph) if apart else graph, full_check=not apart)
    except Exception as error:  # the checker raises errors of onnx's C++ core without a common base
        raise ExportError(f"the ONNX graph is not valid: {first_line(error)}. Please report this model.") from error
    return compare(graph if apart else serialize(graph), cases, target.tolerance)
