"""The comparison of training with and without pruning as text, from the plain dict of comparison.json."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from compress.measurement.significance import p_text
from compress.reporting import format as fmt
from compress.reporting.summary import Table
from compress.reporting.templates import environment

Report = Mapping[str, Any]  # comparison.json
ARMS = {"dense": "without pruning", "sparse": "with pruning"}
CSV = ("seed", "training", "step", "epoch", "loss", "validation_accuracy", "sparsity", "action")


def arms_of(report: Report, name: str) -> list[Mapping[str, Any]]:
    """The trainings of one kind, dense or sparse, by seed."""
    return [arm for arm in report["arms"] if arm["name"] == name]


def arm_table(report: Report) -> Table:
    """One row without pruning and one with it: means and standard deviations over seeds."""
    columns = ("training", "test accuracy", "validation", "parameters", "nonzero", "weights removed", "FLOPs")
    rows = tuple(_arm_row(text, arms_of(report, name)) for name, text in ARMS.items())
    return Table((*columns, "without zeros", "median a batch", "mean a batch"), rows)


def seed_table(report: Report) -> Table:
    """One row a seed: both accuracies with their 95 % intervals, and what tells the two models apart."""
    columns = ("seed", "without pruning [95 %]", "with pruning [95 %]", "drop", "only without right", "only with right")
    pairs = zip(arms_of(report, "dense"), arms_of(report, "sparse"), report["mcnemar"], strict=True)
    rows = tuple(
        (
            str(dense["seed"]),
            _accuracy(dense["test"]),
            _accuracy(sparse["test"]),
            fmt.signed(dense["test"]["value"] - sparse["test"]["value"]),
            fmt.count(test["only_reference"]),
            fmt.count(test["only_changed"]),
            p_text(test["p"]),
            fmt.percent(sparse["sparsity"]),
            fmt.ratio(_ratio(sparse["median_step_ms"], dense["median_step_ms"])),
        )
        for dense, sparse, test in pairs
    )
    return Table((*columns, "McNemar", "weights removed", "time a batch"), rows)


def tests_table(report: Report) -> Table:
    """The tests, each with the hypothesis that a small p rejects."""
    tests, pooled = report["tests"], report["mcnemar_pooled"]
    margin, seeds = f"{tests['margin']:g}", f"{tests['n']} seed{'s' if tests['n'] != 1 else ''}"
    found = fmt.signed(tests["mean"])
    if tests["low"] is not None:
        found += f" [{fmt.signed(tests['low'])} to {fmt.signed(tests['high'])}]"
    votes = f"{pooled['only_reference']} and {pooled['only_changed']} samples"
    rows = (
        (f"paired t-test, {seeds}", "the mean drop is 0", found, p_text(tests["p_different"])),
        (f"no worse than {margin}, {seeds}", f"the mean drop is {margin} or more", found, p_text(tests["p_no_worse"])),
        (f"equivalence (TOST), {seeds}", f"the means differ by {margin} or more", found, p_text(tests["p_equivalent"])),
        ("McNemar, exact, a vote a sample", "each side wins as many samples", votes, p_text(pooled["p"])),
    )
    return Table(("test", "a small p rejects that", "found [95 %]", "p"), rows)


def render_markdown(report: Report) -> str:
    """The comparison as Markdown. A dict read back from comparison.json gives the same text."""
    templates = environment(autoescape=False)
    templates.filters["cell"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    return templates.get_template("comparison.md.jinja").render(**_parts(report))


def render_html(report: Report, drawing: str) -> str:
    """The comparison as one HTML file, with ``drawing``, an svg element, in it; nothing is loaded from anywhere."""
    return environment(autoescape=True).get_template("comparison.html.jinja").render(**_parts(report), drawing=drawing)


def history_csv(report: Report) -> str:
    """One line for each end of an interval or of an epoch, of every training."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(CSV)
    for arm in report["arms"]:
        for moment in arm["history"]:
            right = "" if moment["accuracy"] is None else f"{moment['accuracy']:.6f}"
            figures = (f"{moment['epoch']:.4f}", f"{moment['loss']:.6f}", right, f"{moment['sparsity']:.6f}")
            writer.writerow((arm["seed"], arm["name"], moment["step"], *figures, moment["action"] or ""))
    return table.getvalue()


def _parts(report: Report) -> dict[str, Any]:
    return {
        "report": report,
        "arms": arm_table(report),
        "tests": tests_table(report),
        "seeds": seed_table(report),
        "fmt": fmt,
    }


def _arm_row(text: str, arms: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    def mean(key: str) -> float:
        return statistics.fmean(arm[key] for arm in arms)

    times = [[arm[key] for arm in arms if arm[key] is not None] for key in ("median_step_ms", "mean_step_ms")]
    return (
        text,
        _spread([arm["test"]["value"] for arm in arms]),
        _spread([arm["validation"]["value"] for arm in arms]),
        fmt.count(round(mean("parameters"))),
        fmt.count(round(mean("nonzero"))),
        fmt.percent(mean("sparsity")),
        fmt.count(round(mean("flops"))),
        fmt.count(round(mean("effective_flops"))),
        *(fmt.duration(statistics.fmean(values) if values else None) for values in times),
    )


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def _accuracy(value: Mapping[str, float]) -> str:
    return f"{value['value']:.4f} [{value['low']:.4f}–{value['high']:.4f}]"


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None
