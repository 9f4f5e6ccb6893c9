"""The headline of README, taken from the results: one line a workload.

python -m benchmarks.compare.headline            # rewrites README between its two comments
python -m benchmarks.compare.headline --check    # writes nothing; fails where README is not what the results say
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.compare import call, narrowest
from benchmarks.compare.entries import ENTRIES
from benchmarks.compare.frontier import TARGETS, Metric, Versus, geometric_mean
from benchmarks.compare.results import FOLDER, Comparison, read_all
from benchmarks.compare.tables import (
    Cells,
    average,
    dense_accuracies,
    difference_text,
    limit,
    markdown,
    over_seeds,
    ratio_text,
    show,
)
from compress.files import write_atomically
from compress.reporting import format as fmt

START, END = "<!-- headline:start -->", "<!-- headline:end -->"
# The entries whose files are compared in each measure: allowed what peers are allowed, and what the best of them lost.
SET_OUT: dict[Metric, tuple[str, str]] = {
    "zip": ("compress-size", "compress-size-matched"),
    "p50": ("compress-latency", "compress-latency-matched"),
}
BOTH = "compress-balanced"  # one file for both
_WORDS: dict[Metric, str] = {"zip": "zipped bytes", "p50": "p50"}
WIDTH = 120  # characters a line of README
COMMAND = "python -m benchmarks.compare.headline"


def table(comparisons: Iterable[Comparison]) -> Cells:
    """One row a workload: the ratios of our files to the best peer's, and how accuracies differ."""
    columns = ["workload", "seeds", "dense accuracy"]
    for metric, (entry, _) in SET_OUT.items():
        columns += [f"`{entry}`, {_WORDS[metric]} / best peer", "test accuracy − that peer's"]
    cells: Cells = [(*columns, f"`{BOTH}`, bytes and p50 / best peer", "p50 one channel wide, and of a call alone")]
    for comparison in comparisons:
        found = {(one.entry, one.metric): one for one in comparison.versus}
        line = [
            comparison.workload,
            str(len(comparison.seeds)),
            over_seeds(dense_accuracies(comparison), fmt.fraction, average),
        ]
        for metric, (entry, matched) in SET_OUT.items():
            line += _versus_cells(found.get((entry, metric)), found.get((matched, metric)))
        both = [found.get((BOTH, metric)) for metric in TARGETS]
        line.append(" and ".join(fmt.NOTHING if one is None else fmt.ratio(one.ratio) for one in both))
        cells.append((*line, " and ".join(limit(comparison, name) for name in (narrowest.NAME, call.NAME))))
    return cells


def block(comparisons: Sequence[Comparison]) -> str:
    """What stands between the two comments: a table a machine, of the workloads on which every peer was tried."""
    peers = {entry.name for entry in ENTRIES if entry.kind != "own"}
    machines: dict[str, list[Comparison]] = {}
    for one in (one for one in comparisons if not peers & set(one.not_run)):
        machines.setdefault(one.environment["cpu"], []).append(one)
    parts = [f"\n{markdown(table(same))}\n{_told(cpu, same)}" for cpu, same in machines.items()]
    return "".join(parts) + "\n"


def rewritten(readme: str, comparisons: Sequence[Comparison]) -> str:
    """README with the block in its place.

    Raises:
        SystemExit: the two comments are not there, once each and in this order.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in before + after:
        raise SystemExit(f"README needs one {START} and, after it, one {END}: the headline is written between them.")
    return f"{before}{START}\n{block(comparisons)}{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder with compare-*.json")
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where README is not up to date")
    options = parser.parse_args(arguments)
    found = options.readme.read_text()
    wanted = rewritten(found, read_all(options.results))
    if found == wanted:
        return
    if options.check:
        sys.exit(f"{options.readme}: its headline is not what {options.results}/compare-*.json say. Run {COMMAND}.")
    write_atomically(options.readme, wanted.encode())


def _versus_cells(one: Versus | None, matched: Versus | None) -> tuple[str, str]:
    """The ratio and the difference of accuracy, and both at the best peer's drop, where that was run."""
    if one is None or one.ratio is None:
        return fmt.NOTHING if one is None else one.reason, fmt.NOTHING
    peers = ", ".join(dict.fromkeys(name.partition(" ")[0] for name in one.peers))
    texts = [_won(one, f", {peers} {show(one.metric, geometric_mean(one.theirs))}")]
    differences = [difference_text(one)]
    if matched is not None and matched.ratio is not None:
        texts.append(f"at its drop {_won(matched)}")
        differences.append(difference_text(matched))
    return "; ".join(texts), "; ".join(differences)


def _won(one: Versus, beside: str = "") -> str:
    """The ratio and ours, bold where both targets are met: that of the measure, and the accuracy of the peer."""
    text = f"{ratio_text(one)}: {show(one.metric, geometric_mean(one.ours))}{beside}"
    return f"**{text}**" if one.outcome == "met" and one.accuracy != "lower" else text


def _told(cpu: str, comparisons: Sequence[Comparison]) -> str:
    """Below a table: where it was measured, with what, and how to have it again."""
    known = comparisons[-1].environment
    samples = sorted({row.test.n for one in comparisons for row in one.rows if row.test is not None})
    n = "" if not samples else f"n = {', '.join(map(fmt.count, samples))} test samples; "
    text = (
        f"{cpu} ({', '.join(known['isa'])}), {known['threads']} thread, batch 1; {n}torch {known['torch']}, "
        f"onnxruntime {known['onnxruntime']}, Python {known['python']}. Below 1 ours is smaller or faster; bold: at "
        f"most {TARGETS['zip']:.2f} of the bytes, {TARGETS['p50']:.2f} of the p50, at an accuracy that is not "
        f"significantly lower. At its drop: ours allowed no more than what that peer lost on validation, where peers "
        f"stop before the end of what they may lose. The last column has the limits: the dense model with one channel "
        f"in every group, which no choice of widths undercuts, and a call that computes nothing. In brackets 95 % "
        f"intervals; of several seeds the smallest and the largest ratio. "
        f"Written by `{COMMAND}` from the JSON files of `python -m benchmarks.compare`."
    )
    return textwrap.fill(text, WIDTH, break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    main()
