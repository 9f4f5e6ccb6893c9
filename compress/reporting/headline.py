"""The few large figures at the top of the report: size, latency, accuracy and what ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.reporting import format as fmt
from compress.reporting.summary import Entry, answer_of, interval, main_latency, significant

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Headline:
    """One large figure."""

    label: str
    figure: str
    lines: tuple[str, ...]  # what it was, and how sure it is


def headline_figures(report: Report) -> tuple[Headline, ...]:
    """Download, latency, accuracy (fidelity, metric) of what ships, each against the original."""
    shipped = next(variant for variant in report["variants"] if variant["name"] == report["shipped"])
    latency = _latency(report, shipped)
    return (_size(report, shipped), *([latency] if latency is not None else []), _answers(report, shipped))


def _size(report: Report, shipped: Entry) -> Headline:
    baseline = report["variants"][0]
    zipped = report.get("shipped_zip_bytes") or shipped["zip_bytes"]
    original = f"{fmt.size(baseline['raw_bytes'])}, {fmt.size(baseline['zip_bytes'])} zipped, originally"
    return Headline("Download", fmt.size(zipped), (f"{fmt.ratio(report['verdict']['zip_ratio'])} smaller", original))


def _latency(report: Report, shipped: Entry) -> Headline | None:
    position = main_latency(report["variants"])
    if position is None or shipped["latency"][position]["p50_ms"] is None:
        return None
    ours, theirs = shipped["latency"][position], report["variants"][0]["latency"][position]
    where = f"{ours['provider'].removesuffix('ExecutionProvider')}, batch {ours['batch']}, threads {ours['threads']}"
    if shipped is report["variants"][0]:
        return Headline("Latency, p50", fmt.duration(ours["p50_ms"]), (where,))
    return Headline(
        "Latency, p50",
        fmt.duration(ours["p50_ms"]),
        (_faster(ours["speedup"]), f"{fmt.duration(theirs['p50_ms'])} originally; {where}"),
    )


def _faster(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "no speed-up measured"
    if not significant(gain):
        return f"no significant difference, {fmt.ratio(gain['value'])} [{interval(gain)}]"
    return f"{fmt.ratio(gain['value'])} {'faster' if gain['value'] >= 1 else 'as fast'} [{interval(gain)}]"


def _answers(report: Report, shipped: Entry) -> Headline:
    verdict = report["verdict"]
    answer = answer_of(shipped, verdict["measured_in"])
    sure = "" if answer["low"] is None else f"[{fmt.fraction(answer['low'])}–{fmt.fraction(answer['high'])}], "
    known = verdict.get("drop_interval")
    spread = "" if known is None else f" [{_signed(known['low'])} to {_signed(known['high'])}]"
    return Headline(
        f"{verdict['measured_in'].capitalize()} on test",
        fmt.fraction(answer["value"]),
        (
            f"{sure}n = {fmt.count(report['data']['test'])}",
            f"drop {_signed(verdict['drop'])}{spread}, {fmt.fraction(verdict['max_drop'])} allowed",
        ),
    )


def _signed(value: float) -> str:
    return fmt.fraction(value).replace("-", "−")
