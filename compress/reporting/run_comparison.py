"""What changed between two finished runs: plain values, from the dicts of their report.json and what was measured anew.

Everything is told as before -> after. Answers are compared sample by sample where both runs answered the same samples.
Latencies of different moments are never compared: they were timed together, or are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot
from typing import Any

import numpy as np

from compress.measurement.answers import Kept
from compress.measurement.intervals import drop_interval, mean_drop_interval
from compress.measurement.significance import ALPHA, mcnemar
from compress.measurement.timing import Timing, speedup
from compress.reporting.summary import shipped_bytes, shipped_entry

Report = Mapping[str, Any]  # report.json
SCHEMA = 1


@dataclass(frozen=True)
class Retimed:
    """Both files' latencies, measured together after the runs."""

    timings: tuple[tuple[Timing, Timing], ...] = ()  # (before, after): one for each provider, threads and batch size
    reason: str | None = None  # why there are none


def compare_runs(
    before: Report, after: Report, answers: tuple[Kept, Kept] | str, retimed: Retimed, names: tuple[str, str]
) -> dict[str, Any]:
    """Put the comparison of two runs together.

    Args:
        before: report.json, as `compress.reporting.schema.read` gives it.
        after: Likewise.
        answers: Each run's answers on test, or why they cannot be set side by side.
        retimed: Latencies of the two files that ship, timed together.
        names: The run directories, as the user gave them.
    """
    ours, theirs = shipped_entry(after), shipped_entry(before)
    return {
        "schema": SCHEMA,
        "runs": [_run(report, name) for report, name in zip((before, after), names, strict=True)],
        "size": {
            "zip_bytes": _pair(shipped_bytes(before), shipped_bytes(after)),
            "raw_bytes": _pair(theirs["raw_bytes"], ours["raw_bytes"]),
            "parameters": _pair(theirs["parameters"], ours["parameters"]),
            "nonzero": _pair(theirs["nonzero"], ours["nonzero"]),
        },
        "quality": _quality(before, after, answers),
        "drop": _pair(
            {"value": before["verdict"]["drop"], "interval": before["verdict"]["drop_interval"]},
            {"value": after["verdict"]["drop"], "interval": after["verdict"]["drop_interval"]},
        ),
        "latency": _latency(theirs, ours, retimed),
        "options": _differences(options_of(before), options_of(after)),
        "environment": _differences(before["environment"], after["environment"]),
        "variants": _variants(before, after),
    }


def why_not_paired(before: Report, after: Report) -> str | None:
    """Why two runs did not answer the same test samples; None: they did."""
    ours, theirs = after["data"], before["data"]
    if theirs["sha256"] is None or ours["sha256"] is None:
        return "a run without data has no test samples"
    if theirs["sha256"] != ours["sha256"]:
        told = " and ".join(f"{data['name']} {data['sha256'][:8]}" for data in (theirs, ours))
        return f"the runs had different data ({told})"
    if theirs["test"] != ours["test"]:
        return f"the runs were tested on {theirs['test']:,} and {ours['test']:,} samples"
    return None


def _pair(before: Any, after: Any) -> dict[str, Any]:
    return {"before": before, "after": after}


def _run(report: Report, name: str) -> dict[str, Any]:
    facts = {key: report[key] for key in ("command", "seed", "objective", "shipped")}
    return {"directory": name, **facts, "passed": report["verdict"]["passed"]}


def _quality(before: Report, after: Report, answers: tuple[Kept, Kept] | str) -> dict[str, Any]:
    """The figure that both runs were judged by, and how it changed: above 0 is a gain."""
    shipped = (shipped_entry(before), shipped_entry(after))
    measures = [report["verdict"]["measured_in"] for report in (before, after)]
    figures = [_figure(variant) for variant in shipped]
    found = {"measured_in": measures[1], **_pair(*figures), "change": None, "mcnemar": None, "agreement": None}
    if measures[0] != measures[1]:
        return found | {"paired": False, "reason": f"the runs were judged by {measures[0]} and {measures[1]}"}
    if isinstance(answers, str):
        return found | {"change": _unpaired(*figures), "paired": False, "reason": answers}
    told = _agreement(before["shipped"], after["shipped"], answers) | _paired(*shipped, answers)
    if told.get("change") is not None:
        return found | told | {"paired": True, "reason": None}
    reason = "the answers of what ships were not kept one by one"
    return found | {"change": _unpaired(*figures), "paired": False, "reason": reason} | told


def _figure(variant: Mapping[str, Any]) -> dict[str, Any]:
    found = variant["metric"] or variant["accuracy"]
    if found is None:
        return {"value": variant["fidelity"], "low": None, "high": None, "n": None}
    return {key: found[key] for key in ("value", "low", "high", "n")}


def _agreement(before: str, after: str, answers: tuple[Kept, Kept]) -> dict[str, Any]:
    theirs, ours = answers[0].top1.get(before), answers[1].top1.get(after)
    return {} if theirs is None or ours is None else {"agreement": float((theirs == ours).mean())}


def _paired(before: Mapping[str, Any], after: Mapping[str, Any], answers: tuple[Kept, Kept]) -> dict[str, Any]:
    """What the answers of the two files that ship tell, sample by sample; nothing where they were not kept."""
    pairs = list(zip(answers, (before["name"], after["name"]), strict=True))
    if after["metric"] is not None:
        theirs, ours = (kept.values.get(name) for kept, name in pairs)
        if theirs is None or ours is None:
            return {}
        interval = mean_drop_interval(theirs, ours, seed=0)
        if interval is None:
            return {}
        low, high = interval
        return {"change": _change(float(np.mean(ours) - np.mean(theirs)), -high, -low, not low <= 0 <= high)}
    if after["accuracy"] is None:
        return {"reason": "without labels each run is held to its own original; agreement is between the two files"}
    chosen, labels = [kept.top1.get(name) for kept, name in pairs], answers[0].labels
    if labels is None or chosen[0] is None or chosen[1] is None:
        return {}
    test = mcnemar(chosen[0] == labels, chosen[1] == labels)
    low, high = drop_interval(test.only_reference, test.only_changed, len(labels))
    value = (test.only_changed - test.only_reference) / len(labels)
    told = {"only_before": test.only_reference, "only_after": test.only_changed, "p": test.p}
    return {"change": _change(value, -high, -low, test.p < ALPHA), "mcnemar": told}


def _unpaired(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any] | None:
    """The change of a figure between two independent sets of samples.

    From the two figures' own intervals by the method of variance estimates recovery: of Wilson intervals that is
    Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10. Wider than a
    paired one, since the samples differ too.
    """
    if None in (before["low"], after["low"], before["high"], after["high"]):
        return None
    value = after["value"] - before["value"]
    low = value - hypot(after["value"] - after["low"], before["high"] - before["value"])
    high = value + hypot(after["high"] - after["value"], before["value"] - before["low"])
    return _change(value, low, high, not low <= 0 <= high)


def _change(value: float, low: float, high: float, significant: bool) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "significant": significant}


def _latency(before: Mapping[str, Any], after: Mapping[str, Any], retimed: Retimed) -> dict[str, Any]:
    """Timed together, with their ratio; else what each run recorded, without one."""
    if retimed.timings:
        rows = [_together(theirs, ours) for theirs, ours in retimed.timings]
        return {"together": True, "reason": None, "rows": rows}
    places = {_place(timing): timing for timing in before["latency"]}
    rows = [
        {**_where(timing), **_pair(places[_place(timing)]["p50_ms"], timing["p50_ms"]), "speedup": None, "status": "ok"}
        for timing in after["latency"]
        if _place(timing) in places
    ]
    return {"together": False, "reason": retimed.reason, "rows": rows}


def _together(before: Timing, after: Timing) -> dict[str, Any]:
    ran = before.p50_ms is not None and after.p50_ms is not None
    where = {"provider": after.provider, "batch": after.batch, "threads": after.threads}
    status = next((timing.status for timing in (before, after) if timing.p50_ms is None), "ok")
    ratio = asdict(speedup(before, after)) if ran else None
    return {**where, **_pair(before.p50_ms, after.p50_ms), "speedup": ratio, "status": status}


def _where(timing: Mapping[str, Any]) -> dict[str, Any]:
    return {key: timing[key] for key in ("provider", "batch", "threads")}


def _place(timing: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(_where(timing).values())


def options_of(report: Report) -> dict[str, Any]:
    """Every option that decided the run, by its full name."""
    own = {"objective": report["objective"], "seed": report["seed"], "max_drop": report["verdict"]["max_drop"]}
    own |= {f"data.{key}": report["data"][key] for key in ("name", "sha256", "test")}
    for stage in report["stages"]:
        own[f"{stage['stage']}.skipped"] = stage["skipped"]
        own |= _flat(stage["config"], stage["stage"])
    return own


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}.{key}") if isinstance(value, Mapping) else {f"{prefix}.{key}": value}
    return found


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = dict.fromkeys((*before, *after))
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return [{"name": name, **_pair(*pair)} for name, pair in pairs.items() if not _alike(*pair)]


def _alike(before: Any, after: Any) -> bool:
    """Whether two values mean the same; one where earlier versions took no list is a list of one."""
    return bool(before == after or [before] == after or before == [after])


def _variants(before: Report, after: Report) -> list[dict[str, Any]]:
    """Each variant of either run: bytes and the figure of both, None where it was not made."""
    runs = [{variant["name"]: variant for variant in report["variants"]} for report in (before, after)]
    return [
        {
            "name": name,
            "zip_bytes": _pair(*(run[name]["zip_bytes"] if name in run else None for run in runs)),
            "figure": _pair(*(_figure(run[name])["value"] if name in run else None for run in runs)),
        }
        for name in dict.fromkeys((*runs[0], *runs[1]))
    ]


def common_places(before: Report, after: Report) -> Sequence[Mapping[str, Any]]:
    """Where both runs timed what they ship, on a provider that ran: what a comparison measures again."""
    ran = {_place(timing) for timing in shipped_entry(before)["latency"] if timing["p50_ms"] is not None}
    there = [timing for timing in shipped_entry(after)["latency"] if timing["p50_ms"] is not None]
    return [_where(timing) for timing in there if _place(timing) in ran] or [_where(timing) for timing in there[:1]]
