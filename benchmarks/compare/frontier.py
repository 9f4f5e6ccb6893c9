"""Where this project stands beside its peers: the best files in one measure at a limit of another.

What is compared is selected on validation alone; test accuracy is reported of what was selected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.compare.row import OK, Row
from compress.errors import MeasurementError
from compress.measurement.intervals import mean_drop_interval
from compress.measurement.timing import Ratio, speedup

Metric = Literal["zip", "p50"]
Outcome = Literal["met", "ahead", "level", "behind", "none"]
Accuracy = Literal["higher", "level", "lower"]

# Ours / best peer: what this project sets out to reach.
TARGETS: dict[Metric, float] = {"zip": 1 / 2, "p50": 2 / 3}
DROPS = (0.01, 0.005, 0.0)  # of accuracy on validation, at which sizes and latencies are compared
_NO_PEER = "no file of any peer kept its accuracy"
EQUAL = 1e-9  # accuracies are shares of thousands of samples: closer than this are the same


@dataclass(frozen=True)
class Versus:
    """One of our entries against the best peer's file, in one metric, over the seeds that both have a file for."""

    entry: str  # ours
    metric: Metric
    seeds: tuple[int, ...] = ()
    files: tuple[str, ...] = ()  # ours, for each seed
    peers: tuple[str, ...] = ()  # "entry file" of the best peer, for each seed
    ours: tuple[float, ...] = ()  # bytes or milliseconds, for each seed
    theirs: tuple[float, ...] = ()
    ratio: float | None = None  # ours / theirs, the geometric mean over seeds: below 1 ours is better
    low: float | None = None  # one seed: 95 % interval of a p50 ratio; several: the smallest and the largest
    high: float | None = None
    outcome: Outcome = "none"
    difference: float | None = None  # of test accuracy, ours - theirs, the mean over seeds: above 0 ours is better
    difference_low: float | None = None  # 95 %, over test samples
    difference_high: float | None = None
    accuracy: Accuracy | None = None
    reason: str = ""  # why there is no ratio, or not one for each seed

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Versus:
        """What `to_dict` made, also after JSON."""
        read: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in stored.items()}
        return cls(**read)


@dataclass(frozen=True)
class _Pair:
    """Our file and the best peer's, of one seed."""

    ours: Row
    peer: Row

    def ratio(self, metric: Metric) -> Ratio:
        """Ours / the peer's; of p50 round by round, with an interval, where both were timed in the same rounds."""
        ours, theirs = value_of(self.ours, metric), value_of(self.peer, metric)
        assert ours is not None
        assert theirs is not None
        quotient = ours / theirs
        if metric == "p50" and self.ours.latency is not None and self.peer.latency is not None:
            with suppress(MeasurementError):  # of other rounds: it stays a quotient, of which nothing sure is known
                return speedup(self.ours.latency, self.peer.latency)
        sure = metric == "zip" and quotient != 1
        return Ratio(quotient, quotient, quotient, sure)


def value_of(row: Row, metric: Metric) -> float | None:
    """Zipped bytes, or p50 in milliseconds."""
    return row.zip_bytes if metric == "zip" else row.p50_ms


def best(rows: Iterable[Row], metric: Metric) -> Row | None:
    """The smallest or fastest; of equals the one with the higher validation accuracy, then the first by name."""
    ranked = [
        (value, -(row.validation.value if row.validation else 0.0), row.entry, row.file or "", index, row)
        for index, row in enumerate(rows)
        if (value := value_of(row, metric)) is not None
    ]
    return min(ranked)[-1] if ranked else None


def best_peer(rows: Iterable[Row], metric: Metric) -> Row | None:
    """Among all files but ours that kept their accuracy: the dense model, as it is or in another runtime, is one."""
    return best((row for row in rows if row.kind != "own" and row.eligible), metric)


def most_accurate(rows: Iterable[Row], zip_bytes: float) -> Row | None:
    """The highest accuracy on validation among the files of at most so many bytes; of equals the smallest."""
    ranked = [
        (-row.validation.value, row.zip_bytes, row.entry, row.file or "", index, row)
        for index, row in enumerate(rows)
        if row.validation is not None and row.zip_bytes is not None and row.zip_bytes <= zip_bytes
    ]
    return min(ranked)[-1] if ranked else None


def within(rows: Iterable[Row], drop: float) -> list[Row]:
    """The files whose drop of accuracy on validation is at most so large."""
    return [row for row in rows if row.validation_drop is not None and row.validation_drop <= drop + EQUAL]


def all_versus(rows: Sequence[Row]) -> tuple[Versus, ...]:
    """Each of our entries in each metric, in the order of ``rows``."""
    ours = dict.fromkeys(row.entry for row in rows if row.kind == "own")
    return tuple(versus(rows, entry, metric) for entry in ours for metric in TARGETS)


def versus(rows: Sequence[Row], entry: str, metric: Metric) -> Versus:
    """One of our entries against the best peer of each seed.

    Args:
        rows: Of one workload, all seeds.
        entry: Ours.
        metric: What "best" is said of.
    """
    pairs: dict[int, _Pair] = {}
    missing: list[str] = []
    for seed in sorted({row.seed for row in rows}):
        found = [row for row in rows if row.seed == seed]
        ours = best((row for row in found if row.entry == entry and row.eligible), metric)
        peer = best_peer(found, metric)
        if ours is not None and peer is not None:
            pairs[seed] = _Pair(ours, peer)
        else:
            missing.append(f"seed {seed}: {_why_not(found, entry) if ours is None else _NO_PEER}")
    if not pairs:
        return Versus(entry, metric, reason="; ".join(missing))
    ratios = [pair.ratio(metric) for pair in pairs.values()]
    value = geometric_mean([ratio.value for ratio in ratios])
    low, high = (ratios[0].low, ratios[0].high) if len(ratios) == 1 else spread([ratio.value for ratio in ratios])
    return Versus(
        entry,
        metric,
        seeds=tuple(pairs),
        files=tuple(pair.ours.file or "" for pair in pairs.values()),
        peers=tuple(name_of(pair.peer) for pair in pairs.values()),
        ours=tuple(value_of(pair.ours, metric) or 0.0 for pair in pairs.values()),
        theirs=tuple(value_of(pair.peer, metric) or 0.0 for pair in pairs.values()),
        ratio=value,
        low=low,
        high=high,
        outcome=_outcome(value, low, high, any(ratio.significant for ratio in ratios), TARGETS[metric]),
        reason="; ".join(missing),
        **_accuracy(list(pairs.values())),
    )


def _why_not(rows: Sequence[Row], entry: str) -> str:
    """What became of an entry that has no file to compare."""
    found = [row for row in rows if row.entry == entry]
    wrong = [row.status for row in found if row.status != OK]
    return "not run" if not found else wrong[0] if wrong else "no file of this entry kept its accuracy"


def name_of(row: Row) -> str:
    """An entry and which of its files, where it is one of several."""
    return row.entry if row.file is None else f"{row.entry} {row.file}"


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean of ratios that is one over the mean of their inverses."""
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def spread(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _outcome(ratio: float, low: float, high: float, differs: bool, target: float) -> Outcome:
    """What the ratio ours / theirs says; ``differs``: it is none of chance, for one seed at least."""
    if ratio <= target:
        return "met"
    if not differs or low < 1 < high:
        return "level"
    return "ahead" if ratio < 1 else "behind"


def _accuracy(pairs: Sequence[_Pair]) -> dict[str, Any]:
    """The fields of `Versus` about test accuracy: means over the seeds, and the interval over test samples.

    Of one seed it is Tango's of two models that answered the same samples. Of several a sample counts once, with its
    mean over the seeds: adding up those of all seeds would count a hard sample once a seed.
    """
    tests = [(pair.ours.test, pair.peer.test) for pair in pairs]
    differences = [ours.value - theirs.value for ours, theirs in tests if ours is not None and theirs is not None]
    if len(differences) < len(pairs):
        return {}
    found: dict[str, Any] = {"difference": math.fsum(differences) / len(differences)}
    sides = [_mean_right([pair.ours for pair in pairs]), _mean_right([pair.peer for pair in pairs])]
    if sides[0] is None or sides[1] is None or sides[0].shape != sides[1].shape:
        return found
    interval = mean_drop_interval(sides[1], sides[0], seed=0)
    if interval is None:
        return found
    low, high = interval  # of theirs dropping to ours, turned round: how much higher ours is
    verdict: Accuracy = "higher" if high < 0 else "lower" if low > 0 else "level"
    return {**found, "difference_low": -high, "difference_high": -low, "accuracy": verdict}


def _mean_right(rows: Sequence[Row]) -> NDArray[np.float64] | None:
    """(N,) for each test sample the share of the rows that answer it rightly; None: not known of all."""
    answers = [row.right for row in rows if row.right is not None]
    if len(answers) < len(rows) or len({len(right) for right in answers}) != 1:
        return None
    mean: NDArray[np.float64] = np.mean(answers, axis=0, dtype=np.float64)
    return mean
