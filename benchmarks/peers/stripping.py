"""What a peer's exporter or quantizer tells of itself leaves its file. Imports no package but onnx."""

from __future__ import annotations

import onnx


def strip(proto: onnx.ModelProto) -> None:
    """Remove, in place, what is not the model: stack traces and names' shapes would be most of a tiny file."""
    graph = proto.graph
    del graph.value_info[:]
    for item in (proto, graph, *proto.functions, *graph.node, *graph.initializer, *graph.input, *graph.output):
        for name in ("doc_string", "metadata_props"):
            if name in item.DESCRIPTOR.fields_by_name:  # onnx 1.16 has fewer
                item.ClearField(name)
