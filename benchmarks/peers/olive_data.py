"""The user script of `finish_olive`: how Olive reads the samples and scores a model's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from olive.data.registry import Registry
from olive.engine.footprint import FootprintNode
from torch import Tensor

Samples = list[tuple[dict[str, Any], int]]


@Registry.register_dataset()
def samples(path: str) -> Samples:
    """What `numpy.savez` has stored, each as (inputs by name, label)."""
    with np.load(path) as stored:
        inputs = {name: stored[name] for name in stored.files if name != "labels"}
        return [({name: array[i] for name, array in inputs.items()}, int(y)) for i, y in enumerate(stored["labels"])]


@Registry.register_post_process()
def top1(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1)


def data(name: str, path: Path, batch: int) -> dict[str, Any]:
    """The data config of a file of samples."""
    return {
        "name": name,
        "load_dataset_config": {"type": "samples", "params": {"path": str(path)}},
        "dataloader_config": {"params": {"batch_size": batch}},
        "post_process_data_config": {"type": "top1"},
    }


def update(node: FootprintNode, **values: Any) -> None:
    """`FootprintNode.update`, which in 0.13.0 sets a field by its former name: every model found in its cache fails."""
    for name, value in values.items():
        setattr(node, "model_config_data" if name == "model_config" else name, value)


FootprintNode.update = update
