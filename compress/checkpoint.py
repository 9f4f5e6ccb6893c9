"""A State on disk: what a finished stage wrote, and the same State read back."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.files import write_atomically
from compress.measurement import Measurement
from compress.models import load_state, save_state
from compress.pruning import load_pruned, read_cut, save_pruned
from compress.values import OnnxModel, StageRecord, State, Variant

WEIGHTS = "model.safetensors"


def save(before: State, after: State, record: StageRecord, directory: Path, fingerprint: str) -> dict[str, Any]:
    """Write the weights that a stage changed to ``directory`` and return its record.json as plain values.

    ONNX files were written by the stage itself; the record names them relative to ``directory``.
    """
    weights, cut = None, _cut(before, after)
    if cut:
        assert after.model is not None
        assert after.model.kept is not None
        save_pruned(after.model.module, after.model.kept, directory, after.model.skipped)
    elif after.model is not before.model and after.model is not None:
        weights = WEIGHTS
        write_atomically(directory / weights, save_state(after.model.module))
    stored = dataclasses.asdict(record)
    stored["fingerprint"] = fingerprint
    stored["weights"] = weights
    stored["cut"] = cut
    stored["changes"] = list(after.changes)
    stored["onnx"] = _file(after.onnx, directory) if after.onnx is not before.onnx else None
    stored["variants"] = [
        {"name": variant.name, "stage": variant.stage, "onnx": _file(variant.onnx, directory)}
        for variant in after.variants[len(before.variants) :]
    ]
    stored["measurements"] = [m.to_dict() for m in after.measurements]
    return stored


def restore(
    before: State, stored: dict[str, Any], directory: Path, example: tuple[Tensor, ...]
) -> tuple[State, StageRecord]:
    """The State after a stage, from the State before it and what `save` returned.

    Args:
        example: Inputs of the model, for a cut one is checked, and traced where it has to be.
    """
    model = before.model
    if stored["cut"]:
        assert model is not None
        module = load_pruned(model.module, directory, example)
        cut = read_cut(directory)
        model = replace(model, module=module.eval(), kept=cut.kept, skipped=cut.skipped)
    elif stored["weights"] is not None:
        assert model is not None
        module = copy.deepcopy(model.module)
        load_state(module, (directory / stored["weights"]).read_bytes())
        model = replace(model, module=module)
    assert before.onnx is not None or stored["onnx"] is not None
    onnx = _onnx(stored["onnx"], directory, before) if stored["onnx"] is not None else before.onnx
    new = tuple(Variant(v["name"], v["stage"], _onnx(v["onnx"], directory, before)) for v in stored["variants"])
    variants = (*before.variants, *new)
    measured = tuple(
        Measurement.from_dict(m, variant) for m, variant in zip(stored["measurements"], variants, strict=False)
    )
    record = StageRecord(
        stage=stored["stage"],
        config=stored["config"],
        seconds=stored["seconds"],
        figures=stored["figures"],
        notes=tuple(stored["notes"]),
        skipped=stored["skipped"],
    )
    return State(model, onnx, variants, measured, tuple(stored["changes"])), record


def _cut(before: State, after: State) -> bool:
    """Whether the stage took channels or blocks out of the model: its weights do not fit the module before it."""
    return before.model is not None and after.model is not None and after.model.kept is not before.model.kept


def _file(onnx: OnnxModel | None, directory: Path) -> dict[str, Any]:
    assert onnx is not None
    return {"file": onnx.path.relative_to(directory).as_posix(), "opset": onnx.opset}


def _onnx(stored: dict[str, Any], directory: Path, before: State) -> OnnxModel:
    like = before.model or before.onnx
    assert like is not None
    return OnnxModel(directory / stored["file"], like.inputs, stored["opset"], like.task)
