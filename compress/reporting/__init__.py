"""Reporting: which variant ships, and the report that says why."""

from compress.reporting.choice import Choice, Objective, choose
from compress.reporting.csv_table import render_csv
from compress.reporting.files import FORMATS, render
from compress.reporting.html import render_html
from compress.reporting.markdown import render_markdown
from compress.reporting.quantization_report import Section, quantization_section
from compress.reporting.report import Report, Verdict, build_report, variant_entries
from compress.reporting.summary import Table, latency_table, variant_table, verdict_sentences
from compress.reporting.weights import weight_pictures

__all__ = [
    "FORMATS",
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
    "render",
    "render_csv",
    "render_html",
    "render_markdown",
    "variant_entries",
    "variant_table",
    "verdict_sentences",
    "weight_pictures",
]
