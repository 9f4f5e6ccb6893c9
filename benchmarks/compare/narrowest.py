"""The dense model with one channel left in every group: below its latency no choice of widths goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from compress.errors import PruningError
from compress.onnx_export import ExportConfig, export
from compress.pruning import analyse
from compress.pruning.pruned import cut_what_can
from compress.values import Context, Model

NAME = "narrowest"  # of the row; no entry: its answers are worth nothing
SETTINGS = "one channel in every group: what no choice of widths undercuts"
FILE = "narrowest.onnx"


def write(model: Model, example: Sequence[Tensor], folder: Path) -> None:
    """Write it as float ONNX to ``folder``; nothing where no channel can leave.

    Args:
        model: The dense one.
        example: Its inputs, one sample or more.
    """
    inputs = tuple(x[:1] for x in example)
    groups = analyse(model.module, inputs).groups
    first = {group.name: torch.tensor([0]) for group in groups if group.frozen is None}
    if not first:
        return
    try:
        smallest = cut_what_can(model.module, groups, first, inputs)
    except PruningError:
        return
    export(replace(model, module=smallest.module), ExportConfig(), Context(None, folder), FILE)
