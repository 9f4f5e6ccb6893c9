"""What a recursive reduction tried and kept, round by round: as plain values and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One candidate: a group with fewer channels, retrained and evaluated."""

    group: str
    removed: int  # channels that left in this trial
    importance: float  # share 0..1 of the group's importance that left with them
    loss: float  # held-out
    accuracy: float  # held-out, 0..1
    parameters: int  # of the whole model
    capacity: int  # memory-equivalent, bits
    within: bool  # loss and accuracy are within the thresholds
    seconds: float


@dataclass(frozen=True)
class Round:
    """The model after one round; round 0 is the original."""

    number: int
    widths: Mapping[str, int]  # channels left in each reducible group
    loss: float
    accuracy: float
    parameters: int
    capacity: int  # memory-equivalent, bits
    seconds: float
    chosen: str | None = None  # the group that was reduced; None: no candidate was within the thresholds
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class History:
    """A whole reduction. The limits hold in every round: they come from the original, never from the round before."""

    loss_limit: float  # a candidate's loss may be this at most
    accuracy_limit: float  # and its accuracy this at least
    rounds: tuple[Round, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to history.json: a loss that is not finite is null."""
        plain: dict[str, Any] = _finite(dataclasses.asdict(self))
        return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_csv(history: History) -> str:
    """One line a round: its figures, then the width of each group."""
    names = list(history.rounds[0].widths)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    figures = ("round", "chosen", "loss", "accuracy", "capacity_bits", "parameters", "candidates", "seconds")
    writer.writerow([*figures, *(f"width of {name}" for name in names)])
    for r in history.rounds:
        values = (r.number, r.chosen or "", f"{r.loss:.6f}", f"{r.accuracy:.6f}", r.capacity, r.parameters)
        writer.writerow([*values, len(r.trials), f"{r.seconds:.2f}", *(r.widths[name] for name in names)])
    return table.getvalue()
