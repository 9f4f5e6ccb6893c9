"""After the last stage: choose what ships, and write it with its report and manifest."""

from __future__ import annotations

from pathlib import Path

from compress.files import write_atomically
from compress.measurement import members, write_zip
from compress.measurement.environment import environment
from compress.opening import Opened
from compress.recipe import Recipe
from compress.reporting import Report, build_report, render_html, render_markdown, weight_pictures
from compress.values import StageRecord, State
from compress.workspace import Workspace, to_json


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
    shipped = report.shipped.variant.onnx.path
    write_shipped(shipped, workspace.root)
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


def write_shipped(path: Path, directory: Path) -> None:
    """Write a file as model.onnx, with its external data, and its zip."""
    for name, file in members(path).items():
        write_atomically(directory / name, file.read_bytes())
    write_zip(path, directory / "model.onnx.zip")
