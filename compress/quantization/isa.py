"""Processors that a file can be made for, and what is true of each in ONNX Runtime's int8 kernels.

Read in ONNX Runtime's core/mlas/lib/platform.cpp, which picks the kernels by what the processor has. "U8S8" is uint8
activations with int8 weights, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from compress.errors import QuantizationError
from compress.measurement.environment import instruction_sets
from compress.quantization.candidates import Types
from compress.quantization.cpu import saturating_layers
from compress.quantization.graph import constants

_SHOWN = 3  # names of layers in a line of the report


@dataclass(frozen=True)
class Processor:
    """What int8 meets on a kind of processor."""

    name: str
    meaning: str  # which processors these are
    saturates: bool  # sums of two products of int8 weights saturate at 16 bits
    fast: tuple[Types, ...]  # pairs of types with the fastest int8 kernel there is, the best first
    faster: bool  # int8 can be expected to beat float; measure where the file will run


# x86: GemmU8S8Kernel is vpmaddubsw (AVX2, AVX-512 BW/DQ/VL), vpdpbusds (VNNI) or tdpbusd (AMX). Weights of uint8 (U8U8)
# go through vpmaddwd: widened, exact, half as fast; only AVX-VNNI-INT8 has a kernel of its own for them. There is none
# for int8 activations: qdq_s8_to_u8.cc makes them uint8 at load, so that S8S8 runs as U8S8, for two more steps at the
# ends; where it cannot, S8S8 meets the scalar default of qgemm.h.
# ARM: products of symmetric int8 weights fit into what smull/smlal, sdot and smmla add in; exact everywhere. Only S8S8
# has the kernels for symmetric weights (SymmQgemmDispatch) and activations without a shift (FixupInputZeroPoint).
TARGETS: dict[str, Processor | None] = {
    "host": None,  # this machine, by its instruction sets
    "avx2": Processor("avx2", "x86 with AVX2 alone: Intel Haswell to Comet Lake, AMD Zen 1-3", True, ("u8s8",), True),
    "avx512": Processor("avx512", "x86 with AVX-512 but no VNNI: Intel Skylake-X", True, ("u8s8",), True),
    "avx-vnni": Processor("avx-vnni", "x86 with AVX-VNNI: Intel Alder Lake and later clients", False, ("u8s8",), True),
    "avx512-vnni": Processor("avx512-vnni", "x86 with AVX-512 VNNI: Intel Ice Lake, AMD Zen 4", False, ("u8s8",), True),
    "amx": Processor("amx", "x86 with AMX int8 tiles: Intel Sapphire Rapids and later", False, ("u8s8",), True),
    "arm": Processor("arm", "64-bit ARM without dot products: Cortex-A53, A72", False, ("s8s8", "u8s8"), False),
    "arm-dotprod": Processor("arm-dotprod", "ARM with dot products: Neoverse N1, Apple M1", False, ("s8s8",), True),
    "arm-i8mm": Processor("arm-i8mm", "ARM with i8mm: Neoverse V1, Apple M2", False, ("s8s8",), True),
    "any-x86": Processor("any-x86", "every x86-64 processor", True, ("u8s8",), False),
    "any": Processor("any", "every processor", True, ("u8s8", "s8s8"), False),
}  # fmt: skip

# Each kind of processor once: "any" and "any-x86" are sets of them.
_KINDS = tuple(p for name, p in TARGETS.items() if p is not None and not name.startswith("any"))


_WHY: dict[Types, str] = {
    "u8s8": "its kernels for symmetric weights take int8 activations (S8S8)",
    "s8s8": "activations are turned into uint8 and back",
    "u8u8": "weights of uint8 are widened to 16 bits, or shifted",
}
# (activations unsigned, weights signed); int8 activations with uint8 weights are never written
_PAIRS: dict[tuple[bool, bool], Types] = {(True, True): "u8s8", (False, True): "s8s8", (True, False): "u8u8"}


def target(name: str = "host") -> Processor:
    """What is true of a target; "host": of this machine.

    Raises:
        QuantizationError: there is no such target.
    """
    if name not in TARGETS:
        raise QuantizationError(f"target-isa {name!r}: there is no such target. Use one of {', '.join(TARGETS)}.")
    return TARGETS[name] or host(instruction_sets())


def host(sets: Sequence[str]) -> Processor:
    """The kind of a processor with the instruction sets that `compress.measurement.environment` tells."""
    found = set(sets)
    if "neon" in found:
        name = "arm-i8mm" if "i8mm" in found else "arm-dotprod" if "dotprod" in found else "arm"
    elif "amx" in found:
        name = "amx"
    elif "vnni" in found:
        name = "avx512-vnni" if "avx512" in found else "avx-vnni"
    else:
        name = "avx512" if "avx512" in found else "avx2" if "avx2" in found else "any-x86" if "avx" in found else "any"
    processor = TARGETS[name]
    assert processor is not None
    return processor


def exact_on(proto: onnx.ModelProto, processor: Processor) -> bool:
    """Whether the integer products of a file are exact on a processor, for every input."""
    return not (processor.saturates and saturating_layers(proto))


def portability(proto: onnx.ModelProto, here: Processor) -> tuple[str, ...]:
    """On which processors other than ``here`` a file would lose accuracy or speed, and why: one line each.

    Call it before short names are given to inner values, so that layers are named as they were written.
    """
    types = integer_types(proto)
    others = [processor for processor in _KINDS if processor.name != here.name]
    lines = []
    saturating = saturating_layers(proto)
    if saturating and (losers := [p.name for p in others if p.saturates]):
        names = list(dict.fromkeys(each.node for each in saturating))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(
            f"{', '.join(losers)}: accuracy can fall, sums of two products saturate at 16 bits in "
            f"{', '.join(names[:_SHOWN])}{more} (without VNNI). Reduced or repaired weights are exact there."
        )
    for kind in types:
        if slower := [p.name for p in others if kind not in p.fast]:
            lines.append(f"{', '.join(slower)}: {kind.upper()} is not the fastest there, {_WHY[kind]}.")
    if types and (doubtful := [p.name for p in others if not p.faster]):
        lines.append(f"{', '.join(doubtful)}: int8 may be no faster than float, no instruction sums four products.")
    return tuple(lines)


def integer_types(proto: onnx.ModelProto) -> tuple[Types, ...]:
    """The pairs of types that a file's weighted layers are multiplied in, each once; dynamic ones are U8S8 or U8U8."""
    kinds = {name: tensor.data_type for name, tensor in constants(proto).items()}
    dequantized = {node.output[0]: node for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    found: set[Types] = set()
    for node in proto.graph.node:
        if node.op_type in ("MatMulInteger", "DynamicQuantizeLSTM"):
            found.add("u8s8" if kinds.get(node.input[1]) == TensorProto.INT8 else "u8u8")
        elif node.op_type in ("Conv", "Gemm", "MatMul") and {*node.input[:2]} <= dequantized.keys():
            data, weight = (dequantized[name] for name in node.input[:2])
            unsigned = kinds.get(data.input[2]) == TensorProto.UINT8  # the type of its zero point
            if pair := _PAIRS.get((unsigned, kinds.get(weight.input[0]) == TensorProto.INT8)):
                found.add(pair)
    return tuple(sorted(found))
