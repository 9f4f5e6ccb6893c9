"""Training with and without pruning as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.reporting.comparison_report import ARMS, arms_of
from compress.reporting.plots import QUIET, colour, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = {"accuracy": "validation accuracy", "loss": "training loss", "sparsity": "share of the weights removed"}


def plot_comparison(report: Mapping[str, Any]) -> Figure:
    """Accuracy, loss and sparsity over the epochs, every seed thin and their mean bold, and the drop of each seed.

    Args:
        report: comparison.json.
    """
    figure = new_figure(10, 7)
    panels = figure.subplots(2, 2).ravel()
    for axes, (key, label) in zip(panels, FIGURES.items(), strict=False):
        for number, name in enumerate(ARMS):
            _draw_course(axes, key, ARMS[name], arms_of(report, name), number)
        axes.set_ylabel(label)
        axes.set_xlabel("epoch")
        tidy(axes)
    panels[1].set_yscale("log")
    panels[2].set_ylim(-0.02, 1.02)
    panels[0].legend()
    _draw_drops(panels[3], report)
    return figure


def _draw_course(axes: Axes, key: str, label: str, arms: Sequence[Mapping[str, Any]], number: int) -> None:
    moments = [[moment for moment in arm["history"] if moment[key] is not None] for arm in arms]
    epochs = [moment["epoch"] for moment in moments[0]]
    courses = np.array([[moment[key] for moment in course] for course in moments])  # (S, moments)
    how = "steps-post" if key == "sparsity" else "default"
    if len(courses) > 1:
        axes.plot(epochs, courses.T, color=colour(number), linewidth=0.7, alpha=0.45, drawstyle=how)
    axes.plot(epochs, courses.mean(axis=0), color=colour(number), linewidth=2.2, label=label, drawstyle=how)


def _draw_drops(axes: Axes, report: Mapping[str, Any]) -> None:
    """The drop of each seed, and their mean with its interval, against zero and the margin."""
    tests, seeds = report["tests"], [arm["seed"] for arm in arms_of(report, "dense")]
    values = [[arm["test"]["value"] for arm in arms_of(report, name)] for name in ARMS]
    drops = np.subtract(values[0], values[1])
    axes.axvline(0, color=QUIET)
    axes.axvline(tests["margin"], color=colour(1), linestyle=":", label=f"margin {tests['margin']:g}")
    axes.plot(drops, range(1, len(seeds) + 1), "o", color=colour(0), label="a seed")
    axes.plot([tests["mean"]], [0], "D", color=colour(2), label="mean, 95 % interval")
    if tests["low"] is not None:
        axes.plot([tests["low"], tests["high"]], [0, 0], color=colour(2), linewidth=2.2)
    axes.set_yticks(range(len(seeds) + 1), ["mean", *(str(seed) for seed in seeds)])
    axes.set_ylabel("seed")
    axes.set_xlabel("drop of test accuracy: above 0 is a loss")
    axes.margins(x=0.1)
    axes.legend(fontsize="small")
    tidy(axes)
