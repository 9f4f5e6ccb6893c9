"""report.csv: one row for each variant and latency."""

from __future__ import annotations

import csv
import io
from typing import Any

from compress.reporting.csv_table import COLUMNS, LATENCY, VARIANT, render_csv
from tests.reports import SHIPPED, example_report


def rows_of(report: dict[str, Any]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render_csv(report))))


def test_every_variant_has_a_row_for_each_of_its_latencies() -> None:
    report = example_report()
    found = [(row["variant"], row["provider"], row["batch"], row["threads"]) for row in rows_of(report)]
    assert found == [
        (v["name"], t["provider"], str(t["batch"]), str(t["threads"])) for v in report["variants"] for t in v["latency"]
    ]


def test_every_row_has_every_column() -> None:
    table = list(csv.reader(io.StringIO(render_csv(example_report()))))
    assert tuple(table[0]) == COLUMNS
    assert {len(row) for row in table} == {len(COLUMNS)}


def test_figures_are_those_of_the_report_to_the_last_digit() -> None:
    report = example_report()
    shipped = next(v for v in report["variants"] if v["name"] == SHIPPED)
    row = next(row for row in rows_of(report) if row["shipped"] == "yes")
    assert row["variant"] == SHIPPED
    assert float(row["p50_ms"]) == shipped["latency"][0]["p50_ms"]
    assert float(row["speedup_low"]) == shipped["latency"][0]["speedup"]["low"]
    assert float(row["drop_high"]) == shipped["drop_interval"]["high"]
    assert int(row["weight_bytes"]) == shipped["sizes"]["by_kind"]["weights"]


def test_a_figure_that_is_not_there_is_an_empty_cell_and_its_reason_stays() -> None:
    report = example_report()
    absent = next(row for row in rows_of(report) if row["provider"] == "CUDAExecutionProvider")
    assert (absent["p50_ms"], absent["speedup"], absent["copies"]) == ("", "", "")
    assert "Install onnxruntime-gpu" in absent["status"]


def test_every_scalar_of_a_timing_has_a_column() -> None:
    timing = example_report()["variants"][0]["latency"][0]
    scalars = {key for key, value in timing.items() if not isinstance(value, dict | list)}
    assert scalars <= set(LATENCY.values())


def test_columns_are_named_once() -> None:
    assert len(set(COLUMNS)) == len(COLUMNS) == len(VARIANT) + len(LATENCY)
