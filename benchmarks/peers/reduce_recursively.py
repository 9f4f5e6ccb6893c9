"""Recursive neuron reduction as it was published: for MLPs, units leave layer by layer, every net is trained afresh.

    python -m benchmarks.peers.reduce_recursively INPUTS OUT

In each round the hidden layers are tried in turn with a step of units fewer: a new, narrower net is initialised and
trained. The first whose loss and accuracy are within thresholds of the *last* round's is kept, and it recurs until no
layer passes. The published step of 100 is for layers of 2,000 and more; here it is a half of the layer at first, and
half of that when no layer passes, so that the budget reaches nets as small as the other tools'.
"""

from __future__ import annotations

import copy
from itertools import pairwise

from torch import nn

from benchmarks.peers.finetuning import finetune
from benchmarks.peers.search import Tried, score, write
from benchmarks.peers.task import Task, arguments

LOSS, ACCURACY = 0.05, 0.003  # published: how far a net may be from the last one
TRAININGS = 4
STEP = 0.5  # share of a layer


def widths_of(module: nn.Module) -> list[int]:
    """Units of each hidden layer."""
    return [layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)][:-1]


def narrower(module: nn.Module, widths: list[int]) -> nn.Module:
    """A new net with these hidden widths, initialised at random."""
    new = copy.deepcopy(module)
    linear = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    sizes = [linear[0][1].in_features, *widths, linear[-1][1].out_features]
    for (name, _), (inputs, outputs) in zip(linear, pairwise(sizes), strict=True):
        new.set_submodule(name, nn.Linear(inputs, outputs))
    return new


def reduce(task: Task, steps: int) -> list[Tried]:
    """Every net that was trained."""
    last = score(task, 1.0, task.module, "dense")
    tried: list[Tried] = []
    layer, step = 0, STEP
    while len(tried) < TRAININGS:
        widths = widths_of(last.module)
        widths[layer] = max(1, round(widths[layer] * (1 - step)))
        module = narrower(last.module, widths)
        finetune(task, module, steps)
        now = score(task, parameters(task.module) / parameters(module), module, f"hidden {widths}, {steps} steps")
        passed = now.loss <= last.loss + LOSS and now.drop <= last.drop + ACCURACY
        print(f"{now.settings}: loss {now.loss:.4f}, drop {now.drop:+.4f}, {'kept' if passed else 'no'}", flush=True)
        tried.append(now)
        last, layer = (now, 0) if passed else (last, (layer + 1) % len(widths))
        step = step if passed or layer else step / 2  # every layer has failed
    return tried


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
    task, out = arguments(__doc__)
    steps = task.steps // TRAININGS
    write(task, [reduce(task, steps)], out, steps * TRAININGS)


if __name__ == "__main__":
    main()
