"""The top of the report: the verdict in a line, and a few large figures with all that is to be known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.reporting import format as fmt
from compress.reporting.summary import (
    Entry,
    answer_of,
    drop_words,
    main_latency,
    shipped_bytes,
    shipped_entry,
    size_words,
    speedup_words,
)

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Headline:
    """One large figure."""

    label: str
    figure: str
    lines: tuple[str, ...]  # what it was, and how sure it is


def verdict_line(report: Report) -> str:
    """Whether it passed and why, in as few words as a phone has lines for; `headline_figures` tells how sure it is."""
    verdict, name = report["verdict"], report["shipped"]
    if verdict["met"] and name == report["variants"][0]["name"]:
        told = f"nothing that was made is better than the original, {name} ships."
    elif verdict["met"]:
        told = f"{name} {_change(verdict)}."
    elif len(report["variants"]) == 1:
        told = f"nothing was made besides {name}."
    else:
        told = f"no variant kept its {verdict['measured_in']} on validation, {name} ships."
    return f"{'Passed' if verdict['passed'] else 'Not passed'}: {told}"


def _change(verdict: Mapping[str, Any]) -> str:
    figure, found = verdict["measured_in"], verdict.get("drop_interval")
    if verdict["passed"] and found is not None and found["low"] <= 0 <= found["high"]:
        return f"keeps its {figure}"
    lost = f"{'gains' if verdict['drop'] < 0 else 'loses'} {fmt.fraction(abs(verdict['drop']))} of {figure}"
    return f"{lost} ({fmt.fraction(verdict['max_drop'])} allowed)"


def headline_figures(report: Report) -> tuple[Headline, ...]:
    """Download, latency, accuracy (fidelity, metric) of what ships, each against the original."""
    shipped = shipped_entry(report)
    return _size(report), _latency(report, shipped), _answers(report, shipped)


def _size(report: Report) -> Headline:
    baseline = report["variants"][0]
    original = f"{fmt.size(baseline['raw_bytes'])}, {fmt.size(baseline['zip_bytes'])} zipped, originally"
    return Headline("Download", fmt.size(shipped_bytes(report)), (size_words(report["verdict"]["zip_ratio"]), original))


def _latency(report: Report, shipped: Entry) -> Headline:
    position = main_latency(report["variants"])
    if position is None or shipped["latency"][position]["p50_ms"] is None:
        return Headline("Latency, p50", fmt.NOTHING, ("Latency could not be measured.",))
    ours, theirs = shipped["latency"][position], report["variants"][0]["latency"][position]
    threads = f"{ours['threads']}\u00a0thread{'s' if ours['threads'] != 1 else ''}"
    where = f"{fmt.provider(ours['provider'])}, batch\u00a0{ours['batch']}, {threads}"
    if shipped is report["variants"][0]:
        return Headline("Latency, p50", fmt.duration(ours["p50_ms"]), (where,))
    return Headline(
        "Latency, p50",
        fmt.duration(ours["p50_ms"]),
        (speedup_words(ours["speedup"]), f"{fmt.duration(theirs['p50_ms'])} originally; {where}"),
    )


def _answers(report: Report, shipped: Entry) -> Headline:
    verdict = report["verdict"]
    answer = answer_of(shipped, verdict["measured_in"])
    sure = "" if answer["low"] is None else f"[{fmt.fraction(answer['low'])}–{fmt.fraction(answer['high'])}], "
    return Headline(
        f"{verdict['measured_in'].capitalize()} on test",
        fmt.fraction(answer["value"]),
        (
            f"{sure}n = {fmt.count(report['data']['test'])}",
            drop_words(verdict),
        ),
    )
