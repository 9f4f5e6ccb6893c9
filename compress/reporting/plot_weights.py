"""Pictures of weights: what each layer's are worth, how many there are, and how large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from compress.reporting.plots import QUIET, colour, line_style, new_figure, short, tidy
from compress.sparsity.sensitivity import LayerSensitivity, Sensitivity, Suggestion
from compress.sparsity.weights_summary import LayerWeights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 10  # layers with a colour and a name: with more the lines cannot be told apart
PANELS = 11  # layers with a histogram of their own: three rows of four with the one of all layers
NAME_SIZE = 28  # characters of a layer's name at most


def plot_sensitivity(sensitivity: Sensitivity, suggestion: Suggestion | None = None) -> Figure:
    """Accuracy against sparsity, a line a layer; the most sensitive ones are named, a dot is the suggested sparsity."""
    figure = new_figure(9, 5)
    axes = figure.subplots()
    ranked = most_sensitive(sensitivity)
    for number, layer in reversed(list(enumerate(ranked))):  # the most sensitive one is drawn last, over the others
        named = number < NAMED
        paint = colour(number) if named else QUIET
        style = line_style(number) if named else "-"
        label = f"{short(layer.name, NAME_SIZE)} ({layer.weights:,})" if named else None
        axes.plot(sensitivity.rates, layer.accuracy, linestyle=style, color=paint, label=label, linewidth=1.6)
        if suggestion is not None:
            share = suggestion.layers[layer.name]
            height = float(np.interp(share, (0, *sensitivity.rates), (sensitivity.baseline, *layer.accuracy)))
            axes.plot([share], [height], "o", color=paint, markersize=6 if named else 3, markeredgecolor="white")
    axes.axhline(sensitivity.baseline, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("sparsity of this layer alone, no retraining")
    axes.set_ylabel(f"{sensitivity.measured_in} (n = {sensitivity.n:,})")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_title(f"{_count(len(ranked))}; dotted: {sensitivity.baseline:.4f} with all weights")
    tidy(axes)
    _name_lines(figure, axes, len(ranked), suggestion)
    return figure


def most_sensitive(sensitivity: Sensitivity) -> list[LayerSensitivity]:
    """The layers by the area between their curve and the baseline, the largest first."""

    def lost(layer: LayerSensitivity) -> float:
        drops = [sensitivity.baseline - accuracy for accuracy in layer.accuracy]
        return float(np.trapezoid((0.0, *drops), (0.0, *sensitivity.rates)))

    return sorted(sensitivity.layers, key=lost, reverse=True)


def plot_parameters(layers: Sequence[LayerWeights]) -> Figure:
    """Weights a layer as bars: all of them pale, those that stay in colour."""
    figure = new_figure(9, 1.3 + 0.27 * len(layers))
    axes = figure.subplots()
    rows = range(len(layers))
    axes.barh(rows, [layer.weights for layer in layers], color=QUIET, label="weights")
    axes.barh(rows, [layer.nonzero for layer in layers], color=colour(0), label="of them not zero")
    for row, layer in enumerate(layers):
        share = layer.nonzero / max(1, layer.weights)
        text = f" {layer.nonzero:,} of {layer.weights:,} ({share:.1%})"
        axes.text(layer.weights, row, text, va="center", fontsize=8)
    axes.set_yticks(rows, [short(layer.name, NAME_SIZE) for layer in layers], fontsize=8)
    axes.set_ylim(len(layers) - 0.4, -0.6)  # the first layer at the top
    axes.set_xlim(0, 1.4 * max(layer.weights for layer in layers))  # room for the text of the longest bar
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("weights")
    tidy(axes)
    axes.grid(visible=False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def plot_histograms(layers: Sequence[LayerWeights], together: LayerWeights | None = None) -> Figure:
    """Weight histograms before and after, of all layers together and of the largest ones, in the model's order."""
    largest = sorted(layers, key=lambda layer: layer.weights, reverse=True)[:PANELS]
    shown = [*([together] if together is not None else []), *(layer for layer in layers if layer in largest)]
    columns = min(4, len(shown)) if len(shown) != 6 else 3
    rows = -(-len(shown) // columns)
    figure = new_figure(2.7 * columns + 0.6, 2.1 * rows + 0.7)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, layer in zip(grid.flat, shown, strict=False):
        _draw_histogram(axes, layer)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel("weight (zeros are not counted)", fontsize=9)
    figure.supylabel("weights, logarithmic", fontsize=9)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def _draw_histogram(axes: Axes, layer: LayerWeights) -> None:
    axes.stairs(layer.counts_before, layer.edges, fill=True, color=QUIET, label="before")
    axes.stairs(layer.counts_after, layer.edges, fill=True, color=colour(0), alpha=0.85, label="after")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    left = layer.nonzero / max(1, layer.weights)
    axes.set_title(f"{short(layer.name, NAME_SIZE)}\n{layer.weights:,}, {left:.1%} left")
    tidy(axes)


def _name_lines(figure: Figure, axes: Axes, count: int, suggestion: Suggestion | None) -> None:
    """The legend beside the lines, the most sensitive layer first."""
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    handles, labels = handles[::-1], labels[::-1]
    if count > NAMED:
        handles.append(Line2D([], [], color=QUIET))
        labels.append(f"{count - NAMED} others")
    if suggestion is not None:
        handles.append(Line2D([], [], color="black", marker="o", linestyle=""))
        labels.append("suggested")
    title = "most sensitive first (weights)"
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8, title=title, title_fontsize=8)


def _count(layers: int) -> str:
    return f"{layers} layers" if layers != 1 else "1 layer"
