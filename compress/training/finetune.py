"""Fine-tuning by distillation from the original model (Hinton et al. 2015, "Distilling the Knowledge in a Network")."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.splits import Split
from compress.errors import DataError, ModelError, RecipeError
from compress.training.layout import fastest_layout
from compress.training.teacher import Teacher
from compress.values import Progress, silent

# Told the number of optimizer steps done so far (1, 2, …) and the loss of the last, whose gradients are still there.
AfterStep = Callable[[int, float], None]


@dataclass(frozen=True)
class FineTuneConfig:
    """How a compressed model is trained to answer as the original does."""

    batch_size: int = 128  # samples a step
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 0.002  # at its peak
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate after the warm-up: to zero, or none
    momentum: float = 0.9  # of sgd alone
    weight_decay: float = 0.0  # decoupled for adamw, part of the gradient for adam and sgd
    temperature: float = 2.0  # softens both distributions in the distillation loss
    distillation: float = 0.5  # share 0..1 of the distillation loss, cross-entropy has the rest; 1 without labels
    warm_up: float = 0.05  # share 0..1 of the steps in which the learning rate rises from zero
    dropout: bool = False  # dropout on beside a teacher too; training on labels alone always has it on

    def __post_init__(self) -> None:
        problems = []
        if self.batch_size < 1:
            problems.append(f"batch_size={self.batch_size} must be at least 1")
        if not self.learning_rate > 0:
            problems.append(f"learning_rate={self.learning_rate} must be above 0")
        if not 0 <= self.momentum < 1:
            problems.append(f"momentum={self.momentum} must be within 0 <= momentum < 1")
        if not self.weight_decay >= 0:
            problems.append(f"weight_decay={self.weight_decay} must not be negative")
        if not self.temperature > 0:
            problems.append(f"temperature={self.temperature} must be above 0")
        if not 0 <= self.distillation <= 1:
            problems.append(f"distillation={self.distillation} must be within 0..1")
        if not 0 <= self.warm_up < 1:
            problems.append(f"warm_up={self.warm_up} must be within 0..1")
        if problems:
            raise RecipeError("; ".join(problems))


def plan_steps(split: Split, config: FineTuneConfig, epochs: float, min_steps: int = 0) -> int:
    """Optimizer steps in ``epochs`` passes over ``split``, at least ``min_steps``."""
    return max(1, min_steps, round(epochs * len(split) / config.batch_size))


def finetune(
    student: nn.Module,
    teacher: Teacher | None,
    split: Split,
    config: FineTuneConfig,
    *,
    steps: int,
    seed: int,
    device: str = "cpu",
    after_step: AfterStep | None = None,
    progress: Progress = silent,
    label: str = "fine-tuning",
) -> float:
    """Train ``student`` in place for ``steps`` optimizer steps and leave it in eval mode on the CPU.

    With a ``teacher`` it is distilled in `distilling_mode`; with None it is trained on the labels alone, dropout on.
    ``after_step`` runs after every optimizer step: what it does to the weights (holding masks) is what the next step
    sees. Same seed, same data and same thread count give the same weights.

    Returns:
        The mean loss over the last tenth of the steps.

    Raises:
        ModelError: the loss is not finite; names the step and what to lower.
    """
    student.to(device).eval()
    with fastest_layout(student, split, device, config.batch_size) as layout:
        restore = labels_mode(student) if teacher is None or config.dropout else distilling_mode(student)
        optimizer = make_optimizer(student, config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, config))
        torch.manual_seed(seed)  # layers that draw their own noise have no generator argument
        losses: list[float] = []
        batches = islice(_batches(len(split), config.batch_size, torch.Generator().manual_seed(seed)), steps)
        for step, positions in enumerate(batches, start=1):
            inputs, labels = split.fetch(split.indices[positions.numpy()])
            outputs = layout.run(student, tuple(x.to(device) for x in inputs))
            theirs = teacher.outputs(positions, inputs) if teacher is not None else None
            loss = loss_of(outputs, theirs, labels.to(device) if labels is not None else None, config)
            losses.append(_finite(loss.item(), f"{label}: step {step} of {steps}", config))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if after_step is not None:
                after_step(step, losses[-1])
            progress(label, step, steps, f"loss {losses[-1]:.3f}")
        restore()
    student.to("cpu").eval()
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def _finite(loss: float, where: str, config: FineTuneConfig) -> float:
    if not math.isfinite(loss):
        raise ModelError(f"{where}: the loss is {loss}. Lower learning_rate (now {config.learning_rate}).")
    return loss


def thaw(module: nn.Module) -> nn.Module:
    """Let every parameter of ``module`` that can have a gradient be trained, in place, however it came; returns it."""
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return module


def make_optimizer(module: nn.Module, config: FineTuneConfig) -> torch.optim.Optimizer:
    """The optimizer of ``config`` over all parameters of ``module``."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(module.parameters(), lr=rate, weight_decay=decay, momentum=config.momentum)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    parameters = list(module.parameters())
    # One pass over the memory: 3 times faster than the plain one (a tenth of a step of ResNet-18). Reals alone.
    fused = all(p.is_floating_point() for p in parameters)
    return kind(parameters, lr=rate, weight_decay=decay, fused=fused)


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Positions of the samples of each step, without end: one permutation after another, none cut short at its end."""
    order = torch.empty(0, dtype=torch.int64)
    while True:
        if len(order) < min(size, count):
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:size]
        order = order[size:]


def distilling_mode(module: nn.Module) -> Callable[[], None]:
    """Set ``module`` for training with a teacher: normalisation statistics follow the data, dropout is off.

    The teacher's outputs were made without dropout, and regularise by themselves: the student is to fit them.
    Everything is in eval mode, functional dropout too, but for layers with running statistics and, because cuDNN needs
    it for the backward pass, recurrent layers.

    Returns:
        A function that puts the dropout of the recurrent layers back.
    """
    module.eval()
    recurrent = [(layer, layer.dropout) for layer in module.modules() if isinstance(layer, nn.RNNBase)]
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats:
            layer.train()
    for layer, _ in recurrent:
        layer.dropout = 0.0
        layer.train()

    def restore() -> None:
        for layer, dropout in recurrent:
            layer.dropout = dropout

    return restore


def labels_mode(module: nn.Module) -> Callable[[], None]:
    """Set ``module`` for training as it was first trained, dropout on; nothing has to be put back."""
    module.train()
    return lambda: None


def loss_of(student: Tensor, teacher: Tensor | None, labels: Tensor | None, config: FineTuneConfig) -> Tensor:
    """Cross-entropy with the labels, mixed with the divergence from the teacher at ``config.temperature``.

    Args:
        student: Logits, log-probabilities or probabilities (N, C).
        teacher: The same kind from the original model (N, C), or None: cross-entropy alone.
        labels: (N,) int64, or None: the divergence alone.
    """
    like = teacher if teacher is not None else student
    ours = log_scores(student, like)
    hard = F.cross_entropy(ours, labels) if labels is not None else None
    if teacher is None:
        if hard is None:
            raise DataError("training needs labels, or a teacher to learn from.")
        return hard
    t = config.temperature
    targets = F.log_softmax(log_scores(teacher, like) / t, dim=1)
    # T² keeps the size of the gradient independent of the temperature (Hinton et al., section 2).
    soft = F.kl_div(F.log_softmax(ours / t, dim=1), targets, reduction="batchmean", log_target=True) * t * t
    return soft if hard is None else config.distillation * soft + (1 - config.distillation) * hard


def log_scores(outputs: Tensor, like: Tensor) -> Tensor:
    """Probabilities become their logarithm, logits and log-probabilities stay: a softmax of either is then right."""
    sums = like.detach().sum(dim=1)
    if bool((like.detach() >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
    return outputs


def _rate(step: int, steps: int, config: FineTuneConfig) -> float:
    """Factor of the peak learning rate at ``step`` of ``steps``: linear warm-up, then half a cosine, or level."""
    rising = config.warm_up * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising)))
