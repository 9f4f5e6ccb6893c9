"""`export`: trace, clean, fold, simplify, check, compare with torch, write."""

from __future__ import annotations

import logging
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from compress.data.examples import examples
from compress.errors import ExportError, RecipeError, WorkspaceError
from compress.files import sync_directory, write_atomically
from compress.models.onnx_file import first_line
from compress.onnx_export.finishing import Finished, Target, finish
from compress.onnx_export.parity import SAMPLES, Case, length_cases, probe_cases, torch_cases
from compress.onnx_export.trace import from_export, from_script
from compress.onnx_export.versions import versions
from compress.onnx_export.weights import data_file
from compress.values import Context, InputSpec, Model, OnnxModel, StageRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportConfig:
    """How the float ONNX file is written.

    The tolerance is relative to the largest value of an output. Float32 sums in another order differ by 1e-7 to 1e-5
    of it, through a hundred layers too; a wrong graph (a frozen branch, another padding) by 1e-2 and more.
    """

    min_ort: str = "1.18"  # oldest onnxruntime that must read the file, 1.12 or later; decides the next two
    opset: int | None = None  # 17..20, of the default domain; None: 18, or 17 where min_ort needs it
    ir_version: int | None = None  # 8..10; None: the newest of these that min_ort reads
    dynamic_length: Literal["auto", "yes", "no"] = "auto"  # texts of any length; auto: where that agrees with torch
    simplify: bool = True  # fold constants and remove dead nodes with onnxslim
    tolerance: float = 1e-4  # largest |torch - onnxruntime| over the output's largest magnitude, above 0
    external_above_bytes: int = 2_000_000_000  # a larger model's weights lie beside the graph; at most 2e9, protobuf's
    ort: bool = False  # what ships is written in onnxruntime's own format too: see `to_ort`

    def __post_init__(self) -> None:
        problems = []
        try:
            versions(self.min_ort, self.opset, self.ir_version)
        except RecipeError as error:
            problems.append(str(error))
        if not 0 < self.tolerance < 1:
            problems.append(f"export.tolerance={self.tolerance}: allowed are fractions between 0 and 1")
        if not 0 <= self.external_above_bytes <= 2_000_000_000:
            problems.append(f"export.external_above_bytes={self.external_above_bytes}: allowed are 0 to 2000000000")
        if problems:
            raise RecipeError("; ".join(problems) + ".")


def export(
    model: Model, config: ExportConfig, context: Context, file_name: str = "model.onnx"
) -> tuple[OnnxModel, StageRecord]:
    """Write ``model`` as float ONNX with a free batch axis; equal models give equal bytes.

    The result is compared with torch at batch sizes 1, 2 and 5, on samples of the calibration split, or on synthetic
    ones where there is no data; texts also at other lengths. Above ``external_above_bytes`` the weights lie beside the
    graph, as <file_name>.data, and no more than one of them is copied at a time.

    Raises:
        ExportError: torch cannot export the module, the graph is not valid, or its results are not those of torch.
        WorkspaceError: the file cannot be written.
    """
    started = time.perf_counter()
    samples = examples(model.inputs, context.data, SAMPLES, context.seed)
    path = context.directory / file_name
    with ExitStack() as stack:
        folder = None
        if _weight_bytes(model.module) > config.external_above_bytes:
            folder = Path(stack.enter_context(_folder_beside(path)))
        made = _Export(model, config, samples, torch_cases(model, samples), folder, file_name).run()
        size = _write(made.finished, path)
    target = versions(config.min_ort, config.opset, config.ir_version)
    figures = {
        "parity": made.finished.parity,
        "bytes": size,
        "opset": target.opset,
        "ir_version": target.ir_version,
        "exporter": made.exporter,
        "free_axes": {spec.name: [0, *(axis + 1 for axis in spec.free)] for spec in made.inputs},
        "external": made.finished.data is None,
        **made.finished.figures,
    }
    notes = (*made.notes, *made.finished.notes)
    for note in notes:
        logger.info("%s", note)
    record = StageRecord("export", asdict(config), time.perf_counter() - started, figures, notes)
    return OnnxModel(path, made.inputs, target.opset, model.task), record


@dataclass(frozen=True)
class _Made:
    finished: Finished
    inputs: tuple[InputSpec, ...]
    exporter: str  # dynamo, torchscript
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Export:
    """One model on its way: which exporter, and which axes are free, is found by trying."""

    model: Model
    config: ExportConfig
    samples: tuple[torch.Tensor, ...]
    cases: tuple[Case, ...]  # at the usual length
    folder: Path | None  # where graph and weights are written apart; None: the graph holds its weights
    file_name: str

    def run(self) -> _Made:
        """The first graph that agrees with torch: free lengths before fixed ones, torch.export before TorchScript."""
        if isinstance(self.model.module, torch.jit.ScriptModule):
            return self._script(None)
        refusal: ExportError | None = None
        for inputs in self._plans():
            target = self._target(inputs)
            notes = () if refusal is None else (_fixed_length(refusal),)
            try:
                cases = (*self.cases, *self._resized(inputs))
                traced = from_export(
                    self.model, inputs, self.samples, self._outputs, target.opset, self.folder is not None
                )
            except ExportError as error:
                refusal = error
                continue
            try:
                return _Made(finish(traced, cases, target), inputs, "dynamo", notes)
            except ExportError as error:
                if inputs == self._plans()[-1]:
                    raise
                refusal = error
        assert refusal is not None
        return self._script(refusal)

    def _script(self, refusal: ExportError | None) -> _Made:
        """Through the old exporter, which must agree on inputs that take other branches too.

        Args:
            refusal: Of torch.export; told where this does not work either.
        """
        probes, failure = probe_cases(self.model, self.samples), None
        for inputs in self._plans():
            external = None if self.folder is None else Path(tempfile.mkdtemp(dir=self.folder))
            target = self._target(inputs)
            notes = () if failure is None else (_fixed_length(failure),)
            try:
                cases = (*self.cases, *self._resized(inputs), *probes)
                traced = from_script(self.model, inputs, self.samples, self._outputs, target.opset, external)
                finished = finish(traced, cases, target)
            except ExportError as error:
                failure = error
                continue
            why = () if refusal is None else (_old_exporter(refusal, len(cases)),)
            return _Made(finished, inputs, "torchscript", (*why, *notes))
        assert failure is not None
        raise refusal or failure

    def _resized(self, inputs: tuple[InputSpec, ...]) -> tuple[Case, ...]:
        return length_cases(self.model, inputs, self.samples) if any(spec.free for spec in inputs) else ()

    def _plans(self) -> tuple[tuple[InputSpec, ...], ...]:
        """What to try, in this order: the inputs with free lengths, and with fixed ones."""
        fixed = tuple(replace(spec, free=()) for spec in self.model.inputs)
        free = tuple(replace(spec, free=(0,)) if _is_text(spec) else spec for spec in fixed)
        wanted = self.config.dynamic_length
        if wanted == "yes" and free == fixed:
            raise ExportError(
                "export.dynamic_length=yes, but no input is a text: whole numbers, (N, length). Leave it at auto."
            )
        return {"auto": (free, fixed) if free != fixed else (fixed,), "yes": (free,), "no": (fixed,)}[wanted]

    def _target(self, inputs: tuple[InputSpec, ...]) -> Target:
        wanted = versions(self.config.min_ort, self.config.opset, self.config.ir_version)
        path = None if self.folder is None else self.folder / self.file_name
        return Target(inputs, wanted.opset, wanted.ir_version, self.config.simplify, self.config.tolerance, path)

    @property
    def _outputs(self) -> int:
        return len(self.cases[0].outputs)


def _is_text(spec: InputSpec) -> bool:
    return np.dtype(spec.dtype).kind in "iu" and len(spec.shape) == 1 and spec.shape[0] > 1


def _fixed_length(error: ExportError) -> str:
    return f"the length of texts is fixed, since it could not be left free: {first_line(error)}"


def _old_exporter(refusal: ExportError, tried: int) -> str:
    return (
        f"exported with torch's old exporter, which follows one path through forward(): it agrees with torch on "
        f"{tried} batches. torch.export refused: {first_line(refusal)}"
    )


def _weight_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _folder_beside(path: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder on the same file system, so that files can be renamed into place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent)
    except OSError as error:
        raise WorkspaceError(f"cannot write into {path.parent}: {error.strerror or error}.") from error


def _write(finished: Finished, path: Path) -> int:
    """Put the file, and its weights first where they lie apart, in their place; return their bytes."""
    if finished.data is not None:
        write_atomically(path, finished.data)
        return len(finished.data)
    assert finished.path is not None
    size = 0
    for made, target in ((data_file(finished.path), data_file(path)), (finished.path, path)):
        size += made.stat().st_size
        made.replace(target)
    sync_directory(path.parent)
    return size
