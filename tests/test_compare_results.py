"""What the comparison with peers says of its rows, on rows that were made up."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.compare import call, headline, narrowest, page, plots, results, tables
from benchmarks.compare.frontier import all_versus, best, best_peer, most_accurate, versus, within
from benchmarks.compare.results import Comparison, Row
from compress.reporting import format as fmt
from tests.comparisons import BUDGET, DENSE, ENVIRONMENT, answers, failed, one_seed, row, timing

README = Path(__file__).parents[1] / "README.md"
COMMAND = "python -m benchmarks.compare --workload cnn"


def compared(rows: list[Row]) -> Comparison:
    return Comparison("cnn", COMMAND, ENVIRONMENT, BUDGET, tuple(rows), all_versus(rows))


def cells(table: tables.Cells, name: str) -> dict[str, str]:
    """The row of that name, by column."""
    return next(dict(zip(table[0], line, strict=True)) for line in table if line[0] == name)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with the results of two seeds."""
    results.write(one_seed(0) + one_seed(1, (9_000, 28_000, 9_500)), "cnn", tmp_path, ENVIRONMENT, BUDGET, COMMAND)
    return tmp_path


# ---------------------------------------------------------------- who is best


def test_the_best_peer_is_the_smallest_or_fastest_that_kept_its_accuracy_and_never_ours() -> None:
    rows = one_seed()
    smallest, fastest = best_peer(rows, "zip"), best_peer(rows, "p50")
    assert smallest is not None
    assert fastest is not None
    assert (smallest.entry, smallest.file) == ("torch-pruning-ort", "p2.onnx")  # p3 is smaller, and lost too much
    assert (fastest.entry, fastest.file) == ("torch-pruning-ort", "p2.onnx")
    assert best_peer([one for one in rows if one.kind == "own"], "zip") is None


def test_of_equals_the_more_accurate_on_validation_is_best_and_the_test_split_has_no_say() -> None:
    better, worse = row("b", 100, 1.0, 0.0, test_drop=0.05), row("a", 100, 1.0, 0.01, test_drop=-0.05)
    assert best([worse, better], "zip") == better
    assert best([worse, better], "p50") == better
    assert best([worse, replace(worse, entry="c")], "zip") == worse
    assert most_accurate([worse, better], 100) == better


def test_accuracy_at_a_size_counts_a_file_of_exactly_that_size_and_none_that_is_larger() -> None:
    rows = [row("a", 100, None, 0.005), row("a", 101, None, 0.0)]
    assert most_accurate(rows, 100) == rows[0]
    assert most_accurate(rows, 99) is None
    assert within(rows, 0.005) == rows
    assert within(rows, 0.0049) == rows[1:]


# ---------------------------------------------------------------- ours against the best peer


def test_sizes_are_compared_exactly_and_latencies_round_by_round() -> None:
    size, latency = versus(one_seed(), "compress-size", "zip"), versus(one_seed(), "compress-latency", "p50")
    assert (size.ratio, size.low, size.high, size.outcome) == (0.5, 0.5, 0.5, "met")
    assert latency.ratio == pytest.approx(0.5, rel=0.01)
    assert latency.low is not None
    assert latency.high is not None
    assert 0 < latency.high - latency.low < 0.01  # what disturbs a round, 1 %, cancels out in it
    assert latency.outcome == "met"


def test_the_difference_of_accuracies_is_paired_and_a_file_with_the_same_answers_has_none() -> None:
    ours = versus([row("compress-size", 5, None), row("peer", 10, None)], "compress-size", "zip")
    assert (ours.difference, ours.accuracy) == (0, "level")
    assert ours.difference_low is not None
    assert ours.difference_high is not None
    assert -0.02 < ours.difference_low < 0 < ours.difference_high < 0.02
    assert versus(one_seed(), "compress-latency", "p50").accuracy == "higher"
    much = row("peer", 10, None, -0.05)
    lower = versus([row("compress-size", 5, None), much], "compress-size", "zip")
    assert (lower.accuracy, lower.outcome) == ("lower", "met")
    assert lower.difference == pytest.approx(-0.05)
    assert lower.difference_high is not None
    assert lower.difference_high < 0


@pytest.mark.parametrize(
    ("ours", "peer", "outcome"),
    [(100, 200, "met"), (101, 200, "ahead"), (200, 200, "level"), (201, 200, "behind")],
)
def test_each_ratio_of_sizes_has_its_word(ours: int, peer: int, outcome: str) -> None:
    assert (
        versus([row("compress-size", ours, None), row("peer", peer, None)], "compress-size", "zip").outcome == outcome
    )


@pytest.mark.parametrize(
    ("ours", "outcome"), [(0.06, "met"), (0.08, "ahead"), (0.1, "level"), (0.0999, "level"), (0.13, "behind")]
)
def test_a_difference_of_latencies_below_what_a_file_differs_from_itself_is_none(ours: float, outcome: str) -> None:
    found = versus([row("compress-latency", 1, ours), row("peer", 1, 0.1)], "compress-latency", "p50")
    assert found.outcome == outcome


def test_latencies_of_other_rounds_give_a_quotient_that_is_sure_of_nothing() -> None:
    peer = replace(row("peer", 1, 0.1), latency=timing(0.1, launches=2))
    found = versus([row("compress-latency", 1, 0.08), peer], "compress-latency", "p50")
    assert (found.low, found.high, found.outcome) == (found.ratio, found.ratio, "level")


def test_without_an_eligible_file_on_either_side_there_is_a_reason_and_no_ratio() -> None:
    ours, lost = row("compress-size", 10, 1.0), row("peer", 20, 1.0, 0.05)
    none = versus([ours, lost, failed("other")], "compress-size", "zip")
    assert (none.ratio, none.outcome, none.reason) == (None, "none", "seed 0: no file of any peer kept its accuracy")
    none = versus([replace(ours, eligible=False), row("peer", 20, 1.0)], "compress-size", "p50")
    assert (none.ratio, none.reason) == (None, "seed 0: no file of this entry kept its accuracy")
    broken = versus([replace(ours, status="KeyError: x", eligible=False), row("peer", 20, 1.0)], "compress-size", "zip")
    assert broken.reason == "seed 0: KeyError: x"


def test_an_entry_without_latency_is_compared_by_its_size_alone() -> None:
    rows = [row("compress-size", 10, 1.0), row("peer", 20, None), row("slow", 40, 3.0)]
    assert versus(rows, "compress-size", "zip").peers == ("peer model.onnx",)
    assert versus(rows, "compress-size", "p50").peers == ("slow model.onnx",)


def test_of_several_seeds_ratios_are_geometric_means_with_the_smallest_and_the_largest() -> None:
    rows = [row("compress-size", size, 1.0, seed=seed) for seed, size in enumerate((100, 400))]
    rows += [row("peer", 200, 1.0, seed=seed) for seed in (0, 1, 2)]
    found = versus(rows, "compress-size", "zip")
    assert (found.seeds, found.ours, found.theirs) == ((0, 1), (100, 400), (200, 200))
    assert found.ratio == pytest.approx(1)
    assert (found.low, found.high, found.outcome) == (0.5, 2, "level")
    assert found.reason == "seed 2: not run"


def test_a_test_sample_counts_once_however_many_seeds_there_are() -> None:
    def width(seeds: int) -> float:
        rows = [
            row("compress-size", 5, None, 0.02, eligible=True, seed=seed, right=answers(0.88)) for seed in range(seeds)
        ]
        rows += [row("peer", 10, None, seed=seed, right=answers(DENSE)) for seed in range(seeds)]
        found = versus(rows, "compress-size", "zip")
        assert found.difference_low is not None
        assert found.difference_high is not None
        return found.difference_high - found.difference_low

    assert width(3) == pytest.approx(width(1), rel=0.2)  # pooling the pairs would make it narrower by the root of 3


def test_answers_that_are_not_known_leave_the_interval_open() -> None:
    found = versus([row("compress-size", 5, None), row("peer", 10, None, right=None)], "compress-size", "zip")
    assert (found.difference, found.difference_low, found.accuracy) == (0, None, None)


# ---------------------------------------------------------------- files


def test_what_is_kept_of_a_run_gives_the_same_comparison(tmp_path: Path) -> None:
    rows = one_seed()
    assert results.kept(tmp_path) == []
    results.keep(rows, tmp_path)
    again = results.kept(tmp_path)
    assert [one.to_dict() for one in again] == [one.to_dict() for one in rows]
    for one, two in zip(rows, again, strict=True):
        np.testing.assert_equal(two.right, one.right)
    assert all_versus(again) == all_versus(rows)


def test_results_come_back_from_their_json_and_name_every_factor(written: Path) -> None:
    (path,) = written.glob("*.json")
    assert path.name == "compare-cnn-seeds2-a-processor-vnni-threads1.json"
    (comparison,) = results.read_all(written)
    assert json.loads(path.read_text()) == json.loads(json.dumps(comparison.to_dict()))
    assert comparison.seeds == (0, 1)
    assert [one.entry for one in comparison.versus[::2]] == ["compress-size", "compress-latency", "compress-balanced"]


def test_of_the_results_of_one_machine_those_with_the_most_seeds_are_read(written: Path) -> None:
    results.write(one_seed(), "cnn", written, ENVIRONMENT, BUDGET, COMMAND)
    other = {**ENVIRONMENT, "cpu": "Another"}
    results.write(one_seed(), "cnn", written, other, BUDGET, COMMAND)
    found = [(one.environment["cpu"], len(one.seeds)) for one in results.read_all(written)]
    assert sorted(found) == [("A Processor", 2), ("Another", 1)]


def test_the_csv_has_one_line_a_row_and_plain_columns() -> None:
    rows = one_seed()
    lines = list(csv.DictReader(io.StringIO(results.table(rows))))
    assert [line["entry"] for line in lines] == [one.entry for one in rows]
    broken = next(line for line in lines if line["entry"] == "torch-pruning-inc")
    assert (broken["status"], broken["zip_bytes"], broken["test_value"]) == ("ValueError: no scale | of a pipe", "", "")
    ours = lines[1]
    assert (ours["zip_bytes"], ours["test_n"], ours["eligible"]) == ("8000", "400", "True")
    assert float(ours["speedup_low"]) == pytest.approx(1.96)
    assert not any("[" in value or "{" in value for value in ours.values())


# ---------------------------------------------------------------- tables and page


def test_an_entry_that_failed_is_a_row_with_its_error() -> None:
    table = tables.entry_table(compared(one_seed()))
    broken = cells(table, "torch-pruning-inc")
    assert broken["files that kept their accuracy"] == "ValueError: no scale | of a pipe"
    assert (broken["smallest"], broken["compute"], broken["lines"]) == ("–", "3.0 s", "–")
    assert cells(table, "torch-pruning")["files that kept their accuracy"] == "1 of 2"
    assert "no scale \\| of a pipe" in tables.markdown(table)


def test_an_entry_that_failed_at_one_seed_says_so_beside_what_it_made_at_others() -> None:
    table = tables.entry_table(compared([row("peer", 10, 1.0), failed("peer", 1)]))
    found = cells(table, "peer")
    assert found["files that kept their accuracy"].startswith("1 of 1; seed 1, peer: ValueError")
    assert found["smallest"] == "10 B, 1 of 2 seeds"


def test_the_best_at_each_limit_is_bold_and_who_has_nothing_there_has_no_figure() -> None:
    table = tables.fixed_table(compared(one_seed()))
    size, peer = cells(table, "compress-size"), cells(table, "torch-pruning-ort")
    assert (size["zipped, drop ≤ 0.01"], peer["zipped, drop ≤ 0.01"]) == ("**8.00 KB**", "16.0 KB")
    assert (size["zipped, drop ≤ 0.005"], size["p50, drop ≤ 0"]) == ("–", "–")
    assert cells(table, "compress-latency")["p50, drop ≤ 0"].startswith("**100")
    assert size["test accuracy within 16.0 KB"] == "**0.8950**"
    assert peer["test accuracy within 16.0 KB"] == "0.8900"  # p3, smaller, is less accurate on validation
    assert "torch-pruning-inc" not in [line[0] for line in table]


def test_latencies_that_differ_by_less_than_a_file_from_itself_are_both_bold() -> None:
    rows = [row("compress-latency", 9, 0.1), row("peer", 10, 0.102), row("slow", 10, 0.104)]
    table = tables.fixed_table(compared(rows))
    shown = [cells(table, one.entry)["p50, drop ≤ 0"].startswith("**") for one in rows]
    assert shown == [True, True, False]
    assert [cells(table, one.entry)["zipped, drop ≤ 0"] for one in rows] == ["**9 B**", "10 B", "10 B"]


def test_what_is_missing_at_one_seed_is_told_and_not_called_best() -> None:
    rows = [row("compress-size", 10, None), row("peer", 20, None), row("peer", 20, None, seed=1)]
    table = tables.fixed_table(compared(rows))
    assert cells(table, "compress-size")["zipped, drop ≤ 0"] == "10 B, 1 of 2 seeds"
    assert cells(table, "peer")["zipped, drop ≤ 0"] == "**20 B**"


def test_the_page_has_every_row_and_every_picture_and_is_the_same_each_time(written: Path) -> None:
    text = page.page(written).read_text()
    files = {path.name: path.read_bytes() for path in written.iterdir()}
    pictures = sorted(path.name for path in written.glob("*.svg"))
    assert pictures == [f"compare-cnn-a-processor-vnni-{metric}.svg" for metric in ("p50", "zip")]
    assert all(f"]({name})" in text for name in pictures)
    assert text.count("ValueError: no scale \\| of a pipe") >= 2  # of both seeds
    for block in text.split("\n\n"):
        widths = {line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1
    page.page(written)
    assert {path.name: path.read_bytes() for path in written.iterdir()} == files


def test_a_page_of_no_results_is_a_page_all_the_same(tmp_path: Path) -> None:
    assert "# Side by side" in page.page(tmp_path).read_text()


def test_a_picture_names_each_entry_that_it_shows_and_says_what_it_left_out() -> None:
    rows = [*one_seed(), row("recursive-reduction", 50, 0.01, 0.3)]
    content = plots.svg(plots.pareto(compared(rows), "zip") or pytest.fail("no picture")).decode()
    assert len(content) < 60_000
    for entry in ("compress-size", "torch-pruning-ort", "torch-prune"):
        assert f">{entry}<" in content
    assert ">recursive-reduction<" not in content
    assert "1 that lose more than 0.05 left out" in content
    assert plots.pareto(compared([failed("peer")]), "zip") is None


def test_names_in_a_picture_do_not_overlap_and_stay_near_to_their_points() -> None:
    places = plots.spread_out([0.5, 0.5, 0.5, 0.9, 0.99, 1.0], 0.06)
    assert all(high - low >= 0.06 - 1e-9 for low, high in pairwise(places))
    assert (min(places), max(places)) == (0.5, 1.0)
    crowded = plots.spread_out([0.5] * 40, 0.06)
    assert min(crowded) == pytest.approx(0)
    assert max(crowded) == pytest.approx(1)
    assert plots.spread_out([0.3], 0.06) == [0.3]


# ---------------------------------------------------------------- headline


def test_the_headline_is_written_between_its_comments_and_checked_there(written: Path) -> None:
    readme = written / "README.md"
    readme.write_text(f"# before\n{headline.START}\nold\n{headline.END}\nafter\n")
    given = ["--results", str(written), "--readme", str(readme)]
    with pytest.raises(SystemExit, match="is not what"):
        headline.main([*given, "--check"])
    assert "old" in readme.read_text()
    headline.main(given)
    text = readme.read_text()
    assert text.startswith("# before\n")
    assert text.endswith("\nafter\n")
    assert "| cnn | 2 | 0.9000" in text
    assert "torch-pruning-ort 16.0 KB" in text
    assert "n = 400 test samples; torch 2.13.0" in text
    headline.main([*given, "--check"])
    readme.write_text(text.replace("16.0 KB", "99.0 KB"))
    with pytest.raises(SystemExit, match="is not what"):
        headline.main([*given, "--check"])


def test_what_reached_its_target_at_a_lower_accuracy_is_not_bold() -> None:
    rows = [row("compress-size", 5, None), row("peer", 10, None, -0.05)]
    line = headline.table([compared(rows)])[1]
    assert line[3].startswith("0.50×")
    assert "**lower**" in line[4]
    equal = headline.table([compared([row("compress-size", 5, None), row("peer", 10, None)])])[1]
    assert equal[3].startswith("**0.50×")


def test_a_readme_without_the_two_comments_is_refused() -> None:
    for text in ("nothing", headline.START, f"{headline.END}{headline.START}", headline.START * 2 + headline.END):
        with pytest.raises(SystemExit, match="one <!-- headline:start -->"):
            headline.rewritten(text, [])


def test_the_headline_of_readme_is_what_the_results_say() -> None:
    text = README.read_text()
    assert text == headline.rewritten(text, results.read_all(README.parent / results.FOLDER))


def test_a_workload_on_which_a_peer_was_not_tried_is_no_headline(tmp_path: Path) -> None:
    tried = {row.entry for row in one_seed()}
    results.write(one_seed(), "cnn", tmp_path, ENVIRONMENT, BUDGET, COMMAND, [*tried, "recursive-reduction"])
    (found,) = results.read_all(tmp_path)
    assert found.not_run == ("recursive-reduction",)
    assert "cnn" not in headline.block([found])
    assert "**Not run yet: recursive-reduction.**" in page.page(tmp_path).read_text()
    assert "cnn" in headline.block([replace(found, not_run=())])
    assert "cnn" in headline.block([replace(found, not_run=("compress-size-matched",))])  # one of ours hides no peer


def test_the_headline_tells_what_is_left_at_the_best_peers_drop_beside_what_all_are_allowed() -> None:
    peer = row("torch-prune-ort", 10_000, None)
    worse = row("compress-size", 4_000, None, 0.009, test_drop=0.05)
    matched = row("compress-size-matched", 4_500, None)
    line = dict(zip(*headline.table([compared([peer, worse, matched])]), strict=True))
    assert line["`compress-size`, zipped bytes / best peer"] == (
        "0.40×: 4.00 KB, torch-prune-ort 10.0 KB; at its drop **0.45×: 4.50 KB**"
    )


def test_the_limits_of_latencies_stand_beside_them() -> None:
    nothing: dict[str, Any] = {"file": None, "validation": None, "test": None, "validation_drop": None}
    narrow, alone = (
        row(name, None, ms, kind="limit", **nothing) for name, ms in ((narrowest.NAME, 0.02), (call.NAME, 0.004))
    )
    limits = [replace(one, eligible=False) for one in (narrow, alone)]
    comparison = compared([*one_seed(), *limits])
    (line,) = headline.table([comparison])[1:]
    assert line[-1] == " and ".join(fmt.duration(one.p50_ms) for one in limits)
    for one in limits:
        assert cells(tables.entry_table(comparison), one.entry)["fastest"] == fmt.duration(one.p50_ms)
        assert all(one.entry not in cell[0] for cell in tables.fixed_table(comparison))
    assert [one.peers for one in comparison.versus] == [one.peers for one in compared(one_seed()).versus]
    (before,) = headline.table([compared([*one_seed(), limits[1]])])[1:]  # results of an earlier version
    assert before[-1] == f"– and {fmt.duration(alone.p50_ms)}"


def test_an_entry_that_failed_was_tried(tmp_path: Path) -> None:
    rows = [*one_seed(), failed("broken")]
    results.write(rows, "cnn", tmp_path, ENVIRONMENT, BUDGET, COMMAND, [row.entry for row in rows])
    assert results.read_all(tmp_path)[0].not_run == ()
