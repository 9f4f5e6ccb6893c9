"""compress.reporting.quantization_report: what a report tells of the quantize stage, from the figures of its record."""

from __future__ import annotations

from typing import Any

import pytest

from compress.reporting import render_html, render_markdown
from compress.reporting.quantization_report import (
    fallback_table,
    quantization_section,
    quantization_sentences,
    quantization_table,
    shipped_name,
)
from compress.values import StageRecord
from tests import test_reporting
from tests.test_reporting import BASE, measured, report_of


def _file(share: float = 1.0, **figures: Any) -> dict[str, Any]:
    plain = {"bytes": 40_600, "saturating_layers": 0, "int8_mac_share": share, "sqnr_db": 30.04, "portability": []}
    return {**plain, **figures}


def _fallback(layers: int, within: bool) -> dict[str, Any]:
    steps = [
        {"layers_in_float": n, "drop": 0.08 - 0.03 * n, "p50_ms": 1.0 + n, "float_p50_ms": 4.0, "bytes": 1000 * (n + 1)}
        for n in range(3)
    ]
    return {"budget": 0.02, "within": within, "layers": ["a", "b"][:layers], "steps": steps, "sensitivity": []}


FIGURES: dict[str, Any] = {
    "files": {
        "int8": _file(saturating_layers=4, portability=["avx2: accuracy can fall", "arm: U8S8 is not the fastest"]),
        "int8-mixed": _file(0.6, layers_in_float=2),
        "int8-weights": _file(0.0, sqnr_db=None),
    },
    "calibration": {
        "method": "mse", "samples": 512, "sqnr_db": {"mse": 31.0, "minmax": None}, "equalized_pairs": 3, "sha256": "ab",
    },
    "fallback": {"int8-dynamic": _fallback(1, within=False), "int8": _fallback(2, within=True)},
}  # fmt: skip


def test_every_file_has_a_row_with_its_noise_kernels_and_bytes() -> None:
    table = quantization_table(FIGURES)
    assert table is not None
    assert table.rows == (
        ("int8", "30.0 dB", "100.0 %", "4", "0", "40.6 KB"),
        ("int8-mixed", "30.0 dB", "60.0 %", "0", "2", "40.6 KB"),
        ("int8-weights", "–", "0.0 %", "0", "0", "40.6 KB"),
    )
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_trade_off_of_every_candidate_is_told_and_what_ships_is_marked() -> None:
    table = fallback_table(FIGURES, "baseline-int8-mixed")
    assert table is not None
    assert [row[:3] for row in table.rows] == [
        ("int8-dynamic", "0", "0.0800"), ("int8-dynamic", "1", "0.0500"), ("int8-dynamic", "2", "0.0200"),
        ("int8", "0", "0.0800"), ("int8", "1", "0.0500"), ("int8", "2", "0.0200"),
    ]  # fmt: skip
    assert table.rows[5][3:] == ("3.00 ms", "1.33×", "3.00 KB")
    assert table.mark == 5
    assert all(len(row) == len(table.columns) for row in table.rows)


@pytest.mark.parametrize("shipped", ["baseline-int8", "baseline-fp32", "int8-weights"])
def test_no_step_is_marked_where_no_mixed_file_ships(shipped: str) -> None:
    table = fallback_table(FIGURES, shipped)
    assert table is not None
    assert table.mark is None


def test_sentences_tell_the_ranges_the_fallback_and_the_other_processors() -> None:
    assert quantization_sentences(FIGURES, "pruned-int8") == (
        "Ranges: mse, over 512 samples (mse 31.0 dB, minmax –).",
        "3 pairs of layers were equalized.",
        "int8-dynamic lost too much: with 1 layers in float its drop stays over 0.0200.",
        "int8 lost too much: with 2 layers in float its drop is within 0.0200.",
        "Elsewhere: avx2: accuracy can fall",
        "Elsewhere: arm: U8S8 is not the fastest",
    )


def test_where_a_float_file_ships_the_share_of_int8_kernels_says_why() -> None:
    last = quantization_sentences(FIGURES, "baseline-fp32")[-1]
    assert last.endswith("in int8 kernels, by the profile: 100.0 % of int8, 60.0 % of int8-mixed.")
    only = {"files": {"int8-weights": _file(0.0)}}
    assert quantization_sentences(only, "baseline-fp32") == (
        "No quantized file has int8 kernels here: they compute in float.",
    )


@pytest.mark.parametrize(
    ("shipped", "name"),
    [("int8", "int8"), ("sparse-int8", "int8"), ("sparse-int8-mixed", "int8-mixed"), ("baseline-fp32", None),
     ("sparse-fp32", None), ("notint8", None)],
)  # fmt: skip
def test_the_stage_knows_its_file_by_the_name_of_the_variant(shipped: str, name: str | None) -> None:
    assert shipped_name(FIGURES, shipped) == name


def test_nothing_is_told_where_nothing_was_quantized() -> None:
    assert quantization_section({}, "baseline-fp32") is None
    assert quantization_section({"files": {}}, "baseline-fp32") is None
    assert fallback_table({"files": {"int8": _file()}}, "int8") is None


@pytest.mark.parametrize("render", [render_markdown, render_html])
def test_reports_hold_all_of_it(render: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_reporting, "RECORDS", (StageRecord("quantize", {}, 1.0, FIGURES),))
    text = render(report_of(BASE, measured("baseline-int8-mixed", 1000, 0.5)).to_dict())
    section = quantization_section(FIGURES, "baseline-int8-mixed")
    assert section is not None
    for sentence in section.sentences:
        assert sentence in text
    assert "Layers that return to float" in text
    assert text.count("int8-dynamic") >= 4  # a sentence and three rows
