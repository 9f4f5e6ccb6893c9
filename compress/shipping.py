"""After the last stage: choose what ships, and write it with its report and manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.files import copy_atomically, write_atomically
from compress.measurement import SHIPPED_NAME, Measurement, members, write_zip
from compress.measurement.environment import environment
from compress.models.onnx_file import stamp
from compress.onnx_export import to_ort
from compress.opening import Opened
from compress.recipe import Recipe
from compress.reporting import Report, build_report, render_html, render_markdown, weight_pictures
from compress.values import OnnxModel, StageRecord, State
from compress.workspace import Workspace, fingerprint, to_json

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

    Args:
        state: With one measurement for each variant.
        command: How the run was started, for the report.
    """
    facts = environment(recipe.benchmark.threads)
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
        notes=opened.notes,
    )
    told = origin(opened.source.sha256, report.shipped, records)
    zipped = write_shipped(report.shipped.variant.onnx, workspace.root, told, ort=recipe.export.ort)
    report = replace(report, shipped_zip_bytes=zipped)
    for name, content in (opened.data.files if opened.data is not None else {}).items():
        workspace.write(name, content)
    plain = report.to_dict()
    workspace.write("report.json", to_json(plain))
    workspace.write("report.md", render_markdown(plain).encode())
    pictures = weight_pictures(plain)
    for name, content in pictures.items():
        workspace.write(f"plots/{name}", content)
    workspace.write("report.html", render_html(plain, pictures).encode())
    source = {"path": str(recipe.model), "sha256": opened.source.sha256}
    workspace.write_manifest({"command": command, "seed": recipe.seed, "model": source, "environment": facts})
    return report


def origin(source_sha256: str, shipped: Measurement, records: Sequence[StageRecord]) -> dict[str, Any]:
    """Where a file comes from, as its metadata tells: see `compress.models.onnx_file.provenance`."""
    facts = environment(0)
    calibration = next((r.figures["calibration"] for r in records if "calibration" in r.figures), None)
    accuracy = shipped.test.accuracy
    return {
        "source": source_sha256,
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
