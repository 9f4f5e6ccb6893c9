"""The page of the comparison, from the JSON files alone.

python -m benchmarks.compare.page        # benchmarks/results/compare.md and the pictures beside it
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compare import headline
from benchmarks.compare.frontier import TARGETS
from benchmarks.compare.plots import write_pictures
from benchmarks.compare.results import FOLDER, Comparison, machine_name, read_all
from benchmarks.compare.tables import all_rows, entry_table, fixed_table, markdown, versus_table
from compress.files import write_atomically
from compress.reporting import format as fmt

NAME = "compare.md"
_INTRODUCTION = f"""# Side by side

Written by `python -m benchmarks.compare.page` from the JSON files beside it, never by hand.

Every entry starts from the same trained model and has the same training data, the same number of optimizer steps (its
search included), the same optimizer, schedule and loss. What it writes is then scored and timed by one benchmark, the
files of all entries in turns, one thread, batch 1. A file *kept its accuracy* where its drop against the dense model on
the validation split is within the budget. Only such files are compared, and validation alone selects among them; test
accuracy is of what was selected. The *best peer* is the smallest or the fastest of the files of all other entries that
kept their accuracy, the dense model's own among them. Ratios are ours / best peer: below 1 ours is smaller or faster.
The target is {TARGETS["zip"]:.2f} of the bytes and {TARGETS["p50"]:.2f} of the p50. Intervals of p50 come from paired
rounds, those of accuracies from paired test samples. Of several seeds sizes, latencies and ratios are geometric
means, accuracies plain ones, with the smallest and the largest in brackets.

"""


def page(folder: Path) -> Path:
    """Write the page and its pictures into the folder of the JSON files; returns the page."""
    comparisons = read_all(folder)
    text = _INTRODUCTION + "## All workloads\n" + headline.block(comparisons)
    text += "\n".join(_section(comparison, folder) for comparison in comparisons)
    write_atomically(folder / NAME, text.encode())
    return folder / NAME


def _section(comparison: Comparison, folder: Path) -> str:
    name = f"compare-{comparison.workload}-{machine_name(comparison.environment)}"
    pictures = "\n\n".join(f"![{picture}]({picture})" for picture in write_pictures(comparison, folder, name))
    parts = (
        f"## {comparison.workload}",
        _told(comparison),
        markdown(versus_table(comparison), left=2),
        pictures,
        "What each entry reached, and what it took, its whole chain included: optimizer steps, time of all cores, and\n"
        "lines that a user writes.",
        markdown(entry_table(comparison)),
        "The best of each entry at a limit; a drop is on validation, a fraction. Bold: the best of all, and latencies\n"
        "within 3 % of it.",
        markdown(fixed_table(comparison)),
        f"<details><summary>All {len(comparison.rows)} rows</summary>",
        markdown(all_rows(comparison), left=2) + "\n</details>",
    )
    return "\n" + "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _told(comparison: Comparison) -> str:
    budget, known = comparison.budget, comparison.environment
    seeds = ", ".join(map(str, comparison.seeds))
    missing = f" **Not run yet: {', '.join(comparison.not_run)}.**" if comparison.not_run else ""
    return (
        f"Seed{'s' if len(comparison.seeds) > 1 else ''} {seeds}. Budget: {fmt.count(budget['steps'])} optimizer "
        f"steps, a drop of {budget['max_drop']:g}. {known['cpu']}, {known['threads']} thread; torch {known['torch']}, "
        f"onnxruntime {known['onnxruntime']}. `{comparison.command}`{missing}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder with compare-*.json")
    print(page(parser.parse_args(arguments).results))


if __name__ == "__main__":
    main()
