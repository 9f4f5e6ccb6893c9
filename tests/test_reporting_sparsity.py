"""What a report tells about sparsity, on measurements made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from compress.measurement import Measurement
from compress.models.counts import Counts
from compress.reporting import render_html, render_markdown, weight_pictures
from compress.reporting.summary import sparsity_sentences
from compress.sparsity.weights_summary import summarise
from compress.values import StageRecord
from tests.test_reporting import BASE, made_data, measured, outline, report_of

PREDICTED = {"predicted_zip_bytes": {"dense": {"float32": 9000, "int8": 4000, "int8-reduced": 3000}}}


def sparsified(*measurements: Measurement, figures: dict[str, Any] | None = None) -> dict[str, Any]:
    """report.json of a run that sparsified, as read back."""
    record = StageRecord("sparsify", {}, 1.0, PREDICTED if figures is None else figures)
    report = replace(report_of(*measurements, data=made_data()), records=(record,))
    stored: dict[str, Any] = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    return stored


def gains_of(report: dict[str, Any]) -> dict[str, Any]:
    return {variant["name"]: variant["sparsity_gain"] for variant in report["variants"]}


def test_a_sparse_float_variant_is_compared_with_its_measured_twin() -> None:
    pruned, sparse = measured("pruned-fp32", 8000, 0.5), measured("pruned-sparse-fp32", 1000, 0.505)
    gains = gains_of(sparsified(BASE, pruned, sparse, measured("sparse-fp32", 2000, 1.0)))
    assert gains["baseline-fp32"] is gains["pruned-fp32"] is None
    assert gains["pruned-sparse-fp32"] == {
        "twin": "pruned-fp32", "dense_zip_bytes": 8000, "zip_ratio": 8.0, "estimated": False,
        "latency_ratio": {"value": 1.01, "low": 1.01, "high": 1.01, "significant": False},
    }  # fmt: skip
    assert gains["sparse-fp32"]["twin"] == "baseline-fp32"
    assert gains["sparse-fp32"]["zip_ratio"] == 5.0


def test_a_sparse_int8_variant_is_compared_with_the_prediction_for_its_own_form() -> None:
    names = ("sparse-int8", "sparse-int8-dynamic", "sparse-int8-reduced", "sparse-int8-per-channel")
    gains = gains_of(sparsified(BASE, *(measured(name, 500, 1.0) for name in names)))
    assert gains["sparse-int8"] == {
        "twin": None, "dense_zip_bytes": 4000, "zip_ratio": 8.0, "estimated": True, "latency_ratio": None,
    }  # fmt: skip
    assert gains["sparse-int8-dynamic"]["dense_zip_bytes"] == 4000
    assert gains["sparse-int8-reduced"]["zip_ratio"] == 6.0
    assert gains["sparse-int8-per-channel"] is None  # nobody predicted it


@pytest.mark.parametrize("figures", [{}, {"predicted_zip_bytes": {}}, {"predicted_zip_bytes": {"dense": {}}}])
def test_without_a_prediction_nothing_is_claimed(figures: dict[str, Any]) -> None:
    report = sparsified(BASE, measured("sparse-int8", 500, 1.0), figures=figures)
    assert gains_of(report) == {"baseline-fp32": None, "sparse-int8": None}
    assert "## Sparsity" not in render_markdown(report)


def test_a_variant_without_zeros_gained_nothing() -> None:
    whole = replace(measured("sparse-fp32", 500, 1.0), counts=Counts(1000, 1000, 5000))
    assert gains_of(sparsified(BASE, whole))["sparse-fp32"] is None


def test_a_twin_that_was_not_timed_gives_no_latency() -> None:
    report = sparsified(BASE, measured("sparse-fp32", 1000, None))
    assert gains_of(report)["sparse-fp32"]["latency_ratio"] is None
    assert "Sparsity: sparse-fp32 zips 10.0× smaller than baseline-fp32." in render_markdown(report)


@pytest.mark.parametrize("render", [render_markdown, render_html])
def test_every_rendering_tells_what_sparsity_gained(render: Any) -> None:
    text = render(sparsified(BASE, measured("sparse-fp32", 1000, 1.01), measured("sparse-int8-reduced", 500, 1.0)))
    for fact in (
        "Sparsity: sparse-fp32 zips 10.0× smaller than baseline-fp32; latency 1.01× [1.01–1.01×]: unchanged.",
        "10.0 KB (baseline-fp32)",
        "3.00 KB (estimated)",
        "6.00×",
    ):
        assert fact in text, fact


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(0.98, 1.02, "unchanged"), (1.01, 1.02, "unchanged"), (0.8, 1.2, "no difference found"), (1.1, 1.2, "differs")],
)
def test_a_wide_interval_is_not_called_unchanged(low: float, high: float, told: str) -> None:
    report = sparsified(BASE, measured("sparse-fp32", 1000, 1.0))
    report["variants"][1]["sparsity_gain"]["latency_ratio"] = {"value": (low + high) / 2, "low": low, "high": high}
    assert sparsity_sentences(report["variants"])[0].endswith(f": {told}.")


def layers_record() -> dict[str, Any]:
    before, after = nn.Linear(30, 20), nn.Linear(30, 20)
    with torch.no_grad():
        after.weight[:, ::2] = 0
    return {"layers": [layer.to_dict() for layer in summarise(before, after)]}


def test_the_weights_of_each_layer_are_charts_in_the_html_and_files() -> None:
    report = sparsified(BASE, measured("sparse-fp32", 1000, 1.0), figures=layers_record())
    pictures = weight_pictures(report)
    assert set(pictures) == {"parameters.svg", "parameters.png", "histograms.svg", "histograms.png"}
    assert pictures["parameters.png"].startswith(b"\x89PNG")
    assert pictures == weight_pictures(report)
    html = render_html(report)
    assert "600 → 300" in html
    assert "weights that are not zero: 600 to 300" in html
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in outline(html).seen}


def test_a_run_that_did_not_sparsify_has_no_weights_section() -> None:
    report = sparsified(BASE, figures=layers_record())
    report["stages"][0]["skipped"] = "no sparsity stayed within the budget"
    assert weight_pictures(report) == {}
    assert '<section id="layers">' not in render_html(report)
