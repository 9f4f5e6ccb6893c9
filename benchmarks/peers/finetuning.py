"""The fine-tuning that every peer is given: the loss, optimizer and schedule of `compress.training`, for any loop.

Distillation from the dense model at temperature 2 mixed half with cross-entropy (Hinton et al. 2015), AdamW without
weight decay, a learning rate that rises for 5 % of the steps and falls to zero as a cosine, dropout off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.task import Task

TEMPERATURE, DISTILLATION, WARM_UP = 2.0, 0.5, 0.05


def finetune(task: Task, module: nn.Module, steps: int, after_step: Callable[[], None] = lambda: None) -> None:
    """Train ``module`` in place for ``steps`` optimizer steps and leave it in eval mode.

    Args:
        after_step: Runs after every optimizer step: masks are held here.
    """
    fast_layout(module, task.example())
    optimizer = torch.optim.AdamW(module.parameters(), lr=task.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    distilling_mode(module)
    for loss in losses(task, module, steps):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        after_step()
    module.eval().to(memory_format=torch.contiguous_format)


def fast_layout(module: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Channels last, in which a CPU trains convolutions up to twice as fast; not where a `view` does not allow it."""
    module.to(memory_format=torch.channels_last)
    try:
        module(*example)
    except RuntimeError:
        module.to(memory_format=torch.contiguous_format)


def losses(task: Task, module: nn.Module, steps: int) -> Iterator[Tensor]:
    """The loss of each step, of the module as it is then."""
    for batch in batches(len(task.train.labels), task.batch_size, steps, task.seed):
        outputs = module(*(x[batch] for x in task.train.inputs))
        yield loss_of(outputs, task.teacher[batch], task.train.labels[batch])


def batches(count: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """The samples of each step: one permutation after another."""
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < min(size, count):
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:size]
        order = order[size:]


def distilling_mode(module: nn.Module) -> None:
    """Dropout off, for the teacher's answers were made without it; BatchNorm follows the data.

    Eval mode but for BatchNorm, so that functional dropout is off too. On a GPU cuDNN would want an LSTM in train mode.
    """
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.train()


def loss_of(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Half cross-entropy, half divergence from the teacher; of logits or log-probabilities (N, C)."""
    ours, theirs = (F.log_softmax(x / TEMPERATURE, dim=1) for x in (student, teacher))
    soft = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return DISTILLATION * soft + (1 - DISTILLATION) * F.cross_entropy(student, labels)


def rate(step: int, steps: int) -> float:
    """Factor of the peak learning rate: linear warm-up, then half a cosine to zero."""
    rising = WARM_UP * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising)))
