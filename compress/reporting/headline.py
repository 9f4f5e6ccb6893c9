"""The few large figures at the top of the report: size, latency, accuracy and what ships."""

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
    speedup_words,
)

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Headline:
    """One large figure."""

    label: str
    figure: str
    lines: tuple[str, ...]  # what it was, and how sure it is


def headline_figures(report: Report) -> tuple[Headline, ...]:
    """Download, latency, accuracy (fidelity, metric) of what ships, each against the original."""
    shipped = shipped_entry(report)
    latency = _latency(report, shipped)
    return (_size(report), *([latency] if latency is not None else []), _answers(report, shipped))


def _size(report: Report) -> Headline:
    baseline = report["variants"][0]
    original = f"{fmt.size(baseline['raw_bytes'])}, {fmt.size(baseline['zip_bytes'])} zipped, originally"
    return Headline(
        "Download", fmt.size(shipped_bytes(report)), (f"{fmt.ratio(report['verdict']['zip_ratio'])} smaller", original)
    )


def _latency(report: Report, shipped: Entry) -> Headline | None:
    position = main_latency(report["variants"])
    if position is None or shipped["latency"][position]["p50_ms"] is None:
        return None
    ours, theirs = shipped["latency"][position], report["variants"][0]["latency"][position]
    where = f"{fmt.provider(ours['provider'])}, batch {ours['batch']}, threads {ours['threads']}"
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
