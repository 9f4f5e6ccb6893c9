"""report.json against its JSON Schema: what is refused, and what reports of earlier versions get."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from compress.errors import ReportError
from compress.reporting.schema import SCHEMA, read, schema, validate
from tests.reports import example_report

Report = dict[str, Any]


def changed(change: Callable[[Report], object]) -> Report:
    report = example_report()
    change(report)
    return report


def test_the_schema_is_a_valid_schema_and_the_example_fits_it() -> None:
    Draft202012Validator.check_schema(dict(schema()))
    validate(example_report())


WRONG: tuple[tuple[Callable[[Report], object], str], ...] = (
    (lambda r: r["variants"][2]["latency"][0].update(p50_ms="fast"), "$.variants[2].latency[0].p50_ms: 'fast'"),
    (lambda r: r.pop("verdict"), "'verdict' is a required property"),
    (lambda r: r["verdict"].update(drop=None), "$.verdict.drop: None"),
    (lambda r: r.update(surprise=1), "'surprise' was unexpected"),
    (lambda r: r["variants"][0].update(size=1), "$.variants[0]: Additional properties"),
    (lambda r: r["variants"][0]["accuracy"].update(value=1.5), "$.variants[0].accuracy.value: 1.5"),
    (lambda r: r["variants"][0].update(raw_bytes=-1), "$.variants[0].raw_bytes: -1"),
    (lambda r: r["changed"][0].update(image="https://example.org/a.png"), "$.changed[0].image"),
    (lambda r: r.update(objective="speed"), "$.objective: 'speed'"),
    (lambda r: r.update(variants=[]), "$.variants: [] should be non-empty"),
    (lambda r: r["verdict"].update(passed="yes"), "$.verdict.passed: 'yes' is not of type 'boolean'"),
)


@pytest.mark.parametrize(("change", "told"), WRONG, ids=[told for _, told in WRONG])
def test_what_does_not_fit_is_refused_with_its_place(change: Callable[[Report], object], told: str) -> None:
    with pytest.raises(ReportError) as refusal:
        validate(changed(change))
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_long_value_is_not_told_whole() -> None:
    with pytest.raises(ReportError) as refusal:
        validate(example_report(notes="x" * 10_000))
    assert len(str(refusal.value)) < 300


def test_a_newer_version_asks_for_an_update_and_not_for_a_repair() -> None:
    with pytest.raises(ReportError, match=f"schema {SCHEMA + 1}, and this version of compress reads up to {SCHEMA}"):
        validate(example_report(schema=SCHEMA + 1))


@pytest.mark.parametrize("text", ["", "{", "[1, 2", b"\xff\xfe", '{"schema": NaN}'])
def test_what_is_no_json_is_told_with_its_file(text: str | bytes) -> None:
    with pytest.raises(ReportError, match=r"^run/report\.json is not valid JSON"):
        read(text, "run/report.json")


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_json_that_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ReportError, match=r"does not fit report\.schema\.json at \$"):
        read(text)


def test_a_report_whose_parts_do_not_belong_together_is_refused() -> None:
    with pytest.raises(ReportError, match="ships 'nothing', which is none of its variants"):
        validate(example_report(shipped="nothing"))
    report = example_report()
    del report["variants"][2]["latency"][1:]
    with pytest.raises(ReportError, match="not as many latencies of 'pruned-sparse-fp32' as of 'baseline-fp32'"):
        validate(report)


def test_a_report_of_this_version_is_read_back_as_it_is() -> None:
    report = example_report()
    assert read(json.dumps(report)) == report


def test_keys_that_were_added_later_are_filled_with_their_defaults_at_every_depth() -> None:
    old = example_report()
    for name in ("model", "journey", "machine", "layers", "changed", "sensitivity"):
        del old[name]
    del old["data"]["class_names"]
    for variant in old["variants"]:
        for name in ("sizes", "top5", "metric", "logit_sqnr_db", "drop_interval", "mcnemar", "classes", "limit"):
            del variant[name]
        for timing in variant["latency"]:
            for name in ("p95_ms", "quantiles_ms", "placement"):
                del timing[name]
    read_back = read(json.dumps(old))
    assert (read_back["journey"], read_back["machine"], read_back["sensitivity"]) == ([], None, None)
    assert read_back["model"] is read_back["data"]["class_names"] is read_back["variants"][3]["sizes"] is None
    assert read_back["variants"][3]["latency"][1]["quantiles_ms"] == []
    assert read(json.dumps(read_back)) == read_back


def test_filling_in_changes_nothing_that_is_there() -> None:
    old = example_report()
    whole = copy.deepcopy(old)
    del old["variants"][1]["latency"][0]["p95_ms"]
    whole["variants"][1]["latency"][0]["p95_ms"] = None
    assert read(json.dumps(old)) == whole
