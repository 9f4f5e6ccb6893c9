"""The comparison of two runs as text, from the plain dict of `compress.reporting.run_comparison.compare_runs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.measurement.significance import p_text
from compress.reporting import format as fmt
from compress.reporting.summary import Table
from compress.reporting.templates import environment

Comparison = Mapping[str, Any]
_LONGEST = 60  # characters of an option's value in a table


def comparison_sentences(comparison: Comparison) -> tuple[str, ...]:
    """What changed, in a few sentences: what ships, its bytes, its answers, its latency."""
    return (_ships(comparison), _bytes(comparison), _answers(comparison), *_latencies(comparison))


def comparison_table(comparison: Comparison) -> Table:
    """What ships, before and after: each figure, and its change where there is one."""
    size, drops, quality = comparison["size"], comparison["drop"], comparison["quality"]
    change = quality["change"]
    measure = f"{quality['measured_in']} [95 %]"
    rows = [
        ("model.onnx.zip", *_both(size["zip_bytes"], fmt.size), _relative(size["zip_bytes"])),
        ("model.onnx, raw", *_both(size["raw_bytes"], fmt.size), _relative(size["raw_bytes"])),
        ("parameters", *_both(size["parameters"], fmt.count), _relative(size["parameters"])),
        ("not zero", *_both(size["nonzero"], fmt.count), _relative(size["nonzero"])),
        (measure, *_both(quality, _with_interval), fmt.NOTHING if change is None else _signed(change)),
        ("drop from its original", *_both(drops, _drop), fmt.NOTHING),
    ]
    for row in comparison["latency"]["rows"]:
        name = f"p50, {_where(row)}{'' if comparison['latency']['together'] else ', as recorded'}"
        rows.append((name, *_both(row, fmt.duration), _ratio(row["speedup"])))
    return Table(("what ships", "before", "after", "change [95 %]"), tuple(rows))


def difference_table(differences: list[Mapping[str, Any]], what: str) -> Table | None:
    """One row for each option, or version, that differs; None where none does."""
    rows = tuple((entry["name"], *_both(entry, _value)) for entry in differences)
    return Table((what, "before", "after"), rows) if rows else None


def variants_table(comparison: Comparison) -> Table:
    """One row for each variant of either run."""
    measure = comparison["quality"]["measured_in"]
    rows = tuple(
        (
            entry["name"],
            *_both(entry["zip_bytes"], fmt.size),
            *_both(entry["figure"], fmt.fraction),
            _appeared(entry["zip_bytes"]),
        )
        for entry in comparison["variants"]
    )
    columns = ("variant", "zipped before", "zipped after", f"{measure} before", f"{measure} after", "made")
    return Table(columns, rows)


def render_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    templates = environment(autoescape=False)
    templates.filters["cell"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    return templates.get_template("run_comparison.md.jinja").render(**_parts(comparison))


def render_html(comparison: Comparison) -> str:
    """The comparison as one HTML file that loads nothing from anywhere."""
    return environment(autoescape=True).get_template("run_comparison.html.jinja").render(**_parts(comparison))


def _parts(comparison: Comparison) -> dict[str, Any]:
    return {
        "comparison": comparison,
        "sentences": comparison_sentences(comparison),
        "main": comparison_table(comparison),
        "options": difference_table(comparison["options"], "option"),
        "environment": difference_table(comparison["environment"], "environment"),
        "variants": variants_table(comparison),
    }


def _ships(comparison: Comparison) -> str:
    before, after = (run["shipped"] for run in comparison["runs"])
    return f"Both ship {after}." if before == after else f"{after} ships in place of {before}."


def _bytes(comparison: Comparison) -> str:
    pair = comparison["size"]["zip_bytes"]
    if pair["before"] == pair["after"]:
        return f"The download is as large as before: {pair['after']:,} bytes."
    word = "smaller" if pair["after"] < pair["before"] else "larger"
    share = abs(pair["after"] / pair["before"] - 1)
    sizes = f"{fmt.size(pair['before'])} to {fmt.size(pair['after'])}"
    more = fmt.signed(pair["after"] - pair["before"], ",")
    return f"The download went from {sizes} ({more} bytes, {fmt.percent(share)} {word})."


def _answers(comparison: Comparison) -> str:
    quality = comparison["quality"]
    change, measure = quality["change"], quality["measured_in"]
    agree = quality["agreement"]
    agreed = "" if agree is None else f" The two files give the same answer to {fmt.percent(agree)} of the samples."
    if change is None:
        return f"{measure.capitalize()} cannot be compared: {quality['reason']}.{agreed}"
    before, after = quality["before"]["value"], quality["after"]["value"]
    told = f"{measure.capitalize()} went from {fmt.fraction(before)} to {fmt.fraction(after)}, {_signed(change)}"
    found = "a significant difference" if change["significant"] else "no significant difference"
    test = quality["mcnemar"]
    if test is not None:
        votes = f"{test['only_before']:,} samples are right only before, {test['only_after']:,} only after"
        return f"{told}: {found} (McNemar {p_text(test['p'])}; {votes}).{agreed}"
    how = "the same samples, paired" if quality["paired"] else f"as of independent samples: {quality['reason']}"
    return f"{told}: {found} ({how}).{agreed}"


def _latencies(comparison: Comparison) -> tuple[str, ...]:
    latency = comparison["latency"]
    if not latency["together"]:
        return (f"Latencies were not compared: {latency['reason']}.",)
    return tuple(_latency(row) for row in latency["rows"])


def _latency(row: Mapping[str, Any]) -> str:
    ratio = row["speedup"]
    if ratio is None:
        return f"Latency on {_where(row)}: {row['status']}."
    times = f"{fmt.duration(row['before'])} to {fmt.duration(row['after'])}"
    told = f"p50 on {_where(row)} went from {times}, timed together here: {_ratio(ratio)}"
    if not ratio["significant"]:
        return f"{told}, no significant difference."
    return f"{told}, significantly {'faster' if ratio['value'] > 1 else 'slower'}."


def _where(row: Mapping[str, Any]) -> str:
    return f"{fmt.provider(row['provider'])}, batch {row['batch']}, threads {row['threads']}"


def _both(pair: Mapping[str, Any], text: Any) -> tuple[str, str]:
    return text(pair["before"]), text(pair["after"])


def _relative(pair: Mapping[str, float]) -> str:
    if not pair["before"]:
        return fmt.NOTHING
    return f"{fmt.signed(100 * (pair['after'] / pair['before'] - 1), '.1f')} %"


def _signed(change: Mapping[str, float]) -> str:
    return f"{fmt.signed(change['value'])} [{fmt.signed(change['low'])} to {fmt.signed(change['high'])}]"


def _ratio(ratio: Mapping[str, float] | None) -> str:
    if ratio is None:
        return fmt.NOTHING
    return f"{fmt.ratio(ratio['value'])} [{fmt.ratio(ratio['low'])} to {fmt.ratio(ratio['high'])}]"


def _with_interval(figure: Mapping[str, float | None]) -> str:
    return f"{fmt.fraction(figure['value'])}{_interval(figure)}"


def _drop(drop: Mapping[str, Any]) -> str:
    return f"{fmt.fraction(drop['value'])}{_interval(drop['interval'] or {'low': None, 'high': None})}"


def _interval(figure: Mapping[str, float | None]) -> str:
    if figure["low"] is None or figure["high"] is None:
        return ""
    return f" [{fmt.fraction(figure['low'])} to {fmt.fraction(figure['high'])}]"


def _value(value: object) -> str:
    if value is None:
        return fmt.NOTHING
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _appeared(pair: Mapping[str, Any]) -> str:
    if pair["before"] is None:
        return "new"
    return "gone" if pair["after"] is None else "both"
