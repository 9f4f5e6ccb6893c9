"""What is done where a candidate loses more than it may: learned rounding, then layers back to float, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import onnx

from compress.errors import QuantizationError
from compress.quantization.fallback import return_to_float
from compress.quantization.graph import Layer, array, constants, copy_of, replace_constants
from compress.quantization.rounding import RoundedLayer, RoundingConfig, learn_rounding
from compress.quantization.sensitivity import layer_sensitivity
from compress.quantization.source import finish
from compress.quantization.workbench import Make, Workbench


def recover(bench: Workbench, name: str, proto: onnx.ModelProto, make: Make, layers: Sequence[Layer]) -> None:
    """Add the files that win back the accuracy of a candidate, where it is over the budget.

    Args:
        bench: Has a judge.
        name: Of the candidate, whose file and graph are on the bench.
        proto: The float graph that the candidate was made from.
        make: Makes its graph.
        layers: Those that can return to float.
    """
    assert bench.judge is not None
    config, budget = bench.config, bench.context.max_drop
    quantized = bench.bases[name]
    lost = bench.judge.drop(finish(bench.source, quantized, name, config))
    bench.files[name]["validation_drop"] = lost
    learned = quantized
    if config.rounding == "learned" or (config.rounding == "auto" and lost > budget):
        learned, lost = _learned(bench, name, proto, quantized)
    if config.fallback != "no" and lost > budget:
        asked = [layer.name for layer in layers if layer.name not in bench.in_float[name]]
        _mixed(bench, name, proto, make, learned, asked)


def learned_rounding(
    bench: Workbench, name: str, proto: onnx.ModelProto, quantized: onnx.ModelProto
) -> tuple[onnx.ModelProto, dict[str, RoundedLayer]]:
    """The graph with learned rounding, and what came of each layer; as it came, with a note, of too few samples."""
    config, context = RoundingConfig(steps=bench.config.rounding_steps), bench.context
    try:
        return learn_rounding(proto, quantized, bench.probe, config, seed=context.seed, progress=context.progress)
    except QuantizationError as error:
        bench.note(f"{name}: {error}")
        return quantized, {}


def _learned(
    bench: Workbench, name: str, proto: onnx.ModelProto, quantized: onnx.ModelProto
) -> tuple[onnx.ModelProto, float]:
    """The graph with learned rounding, as a file, and its drop; as it came, where nothing could be learned."""
    assert bench.judge is not None
    learned, figures = learned_rounding(bench, name, proto, quantized)
    bench.tell("rounding", name, {layer: asdict(figure) for layer, figure in figures.items()})
    if learned == quantized:
        return quantized, bench.files[name]["validation_drop"]
    lost = bench.judge.drop(finish(bench.source, learned, f"{name}-learned", bench.config))
    bench.add(f"{name}-learned", learned, validation_drop=lost)
    return learned, lost


def _mixed(
    bench: Workbench, name: str, proto: onnx.ModelProto, make: Make, learned: onnx.ModelProto, asked: Sequence[str]
) -> None:
    """Return layers to float until the budget is kept; the best file, and the whole trade-off."""
    assert bench.judge is not None
    config, context = bench.config, bench.context
    exclude = bench.in_float[name]
    ranked = layer_sensitivity(proto, make, bench.probe, asked, progress=context.progress)
    values = _changed(make(exclude), learned)

    def build(float_layers: tuple[str, ...]) -> tuple[onnx.ModelProto, bytes]:
        made = _transplanted(make((*exclude, *float_layers)), values)
        return made, finish(bench.source, made, f"{name}-mixed", config)

    order = [sensitivity.layer for sensitivity in ranked]
    found = return_to_float(order, build, bench.judge, context.max_drop, context.progress)
    told = {
        "budget": context.max_drop,
        "within": found.within,
        "layers": list(found.layers),
        "sensitivity": [asdict(sensitivity) for sensitivity in ranked],
        "steps": [asdict(step) for step in sorted(found.steps, key=lambda step: step.layers_in_float)],
    }
    bench.tell("fallback", name, told)
    if found.layers:
        bench.add(f"{name}-mixed", found.proto, validation_drop=found.drop, layers_in_float=len(found.layers))
    if not found.within:
        bench.note(
            f"{name}: no number of layers in float brings the drop on validation to {context.max_drop:.4f}; "
            f"the smallest is {found.drop:.4f}, with {len(found.layers)} of {len(order)} layers in float"
        )


def _changed(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    old = constants(before)
    return {name: tensor for name, tensor in constants(after).items() if name in old and tensor != old[name]}


def _transplanted(proto: onnx.ModelProto, values: dict[str, onnx.TensorProto]) -> onnx.ModelProto:
    """A graph with what was learned for the layers that are still quantized in it."""
    made, known = copy_of(proto), constants(proto)
    fitting = {
        name: array(tensor)
        for name, tensor in values.items()
        if name in known and (tensor.data_type, tensor.dims) == (known[name].data_type, known[name].dims)
    }
    replace_constants(made, fitting)
    return made
