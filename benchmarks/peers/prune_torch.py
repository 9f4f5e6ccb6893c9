"""torch.nn.utils.prune: iterative global magnitude pruning with fine-tuning. Shapes stay: the zip alone shrinks.

    python -m benchmarks.peers.prune_torch INPUTS OUT

As its tutorial does it: `global_unstructured` with L1 over the weights of all layers, and `remove`. As Han et al. 2015
advise it: the amount rises (0.8, 0.9, 0.95, …) with fine-tuning after each. The best amount is searched on validation.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import prune

from benchmarks.peers.finetuning import finetune
from benchmarks.peers.search import Tried, climb, score, write
from benchmarks.peers.task import Task, arguments

FACTORS = (5.0, 10.0, 20.0, 40.0, 80.0)  # amounts 0.8, 0.9, 0.95, 0.975, 0.9875
TRIES = 6
LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase, nn.Embedding, nn.MultiheadAttention)


def weights(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """All weight matrices and kernels, as torch.nn.utils.prune wants them named; no biases, no normalisation."""
    layers = [layer for layer in module.modules() if isinstance(layer, LAYERS)]
    return [(layer, name) for layer in layers for name, p in layer.named_parameters(recurse=False) if p.dim() > 1]


def zero(module: nn.Module, amount: float) -> None:
    """Set the share ``amount`` (0..1) of all weights to zero, those of least magnitude; zeros stay zeros.

    Removed at once, and held by `hold` in training: the hooks that would hold them do not run for the output
    projection of nn.MultiheadAttention, whose forward is never called, and a module that has them cannot be copied.
    """
    targets = weights(module)
    prune.global_unstructured(targets, pruning_method=prune.L1Unstructured, amount=amount)
    for layer, name in targets:
        prune.remove(layer, name)


@torch.no_grad()
def hold(module: nn.Module, masks: list[torch.Tensor]) -> None:
    for (layer, name), mask in zip(weights(module), masks, strict=True):
        getattr(layer, name).mul_(mask)


def attempt(task: Task, module: nn.Module, factor: float, steps: int) -> Tried:
    """A copy of ``module`` with one weight in ``factor`` left, fine-tuned."""
    module = copy.deepcopy(module)
    zero(module, 1 - 1 / factor)
    masks = [getattr(layer, name) != 0 for layer, name in weights(module)]
    finetune(task, module, steps, after_step=lambda: hold(module, masks))
    return score(task, factor, module, f"amount {1 - 1 / factor:.4f}, {steps} steps")


def main() -> None:
    task, out = arguments(__doc__)
    steps = task.steps // TRIES
    tried = climb(task, FACTORS, TRIES, lambda module, factor: attempt(task, module, factor, steps))
    write(task, [tried], out, steps * TRIES)


if __name__ == "__main__":
    main()
