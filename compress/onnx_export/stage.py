"""`export`: trace, clean, simplify, check, compare with torch, write."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass

import onnx
import onnxslim
import torch

from compress.data.examples import examples
from compress.errors import ExportError, RecipeError
from compress.files import write_atomically
from compress.models.onnx_file import first_line, graph_inputs, opset, serialize, strip
from compress.onnx_export.parity import SAMPLES, Case, compare, torch_cases
from compress.onnx_export.trace import trace
from compress.quiet import quiet
from compress.values import Context, InputSpec, Model, OnnxModel, StageRecord

logger = logging.getLogger(__name__)

OPSETS = range(17, 21)  # 13 brought scales per channel; from 21 on, older onnxruntimes cannot read the file
IR_VERSIONS = range(8, 11)  # what onnxruntime 1.20 reads, and later ones


@dataclass(frozen=True)
class ExportConfig:
    """How the float ONNX file is written.

    The tolerance is relative to the largest value of an output. Float32 sums in another order differ by 1e-7 to 1e-5
    of it, through a hundred layers too; a wrong graph (a frozen branch, another padding) by 1e-2 and more.
    """

    opset: int = 18  # 17..20, of the default domain
    ir_version: int = 10  # 8..10
    simplify: bool = True  # fold constants and remove dead nodes with onnxslim
    tolerance: float = 1e-4  # largest |torch - onnxruntime| over the output's largest magnitude, above 0

    def __post_init__(self) -> None:
        problems = []
        if self.opset not in OPSETS:
            problems.append(f"export.opset={self.opset}: allowed are {OPSETS[0]} to {OPSETS[-1]}")
        if self.ir_version not in IR_VERSIONS:
            problems.append(f"export.ir_version={self.ir_version}: allowed are {IR_VERSIONS[0]} to {IR_VERSIONS[-1]}")
        if not 0 < self.tolerance < 1:
            problems.append(f"export.tolerance={self.tolerance}: allowed are fractions between 0 and 1")
        if problems:
            raise RecipeError("; ".join(problems) + ".")


def export(
    model: Model, config: ExportConfig, context: Context, file_name: str = "model.onnx"
) -> tuple[OnnxModel, StageRecord]:
    """Write ``model`` as float ONNX with a free batch axis; equal models give equal bytes.

    The result is compared with torch at batch sizes 1, 2 and 5, on samples of the calibration split, or on synthetic
    ones where there is no data.

    Raises:
        ExportError: torch cannot export the module, the graph is not valid, or its results are not those of torch.
        WorkspaceError: the file cannot be written.
    """
    started = time.perf_counter()
    samples = examples(model.inputs, context.data, SAMPLES, context.seed)
    cases = torch_cases(model, samples)
    proto = trace(model, samples, len(cases[0].outputs), config.opset)
    _clean(proto, model.inputs, config)
    proto, difference, notes = _simplified(proto, cases, config)
    data = serialize(proto)
    path = context.directory / file_name
    write_atomically(path, data)
    figures = {"parity": difference, "bytes": len(data), "opset": config.opset, "ir_version": config.ir_version}
    record = StageRecord("export", asdict(config), time.perf_counter() - started, figures, notes)
    return OnnxModel(path, model.inputs, config.opset, model.task), record


def _clean(proto: onnx.ModelProto, inputs: tuple[InputSpec, ...], config: ExportConfig) -> None:
    """Strip the graph, stamp its version, name its batch axis, and refuse a graph with other inputs than the model."""
    strip(proto)
    proto.ir_version = config.ir_version
    if opset(proto) != config.opset:
        raise ExportError(
            f"the exporter of torch {torch.__version__} wrote opset {opset(proto)} where {config.opset} was asked for. "
            f"Set export.opset={opset(proto)}."
        )
    symbols = {value.type.tensor_type.shape.dim[0].dim_param for value in proto.graph.input}
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim[:1]:
            if dim.dim_param in symbols:
                dim.dim_param = "batch"
    found = graph_inputs(proto)
    if [(spec.name, spec.shape) for spec in found] != [(spec.name, spec.shape) for spec in inputs]:
        raise ExportError(
            f"the model takes {_describe(inputs)}, its ONNX graph {_describe(found)}. "
            "An input that the model ignores must be removed from its forward()."
        )


def _describe(inputs: tuple[InputSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.shape}" for spec in inputs)


def _simplified(
    proto: onnx.ModelProto, cases: tuple[Case, ...], config: ExportConfig
) -> tuple[onnx.ModelProto, float, tuple[str, ...]]:
    """The simplified graph, its parity, and notes; the graph as traced where simplifying it fails."""
    notes: tuple[str, ...] = ()
    if config.simplify:
        try:
            slim = _slim(proto, config)
            return slim, _checked(slim, cases, config), notes
        except Exception as error:  # the file must not depend on the health of the simplifier
            notes = (f"not simplified, since onnxslim's graph did not pass: {first_line(error)}",)
            logger.warning(notes[0])
    return proto, _checked(proto, cases, config), notes


def _slim(proto: onnx.ModelProto, config: ExportConfig) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    with quiet():
        slim = onnxslim.slim(copy)
    if not isinstance(slim, onnx.ModelProto):
        raise ExportError("onnxslim returned no graph")
    strip(slim)
    slim.ir_version = config.ir_version
    return slim


def _checked(proto: onnx.ModelProto, cases: tuple[Case, ...], config: ExportConfig) -> float:
    """Check that a graph is valid and agrees with torch; return the largest absolute difference."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # the checker raises errors of onnx's C++ core without a common base
        raise ExportError(f"the ONNX graph is not valid: {first_line(error)}. Please report this model.") from error
    return compare(serialize(proto), cases, config.tolerance)
