"""Which versions of ONNX a release of ONNX Runtime reads."""

from __future__ import annotations

import re
from dataclasses import dataclass

from compress.errors import RecipeError

OPSETS = range(17, 21)  # 13 brought scales per channel; from 21 on, onnxruntime before 1.18 cannot read the file
IR_VERSIONS = range(8, 11)  # onnxruntime 1.20 reads no later one
_OPSET = 18  # what the exporter of torch writes without converting
_IR_VERSION = 10

# Release of onnxruntime -> newest opset, newest IR version; later releases read at least as much as the last one here.
# From its documentation, Reference / Compatibility / ONNX opset support.
_READS: dict[tuple[int, int], tuple[int, int]] = {
    (1, 12): (17, 8),
    (1, 13): (17, 8),
    (1, 14): (18, 8),
    (1, 15): (19, 8),
    (1, 16): (19, 9),
    (1, 17): (20, 9),
    (1, 18): (21, 10),
}


@dataclass(frozen=True)
class Versions:
    """What a file is written in."""

    opset: int  # of the default domain
    ir_version: int


def versions(min_ort: str, opset: int | None, ir_version: int | None) -> Versions:
    """The opset and the IR version to write: those asked for, else 18 and 10, or older where ``min_ort`` needs it.

    Raises:
        RecipeError: tells all that is not allowed, or is too new for ``min_ort``.
    """
    problems = [
        f"export.{name}={asked}: allowed are {allowed[0]} to {allowed[-1]}"
        for name, asked, allowed in (("opset", opset, OPSETS), ("ir_version", ir_version, IR_VERSIONS))
        if asked is not None and asked not in allowed
    ]
    newest = _newest(min_ort)
    if newest is None:
        first = ".".join(map(str, min(_READS)))
        problems.append(f"export.min_ort={min_ort!r}: write a release of onnxruntime from {first} on, as 1.16")
    elif not problems:
        problems += [
            f"export.{name}={asked}: onnxruntime {min_ort} (export.min_ort) reads up to {limit}"
            for name, asked, limit in zip(("opset", "ir_version"), (opset, ir_version), newest, strict=True)
            if asked is not None and asked > limit
        ]
    if problems or newest is None:
        raise RecipeError("; ".join(problems))
    return Versions(opset or min(_OPSET, newest[0]), ir_version or min(_IR_VERSION, newest[1]))


def _newest(min_ort: str) -> tuple[int, int] | None:
    """The newest opset and IR version that a release reads; None where it is no release, or too old a one."""
    found = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)?", min_ort)
    if found is None:
        return None
    known = [release for release in _READS if release <= (int(found[1]), int(found[2]))]
    return _READS[max(known)] if known else None
