"""What a trainer's script is given: the dense model, its data, and what may be spent."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compress.models.torchvision_compat import ensure_operators


@dataclass(frozen=True)
class Samples:
    """Inputs, each (N, …), and labels (N,)."""

    inputs: tuple[Tensor, ...]
    labels: Tensor

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """The inputs in order, ``size`` at a time."""
        return zip(*(x.split(size) for x in self.inputs), strict=True)


@dataclass(frozen=True)
class Task:
    """A dense model, its data, and what may be spent on it."""

    module: nn.Module
    names: tuple[str, ...]  # of its inputs
    train: Samples
    validation: Samples
    teacher: Tensor  # (N_train, C): the dense model's outputs
    baseline: float  # accuracy 0..1 of the dense ONNX file on validation
    steps: int  # optimizer steps in all
    batch_size: int
    learning_rate: float
    max_drop: float  # fraction 0..1
    seed: int

    def example(self, count: int = 2) -> tuple[Tensor, ...]:
        return tuple(x[:count] for x in self.train.inputs)


def arguments(description: str | None) -> tuple[Task, Path]:
    """The command line of a trainer, ``INPUTS OUT``: the task that lies in the first, and the folder to write."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return read_task(options.inputs), options.out


def read_task(folder: Path) -> Task:
    """The task that the benchmark has written to ``folder``; seeds torch."""
    budget = json.loads((folder / "budget.json").read_text())
    names = tuple(budget["input_names"])
    torch.manual_seed(budget["seed"])
    ensure_operators()  # where the model is torchvision's
    module = torch.load(folder / "model.pt", weights_only=False).eval()
    train, validation = (_samples(folder / f"{split}.npz", names) for split in ("train", "validation"))
    fields = {name: budget[name] for name in ("steps", "batch_size", "learning_rate", "max_drop", "seed")}
    baseline = budget["baseline"]["validation"]
    return Task(module, names, train, validation, answers(module, train), baseline, **fields)


def flexible(module: nn.Module) -> nn.Module:
    """With `x.view(-1, 3 * 3 * 64)`, which wants all channels, mended as a user of channel pruning would: flattened."""
    if type(module).__name__ == "FineGrainedCNN":
        module = torch.fx.symbolic_trace(module)
        (view,) = module.graph.find_nodes(op="call_method", target="view")
        view.target, view.args = "flatten", (view.args[0], 1)
        module.recompile()
    return module


def _samples(path: Path, names: tuple[str, ...]) -> Samples:
    with np.load(path) as stored:
        return Samples(tuple(torch.from_numpy(stored[name]) for name in names), torch.from_numpy(stored["labels"]))


@torch.no_grad()
def answers(module: nn.Module, samples: Samples) -> Tensor:
    """What ``module`` makes of every sample, (N, C)."""
    module.eval()
    return torch.cat([module(*batch) for batch in samples.batches(256)])
