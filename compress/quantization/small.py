"""Files for ``--objective size``: fewer zipped bytes than int8 takes, within the accuracy budget."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import onnx

from compress.errors import QuantizationError
from compress.quantization.blocks import BlockConfig, narrow, quantize_blocks
from compress.quantization.compact import round_constants
from compress.quantization.entropy import input_energy, round_for_size, size_figures, strongest
from compress.quantization.graph import copy_of
from compress.quantization.recovery import learned_rounding
from compress.quantization.sharing import SharingConfig, share_weights, store
from compress.quantization.source import finish
from compress.quantization.workbench import Workbench

_INT4_IR = 10  # the first IR version with INT4; so is onnxruntime 1.18, which runs opset 21


def add_small_files(bench: Workbench) -> None:
    """Add what is smaller than int8 and loses no more than the budget; what loses more is a note."""
    if bench.judge is None:
        bench.note("shared, 4-bit and rounded weights were skipped: their accuracy needs data; give --data")
        return
    bench.attempt(("int4-weights",), partial(_add_blocks, bench))
    near: float | None = None
    for name, proto in bench.bases.items():
        bench.attempt((f"{name}-rounded",), partial(_add_rounded, bench, name, proto, near))
        near = bench.files.get(f"{name}-rounded", {}).get("strength", near)
    bench.attempt(("shared",), partial(_add_shared, bench))


def _add_rounded(bench: Workbench, name: str, proto: onnx.ModelProto, near: float | None) -> None:
    """Entropy-aware rounding of an int8 graph, as strong as the budget allows, and of its float constants.

    ``near`` is what another graph of the same weights bore: each strength that is tried is scored on all of validation.
    """
    proto = copy_of(proto)
    round_constants(proto)
    energy = input_energy(proto, bench.probe)

    def build(strength: float) -> onnx.ModelProto:
        made = round_for_size(proto, strength, energy)
        return narrow(made) if _reads_int4(bench) else made  # of weight-only graphs; others stay as they are

    holds = partial(_within, bench, f"{name}-rounded")
    found = strongest(build, holds, near=near, progress=bench.context.progress)
    if found is None:
        raise QuantizationError(f"{name}-rounded: not even the weakest rounding keeps {bench.context.max_drop:.4f}")
    strength, made = found
    figures = size_figures(proto, round_for_size(proto, strength, energy))  # of the weights before they are narrowed
    bench.add(f"{name}-rounded", made, strength=strength, rounding=asdict(figures))


def _add_blocks(bench: Workbench) -> None:
    """Four bits: folded into float at load for every net, and with kernels of their own where products are the net."""
    config = BlockConfig()
    if not _reads_int4(bench):
        raise QuantizationError(
            f"{config.name}: 4-bit weights take IR version {_INT4_IR} (onnxruntime 1.18), the float file has "
            f"{bench.source.proto.ir_version}: it may have to run on older releases. Export it with --min-ort 1.18"
        )
    made = quantize_blocks(bench.source.proto, config, bench.config.exclude)
    if bench.config.rounding != "nearest":
        made, _ = learned_rounding(bench, config.name, bench.source.proto, made)
    _add_if_within(bench, config.name, made)
    bench.bases[config.name] = made
    if all(layer.operator in ("Gemm", "MatMul") for layer in bench.layers):
        kernel = BlockConfig(block=32, kernel=True)
        _add_if_within(bench, kernel.name, quantize_blocks(bench.source.proto, kernel, bench.config.exclude))


def _add_shared(bench: Workbench) -> None:
    """Few values a weight tensor, learned: the fewest that keep the budget."""
    data = bench.context.data
    assert data is not None
    lost: list[str] = []
    for values in sorted(bench.config.shared_values):
        config = SharingConfig(values=values, steps=bench.config.shared_steps, exclude=bench.config.exclude)
        shared = share_weights(
            bench.source.proto,
            config,
            data.train,
            data.calibration,
            seed=bench.context.seed,
            device=bench.context.device,
            progress=bench.context.progress,
        )
        drop, bound = _loss(bench, f"shared-{values}", store(shared))
        if bound <= bench.context.max_drop:
            bench.add(f"shared-{values}", store(shared), validation_drop=drop, **shared.figures)
            return
        lost.append(f"{bound:.4f} with {values}")
    raise QuantizationError(
        f"shared: up to {', '.join(lost)} values may be lost (95 % one-sided, on validation), "
        f"{bench.context.max_drop:.4f} is allowed"
    )


def _reads_int4(bench: Workbench) -> bool:
    """Whether what must read the float file reads INT4 too, as far as its version tells."""
    return int(bench.source.proto.ir_version) >= _INT4_IR


def _add_if_within(bench: Workbench, name: str, proto: onnx.ModelProto) -> None:
    drop, bound = _loss(bench, name, proto)
    if bound > bench.context.max_drop:
        raise QuantizationError(
            f"{name}: loses {drop:.4f} on validation, and up to {bound:.4f} (95 % one-sided); "
            f"{bench.context.max_drop:.4f} is allowed"
        )
    bench.add(name, proto, validation_drop=drop)


def _within(bench: Workbench, name: str, proto: onnx.ModelProto) -> bool:
    return _loss(bench, name, proto)[1] <= bench.context.max_drop


def _loss(bench: Workbench, name: str, proto: onnx.ModelProto) -> tuple[float, float]:
    """What a graph loses on validation, and what it stays below: see `Judge.drop_bound`."""
    assert bench.judge is not None
    return bench.judge.drop_bound(finish(bench.source, proto, name, bench.config))
