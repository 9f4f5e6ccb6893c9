"""report.md, from the plain dict of report.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.reporting import format as fmt
from compress.reporting.quantization_report import quantization_section, quantize_figures
from compress.reporting.summary import latency_table, main_latency, sparsity_table, variant_table, verdict_sentences
from compress.reporting.templates import environment


def render_markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown. A report that was read back from report.json gives the same text."""
    templates = environment(autoescape=False)
    templates.filters["cell"] = _cell
    return templates.get_template("report.md.jinja").render(
        report=report,
        sentences=verdict_sentences(report),
        table=variant_table(report["variants"], report["shipped"]),
        latency=latency_table(report["variants"]),
        sparsity=sparsity_table(report["variants"]),
        quantization=quantization_section(quantize_figures(report), report["shipped"]),
        main_latency=main_latency(report["variants"]),
        fmt=fmt,
    )


def _cell(text: object) -> str:
    """Text that stays within its cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")
