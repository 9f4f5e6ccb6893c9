"""What the quantize stage found, as tables and sentences, from the figures of its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.reporting import format as fmt
from compress.reporting.summary import Table

Figures = Mapping[str, Any]  # of the record of `compress.quantization.quantize`


@dataclass(frozen=True)
class Section:
    """What a report tells of quantization."""

    files: Table
    fallback: Table | None
    sentences: tuple[str, ...]


def quantize_figures(report: Mapping[str, Any]) -> Figures:
    """The figures of the quantize stage of a report; empty where it did not run."""
    return next((stage["figures"] for stage in report["stages"] if stage["stage"] == "quantize"), {})


def quantization_section(figures: Figures, shipped: str) -> Section | None:
    """All of it; None where nothing was quantized."""
    files = quantization_table(figures)
    if files is None:
        return None
    return Section(files, fallback_table(figures, shipped), quantization_sentences(figures, shipped))


def quantization_table(figures: Figures) -> Table | None:
    """One row for each quantized file; None where there is none."""
    columns = ("file", "noise (SQNR)", "MACs in int8 here", "layers that can saturate", "layers in float", "bytes")
    rows = tuple(_file_row(name, file) for name, file in figures.get("files", {}).items())
    return Table(columns, rows) if rows else None


def fallback_table(figures: Figures, shipped: str) -> Table | None:
    """What each number of layers in float costs and gains; None where no layer had to go back."""
    found = figures.get("fallback", {})
    steps = [(name, step) for name, each in found.items() for step in each["steps"]]
    ships = shipped_name(figures, shipped)
    kept = [(name, len(each["layers"])) for name, each in found.items() if f"{name}-mixed" == ships]
    mark = next((i for i, (name, step) in enumerate(steps) if (name, step["layers_in_float"]) in kept), None)
    columns = ("candidate", "layers in float", "drop on validation", "p50", "speed-up", "bytes")
    return Table(columns, tuple(_step_row(name, step) for name, step in steps), mark) if steps else None


def quantization_sentences(figures: Figures, shipped: str) -> tuple[str, ...]:
    """How ranges were taken, what was learned, and what the shipped file would do on other processors.

    Args:
        figures: Of the stage.
        shipped: The name of the variant that ships: the stage's own name for it, or one that ends with it.
    """
    sentences = []
    if calibration := figures.get("calibration"):
        told = ", ".join(f"{method} {_decibels(found)}" for method, found in calibration["sqnr_db"].items())
        sentences.append(f"Ranges: {calibration['method']}, over {fmt.count(calibration['samples'])} samples ({told}).")
        if calibration["equalized_pairs"]:
            sentences.append(f"{calibration['equalized_pairs']} pairs of layers were equalized.")
    for name, fallback in figures.get("fallback", {}).items():
        kept = "is within" if fallback["within"] else "stays over"
        sentences.append(
            f"{name} lost too much: with {len(fallback['layers'])} layers in float its drop "
            f"{kept} {fmt.fraction(fallback['budget'])}."
        )
    ships = shipped_name(figures, shipped)
    if ships is None:
        return (*sentences, *_why_float(figures))
    return (*sentences, *(f"Elsewhere: {line}" for line in figures["files"][ships]["portability"]))


def shipped_name(figures: Figures, shipped: str) -> str | None:
    """The stage's own name of the quantized file that ships; None where a float one does."""
    fitting = [name for name in figures.get("files", {}) if shipped == name or shipped.endswith(f"-{name}")]
    return max(fitting, key=len, default=None)


def _why_float(figures: Figures) -> tuple[str, ...]:
    """How much of the quantized files this machine computes in int8: little is why they are no faster."""
    shares = {name: file["int8_mac_share"] for name, file in figures.get("files", {}).items()}
    computing = {name: share for name, share in shares.items() if share > 0}
    if not shares:
        return ()
    if not computing:
        return ("No quantized file has int8 kernels here: they compute in float.",)
    told = ", ".join(f"{fmt.percent(share)} of {name}" for name, share in computing.items())
    return (f"A float file ships. Multiply-accumulates in int8 kernels, by the profile: {told}.",)


def _file_row(name: str, file: Figures) -> tuple[str, ...]:
    return (
        name,
        _decibels(file.get("sqnr_db")),
        fmt.percent(file["int8_mac_share"]),
        fmt.count(file["saturating_layers"]),
        fmt.count(file.get("layers_in_float", 0)),
        fmt.size(file["bytes"]),
    )


def _step_row(name: str, step: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        fmt.count(step["layers_in_float"]),
        fmt.fraction(step["drop"]),
        fmt.duration(step["p50_ms"]),
        fmt.ratio(step["float_p50_ms"] / step["p50_ms"]),
        fmt.size(step["bytes"]),
    )


def _decibels(value: float | None) -> str:
    return fmt.NOTHING if value is None else f"{value:.1f} dB"
