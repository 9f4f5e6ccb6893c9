"""report.md and the tables that it shares with the page and the console, on a report made by hand."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from compress.reporting import format as fmt
from compress.reporting import render_markdown, variant_table, verdict_sentences
from compress.reporting.markdown import LIMIT
from compress.reporting.summary import latency_table, significant, speedup_text
from compress.reporting.tables import changed_table, class_table, journey_table, key_table, limit_table
from tests.reports import SHIPPED, example_report


@pytest.fixture
def report() -> dict[str, Any]:
    return copy.deepcopy(example_report())


def shipped(report: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = next(v for v in report["variants"] if v["name"] == report["shipped"])
    return entry


def set_speedup(report: dict[str, Any], value: float, low: float, high: float, significant: bool) -> None:
    for timing in shipped(report)["latency"]:
        if timing["speedup"] is not None:
            timing["speedup"] = {"value": value, "low": low, "high": high, "significant": significant}


# Tables


def test_the_key_table_has_both_sides_of_bytes_latency_and_answers(report: dict[str, Any]) -> None:
    download, latency, answers = key_table(report).rows
    assert download == ("download", "762 KB (705 KB zipped)", "9.93 KB zipped", "76.8× smaller")
    assert latency[0] == "p50 (CPU, batch 1, 1 thread)"
    assert latency[1:3] == ("282 µs [278–285 µs]", "70.4 µs [69.5–71.4 µs]")
    assert latency[3].endswith("faster")
    assert answers[0] == "accuracy (n = 10,000)"
    assert answers[3] == "drop 0.0035 [0.0006 to 0.0064]; 0.0100 allowed"


@pytest.mark.parametrize(
    ("value", "low", "high", "differs", "said"),
    [
        (1.31, 1.22, 1.40, True, "faster"),
        (0.80, 0.77, 0.83, True, "as fast: slower"),
        (1.01, 0.98, 1.04, False, "no significant difference"),
    ],
)
def test_a_speedup_that_is_none_is_called_so_everywhere(
    value: float, low: float, high: float, differs: bool, said: str, report: dict[str, Any]
) -> None:
    set_speedup(report, value, low, high, differs)
    assert said in key_table(report).rows[1][3]
    for table in (variant_table(report["variants"]), latency_table(report["variants"])):
        rows = [" ".join(row) for row in table.rows if row[0] == SHIPPED and fmt.ratio(value) in " ".join(row)]
        assert rows
        assert all(("not significant" in row) == (not differs) for row in rows)
    sentence = next(line for line in verdict_sentences(report) if line.startswith("p50 went"))
    assert ("no significant difference" in sentence) == (not differs)
    assert ("slower" in sentence) == (differs and value < 1)
    assert ("a speed-up of" in sentence) == (differs and value > 1)


def test_the_original_is_not_compared_with_itself(report: dict[str, Any]) -> None:
    assert "not significant" not in " ".join(variant_table(report["variants"]).rows[0])


def test_a_report_of_before_significance_was_recorded_goes_by_its_interval() -> None:
    assert significant({"value": 2.0, "low": 1.9, "high": 2.1})
    assert not significant({"value": 1.01, "low": 0.9, "high": 1.1})
    assert speedup_text(None) == fmt.NOTHING


def test_a_drop_whose_interval_holds_zero_is_called_no_difference(report: dict[str, Any]) -> None:
    report["verdict"]["drop_interval"] = {"low": -0.001, "high": 0.008}
    assert "no significant difference" in key_table(report).rows[-1][3]
    assert "no significant difference" in verdict_sentences(report)[0]


def test_a_verdict_that_other_samples_might_reverse_says_so(report: dict[str, Any]) -> None:
    doubt = "with other samples the verdict could differ"
    assert doubt not in " ".join(verdict_sentences(report))
    report["verdict"]["drop_interval"] = {"low": 0.001, "high": 0.012}
    assert doubt in verdict_sentences(report)[1]


def test_the_users_own_metric_takes_the_place_of_accuracy(report: dict[str, Any]) -> None:
    for variant in report["variants"]:
        variant["metric"] = {"name": "mean_iou", "value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    report["verdict"]["measured_in"] = "mean_iou"
    assert variant_table(report["variants"]).columns[1] == "mean_iou [95 %]"
    assert key_table(report).rows[-1][:2] == ("mean_iou (n = 10,000)", "0.5000 [0.4000–0.6000]")
    assert "of mean_iou" in verdict_sentences(report)[0]


def test_fidelity_has_no_interval(report: dict[str, Any]) -> None:
    for variant in report["variants"]:
        variant["accuracy"] = None
    report["verdict"]["measured_in"] = "fidelity"
    assert variant_table(report["variants"]).columns[1] == "fidelity"
    assert key_table(report).rows[-1][1] == "1.0000"


def test_classes_come_with_the_largest_loss_first(report: dict[str, Any]) -> None:
    table = class_table(report, most=3)
    assert table is not None
    assert [row[0] for row in table.rows] == ["T-shirt", "trouser", "pullover"]
    assert [float(row[-1]) for row in table.rows] == sorted((float(row[-1]) for row in table.rows), reverse=True)


@pytest.mark.parametrize("names", [None, [], ["only", "a", "few"]])
def test_a_class_that_the_data_does_not_name_is_a_number(report: dict[str, Any], names: list[str] | None) -> None:
    report["data"]["class_names"] = names
    table = changed_table(report)
    assert table is not None
    assert table.rows[0][1:3] == ("6", "6 (81.0 %)")
    del report["data"]["class_names"]  # as in reports of before it was told
    assert changed_table(report) == changed_table({**report, "data": {**report["data"], "class_names": None}})


def test_changed_answers_say_what_became_of_them(report: dict[str, Any]) -> None:
    table = changed_table(report)
    assert table is not None
    assert table.rows[0] == ("37", "shirt", "shirt (81.0 %)", "T-shirt (66.0 %)", "was right")
    assert table.rows[5][4] == "wrong before and after"
    report["changed"][0]["label"] = None
    unlabelled = changed_table(report)
    assert unlabelled is not None
    assert (unlabelled.rows[0][1], unlabelled.rows[0][4]) == (fmt.NOTHING, "")


def test_the_journey_says_what_each_step_bought_and_which_latency_is_noise(report: dict[str, Any]) -> None:
    table = journey_table(report)
    assert table is not None
    assert table.rows[0][2:] == ("705 KB", "282 µs", "0.8897")
    assert table.rows[1][2:] == ("142 KB (4.97×)", "113 µs (2.50×)", "0.8879 (−0.0018)")
    assert table.rows[2][3] == "112 µs (1.01×, not significant)"


def test_the_limit_names_what_binds_each_variant(report: dict[str, Any]) -> None:
    table = limit_table(report)
    assert table is not None
    assert table.rows[0][-1] == "compute"
    assert table.mark == 3


def test_what_was_not_measured_has_no_table(report: dict[str, Any]) -> None:
    report["changed"], report["journey"] = None, None
    for variant in report["variants"]:
        variant["limit"] = variant["classes"] = None
    assert [make(report) for make in (changed_table, journey_table, limit_table, class_table)] == [None] * 4


# Markdown


def test_the_markdown_fits_a_comment_with_the_verdict_and_the_key_table_before_the_first_fold(
    report: dict[str, Any],
) -> None:
    text = render_markdown(report)
    assert len(text) < 9_000
    top = text[: text.index("<details>")]
    assert len(top.splitlines()) < 30
    assert top.startswith("# ✓ Compression report\n")
    assert "**Passed: " in top
    assert f"- model `fashion/model.pt`, sha256 {'9b1c' * 16}\n" in text
    for figure in ("76.8× smaller", "[278–285 µs]", "drop 0.0035 [0.0006 to 0.0064]"):
        assert figure in top
    assert f"**{SHIPPED}**" in top


def test_all_else_is_folded_and_well_formed(report: dict[str, Any]) -> None:
    text = render_markdown(report)
    titles = re.findall(r"^<details>\n<summary>(.*)</summary>\n\n(?:[^<]|<(?!/?details))*?\n\n</details>$", text, re.M)
    assert len(titles) == text.count("<details>") == text.count("</details>") >= 11
    for title in ("Latency", "Accuracy by class", "Answers that changed most", "Size", "Where it runs", "Stages"):
        assert title in titles


def test_a_run_that_did_not_pass_says_so_on_top(report: dict[str, Any]) -> None:
    report["verdict"] |= {"passed": False, "drop": 0.02}
    assert render_markdown(report).startswith("# ✗ Compression report\n\n**Not passed: ")


def test_a_report_that_would_be_too_long_leaves_folds_out_and_says_which(report: dict[str, Any]) -> None:
    report["stages"][1]["notes"] = [f"note {number} " + "x" * 90 for number in range(2_000)]
    text = render_markdown(report)
    assert len(text) <= LIMIT
    assert "left out here (they are in report.html): Stages." in text
    assert "**Passed: " in text


def test_what_did_not_run_is_one_line_however_often_it_was_asked(report: dict[str, Any]) -> None:
    text = render_markdown(report)
    latency = text[text.index("<summary>Latency") :]
    latency = latency[: latency.index("</details>")]
    assert latency.count("is not in this build of onnxruntime") == 1
    assert "| CUDA |" not in latency


def test_a_report_from_before_this_version_still_renders(report: dict[str, Any]) -> None:
    for key in ("machine", "changed", "layers", "sensitivity", "journey"):
        del report[key]
    for key in ("drop_interval", "speedup_interval", "speedup_significant"):
        del report["verdict"][key]
    for variant in report["variants"]:
        for key in ("sizes", "top5", "metric", "logit_sqnr_db", "drop_interval", "mcnemar", "classes", "limit"):
            del variant[key]
        for timing in variant["latency"]:
            for key in ("placement", "p50_interval", "throughput", "quantiles_ms", "peak_bytes", "load_ms"):
                del timing[key]
    text = render_markdown(report)
    assert "**Passed: " in text
    assert "<summary>Latency</summary>" in text
    assert "<summary>Accuracy by class</summary>" not in text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        ("278 µs", "285 µs", "278–285 µs"),
        ("999 µs", "1.01 ms", "999 µs–1.01 ms"),
        ("3.91×", "4.08×", "3.91–4.08×"),
        ("0.1", "0.2", "0.1–0.2"),
    ],
)
def test_an_interval_names_its_unit_once(low: str, high: str, text: str) -> None:
    assert fmt.span(low, high) == text
