"""What a call costs that computes nothing: the limit of every latency of a workload, measured beside its files."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from compress.files import write_atomically

NAME = "call-alone"  # of the row; no entry: nobody made it
SETTINGS = "copies its first input: what a call costs at least"
FILE = "call-alone.onnx"


def write(dense: Path, folder: Path) -> Path:
    """Write a graph with the inputs of the dense ONNX file that copies the first of them, which no net can undercut.

    Returns:
        The file, in ``folder``.
    """
    source = onnx.load(dense)
    inputs = list(source.graph.input)
    output = onnx.ValueInfoProto()
    output.CopyFrom(inputs[0])
    output.name = f"{inputs[0].name}-copied"
    graph = helper.make_graph([helper.make_node("Identity", [inputs[0].name], [output.name])], NAME, inputs, [output])
    model = helper.make_model(graph, opset_imports=source.opset_import, ir_version=source.ir_version)
    path = folder / FILE
    write_atomically(path, model.SerializeToString(deterministic=True))
    return path
