"""Reporting: which variant ships, and the report that says why."""

from compress.reporting.choice import Choice, Objective, choose
from compress.reporting.html import render_html
from compress.reporting.markdown import render_markdown
from compress.reporting.quantization_report import Section, quantization_section
from compress.reporting.report import Report, Verdict, build_report, variant_entries
from compress.reporting.summary import Table, latency_table, variant_table, verdict_sentences
from compress.reporting.weights import weight_pictures

__all__ = [
    "Choice",
    "Objective",
    "Report",
    "Section",
    "Table",
    "Verdict",
    "build_report",
    "choose",
    "latency_table",
    "quantization_section",
    "render_html",
    "render_markdown",
    "variant_entries",
    "variant_table",
    "verdict_sentences",
    "weight_pictures",
]
