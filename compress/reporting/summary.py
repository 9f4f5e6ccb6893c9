"""The tables and the verdict as text, from the plain dict of report.json: the same for Markdown, HTML and console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.reporting import format as fmt
from compress.reporting.choice import EQUAL

Entry = Mapping[str, Any]  # of the ``variants`` of report.json


@dataclass(frozen=True)
class Table:
    """Text for people. The first column names the row, the others are figures."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    mark: int | None = None  # the row of what ships


def variant_table(variants: Sequence[Entry], shipped: str | None = None) -> Table:
    """One row a variant: what it answers, weighs and takes, where latency is that of the first timing that ran."""
    columns = ("variant", _answers_column(variants[0]), "drop", "zipped", "zip ratio")
    number = main_latency(variants)
    mark = next((i for i, variant in enumerate(variants) if variant["name"] == shipped), None)
    rows = tuple(_variant_row(variant, number, variant is variants[0]) for variant in variants)
    return Table((*columns, "p50", "p90", "p99", "speed-up [95 %]", "sparsity"), rows, mark)


def latency_table(variants: Sequence[Entry]) -> Table:
    """One row for each variant, provider and batch size, those that could not run too."""
    columns = ("variant", "provider", "batch", "threads", "p50", "p90", "p99", "mean", "first call", "calls")
    rows = tuple(
        _latency_row(variant["name"], timing, variant is variants[0])
        for variant in variants
        for timing in variant["latency"]
    )
    return Table((*columns, "speed-up [95 %]", "status"), rows)


def shipped_entry(report: Mapping[str, Any]) -> Entry:
    """The variant that ships."""
    entry: Entry = next(variant for variant in report["variants"] if variant["name"] == report["shipped"])
    return entry


def shipped_bytes(report: Mapping[str, Any]) -> int:
    """Bytes of model.onnx.zip; those of the variant in a report of before its provenance was counted."""
    return int(report.get("shipped_zip_bytes") or shipped_entry(report)["zip_bytes"])


def main_latency(variants: Sequence[Entry]) -> int | None:
    """The number, in each ``latency``, of the first provider and batch size that the baseline ran on."""
    return next((i for i, timing in enumerate(variants[0]["latency"]) if timing["p50_ms"] is not None), None)


def size_words(zip_ratio: float) -> str:
    """101× smaller; of a model so small that its zip is larger: 1.02× larger."""
    return f"{fmt.ratio(zip_ratio)} smaller" if zip_ratio >= 1 else f"{fmt.ratio(1 / zip_ratio)} larger"


def verdict_sentences(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What happened, in a few sentences; the first says whether it passed."""
    verdict, baseline, shipped = report["verdict"], report["variants"][0], shipped_entry(report)
    name, figure, samples = report["shipped"], verdict["measured_in"], fmt.count(report["data"]["test"])
    verb = "gains" if verdict["drop"] < 0 else "loses"
    lost = f"{verb} {fmt.fraction(abs(verdict['drop']))} of {figure} on {samples} test samples{_drop_clause(verdict)}"
    allowed = f"a drop of {fmt.fraction(verdict['max_drop'])} is allowed"
    if verdict["passed"]:
        first = f"Passed: {name} ships and {lost} ({allowed})."
    elif len(report["variants"]) == 1:
        first = f"Not passed: nothing was made besides {name}, which ships."
    elif not verdict["met"]:
        first = f"Not passed: no variant kept its {figure} on validation ({allowed}), so {name} ships."
    else:
        first = f"Not passed: {name} was within the budget on validation, but {lost} ({allowed})."
    sizes = (
        f"{fmt.size(baseline['raw_bytes'])} became {fmt.size(shipped_bytes(report))} zipped, "
        f"{size_words(verdict['zip_ratio'])}."
    )
    latency = _latency_sentence(report, baseline, shipped)
    return (first, *doubts(verdict), sizes, *latency, *sparsity_sentences(report["variants"]))


def _drop_clause(verdict: Mapping[str, Any]) -> str:
    """How sure the drop is; nothing where no interval was recorded."""
    found = verdict.get("drop_interval")
    if found is None:
        return ""
    nothing = "; no significant difference" if found["low"] <= 0 <= found["high"] else ""
    return f" [95 %: {signed_interval(found)}{nothing}]"


def doubts(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    """A verdict that another test set might reverse says so."""
    found, allowed = verdict.get("drop_interval"), verdict["max_drop"]
    if found is None or not verdict["met"] or not found["low"] <= allowed < found["high"]:
        return ()
    return ("The interval of the drop holds the allowed drop: with other samples the verdict could differ.",)


def _latency_sentence(report: Mapping[str, Any], baseline: Entry, shipped: Entry) -> tuple[str, ...]:
    number = main_latency(report["variants"])
    if number is None or shipped["latency"][number]["speedup"] is None:
        return ("Latency could not be measured.",)
    ours, theirs = shipped["latency"][number], baseline["latency"][number]
    gain, where = ours["speedup"], f"({ours['provider']}, batch {ours['batch']}, threads {ours['threads']})"
    if shipped is baseline:
        return (f"p50 is {fmt.duration(ours['p50_ms'])} {where}.",)
    went = f"p50 went from {fmt.duration(theirs['p50_ms'])} to {fmt.duration(ours['p50_ms'])}"
    told = f"{fmt.ratio(gain['value'])} [{interval(gain)}] {where}."
    if not significant(gain):
        return (f"{went}, no significant difference: {told}",)
    return (f"{went}, a speed-up of {told}" if gain["value"] > 1 else f"{went}, which is slower: {told}",)


def sparsity_sentences(variants: Sequence[Entry]) -> tuple[str, ...]:
    """What sparsity alone changed, for each variant whose dense twin was measured beside it."""
    return tuple(
        f"Sparsity: {variant['name']} zips {fmt.ratio(gain['zip_ratio'])} smaller than {gain['twin']}"
        f"{_latency_clause(gain['latency_ratio'])}."
        for variant in variants
        if (gain := variant["sparsity_gain"]) is not None and gain["twin"] is not None
    )


def sparsity_table(variants: Sequence[Entry]) -> Table | None:
    """One row for each sparse variant; None where there is none."""
    rows = tuple(_sparsity_row(variant) for variant in variants if variant["sparsity_gain"] is not None)
    columns = ("variant", "sparsity", "zipped", "without sparsity", "gain", "p50 / p50 without [95 %]")
    return Table(columns, rows) if rows else None


def _sparsity_row(variant: Entry) -> tuple[str, ...]:
    gain = variant["sparsity_gain"]
    latency = gain["latency_ratio"]
    return (
        variant["name"],
        fmt.percent(variant["sparsity"]),
        fmt.size(variant["zip_bytes"]),
        f"{fmt.size(gain['dense_zip_bytes'])} ({'estimated' if gain['estimated'] else gain['twin']})",
        fmt.ratio(gain["zip_ratio"]),
        fmt.NOTHING if latency is None else f"{fmt.ratio(latency['value'])} [{interval(latency)}]",
    )


def _latency_clause(ratio: Mapping[str, float] | None) -> str:
    if ratio is None:
        return ""
    told = f"; latency {fmt.ratio(ratio['value'])} [{interval(ratio)}]: "
    if ratio["low"] >= 1 - EQUAL and ratio["high"] <= 1 + EQUAL:
        return f"{told}unchanged"
    if ratio["low"] <= 1 <= ratio["high"]:
        return f"{told}no difference found"
    return f"{told}differs"


def interval(value: Mapping[str, float]) -> str:
    """Low and high of an interval of ratios."""
    return fmt.span(fmt.ratio(value["low"]), fmt.ratio(value["high"]))


def signed_interval(value: Mapping[str, float]) -> str:
    """Low and high of an interval of drops, which may be gains."""
    return f"{fmt.fraction(value['low'])} to {fmt.fraction(value['high'])}"


def significant(gain: Mapping[str, Any]) -> bool:
    """Whether a speed-up differs from 1. Reports of before it was recorded: whether its interval leaves 1 out."""
    recorded = gain.get("significant")
    return not gain["low"] <= 1 <= gain["high"] if recorded is None else bool(recorded)


def speedup_text(gain: Mapping[str, Any] | None, is_baseline: bool = False) -> str:
    """A speed-up with its interval, and with that it is none where that is so."""
    if gain is None:
        return fmt.NOTHING
    if is_baseline:
        return fmt.ratio(1.0)
    return f"{fmt.ratio(gain['value'])} [{interval(gain)}]{'' if significant(gain) else ', not significant'}"


def speedup_words(gain: Mapping[str, Any] | None) -> str:
    """A speed-up of what ships in words: how much faster, as fast, or no significant difference."""
    if gain is None:
        return fmt.NOTHING
    told = f"{fmt.ratio(gain['value'])} [{interval(gain)}]"
    if not significant(gain):
        return f"no significant difference: {told}"
    return f"{told} {'faster' if gain['value'] > 1 else 'as fast: slower'}"


def drop_words(verdict: Mapping[str, Any]) -> str:
    """The drop of what ships, how sure it is (95 %), and what is allowed."""
    told, known = f"drop {fmt.fraction(verdict['drop'])}", verdict.get("drop_interval")
    if known is not None:
        nothing = known["low"] <= 0 <= known["high"]
        told += f" [{signed_interval(known)}]{', no significant difference' if nothing else ''}"
    return f"{told}; {fmt.fraction(verdict['max_drop'])} allowed"


def answer_of(variant: Entry, measured_in: str) -> Mapping[str, Any]:
    """What the run judges a variant by, on test: its value, and low and high, which are None for fidelity."""
    if measured_in not in ("accuracy", "fidelity"):
        return dict(variant["metric"])
    if measured_in == "accuracy":
        return dict(variant["accuracy"])
    return {"value": variant["fidelity"], "low": None, "high": None}


def answer_text(answer: Mapping[str, Any]) -> str:
    """0.8912 [0.8849–0.8972]"""
    value = fmt.fraction(answer["value"])
    return value if answer["low"] is None else f"{value} [{fmt.fraction(answer['low'])}–{fmt.fraction(answer['high'])}]"


def _judged_by(variant: Entry) -> str:
    metric = variant.get("metric")
    if metric is not None:
        return str(metric["name"])
    return "fidelity" if variant["accuracy"] is None else "accuracy"


def _answers_column(baseline: Entry) -> str:
    name = _judged_by(baseline)
    return name if name == "fidelity" else f"{name} [95 %]"


def _variant_row(variant: Entry, number: int | None, is_baseline: bool) -> tuple[str, ...]:
    timing = None if number is None else variant["latency"][number]
    percentiles = [fmt.duration(None if timing is None else timing[key]) for key in ("p50_ms", "p90_ms", "p99_ms")]
    gain = None if timing is None else timing["speedup"]
    return (
        variant["name"],
        answer_text(answer_of(variant, _judged_by(variant))),
        fmt.fraction(variant["drop"]),
        fmt.size(variant["zip_bytes"]),
        fmt.ratio(variant["zip_ratio"]),
        *percentiles,
        speedup_text(gain, is_baseline),
        fmt.percent(variant["sparsity"]),
    )


def _latency_row(name: str, timing: Mapping[str, Any], is_baseline: bool) -> tuple[str, ...]:
    keys = ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "first_call_ms")
    return (
        name,
        fmt.provider(timing["provider"]),
        fmt.count(timing["batch"]),
        fmt.count(timing["threads"]),
        *(fmt.duration(timing[key]) for key in keys),
        fmt.count(timing["samples"]),
        speedup_text(timing["speedup"], is_baseline),
        timing["status"],
    )
