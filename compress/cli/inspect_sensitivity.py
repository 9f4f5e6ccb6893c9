"""compress inspect --sensitivity: the scan, the suggestion, and the files of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import Display, emit, say, show_table
from compress.cli.options import recipe_from
from compress.errors import RecipeError

if TYPE_CHECKING:
    from compress.reporting.sensitivity_report import SensitivityReport

DEFAULTS: Mapping[str, Any] = {
    "drop_budget": 0.01,
    "samples": 1000,
    "rates": "0:0.9:0.1,0.95,0.99",
    "out": Path("sensitivity"),
    "overwrite": False,
}


def show_sensitivity(
    model: Path, quiet: bool, as_json: bool, given: Mapping[str, Any], options: Mapping[str, Any]
) -> int:
    """Scan ``model``, write the files and print the table, or JSON.

    Args:
        given: Values of the options in ``DEFAULTS``, None where not given.
        options: The others, for the recipe.
    """
    chosen = {name: default if given[name] is None else given[name] for name, default in DEFAULTS.items()}
    out: Path = chosen["out"]
    if out.exists() and not out.is_dir():
        raise click.UsageError(f"--out {out} is a file. Give a directory.")
    if out.is_dir() and any(out.iterdir()) and not chosen["overwrite"]:
        raise click.UsageError(f"--out {out} exists. Give --overwrite to replace it, or another name.")
    if not 0 <= chosen["drop_budget"] <= 1:  # told now, not after the scan
        raise RecipeError(f"a drop budget of {chosen['drop_budget']} is not a fraction within 0..1 (one point is 0.01)")
    report = _report(model, quiet, chosen, options)
    files = _write(report, out)
    if as_json:
        emit(report.to_dict())
        return 0
    _show(report)
    say(f"{out}: {', '.join(files)}")
    return 0


def _report(model: Path, quiet: bool, chosen: Mapping[str, Any], options: Mapping[str, Any]) -> SensitivityReport:
    from compress.opening import open_inputs
    from compress.reporting.sensitivity_report import SensitivityReport
    from compress.sparsity.curves import parse_rates
    from compress.sparsity.sensitivity import scan, sparse_copy, suggest
    from compress.sparsity.weights_summary import summarise, summarise_all

    rates, recipe = parse_rates(chosen["rates"]), recipe_from(model, options)
    if recipe.data is None:
        raise click.UsageError("--sensitivity measures accuracy on real samples: give --data.")
    with Display(quiet) as display:
        opened = open_inputs(recipe, display)
        original = opened.needs_classifier("inspect --sensitivity")
        assert opened.data is not None
        split, keep = opened.data.validation, recipe.sparsify.keep
        found = scan(
            original,
            split,
            rates,
            keep=keep,
            samples=chosen["samples"],
            device=opened.device,
            progress=display,
            metric=opened.metric,
        )
        suggestion = suggest(
            original,
            split,
            found,
            chosen["drop_budget"],
            device=opened.device,
            progress=display,
            metric=opened.metric,
        )
    after = sparse_copy(original.module, {layer.parameter: suggestion.layers[layer.name] for layer in found.layers})
    return SensitivityReport(
        model=model.name,
        data=opened.data.name,
        sensitivity=found,
        suggestion=suggestion,
        weights=summarise(original.module, after, keep),
        together=summarise_all(original.module, after, keep),
    )


def _write(report: SensitivityReport, out: Path) -> tuple[str, ...]:
    from compress.files import write_atomically
    from compress.reporting.sensitivity_report import draw_pictures, render_html, render_markdown
    from compress.sparsity.sensitivity import to_csv
    from compress.workspace import to_json

    pictures = draw_pictures(report)
    files = {
        "sensitivity.json": to_json(report.to_dict()),
        "sensitivity.csv": to_csv(report.sensitivity).encode(),
        **pictures,
        "report.md": render_markdown(report).encode(),
        "report.html": render_html(report, pictures).encode(),
    }
    for name, content in files.items():
        write_atomically(out / name, content)
    return tuple(files)


def _show(report: SensitivityReport) -> None:
    from compress.reporting.sensitivity_report import recipe_lines, scan_table, suggestion_sentence

    table = scan_table(report.sensitivity, report.suggestion)
    show_table(table.columns, table.rows)
    say(f"{report.sensitivity.measured_in} in percent, each layer alone at the sparsity above the column.")
    say(suggestion_sentence(report))
    say(f"\n{recipe_lines(report.suggestion)}\n")
