"""START HERE: from a trained model to the ONNX file that ships, and its report.

`run` is the whole path: open the model and the data, pass a State through the STAGES, choose, report. After each stage
its result is verified and written, and the next one starts from what was written: a run that was stopped therefore goes
on exactly as if it had not been.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.checkpoint import restore, save
from compress.errors import MeasurementError
from compress.files import copy_atomically
from compress.measurement import SHIPPED_NAME, BenchmarkConfig, benchmark, members
from compress.onnx_export import export
from compress.opening import Opened, open_inputs
from compress.pruning import prune_to_budget
from compress.quantization import quantize
from compress.recipe import FOR_OBJECTIVE, Recipe
from compress.reporting import Report
from compress.shipping import ship
from compress.sparsity import resolve_layers, sparsifiable, sparsify
from compress.sparsity.layer_alone import sensitivity_map
from compress.speed import measured_speedup
from compress.values import Context, Model, Progress, StageName, StageRecord, State, Variant, silent
from compress.verify import verify
from compress.workspace import ANSWERS, Workspace, fingerprint

logger = logging.getLogger(__name__)

StageFunction = Callable[[State, Recipe, Context], tuple[State, StageRecord]]


@dataclass(frozen=True)
class Stage:
    number: int  # of its directory: stages/02-sparsify
    name: str  # also the field of the recipe with its config
    run: StageFunction
    needs: tuple[str, ...] = ()  # "torch": a module that can be trained; "data": samples
    version: int = 0  # of its record: raised where records of an earlier one can no longer be read

    @property
    def directory(self) -> str:
        return f"{self.number:02d}-{self.name}"

    @property
    def extra(self) -> dict[str, int]:
        """What the fingerprint holds besides: nothing at version 0, so that earlier runs can be resumed."""
        return {"version": self.version} if self.version else {}


def _baseline(state: State, recipe: Recipe, context: Context) -> tuple[State, StageRecord]:
    if state.model is None:
        assert state.onnx is not None
        for name, file in members(state.onnx.path).items():
            copy_atomically(file, context.directory / name)
        onnx = replace(state.onnx, path=context.directory / SHIPPED_NAME)
        record = StageRecord("baseline", {}, 0.0, notes=("the model came as ONNX and is the baseline as it is",))
    else:
        onnx, record = export(state.model, recipe.export, context)
    variants = (Variant("baseline-fp32", "baseline", onnx),)
    return replace(state, onnx=onnx, variants=variants), replace(record, stage="baseline")


def _prune(state: State, recipe: Recipe, context: Context) -> tuple[State, StageRecord]:
    assert state.model is not None

    def measure(before: Model, after: Model) -> float:
        return measured_speedup(before, after, recipe.export, context, recipe.benchmark.first_threads)

    config, needed = recipe.prune, (*recipe.sparsify.keep, *recipe.sparsify.layers)
    if recipe.quantize.exclude:  # names of nodes count them: without a block they would be other nodes
        config = replace(config, blocks=False)
    model, record = prune_to_budget(state.model, config, context, measure, () if "sparsify" in recipe.skip else needed)
    if model is state.model:
        return state, record
    # Written before sparsify, so that the report can tell what sparsity alone gains.
    return _with_float_file(_changed(state, model, "pruned"), "prune", recipe, context)[0], record


def _changed(state: State, model: Model, how: str) -> State:
    return state if model is state.model else replace(state, model=model, changes=(*state.changes, how))


def _sparsify(state: State, recipe: Recipe, context: Context) -> tuple[State, StageRecord]:
    assert state.model is not None
    model, record = sparsify(state.model, recipe.sparsify, context)
    return _changed(state, model, "sparse"), record


def _export(state: State, recipe: Recipe, context: Context) -> tuple[State, StageRecord]:
    if state.model is None or state.variants[-1].name == _float_name(state):
        return state, StageRecord("export", {}, 0.0, skipped=f"nothing changed since {state.variants[-1].name}")
    return _with_float_file(state, "export", recipe, context)


def _with_float_file(state: State, stage: str, recipe: Recipe, context: Context) -> tuple[State, StageRecord]:
    """Export ``state.model``, as a variant."""
    assert state.model is not None
    onnx, record = export(state.model, recipe.export, context)
    return replace(state, onnx=onnx, variants=(*state.variants, Variant(_float_name(state), stage, onnx))), record


def _float_name(state: State) -> str:
    return "-".join((*(state.changes or ("baseline",)), "fp32"))


def _quantize(state: State, recipe: Recipe, context: Context) -> tuple[State, StageRecord]:
    assert state.onnx is not None
    variants, record = quantize(state.onnx, recipe.quantize, context)
    source = state.variants[-1].name.removesuffix("-fp32")
    named = tuple(replace(v, name=f"{source}-{v.name}") for v in variants)
    return replace(state, variants=(*state.variants, *named)), record


def _benchmark(state: State, recipe: Recipe, context: Context) -> tuple[State, StageRecord]:
    keep = context.directory / Path(ANSWERS).name
    measurements, record = benchmark(state.variants, recipe.benchmark, context, keep=keep)
    return replace(state, measurements=measurements), _with_sensitivity(record, recipe.benchmark, context)


def _with_sensitivity(record: StageRecord, config: BenchmarkConfig, context: Context) -> StageRecord:
    """What each layer of the original is worth, or a note that says why that is not known."""
    if context.original is None or context.data is None or config.sensitivity_seconds == 0:
        return record
    started, split = time.perf_counter(), context.data.validation or context.data.calibration
    try:
        found = sensitivity_map(
            context.original,
            split,
            config.sensitivity_seconds,
            device=context.device,
            metric=context.metric,
            progress=context.progress,
        )
    except MeasurementError as error:
        return replace(record, notes=(*record.notes, f"no sensitivity of single layers: {error}"))
    seconds = record.seconds + time.perf_counter() - started
    return replace(record, seconds=seconds, figures={**record.figures, "sensitivity": found.to_dict()})


STAGES = (
    Stage(0, "baseline", _baseline),
    Stage(1, "prune", _prune, needs=("torch", "data")),
    Stage(2, "sparsify", _sparsify, needs=("torch", "data")),
    Stage(3, "export", _export),
    Stage(4, "quantize", _quantize),
    Stage(5, "benchmark", _benchmark, version=1),
)


def run(recipe: Recipe, progress: Progress = silent, command: str = "") -> Report:
    """Compress ``recipe.model`` and write the run directory ``recipe.out``.

    Args:
        recipe: See `compress.recipe.load_recipe`.
        progress: Told about long work.
        command: How the run was started, for the report.

    Raises:
        CompressError: the model, the data or an option cannot be used; the message says what to do.
    """
    opened = open_inputs(recipe, progress)
    _check_names(recipe, opened)
    workspace = Workspace.open(recipe.out, resume=recipe.resume, overwrite=recipe.overwrite)
    state, records, previous = opened.state, [], opened.identity
    for stage in STAGES:
        config = getattr(recipe, stage.name, None) or recipe.export
        reason = _skipped(stage, recipe, opened)
        goal = _goal(stage, recipe)
        previous = fingerprint(
            previous=previous, config=config, seed=recipe.seed, goal=goal, reason=reason, **stage.extra
        )
        stored = workspace.finished(stage.directory, previous) if recipe.resume else None
        if stored is None:
            directory = workspace.begin(stage.directory)
            progress(StageName(stage.name), stage.number, len(STAGES))
            after, record = state, StageRecord(stage.name, dataclasses.asdict(config), 0.0, skipped=reason)
            if reason is None:
                after, record = stage.run(state, recipe, opened.context(directory, recipe, progress, workspace.cache))
            verify(state, after, opened.original, opened.example)
            stored = save(state, after, record, directory, previous)
            workspace.finish(stage.directory, stored)
        state, record = restore(state, stored, workspace.stage_directory(stage.directory), opened.example)
        records.append(record)
        progress(StageName(stage.name), stage.number + 1, len(STAGES), _result(record))
    report = ship(workspace, recipe, opened, state, tuple(records), command)
    workspace.drop_cache()
    return report


def _result(record: StageRecord) -> str:
    """What a stage came to, in a line."""
    return f"skipped: {record.skipped}" if record.skipped else next(iter(record.notes), "")


def _check_names(recipe: Recipe, opened: Opened) -> None:
    """Refuse layers that there are not now, and not after an hour of pruning. Pruning keeps their names."""
    if opened.original is not None and "sparsify" not in recipe.skip:
        resolve_layers(sparsifiable(opened.original.module, recipe.sparsify.keep), recipe.sparsify.layers)


def _goal(stage: Stage, recipe: Recipe) -> tuple[Any, ...]:
    """What a stage aims at besides its own config."""
    if "torch" not in stage.needs:
        return ()
    if stage.run is not _sparsify:
        return (recipe.max_drop,)
    return recipe.max_drop, recipe.objective, "quantize" in recipe.skip


def _skipped(stage: Stage, recipe: Recipe, opened: Opened) -> str | None:
    """Why a stage does not run, in one line, or None."""
    if stage.name in recipe.skip:
        if stage.name in FOR_OBJECTIVE.get(recipe.objective, {}).get("skip", ()):
            return f"--objective {recipe.objective} leaves it out"
        return "--skip asked for it"
    if "torch" in stage.needs and opened.source.skips:
        return opened.source.skips
    if "data" in stage.needs and opened.data is None:
        return "fine-tuning needs data: give --data"
    if "torch" in stage.needs and opened.original is not None and opened.original.task != "classification":
        return "fine-tuning needs a classifier, whose first output is (N, C) scores"
    return None
