"""The weights of each layer before and after, as the files of plots/ and as what the page draws its charts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from compress.reporting.plot_weights import plot_histograms, plot_parameters
from compress.reporting.plots import Kind, picture
from compress.sparsity.weights_summary import LayerWeights


def weight_pictures(report: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> content, of the plain dict of report.json; empty where nothing was sparsified."""
    layers = _layers(report)
    if not layers:
        return {}
    figures = {"parameters": plot_parameters(layers), "histograms": plot_histograms(layers)}
    return {f"{name}.{kind}": picture(figure, kind) for name, figure in figures.items() for kind in get_args(Kind)}


def layer_entries(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ``layers`` of report.json; where it holds none, what the sparsify stage recorded, in the same form."""
    return list(report.get("layers") or map(_entry, _layers(report)))


def _entry(layer: LayerWeights) -> dict[str, Any]:
    side: dict[str, Any] = {"shape": [], "channels": None, "weights": layer.weights, "bytes": 0}
    return {
        "name": layer.name,
        "kind": "",
        "before": {**side, "nonzero": sum(layer.counts_before)},
        "after": {**side, "nonzero": layer.nonzero},
        "histogram": {
            "edges": layer.edges,
            "before": layer.counts_before,
            "after": layer.counts_after,
        },
    }


def _layers(report: Mapping[str, Any]) -> tuple[LayerWeights, ...]:
    stage = next((stage for stage in report["stages"] if stage["stage"] == "sparsify"), None)
    if stage is None or stage["skipped"]:
        return ()
    return tuple(LayerWeights.from_dict(stored) for stored in stage["figures"].get("layers", ()))
