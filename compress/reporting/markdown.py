"""report.md, from the plain dict of report.json: made to be pasted into a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.reporting import format as fmt
from compress.reporting.quantization_report import quantization_section, quantize_figures
from compress.reporting.summary import Table, latency_table, sparsity_table, variant_table, verdict_sentences
from compress.reporting.tables import (
    absences,
    changed_table,
    class_table,
    journey_table,
    key_table,
    limit_table,
    memory_table,
    placement_table,
    size_table,
    timed_table,
)
from compress.reporting.templates import environment

LIMIT = 60_000  # characters: GitHub takes 65,536 in a comment, and whoever posts it may add words of their own
Report = Mapping[str, Any]


@dataclass(frozen=True)
class Fold:
    """A part of the report behind its title."""

    title: str
    body: str


def render_markdown(report: Report) -> str:
    """The report as Markdown. A report that was read back from report.json gives the same text.

    The verdict and what matters most come first, all else is folded. Folded parts that would make it too long for a
    comment on GitHub are left out, and it is said which.
    """
    folds = [Fold(title, body) for title, body in _folds(report) if body]
    whole = _render(report, folds, ())
    left_out: list[str] = []
    while len(whole) > LIMIT and folds:
        longest = max(folds, key=lambda fold: len(fold.body))
        folds.remove(longest)
        left_out.append(longest.title)
        whole = _render(report, folds, left_out)
    return whole


def _render(report: Report, folds: Sequence[Fold], left_out: Sequence[str]) -> str:
    return (
        environment(autoescape=False)
        .get_template("report.md.jinja")
        .render(
            report=report,
            sentences=verdict_sentences(report),
            key=grid(key_table(report)),
            variants=grid(variant_table(report["variants"], report["shipped"])),
            folds=folds,
            left_out=left_out,
            fmt=fmt,
        )
    )


def _folds(report: Report) -> Iterator[tuple[str, str]]:
    """Titles with what is behind them; nothing where the run did not measure it."""
    two = _original_and_shipped(report)
    yield "What each stage bought", _tables(journey_table(report))
    yield "Why the others do not ship", bullets(_reasons(report))
    yield "Latency", _latency(report, two)
    yield "Accuracy by class", _tables(class_table(report))
    yield "Answers that changed most", _tables(changed_table(report))
    yield "How near to the limit of this machine", _tables(limit_table(two))
    yield "Size", _tables(size_table(two))
    yield "Sparsity", _sparsity(report)
    yield "Quantization", _quantization(report)
    yield "Where it runs", _tables(placement_table(two))
    yield "Stages", "\n".join(_stages(report))
    yield (
        "Data and environment",
        bullets((*_model(report), _data(report["data"]), *_environment(report["environment"]))),
    )


def grid(table: Table) -> str:
    """A table of GitHub's Markdown; the row of what ships in bold."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rows = [[_cell(text) for text in row] for row in table.rows]
    if table.mark is not None:
        rows[table.mark] = [f"**{text}**" if text else "" for text in rows[table.mark]]
    rule = f"|---{'|--:' * (len(table.columns) - 1)}|"
    return "\n".join((line([_cell(column) for column in table.columns]), rule, *map(line, rows)))


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


def _cell(text: str) -> str:
    """Text that stays within its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _tables(*tables: Table | None) -> str:
    return "".join(f"{grid(table)}\n\n" for table in tables if table is not None and table.rows)


def _original_and_shipped(report: Report) -> Report:
    """The report without the other variants, for tables that would be too long with them: report.html has them all."""
    names = (report["variants"][0]["name"], report["shipped"])
    return {**report, "variants": [variant for variant in report["variants"] if variant["name"] in names]}


def _latency(report: Report, two: Report) -> str:
    timed = timed_table(latency_table(two["variants"]), two)
    return _tables(timed, memory_table(two)) + bullets(absences(report))


def _reasons(report: Report) -> tuple[str, ...]:
    return tuple(f"{v['name']} does not ship: {v['not_shipped']}." for v in report["variants"] if v["not_shipped"])


def _sparsity(report: Report) -> str:
    table = sparsity_table(report["variants"])
    if table is None:
        return ""
    return (
        f"{grid(table)}\n\nWithout sparsity: the same model before its weights became zero, measured beside it, or "
        "estimated from its weights. ONNX Runtime computes with zeros as with any number, so that only the download "
        "shrinks."
    )


def _quantization(report: Report) -> str:
    section = quantization_section(quantize_figures(report), report["shipped"])
    if section is None:
        return ""
    fallback = "" if section.fallback is None else "Layers that return to float, the most sensitive first:\n\n"
    return _tables(section.files) + fallback + _tables(section.fallback) + bullets(section.sentences)


def _stages(report: Report) -> Iterator[str]:
    for stage in report["stages"]:
        skipped = f": skipped, {stage['skipped']}" if stage["skipped"] else ""
        yield f"- **{stage['stage']}** ({fmt.seconds(stage['seconds'])}){skipped}"
        yield from (f"  - {' '.join(note.split())}" for note in stage["notes"])


def _model(report: Report) -> Iterator[str]:
    if model := report.get("model"):
        yield f"model `{model['path']}`, sha256 {model['sha256']}"


def _data(data: Mapping[str, Any]) -> str:
    sha256 = f", sha256 {data['sha256']}" if data["sha256"] else ""
    return (
        f"data {data['name']}: {fmt.count(data['train'])} train (of them {fmt.count(data['calibration'])} for "
        f"calibration), {fmt.count(data['validation'])} validation, {fmt.count(data['test'])} test{sha256}"
    )


def _environment(facts: Mapping[str, Any]) -> Iterator[str]:
    for key, value in facts.items():
        if value is not None:
            yield f"{key}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
