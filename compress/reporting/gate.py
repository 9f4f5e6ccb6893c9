"""The gate of a release: limits on what ships, each met or not, from the plain dict of report.json.

A limit is held against the bare figure. Where the 95 % interval of that figure holds the limit, another measurement
might have decided otherwise: the line carries a warning. With ``strict`` the worse end of the interval must meet the
limit, so that what passes does not owe it to the luck of one measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from typing import Annotated, Any

from pydantic import BeforeValidator

from compress.errors import RecipeError
from compress.measurement.sessions import PROVIDERS
from compress.measurement.timing import OK
from compress.reporting import format as fmt
from compress.reporting.choice import TOLERANCE
from compress.reporting.summary import shipped_bytes, shipped_entry
from compress.units import milliseconds, whole_bytes

Report = Mapping[str, Any]  # report.json
Reader = Callable[[Report, Mapping[str, Any], "Mapping[str, Any] | None"], "_Figure"]


def _or_none(read: Callable[[object], float]) -> BeforeValidator:
    return BeforeValidator(lambda value: None if value is None else read(value))


Milliseconds = Annotated[float | None, _or_none(milliseconds)]  # "5ms" too
Bytes = Annotated[int | None, _or_none(whole_bytes)]  # "1MB" too


@dataclass(frozen=True)
class Limits:
    """What a release asks of a run: the [check] table of compress.toml. None: not asked."""

    max_drop: float | None = None  # fraction -1..1 of the figure that the run was judged by
    min_accuracy: float | None = None  # 0..1, on test; of the user's own metric where the run has one, in its unit
    min_zip_ratio: float | None = None  # baseline raw bytes / shipped zip bytes
    min_speedup: float | None = None  # baseline p50 / shipped p50
    max_p50: Milliseconds = None  # ms, or a text with its unit: "3ms"
    max_p95: Milliseconds = None
    max_bytes: Bytes = None  # of model.onnx.zip, which is what is downloaded; or a text with its unit: "1MB"
    max_peak_memory: Bytes = None  # of the process that ran it
    provider: str | None = None  # which latency is meant: a key of `compress.measurement.PROVIDERS`; None: the first
    batch: int | None = None  # likewise
    threads: int | None = None  # likewise
    strict: bool = False  # the worse end of a figure's interval must meet the limit

    def __post_init__(self) -> None:
        problems = [
            f"{name.replace('_', '-')}={getattr(self, name)} must be {allowed}"
            for name, (allowed, holds) in _RANGES.items()
            if getattr(self, name) is not None and not holds(getattr(self, name))
        ]
        if problems:
            raise RecipeError("; ".join(problems))

    @property
    def asked(self) -> tuple[str, ...]:
        """The names of the limits that are set."""
        return tuple(name for name in LIMITS if getattr(self, name) is not None)


_RANGES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "max_drop": ("a fraction within -1..1 (one point is 0.01)", lambda value: -1 <= value <= 1),
    "min_accuracy": ("a finite number", isfinite),
    "min_zip_ratio": ("above 0", lambda value: value > 0),
    "min_speedup": ("above 0", lambda value: value > 0),
    "batch": ("at least 1", lambda value: value >= 1),
    "threads": ("at least 1", lambda value: value >= 1),
}


@dataclass(frozen=True)
class Line:
    """One limit, and whether what ships meets it."""

    name: str  # that of its option: max-drop; "files" for the files themselves
    limit: float | None  # None: "files"
    value: float | None  # None: not measured
    low: float | None  # 95 % interval; None: the figure is exact, or no interval was recorded
    high: float | None
    met: bool
    warning: bool  # met or not, the interval holds the limit: measuring again might decide otherwise
    sentence: str


@dataclass(frozen=True)
class _Figure:
    value: float | None
    low: float | None = None
    high: float | None = None
    about: str = ""  # what it is the figure of
    missing: str = ""  # why there is none
    exact: bool = False  # counted and not measured: it has no interval, and needs none


@dataclass(frozen=True)
class _Rule:
    read: Reader
    highest: bool  # the limit is the highest value allowed; else the lowest
    text: Callable[[float], str]


def check(report: Report, limits: Limits) -> tuple[Line, ...]:
    """Hold what ships against the limits.

    Returns:
        A line for each limit that is set, in the order of their fields.

    Raises:
        RecipeError: no limit is set, or no latency was measured that way.
    """
    if not limits.asked:
        raise RecipeError(f"nothing to check: set at least one of {', '.join(map(_option, LIMITS))}.")
    shipped = shipped_entry(report)
    timing = _timing(report, shipped, limits) if any(name in _LATENCY for name in limits.asked) else None
    return tuple(_line(name, getattr(limits, name), report, shipped, timing, limits.strict) for name in limits.asked)


def files_line(problems: Sequence[str], count: int) -> Line:
    """The line that says whether the files are those that were measured.

    Args:
        problems: One for each file that is not.
        count: Files that were looked at.
    """
    if problems:
        told = "; ".join(problems)
        return Line("files", None, None, None, None, False, False, f"files: not met, {told}.")
    told = f"files: met, sha256 of {fmt.count(count)} file{'s' if count != 1 else ''} as in manifest.json."
    return Line("files", None, None, None, None, True, False, told)


def passed(lines: Sequence[Line]) -> bool:
    """Whether every line is met."""
    return all(line.met for line in lines)


def as_dict(lines: Sequence[Line], report: Report) -> dict[str, Any]:
    """The outcome as plain values, for programs."""
    return {
        "schema": 1,
        "passed": passed(lines),
        "shipped": report["shipped"],
        "lines": [asdict(line) for line in lines],
    }


def _line(
    name: str, limit: float, report: Report, shipped: Mapping[str, Any], timing: Mapping[str, Any] | None, strict: bool
) -> Line:
    rule = LIMITS[name]
    figure = rule.read(report, shipped, timing)
    option = _option(name).removeprefix("--")
    asked = f"{option} {rule.text(limit)}"
    if figure.value is None:
        told = f"{asked}: not met, {figure.missing}."
        return Line(option, limit, None, None, None, False, False, told)
    unsure = _holds(figure, limit)
    worst = figure.high if rule.highest else figure.low
    unknown = strict and worst is None and not figure.exact
    met = not unknown and _meets(figure.value if not strict or worst is None else worst, limit, rule)
    told = f"{asked}: {'met' if met else 'not met'}, {figure.about} is {rule.text(figure.value)}"
    if rule.text(figure.value) == rule.text(limit) and abs(figure.value - limit) > TOLERANCE:
        told += f" ({figure.value:.6g})"
    if figure.low is not None and figure.high is not None:
        told += f" [{rule.text(figure.low)} to {rule.text(figure.high)}]"
    elif not figure.exact:
        told += ", without an interval: this run recorded none"
    if unknown:
        told += ", and --strict needs it"
    elif unsure:
        told += "; the limit lies inside the interval"
    return Line(option, limit, figure.value, figure.low, figure.high, met, unsure, f"{told}.")


def _holds(figure: _Figure, limit: float) -> bool:
    """Whether the limit lies inside the figure's interval, its ends included."""
    if figure.low is None or figure.high is None or figure.low == figure.high:
        return False
    return figure.low - TOLERANCE <= limit <= figure.high + TOLERANCE


def _meets(value: float, limit: float, rule: _Rule) -> bool:
    return value <= limit + TOLERANCE if rule.highest else value >= limit - TOLERANCE


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _timing(report: Report, shipped: Mapping[str, Any], limits: Limits) -> Mapping[str, Any]:
    """The latency that is meant: the first asked-for one that the baseline ran on, else the first asked-for one."""
    wanted = {"provider": limits.provider and limits.provider.lower(), "batch": limits.batch, "threads": limits.threads}
    fits = [
        (theirs, ours)
        for theirs, ours in zip(report["variants"][0]["latency"], shipped["latency"], strict=True)
        if all(value is None or _where(ours)[key] == value for key, value in wanted.items())
    ]
    if not fits:
        asked = ", ".join(f"{key} {value}" for key, value in wanted.items() if value is not None)
        there = "; ".join(_told(timing) for timing in shipped["latency"]) or "nothing"
        raise RecipeError(f"latency on {asked or 'any provider'} was not measured; this run measured {there}.")
    return next((ours for theirs, ours in fits if theirs["p50_ms"] is not None), fits[0][1])


def _where(timing: Mapping[str, Any]) -> dict[str, Any]:
    label = timing["provider"]
    key = next((key for key, provider in PROVIDERS.items() if provider.label == label), label)
    return {"provider": key, "batch": timing["batch"], "threads": timing["threads"]}


def _told(timing: Mapping[str, Any]) -> str:
    where = _where(timing)
    return f"{where['provider']}, batch {where['batch']}, threads {where['threads']}"


def _drop(report: Report, shipped: Mapping[str, Any], timing: Mapping[str, Any] | None) -> _Figure:
    verdict = report["verdict"]
    about = f"the drop of {verdict.get('measured_in', 'accuracy')} of {shipped['name']}"
    if shipped["name"] == report["variants"][0]["name"]:  # against itself
        return _Figure(verdict["drop"], about=about, exact=True)
    return _with_interval(verdict["drop"], verdict.get("drop_interval"), about)


def _accuracy(report: Report, shipped: Mapping[str, Any], timing: Mapping[str, Any] | None) -> _Figure:
    found = shipped.get("metric") or shipped["accuracy"]
    if found is None:
        told = f"without labels there is no accuracy, only a fidelity of {fmt.fraction(shipped['fidelity'])}"
        return _Figure(None, missing=told)
    return _with_interval(found["value"], found, f"the {found.get('name', 'accuracy')} of {shipped['name']}")


def _zip_ratio(report: Report, shipped: Mapping[str, Any], timing: Mapping[str, Any] | None) -> _Figure:
    return _Figure(report["verdict"]["zip_ratio"], about="the zip ratio", exact=True)


def _bytes(report: Report, shipped: Mapping[str, Any], timing: Mapping[str, Any] | None) -> _Figure:
    return _Figure(shipped_bytes(report), about="model.onnx.zip", exact=True)


def _speedup(report: Report, shipped: Mapping[str, Any], timing: Mapping[str, Any] | None) -> _Figure:
    assert timing is not None
    gain = timing["speedup"]
    if gain is None:
        return _Figure(None, missing=_absent(timing, "speed-up"))
    if shipped["name"] == report["variants"][0]["name"]:
        return _Figure(gain["value"], about=f"the speed-up on {_told(timing)}", exact=True)
    return _with_interval(gain["value"], gain, f"the speed-up on {_told(timing)}")


def _percentile(name: str, report: Report, shipped: Mapping[str, Any], timing: Mapping[str, Any] | None) -> _Figure:
    assert timing is not None
    value = timing.get(f"{name}_ms")
    if value is None:
        return _Figure(None, missing=_absent(timing, name))
    return _with_interval(value, timing.get(f"{name}_interval"), f"{name} on {_told(timing)}")


def _peak_memory(report: Report, shipped: Mapping[str, Any], timing: Mapping[str, Any] | None) -> _Figure:
    assert timing is not None
    value = timing.get("peak_bytes")
    if value is None:
        return _Figure(None, missing=_absent(timing, "peak memory"))
    return _Figure(value, about=f"peak memory on {_told(timing)}", exact=True)


def _with_interval(value: float, interval: Mapping[str, Any] | None, about: str) -> _Figure:
    low, high = (None, None) if interval is None else (interval["low"], interval["high"])
    return _Figure(value, low, high, about)


def _absent(timing: Mapping[str, Any], what: str) -> str:
    if timing["status"] != OK:
        return f"{_told(timing)} could not run: {timing['status'].rstrip('.')}"
    return f"this run recorded no {what} on {_told(timing)}"


LIMITS: Mapping[str, _Rule] = {
    "max_drop": _Rule(_drop, True, fmt.fraction),
    "min_accuracy": _Rule(_accuracy, False, fmt.fraction),
    "min_zip_ratio": _Rule(_zip_ratio, False, fmt.ratio),
    "min_speedup": _Rule(_speedup, False, fmt.ratio),
    "max_p50": _Rule(partial(_percentile, "p50"), True, fmt.duration),
    "max_p95": _Rule(partial(_percentile, "p95"), True, fmt.duration),
    "max_bytes": _Rule(_bytes, True, lambda count: f"{fmt.size(int(count))} ({fmt.count(int(count))} bytes)"),
    "max_peak_memory": _Rule(_peak_memory, True, lambda count: fmt.size(int(count))),
}
_LATENCY = ("min_speedup", "max_p50", "max_p95", "max_peak_memory")
