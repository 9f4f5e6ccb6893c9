"""The weights of each layer before and after sparsification, as the pictures of a run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from compress.reporting.plot_weights import plot_histograms, plot_parameters
from compress.reporting.plots import Kind, picture
from compress.sparsity.weights_summary import LayerWeights

TITLES = {
    "parameters": "Weights of each layer, and those that are left",
    "histograms": "Weights before and after sparsification",
}


def weight_pictures(report: Mapping[str, Any], kinds: Sequence[Kind] = get_args(Kind)) -> dict[str, bytes]:
    """File name -> content; empty where nothing was sparsified.

    Args:
        report: The plain dict of report.json, of this version or of one that did not store weights yet.
        kinds: svg, png.
    """
    layers = _layers(report)
    if not layers:
        return {}
    figures = {"parameters": plot_parameters(layers), "histograms": plot_histograms(layers)}
    return {f"{name}.{kind}": picture(figure, kind) for name, figure in figures.items() for kind in kinds}


def _layers(report: Mapping[str, Any]) -> tuple[LayerWeights, ...]:
    stage = next((stage for stage in report["stages"] if stage["stage"] == "sparsify"), None)
    if stage is None or stage["skipped"]:
        return ()
    return tuple(LayerWeights.from_dict(stored) for stored in stage["figures"].get("layers", ()))
