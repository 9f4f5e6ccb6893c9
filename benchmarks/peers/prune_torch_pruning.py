"""Torch-Pruning: channels leave, importance and ranking searched, then as far as the accuracy allows.

    python -m benchmarks.peers.prune_torch_pruning INPUTS OUT      # in the environment torch-pruning

As in its benchmarks, `BasePruner` prunes in small steps until the model has the wanted share of its multiply-adds, then
it is fine-tuned. Multiples of 8, isomorphic global ranking and telling it attention heads are its README's advice.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch_pruning as tp
from torch import nn

from benchmarks.peers.finetuning import finetune, losses
from benchmarks.peers.search import Tried, climb, climb_again, score, write
from benchmarks.peers.task import Task, arguments, flexible

IMPORTANCES = {"GroupMagnitude": nn.Module, "GroupTaylor": nn.Module, "FPGM": nn.Conv2d, "BNScale": nn.BatchNorm2d}
FACTORS = (4.0, 16.0, 64.0)  # speed-ups in multiply-adds
TRIES, ROUNDED = 5, 2  # the latter with multiples of 8 channels
PROBE = 24  # settings are compared at the first factor, on 1/24 of the steps each
PRUNING_STEPS = 50  # from all channels to none
GRADIENTS = 10  # batches whose gradients GroupTaylor uses


class Settings(NamedTuple):
    importance: str
    ranking: str  # uniform: the same ratio in every layer; global: one ranking; isomorphic: one of alike layers
    round_to: int | None = None


def prune(task: Task, module: nn.Module, factor: float, settings: Settings) -> nn.Module:
    """A copy of ``module`` with one in ``factor`` of the dense model's multiply-adds."""
    module, example = copy.deepcopy(module), task.example(1)
    for loss in losses(task, module, GRADIENTS):
        loss.backward()
    pruner = tp.pruner.BasePruner(
        module,
        example,
        importance=getattr(tp.importance, f"{settings.importance}Importance")(),
        global_pruning=settings.ranking != "uniform",
        isomorphic=settings.ranking == "isomorphic",
        pruning_ratio=1.0,
        iterative_steps=PRUNING_STEPS,
        round_to=settings.round_to,
        ignored_layers=[[layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]],
        out_channel_groups={m: m.num_heads for m in module.modules() if isinstance(m, nn.MultiheadAttention)},
    )
    wanted = tp.utils.count_ops_and_params(task.module, example)[0] / factor
    while pruner.current_step < PRUNING_STEPS and tp.utils.count_ops_and_params(module, example)[0] > wanted:
        pruner.step()
        if hasattr(module, "hidden_dim"):  # torchvision's ViT checks it
            module.hidden_dim = module.conv_proj.out_channels
    return module


def attempt(task: Task, steps: int, settings: Settings, module: nn.Module, factor: float) -> Tried:
    module = prune(task, module, factor, settings)
    finetune(task, module, steps)
    told = f"{settings.importance}, {settings.ranking}, round_to {settings.round_to}, {steps} steps"
    return score(task, factor, module, f"1/{factor:.4g} of the operations, {told}")


def compare(task: Task, steps: int) -> dict[Settings, tuple[float, float]]:
    """Drop and loss with each importance that applies, and with the best of them ranked in the other ways."""
    names = [name for name, kind in IMPORTANCES.items() if any(isinstance(m, kind) for m in task.module.modules())]
    found: dict[Settings, tuple[float, float]] = {}
    for name, ranking in (*((name, "uniform") for name in names), ("", "isomorphic"), ("", "global")):
        settings = Settings(name or min(found, key=found.__getitem__).importance, ranking)
        tried = attempt(task, steps, settings, task.module, FACTORS[0])
        found[settings] = (tried.drop, tried.loss)
    return found


def main() -> None:
    task, out = arguments(__doc__)
    task = replace(task, module=flexible(task.module))
    found = compare(task, task.steps // PROBE)
    print(*found.items(), sep="\n", flush=True)
    best, spent = min(found, key=found.__getitem__), len(found) * (task.steps // PROBE)
    steps = (task.steps - spent) // (TRIES + ROUNDED)
    free = climb(task, FACTORS, TRIES, partial(attempt, task, steps, best))
    rounded = climb_again(task, free, ROUNDED, partial(attempt, task, steps, best._replace(round_to=8)))
    write(task, [free, rounded], out, spent + steps * (TRIES + ROUNDED), "torch-pruning")


if __name__ == "__main__":
    main()
