"""compress inspect of an ONNX file."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from compress.cli.console import emit, say, show_table

if TYPE_CHECKING:
    from compress.values import OnnxModel


def show_onnx(onnx: OnnxModel, as_json: bool) -> int:
    """Print what an ONNX file holds, and where it says that it comes from."""
    facts = _facts(onnx)
    if as_json:
        emit(facts)
        return 0
    show_table(("operator", "nodes"), [(name, str(nodes)) for name, nodes in facts["operators"].items()])
    say(f"opset {facts['opset']}, IR version {facts['ir_version']}, {facts['raw_bytes']:,} bytes.")
    say(
        f"{facts['parameters']:,} parameters, {facts['nonzero']:,} not zero; "
        f"{facts['macs']:,} multiply-accumulates a sample."
    )
    if not facts["provenance"]:
        say("The file does not say where it comes from.")
    for name, value in facts["provenance"].items():
        told = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        say(f"{name}: {told}")
    return 0


def _facts(onnx: OnnxModel) -> dict[str, Any]:
    from compress.measurement import raw_bytes
    from compress.models.counts import count
    from compress.models.onnx_file import opset, provenance, read

    path = onnx.path
    proto, counts = read(path, weights=False), count(path, onnx.inputs)
    operators = Counter(node.op_type for node in proto.graph.node)
    return {
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        "opset": opset(proto),
        "ir_version": proto.ir_version,
        "raw_bytes": raw_bytes(path),
        "parameters": counts.parameters,
        "nonzero": counts.nonzero,
        "macs": counts.macs,
        "provenance": provenance(path),
    }
