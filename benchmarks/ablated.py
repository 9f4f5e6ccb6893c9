"""What ablations came to: read from the runs' reports, timed together, written as JSON and as tables."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.ablation_table import FULL, Ablation, Mode
from compress.data import Data
from compress.files import write_atomically
from compress.measurement import Accuracy, Ratio, speedup
from compress.measurement.accuracy import feeds
from compress.measurement.latency import Job, Plan, time_together

OK = "ok"
_TITLES: Mapping[Mode, str] = {
    "budget": "Within the same budget: what is worse costs bytes",
    "amount": "At the amounts of the full run, float: what is worse costs accuracy",
    "weights": "The full run's weights as one int8 file, before anything is done about what it lost",
}


@dataclass(frozen=True)
class Row:
    """One ablation at one seed, in one mode; None: not known, and ``status`` says why. A drop above 0 is a loss."""

    workload: str
    seed: int
    ablation: str
    mode: Mode
    status: str = OK
    variant: str | None = None  # of the run
    file: str | None = None  # in the folder of the setting's runs
    raw_bytes: int | None = None
    zip_bytes: int | None = None  # of the variant, without what shipping adds to it
    parameters: int | None = None
    nonzero: int | None = None
    validation_drop: float | None = None  # against the original model; it selects
    test: Accuracy | None = None  # is reported alone
    test_drop: float | None = None
    drop_interval: tuple[float, float] | None = None  # of test_drop: 95 %, paired
    fidelity: float | None = None  # share of test samples with the original's top-1
    seconds: float | None = None  # of the run's stages, those taken over from the full run included
    p50_ms: float | None = None
    p50_ratio: Ratio | None = None  # p50 of this file / of the full run's: above 1 is slower

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def found_in(row: Row, report: Mapping[str, Any], ablation: Ablation, directory: Path, max_drop: float) -> Row:
    """``row`` with what a run's report says of the variant that it is about.

    Args:
        report: report.json.
        directory: Of the run.
        max_drop: On validation, of a variant that may ship.
    """
    variant = _variant(report["variants"], report["shipped"], row.mode, ablation, max_drop)
    if variant is None:
        return replace(row, status="the run has no such file")
    interval = variant.get("drop_interval")
    return replace(
        row,
        variant=variant["name"],
        file=f"{directory.name}/{variant['file']}",
        test=Accuracy(**variant["accuracy"]),
        validation_drop=variant["validation"]["drop"],
        test_drop=variant["drop"],
        drop_interval=None if interval is None else (interval["low"], interval["high"]),
        seconds=round(sum(stage["seconds"] for stage in report["stages"]), 1),
        **{name: variant[name] for name in ("raw_bytes", "zip_bytes", "parameters", "nonzero", "fidelity")},
    )


def _variant(
    variants: Sequence[Mapping[str, Any]], shipped: str, mode: Mode, ablation: Ablation, max_drop: float
) -> Mapping[str, Any] | None:
    if mode == "amount":
        return [v for v in variants if v["name"].endswith("-fp32")][-1]
    if mode == "weights":
        return next((v for v in variants if fnmatchcase(v["name"], ablation.file or "")), None)
    if not ablation.left_out:
        return next(v for v in variants if v["name"] == shipped)
    may_ship = [v for v in variants if not any(fnmatchcase(v["name"], pattern) for pattern in ablation.left_out)]
    within = [v for v in may_ship if v is variants[0] or v["validation"]["drop"] <= max_drop + 1e-9]
    return min(within, key=lambda v: int(v["zip_bytes"]))


def timed(rows: Sequence[Row], folder: Path, data: Data, plan: Plan) -> list[Row]:
    """The rows of one seed, with the latency of the files within the budget, all in turns; equal files are one.

    Args:
        folder: What ``file`` is in.
        data: Its first calibration sample is what the files are called with.
        plan: One sample a call.
    """
    asked = {row.file: (folder / row.file).read_bytes() for row in rows if row.mode == "budget" and row.file}
    full = next((row.file for row in rows if row.ablation == FULL and row.file in asked), None)
    if full is None:
        return list(rows)
    sample = feeds(data.inputs, data.calibration.fetch(data.calibration.indices[:1])[0])
    paths = {content: (folder / name).resolve() for name, content in asked.items() if name}
    found = dict(zip(paths, time_together([Job(path, sample) for path in paths.values()], plan), strict=True))
    reference, result = found[asked[full]], []
    for row in rows:
        timing = found[asked[row.file]] if row.mode == "budget" and row.file else None
        if timing is not None and timing.p50_ms is not None and reference.p50_ms is not None:
            row = replace(row, p50_ms=timing.p50_ms, p50_ratio=speedup(timing, reference))
        result.append(row)
    return result


def write(
    rows: Sequence[Row],
    workload: str,
    chosen: Sequence[Ablation],
    out: Path,
    budget: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> Path:
    """Write ablations-<workload>-seeds<k>-<cpu>-threads1.json and .md; return the first.

    Args:
        rows: Of all seeds.
        budget: What every run had: epochs, min_steps, max_drop.
        machine: Of `compress.measurement.environment.environment(threads=1)`, and the versions.
    """
    cpu = re.sub(r"\W+", "-", machine["cpu"].lower()).strip("-") + ("-vnni" if "vnni" in machine["isa"] else "")
    seeds = sorted({row.seed for row in rows})
    target = out / f"ablations-{workload}-seeds{len(seeds)}-{cpu}-threads1.json"
    report = {
        "schema": 1,
        "command": shlex.join(["python", "-m", "benchmarks.ablations", "--workload", workload]),
        "workload": workload,
        "seeds": seeds,
        "budget": budget,
        "environment": machine,
        "ablations": [asdict(ablation) for ablation in chosen],
        "rows": [row.to_dict() for row in rows],
    }
    write_atomically(target, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    told = (
        f"\n{machine['cpu']} ({', '.join(machine['isa'])}), 1 thread, batch 1, onnxruntime {machine['onnxruntime']}.\n"
    )
    write_atomically(target.with_suffix(".md"), (markdown(rows, workload, chosen) + told).encode())
    return target


def markdown(rows: Sequence[Row], workload: str, chosen: Sequence[Ablation]) -> str:
    """One table a mode: a line an ablation, the full run first."""
    seeds = sorted({row.seed for row in rows})
    brackets = (
        "95 % intervals in brackets"
        if len(seeds) == 1
        else f"the mean of {len(seeds)} seeds, its 95 % interval (t) in brackets"
    )
    parts = [f"**{workload}**: {brackets}; × is against the full run, drops are against the original model"]
    for mode, title in _TITLES.items():
        lines = [line for ablation in chosen if (line := _line(rows, ablation, mode))]
        if lines:
            parts += ["", f"{title}:", "", f"| {' | '.join(_HEAD[mode])} |", f"|{'---|' * len(_HEAD[mode])}", *lines]
    return "\n".join(parts) + "\n"


_HEAD: Mapping[Mode, tuple[str, ...]] = {
    "budget": ("", "zip bytes", "× zip", "× p50", "test accuracy", "drop on validation", "what ships"),
    "amount": ("", "zip bytes", "× zip", "test accuracy", "drop on test", "drop on validation"),
    "weights": ("", "zip bytes", "× zip", "test accuracy", "drop on validation", "same top-1"),
}


def _line(rows: Sequence[Row], ablation: Ablation, mode: Mode) -> str | None:
    """The line of one ablation; None where it is not of this table."""
    mine = [row for row in rows if (row.ablation, row.mode) == (ablation.name, mode)]
    if not mine:
        return None
    head, width = f"{ablation.name}: {ablation.change}", len(_HEAD[mode])
    if failed := sorted({row.status for row in mine if row.status != OK}):
        return f"| {' | '.join([head, '; '.join(failed), *['–'] * (width - 2)])} |"
    full = {row.seed: row for row in rows if (row.ablation, row.mode) == (FULL, mode)}
    zips = [float(row.zip_bytes or 0) for row in mine]
    against = [size / float(full[row.seed].zip_bytes or 1) for size, row in zip(zips, mine, strict=True)]
    cells = [head, f"{np.mean(zips):,.0f}", f"{float(stats.gmean(against)):.2f}{_range(against)}"]
    drops = _mean([row.validation_drop for row in mine], "+.4f")
    if mode == "budget":
        cells += [_p50(mine), _accuracy(mine), drops, ", ".join(dict.fromkeys(row.variant or "–" for row in mine))]
    elif mode == "amount":
        cells += [_accuracy(mine), _test_drop(mine), drops]
    else:
        cells += [_accuracy(mine), drops, _mean([row.fidelity for row in mine], ".4f")]
    return f"| {' | '.join(cells)} |"


def _accuracy(rows: Sequence[Row]) -> str:
    first = rows[0].test
    if len(rows) == 1 and first is not None:
        return f"{first.value:.4f} [{first.low:.4f}, {first.high:.4f}]"
    return _mean([None if row.test is None else row.test.value for row in rows], ".4f")


def _test_drop(rows: Sequence[Row]) -> str:
    if len(rows) == 1 and rows[0].test_drop is not None and rows[0].drop_interval is not None:
        low, high = rows[0].drop_interval
        return f"{rows[0].test_drop:+.4f} [{low:+.4f}, {high:+.4f}]"
    return _mean([row.test_drop for row in rows], "+.4f")


def _p50(rows: Sequence[Row]) -> str:
    ratios = [row.p50_ratio for row in rows if row.p50_ratio is not None]
    if not ratios:
        return "–"
    if len(ratios) == 1:
        return f"{ratios[0].value:.2f} [{ratios[0].low:.2f}, {ratios[0].high:.2f}]"
    values = [ratio.value for ratio in ratios]
    return f"{float(stats.gmean(values)):.2f}{_range(values)}"


def _range(values: Sequence[float]) -> str:
    """The lowest and the highest of several seeds."""
    return f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""


def _mean(values: Sequence[float | None], form: str) -> str:
    """The mean over seeds and its 95 % t interval."""
    known = np.array([value for value in values if value is not None])
    if len(known) == 0:
        return "–"
    if len(known) == 1 or np.ptp(known) == 0:
        return format(known.mean(), form)
    low, high = stats.t.interval(0.95, len(known) - 1, known.mean(), stats.sem(known))
    return f"{known.mean():{form}} [{low:{form}}, {high:{form}}]"
