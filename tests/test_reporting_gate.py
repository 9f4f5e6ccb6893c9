"""The gate: each limit met or not, with its figure, its interval and a sentence."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compress.errors import RecipeError
from compress.recipe import load_recipe
from compress.reporting import gate
from compress.reporting.gate import LIMITS, Limits, Line, check, files_line, passed
from tests.reports import SHIPPED, example_report

REPORT = example_report()  # read only


def only(report: dict[str, Any], **limits: Any) -> Line:
    (line,) = check(report, Limits(**limits))
    return line


def shipped(report: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = next(v for v in report["variants"] if v["name"] == SHIPPED)
    return entry


@pytest.fixture
def report() -> dict[str, Any]:
    return example_report()


@pytest.mark.parametrize(
    ("name", "easy", "hard"),
    [
        ("max_drop", 0.01, 0.0001),
        ("min_accuracy", 0.8, 0.95),
        ("min_zip_ratio", 8.0, 80.0),
        ("min_speedup", 2.0, 5.0),
        ("max_p50", 1.0, 0.01),
        ("max_p95", 1.0, 0.01),
        ("max_bytes", 10_000, 9_000),
        ("max_peak_memory", 10**8, 10**7),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_each_limit_can_be_met_and_missed(
    report: dict[str, Any], name: str, easy: float, hard: float, strict: bool
) -> None:
    met, missed = only(report, **{name: easy}, strict=strict), only(report, **{name: hard}, strict=strict)
    option = name.replace("_", "-")
    assert (met.met, met.warning, met.name) == (True, False, option)
    assert (missed.met, missed.warning) == (False, False)
    assert met.sentence.startswith(f"{option} ")
    assert ": met, " in met.sentence
    assert ": not met, " in missed.sentence


def test_every_limit_has_a_rule_and_every_rule_a_field() -> None:
    own = {field.name for field in dataclasses.fields(Limits)} - {"provider", "batch", "threads", "strict"}
    assert own == set(LIMITS)


def test_lines_come_in_the_order_of_the_fields_and_all_must_be_met(report: dict[str, Any]) -> None:
    lines = check(report, Limits(max_p95=1.0, max_drop=0.01, min_zip_ratio=100.0))
    assert [line.name for line in lines] == ["max-drop", "min-zip-ratio", "max-p95"]
    assert not passed(lines)
    assert passed(lines[:1])


def test_a_limit_inside_the_interval_is_a_warning_and_with_strict_a_failure(report: dict[str, Any]) -> None:
    report["verdict"] |= {"drop": 0.008, "drop_interval": {"low": 0.005, "high": 0.011}}
    line = only(report, max_drop=0.01)
    assert (line.met, line.warning, line.low, line.high) == (True, True, 0.005, 0.011)
    assert line.sentence == (
        f"max-drop 0.0100: met, the drop of accuracy of {SHIPPED} is 0.0080 [0.0050 to 0.0110]; the limit lies inside "
        "the interval."
    )
    strict = only(report, max_drop=0.01, strict=True)
    assert (strict.met, strict.warning) == (False, True)
    missed = only(report, max_drop=0.007)  # by the bare figure, though the interval reaches below
    assert (missed.met, missed.warning) == (False, True)


def test_strict_takes_the_worse_end_which_for_a_lowest_limit_is_the_low_one(report: dict[str, Any]) -> None:
    timing = shipped(report)["latency"][0]
    timing["speedup"] = {"value": 2.1, "low": 1.95, "high": 2.3, "significant": True}
    assert only(report, min_speedup=2.0).met
    assert not only(report, min_speedup=2.0, strict=True).met
    assert only(report, min_speedup=1.9, strict=True).met


@example(value=0.0010000000000000002, below=0.0, above=0.5, limit=0.001)  # what subtracting two accuracies leaves
@given(
    value=st.floats(0.001, 1),
    below=st.floats(0, 0.5),
    above=st.floats(0, 0.5),
    limit=st.floats(0.001, 1),
)
def test_strict_never_passes_what_the_bare_figure_fails(value: float, below: float, above: float, limit: float) -> None:
    verdict = {"drop": value, "drop_interval": {"low": value - below, "high": value + above}}
    report = {**REPORT, "verdict": {**REPORT["verdict"], **verdict}}
    line, strict = only(report, max_drop=limit), only(report, max_drop=limit, strict=True)
    assert line.met or not strict.met
    assert line.met == (value <= limit + gate.TOLERANCE)
    if not line.warning:
        assert line.met == strict.met


def test_what_is_counted_has_no_interval_and_strict_takes_it_as_it_is(report: dict[str, Any]) -> None:
    for line in check(report, Limits(min_zip_ratio=8.0, max_bytes=9_927, strict=True)):
        assert line.met
        assert line.low is None


def test_strict_fails_a_measured_figure_without_an_interval(report: dict[str, Any]) -> None:
    """Reports of before intervals were recorded: nothing says how sure the figure is."""
    report["verdict"]["drop_interval"] = None
    assert only(report, max_drop=0.01).met
    line = only(report, max_drop=0.01, strict=True)
    assert not line.met
    assert "without an interval: this run recorded none, and --strict needs it" in line.sentence


def test_the_original_that_ships_itself_loses_exactly_nothing_and_is_exactly_as_fast(report: dict[str, Any]) -> None:
    report["shipped"] = report["variants"][0]["name"]
    report["verdict"] |= {"drop": 0.0, "drop_interval": None}
    lines = check(report, Limits(max_drop=0.0, min_speedup=1.0, strict=True))
    assert [line.met for line in lines] == [True, True]


def test_a_figure_that_reads_like_its_limit_is_told_with_more_digits(report: dict[str, Any]) -> None:
    report["verdict"]["zip_ratio"] = 7.998
    assert only(report, min_zip_ratio=8.0).sentence == "min-zip-ratio 8.00×: not met, the zip ratio is 8.00× (7.998)."


def test_bytes_are_those_of_the_zip_as_written(report: dict[str, Any]) -> None:
    line = only(report, max_bytes=9_926)
    assert line.value == report["shipped_zip_bytes"] == 9_927
    assert "max-bytes 9.93 KB (9,926 bytes): not met, model.onnx.zip is 9.93 KB (9,927 bytes)" in line.sentence
    report["shipped_zip_bytes"] = None
    assert only(report, max_bytes=9_926).value == shipped(report)["zip_bytes"]


def test_without_labels_there_is_no_accuracy_to_hold_to_a_limit(report: dict[str, Any]) -> None:
    shipped(report)["accuracy"] = None
    line = only(report, min_accuracy=0.5)
    assert not line.met
    assert line.value is None
    assert "without labels there is no accuracy, only a fidelity of" in line.sentence


def test_the_users_own_metric_takes_the_place_of_accuracy(report: dict[str, Any]) -> None:
    shipped(report)["metric"] = {"name": "f1", "value": 0.71, "low": 0.69, "high": 0.73, "n": 100, "resamples": 0}
    line = only(report, min_accuracy=0.7)
    assert (line.met, line.warning) == (True, True)
    assert "the f1 of" in line.sentence


# Where latency was measured


def test_latency_is_that_of_the_first_place_that_the_original_ran_on(report: dict[str, Any]) -> None:
    line = only(report, max_p50=1.0)
    assert line.value == shipped(report)["latency"][0]["p50_ms"]
    assert "p50 on cpu, batch 1, threads 1 is" in line.sentence


def test_a_batch_size_chooses_its_latency(report: dict[str, Any]) -> None:
    line = only(report, max_p50=1.0, batch=8)
    assert line.value == shipped(report)["latency"][1]["p50_ms"]
    assert "batch 8" in line.sentence


def test_a_provider_that_could_not_run_does_not_meet_any_limit(report: dict[str, Any]) -> None:
    line = only(report, max_p95=1000.0, provider="CUDA")
    assert not line.met
    assert line.value is None
    assert "cuda, batch 1, threads 1 could not run: CUDAExecutionProvider is not in this build" in line.sentence


def test_latency_of_before_p95_was_recorded_does_not_meet_a_limit(report: dict[str, Any]) -> None:
    shipped(report)["latency"][0]["p95_ms"] = None
    line = only(report, max_p95=1000.0)
    assert not line.met
    assert "this run recorded no p95 on cpu, batch 1, threads 1" in line.sentence


def test_a_place_that_was_not_measured_is_an_error_that_tells_those_that_were(report: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"latency on batch 64 was not measured; .* cpu, batch 1, threads 1; cpu"):
        check(report, Limits(max_p50=1.0, batch=64))


def test_a_place_is_not_looked_for_where_no_limit_is_on_latency(report: dict[str, Any]) -> None:
    assert only(report, max_drop=0.01, batch=64).met


# Limits


def test_no_limit_at_all_is_refused_with_the_names_of_all(report: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"--max-drop, --min-accuracy, .*--max-peak-memory"):
        check(report, Limits(batch=1))


def test_limits_that_cannot_be_meant_are_told_together() -> None:
    with pytest.raises(RecipeError, match=r"max-drop=10 must be a fraction.*; min-speedup=0 must be above 0"):
        Limits(max_drop=10, min_speedup=0)
    with pytest.raises(RecipeError, match="min-accuracy=nan must be a finite number"):
        Limits(min_accuracy=float("nan"))


def test_a_recipe_file_holds_limits_with_their_units(tmp_path: Any) -> None:
    file = tmp_path / "release.toml"
    file.write_text('[check]\nmax-drop = 0.02\nmax-p95 = "800us"\nmax-bytes = "1MiB"\nmin-speedup = 2\nstrict = true\n')
    limits = load_recipe(None, {"check.max_drop": 0.01}, file=file).check
    assert limits == Limits(max_drop=0.01, max_p95=0.8, max_bytes=2**20, min_speedup=2.0, strict=True)


def test_a_recipe_file_with_a_wrong_unit_is_refused_with_the_right_ones(tmp_path: Any) -> None:
    file = tmp_path / "release.toml"
    file.write_text('[check]\nmax-p95 = "5MB"\n')
    with pytest.raises(RecipeError, match=r"check\.max_p95: '5MB' is not a duration: it has the unit 'MB'"):
        load_recipe(None, {}, file=file)


# Files


def test_files_that_are_not_those_measured_are_a_line_of_their_own() -> None:
    assert files_line((), 3).met
    line = files_line(("model.onnx is missing", "report.json is missing"), 3)
    assert not line.met
    assert line.sentence == "files: not met, model.onnx is missing; report.json is missing."


def test_the_outcome_as_plain_values_says_whether_it_passed(report: dict[str, Any]) -> None:
    lines = (files_line((), 3), *check(report, Limits(max_drop=0.0001)))
    told = gate.as_dict(lines, report)
    assert told["passed"] is False
    assert told["shipped"] == SHIPPED
    assert [line["name"] for line in told["lines"]] == ["files", "max-drop"]
