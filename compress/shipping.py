"""After the last stage: choose what ships, and write it with its report and manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.files import copy_atomically, write_atomically
from compress.measurement import SHIPPED_NAME, Measurement, members, write_zip
from compress.measurement.answers import load_answers
from compress.measurement.changes import most_changed
from compress.measurement.environment import environment
from compress.measurement.layers import layer_changes
from compress.models.onnx_file import stamp
from compress.onnx_export import to_ort
from compress.opening import Opened
from compress.recipe import Recipe
from compress.reporting import Report, build_report, render
from compress.reporting.schema import validate
from compress.values import OnnxModel, StageRecord, State
from compress.workspace import ANSWERS, REPORT, Workspace, fingerprint, to_json

_SHORT = 16  # hexadecimal digits that tell recipes and calibrations apart; each byte counts in a small file


def ship(
    workspace: Workspace,
    recipe: Recipe,
    opened: Opened,
    state: State,
    records: tuple[StageRecord, ...],
    command: str,
) -> Report:
    """Write model.onnx, its zip, what must lie beside it, the reports, plots/ of weights and manifest.json.

    The report is held against its schema: one that does not fit is a defect of compress, and raises.

    Args:
        state: With one measurement for each variant.
        command: How the run was started, for the report.
    """
    facts = environment(recipe.benchmark.first_threads)
    source = {"path": str(recipe.model), "sha256": opened.source.sha256}
    report = build_report(
        state.measurements,
        records,
        environment=facts,
        data=opened.data,
        objective=recipe.objective,
        max_drop=recipe.max_drop,
        seed=recipe.seed,
        command=command,
        root=workspace.root,
        model=source,
        notes=opened.notes,
    )
    report = replace(report, **_against_baseline(workspace, report, opened))
    told = origin(opened.source.sha256, report.shipped, records)
    zipped = write_shipped(report.shipped.variant.onnx, workspace.root, told, ort=recipe.export.ort)
    report = replace(report, shipped_zip_bytes=zipped)
    for name, content in (opened.data.files if opened.data is not None else {}).items():
        workspace.write(name, content)
    plain = json.loads(to_json(report.to_dict()))  # as it is read back: without tuples and paths
    validate(plain)
    workspace.write(REPORT, to_json(plain))
    workspace.remove("plots")  # of a run with other options that this one went on from
    for name, content in render(plain).items():
        workspace.write(name, content)
    workspace.write_manifest({"command": command, "seed": recipe.seed, "model": source, "environment": facts})
    return report


def _against_baseline(workspace: Workspace, report: Report, opened: Opened) -> dict[str, Any]:
    """What became of the layers, and of single answers; nothing where the baseline itself ships."""
    baseline, shipped = report.baseline.variant, report.shipped.variant
    if shipped is baseline:
        return {}
    answers = workspace.root / ANSWERS
    changed: Sequence[Mapping[str, Any]] = ()
    if opened.data is not None and answers.is_file():
        names = (baseline.name, shipped.name)
        changed = most_changed(baseline.onnx, shipped.onnx, names, load_answers(answers), opened.data)
    return {"layers": layer_changes(baseline.onnx.path, shipped.onnx.path), "changed": changed}


def origin(source_sha256: str, shipped: Measurement, records: Sequence[StageRecord]) -> dict[str, Any]:
    """Where a file comes from, as its metadata tells: see `compress.models.onnx_file.provenance`."""
    facts = environment(0)
    calibration = next((r.figures["calibration"] for r in records if "calibration" in r.figures), None)
    accuracy = shipped.test.score.accuracy
    return {
        "source": source_sha256[:_SHORT],  # whole in the manifest
        "variant": shipped.variant.name,
        "recipe": fingerprint(stages=[[record.stage, record.config] for record in records])[:_SHORT],
        "versions": {name: facts[name] for name in ("compress", "torch", "onnx", "onnxruntime")},
        **({} if accuracy is None else {"accuracy": round(accuracy.value, 6), "samples": accuracy.n}),
        **({} if calibration is None else {"calibration": calibration["sha256"][:_SHORT]}),
    }


def write_shipped(onnx: OnnxModel, directory: Path, facts: Mapping[str, Any], ort: bool = False) -> int:
    """Write a file as model.onnx, with its external data and what ``facts`` tell of it, and its zip.

    Args:
        onnx: The variant that ships.
        directory: Where the files go.
        facts: Of `origin`.
        ort: Write model.ort too, onnxruntime's own format.

    Returns:
        Bytes of the zip.
    """
    target = directory / SHIPPED_NAME
    for name, file in members(onnx.path).items():
        if name != SHIPPED_NAME:
            copy_atomically(file, directory / name)
    write_atomically(target, stamp(onnx.path, facts))
    zipped = write_zip(target, directory / f"{SHIPPED_NAME}.zip")
    target.with_suffix(".ort").unlink(missing_ok=True)  # of an earlier model.onnx
    if ort:
        to_ort(target, target.with_suffix(".ort"), onnx.inputs)
    return zipped
