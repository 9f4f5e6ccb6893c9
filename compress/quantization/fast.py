"""Layers that int8 makes slower stay in float: which, is measured."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx

from compress.errors import QuantizationError
from compress.quantization.graph import Layer, constants
from compress.quantization.source import finish
from compress.quantization.workbench import Make, Workbench

_TRIALS = 6  # layers, those with the fewest weights: they have least to gain in int8, and their bytes hardly count
_GAIN = 0.97  # of the latency so far: what is closer is noise


def add_fast_file(bench: Workbench, name: str, make: Make, trial: Make, layers: Sequence[Layer]) -> None:
    """Add <name>-fast, a candidate with small layers in float where that is measured to be faster; else nothing.

    A QLinearConv copies its windows one kernel position at a time. Of a few input channels that takes longer than
    computing them in float, and a small Gemm takes longer to quantize its input. Measured (AVX-512 VNNI, 1 thread): a
    CNN of 8, 16 and 16 channels on 28 x 28 took 42.9 us in float, 54.4 in int8, and 38.9 with its first convolution
    in float; ResNet-18, with 3 input channels, 529 us in int8 and 644 so.

    Args:
        bench: Has a judge.
        name: Of the candidate, which is on the bench.
        make: Makes its graph as it ships.
        trial: Makes a graph that is as fast, and is quicker to make.
        layers: Those that can return to float.
    """
    config, always = bench.config, bench.in_float[name]
    wanted = config.method == "auto" and bench.context.objective != "size"
    if config.fast == "no" or (config.fast == "auto" and not wanted):
        return
    weights = constants(bench.source.proto)
    sizes = {layer.name: prod(weights[layer.weight].dims) for layer in layers if layer.weight in weights}
    ranked = sorted((layer for layer in sizes if layer not in always), key=lambda layer: sizes[layer])
    order = ranked[:-1][:_TRIALS]  # the largest stays in int8: without it this were the float file
    chosen: tuple[str, ...] = ()
    times = {"": _time(bench, name, trial(always))}
    least = times[""]
    for layer in order:
        try:
            times[layer] = _time(bench, name, trial((*always, *chosen, layer)))
        except QuantizationError:
            continue  # such a graph cannot be built: it cannot be the fast one
        if times[layer] < _GAIN * least:
            chosen, least = (*chosen, layer), times[layer]
    told = {"share_of_float": times.pop(""), "with_layer_in_float": times, "layers": list(chosen)}
    bench.tell("fast", name, told)
    if chosen:
        bench.add(f"{name}-fast", make((*always, *chosen)), layers_in_float=len(chosen))


def _time(bench: Workbench, name: str, proto: onnx.ModelProto) -> float:
    """p50 as a share of that of the float file, both timed in turns."""
    assert bench.judge is not None
    mine, floats = bench.judge.p50_ms(finish(bench.source, proto, f"{name}-fast", bench.config))
    return mine / floats
