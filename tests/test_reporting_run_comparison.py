"""Two runs side by side: what changed, and whether it is more than chance."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.measurement.answers import Kept
from compress.measurement.timing import Timing, summary
from compress.reporting.run_comparison import Retimed, common_places, compare_runs, why_not_paired
from compress.reporting.run_comparison_report import (
    comparison_sentences,
    comparison_table,
    difference_table,
    render_html,
    render_markdown,
    variants_table,
)
from tests.reports import SHIPPED, example_report

UNTIMED = Retimed(reason="--no-timing was given")
N = 10_000  # test samples of the example
OTHER = "pruned-sparse-int8-weights"


@pytest.fixture
def before() -> dict[str, Any]:
    return example_report()


@pytest.fixture
def after(before: dict[str, Any]) -> dict[str, Any]:
    """The same run, but for one option, one version and one variant; another file ships."""
    report = copy.deepcopy(before)
    report["shipped"], report["shipped_zip_bytes"] = OTHER, 9_955
    report["environment"]["onnxruntime"] = "1.99.0"
    report["stages"][-1]["config"] = {**report["stages"][-1]["config"], "seconds": 9.0}
    report["variants"] = [v for v in report["variants"] if v["name"] != "pruned-sparse-fp32"]
    return report


def kept(**right: int) -> Kept:
    """Answers of which so many are right, at the front; all labels are 1."""
    labels = np.ones(N, np.int64)
    return Kept(
        labels, {name.replace("_", "-"): (np.arange(N) < count).astype(np.int64) for name, count in right.items()}
    )


def compared(before: Any, after: Any, answers: Any = "not kept", retimed: Retimed = UNTIMED) -> dict[str, Any]:
    comparison = compare_runs(before, after, answers, retimed, ("a", "b"))
    plain: dict[str, Any] = json.loads(json.dumps(comparison, allow_nan=False))
    assert plain == comparison  # plain values, that JSON can hold
    return comparison


def timed(scale: float, seed: int) -> Timing:
    """25 rounds of a latency of 0.2 ms times ``scale``, with 1 % of noise."""
    samples = 0.2 * scale * np.random.default_rng(seed).normal(1, 0.01, (5, 5, 40))
    return summary(samples, provider="CPUExecutionProvider", batch=1, threads=1)


# What differs


def test_only_what_differs_is_told_of_options_and_versions(before: dict[str, Any], after: dict[str, Any]) -> None:
    comparison = compared(before, after)
    seconds = before["stages"][-1]["config"]["seconds"]
    stage = before["stages"][-1]["stage"]
    assert comparison["options"] == [{"name": f"{stage}.seconds", "before": seconds, "after": 9.0}]
    assert [entry["name"] for entry in comparison["environment"]] == ["onnxruntime"]


def test_a_run_beside_itself_differs_in_nothing(before: dict[str, Any]) -> None:
    answers = kept(pruned_sparse_int8=8862)
    comparison = compared(before, before, (answers, answers))
    assert (comparison["options"], comparison["environment"]) == ([], [])
    change = comparison["quality"]["change"]
    assert (change["value"], change["significant"]) == (0.0, False)
    assert comparison["quality"]["agreement"] == 1.0
    assert comparison["quality"]["mcnemar"]["p"] == 1.0
    assert difference_table(comparison["options"], "option") is None
    assert "All options are the same." in render_markdown(comparison)


def test_variants_that_are_new_or_gone_are_told(before: dict[str, Any], after: dict[str, Any]) -> None:
    after["variants"].append({**after["variants"][0], "name": "new-one"})
    rows = {row[0]: row for row in variants_table(compared(before, after)).rows}
    assert rows["pruned-sparse-fp32"][-1] == "gone"
    assert rows["new-one"][-1] == "new"
    assert rows[SHIPPED][-1] == "both"


def test_bytes_are_exact(before: dict[str, Any], after: dict[str, Any]) -> None:
    comparison = compared(before, after)
    assert comparison["size"]["zip_bytes"] == {"before": 9_927, "after": 9_955}
    assert "The download went from 9.93 KB to 9.96 KB (+28 bytes, 0.3 % larger)." in comparison_sentences(comparison)


# Accuracy


def test_one_thread_is_one_thread_however_it_was_written(before: dict[str, Any], after: dict[str, Any]) -> None:
    for report, threads in ((before, 1), (after, [1])):
        report["stages"][-1]["config"] = {**report["stages"][-1]["config"], "threads": threads}
    assert not [o for o in compared(before, after)["options"] if o["name"].endswith("threads")]
    after["stages"][-1]["config"]["threads"] = [2]
    assert [o["after"] for o in compared(before, after)["options"] if o["name"].endswith("threads")] == [[2]]


def test_answers_to_the_same_samples_are_compared_one_by_one(before: dict[str, Any], after: dict[str, Any]) -> None:
    answers = (kept(pruned_sparse_int8=8800), kept(pruned_sparse_int8_weights=8900))
    quality = compared(before, after, answers)["quality"]
    assert quality["paired"]
    assert quality["change"]["value"] == pytest.approx(0.01)
    assert quality["change"]["significant"]
    assert (quality["mcnemar"]["only_before"], quality["mcnemar"]["only_after"]) == (0, 100)
    assert quality["agreement"] == pytest.approx(0.99)


def test_the_pairs_tell_apart_what_independent_samples_could_not(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Ten answers better and none worse: McNemar sees it, two intervals of 10,000 samples do not."""
    answers = (kept(pruned_sparse_int8=8862), kept(pruned_sparse_int8_weights=8872))
    paired = compared(before, after, answers)["quality"]
    alone = compared(before, after, "the runs had different data")["quality"]
    assert paired["change"]["significant"]
    assert not alone["change"]["significant"]
    assert alone["change"]["high"] - alone["change"]["low"] > paired["change"]["high"] - paired["change"]["low"]
    assert (alone["paired"], alone["reason"]) == (False, "the runs had different data")


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 200), st.integers(1, 200))
def test_the_interval_of_independent_accuracies_stays_within_what_can_be(
    first: int, second: int, more: int, others: int
) -> None:
    """And is the same the other way round."""
    from compress.measurement.intervals import share_interval
    from compress.reporting.run_comparison import _unpaired

    counts, sizes = (first, second), (first + more, second + others)
    figures = [
        {"value": count / n, **dict(zip(("low", "high"), share_interval(count, n), strict=True))}
        for count, n in zip(counts, sizes, strict=True)
    ]
    change = _unpaired(*figures)
    assert change is not None
    before, after = figures
    assert -1 - 1e-12 <= change["low"] <= change["value"] <= change["high"] <= 1 + 1e-12
    swapped = _unpaired(after, before)
    assert swapped is not None
    assert (swapped["low"], swapped["high"]) == (pytest.approx(-change["high"]), pytest.approx(-change["low"]))


def test_newcombes_own_example_is_met() -> None:
    """56/70 against 48/80: 0.2, from 0.0524 to 0.3339 (Newcombe 1998, table II, method 10)."""
    from compress.measurement.intervals import share_interval
    from compress.reporting.run_comparison import _unpaired

    figures = [
        {"value": count / n, **dict(zip(("low", "high"), share_interval(count, n), strict=True))}
        for count, n in ((48, 80), (56, 70))
    ]
    change = _unpaired(*figures)
    assert change is not None
    assert [round(change[key], 4) for key in ("value", "low", "high")] == [0.2, 0.0524, 0.3339]
    assert change["significant"]


def test_a_metric_of_the_users_own_is_compared_by_its_values(before: dict[str, Any], after: dict[str, Any]) -> None:
    for report, value in ((before, 0.5), (after, 0.7)):
        report["verdict"]["measured_in"] = "f1"
        for variant in report["variants"]:
            variant["metric"] = {"name": "f1", "value": value, "low": None, "high": None, "n": N, "resamples": 0}
    noise = np.random.default_rng(0).normal(0, 0.1, N)
    answers = (Kept(None, values={SHIPPED: 0.5 + noise}), Kept(None, values={OTHER: 0.7 + noise}))
    quality = compared(before, after, answers)["quality"]
    assert quality["change"]["value"] == pytest.approx(0.2)
    assert quality["change"]["significant"]
    without = compared(before, after)
    assert without["quality"]["change"] is None
    assert "F1 cannot be compared: not kept." in comparison_sentences(without)


def test_runs_that_were_judged_by_different_figures_are_not_compared(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    after["verdict"]["measured_in"] = "f1"
    quality = compared(before, after)["quality"]
    assert quality["change"] is None
    assert quality["reason"] == "the runs were judged by accuracy and f1"


def test_without_labels_only_the_agreement_of_the_two_files_is_told(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    for report in (before, after):
        report["verdict"]["measured_in"] = "fidelity"
        for variant in report["variants"]:
            variant["accuracy"] = None
    answers = (
        Kept(None, {SHIPPED: np.zeros(N, np.int64)}),
        Kept(None, {OTHER: (np.arange(N) < N // 4).astype(np.int64)}),
    )
    comparison = compared(before, after, answers)
    assert comparison["quality"]["agreement"] == 0.75
    assert comparison["quality"]["change"] is None
    assert "The two files give the same answer to 75.0 % of the samples." in " ".join(comparison_sentences(comparison))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sha256": "0" * 64}, r"different data \(fashion-mnist 175cc3d4 and fashion-mnist 00000000\)"),
        ({"test": 5}, "tested on 10,000 and 5 samples"),
        ({"sha256": None}, "without data"),
    ],
)
def test_other_samples_are_told_as_the_reason_for_not_pairing(
    before: dict[str, Any], after: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    assert why_not_paired(before, after) is None
    after["data"] |= change
    assert re.search(reason, why_not_paired(before, after) or "")


# Latency


def test_latencies_of_two_moments_are_shown_without_a_ratio(before: dict[str, Any], after: dict[str, Any]) -> None:
    comparison = compared(before, after)
    assert not comparison["latency"]["together"]
    assert all(row["speedup"] is None for row in comparison["latency"]["rows"])
    assert "Latencies were not compared: --no-timing was given." in comparison_sentences(comparison)
    assert any(row[0] == "p50, CPU, batch 1, threads 1, as recorded" for row in comparison_table(comparison).rows)


def test_latencies_timed_together_have_a_ratio_with_its_interval(before: dict[str, Any], after: dict[str, Any]) -> None:
    comparison = compared(before, after, retimed=Retimed(((timed(1.0, 0), timed(0.5, 1)),)))
    (row,) = comparison["latency"]["rows"]
    assert row["speedup"]["significant"]
    assert row["speedup"]["low"] < 2 < row["speedup"]["high"] * 1.01
    assert "significantly faster." in comparison_sentences(comparison)[-1]


def test_latencies_that_do_not_differ_are_said_not_to(before: dict[str, Any], after: dict[str, Any]) -> None:
    comparison = compared(before, after, retimed=Retimed(((timed(1.0, 0), timed(1.0, 1)),)))
    assert "no significant difference." in comparison_sentences(comparison)[-1]


def test_a_provider_that_cannot_run_here_is_told_with_its_reason(before: dict[str, Any], after: dict[str, Any]) -> None:
    absent = Timing("CUDAExecutionProvider", 1, 1, status="not available")
    comparison = compared(before, after, retimed=Retimed(((absent, absent),)))
    assert comparison_sentences(comparison)[-1] == "Latency on CUDA, batch 1, threads 1: not available."


def test_what_is_timed_again_is_where_both_runs_timed(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert [place["batch"] for place in common_places(before, after)] == [1, 8]
    for variant in before["variants"]:
        variant["latency"] = variant["latency"][1:]
    assert [place["batch"] for place in common_places(before, after)] == [8]


# Text


@pytest.mark.parametrize("render", [render_markdown, render_html])
def test_the_texts_hold_every_sentence_and_every_difference(
    before: dict[str, Any], after: dict[str, Any], render: Any
) -> None:
    comparison = compared(before, after)
    text = render(comparison)
    for sentence in comparison_sentences(comparison):
        assert sentence in text
    for told in ("1.99.0", "9.93 KB", OTHER, before["command"]):
        assert told in text


def test_names_break_neither_the_html_nor_a_table(before: dict[str, Any], after: dict[str, Any]) -> None:
    after["variants"][0]["name"] = "<script>|x"
    comparison = compared(before, after)
    assert "<script>" not in render_html(comparison)
    assert "| <script>\\|x |" in render_markdown(comparison)
