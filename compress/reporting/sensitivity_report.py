"""report.html and report.md of a sensitivity scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from compress.reporting import format as fmt
from compress.reporting.plot_weights import plot_histograms, plot_parameters, plot_sensitivity
from compress.reporting.plots import Kind, picture, svg_element
from compress.reporting.summary import Table
from compress.reporting.templates import environment
from compress.sparsity.sensitivity import Sensitivity, Suggestion
from compress.sparsity.weights_summary import LayerWeights

TITLES = {
    "sensitivity": "Accuracy of each layer alone against its sparsity",
    "parameters": "Weights a layer, and what stays under the suggestion",
    "histograms": "Weights before and after the suggestion",
}


@dataclass(frozen=True)
class SensitivityReport:
    """Everything that `compress inspect --sensitivity` tells, as values."""

    model: str  # the file's name
    data: str
    sensitivity: Sensitivity
    suggestion: Suggestion
    weights: tuple[LayerWeights, ...]  # one a layer, in the scan's order
    together: LayerWeights  # of all layers

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to sensitivity.json."""
        return {
            "schema": 1,
            "model": self.model,
            "data": self.data,
            "sensitivity": self.sensitivity.to_dict(),
            "suggestion": self.suggestion.to_dict(),
            "weights": [layer.to_dict() for layer in (*self.weights, self.together)],
        }


def scan_table(sensitivity: Sensitivity, suggestion: Suggestion) -> Table:
    """One row a layer: its figure in percent at each sparsity, then what is suggested."""
    columns = ("layer", "weights", *(f"{rate:.4g}" for rate in sensitivity.rates), "suggested")
    rows = tuple(
        (
            layer.name,
            fmt.count(layer.weights),
            *(f"{100 * accuracy:.1f}" for accuracy in layer.accuracy),
            f"{suggestion.layers[layer.name]:.3f}",
        )
        for layer in sensitivity.layers
    )
    return Table(columns, rows)


def recipe_lines(suggestion: Suggestion) -> str:
    """The suggestion as a table of compress.toml."""
    lines = (f'"{name}" = {share:g}' for name, share in suggestion.layers.items())
    return "\n".join(("[sparsify.layers]", *lines))


def suggestion_sentence(report: SensitivityReport) -> str:
    """What all the suggested sparsities together cost."""
    found, suggestion = report.sensitivity, report.suggestion
    verb = "gain" if suggestion.drop < 0 else "lose"
    return (
        f"All layers at their suggested sparsity: {fmt.percent(suggestion.sparsity)} of "
        f"{fmt.count(report.together.weights)} weights are zero and {verb} {fmt.fraction(abs(suggestion.drop))} of "
        f"{found.measured_in} ({fmt.fraction(found.baseline)} with all weights, n = {fmt.count(found.n)} of the "
        f"validation split) before any retraining; {fmt.fraction(suggestion.budget)} is allowed."
    )


def draw_pictures(report: SensitivityReport) -> dict[str, bytes]:
    """The pictures, as file name -> content."""
    figures = {
        "sensitivity": plot_sensitivity(report.sensitivity, report.suggestion),
        "parameters": plot_parameters(report.weights),
        "histograms": plot_histograms(report.weights, report.together),
    }
    return {f"{name}.{kind}": picture(figure, kind) for name, figure in figures.items() for kind in get_args(Kind)}


def render_html(report: SensitivityReport, pictures: Mapping[str, bytes]) -> str:
    """One file with the ``pictures`` of `draw_pictures` in it: no script, nothing loaded from anywhere."""
    svgs = {name: svg_element(pictures[f"{name}.svg"]) for name in TITLES}
    return _render("sensitivity.html.jinja", report, svgs)


def render_markdown(report: SensitivityReport) -> str:
    """The same as Markdown, with the PNG files beside it."""
    return _render("sensitivity.md.jinja", report, {})


def _render(template: str, report: SensitivityReport, svgs: Mapping[str, str]) -> str:
    templates = environment(autoescape=template.endswith(".html.jinja"))
    return templates.get_template(template).render(
        report=report,
        table=scan_table(report.sensitivity, report.suggestion),
        sentence=suggestion_sentence(report),
        recipe=recipe_lines(report.suggestion),
        titles=TITLES,
        svgs=svgs,
    )
