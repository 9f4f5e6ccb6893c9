"""report.csv, from the plain dict of report.json: a row for each variant and latency, with all its figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

# Column -> where the figure is, in an entry of ``variants`` and in one of its ``latency``. The names are kept: sheets
# and scripts refer to them. Units are in the names; the others are counts, ratios and fractions 0..1.
VARIANT: Mapping[str, str] = {
    "variant": "name",
    "stage": "stage",
    "shipped": "shipped",
    "parameters": "parameters",
    "nonzero": "nonzero",
    "macs": "macs",
    "sparsity": "sparsity",
    "raw_bytes": "raw_bytes",
    "zip_bytes": "zip_bytes",
    "gzip_bytes": "sizes.gzip_bytes",
    "zstd_bytes": "sizes.zstd_bytes",
    "entropy_bytes": "sizes.entropy_bytes",
    "weight_bytes": "sizes.by_kind.weights",
    "graph_bytes": "sizes.by_kind.graph",
    "metadata_bytes": "sizes.by_kind.metadata",
    "zip_ratio": "zip_ratio",
    "accuracy": "accuracy.value",
    "accuracy_low": "accuracy.low",
    "accuracy_high": "accuracy.high",
    "test_samples": "accuracy.n",
    "top5": "top5.value",
    "top5_low": "top5.low",
    "top5_high": "top5.high",
    "metric": "metric.value",
    "metric_low": "metric.low",
    "metric_high": "metric.high",
    "fidelity": "fidelity",
    "logit_sqnr_db": "logit_sqnr_db",
    "drop": "drop",
    "drop_low": "drop_interval.low",
    "drop_high": "drop_interval.high",
    "mcnemar_p": "mcnemar.p",
    "validation_accuracy": "validation.accuracy.value",
    "validation_metric": "validation.metric.value",
    "validation_fidelity": "validation.fidelity",
    "validation_drop": "validation.drop",
    "roofline_ms": "limit.roofline_ms",
    "roofline_reached": "limit.reached",
    "bound_by": "limit.bound",
    "not_shipped": "not_shipped",
}
LATENCY: Mapping[str, str] = {
    "provider": "provider",
    "precision": "precision",
    "batch": "batch",
    "threads": "threads",
    "status": "status",
    "p50_ms": "p50_ms",
    "p50_low_ms": "p50_interval.low",
    "p50_high_ms": "p50_interval.high",
    "p90_ms": "p90_ms",
    "p95_ms": "p95_ms",
    "p95_low_ms": "p95_interval.low",
    "p95_high_ms": "p95_interval.high",
    "p99_ms": "p99_ms",
    "mean_ms": "mean_ms",
    "first_call_ms": "first_call_ms",
    "load_ms": "load_ms",
    "peak_bytes": "peak_bytes",
    "samples_per_s": "throughput",
    "energy_mj": "energy_mj",
    "calls": "samples",
    "rounds": "rounds",
    "launches": "launches",
    "settled": "settled",
    "copies": "placement.copies",
    "speedup": "speedup.value",
    "speedup_low": "speedup.low",
    "speedup_high": "speedup.high",
    "speedup_significant": "speedup.significant",
}
COLUMNS = (*VARIANT, *LATENCY)


def render_csv(report: Mapping[str, Any]) -> str:
    """The report as a table with a header; a cell is empty where there is no figure, flags are yes or no.

    A report that was read back from report.json gives the same text.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in report["variants"]:
        variant = {**entry, "shipped": entry["name"] == report["shipped"]}
        own = [_cell(_at(variant, path)) for path in VARIANT.values()]
        for timing in variant["latency"]:
            writer.writerow([*own, *(_cell(_at(timing, path)) for path in LATENCY.values())])
    return table.getvalue()


def _at(entry: Mapping[str, Any], path: str) -> Any:
    """What a dotted path leads to; None where something on the way is null."""
    found: Any = entry
    for key in path.split("."):
        if found is None:
            return None
        found = found[key]
    return found


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
