"""report.html, from the plain dict of report.json: one file, no script, nothing loaded from anywhere.

A section whose figures a report does not hold is left out, so that reports of earlier versions render too.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from compress.reporting import format as fmt
from compress.reporting.charts_layers import (
    bytes_chart,
    classes_chart,
    forms_chart,
    histogram_charts,
    kinds_chart,
    sensitivity_chart,
    weights_chart,
    widths_chart,
)
from compress.reporting.charts_pareto import pareto_charts
from compress.reporting.charts_variants import journey_charts, latency_charts, limit_chart
from compress.reporting.headline import headline_figures, verdict_line
from compress.reporting.quantization_report import quantization_section, quantize_figures
from compress.reporting.summary import doubts, latency_table, sparsity_sentences, sparsity_table, variant_table
from compress.reporting.tables import absences, class_name, memory_table, placement_table, size_table, timed_table
from compress.reporting.templates import environment

# The sections, in their order: the name in the template, and the title.
SECTIONS = (
    ("journey", "What each stage bought"),
    ("variants", "Every variant tried"),
    ("latency", "Latency"),
    ("limit", "How near the limit"),
    ("size", "Where the bytes are"),
    ("layers", "Layers before and after"),
    ("sensitivity", "What each layer can lose"),
    ("classes", "Accuracy of each class"),
    ("changed", "Answers that changed most"),
    ("quantization", "Quantization"),
    ("sparsity", "Sparsity"),
    ("placement", "Where the nodes run"),
    ("stages", "Stages"),
    ("provenance", "Data, environment, reproduction"),
)


def render_html(report: Mapping[str, Any]) -> str:
    """The report as one HTML file. A report that was read back from report.json gives the same text."""
    contents = _contents(report)
    return (
        environment(autoescape=True)
        .get_template("report.html.jinja")
        .render(
            report=report,
            verdict=verdict_line(report),
            headline=headline_figures(report),
            doubts=doubts(report["verdict"]),
            sections=[(name, title) for name, title in SECTIONS if contents[name]],
            contents=contents,
            class_name=functools.partial(class_name, report),
            fmt=fmt,
        )
    )


def _contents(report: Mapping[str, Any]) -> dict[str, Any]:
    """What each section shows; something false where there is nothing to show."""
    variants = report["variants"]
    return {
        "journey": journey_charts(report),
        "variants": {"charts": pareto_charts(report), "table": variant_table(variants, report["shipped"])},
        "latency": {
            "charts": latency_charts(report),
            "table": timed_table(latency_table(variants), report),
            "absent": absences(report),
            "memory": memory_table(report),
        },
        "limit": limit_chart(report),
        "size": _some(
            charts=_drawn(kinds_chart(report), forms_chart(report)),
            folded=bytes_chart(report),
            table=size_table(report),
        ),
        "layers": _some(
            folded=_drawn(widths_chart(report), weights_chart(report)),
            histograms=histogram_charts(report),
        ),
        "sensitivity": sensitivity_chart(report),
        "classes": classes_chart(report),
        "changed": report.get("changed"),
        "quantization": quantization_section(quantize_figures(report), report["shipped"]),
        "sparsity": _some(table=sparsity_table(variants), sentences=sparsity_sentences(variants)),
        "placement": placement_table(report),
        "stages": report["stages"],
        "provenance": True,
    }


def _drawn(*parts: Any) -> list[Any]:
    return [part for part in parts if part is not None]


def _some(**parts: Sequence[Any] | Any) -> dict[str, Any] | None:
    """The parts, or None where all are empty."""
    return parts if any(parts.values()) else None
