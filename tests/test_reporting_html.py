"""What report.html draws, as figures: see test_report_browser.py for how it looks."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.reporting import render_html
from compress.reporting.charts import BOLD, LETTER, WIDTH, Row, Scale, Segment, fitting, rows_of_bars
from compress.reporting.charts_layers import (
    FOLDED,
    SHOWN,
    classes_chart,
    histogram_charts,
    sensitivity_chart,
    weights_chart,
    widths_chart,
)
from compress.reporting.charts_pareto import pareto_charts
from compress.reporting.charts_variants import journey_charts, latency_charts, limit_chart
from compress.reporting.headline import headline_figures, verdict_line
from compress.reporting.html import SECTIONS
from compress.reporting.tables import absences, placement_table
from tests.reports import SHIPPED, VARIANTS, example_report

LATER = ("model", "journey", "machine", "layers", "changed", "sensitivity")  # keys that the first reports did not have


def sections_of(html: str) -> list[str]:
    return re.findall('<section id="([a-z]+)"', html)


def widths(body: str, style: str) -> list[float]:
    return [float(found) for found in re.findall(f'width="([0-9.]+)" height="[0-9.]+" class="{style}"', body)]


# The page


def test_every_section_has_its_place() -> None:
    assert sections_of(render_html(example_report())) == [name for name, _ in SECTIONS]


def test_a_section_without_figures_is_left_out() -> None:
    report = {key: value for key, value in example_report().items() if key not in LATER}
    for variant in report["variants"]:
        for key in ("sizes", "limit", "classes"):
            variant[key] = None
        for timing in variant["latency"]:
            timing["placement"] = None
    report["stages"] = [stage for stage in report["stages"] if stage["stage"] not in ("sparsify", "quantize")]
    assert sections_of(render_html(report)) == ["variants", "latency", "sparsity", "stages", "provenance"]


def test_the_same_report_gives_the_same_page() -> None:
    stored = json.loads(json.dumps(example_report()))
    assert render_html(stored) == render_html(example_report())


@pytest.mark.parametrize("passed", [True, False])
def test_the_verdict_is_marked(passed: bool) -> None:
    report = example_report()
    report["verdict"] |= {"passed": passed}
    assert f'<header id="verdict" class="{"passed" if passed else "failed"}">' in render_html(report)


def test_the_headline_holds_size_latency_and_answers_with_their_intervals() -> None:
    size, latency, answers = headline_figures(example_report())
    assert (size.figure, size.lines[0]) == ("9.93 KB", "76.8× smaller")
    assert latency.figure == "70.4 µs"
    assert re.fullmatch(r"4\.00× \[3\.91–4\.08×\] faster", latency.lines[0])
    assert answers.figure == "0.8862"
    assert "n = 10,000" in answers.lines[0]
    assert answers.lines[1] == "drop 0.0035 [0.0006 to 0.0064]; 0.0100 allowed"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "Passed: pruned-sparse-int8 loses 0.0035 of accuracy (0.0100 allowed)."),
        (
            {"passed": False, "drop": 0.0123},
            "Not passed: pruned-sparse-int8 loses 0.0123 of accuracy (0.0100 allowed).",
        ),
        ({"drop": -0.002}, "Passed: pruned-sparse-int8 gains 0.0020 of accuracy (0.0100 allowed)."),
        (
            {"passed": False, "met": False},
            "Not passed: no variant kept its accuracy on validation, pruned-sparse-int8 ships.",
        ),
    ],
)
def test_the_verdict_is_a_line_of_few_words(changes: dict[str, Any], line: str) -> None:
    report = example_report()
    report["verdict"] |= changes
    assert verdict_line(report) == line
    assert f"</span>{line[line.index(':') :]}</h1>" in render_html(report)


def test_where_the_original_ships_the_verdict_claims_nothing() -> None:
    kept = example_report(shipped="baseline-fp32")
    assert verdict_line(kept) == "Passed: nothing that was made is better than the original, baseline-fp32 ships."
    alone = example_report(shipped="baseline-fp32", variants=kept["variants"][:1])
    alone["verdict"] |= {"passed": False, "met": False}
    assert verdict_line(alone) == "Not passed: nothing was made besides baseline-fp32."


def test_a_verdict_that_other_samples_could_turn_says_so_at_the_top() -> None:
    doubt, report = "with other samples the verdict could differ", example_report()
    assert doubt not in render_html(report)
    report["verdict"]["drop_interval"]["high"] = 0.02
    assert doubt in render_html(report).partition("<section")[0]


def test_the_page_names_the_model_and_its_classes() -> None:
    page = render_html(example_report())
    assert '<p class="dim">fashion/model.pt · fashion-mnist · AMD EPYC</p>' in page
    assert f'fashion/model.pt <span class="dim">sha256 {"9b1c" * 16}' in page
    assert "<strong>shirt → T-shirt</strong>" in page
    assert 'alt="Test sample 37, labelled shirt"' in page
    classes = classes_chart(example_report())
    assert classes is not None
    assert classes.chart.figures.startswith("T-shirt ")
    report = example_report()
    del report["model"], report["data"]["class_names"]  # of before they were told
    assert "<strong>6 → 0</strong>" in render_html(report)
    classes = classes_chart(report)
    assert classes is not None
    assert classes.chart.figures.startswith("class 0 ")


def test_a_speedup_that_may_be_chance_is_not_called_one() -> None:
    report = example_report()
    gain = next(v for v in report["variants"] if v["name"] == SHIPPED)["latency"][0]["speedup"]
    gain |= {"value": 1.02, "low": 0.99, "high": 1.04, "significant": False}
    assert headline_figures(report)[1].lines[0] == "no significant difference: 1.02× [0.99–1.04×]"
    assert "not significant" in latency_charts(report)[0].figures


def test_providers_that_did_not_run_are_told_once_with_their_reason() -> None:
    (line,) = absences(example_report())
    assert line.startswith("CUDA, all variants: CUDAExecutionProvider is not in this build")


def test_the_placement_counts_nodes_and_copies() -> None:
    table = placement_table(example_report())
    assert table is not None
    assert table.rows[3][:4] == (SHIPPED, "CPU", "9 on CPU", "0")
    assert table.rows[3][5].startswith("3 QLinearConv, 2 QGemm")


# The charts


def test_the_journey_draws_what_is_left_and_what_each_stage_took() -> None:
    sizes, latency, answers = journey_charts(example_report())
    zipped = [variant[6] for variant in VARIANTS[:4]]
    left, taken = widths(sizes.body, "(?:quiet|accent)"), widths(sizes.body, "saved")
    assert left == pytest.approx([WIDTH * size / zipped[0] for size in zipped], abs=0.06)
    assert taken == pytest.approx([WIDTH * (a - b) / zipped[0] for a, b in pairwise(zipped)], abs=0.06)
    assert "quantize (pruned-sparse-int8) 9.63 KB, −61 %" in sizes.figures
    assert "original (baseline-fp32) 282 µs" in latency.figures
    assert answers.figures.endswith("a drop of −1.00 points is allowed")


def test_a_stage_that_made_it_worse_is_drawn_so() -> None:
    report = example_report()
    report["journey"][1]["p50_ms"] = 2 * report["journey"][0]["p50_ms"]
    latency = journey_charts(report)[1]
    assert widths(latency.body, "worse") == [WIDTH / 2]
    assert "+100 %" in latency.figures


def test_a_journey_of_one_step_is_not_drawn() -> None:
    assert journey_charts(example_report(journey=[])) == ()


def test_every_variant_is_a_point_and_a_bad_one_stays_at_the_edge() -> None:
    report = example_report()
    report["variants"][1]["accuracy"] = {"value": 0.1, "low": 0.09, "high": 0.11, "n": 10_000}
    for chart in pareto_charts(report):
        assert chart.body.count("<circle") == len(VARIANTS) - 1
        assert chart.body.count("<polygon") == 1
        assert "2 (0.100)" in chart.body
        assert all(name in chart.figures for name, *_ in VARIANTS)


def test_the_limit_adds_up_to_the_roofline() -> None:
    report = example_report()
    limits = [variant["limit"] for variant in report["variants"]]
    for each in limits:
        each["roofline_ms"] = each["compute_ms"] + each["memory_ms"] + each["overhead_ms"]
    chart = limit_chart(report)
    assert chart is not None
    longest = max([limit["roofline_ms"] for limit in limits] + [variant[-1] for variant in VARIANTS])
    drawn = [sum(parts) for parts in zip(*(widths(chart.body, style) for style in ("c1", "c2", "c3")), strict=True)]
    # Parts of less than a unit are drawn one unit wide.
    assert drawn == pytest.approx([WIDTH * limit["roofline_ms"] / longest for limit in limits], abs=2)


def test_widths_and_weights_are_told_before_and_after() -> None:
    channels, weights = widths_chart(example_report()), weights_chart(example_report())
    assert channels is not None
    assert weights is not None
    assert "features.0 32 → 16" in channels.chart.figures
    assert widths(channels.chart.body, "accent")[0] == pytest.approx(
        widths(channels.chart.body, "pale")[0] / 2, abs=0.1
    )
    assert "classifier.4 10" in channels.chart.figures
    assert len(histogram_charts(example_report())) == 5


def test_a_layer_that_left_is_gone() -> None:
    report = example_report()
    report["layers"][1]["after"] = None
    report["layers"][1]["histogram"]["after"] = None
    channels = widths_chart(report)
    assert channels is not None
    assert "features.3 64 → gone" in channels.chart.figures
    assert render_html(report)


def test_widths_that_did_not_change_are_not_drawn() -> None:
    report = example_report()
    for layer in report["layers"]:
        layer["after"]["channels"] = layer["before"]["channels"]
    assert widths_chart(report) is None


def test_the_most_sensitive_layer_comes_first_and_the_others_are_folded() -> None:
    names = [f"layer.{i}" for i in range(250)]
    found = {"layers": names, "columns": ["50 %"], "drops": [[i / 1000] for i in range(250)]}
    folded = sensitivity_chart(example_report(sensitivity={**found, "measured_in": "accuracy", "n": 100}))
    assert folded is not None
    assert folded.rest is not None
    assert folded.chart.figures.startswith("layer.249: 50 % +24.9; ")
    assert (folded.chart.figures.count(";") + 1, folded.rest.figures.count(";") + 1) == (SHOWN, FOLDED)
    assert folded.more == "180 of 230 more layers"


def test_where_the_original_ships_no_class_has_changed() -> None:
    assert classes_chart(example_report()) is not None
    assert classes_chart(example_report(shipped="baseline-fp32")) is None


def test_names_cannot_break_out_of_a_chart() -> None:
    body, _ = rows_of_bars([Row("<script>", "&", (Segment(0, 1, "quiet"),))], Scale(0, 1, 0, WIDTH))
    assert "<script>" not in body
    assert "&lt;script&gt;" in body


# Scales and labels


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e6), st.booleans())
def test_ticks_lie_within_the_scale_and_rise(low: float, factor: float, logarithmic: bool) -> None:
    scale = Scale(low, low * factor, 0, WIDTH, logarithmic)
    ticks = scale.ticks()
    assert len(ticks) >= 1
    assert ticks == sorted(set(ticks))
    assert all(-0.01 <= scale(tick) <= WIDTH + 0.01 for tick in ticks)


@given(st.text("abc-_1", min_size=1, max_size=60), st.sampled_from([LETTER, BOLD]))
def test_a_label_that_was_cut_fits_and_keeps_its_end(label: str, letter: float) -> None:
    shown = fitting(label, "12.3 KB", letter=letter)
    assert (len(shown) + len("12.3 KB")) * letter <= WIDTH
    assert shown.endswith(label[-4:])


def test_the_headline_claims_no_gain_that_could_be_chance() -> None:
    report = example_report()
    report["verdict"] |= {"drop": -0.001, "drop_interval": {"low": -0.004, "high": 0.002}}
    assert "keeps its accuracy" in verdict_line(report)
    report["verdict"]["drop_interval"] = {"low": -0.004, "high": -0.0002}
    assert "gains 0.0010 of accuracy" in verdict_line(report)
