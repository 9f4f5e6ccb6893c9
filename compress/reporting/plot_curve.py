"""Compression curves as a picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from compress.reporting.plots import QUIET, colour, new_figure, tidy
from compress.sparsity.curve_points import Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR = 0.95  # beyond this rate the last points would lie on top of each other on a linear axis
MARKERS = "os^Dvph"
TUNED = "+finetune"


def plot_curve(curves: Curves) -> Figure:
    """Accuracy (fidelity) against the rate, one line a method with its 95 % band, and the dense model's as a limit.

    A fine-tuned method has the colour of its untuned self and is dashed. Where rates go beyond ``FAR`` the axis is
    logarithmic in the weights that are left.
    """
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    far = curves.rates[-1] > FAR
    axes.axhline(curves.dense, color=QUIET, linestyle=":", label=f"dense, {curves.dense:.4f}", zorder=1)
    names = list(dict.fromkeys(area.method.removesuffix(TUNED) for area in curves.areas))
    for area in curves.areas:
        number = names.index(area.method.removesuffix(TUNED))
        points = curves.of(area.method)
        across = [_across(point.rate, far) for point in points]
        axes.fill_between(across, [p.low for p in points], [p.high for p in points], color=colour(number), alpha=0.15)
        axes.plot(
            across,
            [point.value for point in points],
            color=colour(number),
            linestyle="--" if area.method.endswith(TUNED) else "-",
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            label=f"{area.method}, area {area.value:.4f}",
        )
    _label(axes, curves, far)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _across(rate: float, far: bool) -> float:
    """Position on the axis: the rate, or how many times smaller the weights become, in powers of ten."""
    return -math.log10(1 - rate) if far else rate


def _label(axes: Axes, curves: Curves, far: bool) -> None:
    tidy(axes)
    axes.set_ylim(bottom=0, top=1)
    axes.set_ylabel(f"{curves.measured_in} on {curves.split} (n={curves.n:,})")
    axes.set_xlabel("share of the weights removed" + (", logarithmic in what is left" if far else ""))
    if far:
        shown = [
            rate
            for rate in (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
            if rate <= curves.rates[-1]
        ]
        axes.set_xticks([_across(rate, far) for rate in shown], [f"{rate:g}" for rate in shown])
