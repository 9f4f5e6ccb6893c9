"""What is known of one file of the comparison, once it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compress.measurement import Accuracy, Ratio, Timing

Kind = Literal["own", "peer", "dense", "limit"]
OK = "ok"


@dataclass(frozen=True)
class Row:
    """One file of one entry, measured; an entry that failed has one row, without a file and with its error.

    Drops are those of the dense float file minus these: above 0 is a loss.
    """

    workload: str
    seed: int
    entry: str  # a name of `benchmarks.compare.entries`
    kind: Kind
    file: str | None  # in the entry's folder
    settings: str  # in words and numbers
    status: str = OK  # else what went wrong, in one line
    raw_bytes: int | None = None
    zip_bytes: int | None = None  # deflate 9
    parameters: int | None = None
    nonzero: int | None = None
    validation: Accuracy | None = None  # selects
    test: Accuracy | None = None  # is reported, and selects nothing
    validation_drop: float | None = None
    test_drop: float | None = None
    drop_interval: tuple[float, float] | None = None  # of test_drop: 95 %, paired (Tango 1998)
    p50_ms: float | None = None  # batch 1
    p50_interval: tuple[float, float] | None = None  # 95 %
    speedup: Ratio | None = None  # p50 of the dense float file / of this one, round by round
    latency: Timing | None = None  # kept without its samples, but for the median of each round
    eligible: bool = False  # its validation_drop is within the budget's max_drop
    seconds: float | None = None  # that making it took, its sources included
    cpu_seconds: float | None = None  # of all cores
    steps: int | None = None  # optimizer steps that were spent, search included
    lines: int | None = None  # that a user has to write
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""
    right: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)  # (N,) for each test sample

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without ``right`` and without the samples of ``latency``."""
        latency = None if self.latency is None else self.latency.to_dict()
        stored = asdict(replace(self, latency=None, right=None, versions=dict(self.versions)))
        del stored["right"]
        if latency is not None:
            del latency["quantiles_ms"]  # a third of the file
        return {**stored, "latency": latency}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Row:
        """What `to_dict` made."""
        kinds: dict[str, type] = {"validation": Accuracy, "test": Accuracy, "speedup": Ratio}
        read: dict[str, Any] = {
            name: kinds[name](**value) for name, value in stored.items() if name in kinds and value is not None
        }
        for name in ("drop_interval", "p50_interval"):
            read[name] = None if stored.get(name) is None else tuple(stored[name])
        if stored.get("latency") is not None:
            read["latency"] = Timing.from_dict(stored["latency"])
        given: dict[str, Any] = {**stored, **read}
        return cls(**given)
