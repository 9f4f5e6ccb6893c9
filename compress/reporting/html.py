"""report.html, from the plain dict of report.json: one file, no script, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.reporting import format as fmt
from compress.reporting.plots import svg_element
from compress.reporting.quantization_report import quantization_section, quantize_figures
from compress.reporting.summary import (
    Entry,
    latency_table,
    main_latency,
    sparsity_table,
    variant_table,
    verdict_sentences,
)
from compress.reporting.templates import environment
from compress.reporting.weights import TITLES, weight_pictures


@dataclass(frozen=True)
class Bar:
    label: str
    text: str  # the value with its unit
    share: float  # 0..1 of the longest bar
    shipped: bool


@dataclass(frozen=True)
class Chart:
    title: str
    bars: tuple[Bar, ...]

    @property
    def alternative(self) -> str:
        """The same for who cannot see it."""
        return "; ".join(f"{bar.label} {bar.text}" for bar in self.bars)


def render_html(report: Mapping[str, Any], pictures: Mapping[str, bytes] | None = None) -> str:
    """The report as one HTML file. A report that was read back from report.json gives the same text.

    Args:
        report: The plain dict of report.json.
        pictures: What `weight_pictures` made of it, where it is at hand; drawn again otherwise.
    """
    drawn = weight_pictures(report, ("svg",)) if pictures is None else pictures
    return (
        environment(autoescape=True)
        .get_template("report.html.jinja")
        .render(
            report=report,
            sentences=verdict_sentences(report),
            table=variant_table(report["variants"], report["shipped"]),
            latency=latency_table(report["variants"]),
            sparsity=sparsity_table(report["variants"]),
            quantization=quantization_section(quantize_figures(report), report["shipped"]),
            weights=[(title, svg_element(drawn[f"{name}.svg"])) for name, title in TITLES.items() if drawn],
            charts=_charts(report["variants"], report["shipped"]),
            fmt=fmt,
        )
    )


def _charts(variants: Sequence[Entry], shipped: str) -> tuple[Chart, ...]:
    charts = [_chart("Zipped size", variants, shipped, lambda variant: variant["zip_bytes"], fmt.size)]
    number = main_latency(variants)
    if number is not None:
        timing = variants[0]["latency"][number]
        title = f"Latency, p50 ({timing['provider']}, batch {timing['batch']}, threads {timing['threads']})"
        charts.append(_chart(title, variants, shipped, lambda v: v["latency"][number]["p50_ms"], fmt.duration))
    return tuple(charts)


def _chart(
    title: str,
    variants: Sequence[Entry],
    shipped: str,
    value: Callable[[Entry], Any],
    text: Callable[[Any], str],
) -> Chart:
    values = [value(variant) for variant in variants]
    longest = max(number for number in values if number is not None)
    return Chart(
        title,
        tuple(
            Bar(variant["name"], text(number), (number or 0) / longest, variant["name"] == shipped)
            for variant, number in zip(variants, values, strict=True)
        ),
    )
