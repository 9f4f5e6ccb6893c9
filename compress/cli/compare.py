"""compress compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from compress.cli.console import Display, emit, say, show_table


@click.command(short_help="What changed between two finished runs.")
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option("--no-timing", is_flag=True, help="Do not time the two files again; show what each run recorded.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=3.0, help="Of timing each file.")
@click.option("--seed", type=int, default=0, help="Of the order in which the files take turns. [default: 0]")
@click.option("--md", type=click.Path(path_type=Path), help="Write the comparison here as Markdown.")
@click.option("--html", type=click.Path(path_type=Path), help="Write it here as one HTML file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables, and nothing else.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the result.")
def compare(
    run_a: Path,
    run_b: Path,
    no_timing: bool,
    seconds: float,
    seed: int,
    md: Path | None,
    html: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Say what changed from RUN_A to RUN_B: what ships, bytes, accuracy, latency, options, versions.

    Answers to the same test samples are compared one by one (McNemar's test). Latencies of two moments cannot be
    compared: both files are timed again, here, in turns. Exit status 0 whatever changed: `compress check` is the gate.

    \b
    Examples:
      compress compare last-release compressed
      compress compare last-release compressed --md comment.md
      compress compare last-release compressed --no-timing --json
    """
    from compress.comparing import CompareConfig
    from compress.comparing import compare as compare_runs
    from compress.files import write_atomically
    from compress.measurement import BenchmarkConfig
    from compress.reporting.run_comparison_report import render_html, render_markdown

    config = CompareConfig(timing=not no_timing, benchmark=BenchmarkConfig(seconds=seconds), seed=seed)
    with Display(quiet) as display:
        comparison = compare_runs(run_a, run_b, config, display)
    for path, render in ((md, render_markdown), (html, render_html)):
        if path is not None:
            write_atomically(path, render(comparison).encode())
    if as_json:
        emit(comparison)
    else:
        _show(comparison)
    return 0


def _show(comparison: Mapping[str, Any]) -> None:
    from compress.reporting.run_comparison_report import (
        comparison_sentences,
        comparison_table,
        difference_table,
        variants_table,
    )

    tables = (
        comparison_table(comparison),
        difference_table(comparison["options"], "option"),
        difference_table(comparison["environment"], "environment"),
        variants_table(comparison),
    )
    for table in tables:
        if table is not None:
            show_table(table.columns, table.rows)
            say("")
    for sentence in comparison_sentences(comparison):
        say(sentence)
