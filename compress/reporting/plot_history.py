"""The history of a recursive reduction as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress.pruning.history import History, Round
from compress.reporting.plots import colour, line_style, new_figure, short, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTHS_SHOWN = 12  # groups drawn in one picture: with more of them the lines cannot be told apart


def plot_history(history: History) -> Figure:
    """Layer widths, loss and accuracy with their limits, and capacity, over the rounds."""
    figure = new_figure(7, 9)
    widths, loss, capacity = figure.subplots(3, 1, sharex=True)
    numbers = [r.number for r in history.rounds]
    _draw_widths(widths, history.rounds)
    _draw_limits(loss, history)
    first = history.rounds[0]
    shares = (
        ([r.capacity for r in history.rounds], f"capacity (of {first.capacity:,} bits)"),
        ([r.parameters for r in history.rounds], f"parameters (of {first.parameters:,})"),
    )
    for number, (values, label) in enumerate(shares):
        share = [value / values[0] for value in values]
        capacity.step(numbers, share, where="post", label=label, color=colour(number))
    capacity.set_yscale("log")
    capacity.set_ylabel("share of the original")
    capacity.set_xlabel("round")
    capacity.xaxis.get_major_locator().set_params(integer=True)
    capacity.legend()
    for axes in (widths, capacity):
        tidy(axes)
    return figure


def _draw_widths(axes: Axes, rounds: Sequence[Round]) -> None:
    numbers = [r.number for r in rounds]
    changed = sorted(rounds[0].widths, key=lambda name: rounds[-1].widths[name] - rounds[0].widths[name])
    for i, name in enumerate(changed[:WIDTHS_SHOWN]):
        widths = [r.widths[name] for r in rounds]
        axes.step(numbers, widths, where="post", label=short(name), color=colour(i), linestyle=line_style(i))
    axes.set_yscale("log")
    axes.set_ylabel("channels")
    axes.legend(fontsize="small")


def _draw_limits(axes: Axes, history: History) -> None:
    numbers = [r.number for r in history.rounds]
    beside = axes.twinx()
    (losses,) = axes.plot(numbers, [r.loss for r in history.rounds], ".-", color=colour(0), label="loss")
    (right,) = beside.plot(numbers, [r.accuracy for r in history.rounds], ".-", color=colour(1), label="accuracy")
    axes.axhline(history.loss_limit, color=colour(0), linestyle=":")
    beside.axhline(history.accuracy_limit, color=colour(1), linestyle=":")
    axes.set_ylabel("held-out loss")
    beside.set_ylabel("held-out accuracy")
    beside.legend(handles=[losses, right])  # the upper of the two axes: nothing is drawn over it
