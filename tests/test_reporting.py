"""Choosing, and the report, on measurements made by hand."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.data.splits import Data, Split
from compress.errors import MeasurementError
from compress.measurement import Accuracy, Measurement, Score, Timing
from compress.measurement.answers import Answers
from compress.measurement.size import Sizes
from compress.models.counts import Counts
from compress.reporting import Report, build_report, choose, render_html, render_markdown, variant_table
from compress.reporting import format as fmt
from compress.reporting.summary import verdict_sentences
from compress.values import OnnxModel, StageRecord, Variant
from tests.reports import example_report

ENVIRONMENT = {"cpu": "A CPU", "isa": ["avx2", "vnni"], "threads": 1, "torch": "2.13.0", "onnxruntime": "1.31.1"}
RECORDS = (
    StageRecord("sparsify", {"epochs": 3}, 75.0, {"sparsity": 0.93}, ("93.0 % of the weights are zero",)),
    StageRecord("quantize", {}, 0.0, skipped="--skip asked for it"),
)


def score(value: float, labelled: bool = True, n: int = 1000) -> Answers:
    """Of a baseline that is right on 0.9 of the samples."""
    right = Accuracy(value, value - 0.01, value + 0.01, n) if labelled else None
    lost = 0.9 - value
    return Answers(Score(right, 0.9 if labelled else value, n), lost, lost - 0.005, lost + 0.005)


def timing(p50_ms: float | None, provider: str = "CPUExecutionProvider") -> Timing:
    if p50_ms is None:
        return Timing(provider, 1, 1, status="not available: no such device")
    return Timing(
        provider,
        1,
        1,
        p50_ms=p50_ms,
        p90_ms=1.1 * p50_ms,
        p99_ms=1.2 * p50_ms,
        mean_ms=p50_ms,
        first_call_ms=2 * p50_ms,
        samples=4,
        rounds=2,
        samples_ms=(p50_ms,) * 4,
    )


def measured(
    name: str,
    zipped: int,
    p50_ms: float | None,
    validation: float | None = 0.9,
    test: float | None = None,
    labelled: bool = True,
) -> Measurement:
    on_validation = None if validation is None else score(validation, labelled)
    on_test = score(test if test is not None else validation or 0.9, labelled)
    made = Variant(name, "quantize", OnnxModel(Path("run/stages/04-quantize") / f"{name}.onnx", (), 17))
    latency = (timing(None, "CUDAExecutionProvider"), timing(p50_ms))
    sizes = Sizes(
        raw_bytes=4 * zipped,
        zip_bytes=zipped,
        gzip_bytes=zipped,
        zstd_bytes=zipped,
        entropy_bytes=zipped // 2,
        by_kind={"weights": 3 * zipped, "graph": zipped, "metadata": 0},
        by_layer=(),
    )
    return Measurement(made, Counts(1000, 100, 5000), sizes, on_validation, on_test, latency)


BASE = measured("baseline-fp32", 10_000, 1.0)


def report_of(*measurements: Measurement, data: Data | None = None, **options: Any) -> Report:
    given: dict[str, Any] = {
        "environment": ENVIRONMENT, "objective": "size", "max_drop": 0.01, "seed": 7,
        "command": "compress pipeline model.pt --data made", "root": Path("run"), "notes": ("a note",), **options,
    }  # fmt: skip
    return build_report(measurements, RECORDS, data=data, **given)


def made_data() -> Data:
    def part(name: str, count: int) -> Split:
        return Split(name, lambda indices: ((), None), np.arange(count))

    sizes = {"train": 5400, "calibration": 512, "validation": 600, "test": 1000}
    parts = {name: part(name, count) for name, count in sizes.items()}
    return Data("made", **parts, inputs=(), sha256="ab" * 32, classes=10, notes=("a note on the data",))


# Choosing


def test_size_takes_the_smallest_zip_within_the_budget() -> None:
    choice = choose((BASE, measured("big", 5000, 0.1), measured("small", 500, 2.0)), "size", 0.01)
    assert (choice.shipped, choice.met) == ("small", True)
    assert choice.reasons["big"] == "not smaller: 5.00 KB zipped, 500 B for what ships"


def test_latency_takes_the_fastest() -> None:
    choice = choose((BASE, measured("fast", 5000, 0.1), measured("small", 500, 2.0)), "latency", 0.01)
    assert choice.shipped == "fast"
    assert "p50 2.00 ms, 100 µs for what ships" in choice.reasons["small"]


def test_latencies_within_3_percent_are_equal_and_the_smallest_of_them_wins() -> None:
    close = (BASE, measured("fastest", 5000, 0.100), measured("small", 4000, 0.1029), measured("tiny", 10, 0.1031))
    assert choose(close, "latency", 0.01).shipped == "small"


def test_of_equally_fast_files_of_similar_size_the_most_accurate_ships() -> None:
    smaller, better = measured("smaller", 1000, 0.1, validation=0.895), measured("better", 1290, 0.101)
    assert choose((BASE, smaller, better), "latency", 0.05).shipped == "better"
    larger = measured("larger", 1310, 0.101)
    assert choose((BASE, smaller, larger), "latency", 0.05).shipped == "smaller"


def test_balanced_ships_nothing_that_is_slower_than_the_original() -> None:
    tiny = measured("tiny", 10, 1.04)  # a thousand times smaller, and 4 % slower than the baseline's 1.0
    choice = choose((BASE, tiny, measured("equal", 5000, 1.02)), "balanced", 0.01)
    assert choice.shipped == "equal"
    assert choice.reasons["tiny"].startswith("slower than the original")
    assert choose((BASE, tiny), "size", 0.01).shipped == "tiny"


def test_of_alike_balances_the_most_accurate_ships() -> None:
    smaller = measured("smaller", 1000, 0.5, validation=0.895)
    better = measured("better", 1100, 0.5, validation=0.905)
    choice = choose((BASE, smaller, better), "balanced", 0.01)
    assert choice.shipped == "better"
    assert choice.reasons["smaller"].startswith("less accurate, and hardly better balanced")
    far = measured("far", 400, 0.5, validation=0.895)
    assert choose((BASE, better, far), "balanced", 0.01).shipped == "far"
    faster = measured("faster", 1100, 0.43, validation=0.895)
    assert choose((BASE, better, faster), "balanced", 0.01).shipped == "faster"


def test_a_small_gain_ships_though_the_original_is_more_accurate() -> None:
    gain = measured("gain", 9000, 1.0, validation=0.895)
    assert choose((BASE, gain), "balanced", 0.01).shipped == "gain"


def test_balanced_weighs_both() -> None:
    small, fast = measured("small", 1000, 1.0), measured("fast", 9000, 0.25)
    both = measured("both", 3000, 0.4)  # ratios 13.3 × 2.5, against 40 × 1 and 4.4 × 4
    assert choose((BASE, small, fast), "balanced", 0.01).shipped == "small"
    assert choose((BASE, fast, both), "balanced", 0.01).shipped == "both"


def test_only_validation_decides() -> None:
    lucky = measured("lucky", 10, 0.1, validation=0.85, test=0.95)
    unlucky = measured("unlucky", 100, 0.1, validation=0.9, test=0.5)
    choice = choose((BASE, lucky, unlucky), "size", 0.01)
    assert choice.shipped == "unlucky"
    assert choice.reasons["lucky"] == "drop 0.0500 on validation, 0.0100 allowed"


def test_a_drop_of_exactly_the_budget_is_within_it() -> None:
    assert 0.9 - 0.89 > 0.01  # in floats
    assert choose((BASE, measured("edge", 10, 0.1, validation=0.89)), "size", 0.01).shipped == "edge"


def test_the_baseline_ships_where_nothing_else_kept_its_accuracy() -> None:
    choice = choose((BASE, measured("bad", 10, 0.1, validation=0.5)), "balanced", 0.01)
    assert (choice.shipped, choice.met) == ("baseline-fp32", False)


def test_the_baseline_may_win_among_variants_that_kept_theirs() -> None:
    choice = choose((BASE, measured("slower", 5000, 5.0)), "latency", 0.01)
    assert (choice.shipped, choice.met) == ("baseline-fp32", True)


def test_a_variant_that_was_not_scored_on_validation_never_ships() -> None:
    choice = choose((BASE, measured("blind", 10, 0.1, validation=None)), "size", 0.01)
    assert choice.shipped == "baseline-fp32"
    assert "not scored" in choice.reasons["blind"]


@pytest.mark.parametrize("objective", ["latency", "balanced"])
def test_a_variant_that_does_not_run_where_the_baseline_does_is_not_the_fastest(objective: Any) -> None:
    choice = choose((BASE, measured("absent", 10, None), measured("ok", 9000, 0.9)), objective, 0.01)
    assert choice.shipped == "ok"
    assert choice.reasons["absent"] == "does not run on CPUExecutionProvider"


@pytest.mark.parametrize("objective", ["latency", "balanced"])
def test_size_decides_where_latency_was_not_measured(objective: Any) -> None:
    base, big, small = (measured(n, size, None) for n, size in (("base", 10_000), ("big", 500), ("small", 100)))
    assert choose((base, big, small), objective, 0.01).shipped == "small"


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(MeasurementError, match="no measured variant"):
        choose((), "size", 0.01)


# The report


def test_the_verdict_is_on_test_against_the_original() -> None:
    verdict = report_of(BASE, measured("small", 1000, 0.5, validation=0.9, test=0.893)).verdict
    assert verdict.drop == pytest.approx(0.007)
    assert verdict.passed
    assert verdict.zip_ratio == 40.0  # 40,000 raw bytes / 1,000
    assert verdict.speedup == pytest.approx(2.0)


def test_a_drop_on_test_beyond_the_budget_fails_what_validation_let_pass() -> None:
    report = report_of(BASE, measured("small", 1000, 0.5, validation=0.9, test=0.88))
    assert report.choice.met
    assert not report.verdict.passed
    assert "was within the budget on validation, but loses 0.0200" in render_markdown(report.to_dict())


def test_where_only_the_baseline_is_left_it_has_not_passed() -> None:
    report = report_of(BASE, measured("bad", 1000, 0.5, validation=0.5))
    assert (report.verdict.drop, report.verdict.passed) == (0.0, False)
    assert "no variant kept its accuracy" in render_markdown(report.to_dict())


def test_report_json_has_the_fields_of_version_1_as_plain_values() -> None:
    plain = report_of(BASE, measured("small", 1000, 0.5), data=made_data()).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["schema"] == 1
    assert (plain["command"], plain["seed"]) == ("compress pipeline model.pt --data made", 7)
    assert {key: plain["data"][key] for key in ("name", "train", "calibration", "validation", "test")} == {
        "name": "made", "train": 5400, "calibration": 512, "validation": 600, "test": 1000,
    }  # fmt: skip
    variant = plain["variants"][1]
    assert variant["file"] == "stages/04-quantize/small.onnx"
    assert (variant["parameters"], variant["nonzero"], variant["macs"]) == (1000, 100, 5000)
    assert set(variant["accuracy"]) == {"value", "low", "high", "n"}
    assert variant["latency"][0]["status"] == "not available: no such device"
    assert variant["latency"][0]["p50_ms"] is None
    assert "samples_ms" not in variant["latency"][1]
    assert variant["latency"][1]["speedup"]["value"] == pytest.approx(2.0)
    assert plain["shipped"] == "small"
    assert {"max_drop", "drop", "passed", "zip_ratio", "speedup"} <= set(plain["verdict"])
    assert plain["stages"][1]["skipped"] == "--skip asked for it"
    assert plain["notes"] == ["a note", "a note on the data"]


def test_without_labels_the_drop_is_of_fidelity() -> None:
    base = measured("baseline-fp32", 10_000, 1.0, validation=1.0, labelled=False)
    report = report_of(base, measured("small", 100, 1.0, validation=0.995, test=0.992, labelled=False))
    plain = report.to_dict()
    assert plain["variants"][0]["accuracy"] is None
    assert plain["verdict"]["drop"] == pytest.approx(0.008)
    assert plain["verdict"]["measured_in"] == "fidelity"
    assert plain["data"]["name"] == "synthetic"
    assert "loses 0.0080 of fidelity on 1,000 test samples" in render_markdown(plain)


def test_a_model_outside_the_run_directory_keeps_its_own_path(tmp_path: Path) -> None:
    assert (
        report_of(BASE, root=tmp_path).to_dict()["variants"][0]["file"] == "run/stages/04-quantize/baseline-fp32.onnx"
    )


# Rendering


@pytest.fixture
def plain() -> dict[str, Any]:
    """A report as read back from report.json."""
    small = measured("sparse-int8", 1000, 0.5)
    report = report_of(BASE, small, measured("bad", 10, 0.1, validation=0.5), data=made_data())
    stored: dict[str, Any] = json.loads(json.dumps(report.to_dict()))
    return stored


SENTENCES = (
    "Passed: sparse-int8 ships and loses 0.0000 of accuracy on 1,000 test samples [95 %: ",
    "no significant difference] (a drop of 0.0100 is allowed).",
    "40.0 KB became 1.00 KB zipped, 40.0× smaller.",
)
FIGURES = (
    "Passed: sparse-int8 keeps its accuracy.</h1>",
    '>1.00 KB</dd><dd>40.0× smaller</dd><dd class="dim">40.0 KB, ',
    "n = 1,000</dd>",
    "no significant difference; 0.0100 allowed",
)


@pytest.mark.parametrize(("render", "top"), [(render_markdown, SENTENCES), (render_html, FIGURES)])
def test_every_rendering_says_all_that_matters(render: Any, top: tuple[str, ...], plain: dict[str, Any]) -> None:
    text = re.sub("</?span[^>]*>", "", render(plain))
    for fact in (
        *top,
        "0.9000 [0.8900–0.9100]",
        "500 µs",
        "90.0 %",
        "bad does not ship: drop 0.4000 on validation, 0.0100 allowed.",
        "not available: no such device",
        "93.0 % of the weights are zero",
        "skipped, --skip asked for it",
        "1 min 15 s",
        "avx2, vnni",
        "5,400 train",
        "a note on the data",
        "seed 7",
        "compress pipeline model.pt --data made",
    ):
        assert fact in text, fact


class Outline(HTMLParser):
    """Checks that every element is closed, and keeps what was met."""

    VOID = ("meta", "rect", "path", "use")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def test_the_html_is_one_well_formed_file_that_loads_nothing(plain: dict[str, Any]) -> None:
    html = render_html(plain)
    seen = outline(html).seen
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in seen}
    assert "http" not in html
    assert "url(" not in html
    assert "prefers-color-scheme: dark" in html
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in seen


def test_without_latency_there_is_no_latency_chart_and_no_claim() -> None:
    report = report_of(measured("base", 10_000, None), measured("small", 100, None)).to_dict()
    html = render_html(report)
    assert 'id="pareto-latency-title"' not in html
    assert 'id="latency-spread-title"' not in html
    assert "Latency could not be measured." in html
    assert report["verdict"]["speedup"] is None


def test_a_gain_is_not_called_a_loss() -> None:
    text = render_markdown(report_of(BASE, measured("small", 1000, 0.5, test=0.912)).to_dict())
    assert "small ships and gains 0.0120 of accuracy" in text


def test_a_run_that_made_nothing_says_so_and_claims_no_speedup() -> None:
    text = render_markdown(report_of(BASE).to_dict())
    assert "Not passed: nothing was made besides baseline-fp32, which ships." in text
    assert "a speed-up of" not in text


@pytest.mark.parametrize("render", [render_markdown, render_html])
def test_a_run_from_python_has_no_command_to_repeat(render: Any) -> None:
    assert "started from Python, with seed 7" in render(report_of(BASE, command="").to_dict())


def test_names_cannot_break_out_of_the_html_nor_of_a_table(plain: dict[str, Any]) -> None:
    plain["variants"][2]["name"] = "<script>|x"
    html = render_html(plain)
    assert "<script>" not in html
    assert "&lt;script&gt;|x" in html
    rows = [line for line in render_markdown(plain).splitlines() if line.startswith("| <script>")]
    assert rows
    assert all(row.startswith("| <script>\\|x |") for row in rows)


def test_the_markdown_tables_are_regular_and_what_ships_is_bold(plain: dict[str, Any]) -> None:
    lines = render_markdown(plain).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| variant | accuracy"))
    table = lines[start : start + 5]
    assert len({line.count("|") for line in table}) == 1
    assert table[3].startswith("| **sparse-int8** | **0.9000")


def test_the_table_marks_what_ships(plain: dict[str, Any]) -> None:
    table = variant_table(plain["variants"], plain["shipped"])
    assert table.mark == 1
    assert table.columns[0] == "variant"
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert variant_table(plain["variants"]).mark is None


# Numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fmt.size(0), "0 B"),
        (fmt.size(999), "999 B"),
        (fmt.size(1000), "1.00 KB"),
        (fmt.size(22_345), "22.3 KB"),
        (fmt.size(999_949), "1.00 MB"),
        (fmt.size(1_234_567_890), "1.23 GB"),
        (fmt.size(None), "–"),
        (fmt.duration(0.0594), "59.4 µs"),
        (fmt.duration(0.33), "330 µs"),
        (fmt.duration(0.99996), "1.00 ms"),
        (fmt.duration(41.37), "41.4 ms"),
        (fmt.duration(1234.0), "1.23 s"),
        (fmt.seconds(4.24), "4.2 s"),
        (fmt.seconds(59.96), "1 min 0 s"),
        (fmt.seconds(750.0), "12 min 30 s"),
        (fmt.seconds(7325.0), "2 h 2 min"),
        (fmt.ratio(41.24), "41.2×"),
        (fmt.ratio(0.456), "0.46×"),
        (fmt.ratio(123.4), "123×"),
        (fmt.fraction(-0.00001), "0.0000"),
        (fmt.fraction(-0.0012), "−0.0012"),
        (fmt.signed(0.0012), "+0.0012"),
        (fmt.provider("CUDAExecutionProvider (TF32)"), "CUDA (TF32)"),
        (fmt.percent(0.9304), "93.0 %"),
        (fmt.count(224_714), "224,714"),
    ],
)
def test_numbers_carry_their_unit(text: str, expected: str) -> None:
    assert text == expected


def test_a_model_that_its_zip_makes_larger_is_not_called_smaller() -> None:
    report = example_report()
    report["verdict"]["zip_ratio"] = 0.5
    assert "2.00× larger" in verdict_sentences(report)[1]
    report["verdict"]["zip_ratio"] = 2.0
    assert "2.00× smaller" in verdict_sentences(report)[1]
