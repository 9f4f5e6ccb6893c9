"""What a recursive reduction tried and kept, round by round: as plain values, as CSV and as a picture."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from compress.errors import PruningError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTHS_SHOWN = 12  # groups drawn in one picture: with more of them the lines cannot be told apart


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


def plot(history: History, kind: Literal["svg", "png"]) -> bytes:
    """Layer widths, loss and accuracy with their limits, and capacity, over the rounds.

    Raises:
        PruningError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PruningError(
            "a picture of the history needs matplotlib. Install it with: pip install 'compress-pipeline[plots]'."
        ) from error
    figure = Figure(figsize=(7, 9), layout="constrained")
    widths, loss, capacity = figure.subplots(3, 1, sharex=True)
    numbers = [r.number for r in history.rounds]
    _draw_widths(widths, history.rounds)
    _draw_limits(loss, history)
    first = history.rounds[0]
    _draw_share(capacity, numbers, [r.capacity for r in history.rounds], f"capacity (of {first.capacity:,} bits)")
    _draw_share(capacity, numbers, [r.parameters for r in history.rounds], f"parameters (of {first.parameters:,})")
    capacity.set_ylabel("share of the original")
    capacity.set_xlabel("round")
    capacity.xaxis.get_major_locator().set_params(integer=True)
    capacity.legend()
    picture = io.BytesIO()
    with rc_context({"svg.hashsalt": "compress"}):  # the same history gives the same file
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(picture, format=kind, dpi=120, metadata=metadata)
    return picture.getvalue()


def _draw_widths(axes: Axes, rounds: Sequence[Round]) -> None:
    numbers = [r.number for r in rounds]
    changed = sorted(rounds[0].widths, key=lambda name: rounds[-1].widths[name] - rounds[0].widths[name])
    for name in changed[:WIDTHS_SHOWN]:
        axes.step(numbers, [r.widths[name] for r in rounds], where="post", label=name)
    axes.set_yscale("log")
    axes.set_ylabel("channels")
    axes.legend(fontsize="small")


def _draw_limits(axes: Axes, history: History) -> None:
    numbers = [r.number for r in history.rounds]
    beside = axes.twinx()
    (losses,) = axes.plot(numbers, [r.loss for r in history.rounds], "C0.-", label="loss")
    (accuracies,) = beside.plot(numbers, [r.accuracy for r in history.rounds], "C1.-", label="accuracy")
    axes.axhline(history.loss_limit, color="C0", linestyle=":")
    beside.axhline(history.accuracy_limit, color="C1", linestyle=":")
    axes.set_ylabel("held-out loss")
    beside.set_ylabel("held-out accuracy")
    beside.legend(handles=[losses, accuracies])  # the upper of the two axes: nothing is drawn over it


def _draw_share(axes: Axes, numbers: Sequence[int], values: Sequence[int], label: str) -> None:
    axes.step(numbers, [value / values[0] for value in values], where="post", label=label)
    axes.set_yscale("log")
